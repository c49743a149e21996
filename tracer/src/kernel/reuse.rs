//! Long runs: what the tables hold of the past makes room for the present.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{self, MapData, Queue},
};
use memtrace_ebpf::handles::Class;
use memtrace_ebpf::layout::{BlockKey, OVERFLOW_STACK, Stack};

use super::{Books, KernelError, RawStack, books::Live};

/// From which part of the table of stacks on those that hold nothing are moved out of it.
const CROWDED: f64 = 0.75;
/// How many stacks are kept outside of the table; what comes after is added up without its frames.
const KEPT: usize = 1 << 20;

/// [`RawStack::id`] of what is not in the kernel's table any more.
pub const RETIRED: u32 = u32::MAX - 8;

/// What tells stacks outside of the table apart: address space, reason of the end, class and kind, frames.
type Retired = (u32, [u8; 3], Arc<[u64]>);

/// Stacks that are not in the kernel's table any more, and those that are about to leave it.
pub(super) struct Reuse {
    free: Queue<MapData, u32>,
    ids: maps::HashMap<MapData, u64, u32>,
    /// What was allocated at stacks that hold nothing any more.
    retired: HashMap<Retired, Stack>,
    /// Stacks that the programs do not find any more, with the objects allocated by then.
    leaving: HashMap<u32, u64>,
}

impl Reuse {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let name = "FREE_STACKS";
        let map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
        let free = Queue::try_from(map).map_err(|source| KernelError::Map { name, source })?;
        Ok(Self {
            free,
            ids: super::spaces::take(ebpf, "STACK_IDS")?,
            retired: HashMap::new(),
            leaving: HashMap::new(),
        })
    }

    /// What is kept of an address space.
    pub(super) fn retired(&self, space: u32) -> impl Iterator<Item = RawStack> {
        let of = move |(key, _): &(&Retired, &Stack)| key.0 == space;
        self.retired
            .iter()
            .filter(of)
            .map(|((_, _, frames), books)| RawStack {
                id: RETIRED,
                books: *books,
                frames: frames.to_vec(),
                end: super::books::end_of(books),
            })
    }
}

impl Books {
    /// Gives the room of address spaces that are no more back. Their books have been read for the last time.
    ///
    /// `has_heirs` tells whether a process may still hold blocks that it has from this address space, or from the parent of
    /// this one after that forked it ([`memtrace_ebpf::layout::GONE`]).
    ///
    /// # Errors
    /// When the kernel does not let the tables be read.
    pub fn give_back(
        &mut self,
        count: usize,
        spaces: &HashSet<u32>,
        has_heirs: impl Fn(&BlockKey) -> bool,
    ) -> Result<(), KernelError> {
        self.read_frames();
        self.settle_inherited(count);
        for id in 1..count {
            let stack = self.stacks.get(id).filter(|stack| stack.ready != 0);
            if let Some(stack) = stack.filter(|stack| spaces.contains(&stack.space)) {
                let _not_there = self.reuse.ids.remove(&stack.key);
                self.free_stack(id as u32);
            }
        }
        self.reuse
            .retired
            .retain(|(space, ..), _| !spaces.contains(space));
        for &space in spaces {
            self.close(space);
        }
        self.blocks.remove_if(|key| !has_heirs(key))
    }

    /// Moves stacks at which nothing is held any more out of the table, if that is nearly full; in two calls, so that no
    /// program is about to book on what moves. True if the programs must distrust earlier walks.
    ///
    /// `held` are those at which descriptors or mappings are held.
    pub fn make_room(&mut self, count: usize, held: &HashSet<u32>) -> bool {
        let leaving = std::mem::take(&mut self.reuse.leaving);
        for (id, objects) in leaving {
            let stack = self.stacks.get(id as usize);
            if let Some(stack) =
                stack.filter(|stack| stack.alloc_objects == objects && is_idle(id, stack, held))
            {
                self.retire(id, stack);
            }
        }
        if !self.is_crowded(count) {
            return false;
        }
        self.read_frames();
        self.settle_inherited(count);
        for id in 1..count {
            let Some(stack) = self
                .stacks
                .get(id)
                .filter(|stack| stack.ready != 0 && is_idle(id as u32, stack, held))
            else {
                continue;
            };
            if id as u32 != OVERFLOW_STACK && self.reuse.ids.remove(&stack.key).is_ok() {
                self.reuse.leaving.insert(id as u32, stack.alloc_objects);
            }
        }
        !self.reuse.leaving.is_empty()
    }

    /// Whether [`Books::make_room`] has something to do.
    pub fn wants_room(&self, count: usize) -> bool {
        !self.reuse.leaving.is_empty() || self.is_crowded(count)
    }

    fn is_crowded(&self, count: usize) -> bool {
        let crowd = CROWDED * self.stack_room() as f64;
        if (count as f64) < crowd {
            return false;
        }
        let used = (0..count).filter(|&id| self.stacks.get(id).is_some_and(|stack| stack.ready != 0));
        used.count() as f64 >= crowd
    }

    fn retire(&mut self, id: u32, stack: Stack) {
        let mut frames = self.frames.get(id).cloned().unwrap_or_default();
        if self.reuse.retired.len() >= KEPT {
            frames = Arc::default();
        }
        let kept = self
            .reuse
            .retired
            .entry((stack.space, [stack.end, stack.class, stack.kind], frames))
            .or_insert(Stack {
                alloc_objects: 0,
                alloc_bytes: 0,
                freed_objects: 0,
                freed_bytes: 0,
                born_sum: 0,
                live_samples: 0,
                ..stack
            });
        kept.alloc_objects += stack.alloc_objects;
        kept.alloc_bytes = kept.alloc_bytes.wrapping_add(stack.alloc_bytes);
        kept.freed_objects += stack.freed_objects;
        kept.freed_bytes = kept.freed_bytes.wrapping_add(stack.freed_bytes);
        self.free_stack(id);
    }

    fn free_stack(&mut self, id: u32) {
        self.stacks.set(id as usize, Stack::default());
        self.frames.forget(id);
        if let Err(error) = self.reuse.free.push(id, 0) {
            // It stays empty until the end.
            log::debug!("stack {id} is not used again: {error}");
        }
    }

    /// What a child inherited has the frames of its ancestor's stack, which may be about to go.
    fn settle_inherited(&mut self, count: usize) {
        for id in 1..count {
            if let Some(stack) = self.stacks.get(id).filter(|stack| stack.origin != 0) {
                self.frames.share(id as u32, stack.origin);
            }
        }
    }
}

/// Whether nothing that was allocated, opened or mapped there is held.
fn is_idle(id: u32, stack: &Stack, held: &HashSet<u32>) -> bool {
    match stack.class {
        class if class == Class::Heap as u8 => stack.origin == 0 && Live::of(stack).objects == 0,
        class if class == Class::Growth as u8 => true,
        _ => !held.contains(&id),
    }
}
