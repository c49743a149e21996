//! Reading the books: counters, stacks and their frames, straight from the kernel's memory.

use std::{mem::offset_of, ops::Range, os::fd::BorrowedFd};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use memtrace_ebpf::handles::{Class, FdKind};
use memtrace_ebpf::layout::{
    Block, BlockKey, COUNTERS, Counter, EndReason, FREED, GONE, Ledger, OPENED_BY_IO_URING, OVERFLOW_STACK,
    Stack,
};

use super::{
    KernelError, array::MappedArray, blocks::BatchMap, frames::Frames, reuse::Reuse, sampling::SizeClasses,
};

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
#[derive(Clone, Copy, Debug)]
pub struct Counters([u64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Counters {
    /// The value of one.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// How many descriptors of a kind an io_uring opened without a stack.
    pub fn opened_by_io_uring(&self, kind: FdKind) -> u64 {
        self.0
            .get(OPENED_BY_IO_URING + kind as usize)
            .copied()
            .unwrap_or(0)
    }
}

/// Live blocks of one stack. Objects, bytes and births are in the unit of the books, see [`Books::whole`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Blocks.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
    /// Sum of the times of birth (ticks); wraps.
    pub born_sum: u64,
    /// When blocks are sampled: how many these are.
    pub samples: u64,
}

impl Live {
    /// What lives of a stack's blocks. The programs change one number after the other, so a reading in between can be
    /// ahead.
    pub fn of(stack: &Stack) -> Self {
        Self {
            objects: stack.alloc_objects.saturating_sub(stack.freed_objects),
            bytes: stack.alloc_bytes.saturating_sub(stack.freed_bytes),
            born_sum: stack.born_sum,
            samples: stack.live_samples,
        }
    }

    fn add(&mut self, block: &Block, weight: u64) {
        self.objects += weight;
        self.bytes = self.bytes.wrapping_add(weight.wrapping_mul(block.size));
        let births = weight.wrapping_mul(block.born.into());
        self.born_sum = self.born_sum.wrapping_add(births);
        self.samples += 1;
    }
}

/// The kernel's books.
pub struct Books {
    pub(super) blocks: BatchMap<BlockKey, Block>,
    classes: SizeClasses,
    pub(super) stacks: MappedArray<Stack>,
    pub(super) frames: Frames,
    pub(super) reuse: Reuse,
    ledgers: HashMap<MapData, u32, [u8; size_of::<Ledger>()]>,
}

impl Books {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            blocks: BatchMap::take(ebpf, "LIVE")?,
            classes: SizeClasses::default(),
            stacks: MappedArray::take(ebpf, "STACKS")?,
            frames: Frames::take(ebpf)?,
            reuse: Reuse::take(ebpf)?,
            ledgers: super::spaces::take(ebpf, "LEDGERS")?,
        })
    }

    /// From now on blocks are sampled.
    pub(super) fn set_classes(&mut self, classes: SizeClasses) {
        self.classes = classes;
    }

    /// A sum of objects or bytes in the books as a whole number: samples are added up in fractions.
    pub fn whole(&self, sum: u64) -> u64 {
        self.classes.whole(sum)
    }

    /// The live blocks that `choose` takes, added up by the index of their stack: stacks beyond the end have none.
    ///
    /// It takes some 0.3 s for a million blocks.
    ///
    /// # Errors
    /// When the kernel does not let the table be read.
    pub fn live_blocks(&self, choose: impl Fn(&BlockKey, &Block) -> bool) -> Result<Vec<Live>, KernelError> {
        let mut live = Vec::new();
        self.blocks.for_each(|key, block| {
            let stack = block.stack as usize;
            if key.space & (FREED | GONE) != 0 || !choose(key, block) || stack >= self.stack_room() {
                return;
            }
            if live.len() <= stack {
                live.resize(stack + 1, Live::default());
            }
            live[stack].add(block, self.classes.weight(block.size));
        })?;
        Ok(live)
    }

    /// The bytes of the live blocks of an address space that lie in each of these ranges, which are in ascending order and
    /// disjoint; estimates when blocks are sampled. Blocks that it inherited are its ancestors', and not among them.
    ///
    /// It takes as long as [`Books::live_blocks`].
    ///
    /// # Errors
    /// When the kernel does not let the table be read.
    pub fn live_bytes_in(&self, space: u32, ranges: &[Range<u64>]) -> Result<Vec<u64>, KernelError> {
        let mut sums = vec![0_u64; ranges.len()];
        self.blocks.for_each(|key, block| {
            if key.space != space {
                return;
            }
            let end = key.address.saturating_add(block.size);
            let weight = self.classes.weight(block.size);
            let first = ranges.partition_point(|range| range.end <= key.address);
            let reached = ranges.iter().zip(&mut sums).skip(first);
            for (range, sum) in reached.take_while(|(range, _)| range.start < end) {
                let bytes = range.end.min(end).saturating_sub(range.start.max(key.address));
                *sum = sum.saturating_add(weight.saturating_mul(bytes));
            }
        })?;
        Ok(sums.into_iter().map(|sum| self.whole(sum)).collect())
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

    /// The stacks among the first `count` on which anything of this class was booked for an address space. Blocks that have
    /// no stack belong to all.
    pub fn used_stacks(&self, count: usize, space: u32, class: Class) -> Vec<RawStack> {
        let used = (0..count).filter_map(|id| self.used_stack(id, space));
        let all = used.chain(self.reuse.retired(space));
        all.filter(|stack| stack.books.class == class as u8).collect()
    }

    /// One stack with its frames, whomever it belongs to; `None` if nothing was booked there.
    pub fn stack_with_frames(&self, id: u32) -> Option<RawStack> {
        let space = self.stacks.get(id as usize)?.space;
        self.used_stack(id as usize, space)
    }

    /// Reads the frames that the programs sent; before anything else that needs them.
    pub fn read_frames(&mut self) {
        self.frames.read();
    }

    /// The descriptor that becomes readable when many frames wait to be read.
    pub fn frames_fd(&self) -> BorrowedFd<'_> {
        self.frames.fd()
    }

    fn used_stack(&self, id: usize, space: u32) -> Option<RawStack> {
        let books = self.stacks.get(id)?;
        if books.ready == 0 && id as u32 != OVERFLOW_STACK {
            return None;
        }
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
        let id = id as u32;
        let frames = self.frames.get(id).or_else(|| self.frames.get(books.origin));
        Some(RawStack {
            id,
            books,
            frames: frames.map_or_else(Vec::new, |frames| frames.to_vec()),
            end: end_of(&books),
        })
    }
}

/// Why the walk of a stack stopped.
pub(super) fn end_of(stack: &Stack) -> EndReason {
    EndReason::from_u8(stack.end).unwrap_or(EndReason::OutOfSteps)
}
