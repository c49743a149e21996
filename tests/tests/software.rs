//! Real software under load: it works on without an error while memtrace attaches, traces and detaches, and its stacks
//! are complete.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile, kernel, net,
    profile::{Heap, Stack},
    serial,
    servers::{self, Nginx},
    skip,
    tracer::Memtrace,
};

/// The share of allocations that must have a complete stack.
const COMPLETE: f64 = 0.99;

/// glibc's file, which comes before other allocators when it is preloaded.
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// Whether nothing was cut off the stack, as far as memtrace knows.
fn is_complete(stack: &Stack) -> bool {
    stack
        .frames
        .iter()
        .all(|frame| !frame.function.starts_with("[stack "))
}

/// Insists on a profile that has seen a busy program.
fn check(heap: &Heap, at_least: i64) -> Result<()> {
    let all = heap.total().alloc_objects;
    ensure!(
        all >= at_least,
        "{all} allocations were seen\n{}",
        heap.comments.join("\n")
    );
    let complete = heap.stacks.iter().filter(|stack| is_complete(stack));
    let complete: i64 = complete.map(|stack| stack.values.alloc_objects).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let share = complete as f64 / all as f64;
    ensure!(
        share >= COMPLETE,
        "{complete} of {all} stacks are complete\n{}",
        heap.comments.join("\n")
    );
    // A whole stack of a program that does something is more than a frame or two.
    let deep = heap.stacks.iter().filter(|stack| stack.frames.len() >= 4).count();
    ensure!(
        deep * 10 >= heap.stacks.len() * 9,
        "{deep} of {} stacks have 4 frames",
        heap.stacks.len()
    );
    Ok(())
}

/// Two clients make requests while `during` runs, which is told how many were answered; each request must succeed.
fn under_load<T>(
    request: impl Fn() -> Result<()> + Sync,
    during: impl FnOnce(&AtomicUsize) -> Result<T>,
) -> Result<T> {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = || {
        while !stop.load(Ordering::Relaxed) {
            request()?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, anyhow::Error>(())
    };
    scope(|scope| {
        let clients = [scope.spawn(client), scope.spawn(client)];
        let result = during(&answered);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        result
    })
}

// ---------------------------------------------------------------------------------------------- redis

/// Some thousand requests, each of which must succeed. Random keys: what is set stays.
fn load_redis(benchmark: &Path, address: SocketAddr) -> Result<()> {
    let mut command = Command::new(benchmark);
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "-n", "3000"]);
    command.args([
        "-t",
        "set,get,lpush,hset",
        "-r",
        "10000",
        "-d",
        "200",
        "-c",
        "20",
        "--csv",
    ]);
    let output = command.output().context("running redis-benchmark")?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "redis-benchmark: {}\n{stderr}",
        output.status
    );
    ensure!(
        !stdout.contains("ERR") && !stderr.contains("rror"),
        "{stdout}\n{stderr}"
    );
    ensure!(stdout.contains("\"HSET\""), "{stdout}");
    Ok(())
}

/// Attaches and detaches twice under load.
fn trace_redis(preload: Option<&str>, allocator: &str) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let (Some(server), Some(benchmark)) = (
        skip::installed(&["redis-server"]),
        skip::installed(&["redis-benchmark"]),
    ) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let address = net::free_address()?;
    let mut redis = servers::start_redis(&server, address, directory.path(), preload)?;
    let heaps = under_load(
        || load_redis(&benchmark, address),
        |_| {
            let first = Memtrace::attach(redis.pid(), &["--duration", "1500ms"])?;
            ensure!(first.announcement.contains(allocator), "{}", first.announcement);
            let first = first.finish(PATIENCE)?.succeeded()?.0;
            let second = Memtrace::attach(redis.pid(), &["--duration", "1500ms"])?;
            Ok([first, second.finish(PATIENCE)?.succeeded()?.0])
        },
    )?;
    for heap in &heaps {
        check(heap, 1000)?;
        ensure!(
            heap.through("createClient").next().is_some(),
            "no function of redis is named"
        );
    }
    kernel::await_unpatched(redis.pid())?;
    load_redis(&benchmark, address)?;
    ensure!(redis.is_running()?);
    Ok(())
}

#[test]
fn redis_with_jemalloc() -> Result<()> {
    trace_redis(None, "libjemalloc")
}

#[test]
fn redis_with_malloc_of_glibc() -> Result<()> {
    if !Path::new(LIBC).exists() {
        skip::skipped(&format!("{LIBC} does not exist"));
        return Ok(());
    }
    trace_redis(Some(LIBC), "libc.so.6")
}

// ---------------------------------------------------------------------------------------------- python

#[test]
fn python_with_threads() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(python) = skip::installed(&["python3"]) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let script = compile::target_sources().join("allocating.py");
    let mut target = Child::spawn(Command::new(python).arg(script))?;
    target.stdout.expect("ready", PATIENCE)?;
    for _ in 0..2 {
        let before = count(&mut target)?;
        let memtrace = Memtrace::attach(target.pid(), &["--duration", "2s"])?;
        let (heap, _outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
        check(&heap, 1000)?;
        let deepest = heap.stacks.iter().map(|stack| stack.frames.len()).max();
        ensure!(
            deepest > Some(30),
            "the interpreter's stacks are deeper than {deepest:?}"
        );
        ensure!(count(&mut target)? > before, "python stands still");
    }
    kernel::await_unpatched(target.pid())?;
    let before = count(&mut target)?;
    sleep(Duration::from_millis(300));
    ensure!(count(&mut target)? > before, "python stands still after tracing");
    Ok(())
}

fn count(target: &mut Child) -> Result<u64> {
    target.tell("")?;
    Ok(target.stdout.expect("count ", PATIENCE)?.parse()?)
}

// ---------------------------------------------------------------------------------------------- nginx

/// Traces a worker while it answers a hundred requests, however long they take here.
fn trace_requests(worker: u32, answered: &AtomicUsize) -> Result<Heap> {
    let memtrace = Memtrace::attach(worker, &[])?;
    let (enough, deadline) = (answered.load(Ordering::Relaxed) + 100, Instant::now() + PATIENCE);
    while answered.load(Ordering::Relaxed) < enough {
        ensure!(Instant::now() < deadline, "nginx answers no more");
        sleep(Duration::from_millis(20));
    }
    Ok(memtrace.stop()?.0)
}

#[test]
fn nginx_under_load() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(nginx) = skip::installed(&["nginx"]) else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    let nginx = Nginx::start(&nginx, 1)?;
    let [worker] = nginx.workers()?[..] else {
        bail!("nginx has {:?} for workers", nginx.workers()?);
    };

    let heaps = under_load(
        || net::fetch(nginx.address, "/page"),
        |answered| {
            let first = trace_requests(worker, answered)?;
            Ok([first, trace_requests(worker, answered)?])
        },
    )?;
    for heap in &heaps {
        check(heap, 500)?;
    }
    ensure!(nginx.workers()? == [worker], "nginx had to start another worker");
    kernel::await_unpatched(worker)?;
    net::fetch(nginx.address, "/page")?;
    nginx.quit()
}
