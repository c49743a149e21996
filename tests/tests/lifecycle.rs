//! From attach to the last profile: every way a run can end, and what is left behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::ensure;
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile::{Build, NO_FRAME_POINTERS},
    ground::GroundTruth,
    kernel::{self, BpfObjects},
    serial, skip,
    tracer::Memtrace,
};

fn start_ground_truth(threads: u32) -> Result<GroundTruth> {
    GroundTruth::start(
        &Build::c("ground_truth").flags(NO_FRAME_POINTERS).path()?,
        threads,
        512,
    )
}

fn start_changer() -> Result<Child> {
    let program = Build::c("changer").flags(NO_FRAME_POINTERS).path()?;
    let mut child = Child::spawn(&mut Command::new(program))?;
    child.stdout.expect("ready ", PATIENCE)?;
    Ok(child)
}

fn obey(child: &mut Child, command: &str) -> Result<()> {
    child.tell(command)?;
    child.stdout.expect("done", PATIENCE)?;
    Ok(())
}

/// Insists that the target works on: its operations advance.
fn check_alive(target: &mut GroundTruth) -> Result<()> {
    let before = target.count()?;
    let deadline = Instant::now() + PATIENCE;
    while target.count()? <= before {
        ensure!(
            Instant::now() < deadline,
            "the target stands still after {before} operations"
        );
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Insists that the run left nothing in the kernel nor in the target.
fn check_nothing_left(objects: &BpfObjects, target: u32) -> Result<()> {
    if let Some(bpftool) = skip::installed(&["bpftool"]) {
        objects.await_gone(&bpftool)?;
    }
    kernel::await_unpatched(target)
}

/// A signal that ends the run under load: final profile, exit code 0, and the target free again.
fn ends_by(signal: libc::c_int) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_ground_truth(2)?;
    target.start_load(1)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    check_alive(&mut target)?;
    let objects = BpfObjects::held_by(memtrace.pid())?;
    ensure!(!objects.programs.is_empty(), "a running memtrace holds programs");
    ensure!(
        !kernel::patched_addresses(target.pid())?.is_empty(),
        "a traced process has breakpoints"
    );
    sleep(Duration::from_millis(300));

    memtrace.signal(signal)?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    ensure!(heap.total().alloc_objects > 0);
    ensure!(heap.default_sample_type == "inuse_space");
    ensure!(
        outcome.stdout.contains("site_"),
        "the report names no site:\n{}",
        outcome.stdout
    );
    check_nothing_left(&objects, target.pid())?;
    check_alive(&mut target)?;
    target.stop_load()?;
    target.exit()
}

#[test]
fn ctrl_c_ends_a_run() -> Result<()> {
    ends_by(libc::SIGINT)
}

#[test]
fn sigterm_ends_a_run() -> Result<()> {
    ends_by(libc::SIGTERM)
}

#[test]
fn kill_9_leaves_nothing_behind() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_ground_truth(4)?;
    target.start_load(2)?;
    for _ in 0..3 {
        let memtrace = Memtrace::attach(target.pid(), &[])?;
        check_alive(&mut target)?;
        let objects = BpfObjects::held_by(memtrace.pid())?;
        ensure!(!objects.programs.is_empty(), "a running memtrace holds programs");
        ensure!(
            !kernel::patched_addresses(target.pid())?.is_empty(),
            "a traced process has breakpoints"
        );
        memtrace.signal(libc::SIGKILL)?;
        let outcome = memtrace.finish(PATIENCE)?;
        ensure!(
            outcome.code.is_none(),
            "killed, but it ended with {:?}",
            outcome.code
        );
        check_nothing_left(&objects, target.pid())?;
        check_alive(&mut target)?;
    }
    // What a killed run left half done does not disturb the next one.
    target.stop_load()?;
    target.drain()?;
    let before = target.go(1000, 3)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    let after = target.go(50_000, 4)?;
    let (heap, _outcome) = memtrace.stop()?;
    for (name, values) in heap.by_function("site_") {
        let allocated = after.sites[&name].alloc_objects - before.sites[&name].alloc_objects;
        ensure!(
            values.alloc_objects == allocated,
            "{name}: {values:?}, but {allocated} allocated"
        );
    }
    target.exit()
}

#[test]
fn snapshots_are_numbered_and_tracing_goes_on() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_ground_truth(2)?;
    let mut memtrace = Memtrace::attach(target.pid(), &[])?;
    for (seed, name) in [(5, "heap-0001.pb.gz"), (6, "heap-0002.pb.gz")] {
        let books = target.go(20_000, seed)?;
        memtrace.signal(libc::SIGUSR1)?;
        let heap = memtrace.snapshot(name)?;
        for (site, values) in heap.by_function("site_") {
            assert_eq!(
                values.alloc_objects, books.sites[&site].alloc_objects,
                "{site} in {name}"
            );
        }
        ensure!(memtrace.is_running()?);
    }
    let (_heap, outcome) = memtrace.stop()?;
    check_modes(&outcome.output())?;
    target.exit()
}

/// Profiles tell what a process does: nobody else may read them.
fn check_modes(directory: &Path) -> Result<()> {
    let mode =
        |path: &Path| Ok::<_, anyhow::Error>(fs::symlink_metadata(path)?.permissions().mode() & 0o7777);
    assert_eq!(mode(directory)?, 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        assert_eq!(mode(&entry.path())?, 0o600, "{}", entry.path().display());
        names.push(entry.file_name().into_string().unwrap_or_default());
    }
    names.sort();
    let kinds = ["fd", "heap", "mmap"];
    let expected = kinds.map(|kind| ["-0001", "-0002", ""].map(|number| format!("{kind}{number}.pb.gz")));
    assert_eq!(names, expected.as_flattened());
    Ok(())
}

#[test]
fn duration_ends_a_run() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_ground_truth(1)?;
    target.start_load(7)?;
    let begin = Instant::now();
    let memtrace = Memtrace::attach(target.pid(), &["--duration", "2s"])?;
    let (heap, _outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    ensure!(begin.elapsed() >= Duration::from_secs(2));
    let traced = Duration::from_nanos(u64::try_from(heap.duration_nanos)?);
    ensure!(
        (1900..3500).contains(&traced.as_millis()),
        "it traced for {traced:?}"
    );
    kernel::await_unpatched(target.pid())?;
    target.stop_load()?;
    target.exit()
}

/// When the target exits, the profile says what it held at its end.
#[test]
fn the_target_exits() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_changer()?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    obey(&mut target, "allocate 1000")?;
    target.tell("exit")?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    let values = heap.by_function("changer_allocate")["changer_allocate"];
    assert_eq!((values.inuse_objects, values.inuse_bytes), (1000, 64_000));
    ensure!(outcome.stderr.contains("has ended"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn the_target_is_killed_under_load() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_ground_truth(4)?;
    target.start_load(8)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    let objects = BpfObjects::held_by(memtrace.pid())?;
    check_alive(&mut target)?;
    drop(target);
    let (heap, _outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    ensure!(heap.total().inuse_objects > 0);
    if let Some(bpftool) = skip::installed(&["bpftool"]) {
        objects.await_gone(&bpftool)?;
    }
    Ok(())
}

/// The new program is another one: the profile is that of the old one, and the new one is left alone.
#[test]
fn the_target_executes_another_program() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_changer()?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    let objects = BpfObjects::held_by(memtrace.pid())?;
    obey(&mut target, "allocate 500")?;
    target.tell("exec")?;
    target.stdout.expect("ready ", PATIENCE)?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    let values = heap.by_function("changer_allocate")["changer_allocate"];
    assert_eq!((values.inuse_objects, values.inuse_bytes), (500, 32_000));
    ensure!(
        outcome.stderr.contains("executed another program"),
        "{}",
        outcome.stderr
    );
    check_nothing_left(&objects, target.pid())?;
    obey(&mut target, "allocate 10")?;
    ensure!(target.is_running()?);
    Ok(())
}

/// What a forked child does with its copy of the heap is not the parent's doing.
#[test]
fn a_child_keeps_its_own_heap() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_changer()?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    obey(&mut target, "allocate 400")?;
    obey(&mut target, "fork 3000")?;
    obey(&mut target, "allocate 40")?;
    let (heap, _outcome) = memtrace.stop()?;
    let values = heap.by_function("changer_allocate")["changer_allocate"];
    assert_eq!((values.alloc_objects, values.inuse_objects), (440, 440));
    Ok(())
}

/// The kernel removes probes with the thread that they are bound to; memtrace binds them to another, and says so.
#[test]
fn the_main_thread_can_end_before_others() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_changer()?;
    let mut memtrace = Memtrace::attach(target.pid(), &[])?;
    obey(&mut target, "allocate 100")?;
    obey(&mut target, "retire")?;
    memtrace.expect("memtrace: the thread that the probes were bound to ended")?;
    obey(&mut target, "allocate 30")?;
    let (heap, _outcome) = memtrace.stop()?;
    let values = heap.by_function("changer_allocate")["changer_allocate"];
    assert_eq!((values.alloc_objects, values.inuse_objects), (130, 130));
    let comments = heap.comments.join("\n");
    ensure!(
        comments.contains("until they were bound to another"),
        "the profile does not say so:\n{comments}"
    );
    Ok(())
}

#[test]
fn a_stopped_target_can_be_traced() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_changer()?;
    target.signal(libc::SIGSTOP)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    target.signal(libc::SIGCONT)?;
    obey(&mut target, "allocate 25")?;
    let (heap, _outcome) = memtrace.stop()?;
    assert_eq!(
        heap.by_function("changer_allocate")["changer_allocate"].inuse_objects,
        25
    );
    Ok(())
}

/// Two runs on one target, and a third on another that maps the same libc: each has books of its own.
#[test]
fn runs_do_not_disturb_each_other() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start_ground_truth(2)?;
    let mut neighbour = start_changer()?;
    let first = Memtrace::attach(target.pid(), &[])?;
    let second = Memtrace::attach(target.pid(), &[])?;
    let third = Memtrace::attach(neighbour.pid(), &[])?;
    let books = target.go(50_000, 9)?;
    obey(&mut neighbour, "allocate 70")?;

    let (heap, _outcome) = second.stop()?;
    books.assert_equal(&heap)?;
    let books = target.go(50_000, 10)?;
    let (heap, _outcome) = first.stop()?;
    books.assert_equal(&heap)?;
    let (heap, _outcome) = third.stop()?;
    ensure!(heap.by_function("site_").is_empty());
    assert_eq!(
        heap.by_function("changer_allocate")["changer_allocate"].inuse_objects,
        70
    );
    kernel::await_unpatched(target.pid())?;
    target.exit()
}
