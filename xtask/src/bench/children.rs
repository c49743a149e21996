//! What making threads and processes costs a program, untraced, traced, and with its children followed.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::statistics::Samples;
use crate::{
    build::{Profile, build},
    process, run, workspace,
};

/// What is compared: the name and memtrace's options, none if it does not run.
const CONTESTANTS: [(&str, Option<&[&str]>); 3] = [
    ("untraced", None),
    ("memtrace -- CMD", Some(&[])),
    ("memtrace --children -- CMD", Some(&["--children"])),
];

/// Runs each in turn, and prints a table of medians.
///
/// # Errors
/// When something cannot be built or started.
pub fn children(rounds: u32) -> Result<()> {
    let program = run::compile(
        &workspace::root().join("xtask/bench/children.c"),
        &["-O2", "-pthread"],
    )?;
    let memtrace = build(Profile::Release)?;
    let mut samples: Vec<[Samples; 3]> = CONTESTANTS.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for ((_, options), samples) in CONTESTANTS.iter().zip(&mut samples) {
            for (sample, value) in samples.iter_mut().zip(measure(&program, &memtrace, *options)?) {
                sample.0.push(value);
            }
        }
    }
    println!(
        "{:28} {:>10} {:>10} {:>10}",
        "median, µs", "thread", "fork", "program"
    );
    for ((name, _), samples) in CONTESTANTS.iter().zip(&samples) {
        let medians = samples
            .each_ref()
            .map(|sample| sample.median().unwrap_or(f64::NAN));
        println!(
            "{name:28} {:10.0} {:10.0} {:10.0}",
            medians[0], medians[1], medians[2]
        );
    }
    Ok(())
}

fn measure(program: &Path, memtrace: &Path, options: Option<&[&str]>) -> Result<[f64; 3]> {
    let directory = workspace::scratch().join("bench-children");
    let mut command = match options {
        None => process::command(program),
        Some(options) => {
            let mut command = process::command(memtrace);
            command
                .arg("--quiet")
                .args(options)
                .arg("--output")
                .arg(&directory);
            command.arg("--").arg(program);
            command
        }
    };
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let values: Vec<f64> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    values
        .try_into()
        .ok()
        .with_context(|| format!("not three numbers: {text}"))
}
