//! Signals: Ctrl-C is for the traced program's tracer, not for xtask, which still has to tidy up.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use anyhow::{Context as _, Result};

/// The process that gets the signals meant for xtask; 0 when there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Passes a signal on, unless the terminal already sent it to the whole foreground group.
extern "C" fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let from_terminal = unsafe { (*info).si_code } == libc::SI_KERNEL;
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 && !from_terminal {
        // SAFETY: kill is async-signal-safe; `child` is not reaped before it is reset to 0.
        unsafe { libc::kill(child, signal) };
    }
}

/// Runs the command to its end; SIGINT and SIGTERM for xtask go to it, and do not end xtask.
///
/// # Errors
/// When the command cannot be started or waited for.
pub fn wait_forwarding(command: &mut Command) -> Result<ExitStatus> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = forward;
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: `action` is initialized, and its handler only makes async-signal-safe calls.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    CHILD.store(
        i32::try_from(child.id()).context("a process id is below 2^22")?,
        Ordering::Relaxed,
    );
    wait(&mut child)
}

/// Waits without reaping first, so that a signal that comes late never reaches a reused process id.
fn wait(child: &mut std::process::Child) -> Result<ExitStatus> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: `info` is writable memory of the right size.
        let result = unsafe {
            libc::waitid(
                libc::P_PID,
                child.id(),
                info.as_mut_ptr(),
                libc::WEXITED | libc::WNOWAIT,
            )
        };
        let error = std::io::Error::last_os_error();
        if result == 0 || error.kind() != std::io::ErrorKind::Interrupted {
            break;
        }
    }
    CHILD.store(0, Ordering::Relaxed);
    child.wait().context("cannot wait for the process")
}

/// Makes the kernel end the command's process when the thread that starts it ends, even by SIGKILL.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe, and this closure does nothing else.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}
