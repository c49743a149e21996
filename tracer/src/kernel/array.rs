//! A BPF array that user space reads and writes in place.

use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use memmap2::{MmapOptions, MmapRaw};

use super::KernelError;

/// An array with `BPF_F_MMAPABLE`, mapped into memory. Programs change it at any time, so every access is volatile.
#[derive(Debug)]
pub struct MappedArray<T> {
    memory: MmapRaw,
    /// Programs that are loaded later look for the map's descriptor.
    _map: MapData,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Copy> MappedArray<T> {
    /// Maps the array called `name`.
    ///
    /// # Errors
    /// When there is no such array or the kernel refuses.
    pub fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, KernelError> {
        // The kernel rounds elements up to eight bytes (`kernel/bpf/arraymap.c`).
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(KernelError::Missing(name));
        };
        let len = map
            .info()
            .map_err(|source| KernelError::Map { name, source })?
            .max_entries() as usize;
        let memory = MmapOptions::new()
            .len(len * size_of::<T>())
            .map_raw(map.fd().as_fd().as_raw_fd())
            .map_err(|source| KernelError::Memory { name, source })?;
        Ok(Self {
            memory,
            _map: map,
            len,
            element: PhantomData,
        })
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The element at `index`, as it is now.
    pub fn get(&self, index: usize) -> Option<T> {
        // SAFETY: the index is checked, elements are plain data of any bit pattern, and the memory is page-aligned.
        (index < self.len).then(|| unsafe { self.pointer(index).read_volatile() })
    }

    /// Changes the element at `index`; `false` if there is none.
    pub fn set(&self, index: usize, value: T) -> bool {
        if index >= self.len {
            return false;
        }
        // SAFETY: as for `get`.
        unsafe { self.pointer(index).write_volatile(value) };
        true
    }

    /// The address of the element at `index`, which the caller has checked.
    pub fn pointer(&self, index: usize) -> *mut T {
        self.memory.as_mut_ptr().cast::<T>().wrapping_add(index)
    }
}
