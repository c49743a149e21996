//! What the daemon is told, by its options, its file and signals, and what it tells: settings of targets, a budget, targets that
//! cannot be traced, and systemd.

use std::time::Duration;

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result,
    child::PATIENCE,
    daemon::Daemon,
    kernel, serial,
    served::{self, Served, check},
    skip,
};

/// A configuration file that a test rewrites.
struct Config(tempfile::NamedTempFile);

impl Config {
    fn new(text: &str) -> Result<Self> {
        let config = Self(tempfile::NamedTempFile::new()?);
        config.write(text)?;
        Ok(config)
    }

    fn write(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.0.path(), text)?)
    }

    fn path(&self) -> Result<&str> {
        self.0.path().to_str().context("a path that is not UTF-8")
    }
}

/// A `[[target]]` with these lines.
fn entry(target: &Served, lines: &str) -> String {
    format!("[[target]]\npid = {}\n{lines}\n", target.pid())
}

#[test]
fn a_file_that_is_read_again() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let program = served::program("served_by_file")?;
    let mut targets = Vec::new();
    for _ in 0..4 {
        targets.push(Served::start(&program)?);
    }
    let head = "profiles = [\"heap\"]\nmax-targets = 9\n";
    let [goes, stays, changes, comes] = &mut targets[..] else {
        unreachable!("there are four")
    };
    let config = Config::new(
        &[
            head,
            &entry(goes, ""),
            &entry(stays, "name = \"shop\""),
            &entry(changes, ""),
        ]
        .concat(),
    )?;
    let mut daemon = Daemon::start(&["--config", config.path()?])?;
    for target in [&*goes, &*stays, &*changes] {
        daemon.await_traced(&target.id())?;
    }
    ensure!(daemon.await_traced(&stays.id())?.title.starts_with("shop "));
    ensure!(daemon.profile(&stays.id(), "fd")?.0 == 404, "fd is not recorded");
    for target in [&mut *goes, &mut *stays, &mut *changes] {
        target.go("heap 3")?;
    }
    // One goes, one comes, one has other settings and so begins anew.
    let new = [
        head,
        &entry(stays, "name = \"shop\""),
        &entry(changes, "profiles = [\"heap\", \"fd\"]"),
        &entry(comes, ""),
    ];
    config.write(&new.concat())?;
    daemon.signal(libc::SIGHUP)?;
    daemon.expect("memtrace: the configuration was read again")?;
    daemon.await_traced(&comes.id())?;
    let has_fds = |daemon: &Daemon| {
        daemon
            .profile(&changes.id(), "fd")
            .is_ok_and(|(status, _)| status == 200)
    };
    daemon.await_targets("with other settings", |_| has_fds(&daemon))?;
    daemon.await_targets("gone", |targets| {
        targets.iter().all(|target| target.id != goes.id())
    })?;
    kernel::await_unpatched(goes.pid())?;
    for target in [&mut *goes, &mut *stays, &mut *changes, &mut *comes] {
        target.go("heap 2")?;
    }
    check(&daemon.heap(&stays.id())?, "served_heap", 5, 5)?;
    check(&daemon.heap(&changes.id())?, "served_heap", 2, 2)?;
    check(&daemon.heap(&comes.id())?, "served_heap", 2, 2)?;
    ensure!(daemon.profile(&comes.id(), "fd")?.0 == 404, "fd is not recorded");
    config.write("[[target]]\npid = 1\npids = 2\n")?;
    daemon.signal(libc::SIGHUP)?;
    let why = daemon.expect("memtrace: the configuration stays as it was: ")?;
    ensure!(why.contains("target 1") && why.contains("--pids"), "{why}");
    std::thread::sleep(Duration::from_secs(2));
    stays.go("heap 1")?;
    check(&daemon.heap(&stays.id())?, "served_heap", 6, 6)?;
    daemon.stop()?;
    targets.into_iter().try_for_each(Served::exit)
}

/// What a file may not say, and what is said of it.
#[test]
fn files_that_cannot_be_used() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let cases = [
        ("max-targets = 1\n", "nothing to trace"),
        (
            "[[target]]\npid = 1\nsample-bites = 5\n",
            "target 1: unexpected argument '--sample-bites'",
        ),
        (
            "[[target]]\npid = 1\n[[target]]\npid = 1\nsample-bytes = \"many\"\n",
            "target 2: invalid value 'many'",
        ),
        (
            "[[target]]\nname = \"nobody\"\n",
            "target 1: the following required arguments",
        ),
        (
            "[[target]]\npid = 1\ncommand = \"x\"\n",
            "target 1: the argument '--command",
        ),
        (
            "[[target]]\npid = 1\nprofiles = { heap = true }\n",
            "target 1: `profiles` must be",
        ),
        ("[[target]]\ncommand = \"(\"\n", "regex"),
        (
            "listen = \"nowhere\"\n[[target]]\npid = 1\n",
            "options: invalid value 'nowhere'",
        ),
        (
            "colour = \"red\"\n[[target]]\npid = 1\n",
            "options: unexpected argument '--colour'",
        ),
        ("[[target]\n", "line 1"),
        ("target = 5\n", "target: write [[target]]"),
    ];
    for (text, expected) in cases {
        let config = Config::new(text)?;
        let outcome = memtrace_tests::tracer::run(["serve", "--config", config.path()?], PATIENCE)?;
        ensure!(
            outcome.code == Some(2) && outcome.stderr.contains(expected),
            "{text}: {:?}: {}",
            outcome.code,
            outcome.stderr
        );
    }
    Ok(())
}

#[test]
fn a_target_waits_for_room() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let program = served::program("served_in_turn")?;
    let (first, mut second) = (Served::start(&program)?, Served::start(&program)?);
    let pids = [first.pid().to_string(), second.pid().to_string()];
    let daemon = Daemon::start(&["--pid", &pids[0], "--pid", &pids[1], "--max-targets", "1"])?;
    daemon.await_traced(&first.id())?;
    let waits = |targets: &[memtrace_tests::daemon::Listed]| {
        let its = targets.iter().find(|target| target.id == second.id());
        its.is_some_and(|its| its.has_note("--max-targets") && its.profiles.is_empty())
    };
    daemon.await_targets("waiting", waits)?;
    ensure!(daemon.profile(&second.id(), "heap")?.0 == 404);
    ensure!(kernel::patched_addresses(second.pid())?.is_empty());
    first.exit()?;
    daemon.await_traced(&second.id())?;
    second.go("heap 2")?;
    check(&daemon.heap(&second.id())?, "served_heap", 2, 2)?;
    daemon.stop()?;
    // Tables for so little memory there are not.
    let daemon = Daemon::start(&["--pid", &pids[1], "--max-memory", "1m"])?;
    daemon.await_targets("waiting", |targets| {
        targets.iter().any(|target| target.has_note("--max-memory"))
    })?;
    daemon.stop()?;
    second.exit()
}

/// A target that was never there, and one whose processes are another's, are listed with the reason.
#[test]
fn nothing_is_left_out_in_silence() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let program = served::program("served_twice")?;
    let target = Served::start(&program)?;
    let pid = target.pid().to_string();
    let command = format!("^{program}");
    let daemon = Daemon::start(&[
        "--pid",
        &pid,
        "--command",
        &command,
        "--cgroup",
        "/nowhere",
        "--pid",
        "4194304",
    ])?;
    daemon.await_traced(&target.id())?;
    for reason in [
        "are counted there",
        "no process is in it",
        "there is no such process",
    ] {
        daemon.await_targets(reason, |targets| {
            targets
                .iter()
                .any(|target| target.has_note(reason) && target.profiles.is_empty())
        })?;
    }
    ensure!(daemon.get("/debug/pprof/heap")?.0 == 200, "one of them is traced");
    let said = daemon.stop()?.stderr;
    ensure!(
        said.matches("no process is in it").count() == 1,
        "it is said once: {said}"
    );
    target.exit()
}

/// What cannot be traced is listed with the reason, takes no room, and stops nobody.
#[test]
fn bad_targets_stop_nobody() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let program = served::program("served_beside_bad")?;
    let stripped = memtrace_tests::compile::Build::c("served")
        .named("served_stripped")
        .flags(["-static", "-s"])
        .path()?;
    let stripped = Served::start(stripped.to_str().context("a path that is not UTF-8")?)?;
    // Not waited for: a zombie.
    let mut zombie = served::busy(&program, Duration::ZERO)?;
    std::thread::sleep(Duration::from_millis(200));
    let mut target = Served::start(&program)?;
    let mut ends_at_once = std::process::Command::new("/bin/sh")
        .args(["-c", "while :; do /bin/true served_momentary; done"])
        .spawn()?;
    let pids = [2, zombie.pid(), stripped.pid(), target.pid()].map(|pid| pid.to_string());
    let daemon = Daemon::start(&[
        "--pid",
        &pids[0],
        "--pid",
        &pids[1],
        "--pid",
        &pids[2],
        "--pid",
        &pids[3],
        "--command",
        "true served_momentary$",
        "--max-targets",
        "20",
    ])?;
    daemon.await_traced(&target.id())?;
    let note = |pid: &str, part: &str| {
        let (id, part) = (format!("pid-{pid}"), part.to_owned());
        daemon.await_targets(&format!("{id}: {part}"), move |targets| {
            targets
                .iter()
                .any(|target| target.id == id && target.has_note(&part))
        })
    };
    note(&pids[0], "kernel")?;
    note(&pids[1], "ended")?;
    note(&pids[2], "symbols")?;
    target.go("heap 5")?;
    std::thread::sleep(Duration::from_secs(2));
    check(&daemon.heap(&target.id())?, "served_heap", 5, 5)?;
    let ended = daemon.stop();
    ends_at_once.kill()?;
    ends_at_once.wait()?;
    ended?;
    zombie.wait(PATIENCE)?;
    stripped.exit()?;
    target.exit()
}

#[test]
fn systemd_is_told() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let next = || -> Result<String> {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).context("no message")?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    let target = Served::start(&served::program("served_for_systemd")?)?;
    let variables = [("NOTIFY_SOCKET", path.display().to_string())];
    let daemon = Daemon::start_with(&["--pid", &target.pid().to_string()], &variables)?;
    ensure!(next()?.contains("READY=1"));
    daemon.signal(libc::SIGHUP)?;
    let reloading = next()?;
    // `Type=notify-reload` needs the time, too (sd_notify(3)).
    ensure!(
        reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="),
        "{reloading}"
    );
    ensure!(next()?.contains("READY=1"));
    daemon.stop()?;
    ensure!(next()?.contains("STOPPING=1"));
    target.exit()
}
