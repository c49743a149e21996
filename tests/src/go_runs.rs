//! What tests of Go programs look for in memtrace's report, and in the program's own memory.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use object::{Object, ObjectSymbol};

use crate::{
    Result,
    go_build::{GoProgram, Toolchain, Variant},
    serial, skip,
};

/// The first lines of a report: what is wrong is to be seen without scrolling.
const FIRST_LINES: usize = 12;

/// The lines that a report begins with.
pub fn first_lines(report: &str) -> Vec<&str> {
    report
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(FIRST_LINES)
        .collect()
}

/// The functions that grow, in the order in which the first lines of a report name them.
pub fn growing(report: &str) -> Vec<&str> {
    let lines = first_lines(report).into_iter();
    let lines = lines.filter_map(|line| line.strip_prefix("Growing: ")?.split_once(" at "));
    lines
        .map(|(_, function)| function.split(',').next().unwrap_or(function))
        .collect()
}

/// Insists that a report begins with the growth of this function.
pub fn check_names_first(report: &str, function: &str) -> Result<()> {
    ensure!(
        growing(report).first() == Some(&function),
        "the report does not begin with {function}:\n{report}"
    );
    Ok(())
}

/// The rate of the heap profile in a running program that has a symbol table and is not position-independent.
pub fn mem_profile_rate(program: &Path, pid: u32) -> Result<u64> {
    let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("parsing {}", program.display()))?;
    let mut symbols = file.symbols();
    let symbol = symbols.find(|symbol| symbol.name() == Ok("runtime.MemProfileRate"));
    let address = symbol
        .context("the program has no runtime.MemProfileRate")?
        .address();
    let path = format!("/proc/{pid}/mem");
    let memory = fs::File::open(&path).with_context(|| format!("opening {path}"))?;
    let mut value = [0; 8];
    memory
        .read_exact_at(&mut value, address)
        .with_context(|| format!("reading {path}"))?;
    Ok(u64::from_le_bytes(value))
}

/// Runs a test, in its turn, with a program as each of these builds makes it, and the version of Go; with fewer where a version
/// cannot be had.
pub fn with_builds(
    program: &GoProgram,
    builds: &[(&str, Variant)],
    test: impl Fn(&str, PathBuf) -> Result<()>,
) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    for (version, variant) in builds {
        let Some(toolchain) = Toolchain::of(version)? else {
            continue;
        };
        let built = program.path(&toolchain, *variant)?;
        test(version, built).with_context(|| format!("{toolchain}, {variant:?}"))?;
    }
    Ok(())
}
