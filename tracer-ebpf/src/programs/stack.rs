//! From registers to a stack's index: recognized from an earlier walk, or walked and interned.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, pt_regs},
    helpers::{
        bpf_get_attach_cookie, bpf_probe_read_kernel, bpf_probe_read_user,
        generated::{bpf_probe_read_user as probe_read_user, bpf_ringbuf_output, bpf_ringbuf_query},
    },
    macros::{raw_tracepoint, tracepoint, uprobe},
    maps::ProgramArray,
    programs::{ProbeContext, RawTracePointContext, TracePointContext},
};
use memtrace_ebpf::{
    bound::masked,
    handles::Class,
    layout::{
        Control, Counter, EndReason, FRAMES_BYTES, FramesHeader, MAX_FRAMES, OVERFLOW_STACK, inner, tail,
    },
    unwind::{Mapping, Page, Row},
    walk::{Memory, Tables, Walk},
};

use super::{
    atomic, count, heap, ids,
    maps::{self, AddressKey, COPY_WORDS, Thread, WALK_COUNT},
    process,
};

/// Frames walked in one program before it calls the next: bounds what the verifier has to follow.
const STEPS: u32 = 5;
/// Walks tried when the first choice is in use by a thread that was preempted.
const TRIES: u32 = 8;
/// [`Thread::walk`] of a thread that has none.
const NO_WALK: u32 = u32::MAX;

/// The current thread's memory.
struct CurrentThread<'a> {
    thread: &'a Thread,
}

impl Memory for CurrentThread<'_> {
    #[inline(always)]
    fn read_u64(&self, address: u64) -> Option<u64> {
        // SAFETY: the helper checks the address and fails if it cannot be read.
        unsafe { bpf_probe_read_user(address as *const u64) }.ok()
    }

    #[inline(always)]
    fn replaced_return_address(&self, slot: u64) -> Option<u64> {
        self.thread
            .calls
            .iter()
            .find(|call| call.sp == slot)
            .map(|call| call.return_address)
    }
}

/// The maps that hold the tables of a set of mappings.
struct LayoutTables {
    layout: u32,
}

impl Tables for LayoutTables {
    #[inline(always)]
    fn mapping(&self, address: u64) -> Option<Mapping> {
        let key = AddressKey {
            layout: self.layout.to_be(),
            high: ((address >> 32) as u32).to_be(),
            low: (address as u32).to_be(),
        };
        maps::MAPPINGS
            .get(aya_ebpf::maps::lpm_trie::Key::new(96, key))
            .copied()
    }

    #[inline(always)]
    fn page(&self, index: u32) -> Option<Page> {
        maps::PAGES.get(index).copied()
    }

    #[inline(always)]
    fn row(&self, index: u32) -> Option<Row> {
        maps::ROWS.get(index).copied()
    }
}

/// Where a walk begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Where the thread left for the kernel.
    Kernel,
    /// At the return of the allocator: the registers are its caller's.
    Caller,
    /// Inside the allocator, whose own frame is not part of the stack.
    Inside,
}

/// The registers that a walk begins with.
pub struct Start {
    pub pc: u64,
    pub sp: u64,
    pub fp: u64,
}

impl Start {
    /// Those that the kernel saved when the thread came.
    #[inline(always)]
    pub fn saved(regs: *const pt_regs) -> Self {
        Self {
            pc: saved(regs, offset_of!(pt_regs, rip)),
            sp: saved(regs, offset_of!(pt_regs, rsp)),
            fp: saved(regs, offset_of!(pt_regs, rbp)),
        }
    }

    /// Those of the moment.
    #[inline(always)]
    pub fn of(regs: &pt_regs) -> Self {
        Self {
            pc: regs.rip,
            sp: regs.rsp,
            fp: regs.rbp,
        }
    }
}

/// A register that the kernel saved, by its offset (bytes).
#[inline(always)]
pub fn saved(regs: *const pt_regs, offset: usize) -> u64 {
    let place = regs.cast::<u8>().wrapping_add(offset).cast::<u64>();
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(place) }.unwrap_or(0)
}

/// Finds the stack of a call, then books the block that `thread` holds.
#[inline(always)]
pub fn find_and_book<C: EbpfContext>(
    ctx: &C,
    regs: &pt_regs,
    from: From,
    control: &Control,
    ids: (u32, u32),
    thread: &mut Thread,
) {
    find_from(ctx, Start::of(regs), from, control, ids, thread);
}

/// As [`find_and_book`], from registers that are not those of the moment.
#[inline(always)]
pub fn find_from<C: EbpfContext>(
    ctx: &C,
    start: Start,
    from: From,
    control: &Control,
    ids: (u32, u32),
    thread: &mut Thread,
) {
    let (space, tid) = ids;
    let Some((index, walk)) = lock(start.pc, start.sp, tid) else {
        count(Counter::WalksBusy, 1);
        return heap::book(space, thread.address, thread.size, OVERFLOW_STACK);
    };
    if is_same(walk, index, &start, space, tid, control) {
        let stack = walk.stack;
        walk.locked = 0;
        return heap::book(space, thread.address, thread.size, stack);
    }
    begin(walk, index, &start, from, (space, tid), control, thread);
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::TAILS.tail_call(ctx, tail::WALK) };
    finish(space, thread, walk, EndReason::OutOfSteps);
}

/// Finds the stack of a thread that is in the kernel, and goes on in the program at `next` of `tails`, which gets it by
/// [`found`].
#[inline(always)]
pub fn find_in_kernel<C: EbpfContext>(
    ctx: &C,
    tails: &ProgramArray,
    start: Start,
    control: &Control,
    ids: (u32, u32),
    thread: &mut Thread,
    next: u32,
) {
    thread.next = next;
    find_then(ctx, tails, (start, From::Kernel), control, ids, thread);
}

/// Finds the stack of the caller whose registers these are, and goes on in the program at [`tail::BOOK_DIAL`] of
/// [`maps::DIAL_TAILS`].
#[inline(always)]
pub fn find_caller<C: EbpfContext>(
    ctx: &C,
    start: Start,
    control: &Control,
    ids: (u32, u32),
    thread: &mut Thread,
) {
    thread.next = tail::BOOK_DIAL;
    find_then(
        ctx,
        &maps::DIAL_TAILS,
        (start, From::Caller),
        control,
        ids,
        thread,
    );
}

/// Finds a stack, and goes on in the program at [`Thread::next`] of `tails`.
#[inline(always)]
fn find_then<C: EbpfContext>(
    ctx: &C,
    tails: &ProgramArray,
    (start, from): (Start, From),
    control: &Control,
    ids: (u32, u32),
    thread: &mut Thread,
) {
    let (space, tid) = ids;
    thread.space = space;
    let Some((index, walk)) = lock(start.pc, start.sp, tid) else {
        thread.walk = NO_WALK;
        // SAFETY: the context is the one that the kernel passed to this program.
        return unsafe { tails.tail_call(ctx, thread.next) };
    };
    thread.walk = index;
    if is_same(walk, index, &start, space, tid, control) {
        // SAFETY: as above.
        unsafe { tails.tail_call(ctx, thread.next) };
    } else {
        begin(walk, index, &start, from, ids, control, thread);
        // SAFETY: as above.
        unsafe { tails.tail_call(ctx, tail::WALK) };
    }
    walk.locked = 0;
}

/// The walk of [`find_in_kernel`]; `None` if none was free. To be given back with [`give_back`].
#[inline(always)]
pub fn found(thread: &Thread) -> Option<&'static mut Walk> {
    let walk = maps::WALKS.get_ptr_mut(thread.walk)?;
    // SAFETY: this thread holds the walk's lock.
    Some(unsafe { &mut *walk })
}

/// Lets others use the walk of [`find_in_kernel`].
#[inline(always)]
pub fn give_back(thread: &mut Thread) {
    if let Some(walk) = found(thread) {
        walk.locked = 0;
    }
    thread.walk = NO_WALK;
}

/// Whether the walk began as this one does, and the stack is still as it was then.
#[inline(always)]
fn is_same(walk: &Walk, index: u32, start: &Start, space: u32, tid: u32, control: &Control) -> bool {
    walk.start_pc == start.pc
        && walk.start_sp == start.sp
        && walk.thread == tid
        && walk.space == space as u64
        && walk.generation == control.generation
        && walk.repeatable != 0
        && (walk.needs_fp == 0 || walk.start_fp == start.fp)
        && same_slots(walk, index)
}

#[inline(always)]
fn begin(
    walk: &mut Walk,
    index: u32,
    start: &Start,
    from: From,
    ids: (u32, u32),
    control: &Control,
    thread: &mut Thread,
) {
    let (space, tid) = ids;
    walk.begin(
        start.pc,
        start.sp,
        start.fp,
        from == From::Caller,
        from == From::Inside,
    );
    walk.thread = tid;
    walk.space = space as u64;
    walk.generation = control.generation;
    thread.walk = index;
    thread.space = space;
    thread.layout = layout_of(space);
}

/// Walks a few frames, then calls itself or finishes.
#[uprobe]
fn walk(ctx: ProbeContext) -> u32 {
    let Some((thread, walk, mut reason)) = walk_on() else {
        return 0;
    };
    if reason as u8 == EndReason::Running as u8 {
        // SAFETY: the context is the one that the kernel passed to this program.
        unsafe { maps::TAILS.tail_call(&ctx, tail::WALK) };
        reason = EndReason::OutOfSteps;
    }
    if reason as u8 == EndReason::UnknownMapping as u8 && walk.frames_len == 0 {
        note_caller_of_malloc(&ctx, walk);
    }
    finish(thread.space, thread, walk, reason);
    0
}

/// As [`walk`], of threads that are in the kernel by a system call.
#[tracepoint]
fn walk_in_call(ctx: TracePointContext) -> u32 {
    walk_in(&ctx, &maps::CALL_TAILS);
    0
}

/// As [`walk`], of threads that are in the kernel for another reason.
#[raw_tracepoint(tracepoint = "page_fault_user")]
fn walk_in_kernel(ctx: RawTracePointContext) -> i32 {
    walk_in(&ctx, &maps::KERNEL_TAILS);
    0
}

/// As [`walk`], of threads that ask for a connection.
#[uprobe]
fn walk_in_dial(ctx: ProbeContext) -> u32 {
    walk_in(&ctx, &maps::DIAL_TAILS);
    0
}

#[inline(always)]
fn walk_in<C: EbpfContext>(ctx: &C, tails: &ProgramArray) {
    let Some((thread, walk, mut reason)) = walk_on() else {
        return;
    };
    let is_first = walk.frames_len == 1 && reason as u8 == EndReason::NoUnwindInfo as u8;
    if is_first && thread.next == tail::BOOK_CLONE && leave_clone(thread, walk) {
        reason = EndReason::Running;
    }
    if reason as u8 == EndReason::Running as u8 {
        // SAFETY: the context is the one that the kernel passed to this program.
        unsafe { tails.tail_call(ctx, tail::WALK) };
        reason = EndReason::OutOfSteps;
    }
    if reason as u8 == EndReason::UnknownMapping as u8 {
        process::ask_refresh(thread.space);
    }
    walk.end = reason as u8;
    // SAFETY: as above.
    unsafe { tails.tail_call(ctx, thread.next) };
    give_back(thread);
}

/// The C libraries' `clone` and `clone3` do not describe what follows the system call, since it is the new thread's first code,
/// too (glibc `sysdeps/unix/sysv/linux/x86_64/clone3.S`). In the thread that called it is a leaf.
#[inline(always)]
fn leave_clone(thread: &Thread, walk: &mut Walk) -> bool {
    let tables = LayoutTables {
        layout: thread.layout,
    };
    walk.leave_leaf(&CurrentThread { thread }, &tables)
}

/// Walks a few frames of the current thread's walk.
#[inline(always)]
fn walk_on() -> Option<(&'static mut Thread, &'static mut Walk, EndReason)> {
    let (_, tid) = ids();
    let thread = maps::THREADS.get_ptr_mut(&tid)?;
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    let walk = found(thread)?;
    let tables = LayoutTables {
        layout: thread.layout,
    };
    let mut reason = EndReason::Running;
    for _ in 0..STEPS {
        reason = walk.step(&CurrentThread { thread }, &tables);
        if reason as u8 != EndReason::Running as u8 {
            break;
        }
    }
    Some((thread, walk, reason))
}

/// Where the mappings are not known so far, the return address of a `malloc` that is probed inside still is.
#[inline(always)]
fn note_caller_of_malloc(ctx: &ProbeContext, walk: &mut Walk) {
    // SAFETY: the context is the one that the kernel passed to this program; the other helper checks the address.
    unsafe {
        let slot = bpf_get_attach_cookie(ctx.as_ptr()) & inner::SLOT;
        if let Ok(address) = bpf_probe_read_user(walk.start_sp.wrapping_add(slot) as *const u64) {
            walk.note_caller(address);
        }
    }
}

/// Gives the finished walk's stack an index and books the block.
#[inline(always)]
fn finish(space: u32, thread: &Thread, walk: &mut Walk, reason: EndReason) {
    if reason as u8 == EndReason::UnknownMapping as u8 {
        process::ask_refresh(space);
    }
    let stack = intern(space, walk, reason, Class::Heap, 0);
    walk.end = reason as u8;
    walk.stack = stack;
    walk.locked = 0;
    heap::book(space, thread.address, thread.size, stack);
}

/// Takes the walk that likely remembers this stack, or a neighbour that is free.
#[inline(always)]
fn lock(pc: u64, sp: u64, tid: u32) -> Option<(u32, &'static mut Walk)> {
    let mixed = (pc ^ sp.rotate_left(32) ^ tid as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let first = (mixed >> 40) as u32;
    for i in 0..TRIES {
        let index = first.wrapping_add(i) & (WALK_COUNT - 1);
        let walk = maps::WALKS.get_ptr_mut(index)?;
        // SAFETY: `locked` is the first word of a map's element; who sets it owns the rest.
        if unsafe { atomic::replace(walk.cast(), 0, 1) } {
            // SAFETY: as above.
            return Some((index, unsafe { &mut *walk }));
        }
    }
    None
}

/// Whether the stack still holds what the walk noted.
#[inline(always)]
fn same_slots(walk: &Walk, index: u32) -> bool {
    let Some(copy) = maps::COPIES.get_ptr_mut(index) else {
        return false;
    };
    const COPY_BYTES: u32 = (COPY_WORDS * 8) as u32;
    let wanted = if walk.span > COPY_BYTES {
        COPY_BYTES
    } else {
        walk.span
    };
    // SAFETY: the helper writes at most `COPY_BYTES` to the element, which the lock of the walk protects.
    let copied = unsafe { probe_read_user(copy.cast(), wanted, walk.start_sp as *const _) };
    if copied != 0 {
        return false;
    }
    // SAFETY: the element was just filled, and the lock of the walk protects it.
    let words = unsafe { &(*copy).words };
    walk.still_holds(|offset| {
        if offset < COPY_BYTES {
            Some(words[masked::<COPY_WORDS>(offset as usize / 8)])
        } else {
            // SAFETY: the helper checks the address and fails if it cannot be read.
            unsafe { bpf_probe_read_user((walk.start_sp + offset as u64) as *const u64) }.ok()
        }
    })
}

/// The set of mappings of an address space; 0, which has none, if it is not known.
#[inline(always)]
pub fn layout_of(space: u32) -> u32 {
    match maps::SPACES.get_ptr(&space) {
        // SAFETY: the pointer is to a map's element.
        Some(space) => unsafe { (*space).layout },
        None => 0,
    }
}

/// The key of a stack in [`maps::STACK_IDS`].
#[inline(always)]
pub fn stack_key(space: u32, frames: u64) -> u64 {
    (frames ^ (space as u64).rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The index of the stack that the walk found, with books of this class and kind; [`OVERFLOW_STACK`] if the tables are
/// full.
#[inline(always)]
pub fn intern(space: u32, walk: &mut Walk, reason: EndReason, class: Class, kind: u8) -> u32 {
    let what = ((class as u64) << 8 | kind as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let hash = stack_key(space, walk.hash ^ reason as u64 ^ what);
    if let Some(id) = maps::STACK_IDS.get_ptr(&hash) {
        // SAFETY: the pointer is to a map's element, which is never removed.
        return unsafe { *id };
    }
    let Some(id) = store(space, walk, hash, reason) else {
        if class as u8 == Class::Heap as u8 {
            count(Counter::StacksFull, 1);
        }
        return OVERFLOW_STACK;
    };
    if let Some(stack) = maps::STACKS.get_ptr_mut(id) {
        // SAFETY: the element was reserved for this stack, and is not ready so far.
        unsafe {
            (*stack).class = class as u8;
            (*stack).kind = kind;
            (*stack).ready = 1;
        }
    }
    if maps::STACK_IDS.insert(&hash, &id, BPF_NOEXIST as u64).is_ok() {
        return id;
    }
    // Another thread was first, or the table is full. The copy stored here stays, without a block.
    match maps::STACK_IDS.get_ptr(&hash) {
        // SAFETY: as above.
        Some(id) => unsafe { *id },
        None => id,
    }
}

/// Gives the stack an index, and sends its frames to user space.
#[inline(always)]
fn store(space: u32, walk: &mut Walk, key: u64, reason: EndReason) -> Option<u32> {
    let id = free_index()?;
    walk.header = FramesHeader {
        stack: id,
        len: walk.frames_len,
    };
    if !send_frames(walk) {
        let _never_full = maps::FREE_STACKS.push(id, 0);
        return None;
    }
    let stack = maps::STACKS.get_ptr_mut(id)?;
    // SAFETY: the element was reserved for this stack.
    unsafe {
        (*stack).key = key;
        (*stack).end = reason as u8;
        (*stack).space = space;
        (*stack).origin = 0;
    }
    Some(id)
}

/// An index that no stack has; `None` if the table is full.
#[inline(always)]
pub fn free_index() -> Option<u32> {
    if let Ok(Some(id)) = maps::FREE_STACKS.pop() {
        return Some(id);
    }
    let control = maps::CONTROL.get_ptr_mut(0)?;
    // SAFETY: the pointers are to words of a map's element.
    unsafe {
        // Positions stop near the end of the table, so that they never come round to used elements.
        if (*control).next_stack >= (*control).stacks {
            return None;
        }
        let id = atomic::fetch_add(&raw mut (*control).next_stack, 1);
        (id < (*control).stacks).then_some(id as u32)
    }
}

/// False if there is no room until user space has read.
#[inline(always)]
fn send_frames(walk: &mut Walk) -> bool {
    const HEADER: u64 = size_of::<FramesHeader>() as u64;
    let map = (&raw const maps::FRAMES).cast_mut().cast();
    let frames = masked::<{ 2 * MAX_FRAMES }>(walk.frames_len as usize) as u64;
    if frames > MAX_FRAMES as u64 {
        return false;
    }
    // SAFETY: the map is one. Header and frames lie next to each other in the walk, which this thread holds the lock of.
    unsafe {
        let waiting = bpf_ringbuf_query(map, BPF_RB_AVAIL_DATA as u64);
        // User space reads when it needs the frames, or here.
        let flags = match waiting > FRAMES_BYTES as u64 / 2 {
            true => BPF_RB_FORCE_WAKEUP,
            false => BPF_RB_NO_WAKEUP,
        };
        bpf_ringbuf_output(
            map,
            (&raw mut walk.header).cast(),
            HEADER + 8 * frames,
            flags as u64,
        ) == 0
    }
}
