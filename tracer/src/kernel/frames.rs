//! The frames of the stacks. The programs send them once, when a stack is new; here they are kept.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use memtrace_ebpf::layout::FramesHeader;

use super::KernelError;

/// Frames by the index of the stack.
pub(super) struct Frames {
    ring: RingBuf<MapData>,
    known: HashMap<u32, Arc<[u64]>>,
}

impl Frames {
    const NAME: &str = "FRAMES";

    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf
            .take_map(Self::NAME)
            .ok_or(KernelError::Missing(Self::NAME))?;
        let ring = RingBuf::try_from(map).map_err(|source| KernelError::Map {
            name: Self::NAME,
            source,
        })?;
        Ok(Self {
            ring,
            known: HashMap::new(),
        })
    }

    /// Becomes readable when there is much to read.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Reads what the programs sent.
    pub(super) fn read(&mut self) {
        while let Some(item) = self.ring.next() {
            let Some((header, frames)) = item.split_at_checked(size_of::<FramesHeader>()) else {
                continue;
            };
            // SAFETY: there are as many bytes, and any value of each is a value of the fields.
            let header: FramesHeader = unsafe { header.as_ptr().cast::<FramesHeader>().read_unaligned() };
            let frames = frames.as_chunks::<8>().0.iter().take(header.len as usize);
            let frames = frames.map(|bytes| u64::from_ne_bytes(*bytes)).collect();
            self.known.insert(header.stack, frames);
        }
    }

    /// The frames of a stack, innermost first.
    pub(super) fn get(&self, stack: u32) -> Option<&Arc<[u64]>> {
        self.known.get(&stack)
    }

    /// Gives a stack the frames of another, unless it has some.
    pub(super) fn share(&mut self, stack: u32, with: u32) {
        if let Some(frames) = self.known.get(&with).cloned() {
            self.known.entry(stack).or_insert(frames);
        }
    }

    /// Forgets a stack.
    pub(super) fn forget(&mut self, stack: u32) -> Option<Arc<[u64]>> {
        self.known.remove(&stack)
    }
}
