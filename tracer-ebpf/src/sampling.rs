//! Sampling by bytes: which blocks are recorded, and how much a recorded one stands for.
//!
//! A block of `size` bytes is recorded with the probability p = 1 − e^(−size/N) that one of the points of a Poisson
//! process, N bytes apart on average, falls into it. A recorded block stands for 1/p blocks of its size. Sizes are
//! sorted into classes, fine enough that p hardly differs within one; the estimates are unbiased however coarse
//! the classes are, since the weight of a class is the inverse of the very probability with which its blocks are drawn.

/// Classes in each doubling of the size: a class is at most 1/128 wide, and sizes below 256 have one each.
const PER_DOUBLING_SHIFT: u32 = 7;

/// How many classes there are.
pub const CLASSES: usize = (64 - PER_DOUBLING_SHIFT as usize + 1) << PER_DOUBLING_SHIFT;

/// Weights are stored as multiples of 2^−10, and so are the sums on a stack: 64 bits then hold 16 PiB.
pub const WEIGHT_SHIFT: u32 = 10;

/// The thresholds are compared with random numbers of so many bits.
pub const RANDOM_BITS: u32 = 32;

/// How blocks of similar sizes are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SizeClass {
    /// A block is recorded if a random number of [`RANDOM_BITS`] is below it.
    pub threshold: u64,
    /// What a recorded block stands for: the inverse of the probability, in units of 2^−[`WEIGHT_SHIFT`].
    pub weight: u64,
}

/// The class of a size (bytes).
#[inline(always)]
pub const fn class_of(size: u64) -> u32 {
    // BPF has no instruction that counts zeros.
    let (mut rest, mut doublings) = (size >> PER_DOUBLING_SHIFT, 0);
    let mut step = 32;
    while step > 0 {
        if rest >> step != 0 {
            rest >>= step;
            doublings += step;
        }
        step /= 2;
    }
    // Below the first doubling `rest` is 0, in each other it is 1.
    ((doublings << PER_DOUBLING_SHIFT) as u64 + (size >> doublings)) as u32
}

/// The smallest size of a class (bytes), by which its probability is set: round sizes get exactly their own.
pub const fn smallest_of(class: u32) -> u64 {
    let doublings = (class >> PER_DOUBLING_SHIFT).saturating_sub(1);
    ((class - (doublings << PER_DOUBLING_SHIFT)) as u64) << doublings
}

const _: () = assert!(size_of::<SizeClass>() == 16);
const _: () = assert!(class_of(u64::MAX) as usize == CLASSES - 1);
