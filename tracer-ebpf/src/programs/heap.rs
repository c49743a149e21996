//! The books of the heap: an allocation is booked when it returned, a free when it is entered.
//!
//! After a free is entered the address may belong to another thread, and before an allocation returned nobody can
//! free it: so the books never hold a block twice.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_ktime_get_ns, bpf_probe_read_user},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use memtrace_ebpf::{
    bound::{masked, opaque},
    layout::{Block, BlockKey, Counter, TICK_SHIFT},
};

use super::{
    atomic,
    calls::{drop_abandoned, inside_allocator, pop, thread_state},
    count, current, inherit,
    maps::{self, Call, MAX_NESTED},
    process, recording,
    sampling::{Worth, is_chosen},
    stack,
};

/// [`Block::stack`] of a block that is not there.
const NO_BLOCK: u32 = u32::MAX;
/// `-EEXIST` (`include/uapi/asm-generic/errno-base.h`).
const EXISTS: i32 = -17;

/// What a call returns, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The block, or null.
    Block = 0,
    /// The block, or null if the old one stays.
    Realloc = 1,
    /// An error code; the block is stored through a pointer.
    Memalign = 2,
}

/// `malloc(size)`, `valloc(size)`, `pvalloc(size)`.
#[uprobe]
fn enter_malloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let size = unsafe { (*ctx.regs).rdi };
    enter(&ctx, Kind::Block, size, 0)
}

/// `calloc(count, size)`.
#[uprobe]
fn enter_calloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let size = unsafe { product((*ctx.regs).rdi, (*ctx.regs).rsi) };
    enter(&ctx, Kind::Block, size, 0)
}

/// `memalign(alignment, size)`, `aligned_alloc(alignment, size)`.
#[uprobe]
fn enter_memalign(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let size = unsafe { (*ctx.regs).rsi };
    enter(&ctx, Kind::Block, size, 0)
}

/// `posix_memalign(result, alignment, size)`.
#[uprobe]
fn enter_posix_memalign(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let (result, size) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rdx) };
    enter(&ctx, Kind::Memalign, size, result)
}

/// `realloc(block, size)`.
#[uprobe]
fn enter_realloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let (block, size) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rsi) };
    enter(&ctx, Kind::Realloc, size, block)
}

/// `reallocarray(block, count, size)`.
#[uprobe]
fn enter_reallocarray(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let (block, size) = unsafe { ((*ctx.regs).rdi, product((*ctx.regs).rsi, (*ctx.regs).rdx)) };
    enter(&ctx, Kind::Realloc, size, block)
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
    let key = BlockKey {
        address,
        space,
        _pad: 0,
    };
    if control.follow != 0 {
        inherit::keep_for_children(&key);
    }
    if let Some(block) = take(&key) {
        book_free(&block);
    } else if control.selective == 0
        && !inside_allocator(tid)
        && !(control.follow != 0 && inherit::free(space, address))
    {
        count(Counter::UnmatchedFrees, 1);
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
    let call = &thread.calls[0];
    let size = call.size;
    let address = if call.kind == Kind::Memalign as u32 {
        if result == 0 { read_result(call.pointer) } else { 0 }
    } else {
        result
    };
    if call.kind == Kind::Realloc as u32 && call.old.stack != NO_BLOCK {
        settle_old(space, call, address);
    }
    if address == 0 {
        if size != 0 {
            count(Counter::FailedCalls, 1);
        }
        return 0;
    }
    if !is_chosen(control, size) {
        return 0;
    }
    thread.address = address;
    thread.size = size;
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    stack::find_and_book(&ctx, regs, stack::From::Caller, control, (space, tid), thread);
    0
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

/// Notes a call that was entered.
#[inline(always)]
fn enter(ctx: &ProbeContext, kind: Kind, size: u64, pointer: u64) -> u32 {
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
    call.kind = kind as u32;
    call.old.stack = NO_BLOCK;
    if depth == 0 && kind as u32 == Kind::Realloc as u32 && pointer != 0 {
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
    if address != 0 || call.size == 0 {
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
                atomic::add(&raw mut (*stack).recorded, 1);
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
                atomic::add(&raw mut (*stack).recorded_freed, 1);
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
