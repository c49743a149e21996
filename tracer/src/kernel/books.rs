//! Reading the books: counters, stacks and their frames, straight from the kernel's memory.

use std::mem::offset_of;

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use memtrace_ebpf::layout::{COUNTERS, Counter, EndReason, Ledger, OVERFLOW_STACK, Stack};

use super::{KernelError, array::MappedArray};

/// One stack's books with its frames.
#[derive(Clone, Debug)]
pub struct RawStack {
    /// The index of the stack.
    pub id: u32,
    /// The books.
    pub books: Stack,
    /// The frames, innermost first; empty for [`OVERFLOW_STACK`].
    pub frames: Vec<u64>,
    /// Why the walk stopped.
    pub end: EndReason,
}

/// What was counted for an address space.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters([u64; COUNTERS]);

impl Counters {
    /// The value of one.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}

/// The kernel's books.
#[derive(Debug)]
pub struct Books {
    stacks: MappedArray<Stack>,
    frames: MappedArray<u64>,
    ledgers: HashMap<MapData, u32, [u8; size_of::<Ledger>()]>,
}

impl Books {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            stacks: MappedArray::take(ebpf, "STACKS")?,
            frames: MappedArray::take(ebpf, "FRAMES")?,
            ledgers: super::spaces::take(ebpf, "LEDGERS")?,
        })
    }

    /// How many stacks fit.
    pub fn stack_room(&self) -> usize {
        self.stacks.len()
    }

    /// Begins to count for an address space.
    ///
    /// # Errors
    /// When there is no room.
    pub fn open(&mut self, space: u32) -> Result<(), KernelError> {
        let opened = self.ledgers.insert(space, [0; size_of::<Ledger>()], 0);
        opened.map_err(|source| KernelError::Map {
            name: "LEDGERS",
            source,
        })
    }

    /// Forgets what was counted for an address space.
    pub fn close(&mut self, space: u32) {
        let _unknown = self.ledgers.remove(&space);
    }

    /// The values of the counters of an address space, by [`Counter`].
    pub fn counters(&self, space: u32) -> Counters {
        let mut counters = Counters::default();
        let ledger = self.ledgers.get(&space, 0).unwrap_or([0; size_of::<Ledger>()]);
        let bytes = ledger[offset_of!(Ledger, counters)..].as_chunks::<8>().0;
        for (counter, bytes) in counters.0.iter_mut().zip(bytes) {
            *counter = u64::from_ne_bytes(*bytes);
        }
        counters
    }

    /// The books of one stack, without its frames.
    pub fn stack(&self, id: usize) -> Option<Stack> {
        self.stacks.get(id)
    }

    /// The stacks among the first `count` on which anything was booked for an address space. What has no stack belongs to
    /// all.
    pub fn used_stacks(&self, count: usize, space: u32) -> Vec<RawStack> {
        (0..count).filter_map(|id| self.used_stack(id, space)).collect()
    }

    fn used_stack(&self, id: usize, space: u32) -> Option<RawStack> {
        let books = self.stacks.get(id)?;
        if books.alloc_objects == 0 || (books.space != space && id as u32 != OVERFLOW_STACK) {
            return None;
        }
        if id as u32 == OVERFLOW_STACK {
            return Some(RawStack {
                id: OVERFLOW_STACK,
                books,
                frames: Vec::new(),
                end: EndReason::Running,
            });
        }
        let start = books.frames_start as usize;
        let frames = (start..start + usize::from(books.frames_len))
            .map_while(|i| self.frames.get(i))
            .collect();
        let end = EndReason::from_u8(books.end).unwrap_or(EndReason::OutOfSteps);
        Some(RawStack {
            id: id as u32,
            books,
            frames,
            end,
        })
    }
}
