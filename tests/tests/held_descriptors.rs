//! Real software that holds descriptors: how many of each kind, and who opened them.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile,
    fd_profile::{BEFORE_TRACING, Counts, Fds, UNTRACED_CALL},
    go_build::{GoProgram, Toolchain, Variant},
    net, serial,
    servers::{Nginx, Postgres, PostgresSession, start_redis},
    skip,
    tracer::Memtrace,
};

/// Nothing but descriptors.
const FDS: [&str; 2] = ["--profiles", "fd"];
const FDS_OF_CHILDREN: [&str; 3] = ["--children", "--profiles", "fd"];

/// How many descriptors a process has, as the kernel says.
fn open_in_kernel(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path)
        .with_context(|| format!("reading {path}"))?
        .count())
}

/// Insists that the profile has each descriptor, and knows who opened it.
fn check(fds: &Fds, pid: u32) -> Result<()> {
    let all = open_in_kernel(pid)?;
    ensure!(
        fds.open() == i64::try_from(all)?,
        "{} descriptors are in the profile, {all} are open\n{}",
        fds.open(),
        fds.describe()
    );
    let untraced = fds.by_kind_through(UNTRACED_CALL);
    ensure!(untraced.is_empty(), "{untraced:?}\n{}", fds.describe());
    Ok(())
}

fn expect(fds: &Fds, function: &str, kind: &str, open: i64) -> Result<()> {
    let found = fds.open_through(function, kind);
    ensure!(
        found == open,
        "{found} of kind {kind} are open in {function}, not {open}\n{}",
        fds.describe()
    );
    Ok(())
}

/// Waits until a process has so many descriptors.
fn await_open(pid: u32, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while open_in_kernel(pid)? != count {
        ensure!(
            Instant::now() < deadline,
            "process {pid} does not come to {count}"
        );
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn hold(count: usize, address: SocketAddr, request: &str, answer: &str) -> Result<Vec<TcpStream>> {
    (0..count).map(|_| net::hold(address, request, answer)).collect()
}

// ---------------------------------------------------------------------------------------------- redis

#[test]
fn redis_with_connections() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(server) = skip::installed(&["redis-server"]) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let address = net::free_address()?;
    let redis = start_redis(&server, address, directory.path(), None)?;
    // The one that saw that it listens is to be gone.
    drop(hold(1, address, "PING\r\n", "+PONG\r\n")?);
    sleep(Duration::from_millis(300));
    let before = open_in_kernel(redis.pid())?;

    let memtrace = Memtrace::attach(redis.pid(), &FDS)?;
    let connections = hold(50, address, "PING\r\n", "+PONG\r\n")?;
    let fds = memtrace.fd_snapshot(1)?;
    check(&fds, redis.pid())?;
    expect(&fds, "acceptTcpHandler", "tcp", 50)?;
    expect(&fds, BEFORE_TRACING, "epoll", 1)?;

    drop(connections);
    await_open(redis.pid(), before)?;
    let fds = memtrace.interrupt()?.fds()?;
    check(&fds, redis.pid())?;
    let accepted = Counts { opened: 50, open: 0 };
    ensure!(
        fds.by_kind_through("acceptTcpHandler").get("tcp") == Some(&accepted),
        "{}",
        fds.describe()
    );
    Ok(())
}

// ---------------------------------------------------------------------------------------------- nginx

/// Has the master fork new workers, and waits until the old ones are gone.
fn replace_workers(nginx: &Nginx) -> Result<Vec<u32>> {
    let old = nginx.workers()?;
    nginx.master.signal(libc::SIGHUP)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let workers = nginx.workers()?;
        if workers.len() == old.len() && workers.iter().all(|worker| !old.contains(worker)) {
            return Ok(workers);
        }
        ensure!(
            Instant::now() < deadline,
            "nginx goes on with {workers:?} for {old:?}"
        );
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn nginx_with_connections() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(nginx) = skip::installed(&["nginx"]) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let nginx = Nginx::start(&nginx, 2)?;
    let memtrace = Memtrace::attach(nginx.master.pid(), &FDS_OF_CHILDREN)?;
    let workers = replace_workers(&nginx)?;

    let request = "GET /page HTTP/1.1\r\nHost: test\r\n\r\n";
    let connections = hold(40, nginx.address, request, "compresses well.\n")?;
    memtrace.signal(libc::SIGUSR1)?;
    let (mut accepted, mut files) = (0, Counts::default());
    for worker in workers {
        let fds = memtrace.fd_snapshot_of(worker)?;
        check(&fds, worker)?;
        accepted += fds.open_through("ngx_event_accept", "tcp");
        // The page is opened for each request, and closed.
        if let Some(counts) = fds.by_kind_through("ngx_open_cached_file").get("file") {
            files.add(*counts);
        }
        // The socket that it listens on is the master's, from before.
        ensure!(
            fds.stacks
                .iter()
                .any(|stack| stack.kind == "tcp" && stack.contains(BEFORE_TRACING)),
            "{}",
            fds.describe()
        );
    }
    ensure!(accepted == 40, "{accepted} connections instead of 40");
    let expected = Counts { opened: 40, open: 0 };
    ensure!(files == expected, "{files:?} instead of {expected:?}");

    drop(connections);
    memtrace.interrupt()?.fds()?;
    nginx.quit()
}

// ---------------------------------------------------------------------------------------------- python

#[test]
fn python_that_leaks() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(python) = skip::installed(&["python3"]) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let script = compile::target_sources().join("leaking_sockets.py");
    let mut target = Child::spawn(Command::new(python).arg(script))?;
    target.stdout.expect("ready", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), &FDS)?;
    let leaks = [("tcp", 30), ("unix", 7), ("file", 12)];
    for (kind, count) in leaks {
        target.tell(&format!("{kind} {count}"))?;
        target.stdout.expect("held ", PATIENCE)?;
    }
    let fds = memtrace.interrupt()?.fds()?;
    check(&fds, target.pid())?;
    for (kind, count) in leaks {
        expect(&fds, "_PyEval_EvalFrameDefault", kind, count)?;
    }
    // At least its standard streams: the tests themselves may have left it more.
    ensure!(
        fds.open_through(BEFORE_TRACING, "pipe") >= 3,
        "{}",
        fds.describe()
    );
    Ok(())
}

// ---------------------------------------------------------------------------------------------- Go

/// Has the server handle a request, and waits until it has closed the connection.
fn request(address: SocketAddr) -> Result<()> {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(address).context("connecting")?;
    std::io::Read::read_to_string(&mut stream, &mut answer).context("reading the answer")?;
    ensure!(answer == "done\n", "{answer:?}");
    Ok(())
}

#[test]
fn go_that_leaks_files() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(go) = Toolchain::installed()? else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let program = GoProgram::new("leaking_files").path(&go, Variant::Default)?;
    let mut server = Child::spawn(&mut Command::new(program))?;
    let address = server.stdout.expect("listening ", PATIENCE)?.parse()?;
    // What the runtime opens when it is first needed, it opens now.
    request(address)?;

    let memtrace = Memtrace::attach(server.pid(), &FDS)?;
    for _ in 0..25 {
        request(address)?;
    }
    let fds = memtrace.interrupt()?.fds()?;
    check(&fds, server.pid())?;
    expect(&fds, "main.openReport", "file", 25)?;
    let accepted = Counts { opened: 25, open: 0 };
    ensure!(
        fds.by_kind_through("main.main").get("tcp") == Some(&accepted),
        "{}",
        fds.describe()
    );
    Ok(())
}

// ---------------------------------------------------------------------------------------------- PostgreSQL

/// A backend has the connection from the postmaster, and opens the tables' files itself.
fn check_backend(fds: &Fds, session: &PostgresSession) -> Result<()> {
    check(fds, session.backend)?;
    expect(fds, "StreamConnection", "tcp", 1)?;
    let inherited = fds.stacks.iter().find(|stack| stack.contains("StreamConnection"));
    ensure!(
        inherited.is_some_and(|stack| stack.inherited),
        "{}",
        fds.describe()
    );
    ensure!(
        fds.open_through("BasicOpenFilePerm", "file") > 0,
        "{}",
        fds.describe()
    );
    ensure!(
        fds.open_through("CreateWaitEventSet", "epoll") > 0,
        "{}",
        fds.describe()
    );
    Ok(())
}

#[test]
fn postgres_backends() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let Some(server) = Postgres::start()? else {
        return Ok(());
    };
    let memtrace = Memtrace::attach(server.postmaster.pid(), &FDS_OF_CHILDREN)?;
    let mut sessions: Vec<PostgresSession> = (0..4).map(|_| server.session()).collect::<Result<_>>()?;
    for session in &mut sessions {
        let count: u32 = session.ask("select count(*) from pg_class;")?.parse()?;
        if count == 0 {
            bail!("no tables");
        }
    }
    memtrace.signal(libc::SIGUSR1)?;
    for session in &sessions {
        check_backend(&memtrace.fd_snapshot_of(session.backend)?, session)
            .with_context(|| format!("backend {}", session.backend))?;
    }
    // The postmaster has closed its own copies.
    let fds = memtrace.interrupt()?.fds()?;
    check(&fds, server.postmaster.pid())?;
    expect(&fds, "StreamConnection", "tcp", 0)
}
