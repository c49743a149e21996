//! Atomic operations of the BPF instruction set (v3), which `core` does not offer for this target.

use core::arch::asm;

/// Adds to the value.
///
/// # Safety
/// `pointer` is valid and aligned.
#[inline(always)]
pub unsafe fn add(pointer: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) pointer, in(reg) value) };
}

/// Adds to the value and returns what it was before.
///
/// # Safety
/// `pointer` is valid and aligned.
#[inline(always)]
pub unsafe fn fetch_add(pointer: *mut u64, mut value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) pointer, inout(reg) value);
    }
    value
}

/// Replaces `old` by `new`; tells whether it did.
///
/// # Safety
/// `pointer` is valid and aligned.
#[inline(always)]
pub unsafe fn replace(pointer: *mut u64, old: u64, new: u64) -> bool {
    let mut found = old;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) pointer, in(reg) new, inout("r0") found);
    }
    found == old
}
