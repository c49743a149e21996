//! The heap profile, compared with the target's own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::target::{TOOLCHAINS, Target, for_each};
use crate::go::{GoError, GoHeap, Layout, MemRecord, Version, read_heap, scale};

/// In use and allocated, objects and bytes, and the stack.
type Line = ([u64; 4], Vec<u64>);

/// What `runtime/pprof` writes with `debug=1`, without buckets that have published nothing.
fn parse(text: &str) -> Vec<Line> {
    let lines = text.lines().filter_map(|line| {
        let (values, stack) = line.split_once("] @")?;
        let numbers = values
            .split(|c: char| !c.is_ascii_digit())
            .filter(|n| !n.is_empty());
        let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
        let stack = stack.split_whitespace().filter_map(|pc| pc.strip_prefix("0x"));
        let stack = stack.filter_map(|pc| u64::from_str_radix(pc, 16).ok()).collect();
        let values: [u64; 4] = numbers.try_into().ok()?;
        (!line.starts_with("heap profile") && values[2] > 0).then_some((values, stack))
    });
    let mut lines: Vec<Line> = lines.collect();
    lines.sort();
    lines
}

fn published(heap: &GoHeap) -> Vec<Line> {
    let shown = heap.buckets.iter().filter(|bucket| bucket.published.allocs > 0);
    let mut lines: Vec<Line> = shown
        .map(|bucket| (values(bucket.published), bucket.stack.clone()))
        .collect();
    lines.sort();
    lines
}

fn values(record: MemRecord) -> [u64; 4] {
    [
        record.allocs - record.frees,
        record.alloc_bytes - record.free_bytes,
        record.allocs,
        record.alloc_bytes,
    ]
}

fn read(target: &Target) -> GoHeap {
    read_heap(&*target.process, target.layout, &target.variables).expect("a readable heap profile")
}

#[test]
fn buckets_are_those_of_the_target() {
    for_each("target", &[], |target| {
        target.ask("allocate");
        for _ in 0..3 {
            let own = parse(&target.ask("heap"));
            let heap = read(target);
            assert_eq!(heap.torn, 0);
            assert_eq!(heap.rate, 512 << 10);
            assert!(own.len() > 5, "{own:?}");
            assert_eq!(published(&heap), own, "{:?}", target.version);
            target.ask("allocate");
        }
        let began = Instant::now();
        let heap = read(target);
        println!(
            "{:?}: {} buckets in {:?}",
            target.version,
            heap.buckets.len(),
            began.elapsed()
        );
    });
}

#[test]
fn all_is_published_before_the_first_collection() {
    for_each("target", &[], |target| {
        target.ask("allocate");
        // Answering allocates too, but nothing as large.
        let large = |lines: Vec<Line>| {
            let lines = lines.into_iter();
            lines
                .filter(|(values, _)| values[3] / values[2] > 60_000)
                .collect::<Vec<_>>()
        };
        let before = large(published(&read(target)));
        assert!(!before.is_empty());
        assert_eq!(before, large(parse(&target.ask("early"))), "{:?}", target.version);
    });
}

#[test]
fn what_was_allocated_since_is_there_now() {
    for_each("target", &[19, 27], |target| {
        target.ask("heap");
        target.ask("allocate");
        let heap = read(target);
        let keep = target.symbols.address("main.keep").expect("a function");
        let of_keep = |pc: &u64| {
            target
                .symbols
                .containing(*pc)
                .is_some_and(|(begin, _)| begin == keep)
        };
        let kept = heap
            .buckets
            .iter()
            .filter(|bucket| bucket.stack.iter().any(of_keep));
        let (now, published) = kept.fold((0, 0), |(now, published), bucket| {
            (
                now + bucket.now.alloc_bytes,
                published + bucket.published.alloc_bytes,
            )
        });
        assert!(now > 4 << 20, "{now}");
        assert_eq!(published, 0);
    });
}

#[test]
fn another_layout_is_refused() {
    for_each("target", &[], |target| {
        target.ask("allocate");
        target.ask("heap");
        for (minor, _) in TOOLCHAINS {
            let layout = Layout::of(Version { major: 1, minor }).expect("a known version");
            let read = read_heap(&*target.process, layout, &target.variables);
            let is_same = layout.bucket.cycle_size == target.layout.bucket.cycle_size;
            match read {
                Ok(_) => assert!(is_same, "{:?} read as 1.{minor}", target.version),
                Err(GoError::Layout(_)) => assert!(!is_same, "{:?} refused as 1.{minor}", target.version),
                Err(error) => panic!("{error}"),
            }
        }
    });
}

#[test]
fn what_is_no_list_of_buckets_is_refused() {
    for_each("target", &[26], |target| {
        let mut variables = target.variables;
        for wrong in ["runtime.allm", "runtime.allgs", "runtime.text"] {
            variables.mbuckets = target.symbols.address(wrong);
            let read = read_heap(&*target.process, target.layout, &variables);
            assert!(matches!(read, Err(GoError::Layout(_))), "{wrong}: {read:?}");
        }
    });
}

#[test]
fn collections_meanwhile_tear_nothing() {
    for_each("target", &[19, 24, 27], |target| {
        target.ask("allocate");
        // Before the first collection everything is published, and after it only what was before.
        target.ask("heap");
        target.ask("churn");
        let mut seen: HashMap<(u64, Vec<u64>), MemRecord> = HashMap::new();
        let (mut passes, mut torn) = (0, 0);
        let end = Instant::now() + Duration::from_millis(3400);
        while Instant::now() < end {
            let heap = read(target);
            passes += 1;
            torn += heap.torn;
            for bucket in heap.buckets {
                let record = bucket.published;
                assert_eq!(record.alloc_bytes, record.allocs * bucket.size);
                let last = seen.entry((bucket.size, bucket.stack)).or_default();
                assert!(last.allocs <= record.allocs, "{last:?} became {record:?}");
                assert!(last.frees <= record.frees, "{last:?} became {record:?}");
                *last = record;
            }
        }
        println!(
            "{:?}: {passes} passes, {torn} torn, {} buckets",
            target.version,
            seen.len()
        );
        target.ask("count");
    });
}

#[test]
fn samples_are_scaled_as_the_runtime_does() {
    assert_eq!(scale(3, 16, 512 << 10), (98305, 1_572_888));
    assert_eq!(scale(1, 1 << 20, 512 << 10), (1, 1_212_696));
    assert_eq!(scale(5, 100, 1), (5, 500));
    assert_eq!(scale(5, 100, 0), (5, 500));
    assert_eq!(scale(0, 100, 512), (0, 0));
}
