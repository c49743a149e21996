//! Deciding that a test cannot run here, and saying so.

use std::{io::Write, path::PathBuf};

/// Prints `SKIPPED: reason` where the test runner does not capture it, so that a run shows and CI counts it.
pub fn skipped(reason: &str) {
    // A test's own output is shown only when it fails; a direct write to stderr always is. Nothing is left to do
    // when even that fails.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// True when this process may load eBPF programs and attach uprobes; otherwise says what is missing.
pub fn can_trace() -> bool {
    // SAFETY: geteuid reads the caller's credentials and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        skipped("tracing needs root");
        return false;
    }
    if !PathBuf::from("/sys/bus/event_source/devices/uprobe/type").exists() {
        skipped("this kernel has no uprobes (CONFIG_UPROBE_EVENTS)");
        return false;
    }
    true
}

/// The path of the first of these programs that is on `PATH` or in a system directory; otherwise says that it is missing.
pub fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    // System directories first: a shim found earlier on PATH may be a script that starts something else.
    let directories: Vec<PathBuf> = system.into_iter().chain(std::env::split_paths(&path)).collect();
    let found = names
        .iter()
        .flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    let program = found.into_iter().find(|candidate| candidate.is_file());
    if program.is_none() {
        skipped(&format!("{} is not installed", names.join(" or ")));
    }
    program
}
