//! Which frames `runtime/pprof` shows of a stack, and which goroutines it counts.

use super::{GoFrame, Version};

/// The frames of a heap stack as `runtime/pprof` shows them, innermost first: without the runtime's own at the beginning
/// unless there are no others (`writeHeapProto` in `src/runtime/pprof/protomem.go`), without wrappers and `runtime.goexit`.
pub fn pprof_frames(mut frames: Vec<GoFrame>, version: Version) -> Vec<GoFrame> {
    frames = goroutine_frames(frames);
    let first = frames
        .iter()
        .position(|frame| !is_runtime(&frame.function, version));
    frames.drain(..first.unwrap_or(0));
    frames
}

/// The frames of a goroutine's stack as `runtime/pprof` shows them, innermost first: without wrappers, unless what they
/// called is a panic (`elideWrapperCalling` in `src/runtime/traceback.go`), and without `runtime.goexit` (`allFrames` in
/// `src/runtime/pprof/proto.go`).
pub fn goroutine_frames(mut frames: Vec<GoFrame>) -> Vec<GoFrame> {
    let mut called_by_panic = false;
    frames.retain(|frame| {
        let function = &*frame.function;
        let is_shown = function != "runtime.goexit" && (!frame.is_wrapper || called_by_panic);
        called_by_panic = matches!(
            function,
            "runtime.gopanic" | "runtime.sigpanic" | "runtime.panicwrap"
        );
        is_shown
    });
    frames
}

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

/// What `runtime/pprof` hides at the beginning of a heap stack; `internal/runtime/` since Go 1.24.
fn is_runtime(function: &str, version: Version) -> bool {
    function.starts_with("runtime.") || (version.minor >= 24 && function.starts_with("internal/runtime/"))
}

#[cfg(test)]
mod tests {
    use super::{GoFrame, Version, goroutine_frames, is_system, pprof_frames};

    const GO_1_23: Version = Version { major: 1, minor: 23 };
    const GO_1_26: Version = Version { major: 1, minor: 26 };

    fn frames(names: &[&str]) -> Vec<GoFrame> {
        let frame = |name: &&str| GoFrame {
            function: name.trim_start_matches('~').into(),
            file: "".into(),
            line: 0,
            start_line: 0,
            is_wrapper: name.starts_with('~'),
        };
        names.iter().map(frame).collect()
    }

    #[test]
    fn leading_runtime_frames_are_hidden() {
        let stack = frames(&[
            "runtime.mallocgc",
            "internal/runtime/maps.newTable",
            "runtime.mapassign",
            "main.fill",
            "runtime.main",
            "runtime.goexit",
        ]);
        let shown = frames(&["main.fill", "runtime.main"]);
        assert_eq!(pprof_frames(stack.clone(), GO_1_26), shown);
        assert_eq!(pprof_frames(stack, GO_1_23).len(), 4);
    }

    #[test]
    fn a_stack_of_the_runtime_alone_is_shown_whole() {
        let stack = frames(&["runtime.malg", "runtime.newproc1", "runtime.systemstack"]);
        assert_eq!(pprof_frames(stack.clone(), GO_1_26), stack);
    }

    #[test]
    fn wrappers_are_left_out_unless_they_panic() {
        let stack = frames(&["main.(*inner).wait", "~main.outer.wait", "runtime.goexit"]);
        assert_eq!(goroutine_frames(stack), frames(&["main.(*inner).wait"]));
        let stack = frames(&[
            "main.deferred",
            "runtime.gopanic",
            "runtime.panicwrap",
            "~main.(*outer).wait",
        ]);
        assert_eq!(goroutine_frames(stack.clone()), stack);
    }

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
