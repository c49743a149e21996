//! The log of changes of mappings, which the programs write and user space replays.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use memtrace_ebpf::handles::{MapEvent, MapEventKind};

use super::KernelError;

/// The log.
pub struct MapEvents {
    ring: RingBuf<MapData>,
}

impl MapEvents {
    const NAME: &str = "MAP_EVENTS";

    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf
            .take_map(Self::NAME)
            .ok_or(KernelError::Missing(Self::NAME))?;
        let ring = RingBuf::try_from(map).map_err(|source| KernelError::Map {
            name: Self::NAME,
            source,
        })?;
        Ok(Self { ring })
    }

    /// Becomes readable when there is something to read.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// The next event that was not read so far.
    pub fn take_next(&mut self) -> Option<(MapEventKind, MapEvent)> {
        loop {
            let item = self.ring.next()?;
            if item.len() < size_of::<MapEvent>() {
                continue;
            }
            // SAFETY: there are as many bytes, and any value of each is a value of the fields.
            let event: MapEvent = unsafe { item.as_ptr().cast::<MapEvent>().read_unaligned() };
            let kind = MapEventKind::ALL
                .into_iter()
                .find(|&kind| kind as u32 == event.kind);
            if let Some(kind) = kind {
                return Some((kind, event));
            }
        }
    }
}
