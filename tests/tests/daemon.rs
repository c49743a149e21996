//! The daemon: targets that come and go are traced while they are there, each by itself, and nothing else is.

use std::time::Duration;

use anyhow::ensure;
use memtrace_tests::{
    Result,
    cgroup::Cgroup,
    daemon::{self, Daemon},
    fd_profile::Counts,
    kernel, serial,
    served::{self, AREA, OF_CHILD, Served, check},
    skip,
    store::{Pushed, Store},
};

/// Insists on what a target did: of its heap, descriptors and mappings.
fn check_all(daemon: &Daemon, id: &str, heap: (i64, i64), fds: i64, areas: i64) -> Result<()> {
    check(&daemon.heap(id)?, "served_heap", heap.0, heap.1)?;
    let opened = daemon.fds(id)?;
    let expected = [(
        "file".to_owned(),
        Counts {
            opened: fds,
            open: fds,
        },
    )];
    ensure!(
        opened
            .by_kind_through("served_fd")
            .into_values()
            .eq(expected.into_iter().map(|(_, counts)| counts)),
        "{}",
        opened.describe()
    );
    let mapped = daemon.mappings(id)?.by_site("served_mmap");
    let (space, count) = (mapped.values().next().copied().unwrap_or_default(), mapped.len());
    ensure!(
        count == 1 && space.mapped == areas * AREA && space.inuse == areas * AREA,
        "{mapped:?}"
    );
    Ok(())
}

/// Has a target do something, and compares; twice, so that the second time adds up.
fn work(daemon: &Daemon, id: &str, target: &mut Served) -> Result<()> {
    for command in ["heap 10", "free 3", "fd 5", "mmap 2"] {
        target.go(command)?;
    }
    check_all(daemon, id, (10, 7), 5, 2)?;
    target.go("heap 1")?;
    target.go("fd 1")?;
    check_all(daemon, id, (11, 7 + 1), 6, 2)
}

#[test]
fn a_process_by_its_id() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let mut target = Served::start(&served::program("served_by_pid")?)?;
    let pid = target.pid();
    let daemon = Daemon::start(&["--pid", &pid.to_string(), "--profiles", "heap,fd,mmap"])?;
    let listed = daemon.await_traced(&target.id())?;
    ensure!(listed.pids == [pid] && listed.profiles.len() == 4, "{listed:?}");
    ensure!(!format!("{listed:?}").contains('/'), "a path: {listed:?}");
    work(&daemon, &target.id(), &mut target)?;
    let ended = daemon.stop()?;
    ensure!(ended.stderr.contains("tracing served_by_pid"), "{}", ended.stderr);
    kernel::await_unpatched(pid)?;
    target.go("heap 1")?;
    target.exit()
}

#[test]
fn processes_by_their_command_line() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let program = served::program("served_by_command")?;
    let mut first = Served::start(&program)?;
    let daemon = Daemon::start(&["--command", "served_by_com+and", "--profiles", "heap,fd,mmap"])?;
    daemon.await_traced(&first.id())?;
    let mut second = Served::start(&program)?;
    daemon.await_traced(&second.id())?;
    work(&daemon, &first.id(), &mut first)?;
    work(&daemon, &second.id(), &mut second)?;
    // Children have the same command line; they are the parent's.
    let children = second.go("fork 2")?;
    std::thread::sleep(Duration::from_millis(2500));
    let listed = daemon.targets()?;
    ensure!(listed.len() == 2, "{children:?}: {listed:?}");
    check(
        &daemon.heap(&second.id())?,
        "served_child",
        2 * OF_CHILD,
        2 * OF_CHILD,
    )?;
    let id = first.id();
    first.exit()?;
    daemon.await_targets("one left", |targets| targets.iter().all(|target| target.id != id))?;
    work_goes_on(&daemon, &mut second)?;
    daemon.stop()?;
    kernel::await_unpatched(second.pid())?;
    second.exit()
}

/// The end of a target is nothing to the others of its group.
fn work_goes_on(daemon: &Daemon, target: &mut Served) -> Result<()> {
    target.go("heap 4")?;
    check(&daemon.heap(&target.id())?, "served_heap", 15, 12)
}

/// The processes of a cgroup are one target: its profile is the sum, also of what has ended.
#[test]
fn a_cgroup_with_several_processes() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let Some(cgroup) = Cgroup::new("served")? else {
        return Ok(());
    };
    let program = served::program("served_in_cgroup")?;
    let mut first = Served::start_in(&program, cgroup.directory())?;
    let mut second = Served::start_in(&program, cgroup.directory())?;
    let daemon = Daemon::start(&["--cgroup", cgroup.path(), "--profiles", "heap,fd"])?;
    let both = |targets: &[_]| targets.len() == 1;
    let listed = daemon.await_targets("one target", both)?.remove(0);
    ensure!(listed.pids.len() == 2, "{listed:?}");
    let id = &listed.id;
    daemon.await_traced(id)?;
    daemon.await_metric("memtrace_processes", 2.0)?;
    first.go("heap 10")?;
    second.go("heap 5")?;
    check(&daemon.heap(id)?, "served_heap", 15, 15)?;
    first.go("fork 2")?;
    first.go("exec 2")?;
    let forked = 2 * OF_CHILD;
    daemon.await_heap(id, |heap| {
        check(heap, "served_child", forked, forked)?;
        check(heap, "served_executed", forked, forked)
    })?;
    // What ends frees nothing, but holds nothing either.
    first.go("reap")?;
    daemon.await_heap(id, |heap| {
        check(heap, "served_child", forked, 0)?;
        check(heap, "served_executed", forked, 0)
    })?;
    first.exit()?;
    daemon.await_heap(id, |heap| check(heap, "served_heap", 15, 5))?;
    let mut third = Served::start_in(&program, cgroup.directory())?;
    daemon.await_metric("memtrace_processes", 2.0)?;
    third.go("heap 7")?;
    check(&daemon.heap(id)?, "served_heap", 22, 12)?;
    let survivors = [second.pid(), third.pid()];
    daemon.stop()?;
    survivors.into_iter().try_for_each(kernel::await_unpatched)?;
    second.exit()?;
    third.exit()
}

#[test]
fn a_target_that_ends_while_somebody_waits() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let target = Served::start(&served::program("served_until_then")?)?;
    let daemon = Daemon::start(&["--pid", &target.pid().to_string()])?;
    let id = target.id();
    daemon.await_traced(&id)?;
    std::thread::scope(|scope| {
        let (address, path) = (
            daemon.address(),
            format!("/targets/{id}/debug/pprof/heap?seconds=4"),
        );
        let waiting = scope.spawn(move || daemon::get(address, &path));
        std::thread::sleep(Duration::from_secs(1));
        target.exit()?;
        let waiting = waiting.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        let (status, body) = waiting?;
        let body = String::from_utf8_lossy(&body);
        ensure!(status == 404 && body.contains("not traced"), "{status}: {body}");
        anyhow::Ok(())
    })?;
    daemon.stop()?;
    Ok(())
}

/// The total of a sample type that was pushed of a target's function.
fn total(pushed: &[Pushed], pid: u32, sample_type: &str, function: &str) -> i64 {
    let its = pushed
        .iter()
        .filter(|pushed| pushed.label("pid") == pid.to_string());
    its.filter_map(|pushed| pushed.sum(sample_type, function)).sum()
}

/// The last value of one.
fn last(pushed: &[Pushed], pid: u32, sample_type: &str, function: &str) -> Option<i64> {
    let its = pushed
        .iter()
        .rev()
        .filter(|pushed| pushed.label("pid") == pid.to_string());
    its.filter_map(|pushed| pushed.sum(sample_type, function)).next()
}

#[test]
fn what_is_pushed_adds_up() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let store = Store::start()?;
    let program = served::program("served_and_pushed")?;
    let (mut ends, mut stays) = (Served::start(&program)?, Served::start(&program)?);
    let push = store.option();
    let daemon = Daemon::start(&[
        "--command",
        "/served_and_pushed",
        "--push",
        &push,
        "--push-interval",
        "1s",
    ])?;
    for target in [&ends, &stays] {
        daemon.await_traced(&target.id())?;
    }
    for _ in 0..20 {
        ends.go("heap 10")?;
        stays.go("heap 4")?;
        stays.go("free 1")?;
        std::thread::sleep(Duration::from_millis(150));
    }
    // Children that end take nothing with them, and bring nothing twice.
    stays.go("fork 3")?;
    std::thread::sleep(Duration::from_millis(1500));
    stays.go("reap")?;
    std::thread::sleep(Duration::from_millis(2500));
    ends.go("heap 7")?;
    let pid = ends.pid();
    ends.exit()?;
    daemon.await_targets("one left", |targets| targets.len() == 1)?;
    stays.go("heap 6")?;
    daemon.stop()?;
    let pushed = store.pushed();
    ensure!(
        pushed
            .iter()
            .all(|pushed| pushed.label("service_name") == "served_and_push"),
        "{:?}",
        pushed[0].labels
    );
    let found = (
        total(&pushed, pid, "alloc_objects", "served_heap"),
        total(&pushed, stays.pid(), "alloc_objects", "served_heap"),
        total(&pushed, stays.pid(), "alloc_objects", "served_child"),
        last(&pushed, pid, "inuse_objects", "served_heap"),
        last(&pushed, stays.pid(), "inuse_objects", "served_heap"),
    );
    let expected = (207, 86, 3 * OF_CHILD, Some(207), Some(66));
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    stays.exit()
}

#[test]
fn ten_targets_are_let_go_of() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let program = served::program("served_by_tens")?;
    let mut targets = Vec::new();
    for _ in 0..10 {
        targets.push(Served::start(&program)?);
    }
    for killed in [false, true] {
        let daemon = Daemon::start(&["--command", "/served_by_tens"])?;
        daemon.await_metric("memtrace_processes", 10.0)?;
        let events = format!("memtrace_{}_", daemon.pid());
        match killed {
            true => daemon.kill()?,
            false => {
                let ended = daemon.stop()?;
                eprintln!("ten targets were let go of in {:?}", ended.took);
                ensure!(!kernel::uprobe_events()?.contains(&events), "{events} remain");
            }
        }
        for target in &mut targets {
            kernel::await_unpatched(target.pid())?;
            target.go("heap 3")?;
        }
    }
    targets.into_iter().try_for_each(Served::exit)
}

#[test]
fn go_tool_pprof_reads_it() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let Some(go) = skip::installed(&["go"]) else {
        return Ok(());
    };
    let mut target = Served::start(&served::program("served_to_pprof")?)?;
    let daemon = Daemon::start(&["--pid", &target.pid().to_string()])?;
    daemon.await_traced(&target.id())?;
    target.go("heap 30")?;
    target.go("fd 20")?;
    let pprof = |arguments: &[&str]| -> Result<String> {
        let scratch = tempfile::tempdir()?;
        let mut command = std::process::Command::new(&go);
        command
            .args(["tool", "pprof", "-top", "-symbolize=none"])
            .args(arguments);
        let output = command.env("PPROF_TMPDIR", scratch.path()).output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let url = |name: &str| daemon.url(&format!("/targets/{}/debug/pprof/{name}", target.id()));
    // A number, of the function itself or with what it calls, in a line of one of the target's functions.
    let holds = |text: &str, value: &str| {
        let mut lines = text.lines().filter(|line| line.contains("served_"));
        lines.any(|line| line.split_whitespace().any(|word| word == value))
    };
    let has = |text: &str, value: &str| {
        ensure!(holds(text, value), "no {value} in {text}");
        Ok(())
    };
    has(&pprof(&["-sample_index=inuse_objects", &url("heap")])?, "30")?;
    ensure!(pprof(&[&url("allocs")])?.contains("Type: alloc_space"));
    has(&pprof(&["-sample_index=inuse_fds", &url("fd")])?, "20")?;
    let kept = daemon.directory().join("earlier.pb.gz");
    std::fs::copy(daemon.fetch(&target.id(), "heap")?, &kept)?;
    let (id, kept) = (url("heap"), kept.display().to_string());
    target.go("heap 11")?;
    let difference = pprof(&["-sample_index=inuse_objects", "-diff_base", &kept, &id])?;
    has(&difference, "11")?;
    // Not all 41 of them.
    ensure!(!holds(&difference, "41"), "{difference}");
    std::thread::scope(|scope| {
        let delta = scope.spawn(|| pprof(&["-sample_index=alloc_objects", "-seconds", "5", &id]));
        std::thread::sleep(Duration::from_secs(2));
        target.go("heap 9")?;
        let delta = delta.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        has(&delta, "9")?;
        ensure!(!holds(&delta, "50"), "{delta}");
        anyhow::Ok(())
    })?;
    daemon.stop()?;
    target.exit()
}
