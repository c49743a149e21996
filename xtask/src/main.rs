//! memtrace's developer commands: `cargo xtask setup`, `build`, `dist`, `run`, `test`, `bench` and `vm`, one module each.

mod bench;
mod build;
mod dist;
mod process;
mod run;
mod setup;
mod signal;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// memtrace's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building memtrace needs. Does nothing when all is there.
    Setup {
        /// Also install the programs that the end-to-end tests trace and use.
        #[arg(long)]
        tests: bool,
    },
    /// Build memtrace, its eBPF programs included.
    Build {
        /// With optimizations.
        #[arg(long)]
        release: bool,
    },
    /// Build memtrace as one static file, for images without a system: target/dist/memtrace.
    Dist,
    /// Trace the bundled demo for ten seconds; or pass ARGS to memtrace, after `--`.
    Run {
        /// Arguments of memtrace.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run every check: format, lints, unit tests and end-to-end tests.
    Test {
        /// Run only the tests whose name contains this text.
        filter: Option<String>,
    },
    /// Measure what tracing costs.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Boot other kernels under qemu: load every eBPF program there and run an end-to-end heap test.
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup { tests } => setup::setup(tests).map(|()| ExitCode::SUCCESS),
        Command::Build { release } => {
            build::build(build::Profile::from_release(release)).map(|_| ExitCode::SUCCESS)
        }
        Command::Dist => dist::dist().map(|_| ExitCode::SUCCESS),
        Command::Run { args } if args.is_empty() => run::demo(),
        Command::Run { args } => run::memtrace(&args),
        Command::Bench(bench) => bench::bench(&bench),
        Command::Vm(options) => vm::vm(&options),
        Command::Test { filter } => test::test(filter.as_deref()),
    }
}
