//! Reading the books: counters, stacks and their frames, straight from the kernel's memory.

use aya::Ebpf;
use memtrace_ebpf::layout::{Counter, EndReason, OVERFLOW_STACK, Stack};

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

/// The kernel's books.
#[derive(Debug)]
pub struct Books {
    stacks: MappedArray<Stack>,
    frames: MappedArray<u64>,
    counters: MappedArray<u64>,
}

impl Books {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            stacks: MappedArray::take(ebpf, "STACKS")?,
            frames: MappedArray::take(ebpf, "FRAMES")?,
            counters: MappedArray::take(ebpf, "COUNTERS")?,
        })
    }

    /// How many stacks fit.
    pub fn stack_room(&self) -> usize {
        self.stacks.len()
    }

    /// The value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).unwrap_or(0)
    }

    /// The books of one stack, without its frames.
    pub fn stack(&self, id: usize) -> Option<Stack> {
        self.stacks.get(id)
    }

    /// The stacks among the first `count` on which anything was booked.
    pub fn used_stacks(&self, count: usize) -> Vec<RawStack> {
        (0..count).filter_map(|id| self.used_stack(id)).collect()
    }

    fn used_stack(&self, id: usize) -> Option<RawStack> {
        let books = self.stacks.get(id)?;
        if books.alloc_objects == 0 {
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
