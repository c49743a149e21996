//! Fifty targets that come and go, for a minute, or for as long as `MEMTRACE_CHURN_SECONDS` says: what the daemon takes stays what
//! it is, no target is missing, and at the end nothing remains. And targets whose programs nobody else has.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result, bpf_maps,
    child::{self, Child},
    compile,
    daemon::{Daemon, Listed},
    footprint::{Footprint, median},
    kernel, serial,
    served::{self, Served},
    skip,
    store::{Pushed, Store},
};

/// So many targets at once.
const TARGETS: usize = 50;
/// How long each lives: from, and how many milliseconds more at most.
const LIVES: (u64, u64) = (3000, 6000);
/// How often profiles are pushed.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a target may take to be found and attached to on a busy machine.
const ATTACHING: Duration = Duration::from_secs(3);
/// What runs when the daemon starts is attached to one after the other, and may have ended by then.
const WARM_UP: Duration = Duration::from_secs(15);
/// After how many footprints the kernel's tables are looked at.
const LOOKS: usize = 20;

/// How much more memory may be taken at the end than after the warm-up (bytes), in a run of this length or a longer one: glibc serves
/// the threads from four arenas, and an arena that needs a little more takes 128 KiB (`M_TOP_PAD`) and seldom gives them back;
/// what is needed at once varies by as much again with the load. In ten minutes there are some 2,500 targets between the two
/// readings, so that half a KiB that is kept of each is too much. In a minute the arenas are not at rest, and there are 250.
const MEMORY_ROOM: [(Duration, u64); 2] = [(Duration::from_secs(300), 5 << 18), (Duration::ZERO, 4 << 20)];
/// The same of descriptors: a few targets more, each with some 18, may be attached to at the moment. One that is kept of each target
/// is too much in a minute.
const DESCRIPTOR_ROOM: u64 = 90;
/// Those that prepare what is pushed come and go.
const THREAD_ROOM: u64 = 4;
/// Memory of the kernel's tables (bytes): most have their size from the beginning.
const MAP_ROOM: u64 = 64 << 10;

/// The processes, those that have ended among them.
struct Churn {
    program: String,
    living: Vec<(Child, Instant)>,
    /// Those that lived long enough to be pushed, and when they did, counted from the begin.
    long: BTreeMap<u32, (Duration, Duration)>,
    started: u64,
    begin: Instant,
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
        let life = (began - self.begin, ended - self.begin);
        if life.0 > WARM_UP && ended - began > INTERVAL + ATTACHING {
            self.long.insert(pid, life);
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

/// The median of the second quarter of the readings.
fn after_warm_up(readings: &[u64]) -> u64 {
    let quarter = readings.len() / 4;
    median(readings[quarter..2 * quarter].iter().copied())
}

/// Insists that the end, the median of the last quarter of the readings, is as the time after the warm-up was, but for this much.
fn check_flat(what: &str, readings: &[u64], room: u64) -> Result<()> {
    let warm = after_warm_up(readings);
    let last = median(readings[readings.len() - readings.len() / 4..].iter().copied());
    let most = readings.iter().max().copied().unwrap_or_default();
    eprintln!("{what}: {warm} after the warm-up, {last} at the end, {most} at most");
    ensure!(last <= warm + room, "{what} grew from {warm} to {last}");
    Ok(())
}

/// Insists that the kernel's tables do not fill. What targets hold varies with their age; one entry that is kept of each target is
/// too much in a minute.
fn check_tables(looks: &[BTreeMap<String, u64>]) -> Result<()> {
    let names: BTreeSet<&String> = looks.iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let readings: Vec<u64> = looks.iter().filter_map(|look| look.get(name)).copied().collect();
        check_flat(name, &readings, after_warm_up(&readings) / 2 + TARGETS as u64)?;
    }
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
        long: BTreeMap::new(),
        started: 0,
        begin: Instant::now(),
    };
    let (begin, length) = (churn.begin, length()?);
    let (mut footprints, mut tables) = (Vec::new(), Vec::new());
    while begin.elapsed() < length {
        churn.go_on()?;
        std::thread::sleep(Duration::from_millis(250));
        footprints.push(Footprint::of(daemon.pid())?);
        if footprints.len() % LOOKS == 0 {
            tables.push(bpf_maps::entries(daemon.pid())?);
        }
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
        let unpatched = kernel::await_unpatched(pid);
        // It may have ended meanwhile.
        if churn.living[at].0.is_running()? {
            unpatched?;
        }
    }
    ensure!(!kernel::uprobe_events()?.contains(&events), "{events} remain");
    check_tables(&tables)?;
    let all = |of: fn(&Footprint) -> u64| -> Vec<u64> { footprints.iter().map(of).collect() };
    let room = MEMORY_ROOM.into_iter().find(|(from, _)| length >= *from);
    check_flat("memory", &all(|at| at.memory), room.context("no room")?.1)?;
    check_flat("descriptors", &all(|at| at.descriptors), DESCRIPTOR_ROOM)?;
    check_flat("threads", &all(|at| at.threads), THREAD_ROOM)?;
    check_flat("maps", &all(|at| at.maps), MAP_ROOM)?;
    check_pushed(&with_heap.lock().unwrap_or_else(PoisonError::into_inner), &churn)
}

/// The process whose heap this is.
fn of_heap(pushed: &Pushed) -> Option<u32> {
    let is_heap = pushed.label("__name__") == "memory" && pushed.sum("alloc_space", "served_heap") > Some(0);
    is_heap.then(|| pushed.label("pid").parse().ok())?
}

/// Insists that every target that lived long enough has its heap in the store.
fn check_pushed(with_heap: &BTreeSet<u32>, churn: &Churn) -> Result<()> {
    let long = churn.long.iter();
    let missing: Vec<_> = long.filter(|(pid, _)| !with_heap.contains(pid)).collect();
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

/// How many programs of their own come one after the other.
const PROGRAMS: usize = 7;
/// The probes of so many may be defined at most: of two in use, as many that are not, and one that has just come.
const PROBED: usize = 5;

/// Each has its own copy of a program that brings its allocator along, as after each deployment.
#[test]
fn programs_that_nobody_else_has() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let flags = compile::NO_FRAME_POINTERS;
    let original = compile::Build::c("served")
        .named("served_own")
        .flags(flags)
        .flag("-static")
        .path()?;
    let copy = |name: String| -> Result<String> {
        let path = directory.path().join(name);
        std::fs::copy(&original, &path)?;
        Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
    };
    let daemon = Daemon::start(&["--command", "/served_own"])?;
    let events = format!("memtrace_{}_", daemon.pid());
    // The group goes on as long as there is one.
    let stays = Served::start(&copy("served_own".into())?)?;
    daemon.await_traced(&stays.id())?;
    let probes = || -> Result<usize> { Ok(kernel::uprobe_events()?.matches(&events).count()) };
    let of_one = probes()?;
    ensure!(of_one > 0, "no probes are defined");
    for number in 0..PROGRAMS {
        trace_once(&daemon, &copy(format!("served_own_{number}"))?)?;
    }
    let deadline = Instant::now() + child::PATIENCE;
    while probes()? > PROBED * of_one {
        ensure!(
            Instant::now() < deadline,
            "{} probes remain, {of_one} of each program",
            probes()?
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // What was forgotten is found again.
    trace_once(
        &daemon,
        directory.path().join("served_own_0").to_str().context("UTF-8")?,
    )?;
    daemon.await_heap(&stays.id(), |heap| served::check(heap, "served_heap", 0, 0))?;
    stays.exit()?;
    // The kernel removes one probe after the other.
    let ended = daemon.stop_within(child::PATIENCE)?;
    eprintln!("{of_one} probes of each program; it ended in {:?}", ended.took);
    ensure!(!kernel::uprobe_events()?.contains(&events), "{events} remain");
    Ok(())
}

/// Runs a program until its heap is seen.
fn trace_once(daemon: &Daemon, program: &str) -> Result<()> {
    let mut target = Served::start(program)?;
    let id = target.id();
    daemon.await_traced(&id)?;
    target.go("heap 7")?;
    daemon.await_heap(&id, |heap| served::check(heap, "served_heap", 7, 7))?;
    target.exit()?;
    let is_gone = |targets: &[Listed]| targets.iter().all(|target| target.id != id);
    daemon.await_targets(&format!("gone: {id}"), is_gone)?;
    Ok(())
}
