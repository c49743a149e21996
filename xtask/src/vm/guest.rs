//! What runs inside: the tests, and the script that runs them as the machine's first process.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{process, workspace};

/// A program of tests, and those of its tests that run in every kernel.
#[derive(Clone, Copy, Debug)]
pub struct TestProgram {
    /// The directory of its package, in the workspace.
    package: &'static str,
    /// How cargo selects it.
    selection: &'static [&'static str],
    /// Full names of tests.
    pub tests: &'static [&'static str],
    /// Tests that run here first, because they build the targets that the others trace: there is no compiler inside.
    builders: &'static [&'static str],
}

/// Everything that runs in every kernel, in this order.
pub const PROGRAMS: [TestProgram; 3] = [
    TestProgram {
        package: "tracer",
        selection: &["--lib"],
        tests: &[
            "kernel::tests::every_program_is_accepted",
            "probe::tests::emulation::the_kernel_emulates_what_the_rules_say",
            "probe::tests::kernel::glibc_sites_fire_once_per_call",
        ],
        builders: &[],
    },
    TestProgram {
        package: "tests",
        selection: &["--test", "ground_truth"],
        tests: &["one_thread", "attached_twice"],
        builders: &["the_books_add_up"],
    },
    TestProgram {
        package: "tests",
        selection: &["--test", "processes"],
        tests: &[
            "a_program_is_traced_from_its_first_instruction",
            "children_of_any_thread_are_followed",
            "an_exec_ends_one_heap_and_begins_another",
        ],
        builders: &["a_family_keeps_books_of_itself"],
    },
];

/// A line that the script prints begins with this, so that it is told from a test's.
pub const MARK: &str = "vm: ";
/// After [`MARK`]: the first line, followed by the kernel's release.
pub const KERNEL: &str = "kernel ";
/// After [`MARK`]: a test begins, followed by its name.
pub const BEGIN: &str = "test ";
/// After [`MARK`]: it ended, followed by its exit status.
pub const END: &str = "status ";
/// After [`MARK`]: something that the kernel's own log complains of.
pub const COMPLAINT: &str = "complaint ";
/// After [`MARK`]: everything ran.
pub const DONE: &str = "done";

/// What a kernel writes to its log when it found something wrong with itself. A soft lockup is none: an emulated
/// processor can be that slow.
const COMPLAINTS: &str = "WARNING: |BUG: [^s]|Oops|general protection|refcount_t|suspicious RCU";

/// A program of tests, compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Which one.
    pub program: TestProgram,
    /// The executable.
    pub path: PathBuf,
}

impl TestProgram {
    /// Compiles it and builds its targets.
    ///
    /// # Errors
    /// When something does not compile.
    pub fn compile(self) -> Result<Compiled> {
        let mut cargo = process::command("cargo");
        cargo
            .current_dir(self.directory())
            .args(["test", "--no-run", "--message-format=json-render-diagnostics"])
            .args(self.selection)
            .stderr(Stdio::inherit());
        println!("+ {}", process::line(&cargo));
        let output = cargo.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("`{}` failed ({})", process::line(&cargo), output.status);
        }
        let path = test_program(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("`{}` built no test program", process::line(&cargo)))?;
        for builder in self.builders {
            let mut build = process::command(&path);
            build.current_dir(self.directory()).args(["--exact", builder]);
            process::run(&mut build)?;
        }
        Ok(Compiled { program: self, path })
    }

    /// Where cargo would run it.
    pub fn directory(&self) -> PathBuf {
        workspace::root().join(self.package)
    }
}

/// The test program in cargo's messages.
fn test_program(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The script: busybox's shell runs it as process 1.
pub fn script(programs: &[Compiled], memtrace: &Path) -> String {
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin MEMTRACE_BIN={}\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tracefs tracefs /sys/kernel/tracing\n\
         mount -t tmpfs tmpfs /tmp\n\
         echo \"{MARK}{KERNEL}$(uname -r)\"\n",
        memtrace.display()
    );
    for Compiled { program, path } in programs {
        script.push_str(&format!("cd {}\n", program.directory().display()));
        for test in program.tests {
            script.push_str(&format!(
                "echo '{MARK}{BEGIN}{test}'\n\
                 {} --exact {test} --nocapture\n\
                 echo \"{MARK}{END}$?\"\n",
                path.display()
            ));
        }
    }
    script.push_str(&format!(
        "dmesg | grep -E '{COMPLAINTS}' | sed 's/^/{MARK}{COMPLAINT}/'\n\
         echo '{MARK}{DONE}'\n\
         poweroff -f\n"
    ));
    script
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::test_program;

    #[test]
    fn the_test_program_is_told_from_other_artifacts() {
        let messages = r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/memtrace"}
{"reason":"compiler-artifact","profile":{"test":true},"executable":null}
{"reason":"compiler-artifact","profile":{"test":true},"executable":"/t/deps/ground_truth-12"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            test_program(messages).as_deref(),
            Some(Path::new("/t/deps/ground_truth-12"))
        );
    }
}
