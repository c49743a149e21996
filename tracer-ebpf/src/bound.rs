//! Indices that the verifier believes.

/// `index` modulo `LEN`, a power of two.
///
/// Where an earlier comparison already bounds the index, LLVM leaves a mask out; the verifier, which may have lost
/// that bound, then refuses the access. Here the compiler forgets what it knows before it masks.
#[inline(always)]
#[cfg_attr(
    not(target_arch = "bpf"),
    expect(unused_mut, reason = "only the kernel's compiler needs to forget")
)]
pub fn masked<const LEN: usize>(mut index: usize) -> usize {
    const { assert!(LEN.is_power_of_two()) };
    #[cfg(target_arch = "bpf")]
    // An instruction that does nothing rather than none: line information for no instruction is refused.
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) index, options(pure, nomem, nostack, preserves_flags));
    }
    index & (LEN - 1)
}
