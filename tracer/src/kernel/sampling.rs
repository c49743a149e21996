//! With what probability blocks are recorded, by the class of their size.

use std::num::NonZeroU64;

use aya::Ebpf;
use memtrace_ebpf::sampling::{CLASSES, RANDOM_BITS, SizeClass, WEIGHT_SHIFT, class_of, smallest_of};

use super::{KernelError, array::MappedArray};

/// What a recorded block counts in the books.
#[derive(Debug, Default)]
pub(super) struct SizeClasses(Option<MappedArray<SizeClass>>);

impl SizeClasses {
    /// Fills the table by which the programs draw blocks; `mean` is the mean distance between two samples (bytes).
    pub(super) fn fill(ebpf: &mut Ebpf, mean: NonZeroU64) -> Result<Self, KernelError> {
        let classes = MappedArray::<SizeClass>::take(ebpf, "SIZE_CLASSES")?;
        for class in 0..CLASSES {
            classes.set(class, draw(smallest_of(class as u32), mean));
        }
        Ok(Self(Some(classes)))
    }

    /// As how many objects a recorded block of this size (bytes) counts, in the unit of the books.
    pub(super) fn weight(&self, size: u64) -> u64 {
        let class = self
            .0
            .as_ref()
            .and_then(|classes| classes.get(class_of(size) as usize));
        class.map_or(1, |class| class.weight)
    }

    /// A sum of the books as a whole number.
    pub(super) fn whole(&self, sum: u64) -> u64 {
        match self.0 {
            Some(_) => sum.saturating_add(1 << (WEIGHT_SHIFT - 1)) >> WEIGHT_SHIFT,
            None => sum,
        }
    }
}

/// How blocks of this size (bytes) are drawn. An empty block counts as one byte: it is an object like others.
///
/// Threshold and weight are whole numbers, each rounded so that it is the best inverse of the other: their product
/// differs from 1 by less than 3 in 10⁷, and by that estimates are biased.
fn draw(size: u64, mean: NonZeroU64) -> SizeClass {
    let always = (1_u64 << RANDOM_BITS) as f64;
    let one = (1_u64 << WEIGHT_SHIFT) as f64;
    let probability = -(-(size.max(1) as f64) / mean.get() as f64).exp_m1();
    let drawn = (probability * always).round().max(1.0);
    let weight = (one * always / drawn).round();
    let threshold = (one * always / weight).round();
    SizeClass {
        threshold: threshold as u64,
        weight: weight as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::{CLASSES, NonZeroU64, RANDOM_BITS, SizeClass, WEIGHT_SHIFT, class_of, draw, smallest_of};

    const MEANS: [u64; 7] = [1, 512, 4096, 10_000, 512 << 10, 1 << 20, 64 << 20];

    fn probability(class: &SizeClass) -> f64 {
        class.threshold as f64 / (1_u64 << RANDOM_BITS) as f64
    }

    fn mean(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).expect("it is not 0")
    }

    #[test]
    fn classes_are_contiguous_and_fine() {
        for class in 0..CLASSES as u32 {
            let smallest = smallest_of(class);
            assert_eq!(class_of(smallest), class);
            if class > 0 {
                assert_eq!(class_of(smallest - 1), class - 1, "below {smallest}");
                let width = smallest - smallest_of(class - 1);
                assert!(width == 1 || smallest_of(class - 1) / width >= 128, "{smallest}");
            }
        }
        assert_eq!(class_of(u64::MAX) as usize, CLASSES - 1);
    }

    #[test]
    fn round_sizes_have_the_probability_of_their_own() {
        for size in [1, 16, 24, 100, 255, 256, 1000, 4096, 24 << 10, 512 << 10, 1 << 20] {
            for bytes in MEANS {
                let exact = 1.0 - (-(size as f64) / bytes as f64).exp();
                let class = draw(smallest_of(class_of(size)), mean(bytes));
                let drawn = probability(&class);
                // Half of the smallest step, and half a step of a weight near 1.
                let step = 0.5 / (1_u64 << RANDOM_BITS) as f64 + exact * exact / (2 << WEIGHT_SHIFT) as f64;
                assert!(
                    (drawn - exact).abs() <= 1.01 * step,
                    "{size} of {bytes}: {drawn}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn weights_are_the_inverse_of_probabilities() {
        for bytes in MEANS {
            for class in 0..CLASSES as u32 {
                let class = draw(smallest_of(class), mean(bytes));
                let product = probability(&class) * class.weight as f64 / (1_u64 << WEIGHT_SHIFT) as f64;
                assert!((product - 1.0).abs() < 3e-7, "{bytes}: {class:?}, {product}");
            }
        }
    }

    #[test]
    fn large_blocks_are_always_drawn_and_small_ones_never_surely() {
        let large = draw(1 << 30, mean(512 << 10));
        assert_eq!(large.threshold, 1 << RANDOM_BITS);
        assert_eq!(large.weight, 1 << WEIGHT_SHIFT);
        let empty = draw(0, mean(512 << 10));
        assert_eq!(empty, draw(1, mean(512 << 10)));
        assert_eq!(empty.weight, 512 << 10 << WEIGHT_SHIFT, "one in N");
    }
}
