//! The log of what changes an address space's mappings, and what makes it grow.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_user},
};
use memtrace_ebpf::{
    calls::action,
    handles::{Class, GrowthKind, MapEvent, MapEventKind, MappingKind, classes},
    layout::{Control, Counter, EndReason, Member, NO_SPACE, OVERFLOW_STACK},
};

use super::{
    atomic, count_for, files,
    maps::{self, Thread},
    stack,
    syscalls::Call,
};

/// Bytes in a page.
const PAGE: u64 = 4096;
/// Flags of `mmap` (`include/uapi/asm-generic/mman-common.h`, `mman.h`).
const MAP_TYPE: u64 = 0xf;
const MAP_PRIVATE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_STACK: u64 = 0x2_0000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_HUGE_SHIFT: u64 = 26;
/// Bytes in a huge page, unless the flags say another size.
const HUGE_SHIFT: u64 = 21;
/// `MREMAP_DONTUNMAP` (`include/uapi/linux/mman.h`).
const MREMAP_DONTUNMAP: u64 = 4;
/// `CLONE_THREAD` (`include/uapi/linux/sched.h`).
const CLONE_THREAD: u64 = 0x1_0000;

/// A call is entered that takes mappings away.
#[inline(always)]
pub fn enter(action: u8, call: Call, member: &Member, tid: u32) {
    if member.space == NO_SPACE || !takes_range(action, call) {
        return;
    }
    let length = match action {
        action::SHMDT => 0,
        _ => pages(call.second()),
    };
    let event = MapEvent {
        begin: call.first(),
        length,
        kind: MapEventKind::Unmapping as u32,
        ..event(member, tid)
    };
    send(&event);
}

/// Whether a call takes a range away as soon as it is entered.
#[inline(always)]
fn takes_range(action: u8, call: Call) -> bool {
    action != action::MREMAP || (call.second() != 0 && call.fourth() & MREMAP_DONTUNMAP == 0)
}

/// A call that was to take mappings away failed.
#[inline(always)]
pub fn undo(action: u8, call: Call, member: &Member, tid: u32) {
    if member.space != NO_SPACE && takes_range(action, call) {
        let event = MapEvent {
            kind: MapEventKind::Undone as u32,
            ..event(member, tid)
        };
        send(&event);
    }
}

/// Whether a `brk` moved the end of the heap up; notes where it is.
#[inline(always)]
pub fn grows(call: Call, member: &Member) -> bool {
    let now = call.result as u64;
    let before = match maps::BREAKS.get_ptr_mut(&member.space) {
        // SAFETY: the pointer is to a map's element. The kernel moves the end for one thread at a time.
        Some(end) => unsafe { *end },
        None => now,
    };
    if now > before {
        return true;
    }
    let _full = maps::BREAKS.insert(&member.space, &now, BPF_ANY as u64);
    false
}

/// Whether a `clone` made a thread whose stack is of interest.
#[inline(always)]
pub fn makes_thread(action: u8, call: Call, control: &Control) -> bool {
    control.classes & classes::MAPPING != 0 && call.result > 0 && thread_stack(action, call) != 0
}

/// The stack pointer that a new thread begins with; 0 if it is not a thread, or has none of its own.
#[inline(always)]
fn thread_stack(action: u8, call: Call) -> u64 {
    if action == action::CLONE {
        return if call.first() & CLONE_THREAD != 0 {
            call.second()
        } else {
            0
        };
    }
    // `struct clone_args` (`include/uapi/linux/sched.h`): flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size.
    let arguments = call.first();
    // SAFETY: the helper checks the address.
    let flags = unsafe { bpf_probe_read_user(arguments as *const u64) }.unwrap_or(0);
    if flags & CLONE_THREAD == 0 {
        return 0;
    }
    // SAFETY: as above.
    let stack = unsafe { bpf_probe_read_user(arguments.wrapping_add(40) as *const [u64; 2]) };
    let [begin, bytes] = stack.unwrap_or([0; 2]);
    begin.wrapping_add(bytes)
}

/// Books what a call mapped, once its stack is known.
#[inline(always)]
pub fn book(action: u8, call: Call, member: &Member, thread: &mut Thread, control: &Control) {
    let (length, flags) = match action {
        action::MMAP => (whole(call.second(), call.fourth()), call.fourth()),
        action::MREMAP => (pages(call.third()), 0),
        // The call does not tell; if the kernel did not either, user space asks.
        action::SHMAT => (thread.size, 0),
        _ => return book_break(call, member, thread),
    };
    if control.classes & classes::GROWTH != 0 {
        let grown = match action {
            action::MREMAP => length.saturating_sub(pages(call.second())),
            _ => length,
        };
        grow(member.stacks, thread, GrowthKind::Mapped, grown);
    }
    if control.classes & classes::MAPPING == 0 {
        return;
    }
    let mapping = match action {
        action::MMAP => kind_of(flags, call.fifth() as u32),
        action::SHMAT => MappingKind::Shared as u8,
        _ => MappingKind::MOVED,
    };
    let stack = stack_of(thread, member.stacks, Class::Mapping, mapping);
    note(stack, member, length);
    let event = MapEvent {
        begin: call.result as u64,
        length,
        source: if action == action::MMAP { 0 } else { call.first() },
        kind: MapEventKind::Mapped as u32,
        stack,
        flags: flags as u32,
        mapping,
        ..event(member, super::ids().1)
    };
    send(&event);
}

/// Books a thread that a call made, once its stack is known.
#[inline(always)]
pub fn book_thread(action: u8, call: Call, member: &Member, thread: &mut Thread, control: &Control) {
    if !makes_thread(action, call, control) {
        return;
    }
    let kind = MappingKind::Stack as u8;
    let stack = stack_of(thread, member.stacks, Class::Mapping, kind);
    note(stack, member, 0);
    let event = MapEvent {
        begin: thread_stack(action, call),
        kind: MapEventKind::ThreadStarted as u32,
        stack,
        mapping: kind,
        ..event(member, call.result as u32)
    };
    send(&event);
}

/// A thread ended. When the whole process does, its threads' stacks end with it.
#[inline(always)]
pub fn thread_ended(member: &Member, tid: u32) {
    let is_wanted = maps::CONTROL
        .get(0)
        .is_some_and(|control| control.enabled != 0 && control.classes & classes::MAPPING != 0);
    if is_wanted && member.space != NO_SPACE && !files::is_process_ending() {
        let event = MapEvent {
            kind: MapEventKind::ThreadEnded as u32,
            ..event(member, tid)
        };
        send(&event);
    }
}

/// A process was forked: its mappings begin as its parent's.
#[inline(always)]
pub fn forked(parent: &Member, child: u32) {
    let is_wanted = maps::CONTROL
        .get(0)
        .is_some_and(|control| control.classes & classes::MAPPING != 0);
    if is_wanted {
        let event = MapEvent {
            kind: MapEventKind::Forked as u32,
            space: child,
            flags: parent.space,
            ..event(parent, 0)
        };
        send(&event);
    }
}

#[inline(always)]
fn book_break(call: Call, member: &Member, thread: &mut Thread) {
    let now = call.result as u64;
    let Some(end) = maps::BREAKS.get_ptr_mut(&member.space) else {
        return;
    };
    // SAFETY: the pointer is to a map's element. The kernel moves the end for one thread at a time.
    let before = unsafe {
        let before = *end;
        *end = now;
        before
    };
    grow(member.stacks, thread, GrowthKind::Brk, now.saturating_sub(before));
}

/// Books bytes that were added.
#[inline(always)]
pub fn grow(space: u32, thread: &Thread, kind: GrowthKind, bytes: u64) {
    let stack = stack_of(thread, space, Class::Growth, kind as u8);
    if stack == OVERFLOW_STACK {
        return count_for(space, Counter::TouchesLost, 1);
    }
    if let Some(stack) = maps::STACKS.get_ptr_mut(stack) {
        // SAFETY: the pointers are to words of a map's element.
        unsafe {
            atomic::add(&raw mut (*stack).alloc_objects, 1);
            atomic::add(&raw mut (*stack).alloc_bytes, bytes);
        }
    }
}

/// The index of the stack that the thread's walk found.
#[inline(always)]
fn stack_of(thread: &Thread, space: u32, class: Class, kind: u8) -> u32 {
    match stack::found(thread) {
        Some(walk) => {
            let end = EndReason::from_u8(walk.end).unwrap_or(EndReason::OutOfSteps);
            stack::intern(space, walk, end, class, kind)
        }
        None => OVERFLOW_STACK,
    }
}

/// Counts what was mapped by a stack.
#[inline(always)]
fn note(stack: u32, member: &Member, bytes: u64) {
    if stack == OVERFLOW_STACK {
        return count_for(member.stacks, Counter::MappingsWithoutStack, 1);
    }
    if let Some(stack) = maps::STACKS.get_ptr_mut(stack) {
        // SAFETY: the pointers are to words of a map's element.
        unsafe {
            atomic::add(&raw mut (*stack).alloc_objects, 1);
            atomic::add(&raw mut (*stack).alloc_bytes, bytes);
        }
    }
}

/// What `mmap` was asked for with these flags and this descriptor.
#[inline(always)]
fn kind_of(flags: u64, fd: u32) -> u8 {
    let is_private = flags & MAP_TYPE == MAP_PRIVATE;
    let kind = if flags & MAP_ANONYMOUS == 0 {
        if files::is_memory(fd) != 0 {
            MappingKind::Shared
        } else {
            MappingKind::File
        }
    } else if !is_private {
        MappingKind::Shared
    } else if flags & (MAP_STACK | MAP_GROWSDOWN) != 0 {
        MappingKind::Stack
    } else {
        MappingKind::Anon
    };
    kind as u8
}

/// Whole pages, of the size that the flags ask for.
#[inline(always)]
fn whole(length: u64, flags: u64) -> u64 {
    if flags & MAP_HUGETLB == 0 {
        return pages(length);
    }
    let shift = match flags >> MAP_HUGE_SHIFT & 0x3f {
        0 => HUGE_SHIFT,
        shift => shift,
    };
    let page = 1 << shift;
    length.wrapping_add(page - 1) & !(page - 1)
}

#[inline(always)]
fn pages(length: u64) -> u64 {
    length.wrapping_add(PAGE - 1) & !(PAGE - 1)
}

#[inline(always)]
fn event(member: &Member, thread: u32) -> MapEvent {
    MapEvent {
        // SAFETY: the helper has no preconditions.
        time: unsafe { bpf_ktime_get_ns() },
        space: member.space,
        thread,
        ..MapEvent::default()
    }
}

#[inline(always)]
fn send(event: &MapEvent) {
    if maps::MAP_EVENTS.output::<MapEvent>(event, 0).is_err() {
        count_for(event.space, Counter::MapEventsLost, 1);
    }
}
