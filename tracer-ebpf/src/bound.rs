//! Values that the compiler must not know more of than the verifier does.

/// The same value, of which the compiler knows nothing.
#[inline(always)]
#[cfg_attr(
    not(target_arch = "bpf"),
    expect(unused_mut, reason = "only the kernel's compiler needs to forget")
)]
pub fn opaque(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // An instruction that does nothing rather than none: line information for no instruction is refused.
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// `index` modulo `LEN`, a power of two.
///
/// Where an earlier comparison already bounds the index, LLVM leaves a mask out; the verifier, which may have lost
/// that bound, then refuses the access.
#[inline(always)]
pub fn masked<const LEN: usize>(index: usize) -> usize {
    const { assert!(LEN.is_power_of_two()) };
    opaque(index as u64) as usize & (LEN - 1)
}
