//! Maps by packed frame and by other words, for snapshots with millions of them.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map whose keys are packed frames ([`memtrace_ebpf::unwind::frame`]).
pub(crate) type FrameMap<T> = HashMap<u64, T, WordHashing>;

/// How keys are hashed that consist of words.
pub(crate) type WordHashing = BuildHasherDefault<FrameHasher>;

/// Mixes one word. The default hasher took most of a large snapshot's time.
#[derive(Default)]
pub(crate) struct FrameHasher(u64);

impl Hasher for FrameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.write_u64(u64::from_ne_bytes(*word));
        }
        for byte in rest {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // Multiplication carries upwards, the map takes its bits from both ends: fold the halves (as in wyhash).
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
