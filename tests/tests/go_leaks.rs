//! Go programs that leak, most of them without pprof: what memtrace's report says first, and what its profiles have.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    daemon::Daemon,
    fd_profile::Fds,
    go_build::{GoProgram, Variant},
    go_profile::{GoHeap, Goroutines, read_threads},
    go_runs::{check_names_first, first_lines, growing, mem_profile_rate, with_builds},
    tracer::{Memtrace, Outcome},
};

const PROGRAM: &str = "go_leaks";
/// How long memtrace watches a leak.
const WATCH: [&str; 2] = ["--duration", "6s"];
/// What a leak has at least leaked meanwhile: it would be 600 at its pace, on a machine that does nothing else.
const LEAST: i64 = 60;
/// The rate that `--go-enable-heap` sets when it is given none (bytes).
const ENABLED_RATE: u64 = 65536;

/// The newest Go and the oldest, each with a way of building.
const BUILDS: [(&str, Variant); 2] = [("1.19", Variant::Default), ("1.27", Variant::NoSymbols)];

/// Runs a test with the program as each of [`BUILDS`] makes it; fewer where a version cannot be had.
fn with_each_build(program: &GoProgram, test: impl Fn(PathBuf) -> Result<()>) -> Result<()> {
    with_builds(program, &BUILDS, |_, program| test(program))
}

fn unprofiled() -> GoProgram {
    GoProgram::new(PROGRAM)
}

/// Starts the program, and returns it with what it prints when it is ready.
fn start(program: &Path, arguments: &[&str]) -> Result<(Child, String)> {
    start_with(program, arguments, [])
}

/// The same with variables in its environment.
fn start_with<const N: usize>(
    program: &Path,
    arguments: &[&str],
    variables: [(&str, &str); N],
) -> Result<(Child, String)> {
    let mut target = Child::spawn(Command::new(program).args(arguments).envs(variables))?;
    let ready = target.stdout.expect("ready ", PATIENCE)?;
    Ok((target, ready))
}

/// Watches the program leak for a while.
fn watch(program: &Path, leak: &[&str], arguments: &[&str]) -> Result<Outcome> {
    let (mut target, _) = start(program, leak)?;
    let memtrace = Memtrace::attach(target.pid(), &[&WATCH, arguments].concat())?;
    let outcome = memtrace.finish(PATIENCE)?;
    outcome.check_code()?;
    ensure!(target.is_running()?, "the target has ended");
    Ok(outcome)
}

// ---------------------------------------------------------------------------------------------- the leaks

fn check_slice(outcome: &Outcome) -> Result<()> {
    let function = "main.(*trail).remember";
    check_names_first(&outcome.stdout, function)?;
    let heap = outcome.profile("heap.pb.gz", GoHeap::read)?;
    let held = heap.through(function);
    // 16 KiB and a little each. The published view is behind by a collection or two.
    ensure!(held.inuse_objects >= LEAST / 2, "{held:?}");
    ensure!(
        held.inuse_bytes * 4 > held.alloc_bytes * 3,
        "nothing was freed: {held:?}"
    );
    Ok(())
}

#[test]
fn slice_that_only_grows() -> Result<()> {
    with_each_build(&unprofiled(), |program| {
        check_slice(&watch(&program, &["slice"], &["--go-enable-heap"])?)
    })
}

#[test]
fn slice_that_only_grows_with_pprof() -> Result<()> {
    with_each_build(&unprofiled().with_pprof(), |program| {
        // At the default rate, what leaks on a slow machine may be a few samples.
        let (target, _) = start_with(&program, &["slice"], [("GODEBUG", "memprofilerate=65536")])?;
        check_slice(&Memtrace::attach(target.pid(), &WATCH)?.finish(PATIENCE)?)
    })
}

#[test]
fn goroutines_that_hang() -> Result<()> {
    with_each_build(&unprofiled(), |program| {
        let outcome = watch(&program, &["goroutines"], &[])?;
        check_names_first(&outcome.stdout, "main.waitForReply")?;
        let goroutines = outcome.profile("goroutine.pb.gz", Goroutines::read)?;
        let waits = goroutines.waits();
        let leaked: i64 = waits
            .iter()
            .filter(|(key, _)| key.function == "main.waitForReply" && key.wait == "chan receive")
            .map(|(_, count)| count)
            .sum();
        ensure!(leaked >= LEAST, "{leaked} goroutines hang: {waits:?}");
        Ok(())
    })
}

#[test]
fn files_that_nobody_closes() -> Result<()> {
    with_each_build(&unprofiled(), |program| {
        let outcome = watch(&program, &["files"], &[])?;
        check_names_first(&outcome.stdout, "main.openReport")?;
        let fds = outcome.profile("fd.pb.gz", Fds::read)?;
        let open = fds.open_through("main.openReport", "file");
        ensure!(open >= LEAST, "{open} files are open\n{}", fds.describe());
        Ok(())
    })
}

#[test]
fn bodies_that_nobody_closes_show_as_goroutines_and_sockets() -> Result<()> {
    // Each version makes its connections in its own way.
    let builds = [BUILDS[0], ("1.24", Variant::Default), BUILDS[1]];
    with_builds(&unprofiled(), &builds, |version, program| {
        let (_server, address) = start(&program, &["serve"])?;
        let outcome = watch(&program, &["bodies", &address], &[])?;
        // A goroutine of net/http dials; the function that asked it to is named all the same.
        check_names_first(&outcome.stdout, "main.fetchPrice")?;
        // Go 1.19 does not know which goroutine made which.
        let (waits, has_parents) = ("writeLoop goroutines wait", version != "1.19");
        ensure!(
            outcome.stdout.contains(waits) == has_parents,
            "{}",
            outcome.stdout
        );
        let fds = outcome.profile("fd.pb.gz", Fds::read)?;
        let open = fds.open_through("main.fetchPrice", "tcp");
        ensure!(open >= LEAST, "{open} sockets are open\n{}", fds.describe());
        let most = fds.stacks.iter().max_by_key(|stack| stack.counts.open);
        ensure!(
            most.is_some_and(|stack| stack.contains("main.fetchPrice")),
            "it does not hold most\n{}",
            fds.describe()
        );
        let goroutines = outcome.profile("goroutine.pb.gz", Goroutines::read)?;
        for function in ["readLoop", "writeLoop"] {
            let count = goroutines.through(&format!("net/http.(*persistConn).{function}"));
            ensure!(count >= LEAST, "{count} goroutines in {function}");
        }
        Ok(())
    })
}

#[test]
fn threads_that_pile_up() -> Result<()> {
    with_each_build(&unprofiled(), |program| {
        let outcome = watch(&program, &["threads"], &[])?;
        check_names_first(&outcome.stdout, "main.pinThread")?;
        let threads = outcome.profile("threadcreate.pb.gz", read_threads)?;
        let locked = threads.get("locked").copied().unwrap_or_default();
        // Only every fourth step leaks a thread.
        ensure!(locked >= LEAST / 4, "{threads:?}");
        Ok(())
    })
}

#[test]
fn a_class_alone_names_what_grows_too() -> Result<()> {
    with_builds(&unprofiled(), &BUILDS[1..], |_, program| {
        let outcome = watch(&program, &["files"], &["--profiles", "fd"])?;
        check_names_first(&outcome.stdout, "main.openReport")
    })
}

#[test]
fn what_grew_is_known_of_a_target_that_was_killed() -> Result<()> {
    with_builds(&unprofiled(), &BUILDS[1..], |_, program| {
        let (target, _) = start(&program, &["goroutines"])?;
        let memtrace = Memtrace::attach(target.pid(), &[])?;
        // The readings after 2 and 4 seconds are compared with those after 1 and 2.
        std::thread::sleep(Duration::from_secs(5));
        target.signal(libc::SIGKILL)?;
        let outcome = memtrace.finish(PATIENCE)?;
        ensure!(
            outcome.stdout.contains("The process has ended"),
            "{}",
            outcome.stdout
        );
        ensure!(!outcome.stderr.contains("bound to"), "{}", outcome.stderr);
        check_names_first(&outcome.stdout, "main.waitForReply")
    })
}

#[test]
fn a_heap_that_waits_for_a_collection_says_so() -> Result<()> {
    with_builds(&unprofiled().with_pprof(), &BUILDS[1..], |_, program| {
        let (target, _) = start_with(&program, &["uncollected"], [("GOGC", "off")])?;
        let arguments = [&WATCH[..], &["--profiles", "heap"]].concat();
        let outcome = Memtrace::attach(target.pid(), &arguments)?.finish(PATIENCE)?;
        let said = "none was completed in the last";
        ensure!(outcome.stdout.contains(said), "{}", outcome.stdout);
        let arguments = [&arguments[..], &["--go-heap", "now"]].concat();
        let outcome = Memtrace::attach(target.pid(), &arguments)?.finish(PATIENCE)?;
        ensure!(!outcome.stdout.contains(said), "{}", outcome.stdout);
        ensure!(!growing(&outcome.stdout).is_empty(), "{}", outcome.stdout);
        Ok(())
    })
}

#[test]
fn a_program_that_a_shell_executes_is_compared_with_itself() -> Result<()> {
    with_builds(&unprofiled(), &BUILDS[1..], |_, program| {
        let script = format!("read go; exec {} goroutines", program.display());
        let mut target = Child::spawn(Command::new("sh").args(["-c", &script]))?;
        let memtrace = Memtrace::attach(target.pid(), &["--children"])?;
        target.tell("go")?;
        target.stdout.expect("ready ", PATIENCE)?;
        std::thread::sleep(Duration::from_secs(7));
        let outcome = memtrace.interrupt()?;
        check_names_first(&outcome.stdout, "main.waitForReply")
    })
}

#[test]
fn nothing_that_leaks_is_named() -> Result<()> {
    with_each_build(&unprofiled().with_pprof(), |program| {
        let outcome = watch(&program, &["nothing"], &[])?;
        let named = growing(&outcome.stdout);
        ensure!(
            !named.iter().any(|function| function.starts_with("main.")),
            "{named:?} grow:\n{}",
            outcome.stdout
        );
        Ok(())
    })
}

// ---------------------------------------------------------------------------------------------- the rate of the heap profile

#[test]
fn a_heap_without_a_profile_is_not_an_empty_one() -> Result<()> {
    with_each_build(&unprofiled(), |program| {
        let outcome = watch(&program, &["nothing"], &[])?;
        let heap = outcome.profile("heap.pb.gz", GoHeap::read)?;
        ensure!(heap.sites.is_empty(), "{:?}", heap.sites);
        let comments = heap.comments.join("\n");
        let first = first_lines(&outcome.stdout).join("\n");
        for (place, text) in [("the comments", &comments), ("the first lines", &first)] {
            for part in ["MemProfileRate is 0", "--go-enable-heap"] {
                ensure!(text.contains(part), "{place} have no {part:?}:\n{text}");
            }
        }
        // The other profiles do not depend on it.
        let goroutines = outcome.profile("goroutine.pb.gz", Goroutines::read)?;
        ensure!(goroutines.through("main.main") > 0);
        Ok(())
    })
}

#[test]
fn the_daemon_says_once_that_there_is_no_heap_profile() -> Result<()> {
    with_each_build(&unprofiled(), |program| {
        let (target, _) = start(&program, &["nothing"])?;
        let daemon = Daemon::start(&["--pid", &target.pid().to_string()])?;
        let note = "MemProfileRate is 0";
        let listed = daemon.await_targets("a note", |targets| {
            targets.iter().any(|target| target.has_note(note))
        })?;
        for _ in 0..3 {
            daemon.profile(&listed[0].id, "heap")?;
        }
        let still = daemon.targets()?;
        ensure!(still[0].has_note(note), "{still:?}");
        let ended = daemon.stop()?;
        let said = ended.stderr.matches(note).count();
        ensure!(said == 1, "it was said {said} times:\n{}", ended.stderr);
        Ok(())
    })
}

/// How memtrace is ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Signal(libc::c_int),
    Duration,
}

const ENDS: [End; 3] = [
    End::Signal(libc::SIGINT),
    End::Signal(libc::SIGTERM),
    End::Duration,
];

/// Waits until the program's rate is this.
fn await_rate(program: &Path, pid: u32, rate: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = mem_profile_rate(program, pid)?;
        if now == rate {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the rate is {now}, not {rate}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Enables the heap profile with this argument, ends memtrace, and insists that the rate was this, and then as before.
fn enable(program: &Path, argument: &str, rate: u64, end: End) -> Result<()> {
    let (target, _) = start(program, &["slice"])?;
    let before = mem_profile_rate(program, target.pid())?;
    let mut arguments = vec!["--profiles", "heap", argument];
    if let End::Duration = end {
        arguments.extend(["--duration", "3s"]);
    }
    let memtrace = Memtrace::attach(target.pid(), &arguments)?;
    await_rate(program, target.pid(), rate)?;
    if let End::Signal(signal) = end {
        memtrace.signal(signal)?;
    }
    let outcome = memtrace.finish(PATIENCE)?;
    let after = mem_profile_rate(program, target.pid())?;
    ensure!(after == before, "the rate is {after}, and was {before}");
    let heap = outcome.profile("heap.pb.gz", GoHeap::read)?;
    ensure!(u64::try_from(heap.rate)? == rate, "the period is {}", heap.rate);
    Ok(())
}

#[test]
fn the_rate_is_restored_at_each_end() -> Result<()> {
    let builds = [("1.19", Variant::Default), ("1.27", Variant::Default)];
    with_builds(&unprofiled(), &builds, |_, program| {
        for end in ENDS {
            enable(&program, "--go-enable-heap", ENABLED_RATE, end).with_context(|| format!("{end:?}"))?;
        }
        enable(&program, "--go-enable-heap=4096", 4096, ENDS[0]).context("4096")
    })
}

#[test]
fn what_was_sampled_at_another_rate_is_not_counted() -> Result<()> {
    with_builds(&unprofiled(), &BUILDS[1..], |_, program| {
        let (target, _) = start(&program, &["slice"])?;
        let heap = |rate: &str| {
            let arguments = [&WATCH[..], &["--profiles", "heap", rate]].concat();
            let outcome = Memtrace::attach(target.pid(), &arguments)?.finish(PATIENCE)?;
            outcome.profile("heap.pb.gz", GoHeap::read)
        };
        let fine = heap("--go-enable-heap=4k")?.through("main.(*trail).remember");
        ensure!(fine.inuse_objects >= LEAST / 2, "{fine:?}");
        // Hundreds of samples, each of which would stand for a MiB by now.
        let coarse = heap("--go-enable-heap=1m")?.through("main.(*trail).remember");
        ensure!(coarse.inuse_bytes < 64 << 20, "{coarse:?}");
        Ok(())
    })
}

#[test]
fn a_rate_that_is_not_0_is_not_changed() -> Result<()> {
    let builds = [("1.19", Variant::Default), ("1.27", Variant::Default)];
    with_builds(&unprofiled().with_pprof(), &builds, |_, program| {
        enable(&program, "--go-enable-heap=4096", 512 * 1024, ENDS[0])
    })
}
