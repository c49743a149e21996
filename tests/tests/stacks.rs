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

/// All but `plugin_load` and `lazy_binding`, which are checked by themselves.
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
fn check(mut target: Stacks, compare: bool) -> Result<()> {
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    ensure!(target.run("plugin_load", 1)? == 1);
    // What is mapped late is known a moment later.
    std::thread::sleep(Duration::from_millis(500));
    let mut blocks = Vec::new();
    for scenario in scenarios() {
        let made = target.run(scenario.name, scenario.count)?;
        ensure!(
            made >= i64::from(scenario.count),
            "{} made {made} blocks",
            scenario.name
        );
        blocks.push((scenario, made));
    }
    let (heap, outcome) = memtrace.stop()?;

    let checked = blocks.iter().map(|(scenario, made)| scenario.check(&heap, *made));
    let wrong: Vec<String> = checked
        .chain([check_constructor(&heap)])
        .filter_map(|check| Some(format!("{:#}", check.err()?)))
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} scenarios are wrong:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        outcome.stderr
    );
    check_completeness(&heap)?;
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

/// A plugin's constructor allocates microseconds after the plugin was mapped, perhaps before memtrace knows the
/// mapping. The block must be there all the same, and its stack right or marked as cut off.
fn check_constructor(heap: &Heap) -> Result<()> {
    const BYTES: i64 = 4000;
    let callers = ["plugin_loaded", "scenario_plugin_load", "run", "main"]
        .map(str::to_owned)
        .to_vec();
    let expected = Scenario {
        callers,
        ..scenario("plugin_load", "plugin_allocate", &[])
    };
    let found = heap
        .stacks
        .iter()
        .filter(|stack| stack.values.inuse_bytes == BYTES && stack.values.inuse_objects == 1);
    let good = found
        .filter(|stack| is_cut_off(stack) || expected.is_right(stack))
        .count();
    ensure!(good == 1, "plugin_load: {good} stacks with {BYTES} bytes");
    Ok(())
}

/// Insists that nearly all blocks have a complete stack.
fn check_completeness(heap: &Heap) -> Result<()> {
    let count = |stacks: &mut dyn Iterator<Item = &Stack>| {
        stacks.map(|stack| stack.values.alloc_objects).sum::<i64>()
    };
    let all = count(&mut heap.stacks.iter());
    let complete = count(&mut heap.stacks.iter().filter(|stack| ends_at_the_root(stack)));
    #[expect(clippy::cast_precision_loss, reason = "a few thousand blocks")]
    let share = complete as f64 / all as f64;
    ensure!(
        share >= COMPLETE,
        "{complete} of {all} stacks are complete\n{}",
        heap.comments.join("\n")
    );
    Ok(())
}

/// Builds one variant and traces it, if tracing is possible here.
fn trace(name: &str, flags: &[&str], program_flags: &[&str], compare: bool) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    check(Stacks::start(name, flags, program_flags)?, compare)
}

#[test]
fn optimised() -> Result<()> {
    trace("stacks_O2", &[], &[], true)
}

#[test]
fn unoptimised() -> Result<()> {
    trace("stacks_O0", &["-O0"], &[], true)
}

#[test]
fn bound_lazily_through_the_plt() -> Result<()> {
    trace("stacks_lazy", &["-Wl,-z,lazy"], &[], false)
}

#[test]
fn without_a_plt() -> Result<()> {
    trace("stacks_no_plt", &["-fno-plt"], &[], false)
}

/// `endbr64` at each function's begin, and a second PLT.
#[test]
fn with_control_flow_enforcement() -> Result<()> {
    trace(
        "stacks_cet",
        &["-fcf-protection=full", "-Wl,-z,ibtplt", "-Wl,-z,lazy"],
        &[],
        false,
    )
}

#[test]
fn at_a_fixed_address() -> Result<()> {
    trace("stacks_fixed", &[], &["-no-pie", "-fno-pie"], false)
}

/// With frame pointers as well: unwind tables then say so, row by row.
#[test]
fn with_frame_pointers() -> Result<()> {
    trace("stacks_fp", &["-fno-omit-frame-pointer"], &[], false)
}

/// Every instruction of the dynamic linker's lazy binding. Where its frames keep the CFA in a register that memtrace
/// does not follow, a stack may stop early; it must say so, and no block may be missing.
#[test]
fn while_binding_lazily() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Stacks::start("stacks_lazy", &["-Wl,-z,lazy"], &[])?;
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
        let complete = ends_at_the_root(stack) && stack.contains("scenario_lazy_binding");
        let honest = complete || is_cut_off(stack);
        ensure!(
            honest,
            "neither complete nor marked: {}",
            stack.functions().join(" ")
        );
    }
    target.exit()
}

/// Whether the outermost frame says that the stack was cut off there and why, such as `[stack truncated: reason]`.
fn is_cut_off(stack: &Stack) -> bool {
    stack
        .frames
        .last()
        .is_some_and(|frame| frame.function.starts_with("[stack truncated: "))
}
