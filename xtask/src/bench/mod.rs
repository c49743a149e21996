//! `cargo xtask bench pair`: what one malloc+free pair costs, untraced and under each tracer, in one run and one table.

mod code;
mod contestant;
mod costs;
mod memleak;
mod pair;
mod statistics;
mod target;
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
}

/// How to measure.
#[derive(Args)]
pub struct Options {
    /// How often every contestant has its turn.
    #[arg(long, default_value_t = 7)]
    pub rounds: u32,
    /// Length of one measurement (milliseconds).
    #[arg(long, default_value_t = 500)]
    pub milliseconds: u64,
    /// Measure only these contestants: untraced, floor, memtrace, memleak, bpftrace, heaptrack.
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
    let Bench::Pair(options) = bench;
    if !options.costs_only {
        pair::pair(options)?;
    }
    if !options.pairs_only {
        costs::costs()?;
    }
    Ok(ExitCode::SUCCESS)
}
