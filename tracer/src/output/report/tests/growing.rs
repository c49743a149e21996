//! What the report says first of what grows.

use std::time::Duration;

use super::super::ReportOptions;
use crate::{
    output::testing::Words,
    profile::testing::holder,
    snapshot::{ConnectionLoops, GoHeapState, GoState, GoroutineGroup, Holder, Holdings, Snapshot},
};

const RECENT: Duration = Duration::from_secs(10);

/// The lines of the report that name what grows.
fn growing(words: &Words, snapshot: &Snapshot) -> Vec<String> {
    let report = words.report(
        snapshot,
        &ReportOptions {
            width: 200,
            ..ReportOptions::default()
        },
    );
    let lines = report.lines().filter_map(|line| line.strip_prefix("Growing: "));
    lines.map(str::to_owned).collect()
}

fn group(words: &mut Words, stack: &[&str], count: u64, recent_change: i64) -> GoroutineGroup {
    GoroutineGroup {
        frames: words.frames(stack),
        wait: "select",
        count,
        recent_change,
        ..GoroutineGroup::default()
    }
}

fn sockets(frames: Vec<u64>, held: u64, recent_change: i64) -> Holder {
    Holder {
        frames,
        recent_change,
        loops: ConnectionLoops {
            readers: held,
            writers: held,
        },
        ..holder("tcp", &[], held, held)
    }
}

/// Bodies of answers that are never closed: two goroutines and a socket each.
fn bodies(words: &mut Words) -> Snapshot {
    let write_loop = ["runtime.gopark", "net/http.(*persistConn).writeLoop"];
    let goroutines = vec![
        group(words, &write_loop, 400, 300),
        group(words, &["runtime.gopark", "main.serve"], 7, 5),
    ];
    let asking = [
        "net/http.(*Transport).queueForDial",
        "net/http.(*Transport).RoundTrip",
        "main.logged.RoundTrip",
        "net/http.send",
        "net/http.(*Client).do",
        "net/http.Get",
        "main.fetchPrice",
        "main.main",
    ];
    let fds = vec![sockets(words.frames(&asking), 400, 300)];
    Snapshot {
        recent: RECENT,
        heap: false,
        go: Some(GoState {
            goroutines: Some(goroutines),
            recent: RECENT,
            ..GoState::default()
        }),
        fds: Some(Holdings {
            holders: fds,
            ..Holdings::default()
        }),
        ..words.snapshot()
    }
}

#[test]
fn who_asked_comes_before_what_serves_it() {
    let mut words = Words::default();
    let snapshot = bodies(&mut words);
    assert_eq!(
        growing(&words, &snapshot),
        [
            "descriptors +300 in the last 10.0 s at main.fetchPrice, which holds 400, 400 readLoop and 400 writeLoop \
             goroutines wait",
            "goroutines +5 in the last 10.0 s at main.serve, which holds 7",
            "goroutines +300 in the last 10.0 s at net/http.(*persistConn).writeLoop, which holds 400",
        ]
    );
}

#[test]
fn what_may_be_chance_is_not_named() {
    let mut words = Words::default();
    let mut snapshot = bodies(&mut words);
    let go = snapshot.go.as_mut().expect("a Go runtime");
    let groups = go.goroutines.as_mut().expect("goroutines");
    // One that happened to be there, and two more of a thousand.
    (groups[0].count, groups[0].recent_change) = (1000, 2);
    (groups[1].count, groups[1].recent_change) = (1, 1);
    let mut sampled = words.site((4, 4 << 20), &["main.cache"]).clone();
    (sampled.live_samples, sampled.recent_change) = (8, 1 << 20);
    go.heap = Some(GoHeapState {
        sites: vec![sampled],
        rate: 512 << 10,
        ..GoHeapState::default()
    });
    snapshot.fds = None;
    assert!(growing(&words, &snapshot).is_empty());
    // Three samples are enough.
    let heap = snapshot.go.as_mut().and_then(|go| go.heap.as_mut());
    heap.expect("a heap").sites[0].recent_change = 3 << 19;
    assert_eq!(
        growing(&words, &snapshot),
        ["heap +1.5 MiB in the last 10.0 s at main.cache, which holds 4.0 MiB"]
    );
}

/// A heap with one site, of so many samples.
fn go_heap(words: &mut Words, live: (u64, u64), samples: u64, recent_change: i64) -> GoHeapState {
    let mut site = words.site(live, &["main.grow", "main.main"]).clone();
    (site.live_samples, site.recent_change) = (samples, recent_change);
    words.sites.clear();
    GoHeapState {
        sites: vec![site],
        rate: 512 << 10,
        ..GoHeapState::default()
    }
}

#[test]
fn a_block_much_larger_than_the_distance_of_samples_is_no_chance() {
    let mut words = Words::default();
    let mut snapshot = bodies(&mut words);
    (snapshot.fds, snapshot.heap) = (None, false);
    let heap = go_heap(&mut words, (1, 92 << 20), 1, 54 << 20);
    snapshot.go = Some(GoState {
        heap: Some(heap),
        recent: RECENT,
        ..GoState::default()
    });
    let line = "heap +54.0 MiB in the last 10.0 s at main.grow, which holds 92.0 MiB";
    assert_eq!(growing(&words, &snapshot), [line]);
    // Before it is collected, garbage looks like a leak.
    let heap = snapshot.go.as_mut().and_then(|go| go.heap.as_mut());
    heap.expect("a heap").is_uncollected = true;
    assert!(growing(&words, &snapshot).is_empty());
}

#[test]
fn a_function_is_named_for_all_its_stacks() {
    let mut words = Words::default();
    let mut snapshot = bodies(&mut words);
    snapshot.fds = None;
    let callers: Vec<String> = (0..200).map(|caller| format!("main.caller{caller}")).collect();
    let hang = |caller: &String| group(&mut words, &["runtime.gopark", "main.hang", caller], 10, 4);
    let mut groups: Vec<GoroutineGroup> = callers.iter().map(hang).collect();
    let go = snapshot.go.as_mut().expect("a Go runtime");
    go.goroutines = Some(groups.clone());
    let line = "goroutines +800 in the last 10.0 s at main.hang, which holds 2.0 k";
    assert_eq!(growing(&words, &snapshot), [line]);
    // Of many functions, none of which stands out, the section says so.
    for (group, caller) in groups.iter_mut().zip(&callers) {
        group.frames = words.frames(&[caller]);
    }
    let go = snapshot.go.as_mut().expect("a Go runtime");
    go.goroutines = Some(groups.clone());
    assert_eq!(
        growing(&words, &snapshot),
        ["goroutines +800 in the last 10.0 s, spread over 200 places"]
    );
    // What is more at one place is fewer at others.
    groups[0].recent_change = -790;
    groups[1].recent_change = 790;
    let go = snapshot.go.as_mut().expect("a Go runtime");
    go.goroutines = Some(groups.drain(..2).collect());
    assert!(growing(&words, &snapshot).is_empty());
}

#[test]
fn what_the_runtime_maps_is_nobodys_leak() {
    let mut words = Words::default();
    let mut snapshot = bodies(&mut words);
    let arena = [
        "runtime.sysMmap",
        "runtime.sysReserve",
        "runtime.mallocgc",
        "main.serve",
    ];
    let own = ["syscall.Mmap", "main.load"];
    let mapping = |frames, change| Holder {
        frames,
        recent_change: change,
        ..holder("anon", &[], 64 << 20, 64 << 20)
    };
    let holders = vec![
        mapping(words.frames(&arena), 64 << 20),
        mapping(words.frames(&own), 4 << 20),
    ];
    snapshot.fds = None;
    snapshot.go = None;
    snapshot.mmap = Some(Holdings {
        holders,
        ..Holdings::default()
    });
    let line = "mappings +4.0 MiB in the last 10.0 s at main.load, which holds 64.0 MiB";
    assert_eq!(growing(&words, &snapshot), [line]);
}

#[test]
fn a_short_run_says_that_it_is_too_short() {
    let words = Words::default();
    let snapshot = Snapshot {
        duration: Duration::from_secs(1),
        ..words.snapshot()
    };
    let report = words.report(&snapshot, &ReportOptions::default());
    assert!(
        report.contains("What grows can be told from 2.0 s on."),
        "{report}"
    );
}

#[test]
fn a_heap_that_was_not_seen_whole_grows_nowhere() {
    let mut words = Words::default();
    words.site((100, 1 << 20), &["malloc", "leak"]).recent_change = 1 << 19;
    let mut snapshot = Snapshot {
        recent: RECENT,
        ..words.snapshot()
    };
    let leak = "heap +512 KiB in the last 10.0 s at leak, which holds 1.0 MiB";
    assert_eq!(growing(&words, &snapshot), [leak]);
    snapshot.losses.blocks_full = 1;
    assert!(growing(&words, &snapshot).is_empty());
    snapshot.losses.blocks_full = 0;
    snapshot.recent = Duration::ZERO;
    assert!(
        growing(&words, &snapshot).is_empty(),
        "there is nothing to compare with"
    );
}
