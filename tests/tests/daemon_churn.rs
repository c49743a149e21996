//! Fifty targets that come and go, for a minute, or for as long as `MEMTRACE_CHURN_SECONDS` says: what the daemon takes stays what
//! it is, no target is missing, and at the end nothing remains.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result,
    child::Child,
    daemon::Daemon,
    footprint::{Footprint, median},
    kernel, serial, served, skip,
    store::{Pushed, Store},
};

/// So many targets at once.
const TARGETS: usize = 50;
/// How long each lives: from, and how many milliseconds more at most.
const LIVES: (u64, u64) = (3000, 6000);
/// How often profiles are pushed.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a target may take to be found and attached to on a busy machine.
const ATTACHING: Duration = Duration::from_millis(1500);

/// The processes, those that have ended among them.
struct Churn {
    program: String,
    living: Vec<(Child, Instant)>,
    /// Those that lived long enough to be pushed.
    long: BTreeSet<u32>,
    started: u64,
}

impl Churn {
    /// Starts targets until there are enough, and takes note of those that have ended.
    fn go_on(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.living.len() {
            if self.living[at].0.is_running()? {
                at += 1;
                continue;
            }
            let (child, began) = self.living.swap_remove(at);
            self.note(child.pid(), began, Instant::now());
        }
        while self.living.len() < TARGETS {
            self.started += 1;
            // The same at each run, and no two neighbours alike.
            let time = LIVES.0 + self.started * 2_654_435_761 % LIVES.1;
            let child = served::busy(&self.program, Duration::from_millis(time))?;
            self.living.push((child, Instant::now()));
        }
        Ok(())
    }

    fn note(&mut self, pid: u32, began: Instant, ended: Instant) {
        if ended - began > INTERVAL + ATTACHING {
            self.long.insert(pid);
        }
    }
}

/// For how long.
fn length() -> Result<Duration> {
    let seconds = match std::env::var("MEMTRACE_CHURN_SECONDS") {
        Ok(text) => text.parse().context("MEMTRACE_CHURN_SECONDS")?,
        Err(_) => 60,
    };
    Ok(Duration::from_secs(seconds))
}

/// Insists that the end is as the time after the warm-up was, but for this much (per cent and absolute).
fn check_flat(what: &str, footprints: &[Footprint], of: impl Fn(&Footprint) -> u64, room: u64) -> Result<()> {
    let quarter = footprints.len() / 4;
    let warm = median(footprints[quarter..2 * quarter].iter().map(&of));
    let last = median(footprints[footprints.len() - quarter..].iter().map(&of));
    let most = footprints.iter().map(&of).max().unwrap_or_default();
    eprintln!("{what}: {warm} after the warm-up, {last} at the end, {most} at most");
    ensure!(
        last <= warm + warm / 10 + room,
        "{what} grew from {warm} to {last}"
    );
    Ok(())
}

#[test]
fn fifty_targets_that_come_and_go() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let with_heap = Arc::new(Mutex::new(BTreeSet::new()));
    let all = Arc::clone(&with_heap);
    let push = Store::taking(move |pushed| {
        if let Some(pid) = of_heap(&pushed) {
            all.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        }
    })?;
    let interval = format!("{}s", INTERVAL.as_secs());
    let daemon = Daemon::start(&[
        "--command",
        "/served_churn",
        "--max-targets",
        "100",
        "--push",
        &push,
        "--push-interval",
        &interval,
    ])?;
    let mut churn = Churn {
        program: served::program("served_churn")?,
        living: Vec::new(),
        long: BTreeSet::new(),
        started: 0,
    };
    let (begin, length) = (Instant::now(), length()?);
    let mut footprints = Vec::new();
    while begin.elapsed() < length {
        churn.go_on()?;
        std::thread::sleep(Duration::from_millis(250));
        footprints.push(Footprint::of(daemon.pid())?);
        if footprints.len() % 40 == 0 {
            let last = footprints.last();
            eprintln!("{:?}: {} started, {last:?}", begin.elapsed(), churn.started);
        }
    }
    let events = format!("memtrace_{}_", daemon.pid());
    // What runs now is let go of alive.
    let stopped = Instant::now();
    let ended = daemon.stop()?;
    eprintln!(
        "it ended in {:?}: {}",
        ended.took,
        ended.stderr.lines().last().unwrap_or_default()
    );
    for at in 0..churn.living.len() {
        let (pid, began) = (churn.living[at].0.pid(), churn.living[at].1);
        churn.note(pid, began, stopped);
        if churn.living[at].0.is_running()? {
            kernel::await_unpatched(pid)?;
        }
    }
    ensure!(!kernel::uprobe_events()?.contains(&events), "{events} remain");
    check_pushed(&with_heap.lock().unwrap_or_else(PoisonError::into_inner), &churn)?;
    check_flat("memory", &footprints, |at| at.memory, 8 << 20)?;
    check_flat("descriptors", &footprints, |at| at.descriptors, 100)?;
    // Those that prepare what is pushed come and go.
    check_flat("threads", &footprints, |at| at.threads, 4)?;
    check_flat("maps", &footprints, |at| at.maps, 1 << 20)
}

/// The process whose heap this is.
fn of_heap(pushed: &Pushed) -> Option<u32> {
    let is_heap = pushed.label("__name__") == "memory" && pushed.sum("alloc_space", "served_heap") > Some(0);
    is_heap.then(|| pushed.label("pid").parse().ok())?
}

/// Insists that every target that lived long enough has its heap in the store.
fn check_pushed(with_heap: &BTreeSet<u32>, churn: &Churn) -> Result<()> {
    let missing: Vec<_> = churn.long.difference(with_heap).collect();
    let (long, started) = (churn.long.len(), churn.started);
    eprintln!(
        "{started} targets, {long} of them long, {} pushed",
        with_heap.len()
    );
    ensure!(
        missing.is_empty(),
        "{} of {long} are missing: {missing:?}",
        missing.len()
    );
    Ok(())
}
