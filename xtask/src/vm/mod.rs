//! `cargo xtask vm`: other kernels under qemu. Each loads every eBPF program of memtrace and runs the tests of
//! [`guest::PROGRAMS`], the same compiled tests that `cargo xtask test` runs here.

mod console;
mod cpio;
mod guest;
mod initramfs;
mod kernels;
mod machine;
mod package;
mod qemu;
mod suite;
mod verdict;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;

use self::{
    kernels::{Image, KERNELS, Kernel},
    machine::{Accel, Machine, Stopped},
    qemu::Qemu,
    verdict::Verdict,
};

/// What to boot, and how.
#[derive(Args)]
pub struct Options {
    /// Kernels to boot, such as `6.1`. Without one, says which are known.
    #[arg(conflicts_with = "all")]
    kernels: Vec<String>,
    /// Boot every known kernel.
    #[arg(long)]
    all: bool,
    /// Fetch the newest build of each kernel, even if an older one is in target/vm.
    #[arg(long)]
    fetch: bool,
    /// The Debian mirror that has the kernels [default: that of apt's own sources].
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// What executes the machine's instructions [default: kvm if it works, else tcg].
    #[arg(long, value_enum)]
    accel: Option<Accel>,
    /// How long one kernel's tests may take (seconds).
    #[arg(long, default_value_t = 900)]
    limit: u64,
}

/// How one kernel did.
struct Outcome {
    image: Image,
    accel: Accel,
    took: Duration,
    result: Result<Verdict, Stopped>,
}

/// Boots the kernels one after the other and prints a table of how they did.
///
/// # Errors
/// When a kernel is not known or cannot be fetched, or what runs inside does not compile.
pub fn vm(options: &Options) -> Result<ExitCode> {
    let chosen: Vec<Kernel> = if options.all {
        KERNELS.to_vec()
    } else {
        options
            .kernels
            .iter()
            .map(|name| Kernel::named(name))
            .collect::<Result<_>>()?
    };
    if chosen.is_empty() {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let qemu = Qemu::provide(options.mirror.as_deref())?;
    let mut images = Vec::new();
    for kernel in &chosen {
        images.push(kernel.provide(options.mirror.as_deref(), options.fetch)?);
    }
    let initramfs = initramfs::make(&guest::PROGRAMS)?;
    let mut accel = options.accel.unwrap_or_else(Accel::best);
    let mut outcomes = Vec::new();
    for (kernel, image) in chosen.iter().zip(images) {
        let machine = Machine {
            qemu: &qemu,
            name: kernel.name,
            image: &image,
            initramfs: &initramfs,
            limit: Duration::from_secs(options.limit),
        };
        outcomes.push(boot(&machine, options.accel, &mut accel));
    }
    Ok(report(&outcomes))
}

/// Boots one kernel; when KVM was only tried and the kernel does not come up, once more without, and so for the others.
fn boot(machine: &Machine<'_>, chosen: Option<Accel>, accel: &mut Accel) -> Outcome {
    let mut start = Instant::now();
    let mut result = machine.run(*accel);
    if result.as_ref().is_err_and(|stopped| !stopped.came_up) && *accel == Accel::Kvm && chosen.is_none() {
        println!("{}| KVM does not work here: emulating", machine.name);
        *accel = Accel::Tcg;
        start = Instant::now();
        result = machine.run(*accel);
    }
    Outcome {
        accel: *accel,
        took: start.elapsed(),
        result,
        image: machine.image.clone(),
    }
}

/// Says which kernels there are and what runs in them.
fn list() {
    println!("Known kernels (`cargo xtask vm NAME…`, or `--all`):");
    for kernel in KERNELS {
        let here = match kernel.cached() {
            Some(image) => format!("{} is in target/vm", image.release),
            None => "not fetched so far".to_owned(),
        };
        println!("  {:8} Debian {:18} {here}", kernel.name, kernel.suite);
    }
    println!("In each of them these tests run:");
    for test in guest::PROGRAMS.iter().flat_map(|program| program.tests) {
        println!("  {test}");
    }
}

/// One line for each kernel; what failed, above.
fn report(outcomes: &[Outcome]) -> ExitCode {
    println!();
    let mut good = true;
    for Outcome { image, result, .. } in outcomes {
        match result {
            Ok(verdict) => {
                for failure in &verdict.failed {
                    println!("failed: {}: {failure}", image.release);
                }
            }
            Err(stopped) => println!("failed: {}", stopped.why),
        }
    }
    println!(
        "{:32} {:5} {:>9} {:>7} {:>7} {:>6}",
        "kernel", "accel", "programs", "passed", "failed", "time"
    );
    for outcome in outcomes {
        let (programs, passed, failed) = match &outcome.result {
            Ok(verdict) => {
                good &= verdict.is_good();
                let programs = verdict.programs.map_or("?".to_owned(), |count| count.to_string());
                (programs, verdict.passed.len(), verdict.failed.len())
            }
            Err(_) => {
                good = false;
                ("?".to_owned(), 0, 1)
            }
        };
        println!(
            "{:32} {:5} {programs:>9} {passed:>7} {failed:>7} {:>4} s",
            outcome.image.release,
            outcome.accel.name(),
            outcome.took.as_secs()
        );
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
