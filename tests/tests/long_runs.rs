//! More than the tables hold at once, over time.

use std::process::Command;

use anyhow::ensure;
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile::program,
    serial, skip,
    tracer::Memtrace,
};

/// The table of stacks holds 65,536; those at which nothing is held any more make room.
#[test]
fn more_stacks_than_the_table_holds() -> Result<()> {
    const STACKS: i64 = 90_000;
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Child::spawn(Command::new(program("churn")?).args([&STACKS.to_string(), "5000"]))?;
    target.stdout.expect("ready ", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    target.tell("")?;
    target.stdout.expect("done", PATIENCE)?;
    let (heap, _outcome) = memtrace.stop()?;
    let values = heap
        .by_function("churn_leaf")
        .get("churn_leaf")
        .copied()
        .unwrap_or_default();
    let comments = heap.comments.join("\n");
    ensure!(
        values.alloc_objects == STACKS + STACKS / 1000,
        "{values:?}\n{comments}"
    );
    ensure!(values.inuse_objects == STACKS / 1000, "{values:?}\n{comments}");
    ensure!(comments.contains("nothing was lost"), "{comments}");
    ensure!(
        comments.contains("every recorded stack is complete"),
        "{comments}"
    );
    ensure!(heap.stacks.len() as i64 >= STACKS, "{} stacks", heap.stacks.len());
    Ok(())
}

/// Each child has as many stacks as its parent, and all of them together have more than the table holds.
#[test]
fn more_children_than_the_table_holds() -> Result<()> {
    const CHILDREN: usize = 60;
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let memtrace = Memtrace::start(&["--children"], [&*program("begetter")?, &CHILDREN.to_string()])?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    let mut heaps = vec![heap];
    heaps.extend(outcome.other_heaps()?);
    ensure!(heaps.len() == CHILDREN + 1, "{} profiles", heaps.len());
    for heap in &heaps {
        let comments = heap.comments.join("\n");
        let values = heap
            .by_function("begetter_leaf")
            .get("begetter_leaf")
            .copied()
            .unwrap_or_default();
        ensure!(values.inuse_objects == 2048, "{values:?}\n{comments}");
        ensure!(comments.contains("nothing was lost"), "{comments}");
    }
    Ok(())
}
