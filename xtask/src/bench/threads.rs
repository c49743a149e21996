//! Many threads at once: does what a pair costs depend on how many there are?

use std::thread::available_parallelism;

use anyhow::Result;

use super::{
    Timing,
    contestant::{Contestant, Kind},
    statistics::Samples,
    target::{Batch, Program},
};

const COUNTS: [u32; 4] = [1, 2, 8, 32];
/// The first is subtracted from the others.
const KINDS: [Kind; 4] = [Kind::Untraced, Kind::Floor, Kind::Memtrace, Kind::Sampled];
/// See `pair`: the threads are new each time, the process is not (ms).
const WARM_UP: u64 = 50;

/// What was measured of one contestant with so many threads.
#[derive(Default)]
struct Cell {
    cpu: Samples,
    /// Time that passed times the number of cores that the threads can use, per pair.
    cores: Samples,
}

/// Measures in rounds and prints the table.
///
/// # Errors
/// When a contestant cannot run.
pub fn threads(timing: Timing) -> Result<()> {
    let program = Program::prepare()?;
    let cores = available_parallelism()?.get();
    let contestants: Vec<Contestant> = KINDS
        .into_iter()
        .map(Contestant::provide)
        .collect::<Result<_>>()?;
    let mut cells: Vec<Vec<Cell>> = KINDS
        .iter()
        .map(|_| COUNTS.iter().map(|_| Cell::default()).collect())
        .collect();
    for round in 1..=timing.rounds {
        eprintln!("round {round} of {}", timing.rounds);
        for (contestant, cells) in contestants.iter().zip(&mut cells) {
            let mut session = contestant.start(&program)?;
            session.target.run(WARM_UP)?;
            for (count, cell) in COUNTS.into_iter().zip(cells) {
                let Batch { wall, cpu } = session.target.run_threads(count, timing.milliseconds)?;
                cell.cpu.0.push(cpu);
                cell.cores.0.push(wall * used_cores(count, cores));
            }
            session.end()?;
        }
    }
    print(&cells, cores, timing);
    Ok(())
}

fn used_cores(threads: u32, cores: usize) -> f64 {
    f64::from(threads).min(cores as f64)
}

fn print(cells: &[Vec<Cell>], cores: usize, timing: Timing) {
    println!(
        "\nWhat tracing adds to one malloc+free pair, 64 to 127 bytes, 16 frames deep, on {cores} cores; {} rounds of {} ms.\n\
         CPU: CPU time of all threads; elapsed: time that passed times the cores that the threads can use. Nanoseconds, median.\n",
        timing.rounds, timing.milliseconds
    );
    print!("| threads |");
    KINDS[1..]
        .iter()
        .for_each(|kind| print!(" {kind} CPU | elapsed | / 1 thread |"));
    print!("\n| ------: |");
    KINDS[1..].iter().for_each(|_| print!(" ---: | ---: | ---: |"));
    println!();
    let added = |kind: usize, count: usize, samples: fn(&Cell) -> &Samples| {
        let median = |kind: usize| samples(&cells[kind][count]).median().unwrap_or(f64::NAN);
        median(kind) - median(0)
    };
    for (row, count) in COUNTS.iter().enumerate() {
        print!("| {count:7} |");
        for kind in 1..KINDS.len() {
            let cpu = added(kind, row, |cell| &cell.cpu);
            let elapsed = added(kind, row, |cell| &cell.cores);
            let ratio = cpu / added(kind, 0, |cell| &cell.cpu);
            print!(" {cpu:.0} | {elapsed:.0} | {ratio:.2} |");
        }
        println!();
    }
}
