//! `cargo xtask test`: every check there is, in the order of what fails fastest.

use std::{
    env, fs,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{dist, process, setup, workspace};

/// What may be skipped in CI, one a line: `part of the skip's reason # why nothing else is possible`.
const ALLOWED_SKIPS: &str = ".ci/allowed-skips";

/// What ran, and how it went.
#[derive(Default)]
struct Tally {
    passed: usize,
    /// How many tests ran, other checks not counted.
    tests: usize,
    failed: Vec<String>,
    /// Why something was skipped.
    skipped: Vec<String>,
}

/// Runs the checks, or with a filter only the tests whose names contain it.
///
/// # Errors
/// When they cannot be run at all.
pub fn test(filter: Option<&str>) -> Result<ExitCode> {
    if !process::is_root() {
        bail!(
            "the tests load eBPF programs into the kernel and trace other users' processes, so they need root; run\n\
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask test"
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
    // Targets with allocators in C: minutes the first time, and a test that builds them itself would seem to hang.
    for allocator in ["jemalloc", "mimalloc"] {
        let directory = workspace::target().join("rust-allocators").join(allocator);
        let directory = directory
            .to_str()
            .context("the path of the build directory is no text")?;
        let mut build = vec!["build", "--release", "--locked", "--features", allocator];
        build.extend(["--manifest-path", "tests/targets/rust_allocators/Cargo.toml"]);
        build.extend(["--target-dir", directory]);
        tally.check(&format!("a Rust program with {allocator}"), &build)?;
    }
    tally.dist();
    build_node();
    tally.tests(
        "unit tests",
        &["--workspace", "--exclude", "memtrace-tests"],
        filter,
    )?;
    tally.tests("end-to-end tests", &["--package", "memtrace-tests"], filter)?;
    if let (Some(filter), 0) = (filter, tally.tests) {
        tally.failed.push(format!("no test's name contains `{filter}`"));
    }
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

    /// Builds the static program, which runs in a container of the tests.
    fn dist(&mut self) {
        println!("\n== memtrace as one static file: cargo xtask dist");
        match dist::dist() {
            Ok(_) => self.passed += 1,
            Err(error) => self.failed.push(format!("cargo xtask dist: {error:#}")),
        }
    }

    /// Runs tests and reads from their output how they went.
    fn tests(&mut self, name: &str, packages: &[&str], filter: Option<&str>) -> Result<()> {
        let mut cargo = cargo(&["test", "--no-fail-fast"]);
        // Passing tests may say why they skipped something; the test runner hides that by default.
        cargo.args(packages).arg("--").arg("--show-output").args(filter);
        cargo.env("MEMTRACE_BIN", workspace::target().join("debug/memtrace"));
        cargo.env("MEMTRACE_STATIC_BIN", dist::path());
        println!("\n== {name}: {}", process::line(&cargo));
        let mut tests = Output::default();
        let status = process::read_lines(&mut cargo, |line| {
            println!("{line}");
            tests.read(line);
        })?;
        self.tests += tests.passed + tests.failed.len() + tests.ignored.len();
        if !status.success() && tests.failed.is_empty() {
            tests
                .failed
                .push(format!("{name}: a test program did not compile or crashed"));
        }
        // A test that skips itself passes, as far as the test runner knows.
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
        for reason in &self.skipped {
            println!("skipped: {reason}");
            if in_ci && !allowed.iter().any(|allowed| reason.contains(allowed)) {
                self.failed
                    .push(format!("a skip that {ALLOWED_SKIPS} does not allow: {reason}"));
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

/// Builds the Kubernetes of the tests: minutes the first time. When that fails, its test says why and skips itself.
fn build_node() {
    let script = workspace::root().join("tests/kubernetes/node");
    let mut build = process::command(script);
    if let Err(error) = process::run(build.args(["build", "--control-plane"])) {
        println!("no Kubernetes for the tests: {error:#}");
    }
}

/// What the test programs of one `cargo test` printed, as far as it was read.
#[derive(Default)]
struct Output {
    passed: usize,
    failed: Vec<String>,
    /// Why tests skipped themselves, one each.
    skipped: Vec<String>,
    /// Tests marked `#[ignore]`, and why.
    ignored: Vec<String>,
}

impl Output {
    fn read(&mut self, line: &str) {
        if let Some(reason) = line.trim_start().strip_prefix("SKIPPED:") {
            self.skipped.push(reason.trim().into());
        } else if let Some((test, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            match result.split_once(", ").unwrap_or((result, "ignored")) {
                ("ok", _) => self.passed += 1,
                ("FAILED", _) => self.failed.push(test.into()),
                ("ignored", reason) => self.ignored.push(format!("{test}: {reason}")),
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

/// The texts in [`ALLOWED_SKIPS`].
fn allowed_skips() -> Result<Vec<String>> {
    let path = workspace::root().join(ALLOWED_SKIPS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| match line.split_once(" # ") {
            Some((skip, why)) if !why.trim().is_empty() => Ok(skip.trim().to_owned()),
            _ => bail!("{}: `{line}` does not say why, after ` # `", path.display()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Output;

    #[test]
    fn output_of_the_test_runner_is_counted() {
        let mut output = Output::default();
        for line in [
            "test walk::tests::plt ... ok",
            "test src/lib.rs - walk (line 3) ... ok",
            "test planner::glibc_free ... FAILED",
            "test slow ... ignored, takes an hour",
            "SKIPPED: gdb is not installed",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            output.read(line);
        }
        assert_eq!(output.passed, 2);
        assert_eq!(output.failed, ["planner::glibc_free"]);
        assert_eq!(output.ignored, ["slow: takes an hour"]);
        assert_eq!(output.skipped, ["gdb is not installed"]);
    }
}
