//! The ways to run memtrace that `handles` and `bystander` compare, and the program that they run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    statistics::Samples,
    target::Target,
    tracer::{Ready, Tracer},
};
use crate::{process, run, workspace};

/// A way to run memtrace.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// As tables and `--modes` call it.
    pub name: &'static str,
    options: &'static [&'static str],
}

/// All, in the order of the tables.
const MODES: [Mode; 4] = [
    Mode {
        name: "fd+mmap",
        options: &["--profiles", "fd,mmap"],
    },
    Mode {
        name: "default",
        options: &[],
    },
    Mode {
        name: "heap",
        options: &["--profiles", "heap"],
    },
    Mode {
        name: "growth",
        options: &["--growth"],
    },
];

impl Mode {
    /// The modes of these names; all if there are none.
    ///
    /// # Errors
    /// When a name is unknown.
    pub fn chosen(names: &[String]) -> Result<Vec<Self>> {
        select(&MODES, |mode| mode.name, names)
    }

    /// Attaches to a process.
    ///
    /// # Errors
    /// When memtrace does not start.
    pub fn attach(&self, memtrace: &Path, pid: u32) -> Result<Tracer> {
        let output = workspace::scratch().join("profiles");
        if output.exists() {
            fs::remove_dir_all(&output)?;
        }
        let mut command = process::command(memtrace);
        command
            .args(self.options)
            .args(["--quiet", "--pid", &pid.to_string(), "--output"])
            .arg(&output);
        Tracer::attach(command, pid, Ready::Announced).with_context(|| format!("mode {}", self.name))
    }
}

/// Those of `all` that are named; all if no name is given.
///
/// # Errors
/// When a name is unknown.
pub fn select<T: Copy>(all: &[T], name: impl Fn(&T) -> &'static str, names: &[String]) -> Result<Vec<T>> {
    if let Some(unknown) = names
        .iter()
        .find(|wanted| all.iter().all(|one| name(one) != **wanted))
    {
        let known: Vec<_> = all.iter().map(&name).collect();
        bail!("there is no `{unknown}`; choose of {}", known.join(", "));
    }
    let is_wanted = |one: &&T| names.is_empty() || names.iter().any(|wanted| *wanted == name(one));
    Ok(all.iter().filter(is_wanted).copied().collect())
}

/// Compiles `xtask/bench/bystander.c`.
///
/// # Errors
/// When there is no C compiler.
pub fn compile() -> Result<PathBuf> {
    let source = workspace::root().join("xtask/bench/bystander.c");
    Ok(run::compile(&source, &run::CFLAGS)?.canonicalize()?)
}

/// Starts it, and waits until it is there.
///
/// # Errors
/// When it does not start.
pub fn start(program: &Path) -> Result<Target> {
    let mut target = Target::spawn(process::command(program))?;
    measure(&mut target, "getppid", 1)?;
    Ok(target)
}

/// A measurement is the median of so many: what disturbs the machine for a moment is left out.
const SLICES: u64 = 10;

/// CPU time of one operation of a workload (ns), the kernel's part included.
///
/// # Errors
/// When the program died.
pub fn measure(target: &mut Target, workload: &str, milliseconds: u64) -> Result<f64> {
    let mut slices = Samples::default();
    for _ in 0..SLICES {
        let slice = target.batch(&format!("{workload} {}", milliseconds.div_ceil(SLICES)))?;
        slices.0.push(slice.cpu);
    }
    slices.median().context("nothing was measured")
}
