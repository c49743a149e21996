//! What opening files, mapping memory, making threads and touching new memory costs a program that is traced.

use std::path::Path;

use anyhow::Result;

use super::{
    Chosen,
    modes::{self, Mode},
    statistics::Samples,
};
use crate::build::{Profile, build};

/// The workloads of `xtask/bench/bystander.c` that memtrace records, and one that it does not.
const WORKLOADS: [&str; 5] = ["open", "mmap", "thread", "fault", "getppid"];
/// Before each measurement, as in `pair` (ms).
const WARM_UP: u64 = 50;

/// One way to run the program.
struct Contestant {
    /// `None`: untraced.
    mode: Option<Mode>,
    samples: Vec<Samples>,
}

impl Contestant {
    fn name(&self) -> &'static str {
        self.mode.map_or("untraced", |mode| mode.name)
    }
}

/// Measures in rounds and prints the table.
///
/// # Errors
/// When something cannot be built or started.
pub fn handles(chosen: &Chosen) -> Result<()> {
    let workloads = modes::select(&WORKLOADS, |name| name, &chosen.workloads)?;
    let program = modes::compile()?;
    let memtrace = build(Profile::Release)?;
    let mut contestants: Vec<Contestant> = [None]
        .into_iter()
        .chain(Mode::chosen(&chosen.modes)?.into_iter().map(Some))
        .map(|mode| Contestant {
            mode,
            samples: vec![Samples::default(); workloads.len()],
        })
        .collect();
    for round in 1..=chosen.timing.rounds {
        eprintln!("round {round} of {}", chosen.timing.rounds);
        contestants.retain_mut(|contestant| {
            let measured = measure(
                contestant,
                &workloads,
                &program,
                &memtrace,
                chosen.timing.milliseconds,
            );
            if let Err(error) = &measured {
                eprintln!("{}: not measured: {error:#}", contestant.name());
            }
            measured.is_ok()
        });
    }
    print(&contestants, &workloads, chosen);
    Ok(())
}

fn measure(
    contestant: &mut Contestant,
    workloads: &[&str],
    program: &Path,
    memtrace: &Path,
    milliseconds: u64,
) -> Result<()> {
    let mut target = modes::start(program)?;
    let tracer = contestant
        .mode
        .map(|mode| mode.attach(memtrace, target.pid()))
        .transpose()?;
    for (workload, samples) in workloads.iter().zip(&mut contestant.samples) {
        modes::measure(&mut target, workload, WARM_UP)?;
        samples
            .0
            .push(modes::measure(&mut target, workload, milliseconds)?);
    }
    tracer.map_or(Ok(()), super::tracer::Tracer::end)
}

fn print(contestants: &[Contestant], workloads: &[&str], chosen: &Chosen) {
    println!(
        "\nOne operation of a traced program; {} rounds of {} ms. CPU time of all its threads, the kernel's part included;\n\
         nanoseconds, median, and how many times the untraced one.\n",
        chosen.timing.rounds, chosen.timing.milliseconds
    );
    print!("| operation |");
    for contestant in contestants {
        print!(" {:>17} |", contestant.name());
    }
    print!("\n| --------- |");
    for _ in contestants {
        print!(" ----------------: |");
    }
    println!();
    for (index, workload) in workloads.iter().enumerate() {
        let median = |contestant: &Contestant| contestant.samples[index].median().unwrap_or(f64::NAN);
        let untraced = contestants
            .iter()
            .find(|contestant| contestant.mode.is_none())
            .map_or(f64::NAN, median);
        print!("| {workload:9} |");
        for contestant in contestants {
            let cpu = median(contestant);
            print!(" {:>17} |", format!("{cpu:.0} ({:.2})", cpu / untraced));
        }
        println!();
    }
}
