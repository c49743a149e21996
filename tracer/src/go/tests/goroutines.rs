//! Goroutines and their stacks, compared with the target's own traceback.

use std::{collections::HashMap, time::Instant};

use super::{
    debug_info::DebugFrames,
    target::{Symbols, TOOLCHAINS, Target, for_each},
};
use crate::go::{
    FrameSizes, GoError, GoStatus, Goroutine, Goroutines, Layout, Version, group, is_system, read_goroutines,
};

/// A goroutine as `runtime/pprof` writes it with `debug=2`.
#[derive(Debug, Default)]
struct Traced {
    id: u64,
    reason: String,
    is_locked: bool,
    /// Program counters up to where the runtime cut the stack, and behind that.
    stack: [Vec<u64>; 2],
    created_at: u64,
}

fn parse(text: &str, symbols: &Symbols) -> Vec<Traced> {
    let blocks = text.split("\n\n").filter(|block| block.contains("goroutine "));
    blocks.filter_map(|block| parse_one(block.trim(), symbols)).collect()
}

fn parse_one(block: &str, symbols: &Symbols) -> Option<Traced> {
    let mut lines = block.lines();
    let head = lines.next()?.strip_prefix("goroutine ")?;
    let (id, rest) = head.split_once(' ')?;
    let state = rest.split_once('[')?.1.trim_end_matches(['\n', ':']).trim_end_matches(']');
    let mut traced = Traced {
        id: id.parse().ok()?,
        reason: state.split(", ").next()?.to_owned(),
        is_locked: state.contains("locked to thread"),
        ..Traced::default()
    };
    let (mut part, mut creator) = (0, None);
    for line in lines {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        if line.contains("frames elided") {
            part = 1;
        } else if let Some(name) = line.strip_prefix("created by ") {
            creator = symbols.address(name.split(" in goroutine").next()?);
        } else if let (Some(creator), Some((_, offset))) = (creator, line.split_once(" +0x")) {
            traced.created_at = creator + hex(offset)?;
        } else if let Some((_, pc)) = line.split_once(" pc=0x") {
            traced.stack[part].push(hex(pc)?);
        }
    }
    Some(traced)
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

fn compare(target: &Target, goroutine: &Goroutine, traced: &Traced) {
    let named = |stack: &[u64]| -> Vec<String> {
        let name = |pc: &u64| target.symbols.containing(*pc).map_or("?", |(_, name)| name).to_owned();
        stack.iter().map(name).collect()
    };
    let context = format!("{:?} {traced:?}\n{goroutine:?}\n{:#?}", target.version, named(&goroutine.stack));
    assert_eq!(state(goroutine), traced.reason, "{context}");
    assert_eq!(goroutine.is_locked, traced.is_locked, "{context}");
    assert_eq!(goroutine.created_at, traced.created_at, "{context}");
    let [inner, outer] = &traced.stack;
    if outer.is_empty() && inner.len() < 100 {
        assert_eq!(&goroutine.stack, inner, "{context}");
        assert!(goroutine.is_complete, "{context}");
    } else {
        assert!(goroutine.stack.starts_with(inner), "{context}");
    }
}

#[test]
fn stacks_are_those_of_the_target() {
    for_each("target", &[], |target| {
        target.ask("park");
        let text = target.ask("goroutine");
        let symbols = &target.symbols;
        let sizes = DebugFrames::read(symbols);
        let traced: HashMap<u64, Traced> = parse(&text, symbols).into_iter().map(|one| (one.id, one)).collect();
        assert!(traced.len() > 48, "{}", traced.len());
        let found = read(target, &sizes);
        assert_eq!(found.torn, 0);
        let ids = |all: Vec<u64>| {
            let mut all = all;
            all.sort_unstable();
            all
        };
        assert_eq!(
            ids(found.all.iter().map(|goroutine| goroutine.id).collect()),
            ids(traced.keys().copied().collect()),
            "{:?}",
            target.version
        );
        // The first one wrote the text.
        for goroutine in found.all.iter().filter(|goroutine| goroutine.id != 1) {
            compare(target, goroutine, &traced[&goroutine.id]);
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
        let name = |pc: u64| target.symbols.containing(pc).map_or("", |(_, name)| name);
        let own = found.all.iter().filter(|goroutine| {
            let runs_user_code = goroutine.stack.iter().any(|&pc| !name(pc).starts_with("runtime."));
            !is_system(name(goroutine.start), runs_user_code, target.version)
        });
        assert_eq!(own.count(), count, "{:?}", target.version);
    });
}

#[test]
fn groups_hold_those_that_do_the_same() {
    for_each("target", &[22], |target| {
        target.ask("park");
        let sizes = DebugFrames::read(&target.symbols);
        let found = read(target, &sizes);
        let groups = group(&found.all);
        assert_eq!(groups.iter().map(|group| group.ids.len()).sum::<usize>(), found.all.len());
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
        for (by_size, by_pointer) in by_size.iter().zip(&by_pointer) {
            // Before 1.23, a system call saves no frame pointer.
            if by_size.status == GoStatus::Waiting {
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
                Err(GoError::Layout(_) | GoError::Memory { .. }) => {
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
                let is_outside = |pc: &&u64| sizes.entry(**pc).is_none();
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
