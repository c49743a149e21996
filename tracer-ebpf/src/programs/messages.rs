//! The descriptors that come with messages.

use aya_ebpf::helpers::bpf_probe_read_user;
use memtrace_ebpf::layout::{Counter, Member};

use super::{
    count_for,
    fds::{ASK, book_fd, is_new},
    io_uring,
    syscalls::Call,
};

/// Control messages and descriptors looked at in one message.
const CONTROL_STEPS: u32 = 320;
/// Messages looked at in one `recvmmsg`.
const MESSAGES: u64 = 256;

/// `struct msghdr` (`include/linux/socket.h`, `user_msghdr`): where its members are, and the size of `struct mmsghdr`.
const MSG_CONTROL: u64 = 32;
const MSG_CONTROLLEN: u64 = 40;
const MMSGHDR_BYTES: u64 = 64;
/// `struct cmsghdr`: `cmsg_len`, `cmsg_level`, `cmsg_type`, then the data; `SOL_SOCKET`, `SCM_RIGHTS`, and `SCM_PIDFD`, which
/// stores one descriptor, or an error.
const CMSG_DATA: u64 = 16;
pub const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const SCM_PIDFD: u32 = 4;

/// On whom [`book_control`] books what it finds.
#[repr(u32)]
pub enum Receiver {
    /// The stack of the call that is under way.
    Call = 0,
    /// The stack that was found for what an io_uring did.
    Ring = 1,
    /// Nobody: a thread of the kernel received it for an io_uring.
    Kernel = 2,
}

/// Whether a message that was received has any control data. The address is where its header is.
#[inline(always)]
pub fn has_control(message: u64) -> bool {
    control_of(message).1 >= CMSG_DATA
}

/// The control data of a message that was received: address and bytes.
#[inline(always)]
pub fn control_of(message: u64) -> (u64, u64) {
    const { assert!(MSG_CONTROLLEN == MSG_CONTROL + 8) };
    // SAFETY: the helper checks the address.
    let words = unsafe { bpf_probe_read_user(message.wrapping_add(MSG_CONTROL) as *const [u64; 2]) };
    let [begin, length] = words.unwrap_or([0; 2]);
    (begin, length)
}

#[inline(always)]
pub fn book_messages(call: Call, member: &Member) {
    let first = call.second();
    let count = call.result as u64;
    for i in 0..MESSAGES {
        if i >= count {
            return;
        }
        let (begin, length) = control_of(first.wrapping_add(i * MMSGHDR_BYTES));
        if length >= CMSG_DATA {
            book_control(begin, length, Receiver::Call as u32);
        }
    }
    count_for(member.stacks, Counter::FdRangesTooLarge, 1);
}

/// Books the descriptors in the control data of a message (`include/linux/socket.h`, `CMSG_NXTHDR`).
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn book_control(begin: u64, length: u64, receiver: u32) -> u32 {
    let end = begin.wrapping_add(length);
    let mut next = begin;
    // The descriptors that are left in the message at hand.
    let mut fds = 0_u64;
    let mut place = 0_u64;
    for _ in 0..CONTROL_STEPS {
        if fds > 0 {
            // SAFETY: the helper checks the address.
            if let Ok(number) = unsafe { bpf_probe_read_user(place as *const u32) } {
                book_received(number, receiver);
            }
            place = place.wrapping_add(4);
            fds -= 1;
            continue;
        }
        if next.wrapping_add(CMSG_DATA) > end {
            break;
        }
        // SAFETY: the helper checks the address.
        let Ok([bytes, what]) = (unsafe { bpf_probe_read_user(next as *const [u64; 2]) }) else {
            break;
        };
        if bytes < CMSG_DATA {
            break;
        }
        let (level, kind) = (what as u32, (what >> 32) as u32);
        if level == SOL_SOCKET && matches!(kind, SCM_RIGHTS | SCM_PIDFD) {
            fds = (bytes - CMSG_DATA) / 4;
            place = next.wrapping_add(CMSG_DATA);
        }
        next = next.wrapping_add((bytes + 7) & !7);
    }
    0
}

/// Books a descriptor that came with a message.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn book_received(number: u32, receiver: u32) -> u32 {
    let is_fd = number as i32 >= 0;
    if receiver == Receiver::Call as u32 {
        return if is_fd { book_fd(number, ASK) } else { 0 };
    }
    // What an io_uring received may be in the books of a call that is about to return, and of another message.
    if !is_fd || !is_new(number) {
        return 0;
    }
    if receiver == Receiver::Ring as u32 {
        return book_fd(number, ASK);
    }
    io_uring::book_without_stack(number)
}
