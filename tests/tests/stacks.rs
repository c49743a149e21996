//! Stacks without frame pointers: right, complete, and frame by frame what gdb says.

use std::time::Duration;

use anyhow::ensure;
use memtrace_tests::{
    Result,
    profile::{Heap, Stack},
    serial, skip,
    stacks::{Scenario, Stacks, ends_at_the_root},
    tracer::Memtrace,
};

/// How often most scenarios run.
const OFTEN: u32 = 50;

/// The share of blocks, in all of a variant's scenarios, that must have a complete stack.
const COMPLETE: f64 = 0.999;

/// A scenario of the main thread whose stack is always the same.
fn scenario(name: &'static str, leaf: &'static str, callers: &[&str]) -> Scenario {
    let scenario = format!("scenario_{name}");
    let callers = callers
        .iter()
        .copied()
        .chain([scenario.as_str(), "run", "main"])
        .map(str::to_owned)
        .collect();
    Scenario {
        name,
        count: OFTEN,
        leaf,
        callers,
        any_before: false,
        samples: &[1],
    }
}

/// A scenario of the main thread in which a signal interrupts other functions.
fn interrupted(name: &'static str, count: u32, samples: &'static [u32]) -> Scenario {
    Scenario {
        count,
        samples,
        any_before: true,
        ..scenario(name, "make_block", &[])
    }
}

/// A scenario whose blocks are made by a thread of its own.
fn in_thread(name: &'static str, callers: &[&str]) -> Scenario {
    let callers = callers.iter().copied().map(str::to_owned).collect();
    Scenario {
        callers,
        ..scenario(name, "make_block", &[])
    }
}

/// All but `lazy_binding`, which has a test of its own. `plugin_load` comes before `plugin`.
fn scenarios() -> Vec<Scenario> {
    let deep: Vec<String> = (0..=60).rev().map(|depth| format!("deep_{depth:02}")).collect();
    let deep: Vec<&str> = deep.iter().map(String::as_str).collect();
    vec![
        scenario("shallow", "make_block", &["shallow_3", "shallow_2", "shallow_1"]),
        scenario("deep", "make_block", &deep),
        scenario("recursive", "make_block", &["recurse"; 60]),
        scenario("inlined", "make_block", &["inlined_inner", "inlined_outer"]),
        scenario("library", "library_inner", &["library_allocate"]),
        scenario("callback", "make_block", &["library_call"]),
        scenario("qsort", "make_block", &["compare"]),
        Scenario {
            count: 1,
            samples: &[],
            ..scenario("plugin_load", "plugin_allocate", &["plugin_loaded"])
        },
        Scenario {
            samples: &[],
            ..scenario("plugin", "plugin_allocate", &["plugin_run"])
        },
        scenario("alloca", "make_block", &["with_alloca"]),
        scenario("realigned", "make_block", &["realigned_64", "realigned_32"]),
        scenario("signal_raise", "make_block", &["on_signal"]),
        scenario(
            "signal_stack_below",
            "make_block",
            &["on_signal", "with_alternate_stack"],
        ),
        in_thread(
            "signal_stack_above",
            &["on_signal", "with_alternate_stack", "below_main"],
        ),
        interrupted("signal_timer", 200, &[]),
        interrupted("steps", 2, &[1, 10, 25, 40, 60, 80, 100, 115]),
        scenario("noreturn", "make_block", &["never_returns", "ends_in_call"]),
        in_thread("thread", &["thread_step", "thread_start"]),
        scenario("exception", "make_block", &["shop::Guard::~Guard", "shop::place"]),
        Scenario {
            samples: &[],
            ..scenario("new", "shop::create", &[])
        },
    ]
}

/// Traces all scenarios of one build; with `compare`, also asks gdb.
fn check(name: &str, flags: &[&str], compare: bool) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Stacks::start(name, flags)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    let mut blocks = Vec::new();
    for scenario in scenarios() {
        let made = target.run(scenario.name, scenario.count)?;
        ensure!(
            made >= i64::from(scenario.count),
            "{} made {made} blocks",
            scenario.name
        );
        blocks.push((scenario, made));
        if name_is_last(&blocks, "plugin_load") {
            // What is mapped late is known a moment later.
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    let (heap, outcome) = memtrace.stop()?;

    let wrong: Vec<String> = blocks
        .iter()
        .filter_map(|(scenario, made)| Some(format!("{:#}", scenario.check(&heap, *made).err()?)))
        .collect();
    ensure!(
        wrong.is_empty(),
        "{name}: {} scenarios are wrong:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        outcome.stderr
    );
    check_completeness(&heap, blocks.iter().map(|(_, made)| made).sum())?;
    if compare && let Some(gdb) = skip::installed(&["gdb"]) {
        for (scenario, _) in &blocks {
            for nth in scenario.samples {
                let backtraces = target.hold(scenario.name, *nth, &gdb)?;
                scenario.check_against(&heap, &backtraces)?;
            }
        }
    }
    target.exit()
}

fn name_is_last(blocks: &[(Scenario, i64)], name: &str) -> bool {
    blocks.last().is_some_and(|(scenario, _)| scenario.name == name)
}

/// Insists that nearly all blocks of the target's own functions have a complete stack, and that none is missing.
fn check_completeness(heap: &Heap, made: i64) -> Result<()> {
    let leaves = ["make_block", "library_inner", "plugin_allocate", "shop::create"];
    let is_own = |stack: &&Stack| leaves.iter().any(|leaf| stack.innermost(leaf).is_some());
    let count = |complete: bool| -> i64 {
        let stacks = heap
            .stacks
            .iter()
            .filter(is_own)
            .filter(|stack| !complete || ends_at_the_root(stack));
        stacks.map(|stack| stack.values.inuse_objects).sum()
    };
    let (all, complete) = (count(false), count(true));
    ensure!(all == made, "the profile has {all} of {made} blocks");
    #[expect(clippy::cast_precision_loss, reason = "a few thousand blocks")]
    let share = complete as f64 / all as f64;
    ensure!(
        share >= COMPLETE,
        "{complete} of {all} stacks are complete\n{}",
        heap.comments.join("\n")
    );
    Ok(())
}

#[test]
fn optimised() -> Result<()> {
    check("stacks_O2", &[], true)
}

#[test]
fn unoptimised() -> Result<()> {
    check("stacks_O0", &["-O0"], true)
}

#[test]
fn bound_lazily_through_the_plt() -> Result<()> {
    check("stacks_lazy", &["-Wl,-z,lazy"], false)
}

#[test]
fn without_a_plt() -> Result<()> {
    check("stacks_no_plt", &["-fno-plt"], false)
}

/// `endbr64` at each function's begin, and a second PLT.
#[test]
fn with_control_flow_enforcement() -> Result<()> {
    check(
        "stacks_cet",
        &["-fcf-protection=full", "-Wl,-z,ibtplt", "-Wl,-z,lazy"],
        false,
    )
}

#[test]
fn at_a_fixed_address() -> Result<()> {
    check("stacks_fixed", &["-no-pie", "-fno-pie"], false)
}

/// With frame pointers as well: unwind tables then say so, row by row.
#[test]
fn with_frame_pointers() -> Result<()> {
    check("stacks_fp", &["-fno-omit-frame-pointer"], false)
}

/// Every instruction of the dynamic linker's lazy binding. Where its frames keep the CFA in a register that memtrace
/// does not follow, a stack may stop early; it must say so, and no block may be missing.
#[test]
fn while_binding_lazily() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Stacks::start("stacks_lazy", &["-Wl,-z,lazy"])?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    let made = target.run("lazy_binding", 1)?;
    ensure!(made > 500, "binding took {made} instructions");
    let (heap, _outcome) = memtrace.stop()?;
    let stacks = || {
        heap.through("on_step")
            .filter(|stack| stack.values.inuse_objects > 0)
    };
    let found: i64 = stacks().map(|stack| stack.values.inuse_objects).sum();
    ensure!(found == made, "the profile has {found} of {made} blocks");
    for stack in stacks() {
        let outermost = stack.frames.last().map_or("", |frame| frame.function.as_str());
        let honest = if ends_at_the_root(stack) {
            stack.contains("scenario_lazy_binding")
        } else {
            is_marker(outermost)
        };
        ensure!(
            honest,
            "neither complete nor marked: {}",
            stack.functions().join(" ")
        );
    }
    target.exit()
}

/// Whether a frame's name says that the stack was cut off there, such as `[truncated: reason]`.
fn is_marker(function: &str) -> bool {
    function.starts_with('[')
}
