//! What memtrace itself costs: while nothing happens, to attach, and for a snapshot of a large heap.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    statistics::Samples,
    target::{Program, Target, Waiting},
    tracer::{Ready, Tracer},
};
use crate::{
    build::{Profile, build},
    process, setup, workspace,
};

/// Between the attach and the measurement of the idle costs.
const SETTLE: Duration = Duration::from_secs(2);
/// How long idle costs are measured.
const IDLE: Duration = Duration::from_secs(10);
/// Attach times are medians of so many.
const ATTACHES: usize = 5;
/// Live blocks for the snapshot.
const BLOCKS: u64 = 1_000_000;
/// Enough room for [`BLOCKS`] and what the program itself holds.
const MAX_LIVE: &str = "1200000";
const SNAPSHOTS: usize = 6;
/// No snapshot takes this long.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(60);

/// Measures and prints, one line each.
///
/// # Errors
/// When a program cannot be built, installed or traced.
pub fn costs() -> Result<()> {
    let memtrace = build(Profile::Release)?;
    let program = Program::prepare()?;
    println!();
    idle(&memtrace, &program)?;
    let redis = setup::program("redis-server", "redis-server")?;
    let socket = workspace::scratch().join("redis.sock");
    let arguments: [&Path; 6] = [
        "--port".as_ref(),
        "0".as_ref(),
        "--unixsocket".as_ref(),
        &socket,
        "--save".as_ref(),
        "".as_ref(),
    ];
    attach("redis-server", &memtrace, process::command(redis).args(arguments))?;
    // Debian's own, which uses libc's malloc for all but small objects; a python3 earlier on PATH may be a script.
    let python = setup::program("/usr/bin/python3", "python3")?;
    attach(
        "python3",
        &memtrace,
        process::command(python).args(["-c", "import time; time.sleep(600)"]),
    )?;
    snapshot(&memtrace, &program)
}

/// The command that traces `pid` and writes profiles to the directory, which must not exist.
fn trace(memtrace: &Path, pid: u32) -> Result<(Command, PathBuf)> {
    let output = workspace::scratch().join("profiles");
    if output.exists() {
        fs::remove_dir_all(&output)?;
    }
    let mut command = process::command(memtrace);
    command
        .args(["--max-live", MAX_LIVE, "--pid", &pid.to_string(), "--output"])
        .arg(&output);
    Ok((command, output))
}

/// CPU and memory while the target does nothing.
fn idle(memtrace: &Path, program: &Program) -> Result<()> {
    let target = Target::start(program.command(&[]))?;
    let (command, _) = trace(memtrace, target.pid())?;
    let tracer = Tracer::attach(command, target.pid(), Ready::Announced)?;
    sleep(SETTLE);
    let before = cpu_time(tracer.pid())?;
    sleep(IDLE);
    let cpu = cpu_time(tracer.pid())?.saturating_sub(before);
    println!(
        "idle for {} s: {:.1} ms CPU, {} KiB resident, {} KiB of eBPF maps",
        IDLE.as_secs(),
        cpu.as_secs_f64() * 1000.0,
        resident(tracer.pid())?,
        map_memory(tracer.pid())? / 1024,
    );
    tracer.end()
}

/// CPU time so far, of all threads (first field of `/proc/PID/task/TID/schedstat`).
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
        let on_cpu = schedstat.split(' ').next().context("schedstat is empty")?;
        nanoseconds += on_cpu.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Resident memory (KiB).
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Kernel memory of the eBPF maps that a process has open (bytes).
fn map_memory(pid: u32) -> Result<u64> {
    let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name| {
            info.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|value| value.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.values().sum())
}

/// From the start of memtrace until its probes are live.
fn attach(name: &str, memtrace: &Path, command: &mut Command) -> Result<()> {
    let target = Waiting::start(command)?;
    sleep(SETTLE);
    let mut samples = Samples::default();
    for _ in 0..ATTACHES {
        let (command, _) = trace(memtrace, target.pid())?;
        let tracer = Tracer::attach(command, target.pid(), Ready::Announced)?;
        samples.0.push(tracer.attach_time.as_secs_f64() * 1000.0);
        tracer.end()?;
    }
    print_median(&format!("attach to {name}"), &samples);
    Ok(())
}

fn print_median(what: &str, milliseconds: &Samples) {
    if let (Some(median), Some((low, high))) = (milliseconds.median(), milliseconds.range()) {
        println!(
            "{what}: {median:.0} ms ({low:.0} to {high:.0}, {} times)",
            milliseconds.0.len()
        );
    }
}

/// From SIGUSR1 until the profile is there.
fn snapshot(memtrace: &Path, program: &Program) -> Result<()> {
    let mut target = Target::start(program.command(&[]))?;
    let (command, output) = trace(memtrace, target.pid())?;
    let tracer = Tracer::attach(command, target.pid(), Ready::Announced)?;
    target.hold(BLOCKS)?;
    let mut samples = Samples::default();
    for number in 1..=SNAPSHOTS {
        // It appears under this name when it is whole.
        let profile = output.join(format!("heap-{number:04}.pb.gz"));
        let start = Instant::now();
        tracer.signal(libc::SIGUSR1);
        while !profile.exists() {
            if start.elapsed() > SNAPSHOT_LIMIT {
                bail!("no snapshot within {} s of SIGUSR1", SNAPSHOT_LIMIT.as_secs());
            }
            sleep(Duration::from_millis(2));
        }
        samples.0.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    // The first one reads the symbols.
    let further = Samples(samples.0.split_off(1));
    print_median(&format!("first snapshot of {BLOCKS} live blocks"), &samples);
    print_median("further snapshots of them", &further);
    tracer.end()
}
