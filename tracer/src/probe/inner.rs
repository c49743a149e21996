//! Sites inside `malloc` where the block is at hand before the function returns, so that no return probe is needed.
//!
//! A return probe costs as much as the trap itself. Inside the function there are instructions at which the result
//! is final and the size is still in a register. That these are on every path, once, cannot be read off a few
//! instructions at the beginning, so it was proven by hand for the builds listed here, and it is believed only if
//! the function's code is exactly the one that was looked at: its bytes are compared by a hash, with only the
//! places of other functions and of data left out. Any other build gets an entry and a return probe.

use iced_x86::{Decoder, DecoderOptions};

use super::code::{Code, direct_target};

/// What is known at an inner site.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InnerRole {
    /// The block is in `rax`, the size in `rbx`.
    Done,
    /// The size is in `rbx`; every call that gets here passes a [`InnerRole::Result`] later, if it succeeds.
    Size,
    /// The block is in `rax`, or null if there is none so far.
    Result,
}

/// One site inside a function.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InnerSite {
    pub offset: u32,
    pub role: InnerRole,
}

/// A build of `malloc` whose paths were followed.
struct Build {
    /// See [`hash`].
    hash: u64,
    /// Bytes from the stack pointer at every inner site up to the slot of the return address.
    slot: u16,
    sites: &'static [InnerSite],
}

const fn site(offset: u32, role: InnerRole) -> InnerSite {
    InnerSite { offset, role }
}

/// Debian 12's glibc 2.36. The offsets are of these instructions:
///
/// - `+0x157 jne`: the thread's cache had a block. It is in `rax`, which nothing writes from here to the `ret`
///   at `+0x182`, except that a misaligned block jumps to where the process is aborted.
/// - `+0x62 jne`: the cache had none. Every other path that can succeed begins here, once.
/// - `+0x19d je` (one thread), `+0x9c je` (several; null goes on to another arena), `+0x28d jne` (another arena):
///   each follows `test rax, rax` on the result of `_int_malloc`. From each nothing but the `ret` at `+0x100`, a
///   saved and restored `rax` around waking a waiter, or an abort can follow.
const BUILDS: &[Build] = &[Build {
    hash: 0x79c2_df11_3c10_917f,
    slot: 0x28,
    sites: &[
        site(0x157, InnerRole::Done),
        site(0x62, InnerRole::Size),
        site(0x9c, InnerRole::Result),
        site(0x19d, InnerRole::Result),
        site(0x28d, InnerRole::Result),
    ],
}];

/// The inner sites of this `malloc` and the distance to the return address (bytes), if its build is known.
pub(super) fn find(code: Code<'_>) -> Option<(&'static [InnerSite], u16)> {
    let hash = hash(code);
    let build = BUILDS.iter().find(|build| build.hash == hash)?;
    Some((build.sites, build.slot))
}

/// FNV-1a over the code, without what the linker decides: displacements from `rip`, and targets outside.
fn hash(code: Code<'_>) -> u64 {
    let mut bytes = code.bytes.to_vec();
    let mut decoder = Decoder::with_ip(64, code.bytes, code.address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let constants = decoder.get_constant_offsets(&instruction);
        let begin = (instruction.ip() - code.address) as usize;
        let leaves = direct_target(&instruction).is_some_and(|target| !code.contains(target));
        let hidden = if instruction.is_ip_rel_memory_operand() && constants.has_displacement() {
            Some((constants.displacement_offset(), constants.displacement_size()))
        } else if leaves && constants.has_immediate() {
            Some((constants.immediate_offset(), constants.immediate_size()))
        } else {
            None
        };
        if let Some((offset, size)) = hidden {
            let range = begin + offset..begin + offset + size;
            if let Some(field) = bytes.get_mut(range) {
                field.fill(0);
            }
        }
    }
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::{Code, hash};

    fn of(bytes: &[u8]) -> u64 {
        hash(Code::new(0x1000, bytes).expect("it fits"))
    }

    #[test]
    fn only_what_the_linker_decides_is_left_out() {
        // call +x; mov rax, [rip+x]; je +2; ret
        let code = |call: u8, data: u8, jump: u8| {
            vec![
                0xe8, call, 2, 0, 0, 0x48, 0x8b, 0x05, data, 0, 0, 0, 0x74, jump, 0xc3,
            ]
        };
        let plain = of(&code(0x10, 0x20, 0));
        assert_eq!(plain, of(&code(0x77, 0x20, 0)), "where another function is");
        assert_eq!(plain, of(&code(0x10, 0x66, 0)), "where data is");
        assert_ne!(plain, of(&code(0x10, 0x20, 0xf2)), "a jump inside");
        let mut other = code(0x10, 0x20, 0);
        other[6] = 0x89;
        assert_ne!(plain, of(&other), "another instruction");
    }
}
