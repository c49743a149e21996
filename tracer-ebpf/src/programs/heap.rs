//! The books of the heap: an allocation is booked when it returned, a free when it is entered.
//!
//! After a free is entered the address may belong to another thread, and before an allocation returned nobody can
//! free it: so the books never hold a block twice.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST, pt_regs},
    helpers::{bpf_get_attach_cookie, bpf_ktime_get_ns, bpf_probe_read_user},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use memtrace_ebpf::{
    bound::{masked, opaque},
    layout::{Block, BlockKey, CallKind, Control, Counter, TICK_SHIFT, entry, exit},
};

use super::{
    atomic,
    calls::{drop_abandoned, is_allocators_own, pop, pop_at_exit, thread_state},
    count, current, inherit,
    maps::{self, Call, MAX_NESTED},
    process, recording,
    sampling::{Worth, is_chosen},
    stack,
};

/// [`Block::stack`] of a block that is not there.
const NO_BLOCK: u32 = u32::MAX;
/// [`entry::NONE`], as [`entry::part`] returns it.
const NO_REGISTER: u32 = entry::NONE as u32;
/// [`entry::EXITS`], as [`entry::part`] returns it.
const EXITS: u32 = entry::EXITS as u32;
/// `-EEXIST` (`include/uapi/asm-generic/errno-base.h`).
const EXISTS: i32 = -17;

/// `malloc(size)`, `valloc(size)`, `pvalloc(size)`.
#[uprobe]
fn enter_malloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let size = unsafe { (*ctx.regs).rdi };
    enter(&ctx, CallKind::Block as u32, size, 0)
}

/// `calloc(count, size)`.
#[uprobe]
fn enter_calloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let size = unsafe { product((*ctx.regs).rdi, (*ctx.regs).rsi) };
    enter(&ctx, CallKind::Block as u32, size, 0)
}

/// `memalign(alignment, size)`, `aligned_alloc(alignment, size)`.
#[uprobe]
fn enter_memalign(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let size = unsafe { (*ctx.regs).rsi };
    enter(&ctx, CallKind::Block as u32, size, 0)
}

/// `posix_memalign(result, alignment, size)`.
#[uprobe]
fn enter_posix_memalign(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let (result, size) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rdx) };
    enter(&ctx, CallKind::Memalign as u32, size, result)
}

/// `realloc(block, size)`.
#[uprobe]
fn enter_realloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let (block, size) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rsi) };
    enter(&ctx, CallKind::Realloc as u32, size, block)
}

/// `reallocarray(block, count, size)`.
#[uprobe]
fn enter_reallocarray(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let (block, size) = unsafe { ((*ctx.regs).rdi, product((*ctx.regs).rsi, (*ctx.regs).rdx)) };
    enter(&ctx, CallKind::Realloc as u32, size, block)
}

/// An allocating function whose arguments are where the probe's cookie says.
#[uprobe]
fn enter_described(ctx: ProbeContext) -> u32 {
    // SAFETY: the context and the registers are those that the kernel passed to this program.
    let (cookie, regs) = unsafe { (bpf_get_attach_cookie(ctx.as_ptr()), &*ctx.regs) };
    let kind = entry::part(cookie, 0);
    let size = register(regs, entry::part(cookie, 1));
    let size = match entry::part(cookie, 2) {
        NO_REGISTER => size,
        number => product(register(regs, number), size),
    };
    enter(&ctx, kind, size, register(regs, entry::part(cookie, 3)))
}

/// `free(block)`.
#[uprobe]
fn enter_free(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let address = unsafe { (*ctx.regs).rdi };
    let (space, tid) = current();
    let Some(control) = recording(&ctx, space).filter(|_| address != 0) else {
        return 0;
    };
    release(control, space, tid, address);
    0
}

/// `operator delete(block, …)`, `sdallocx(block, …)`: as [`enter_free`], which it may call.
#[uprobe]
fn enter_delete(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let address = unsafe { (*ctx.regs).rdi };
    let (space, tid) = current();
    let Some(control) = recording(&ctx, space).filter(|_| address != 0) else {
        return 0;
    };
    release(control, space, tid, address);
    if let Some(thread) = thread_state(tid) {
        thread.freed = address;
    }
    0
}

/// The return of every allocating function.
#[uretprobe]
fn leave(ctx: RetProbeContext) -> u32 {
    let (space, tid) = current();
    let Some(control) = recording(&ctx, space) else {
        return 0;
    };
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        count(Counter::UnmatchedReturns, 1);
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile. The registers are valid.
    let (thread, sp, result) = unsafe { (&mut *thread, (*ctx.regs).rsp, (*ctx.regs).rax) };
    if !pop(thread, sp) {
        return 0;
    }
    thread.address = settle(control, space, &thread.calls[0], result);
    thread.size = thread.calls[0].size;
    if thread.address == 0 {
        return 0;
    }
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    stack::find_and_book(&ctx, regs, stack::From::Caller, control, (space, tid), thread);
    0
}

/// Where a function returns that may throw: an exception must not find a return probe's trampoline on the stack.
#[uprobe]
fn leave_at_exit(ctx: ProbeContext) -> u32 {
    let (space, tid) = current();
    let Some(control) = recording(&ctx, space) else {
        return 0;
    };
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile. The context and the registers are
    // those that the kernel passed to this program.
    let (thread, regs, cookie) = unsafe { (&mut *thread, &*ctx.regs, bpf_get_attach_cookie(ctx.as_ptr())) };
    let condition = (cookie >> exit::CONDITION_SHIFT) as u32 & 15;
    if cookie & exit::CONDITIONAL != 0 && !exit::is_taken(condition, regs.eflags) {
        return 0;
    }
    if !pop_at_exit(thread, regs.rsp.wrapping_add(cookie & exit::SLOT)) {
        return 0;
    }
    let result = register(regs, (cookie >> exit::REGISTER_SHIFT) as u32 & 15);
    thread.address = settle(control, space, &thread.calls[0], result);
    thread.size = thread.calls[0].size;
    if thread.address == 0 {
        return 0;
    }
    // At the return itself the registers are the caller's, but for the return address. Both are read first: the verifier
    // refuses one read that may be of either.
    let return_address = opaque(thread.calls[0].return_address);
    let mut start = stack::Start::of(regs);
    start.pc = opaque(start.pc);
    let mut from = stack::From::Inside;
    if cookie & exit::RETURNS != 0 {
        start.pc = return_address;
        start.sp = start.sp.wrapping_add(8);
        from = stack::From::Caller;
    }
    stack::find_from(&ctx, start, from, control, (space, tid), thread);
    0
}

/// The block that the call returned and that is to be booked, or 0 if there is none; what becomes of the old one is
/// booked here.
#[inline(always)]
fn settle(control: &Control, space: u32, call: &Call, result: u64) -> u64 {
    let in_place = call.kind == CallKind::InPlace as u32;
    let address = if in_place {
        if result >= call.size { call.pointer } else { 0 }
    } else if call.kind == CallKind::Memalign as u32 {
        if result == 0 { read_result(call.pointer) } else { 0 }
    } else {
        result
    };
    if call.old.stack != NO_BLOCK {
        settle_old(space, call, address);
    }
    if address == 0 && call.size != 0 && !in_place {
        count(Counter::FailedCalls, 1);
    }
    if address != 0 && is_chosen(control, call.size) {
        address
    } else {
        0
    }
}

/// Does nothing: at memtrace's sites it shows what the probes alone cost.
#[uprobe]
fn floor(_ctx: ProbeContext) -> u32 {
    0
}

/// As [`floor`], at returns.
#[uretprobe]
fn floor_return(_ctx: RetProbeContext) -> u32 {
    0
}

/// `count * size`; a product that no address space can hold stays one, so that the call is known to fail.
#[inline(always)]
fn product(count: u64, size: u64) -> u64 {
    // LLVM would make one multiplication of 128 bits of comparison and product, which BPF does not have.
    if size != 0 && count > opaque(u64::MAX / size) {
        u64::MAX
    } else {
        count.wrapping_mul(size)
    }
}

/// A register by its number in an instruction's encoding; 0 if there is none.
#[inline(always)]
fn register(regs: &pt_regs, number: u32) -> u64 {
    let registers = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, 0, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    let mut found = 0;
    for (index, value) in registers.into_iter().enumerate() {
        // The verifier allows reads at constant offsets only: LLVM must not turn this into a read at a computed one.
        let value = opaque(value);
        if index as u32 == number {
            found = value;
        }
    }
    found
}

/// Notes a call that was entered.
#[inline(always)]
fn enter(ctx: &ProbeContext, kind: u32, size: u64, pointer: u64) -> u32 {
    let (space, tid) = current();
    let Some(control) = recording(ctx, space) else {
        return 0;
    };
    let Some(thread) = thread_state(tid) else {
        count(Counter::ThreadsFull, 1);
        return 0;
    };
    // SAFETY: the kernel passes valid registers; the helper checks the address.
    let (sp, found) = unsafe {
        let sp = (*ctx.regs).rsp;
        (sp, bpf_probe_read_user(sp as *const u64).unwrap_or(0))
    };
    let return_address = drop_abandoned(thread, space, sp, found);
    let depth = thread.depth as usize;
    if depth >= MAX_NESTED {
        count(Counter::NestedTooDeep, 1);
        return 0;
    }
    let call = &mut thread.calls[masked::<MAX_NESTED>(depth)];
    call.sp = sp;
    call.return_address = return_address;
    call.size = size;
    call.pointer = pointer;
    call.kind = kind & !EXITS;
    call.has_exits = u32::from(kind & EXITS != 0);
    call.old.stack = NO_BLOCK;
    let takes_old = call.kind != CallKind::Block as u32 && call.kind != CallKind::Memalign as u32;
    if depth == 0 && takes_old && pointer != 0 {
        let key = BlockKey {
            address: pointer,
            space,
            _pad: 0,
        };
        if control.follow != 0 {
            inherit::keep_for_children(&key);
        }
        match take(&key) {
            Some(old) => call.old = old,
            // Should the call fail, which is rare, the inherited block is booked as freed all the same.
            None if control.follow != 0 && inherit::free(space, pointer) => {}
            None if control.selective == 0 => count(Counter::UnmatchedFrees, 1),
            None => {}
        }
    }
    thread.depth = depth as u32 + 1;
    0
}

/// What `posix_memalign` stored.
#[inline(always)]
fn read_result(pointer: u64) -> u64 {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(pointer as *const u64) } {
        Ok(address) => address,
        Err(_) => {
            count(Counter::UnreadableResults, 1);
            0
        }
    }
}

/// The old block of a `realloc`: freed if it moved or was asked to vanish, else still there.
#[inline(always)]
fn settle_old(space: u32, call: &Call, address: u64) {
    if address != 0 || call.size == 0 || call.kind == CallKind::Reallocf as u32 {
        return book_free(&call.old);
    }
    let key = BlockKey {
        address: call.pointer,
        space,
        _pad: 0,
    };
    if maps::LIVE.insert(&key, &call.old, BPF_ANY as u64).is_err() {
        // The room it had was taken meanwhile. It lives on unrecorded, so the books must not hold it either.
        book_free(&call.old);
        count_full(&Worth::of(call.old.size));
    }
}

/// Books that an address is freed.
#[inline(always)]
fn release(control: &Control, space: u32, tid: u32, address: u64) {
    let key = BlockKey {
        address,
        space,
        _pad: 0,
    };
    if control.follow != 0 {
        inherit::keep_for_children(&key);
    }
    if let Some(block) = take(&key) {
        return book_free(&block);
    }
    // When few blocks are recorded, this is what most frees come to.
    let tells_nothing = control.selective != 0 && control.follow == 0;
    if tells_nothing || is_allocators_own(tid, address) {
        return;
    }
    let was_inherited = control.follow != 0 && inherit::free(space, address);
    if !was_inherited && control.selective == 0 {
        count(Counter::UnmatchedFrees, 1);
    }
}

/// Removes a block from the live ones.
#[inline(always)]
fn take(key: &BlockKey) -> Option<Block> {
    let block = maps::LIVE.get_ptr(key)?;
    // SAFETY: the pointer is to a map's element. It is copied before it is removed: after that it can be reused.
    let copy = unsafe { *block };
    // Of two threads that free the same block only one may book it.
    maps::LIVE.remove(key).ok()?;
    Some(copy)
}

/// Books a block that was allocated.
#[inline(always)]
pub fn book(space: u32, address: u64, size: u64, stack: u32) {
    // SAFETY: the helper has no preconditions.
    let born = (unsafe { bpf_ktime_get_ns() } >> TICK_SHIFT) as u32;
    let key = BlockKey {
        address,
        space,
        _pad: 0,
    };
    let follow = maps::CONTROL.get(0).is_some_and(|control| control.follow != 0);
    let block = Block {
        size,
        stack,
        born,
        forks: if follow { inherit::forks(space) } else { 0 },
        _pad: 0,
    };
    let worth = Worth::of(size);
    if let Err(error) = maps::LIVE.insert(&key, &block, BPF_NOEXIST as u64) {
        if error != EXISTS {
            return count_full(&worth);
        }
        if let Some(old) = take(&key) {
            count(Counter::MissedFrees, 1);
            book_free(&old);
        }
        if maps::LIVE.insert(&key, &block, BPF_ANY as u64).is_err() {
            return count_full(&worth);
        }
    }
    if maps::CONTROL.get(0).is_some_and(|control| control.stale != 0) && process::is_stale(space) {
        count(Counter::StaleMappings, 1);
    }
    if let Some(stack) = maps::STACKS.get_ptr_mut(stack) {
        // SAFETY: the pointers are to words of a map's element.
        unsafe {
            atomic::add(&raw mut (*stack).alloc_objects, worth.objects);
            atomic::add(&raw mut (*stack).alloc_bytes, worth.bytes);
            atomic::add(
                &raw mut (*stack).born_sum,
                worth.objects.wrapping_mul(born as u64),
            );
            if worth.is_estimate {
                atomic::add(&raw mut (*stack).live_samples, 1);
            }
        }
    }
}

/// Books that a block is gone.
#[inline(always)]
pub fn book_free(block: &Block) {
    if let Some(stack) = maps::STACKS.get_ptr_mut(block.stack) {
        let worth = Worth::of(block.size);
        // SAFETY: the pointers are to words of a map's element.
        unsafe {
            atomic::add(&raw mut (*stack).freed_objects, worth.objects);
            atomic::add(&raw mut (*stack).freed_bytes, worth.bytes);
            let births = worth.objects.wrapping_mul(block.born as u64);
            atomic::add(&raw mut (*stack).born_sum, births.wrapping_neg());
            if worth.is_estimate {
                atomic::add(&raw mut (*stack).live_samples, 1_u64.wrapping_neg());
            }
        }
    }
}

/// Counts a block for which the table has no room.
#[inline(always)]
fn count_full(worth: &Worth) {
    count(Counter::BlocksFull, worth.objects);
    count(Counter::BlocksFullBytes, worth.bytes);
}
