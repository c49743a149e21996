//! What reading a Go program costs: the time of one snapshot of a large heap and many goroutines, and what the program loses
//! while snapshots are taken.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    statistics::Samples,
    target::{Batch, Target},
    tracer::{Ready, Tracer},
};
use crate::{
    build::{Profile, build},
    process, setup, workspace,
};

/// The program's heap (MiB) and its parked goroutines.
const HEAP: u32 = 1024;
const GOROUTINES: u32 = 100_000;
/// Before each measurement (ms).
const WARM_UP: u64 = 50;
/// The shortest measurement (ms): a shorter one would be noise.
const SHORTEST: u64 = 50;
/// No snapshot takes this long.
const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(2);
/// The processor of the program, when it has one of its own.
const OWN: usize = 0;
/// What a snapshot consists of.
const PROFILES: [&str; 2] = ["heap", "goroutine"];

/// Measures in pairs of rounds, without a snapshot and with one, and prints both. `apart`: the program has a processor that
/// memtrace does not use.
///
/// # Errors
/// When something cannot be built or started, or a snapshot does not come.
pub fn go(rounds: u32, apart: bool) -> Result<()> {
    let program = compile()?;
    let memtrace = build(Profile::Release)?;
    let all = std::thread::available_parallelism()?.get();
    if apart && all < 2 {
        bail!("--apart needs two processors, and there is one");
    }
    let mut command = on_processors(apart.then_some(OWN..OWN + 1), &program);
    command.args([HEAP.to_string(), GOROUTINES.to_string()]);
    let mut target = Target::spawn(command)?;
    target.run(WARM_UP)?;
    let command = on_processors(apart.then_some(OWN + 1..all), &memtrace);
    let mut session = Session::attach(command, target.pid())?;
    // The first snapshot reads the symbols.
    let first = session.snapshot()?;
    // As long as a snapshot takes, so that the whole measurement falls into it.
    let milliseconds = u64::try_from(session.snapshot()?.as_millis())?.max(SHORTEST);
    let mut results = Results {
        first,
        milliseconds,
        ..Results::default()
    };
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        // By turns the one and the other comes first: the heap and the machine change meanwhile.
        let is_first = round % 2 == 0;
        let early = is_first
            .then(|| measure_with(&mut target, &mut session, milliseconds))
            .transpose()?;
        target.run(WARM_UP)?;
        let alone = target.run(milliseconds)?;
        let (with, time) = match early {
            Some(measured) => measured,
            None => measure_with(&mut target, &mut session, milliseconds)?,
        };
        results.without.0.push(alone.wall);
        results.wall_ratios.0.push(with.wall / alone.wall);
        results.cpu_ratios.0.push(with.cpu / alone.cpu);
        results.times.0.push(time.as_secs_f64() * 1000.0);
    }
    session.tracer.end()?;
    results.print();
    Ok(())
}

/// A command that runs a program on these processors, or on any.
fn on_processors(chosen: Option<Range<usize>>, program: &Path) -> Command {
    let Some(chosen) = chosen else {
        return process::command(program);
    };
    let mut command = process::command("taskset");
    let list: Vec<String> = chosen.map(|number| number.to_string()).collect();
    command.args(["--cpu-list", &list.join(",")]).arg(program);
    command
}

/// The program's operations while one snapshot is taken, and how long that took.
fn measure_with(target: &mut Target, session: &mut Session, milliseconds: u64) -> Result<(Batch, Duration)> {
    target.run(WARM_UP)?;
    session.ask();
    let start = Instant::now();
    let with = target.run(milliseconds)?;
    // Awaited in this thread, after the measurement, so that waiting takes nothing from the program.
    let written = session.await_written(start)?;
    Ok((with, written))
}

/// A run of memtrace that is asked for snapshots.
struct Session {
    tracer: Tracer,
    output: PathBuf,
    number: u32,
}

impl Session {
    fn attach(mut command: Command, pid: u32) -> Result<Self> {
        let output = workspace::scratch().join("profiles");
        if output.exists() {
            std::fs::remove_dir_all(&output)?;
        }
        command
            .args(["--pid", &pid.to_string(), "--profiles", &PROFILES.join(",")])
            .arg("--output")
            .arg(&output);
        Ok(Self {
            tracer: Tracer::attach(command, pid, Ready::Announced)?,
            output,
            number: 0,
        })
    }

    /// Asks for the next snapshot.
    fn ask(&mut self) {
        self.number += 1;
        self.tracer.signal(libc::SIGUSR1);
    }

    /// Waits for the snapshot, and returns how long it took from `start` until its last file was written.
    fn await_written(&self, start: Instant) -> Result<Duration> {
        let asked = std::time::SystemTime::now() - start.elapsed();
        let mut last = Duration::ZERO;
        for profile in PROFILES {
            // It appears under this name when it is whole.
            let file = self.output.join(format!("{profile}-{:04}.pb.gz", self.number));
            while !file.exists() {
                if start.elapsed() > LIMIT {
                    bail!("no {} within {} s of SIGUSR1", file.display(), LIMIT.as_secs());
                }
                sleep(STEP);
            }
            let written = file.metadata()?.modified()?;
            last = last.max(written.duration_since(asked).unwrap_or_default());
        }
        Ok(last)
    }

    fn snapshot(&mut self) -> Result<Duration> {
        self.ask();
        self.await_written(Instant::now())
    }
}

/// Builds `xtask/bench/go_heap`.
fn compile() -> Result<PathBuf> {
    let go = setup::program("go", "golang-go")?;
    let program = workspace::scratch().join("go_heap");
    process::run(
        process::command(go)
            .args(["build", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(workspace::root().join("xtask/bench/go_heap"))
            .env("CGO_ENABLED", "0"),
    )?;
    Ok(program)
}

/// What was measured.
#[derive(Default)]
struct Results {
    first: Duration,
    /// How long each measurement was.
    milliseconds: u64,
    /// Of further snapshots (ms).
    times: Samples,
    /// One operation without a snapshot (ns).
    without: Samples,
    /// How much longer an operation takes while a snapshot is taken.
    wall_ratios: Samples,
    /// The same of the CPU time of the program, to which whoever else uses the processors hardly adds: what reading its memory
    /// costs it.
    cpu_ratios: Samples,
}

impl Results {
    fn print(&self) {
        let range = |samples: &Samples, digits: usize| {
            let (low, high) = samples.range().unwrap_or((f64::NAN, f64::NAN));
            let median = samples.median().unwrap_or(f64::NAN);
            format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
        };
        println!(
            "\nA Go program with {HEAP} MiB of heap and {GOROUTINES} goroutines; {} pairs of measurements of {} ms. Medians and ranges.\n\
             first snapshot: {:.0} ms\n\
             further snapshots, while the program works: {} ms\n\
             one operation of the program without: {} ns\n\
             while a snapshot is taken, times as long: {}\n\
             and times the CPU time: {}",
            self.times.0.len(),
            self.milliseconds,
            self.first.as_secs_f64() * 1000.0,
            range(&self.times, 0),
            range(&self.without, 1),
            range(&self.wall_ratios, 3),
            range(&self.cpu_ratios, 3),
        );
    }
}
