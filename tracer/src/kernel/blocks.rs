//! Reading a hash map of the programs, many elements at a time.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
};

use super::KernelError;
use aya::{
    Ebpf,
    maps::{Map, MapData},
    sys::SyscallError,
};

/// `BPF_MAP_LOOKUP_BATCH` (`include/uapi/linux/bpf.h`, `enum bpf_cmd`); Linux 5.6.
const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_ELEM`, and its flag `BPF_NOEXIST`.
const MAP_UPDATE_ELEM: libc::c_long = 2;
const NOEXIST: u64 = 1;
/// `BPF_MAP_DELETE_ELEM`.
const MAP_DELETE_ELEM: libc::c_long = 3;
/// Elements read by one call. The kernel wants room for a whole bucket of its hash table, which is a few.
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

/// What `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM` take (`include/uapi/linux/bpf.h`, `union bpf_attr`).
#[derive(Default)]
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A hash map with keys and values that are plain data: without padding, and of any bit pattern.
#[derive(Debug)]
pub(super) struct BatchMap<K, V> {
    name: &'static str,
    map: MapData,
    element: PhantomData<(K, V)>,
}

impl<K: Copy + Default, V: Copy + Default> BatchMap<K, V> {
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, KernelError> {
        match ebpf.take_map(name) {
            Some(Map::HashMap(map)) => Ok(Self {
                name,
                map,
                element: PhantomData,
            }),
            _ => Err(KernelError::Missing(name)),
        }
    }

    /// Shows every element that is there all the while to `visit`, once; of those that come or go meanwhile, some.
    ///
    /// # Errors
    /// When the kernel refuses; it knows this since Linux 5.6.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), KernelError> {
        let mut keys = vec![K::default(); BATCH];
        let mut values = vec![V::default(); BATCH];
        // The number of a bucket: the kernel's word for where to go on.
        let mut position: Option<u32> = None;
        loop {
            let (count, is_last) = self.read_batch(&mut position, &mut keys, &mut values)?;
            for (key, value) in keys.iter().zip(&values).take(count) {
                visit(key, value);
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Adds an element, unless there is one with its key.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn insert_new(&self, key: &K, value: &V) -> Result<(), KernelError> {
        let mut attributes = ElementAttributes {
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            key: &raw const *key as u64,
            value: &raw const *value as u64,
            flags: NOEXIST,
            ..ElementAttributes::default()
        };
        // SAFETY: the kernel reads key and value.
        let result = unsafe { element_call(MAP_UPDATE_ELEM, &mut attributes) };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            io_error => Err(self.refused("BPF_MAP_UPDATE_ELEM", io_error)),
        }
    }

    /// Removes the elements that `choose` takes.
    ///
    /// # Errors
    /// As [`BatchMap::for_each`].
    pub(super) fn remove_if(&mut self, choose: impl Fn(&K) -> bool) -> Result<(), KernelError> {
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

    fn remove(&self, key: &K) {
        let mut attributes = ElementAttributes {
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            key: &raw const *key as u64,
            ..ElementAttributes::default()
        };
        // SAFETY: the kernel reads the key. That a process has removed it meanwhile is no failure.
        unsafe { element_call(MAP_DELETE_ELEM, &mut attributes) };
    }

    /// Reads elements from `position` on and moves it; how many there were, and whether these were the last.
    fn read_batch(
        &self,
        position: &mut Option<u32>,
        keys: &mut [K],
        values: &mut [V],
    ) -> Result<(usize, bool), KernelError> {
        let begin = *position;
        let mut end = 0_u32;
        let mut attributes = BatchAttributes {
            in_batch: begin.as_ref().map_or(0, |begin| &raw const *begin as u64),
            out_batch: &raw mut end as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len().min(values.len()) as u32,
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
            io_error => Err(self.refused("BPF_MAP_LOOKUP_BATCH", io_error)),
        }
    }

    fn refused(&self, call: &'static str, io_error: io::Error) -> KernelError {
        KernelError::Map {
            name: self.name,
            source: SyscallError { call, io_error }.into(),
        }
    }
}

/// # Safety
/// The attributes hold what the command takes.
unsafe fn element_call(command: libc::c_long, attributes: &mut ElementAttributes) -> libc::c_long {
    // SAFETY: the caller's promise.
    unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut *attributes,
            size_of::<ElementAttributes>(),
        )
    }
}
