//! Reading the table of live blocks, many at a time.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
    sys::SyscallError,
};
use memtrace_ebpf::layout::{Block, BlockKey};

use super::KernelError;

/// `BPF_MAP_LOOKUP_BATCH` (`include/uapi/linux/bpf.h`, `enum bpf_cmd`); Linux 5.6.
const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_DELETE_ELEM`.
const MAP_DELETE_ELEM: libc::c_long = 3;
/// Blocks read by one call. The kernel wants room for a whole bucket of its hash table, which is a few blocks.
const BATCH: usize = 16 << 10;

/// The `batch` member of `union bpf_attr` (`include/uapi/linux/bpf.h`).
#[derive(Default)]
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What `BPF_MAP_DELETE_ELEM` takes (`include/uapi/linux/bpf.h`, `union bpf_attr`).
#[derive(Default)]
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The table of live blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    map: MapData,
}

impl Blocks {
    const NAME: &str = "LIVE";

    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        match ebpf.take_map(Self::NAME) {
            Some(Map::HashMap(map)) => Ok(Self { map }),
            _ => Err(KernelError::Missing(Self::NAME)),
        }
    }

    /// Shows every block that lives all the while to `visit`, once; of those that come or go meanwhile, some.
    ///
    /// # Errors
    /// When the kernel refuses; it knows this since Linux 5.6.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&BlockKey, &Block)) -> Result<(), KernelError> {
        let no_key = BlockKey {
            address: 0,
            space: 0,
            _pad: 0,
        };
        let mut keys = vec![no_key; BATCH];
        let mut blocks = vec![Block::default(); BATCH];
        // The number of a bucket: the kernel's word for where to go on.
        let mut position: Option<u32> = None;
        loop {
            let (count, is_last) = self.read_batch(&mut position, &mut keys, &mut blocks)?;
            for (key, block) in keys.iter().zip(&blocks).take(count) {
                visit(key, block);
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Removes the blocks that `choose` takes.
    ///
    /// # Errors
    /// As [`Blocks::for_each`].
    pub(super) fn remove_if(&mut self, choose: impl Fn(&BlockKey) -> bool) -> Result<(), KernelError> {
        let mut chosen = Vec::new();
        self.for_each(|key, _| {
            if choose(key) {
                chosen.push(*key);
            }
        })?;
        for key in chosen {
            self.remove(&key);
        }
        Ok(())
    }

    fn remove(&self, key: &BlockKey) {
        let mut attributes = ElementAttributes {
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            key: &raw const *key as u64,
            ..ElementAttributes::default()
        };
        // SAFETY: the kernel reads the key. That a process has removed it meanwhile is no failure.
        unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_DELETE_ELEM,
                &raw mut attributes,
                size_of::<ElementAttributes>(),
            )
        };
    }

    /// Reads the blocks from `position` on and moves it; how many there were, and whether these were the last.
    fn read_batch(
        &self,
        position: &mut Option<u32>,
        keys: &mut [BlockKey],
        blocks: &mut [Block],
    ) -> Result<(usize, bool), KernelError> {
        let begin = *position;
        let mut end = 0_u32;
        let mut attributes = BatchAttributes {
            in_batch: begin.as_ref().map_or(0, |begin| &raw const *begin as u64),
            out_batch: &raw mut end as u64,
            keys: keys.as_mut_ptr() as u64,
            values: blocks.as_mut_ptr() as u64,
            count: keys.len().min(blocks.len()) as u32,
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            ..BatchAttributes::default()
        };
        // SAFETY: the kernel writes `count` elements at most, for which keys and values have room, and one position.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<BatchAttributes>(),
            )
        };
        *position = Some(end);
        let count = attributes.count as usize;
        if result == 0 {
            return Ok((count, false));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok((count, true)),
            io_error => Err(KernelError::Map {
                name: Self::NAME,
                source: SyscallError {
                    call: "BPF_MAP_LOOKUP_BATCH",
                    io_error,
                }
                .into(),
            }),
        }
    }
}
