//! What cannot be traced: a clear error, the right exit code, and nothing left attached.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile::{Build, NO_FRAME_POINTERS},
    ground::GroundTruth,
    kernel, serial, skip,
    tracer::{self, Memtrace, Outcome},
};

/// The exit codes that `memtrace --help` promises.
mod code {
    pub const RUN_TIME: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const PRIVILEGE: i32 = 3;
    pub const NO_TARGET: i32 = 4;
}

/// Insists on this exit code, and on one message that names each of `words`.
fn check(outcome: &Outcome, code: i32, words: &[&str]) -> Result<()> {
    ensure!(
        outcome.code == Some(code),
        "exit code {:?} instead of {code}:\n{}",
        outcome.code,
        outcome.stderr
    );
    for word in words {
        ensure!(
            outcome.stderr.contains(word),
            "the message does not say {word:?}:\n{}",
            outcome.stderr
        );
    }
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    Ok(())
}

fn fails(arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
    check(&tracer::run(arguments, PATIENCE)?, code, words)
}

fn start_target() -> Result<GroundTruth> {
    GroundTruth::start(&Build::c("ground_truth").flags(NO_FRAME_POINTERS).path()?, 1, 64)
}

#[test]
fn wrong_usage() -> Result<()> {
    fails(&[], code::USAGE, &["--pid"])?;
    fails(&["--pid", "0"], code::USAGE, &["--pid"])?;
    fails(&["--pid", "-1"], code::USAGE, &["--pid"])?;
    fails(&["--pid", "redis"], code::USAGE, &["--pid", "redis"])?;
    fails(&["--pid", "99999999999"], code::USAGE, &["--pid"])?;
    fails(
        &["--pid", "1", "--duration", "soon"],
        code::USAGE,
        &["--duration", "soon"],
    )?;
    fails(&["--pid", "1", "--max-live", "0"], code::USAGE, &["--max-live"])?;
    fails(
        &["--pid", "1", "--allocator-prefix", "9 lives"],
        code::USAGE,
        &["--allocator-prefix", "9 lives"],
    )?;
    fails(
        &["--pid", "1", "--no-such-option"],
        code::USAGE,
        &["--no-such-option"],
    )
}

/// Larger than the kernel's largest process id, 4,194,304.
#[test]
fn no_such_process() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    fails(&["--pid", "4194305"], code::NO_TARGET, &["4194305"])
}

#[test]
fn a_dead_process() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let mut target = start_target()?;
    let pid = target.pid().to_string();
    target.go(100, 1)?;
    target.exit()?;
    fails(&["--pid", &pid], code::NO_TARGET, &[&pid])
}

/// Dead, but its parent has not asked for its status yet.
#[test]
fn a_zombie() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let child = Child::spawn(&mut Command::new("true"))?;
    let pid = child.pid().to_string();
    let stat = Path::new("/proc").join(&pid).join("stat");
    while !fs::read_to_string(&stat)?.contains(") Z ") {
        sleep(Duration::from_millis(5));
    }
    fails(&["--pid", &pid], code::NO_TARGET, &[&pid])
}

#[test]
fn a_kernel_thread() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    // In a PID namespace of its own, process 2 is an ordinary process.
    if fs::read_to_string("/proc/2/comm")?.trim() != "kthreadd" {
        skip::skipped("process 2 is no kernel thread here");
        return Ok(());
    }
    fails(&["--pid", "2"], code::NO_TARGET, &["kernel thread"])
}

#[test]
fn a_thread_of_a_process() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let target = start_target()?;
    let mut threads = fs::read_dir(format!("/proc/{}/task", target.pid()))?;
    let main = target.pid().to_string();
    let other = threads.find_map(|entry| {
        entry
            .ok()?
            .file_name()
            .into_string()
            .ok()
            .filter(|id| *id != main)
    });
    let other = other.context("the target has one thread only")?;
    fails(&["--pid", &other], code::NO_TARGET, &["thread", &main])?;
    target.exit()
}

/// Process 1 of the machine is not the tests' to touch; process 1 of a PID namespace made for the test is. From inside
/// one, memtrace cannot tell which process the kernel's ids mean, and must say so.
#[test]
fn process_1_of_a_pid_namespace() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(unshare) = skip::installed(&["unshare"]) else {
        return Ok(());
    };
    let mut command = Command::new(unshare);
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg("sh")
        .arg("-c");
    // The shell is process 1; the last command keeps it from being replaced by memtrace.
    command
        .arg("\"$0\" --pid 1 --duration 1s; code=$?; exit $code")
        .arg(tracer::binary()?);
    let mut child = Child::spawn(&mut command)?;
    let status = child.wait(PATIENCE)?;
    let stderr = child.stderr.all(PATIENCE);
    ensure!(status.code() == Some(code::PRIVILEGE), "{status}: {stderr}");
    ensure!(stderr.contains("namespace"), "{stderr}");
    Ok(())
}

#[test]
fn not_root() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    const NOBODY: u32 = 65534;
    let target = start_target()?;
    // Nobody may not be able to reach the build directory.
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let program = directory.path().join("memtrace");
    fs::copy(tracer::binary()?, &program)?;
    let mut command = Command::new(program);
    command
        .args(["--pid", &target.pid().to_string(), "--duration", "1s"])
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY);
    let mut child = Child::spawn(&mut command)?;
    let status = child.wait(PATIENCE)?;
    let stderr = child.stderr.all(PATIENCE);
    ensure!(status.code() == Some(code::PRIVILEGE), "{status}: {stderr}");
    ensure!(stderr.contains("CAP_") && stderr.contains("root"), "{stderr}");
    ensure!(kernel::patched_addresses(target.pid())?.is_empty());
    target.exit()
}

#[test]
fn an_output_directory_that_cannot_be_written() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let target = start_target()?;
    let pid = target.pid().to_string();
    let directory = tempfile::tempdir()?;
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .into_os_string()
            .into_string()
            .unwrap_or_default()
    };
    let (file, link, open) = (path("file"), path("link"), path("open"));
    fs::write(&file, "")?;
    std::os::unix::fs::symlink(directory.path(), &link)?;
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    for output in ["/proc/memtrace", &file, &link, &open, &path("no/such/parent")] {
        fails(&["--pid", &pid, "--output", output], code::RUN_TIME, &[output])?;
        ensure!(kernel::patched_addresses(target.pid())?.is_empty(), "{output}");
    }
    target.exit()
}

/// What a target does while memtrace attaches is its own affair: traced, or gone before.
#[test]
fn a_target_that_ends_during_the_attach() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    for milliseconds in [0, 20, 50, 100, 200, 300, 400, 600] {
        let seconds = format!("0.{milliseconds:03}");
        let target = Child::spawn(Command::new("sleep").arg(&seconds))?;
        let outcome = tracer::run(["--pid", &target.pid().to_string()], PATIENCE)?;
        let ended = outcome.code == Some(0) || outcome.code == Some(code::NO_TARGET);
        ensure!(ended, "sleep {seconds}: {:?}\n{}", outcome.code, outcome.stderr);
        ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
    Ok(())
}

/// No allocator to be seen: the run says so and why, and does not claim that nothing leaks.
fn heap_is_not_visible(program: &Path, arguments: &[&str], why: &str) -> Result<()> {
    let mut target = Child::spawn(Command::new(program).args(arguments))?;
    target.stdout.expect("ready", PATIENCE)?;
    let memtrace = Memtrace::attach(target.pid(), &["--duration", "1s"])?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    ensure!(outcome.stderr.contains(why), "{}", outcome.stderr);
    ensure!(outcome.stderr.contains("not visible"), "{}", outcome.stderr);
    ensure!(outcome.stdout.contains("not visible"), "{}", outcome.stdout);
    ensure!(
        !outcome.stdout.contains("No allocation was seen"),
        "{}",
        outcome.stdout
    );
    let said = heap
        .comments
        .iter()
        .any(|comment| comment.contains("not visible"));
    ensure!(said && heap.stacks.is_empty(), "{}", heap.comments.join("\n"));
    ensure!(target.is_running()?);
    Ok(())
}

#[test]
fn a_static_stripped_program() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let program = Build::c("ground_truth")
        .named("ground_truth_stripped")
        .flags(["-static", "-s"]);
    heap_is_not_visible(&program.path()?, &["1", "64"], "static binary, no symbols")
}

#[test]
fn a_program_without_malloc() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let program = Build::c("bare").flags([
        "-static",
        "-nostdlib",
        "-ffreestanding",
        "-fno-stack-protector",
        "-s",
    ]);
    heap_is_not_visible(&program.path()?, &[], "static binary, no symbols")
}
