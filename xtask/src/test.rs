//! `cargo xtask test`: every check there is, in the order of what fails fastest.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, setup, workspace};

/// Tests that may be skipped in CI, one a line: `name of the test: why`.
const ALLOWED_SKIPS: &str = ".ci/allowed-skips";

/// What ran, and how it went.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    /// What was skipped, and why.
    skipped: BTreeMap<String, String>,
}

/// Runs the checks, or with a filter only the tests whose names contain it.
///
/// # Errors
/// When they cannot be run at all.
pub fn test(filter: Option<&str>) -> Result<ExitCode> {
    if !process::is_root() {
        bail!(
            "the tests load eBPF programs into the kernel and trace other users' processes, so they need root; run\n\
             sudo --preserve-env=PATH,CARGO_HOME,RUSTUP_HOME,HOME cargo xtask test"
        );
    }
    setup::setup(true)?;
    let mut tally = Tally::default();
    if filter.is_none() {
        tally.check("format", &["fmt", "--all", "--check"])?;
        tally.check(
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ],
        )?;
    }
    tally.check(
        "memtrace and its eBPF programs",
        &["build", "--package", "memtrace", "--bins"],
    )?;
    tally.tests(
        "unit tests",
        &["--workspace", "--exclude", "memtrace-tests"],
        filter,
    )?;
    tally.tests("end-to-end tests", &["--package", "memtrace-tests"], filter)?;
    tally.report()
}

impl Tally {
    /// Runs one cargo command that passes or fails as a whole.
    fn check(&mut self, name: &str, args: &[&str]) -> Result<()> {
        let mut cargo = cargo(args);
        println!("\n== {name}: {}", process::line(&cargo));
        if cargo.status().context("cannot start cargo")?.success() {
            self.passed += 1;
        } else {
            self.failed.push(name.into());
        }
        Ok(())
    }

    /// Runs tests and reads from their output how they went.
    fn tests(&mut self, name: &str, packages: &[&str], filter: Option<&str>) -> Result<()> {
        let mut cargo = cargo(&["test", "--no-fail-fast"]);
        // Passing tests print why they skipped something; the test runner hides that by default.
        cargo.args(packages).arg("--").arg("--show-output").args(filter);
        cargo.env("MEMTRACE_BIN", workspace::target().join("debug/memtrace"));
        println!("\n== {name}: {}", process::line(&cargo));
        let mut child = cargo
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start cargo")?;
        let stdout = child.stdout.take().context("cargo has no stdout")?;
        let mut tests = Output::default();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            std::io::stdout().flush()?;
            tests.read(&line);
        }
        let succeeded = child.wait()?.success();
        if !succeeded && tests.failed.is_empty() {
            tests
                .failed
                .push(format!("{name}: a test program did not compile or crashed"));
        }
        self.passed += tests.passed.saturating_sub(tests.skipped.len());
        self.failed.append(&mut tests.failed);
        self.skipped.append(&mut tests.skipped);
        self.skipped.append(&mut tests.ignored);
        Ok(())
    }

    /// Says what went wrong; the numbers are alone on the last line.
    fn report(&mut self) -> Result<ExitCode> {
        let in_ci = env::var_os("CI").is_some_and(|value| value == "true" || value == "1");
        let allowed = allowed_skips()?;
        println!();
        for (test, reason) in &self.skipped {
            println!("skipped: {test}: {reason}");
            if in_ci && !allowed.contains(test) {
                self.failed.push(format!(
                    "{test} was skipped, which {ALLOWED_SKIPS} does not allow"
                ));
            }
        }
        for failure in &self.failed {
            println!("failed: {failure}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
        Ok(if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// What the test programs of one `cargo test` printed, as far as it was read.
#[derive(Default)]
struct Output {
    passed: usize,
    failed: Vec<String>,
    skipped: BTreeMap<String, String>,
    ignored: BTreeMap<String, String>,
    /// The test whose output is being read.
    section: String,
}

impl Output {
    fn read(&mut self, line: &str) {
        if let Some(reason) = line.trim_start().strip_prefix("SKIPPED:") {
            self.skipped
                .entry(self.section.clone())
                .or_insert_with(|| reason.trim().into());
        } else if let Some(test) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.section = test.into();
        } else if let Some((test, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            match result.split_once(',').map_or(result, |(word, _)| word) {
                "ok" => self.passed += 1,
                "FAILED" => self.failed.push(test.into()),
                "ignored" => {
                    let reason = result.split_once(", ").map_or("ignored", |(_, reason)| reason);
                    self.ignored.insert(test.into(), reason.into());
                }
                _ => {}
            }
        }
    }
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace::root()).args(args);
    cargo
}

/// The tests that [`ALLOWED_SKIPS`] names.
fn allowed_skips() -> Result<Vec<String>> {
    let path = workspace::root().join(ALLOWED_SKIPS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (test, reason) = line.split_once(": ").unwrap_or((line, ""));
            if reason.trim().is_empty() {
                bail!("{}: `{line}` gives no reason", path.display());
            }
            Ok(test.trim().to_owned())
        })
        .collect()
}
