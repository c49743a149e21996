//! Reading from a machine's console how its tests went.

use super::guest::{BEGIN, COMPLAINT, DONE, END, KERNEL, MARK};

/// What the console has said so far.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The kernel's release, once its first process runs.
    pub release: Option<String>,
    /// How many programs the kernel accepted.
    pub programs: Option<u32>,
    /// Names of the tests that passed.
    pub passed: Vec<String>,
    /// What failed, and why.
    pub failed: Vec<String>,
    /// Whether the script came to its end.
    pub done: bool,
    test: Option<String>,
    ran: bool,
    skipped: Option<String>,
}

impl Verdict {
    /// Takes one line of the console.
    pub fn read(&mut self, line: &str) {
        if let Some(said) = line.strip_prefix(MARK) {
            self.mark(said);
        } else if let Some(count) = line.strip_suffix(" programs accepted") {
            self.programs = count.parse().ok();
        } else if let Some(reason) = line.trim_start().strip_prefix("SKIPPED:") {
            self.skipped = Some(reason.trim().to_owned());
        } else if line.starts_with("test result: ok. 1 passed") {
            self.ran = true;
        }
    }

    fn mark(&mut self, said: &str) {
        if let Some(release) = said.strip_prefix(KERNEL) {
            self.release = Some(release.to_owned());
        } else if let Some(test) = said.strip_prefix(BEGIN) {
            (self.test, self.ran, self.skipped) = (Some(test.to_owned()), false, None);
        } else if let Some(status) = said.strip_prefix(END) {
            self.end_test(status);
        } else if let Some(complaint) = said.strip_prefix(COMPLAINT) {
            self.failed.push(format!("the kernel complains: {complaint}"));
        } else if said == DONE {
            self.done = true;
        }
    }

    fn end_test(&mut self, status: &str) {
        let test = self.test.take().unwrap_or_default();
        match (status, self.ran, self.skipped.take()) {
            (_, _, Some(reason)) => self.failed.push(format!("{test}: skipped: {reason}")),
            ("0", true, None) => self.passed.push(test),
            // A name that nothing matches is success, as far as the test runner knows.
            ("0", false, None) => self.failed.push(format!("{test}: there is no such test")),
            _ => self.failed.push(format!("{test}: exit status {status}")),
        }
    }

    /// Whether everything ran and passed.
    pub fn is_good(&self) -> bool {
        self.done && self.failed.is_empty()
    }

    /// The test that runs.
    pub fn running(&self) -> Option<&str> {
        self.test.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict;

    fn verdict(console: &str) -> Verdict {
        let mut verdict = Verdict::default();
        console.lines().for_each(|line| verdict.read(line));
        verdict
    }

    #[test]
    fn all_passed() {
        let verdict = verdict(
            "vm: kernel 6.1.0-50-cloud-amd64\nvm: test a\n17 programs accepted\n\
             test result: ok. 1 passed; 0 failed\nvm: status 0\nvm: done",
        );
        assert!(verdict.is_good());
        assert_eq!(verdict.release.as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!((verdict.programs, verdict.passed.len()), (Some(17), 1));
    }

    #[test]
    fn what_did_not_run_did_not_pass() {
        let failed = |console: &str| verdict(&format!("{console}\nvm: done")).failed;
        assert_eq!(failed("vm: test a\nvm: status 101"), ["a: exit status 101"]);
        assert_eq!(
            failed("vm: test a\ntest result: ok. 0 passed\nvm: status 0"),
            ["a: there is no such test"]
        );
        let skip = "vm: test a\nSKIPPED: no gdb\ntest result: ok. 1 passed; 0 failed\nvm: status 0";
        assert_eq!(failed(skip), ["a: skipped: no gdb"]);
        let complaint = "vm: complaint [ 1.0] WARNING: CPU: 0";
        assert_eq!(
            failed(complaint),
            ["the kernel complains: [ 1.0] WARNING: CPU: 0"]
        );
    }

    #[test]
    fn a_machine_that_stopped_early_is_not_good() {
        let verdict = verdict("vm: test a\n[    2.1] Kernel panic - not syncing");
        assert!(!verdict.is_good());
        assert_eq!(verdict.running(), Some("a"));
    }
}
