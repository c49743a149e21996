//! Which blocks are recorded, and how much each counts. Of every block this is decided once, by its size alone: neither
//! the order of calls nor the thread matters, and a free finds the same worth without its being kept.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use memtrace_ebpf::{
    layout::Control,
    sampling::{WEIGHT_SHIFT, class_of},
};

use super::maps;

/// Whether a new block of this size (bytes) is to be recorded. To be asked once for each block.
#[inline(always)]
pub fn is_chosen(control: &Control, size: u64) -> bool {
    if size < control.min_size {
        return false;
    }
    if control.sampled == 0 {
        return true;
    }
    let Some(class) = maps::SIZE_CLASSES.get(class_of(size)) else {
        return true;
    };
    // SAFETY: the helper has no preconditions. Its result is 32 bits, whatever the type says.
    let random = unsafe { bpf_get_prandom_u32() } as u32;
    (random as u64) < class.threshold
}

/// What a recorded block adds to the books of its stack.
pub struct Worth {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
    /// Whether these are estimates, in units of 2^−[`WEIGHT_SHIFT`].
    pub is_estimate: bool,
}

impl Worth {
    /// What a block of this size (bytes) adds.
    #[inline(always)]
    pub fn of(size: u64) -> Self {
        let sampled = maps::CONTROL.get(0).is_some_and(|control| control.sampled != 0);
        if !sampled {
            return Self {
                objects: 1,
                bytes: size,
                is_estimate: false,
            };
        }
        let class = maps::SIZE_CLASSES.get(class_of(size));
        let weight = class.map_or(1 << WEIGHT_SHIFT, |class| class.weight);
        Self {
            objects: weight,
            bytes: weight.wrapping_mul(size),
            is_estimate: true,
        }
    }
}
