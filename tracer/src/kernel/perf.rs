//! Perf events on tracepoints, and programs on them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use perf_event_open_sys::{
    bindings::{
        PERF_FLAG_FD_CLOEXEC, PERF_SAMPLE_READ, PERF_SAMPLE_TID, PERF_TYPE_TRACEPOINT, perf_event_attr,
    },
    perf_event_open,
};

/// `BPF_LINK_CREATE` (`include/uapi/linux/bpf.h`, `enum bpf_cmd`).
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PERF_EVENT` (`enum bpf_attach_type`).
const PERF_EVENT: u32 = 41;

/// Whom an event watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// This thread alone.
    Thread(u32),
    /// This thread and every thread and process that it makes, for which the kernel opens events of their own.
    Descendants {
        /// The thread.
        thread: u32,
        /// When the kernel switches from a thread to one with the same inherited events, it exchanges the threads' events
        /// instead of writing their state, but not what they are bound to; the first of the two to end then takes the
        /// other's probes away. Firm events are never exchanged, since each thread's samples would tell its own values
        /// (`kernel/events/core.c`, `has_inherit_and_sample_read`). Linux before 6.12 refuses them.
        firmly: bool,
    },
    /// Everybody.
    All,
}

/// Opens an event on a tracepoint. It counts nothing: it only decides where the tracepoint is live.
///
/// # Errors
/// When there is no such thread, or the kernel refuses.
pub fn open(tracepoint: u64, watched: Watched) -> io::Result<OwnedFd> {
    let mut attributes = perf_event_attr {
        type_: PERF_TYPE_TRACEPOINT,
        size: size_of::<perf_event_attr>() as u32,
        config: tracepoint,
        ..perf_event_attr::default()
    };
    attributes.__bindgen_anon_1.sample_period = 1;
    // An event that is not enabled costs nothing when threads are switched. Programs run all the same.
    attributes.set_disabled(1);
    let (thread, cpu) = match watched {
        Watched::Thread(thread) => (thread as i32, -1),
        Watched::Descendants { thread, firmly } => {
            attributes.set_inherit(1);
            if firmly {
                attributes.sample_type = u64::from(PERF_SAMPLE_READ | PERF_SAMPLE_TID);
            }
            (thread as i32, -1)
        }
        Watched::All => (-1, 0),
    };
    // SAFETY: the attributes are a local value of the size that they say.
    let fd = unsafe { perf_event_open(&mut attributes, thread, cpu, -1, PERF_FLAG_FD_CLOEXEC.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What `bpf(BPF_LINK_CREATE)` takes (`include/uapi/linux/bpf.h`, `union bpf_attr`, `link_create`).
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// Makes a program run whenever the event's tracepoint is hit, until the descriptor returned is closed.
///
/// # Errors
/// When the kernel refuses: cookies need Linux 5.15.
pub fn link(program: BorrowedFd<'_>, event: &OwnedFd, cookie: u64) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: event.as_raw_fd() as u32,
        attach_type: PERF_EVENT,
        flags: 0,
        cookie,
    };
    // SAFETY: the kernel reads as many bytes of the local value as it is told.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            LINK_CREATE,
            &raw const attributes,
            size_of::<LinkCreate>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
