//! `cargo xtask bench`: what one malloc+free pair costs, untraced and under each tracer, in one run and one table:
//! `pair` in one thread, `sampled` when memtrace records a sample, `threads` in many threads at once; what following
//! `children` costs; what opening, mapping and touching memory costs a traced program (`handles`), and what tracing one costs
//! all others (`bystander`); what reading a `go` program costs.

mod bystander;
mod children;
mod code;
mod contestant;
mod costs;
mod go;
mod handles;
mod memleak;
mod modes;
mod pair;
mod software;
mod statistics;
mod target;
mod threads;
mod tracer;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::process;

/// What to measure.
#[derive(Subcommand)]
pub enum Bench {
    /// The cost of a malloc+free pair under each tracer, then memtrace's own costs.
    Pair(Options),
    /// The same with memtrace recording one block in 512 KiB, against the cost of the probes alone.
    Sampled(Timing),
    /// The same in 1, 2, 8 and 32 threads at once.
    Threads(Timing),
    /// The cost of making threads, processes and programs, with and without following them.
    Children {
        /// How often every contestant has its turn.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// What opening files, mapping memory, making threads and touching new memory costs a traced program.
    Handles(Chosen),
    /// What a program that is not traced loses while memtrace traces another one.
    Bystander(Chosen),
    /// How long a snapshot of a Go program with a large heap takes, and what the program loses meanwhile.
    Go {
        /// How often it is measured without a snapshot and with one.
        #[arg(long, default_value_t = 15)]
        rounds: u32,
        /// Keep the program on one processor and memtrace off it, so that they do not compete for it.
        #[arg(long)]
        apart: bool,
    },
}

/// What to measure of many.
#[derive(Args, Clone, Debug)]
pub struct Chosen {
    #[command(flatten)]
    pub timing: Timing,
    /// Only with these of memtrace's modes: fd+mmap, default, heap, growth.
    #[arg(long, value_delimiter = ',')]
    pub modes: Vec<String>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    pub workloads: Vec<String>,
}

/// How long to measure.
#[derive(Args, Clone, Copy, Debug)]
pub struct Timing {
    /// How often every contestant has its turn.
    #[arg(long, default_value_t = 7)]
    pub rounds: u32,
    /// Length of one measurement (milliseconds).
    #[arg(long, default_value_t = 500)]
    pub milliseconds: u64,
}

/// How to measure.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    pub timing: Timing,
    /// Measure only these contestants: untraced, floor, memtrace, sampled, memleak, bpftrace, heaptrack.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Do not measure memtrace's idle, attach and snapshot costs.
    #[arg(long, conflicts_with = "costs_only")]
    pub pairs_only: bool,
    /// Measure only these.
    #[arg(long)]
    pub costs_only: bool,
}

/// Measures and prints the table.
///
/// # Errors
/// When not root, or a contestant cannot be provided or started.
pub fn bench(bench: &Bench) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("benchmarks attach probes, so they need root");
    }
    match bench {
        Bench::Pair(options) => {
            if !options.costs_only {
                pair::pair(&pair::chosen(&options.only)?, options.timing)?;
            }
            if !options.pairs_only {
                costs::costs()?;
            }
        }
        Bench::Sampled(timing) => pair::sampled(*timing)?,
        Bench::Threads(timing) => threads::threads(*timing)?,
        Bench::Children { rounds } => children::children(*rounds)?,
        Bench::Handles(chosen) => handles::handles(chosen)?,
        Bench::Bystander(chosen) => bystander::bystander(chosen)?,
        Bench::Go { rounds, apart } => go::go(*rounds, *apart)?,
    }
    Ok(ExitCode::SUCCESS)
}
