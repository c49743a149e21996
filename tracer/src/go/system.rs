//! Which goroutines `runtime/pprof` counts.

use super::Version;

/// Whether the goroutine is the runtime's own, which `runtime/pprof` leaves out (`isSystemGoroutine` in
/// `src/runtime/traceback.go`), by the name of the function it began with. `runs_user_code` says whether a function outside
/// the runtime is on its stack: finalizers and cleanups are run by the runtime's goroutines.
pub fn is_system(start_function: &str, runs_user_code: bool, version: Version) -> bool {
    match start_function {
        "runtime.main" | "runtime.handleAsyncEvent" => false,
        "runtime.corostart" => version.minor < 22,
        "runtime.runfinq" => !runs_user_code,
        "runtime.runFinalizers" | "runtime.runCleanups" if version.minor >= 25 => !runs_user_code,
        other => other.starts_with("runtime."),
    }
}

#[cfg(test)]
mod tests {
    use super::{Version, is_system};

    const GO_1_23: Version = Version { major: 1, minor: 23 };
    const GO_1_26: Version = Version { major: 1, minor: 26 };

    #[test]
    fn the_runtimes_goroutines_are_told_apart() {
        assert!(is_system("runtime.bgsweep", false, GO_1_26));
        assert!(!is_system("runtime.main", false, GO_1_26));
        assert!(!is_system("runtime/pprof.profileWriter", false, GO_1_26));
        assert!(!is_system("main.main.func1", false, GO_1_26));
        assert!(!is_system("runtime.corostart", false, GO_1_26));
        assert!(is_system("runtime.runfinq", false, GO_1_23));
        assert!(!is_system("runtime.runfinq", true, GO_1_23));
        assert!(!is_system("runtime.runCleanups", true, GO_1_26));
    }
}
