//! Connections of Go's `net/http`: who asked for each, although another goroutine dials, and that the target bears it.

use std::{path::Path, process::Command};

use anyhow::{bail, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    fd_profile::{Counts, Fds, UNTRACED_CALL},
    go_build::{GoProgram, Variant},
    go_runs::with_builds,
    tracer::{Memtrace, Outcome},
};

const PROGRAM: &str = "go_http";
/// How many connections each function leaks.
const LEAKED: i64 = 40;
/// How many requests are made while garbage is collected.
const REQUESTS: i64 = 8000;
/// In which it is not known which goroutine made which.
const WITHOUT_PARENTS: &str = "1.19";
/// How often the program is traced until no call was missed: the kernel skips programs at system calls on a processor on which
/// another `bpf()` call was interrupted (docs/0006), which happens where many share few.
const ATTEMPTS: u32 = 4;
/// Of so many requests, one may be missed so.
const MISSED_IN: i64 = 1000;

/// Every version, and each way of building with the oldest and the newest.
const BUILDS: [(&str, Variant); 14] = [
    ("1.19", Variant::Default),
    ("1.19", Variant::Pie),
    ("1.19", Variant::Stripped),
    ("1.21", Variant::Stripped),
    ("1.22", Variant::Pie),
    ("1.23", Variant::NoSymbols),
    ("1.24", Variant::Default),
    ("1.25", Variant::Pie),
    ("1.26", Variant::Stripped),
    ("1.27", Variant::Default),
    ("1.27", Variant::Pie),
    ("1.27", Variant::NoSymbols),
    ("1.27", Variant::Stripped),
    ("1.27", Variant::Cgo),
];

fn program() -> GoProgram {
    GoProgram::new(PROGRAM)
}

/// Traces the program from before it begins until it is done; what it says then, and what memtrace says.
fn trace(program: &Path, how: &str, count: i64, arguments: &[&str]) -> Result<(String, Outcome)> {
    let mut target = Child::spawn(Command::new(program).args([how, &count.to_string()]))?;
    target.stdout.expect("ready ", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), arguments)?;
    target.tell("go")?;
    let done = target.stdout.expect("done ", PATIENCE)?;
    let outcome = memtrace.interrupt()?;
    outcome.check_code()?;
    ensure!(target.is_running()?, "the target has ended");
    Ok((done, outcome))
}

/// The sockets that were opened and are open in stacks that go through a function.
fn sockets(fds: &Fds, function: &str) -> Counts {
    fds.by_kind_through(function)
        .get("tcp")
        .copied()
        .unwrap_or_default()
}

/// Traces the leaks, in a run in which no call was missed.
fn leaks(program: &Path) -> Result<(Outcome, Fds)> {
    for _ in 0..ATTEMPTS {
        let arguments = ["--profiles", "fd,goroutine"];
        let (_, outcome) = trace(program, "leak", LEAKED, &arguments)?;
        let fds = outcome.fds()?;
        if sockets(&fds, UNTRACED_CALL).open == 0 {
            return Ok((outcome, fds));
        }
    }
    bail!("calls were missed in each of {ATTEMPTS} runs");
}

fn check_leaks(version: &str, (outcome, fds): (Outcome, Fds)) -> Result<()> {
    let has_parents = version != WITHOUT_PARENTS;
    let mut expected = vec![
        ("main.leakPlain", LEAKED),
        ("main.leakSecret", LEAKED),
        ("main.leakThroughLibrary", LEAKED),
        ("go_http/fetch.(*Fetcher).Do", LEAKED),
        ("main.leakConn", LEAKED),
        ("net.(*Dialer).Dial", LEAKED),
        ("main.leakStarted", if has_parents { LEAKED } else { 0 }),
        ("net/http.(*Transport).dialConnFor", 0),
        // The servers' ends have their own stacks.
        ("net/http.(*Server).Serve", 5 * LEAKED),
    ];
    if !has_parents {
        expected.push(("main.dialElsewhere.func1", LEAKED));
    }
    for (function, count) in expected {
        let open = sockets(&fds, function).open;
        ensure!(
            open == count,
            "{function} has {open} sockets, not {count}\n{}",
            fds.describe()
        );
    }
    let waiting = format!("{LEAKED} readLoop and {LEAKED} writeLoop goroutines wait");
    // The words may be in two lines.
    let report: Vec<&str> = outcome.stdout.split_whitespace().collect();
    let found = report.join(" ").matches(&waiting).count();
    let expected = if has_parents { 4 } else { 0 };
    ensure!(
        found == expected,
        "{found} places for which goroutines wait, not {expected}:\n{}",
        outcome.stdout
    );
    Ok(())
}

#[test]
fn each_connection_is_booked_on_who_asked_for_it() -> Result<()> {
    with_builds(&program(), &BUILDS, |version, program| {
        check_leaks(version, leaks(&program)?)
    })
}

#[test]
fn every_request_is_answered_while_garbage_is_collected() -> Result<()> {
    let builds = [
        BUILDS[0],
        ("1.21", Variant::Default),
        ("1.24", Variant::Pie),
        BUILDS[9],
    ];
    with_builds(&program(), &builds, |_, program| {
        let (done, outcome) = trace(&program, "load", REQUESTS, &["--profiles", "fd"])?;
        let answered = format!("{REQUESTS} 0");
        ensure!(done == answered, "answered and failed: {done}");
        let fds = outcome.fds()?;
        let opened = sockets(&fds, "main.fetchOnce").opened;
        let least = REQUESTS - REQUESTS / MISSED_IN;
        ensure!(
            (least..=REQUESTS).contains(&opened),
            "{opened} connections of {REQUESTS}\n{}",
            fds.describe()
        );
        Ok(())
    })
}
