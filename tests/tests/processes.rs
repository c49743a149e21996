//! Programs that memtrace starts, and processes that fork, execute and come and go.

use std::{process::Command, thread::sleep, time::Duration};

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile::{Build, program},
    family::{Relative, profile_of},
    kernel,
    profile::Heap,
    serial, skip,
    tracer::{self, Memtrace},
};

/// Has `targets/spawner.c` fork children; their ids.
fn fork(spawner: &mut Child, count: usize) -> Result<Vec<u32>> {
    spawner.tell(&format!("fork {count}"))?;
    let line = spawner.stdout.expect("children", PATIENCE)?;
    let children: Vec<u32> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(children.len() == count, "{children:?}");
    Ok(children)
}

/// A tree of processes that fork, execute, and free what they have from each other, in disorder.
fn family(
    seed: &str,
    generations: &str,
    steps: &str,
    least: usize,
    options: &[&str],
    compare: impl Fn(&Relative, &Heap) -> Result<()>,
) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let program = program("family")?;
    let options = [&["--quiet", "--children"], options].concat();
    let memtrace = Memtrace::start(&options, [&*program, seed, generations, steps])?;
    let root = memtrace
        .announcement
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned();
    let outcome = memtrace.finish(PATIENCE)?;
    ensure!(outcome.code == Some(0), "{}", outcome.stderr);
    let books: Vec<_> = outcome
        .stdout
        .lines()
        .map(Relative::parse)
        .collect::<Result<_>>()?;
    ensure!(books.len() >= least, "only {} processes", books.len());
    ensure!(books.iter().any(|process| process.parent != 0), "nobody forked");
    ensure!(
        books.iter().filter(|process| process.parent == 0).count() > 1,
        "nobody executed"
    );
    let mut differences = Vec::new();
    for process in &books {
        let path = match process.pid.to_string() == root {
            true => outcome.output().join("heap.pb.gz"),
            false => profile_of(&outcome.output(), process.pid)?,
        };
        if let Err(error) = compare(process, &Heap::read(&path)?) {
            let pid = process.pid;
            differences.push(format!("{pid} of {}: {error}", process.parent));
        }
    }
    ensure!(
        differences.is_empty(),
        "{} of {} processes differ:\n{}",
        differences.len(),
        books.len(),
        differences.join("\n")
    );
    Ok(())
}

/// Needs no privilege, and builds what the others trace.
#[test]
fn a_family_keeps_books_of_itself() -> Result<()> {
    for name in ["beginner", "borrower", "changer", "spawner"] {
        program(name)?;
    }
    let output = Command::new(program("family")?)
        .args(["5", "1", "300"])
        .output()?;
    ensure!(output.status.success(), "{}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    let books: Vec<_> = lines.lines().map(Relative::parse).collect::<Result<_>>()?;
    ensure!(books.iter().any(|process| process.parent != 0), "{lines}");
    Ok(())
}

#[test]
fn a_small_family() -> Result<()> {
    family("3", "2", "1000", 20, &[], Relative::assert_equal)
}

#[test]
fn a_deep_family() -> Result<()> {
    family("5", "4", "300", 40, &[], Relative::assert_equal)
}

/// What a child frees where it had inherited a sample is often a block of its own that was not drawn.
#[test]
fn a_sampled_family() -> Result<()> {
    let near = |process: &Relative, heap: &Heap| process.assert_near(heap, 1024.0);
    family("3", "2", "1000", 20, &["--sample-bytes", "1k"], near)?;
    family("5", "4", "300", 40, &["--sample-bytes", "1k"], near)
}

/// A block of one byte has a probability of 0.63, those of 23 bytes and more of 1.
#[test]
fn a_family_of_which_all_is_sampled() -> Result<()> {
    let near = |process: &Relative, heap: &Heap| process.assert_near(heap, 1.0);
    family("3", "2", "1000", 20, &["--sample-bytes", "1"], near)
}

#[test]
fn a_program_is_traced_from_its_first_instruction() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let memtrace = Memtrace::start(&[], [&*program("beginner")?, "an argument", "--pid"])?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    ensure!(
        outcome.stdout.contains("an argument, --pid"),
        "{}",
        outcome.stdout
    );
    ensure!(
        outcome.stderr.contains("the program ended: exit status: 7"),
        "{}",
        outcome.stderr
    );
    let sites = heap.by_function("beginner_");
    for (site, objects, bytes) in [
        ("beginner_constructor", 1, 1001),
        ("beginner_main", 2, 4004),
        ("beginner_exit", 1, 3003),
    ] {
        let values = sites.get(site).copied().unwrap_or_default();
        ensure!(
            (values.inuse_objects, values.inuse_bytes) == (objects, bytes),
            "{site}: {values:?}"
        );
    }
    ensure!(
        heap.comments
            .iter()
            .any(|comment| comment == "every recorded stack is complete"),
        "{:?}",
        heap.comments
    );
    Ok(())
}

#[test]
fn what_a_borrowed_address_space_allocates_belongs_to_its_owner() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    for arguments in [&[][..], &["--children"]] {
        let memtrace = Memtrace::start(arguments, [program("borrower")?])?;
        let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
        let sites = heap.by_function("borrower_");
        let objects = |site| sites.get(site).map_or(0, |values| values.inuse_objects);
        ensure!(
            (objects("borrower_child"), objects("borrower_parent")) == (10, 5),
            "{arguments:?}: {sites:?}\n{}",
            outcome.stderr
        );
    }
    Ok(())
}

/// musl's dynamic linker tells of its mappings once only, and the program's children must not be stopped by that.
#[test]
fn a_program_of_another_libc_is_traced_from_its_first_instruction() -> Result<()> {
    let (true, Some(_)) = (skip::can_trace(), skip::installed(&["musl-gcc"])) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let program = Build::c("beginner")
        .compiler("musl-gcc")
        .named("beginner_musl")
        .path()?;
    let program = program.to_str().context("a path that is not UTF-8")?;
    let script = format!("{program}; {program}; exit 5");
    for (arguments, command) in [
        (&["--quiet"][..], vec![program]),
        (&["--quiet", "--children"], vec!["sh", "-c", &script]),
    ] {
        let memtrace = Memtrace::start(arguments, &command)?;
        let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
        if command.len() == 1 {
            let sites = heap.by_function("beginner_");
            let bytes: i64 = sites.values().map(|values| values.inuse_bytes).sum();
            ensure!(bytes == 1001 + 4004 + 3003, "{sites:?}\n{}", outcome.stderr);
        }
    }
    Ok(())
}

/// The same id, the same stacks at the same addresses: only the address space tells these processes apart.
#[test]
fn processes_with_the_same_id() -> Result<()> {
    const COUNT: usize = 40;
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let memtrace = Memtrace::start(
        &["--quiet", "--children"],
        [&*program("twins")?, &COUNT.to_string()],
    )?;
    let (_, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    let same: usize = outcome.stdout.trim().parse()?;
    ensure!(
        same > COUNT / 2,
        "only {same} had the same id: another process took it"
    );
    let heaps = outcome.other_heaps()?;
    for heap in &heaps {
        let objects = |function: &str, inherited| {
            let sites = heap.by_function_and_origin(function, inherited);
            sites.values().map(|values| values.inuse_objects).sum::<i64>()
        };
        let found = (objects("twins_child", false), objects("twins_parent", true));
        ensure!(found == (10, 50), "{}: {found:?}", heap.comments[0]);
    }
    ensure!(heaps.len() == COUNT, "{} profiles", heaps.len());
    Ok(())
}

#[test]
fn children_that_are_there_already_are_traced() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Child::spawn(&mut Command::new(program("spawner")?))?;
    target.stdout.expect("ready ", PATIENCE)?;
    let children = fork(&mut target, 2)?;
    let memtrace = Memtrace::attach(target.pid(), &["--children"])?;
    for child in &children {
        ensure!(
            !kernel::patched_addresses(*child)?.is_empty(),
            "process {child} has no probes"
        );
    }
    target.tell("exit")?;
    target.wait(PATIENCE)?;
    let (_, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    for child in children {
        profile_of(&outcome.output(), child)?;
    }
    Ok(())
}

#[test]
fn a_program_that_cannot_be_started() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let outcome = tracer::run(["--", "/nonexistent/program"], PATIENCE)?;
    ensure!(outcome.code == Some(4), "{:?}", outcome.code);
    ensure!(
        outcome.stderr.contains("cannot start /nonexistent/program"),
        "{}",
        outcome.stderr
    );
    Ok(())
}

/// Each program that a process executes has a heap of its own.
#[test]
fn an_exec_ends_one_heap_and_begins_another() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Child::spawn(&mut Command::new(program("changer")?))?;
    target.stdout.expect("ready ", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), &["--children"])?;
    for round in 1..=3 {
        target.tell(&format!("allocate {}", round * 100))?;
        target.stdout.expect("done", PATIENCE)?;
        if round < 3 {
            target.tell("exec")?;
            target.stdout.expect("ready ", PATIENCE)?;
            // So that the new program's mappings are read before it allocates.
            sleep(Duration::from_millis(300));
        }
    }
    target.tell("exit")?;
    target.wait(PATIENCE)?;
    let (first, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    let mut heaps = vec![first];
    heaps.extend(outcome.other_heaps()?);
    let mut objects: Vec<_> = heaps
        .iter()
        .map(|heap| {
            heap.by_function("changer_")
                .values()
                .map(|values| values.inuse_objects)
                .sum::<i64>()
        })
        .collect();
    objects.sort_unstable();
    ensure!(objects == [100, 200, 300], "{objects:?}\n{}", outcome.stdout);
    Ok(())
}

/// Children of threads that were there before the attach, and threads that come and go.
#[test]
fn children_of_any_thread_are_followed() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Child::spawn(&mut Command::new(program("spawner")?))?;
    target.stdout.expect("ready ", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), &["--children"])?;
    target.tell("threads 2000")?;
    target.stdout.expect("done", PATIENCE)?;
    let children = fork(&mut target, 8)?;
    target.tell("exit")?;
    target.wait(PATIENCE)?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    let of_threads = heap
        .by_function("spawner_thread")
        .values()
        .map(|values| values.inuse_objects)
        .sum::<i64>();
    ensure!(of_threads == 2000, "{of_threads}");
    for pid in children {
        let heap = Heap::read(&profile_of(&outcome.output(), pid)?)?;
        let sites = heap.by_function_and_origin("spawner_", false);
        let objects = sites
            .get("spawner_child")
            .map_or(0, |values| values.inuse_objects);
        ensure!(objects == 3, "process {pid}: {sites:?}");
        let inherited = heap.by_function_and_origin("spawner_", true);
        let objects = inherited
            .get("spawner_thread")
            .map_or(0, |values| values.inuse_objects);
        ensure!(objects == 2000, "process {pid}: {inherited:?}");
    }
    Ok(())
}

#[test]
fn kill_9_while_children_are_followed_leaves_no_probe() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Child::spawn(&mut Command::new(program("spawner")?))?;
    target.stdout.expect("ready ", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), &["--children"])?;
    let group = format!("memtrace_{}_", memtrace.pid());
    ensure!(
        !kernel::patched_addresses(target.pid())?.is_empty(),
        "nothing is probed"
    );
    memtrace.signal(libc::SIGKILL)?;
    let outcome = memtrace.finish(PATIENCE)?;
    ensure!(outcome.code.is_none(), "{:?}", outcome.code);
    kernel::await_unpatched(target.pid())?;
    // What it defined is inert; the next run removes it.
    Memtrace::attach(target.pid(), &["--children"])?.stop()?;
    let left = kernel::uprobe_events()?;
    ensure!(!left.contains(&group), "{left}");
    target.tell("exit")?;
    target.wait(PATIENCE)?;
    Ok(())
}
