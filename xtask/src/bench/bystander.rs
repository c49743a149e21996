//! What a program that is not traced loses while memtrace traces another one, which sleeps.

use std::path::Path;

use anyhow::{Result, bail};

use super::{
    Chosen,
    modes::{self, Mode},
    software::Software,
    statistics::Samples,
    target::{Target, Waiting},
};
use crate::{
    build::{Profile, build},
    process,
};

/// What `xtask/bench/bystander.c` does.
const WORKLOADS: [&str; 8] = ["getppid", "dd", "pipe", "pread", "open", "mmap", "fault", "tcp"];
/// Real programs.
const SOFTWARE: [&str; 3] = ["find", "tar", "redis"];
/// At most so many times as much CPU time may it use.
const GOAL: f64 = 1.03;

/// The programs that are measured. They run on while memtrace comes and goes.
struct Bystanders {
    target: Target,
    workloads: Vec<&'static str>,
    software: Vec<Software>,
    milliseconds: u64,
}

impl Bystanders {
    fn start(chosen: &Chosen) -> Result<Self> {
        let all: Vec<&'static str> = WORKLOADS.into_iter().chain(SOFTWARE).collect();
        let names = modes::select(&all, |name| name, &chosen.workloads)?;
        let mut software = Vec::new();
        if names.iter().any(|name| SOFTWARE.contains(name)) {
            software = Software::installed()?;
            software.retain(|one| names.contains(&one.name()));
        }
        Ok(Self {
            target: modes::start(&modes::compile()?)?,
            workloads: names
                .into_iter()
                .filter(|name| WORKLOADS.contains(name))
                .collect(),
            software,
            milliseconds: chosen.timing.milliseconds,
        })
    }

    fn names(&self) -> Vec<&'static str> {
        let software = self.software.iter().map(Software::name);
        self.workloads.iter().copied().chain(software).collect()
    }

    /// CPU time of one operation of each (ns).
    fn measure(&mut self) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        for workload in &self.workloads {
            values.push(modes::measure(&mut self.target, workload, self.milliseconds)?);
        }
        for software in &self.software {
            values.push(software.measure()?);
        }
        Ok(values)
    }
}

/// What was measured with one mode: by workload, without and with memtrace, and the ratios of each pair.
struct Column {
    mode: Mode,
    base: Vec<Samples>,
    traced: Vec<Samples>,
    ratios: Vec<Samples>,
}

/// Measures in turns, without and with memtrace, so that what disturbs the machine for a while disturbs both; and prints the
/// table.
///
/// # Errors
/// When something cannot be built or started.
pub fn bystander(chosen: &Chosen) -> Result<()> {
    let memtrace = build(Profile::Release)?;
    let mut bystanders = Bystanders::start(chosen)?;
    let traced = Waiting::start(process::command("sleep").arg("infinity"))?;
    let names = bystanders.names();
    let empty = || vec![Samples::default(); names.len()];
    let mut columns: Vec<Column> = Mode::chosen(&chosen.modes)?
        .into_iter()
        .map(|mode| Column {
            mode,
            base: empty(),
            traced: empty(),
            ratios: empty(),
        })
        .collect();
    // Caches fill.
    bystanders.measure()?;
    for round in 1..=chosen.timing.rounds {
        eprintln!("round {round} of {}", chosen.timing.rounds);
        columns.retain_mut(|column| {
            let measured = pair(column, &mut bystanders, &memtrace, traced.pid());
            if let Err(error) = &measured {
                eprintln!("{}: not measured: {error:#}", column.mode.name);
            }
            measured.is_ok()
        });
    }
    if columns.is_empty() {
        bail!("nothing could be measured");
    }
    print(&columns, &names, chosen);
    Ok(())
}

fn pair(column: &mut Column, bystanders: &mut Bystanders, memtrace: &Path, pid: u32) -> Result<()> {
    let base = bystanders.measure()?;
    let tracer = column.mode.attach(memtrace, pid)?;
    let traced = bystanders.measure()?;
    tracer.end()?;
    for (index, (base, traced)) in base.into_iter().zip(traced).enumerate() {
        column.base[index].0.push(base);
        column.traced[index].0.push(traced);
        column.ratios[index].0.push(traced / base);
    }
    Ok(())
}

fn print(columns: &[Column], names: &[&str], chosen: &Chosen) {
    println!(
        "\nOne operation of a program that is not traced, while memtrace traces another one; {} rounds of {} ms.\n\
         CPU time of all its threads, the kernel's part included: without memtrace and with it, in nanoseconds, medians; and\n\
         the median of the ratios of the pairs (smallest to largest). Least: the ratio of the smallest values, which says more\n\
         on a machine that is busy with other things.\n",
        chosen.timing.rounds, chosen.timing.milliseconds
    );
    println!("| mode    | operation |    without |       with | ratio | range           | least |");
    println!("| ------- | --------- | ---------: | ---------: | ----: | --------------: | ----: |");
    let mut worst = (0.0, String::new());
    for column in columns {
        for (index, name) in names.iter().enumerate() {
            let (Some(base), Some(traced), Some(ratio), Some((low, high))) = (
                column.base[index].median(),
                column.traced[index].median(),
                column.ratios[index].median(),
                column.ratios[index].range(),
            ) else {
                continue;
            };
            let least = |samples: &[Samples]| samples[index].range().map_or(f64::NAN, |range| range.0);
            let mode = column.mode.name;
            println!(
                "| {mode:7} | {name:9} | {base:10.0} | {traced:10.0} | {ratio:5.3} | {:>15} | {:5.3} |",
                format!("{low:.3} to {high:.3}"),
                least(&column.traced) / least(&column.base)
            );
            if ratio > worst.0 {
                worst = (ratio, format!("{name} with {mode}"));
            }
        }
    }
    let (ratio, what) = worst;
    let result = if ratio <= GOAL { "met" } else { "missed" };
    println!("\nThe worst: {what}, {ratio:.3} times (goal: at most {GOAL}, {result})");
}
