//! Goroutines and their stacks, compared with the target's own traceback.

use std::{collections::HashMap, time::Instant};

use super::{
    debug_info::DebugFrames,
    target::{Symbols, TOOLCHAINS, Target, for_each},
};
use crate::go::{
    FrameSizes, GoStatus, Goroutine, Goroutines, Layout, Version, group, is_system, read_goroutines,
};

/// What is `funcID_wrapper`, which `runtime/pprof` leaves out: methods that the compiler made, and what runs deferred calls.
const WRAPPERS: [&str; 6] = [
    "main.waiter.wait-fm",
    "main.outer.wait",
    "main.(*outer).wait",
    "runtime.deferreturn",
    "runtime.deferCallSave",
    "runtime.runOpenDeferFrame",
];

/// A goroutine as `runtime/pprof` writes it with `debug=2`.
#[derive(Debug)]
struct Traced {
    id: u64,
    reason: String,
    is_locked: bool,
    created_at: u64,
}

fn parse_traced(block: &str, symbols: &Symbols) -> Option<Traced> {
    let (id, rest) = block.trim().strip_prefix("goroutine ")?.split_once(' ')?;
    let state = rest.split_once('[')?.1.split_once("]:")?.0;
    let created_at = || {
        let (name, place) = block.split_once("created by ")?.1.split_once('\n')?;
        let entry = symbols.address(name.split(" in goroutine").next()?)?;
        let (_, offset) = place.split_once(" +0x")?;
        Some(entry + u64::from_str_radix(offset.trim(), 16).ok()?)
    };
    Some(Traced {
        id: id.parse().ok()?,
        reason: state.split(", ").next()?.to_owned(),
        is_locked: state.contains("locked to thread"),
        created_at: created_at().unwrap_or(0),
    })
}

/// Stacks as `runtime/pprof` writes them with `debug=1`, with how many goroutines have them. Inlined calls have entries of
/// their own.
fn parse_stacks(text: &str) -> Vec<(usize, Vec<u64>)> {
    let lines = text.lines().filter_map(|line| {
        let (count, stack) = line.split_once(" @ ")?;
        let stack = stack.split_whitespace().filter_map(|pc| pc.strip_prefix("0x"));
        let stack = stack.filter_map(|pc| u64::from_str_radix(pc, 16).ok());
        Some((count.parse().ok()?, stack.collect()))
    });
    lines.collect()
}

/// Whether these are the same calls, but for inlined ones, wrappers, and what is deeper than the runtime shows.
fn is_same_stack(target: &Target, physical: &[u64], shown: &[u64]) -> bool {
    let symbol = |pc: u64| target.symbols.containing(pc - 1);
    let is_wrapper = |pc: u64| symbol(pc).is_some_and(|(_, name)| WRAPPERS.contains(&name));
    let mut rest = shown;
    let mut calls = physical.iter().peekable();
    while let Some(&pc) = calls.next() {
        match rest.split_first() {
            Some((&first, behind)) if first == pc => rest = behind,
            // It is there if something else was inlined in it.
            _ if is_wrapper(pc) => continue,
            None => return shown.len() >= target.layout.profile_depth,
            Some(_) => return false,
        }
        // What was inlined has its entry before the function it is inlined in.
        let next = calls.peek().copied();
        let is_inlined = |other: u64| Some(&other) != next && symbol(other) == symbol(pc);
        let inlined = rest.iter().take_while(|&&other| is_inlined(other)).count();
        rest = &rest[inlined..];
    }
    rest.is_empty()
}

fn read(target: &Target, sizes: &dyn FrameSizes) -> Goroutines {
    read_goroutines(&*target.process, target.layout, &target.variables, sizes).expect("readable goroutines")
}

/// The text by which the runtime would name what it does.
fn state(goroutine: &Goroutine) -> &str {
    match goroutine.status {
        GoStatus::Waiting => goroutine.wait_reason,
        GoStatus::Syscall => "syscall",
        GoStatus::Runnable => "runnable",
        GoStatus::Running => "running",
        GoStatus::Other(_) => "other",
    }
}

/// The goroutines that `runtime/pprof` counts.
fn own(target: &Target, found: Goroutines) -> Vec<Goroutine> {
    let name = |pc: u64| target.symbols.containing(pc).map_or("", |(_, name)| name);
    let is_own = |goroutine: &Goroutine| {
        let runs_user_code = goroutine
            .stack
            .iter()
            .any(|&pc| !name(pc).starts_with("runtime."));
        !is_system(name(goroutine.start), runs_user_code, target.version)
    };
    found.all.into_iter().filter(is_own).collect()
}

#[test]
fn stacks_are_those_of_the_target() {
    for_each("target", &[], |target| {
        target.ask("park");
        let mut shown = parse_stacks(&target.ask("stacks"));
        let sizes = DebugFrames::read(&target.symbols);
        let found = read(target, &sizes);
        assert_eq!(found.torn, 0);
        let main = target.symbols.address("main.main");
        let serves = |pc: &u64| target.symbols.containing(*pc).map(|(begin, _)| begin) == main;
        shown.retain(|(_, stack)| !stack.iter().any(serves));
        // The first one answered.
        let mut own = own(target, found);
        own.retain(|goroutine| goroutine.id != 1);
        assert!(own.len() >= 48);
        assert_eq!(own.len(), shown.iter().map(|(count, _)| count).sum::<usize>());
        for (count, stack) in shown {
            let same = own
                .iter()
                .filter(|one| is_same_stack(target, &one.stack, &stack))
                .count();
            assert_eq!(same, count, "{:?}: {stack:x?}\n{own:#x?}", target.version);
        }
        assert!(
            own.iter()
                .all(|goroutine| goroutine.is_complete || goroutine.stack.len() == 256)
        );
    });
}

#[test]
fn states_and_origins_are_those_of_the_target() {
    for_each("target", &[], |target| {
        target.ask("park");
        let text = target.ask("goroutine");
        let blocks = text
            .split("\n\n")
            .filter_map(|block| parse_traced(block, &target.symbols));
        let traced: HashMap<u64, Traced> = blocks.map(|one| (one.id, one)).collect();
        let sizes = DebugFrames::read(&target.symbols);
        let own = own(target, read(target, &sizes));
        assert_eq!(own.len(), traced.len(), "{:?}", target.version);
        for goroutine in own.iter().filter(|goroutine| goroutine.id != 1) {
            let traced = &traced[&goroutine.id];
            let context = format!("{:?} {traced:?}\n{goroutine:?}", target.version);
            assert_eq!(state(goroutine), traced.reason, "{context}");
            assert_eq!(goroutine.is_locked, traced.is_locked, "{context}");
            assert_eq!(
                goroutine.is_locked,
                goroutine.thread != 0 && goroutine.status == GoStatus::Waiting,
                "{context}"
            );
            assert_eq!(goroutine.created_at, traced.created_at, "{context}");
        }
    });
}

#[test]
fn as_many_are_the_programs_own_as_it_counts() {
    for_each("target", &[], |target| {
        target.ask("park");
        let count: usize = target.ask("count").trim().parse().expect("a number");
        let sizes = DebugFrames::read(&target.symbols);
        let found = read(target, &sizes);
        assert_eq!(own(target, found).len(), count, "{:?}", target.version);
    });
}

#[test]
fn groups_hold_those_that_do_the_same() {
    for_each("target", &[22], |target| {
        target.ask("park");
        let sizes = DebugFrames::read(&target.symbols);
        let found = read(target, &sizes);
        let groups = group(&found.all);
        assert_eq!(
            groups.iter().map(|group| group.ids.len()).sum::<usize>(),
            found.all.len()
        );
        let threes = groups.iter().filter(|group| group.ids.len() == 3).count();
        assert!(threes >= 14, "{groups:#?}");
    });
}

/// Knows nothing, so that only frame pointers are left.
struct Unknown;

impl FrameSizes for Unknown {
    fn frame_size(&self, _: u64) -> Option<u32> {
        None
    }

    fn entry(&self, _: u64) -> Option<u64> {
        None
    }

    fn is_outermost(&self, _: u64) -> bool {
        false
    }
}

#[test]
fn frame_pointers_lead_the_same_way() {
    for_each("target", &[], |target| {
        target.ask("park");
        let sizes = DebugFrames::read(&target.symbols);
        let by_size = read(target, &sizes).all;
        let by_pointer = read(target, &Unknown).all;
        assert_eq!(by_size.len(), by_pointer.len());
        let sigpanic = target.symbols.address("runtime.sigpanic");
        let is_sigpanic = |pc: &u64| target.symbols.containing(*pc).map(|(begin, _)| begin) == sigpanic;
        for (by_size, by_pointer) in by_size.iter().zip(&by_pointer) {
            // Before 1.23, a system call saves no frame pointer; and which code was interrupted is not known.
            if by_size.status == GoStatus::Waiting && !by_size.stack.iter().any(is_sigpanic) {
                assert_eq!(by_size, by_pointer, "{:?}", target.version);
            }
        }
    });
}

#[test]
fn another_layout_is_refused() {
    for_each("target", &[], |target| {
        target.ask("park");
        let sizes = DebugFrames::read(&target.symbols);
        for (minor, _) in TOOLCHAINS {
            let layout = Layout::of(Version { major: 1, minor }).expect("a known version");
            let read = read_goroutines(&*target.process, layout, &target.variables, &sizes);
            let is_same = layout.g == target.layout.g && layout.m == target.layout.m;
            match read {
                Ok(_) => assert!(is_same, "{:?} read as 1.{minor}", target.version),
                Err(_) => {
                    assert!(!is_same, "{:?} refused as 1.{minor}", target.version);
                }
            }
        }
    });
}

#[test]
fn goroutines_that_come_and_go_are_never_mixed() {
    for_each("target", &[19, 24, 27], |target| {
        target.ask("park");
        target.ask("churn");
        let sizes = DebugFrames::read(&target.symbols);
        let (mut all, mut torn) = (0, 0);
        for _ in 0..200 {
            let found = read(target, &sizes);
            torn += found.torn;
            all += found.all.len();
            for goroutine in &found.all {
                let is_outside = |pc: &&u64| sizes.entry(**pc - 1).is_none();
                assert_eq!(goroutine.stack.iter().find(is_outside), None, "{goroutine:?}");
            }
        }
        println!("{:?}: {all} goroutines, {torn} torn", target.version);
        assert!(torn * 100 < all as u64, "{torn} of {all}");
        target.ask("count");
    });
}

#[test]
fn many_are_read_soon() {
    for_each("target", &[19, 27], |target| {
        target.ask("many 100000");
        let sizes = DebugFrames::read(&target.symbols);
        let began = Instant::now();
        let found = read(target, &sizes);
        let took = began.elapsed();
        println!("{:?}: {} goroutines in {took:?}", target.version, found.all.len());
        assert!(found.all.len() > 100_000);
        assert_eq!(group(&found.all)[0].ids.len(), 100_000);
    });
}
