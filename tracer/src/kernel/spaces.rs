//! Which processes are traced, and what the programs know of their address spaces.

use std::mem::offset_of;

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use memtrace_ebpf::layout::{Member, Space, Wish, WishKey};

use super::KernelError;

/// The programs' tables of processes and address spaces.
#[derive(Debug)]
pub struct Spaces {
    processes: HashMap<MapData, u32, [u8; size_of::<Member>()]>,
    spaces: HashMap<MapData, u32, [u8; size_of::<Space>()]>,
    wishes: HashMap<MapData, [u8; size_of::<WishKey>()], u32>,
}

impl Spaces {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            processes: take(ebpf, "PROCESSES")?,
            spaces: take(ebpf, "SPACES")?,
            wishes: take(ebpf, "WISHES")?,
        })
    }

    /// Begins to trace a process, in an address space of its own.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add(&mut self, process: u32, space: u32, layout: u32) -> Result<(), KernelError> {
        self.describe(space, layout, 0)?;
        let mut member = [0; size_of::<Member>()];
        for offset in [
            offset_of!(Member, space),
            // The numbers of address spaces serve as those of their descriptor tables, too.
            offset_of!(Member, table),
            offset_of!(Member, stacks),
        ] {
            put(&mut member, offset, space.to_ne_bytes());
        }
        let inserted = self.processes.insert(process, member, 0);
        inserted.map_err(|source| KernelError::Map {
            name: "PROCESSES",
            source,
        })
    }

    /// Says which mappings an address space has, and where its return probes return to (virtual address, 0: not known).
    ///
    /// # Errors
    /// When there is no room.
    pub fn describe(&mut self, space: u32, layout: u32, trampoline: u64) -> Result<(), KernelError> {
        let mut value = [0; size_of::<Space>()];
        put(
            &mut value,
            offset_of!(Space, trampoline),
            trampoline.to_ne_bytes(),
        );
        put(&mut value, offset_of!(Space, layout), layout.to_ne_bytes());
        let inserted = self.spaces.insert(space, value, 0);
        inserted.map_err(|source| KernelError::Map {
            name: "SPACES",
            source,
        })
    }

    /// The address space of a process, if it is traced.
    pub fn of(&self, process: u32) -> Option<u32> {
        let member = self.processes.get(&process, 0).ok()?;
        let space = member.get(offset_of!(Member, space)..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*space))
    }

    /// Forgets an address space that has ended, and the process if it has no newer one.
    pub fn forget(&mut self, process: u32, space: u32) {
        if self.of(process) == Some(space) {
            let _ended_meanwhile = self.processes.remove(&process);
        }
        let _unknown = self.spaces.remove(&space);
        for wish in [Wish::Stale, Wish::Refresh] {
            self.grant(space, wish);
        }
    }

    /// Takes back what programs asked for, so that they ask again; false if they had not asked.
    pub fn grant(&mut self, space: u32, wish: Wish) -> bool {
        let mut key = [0; size_of::<WishKey>()];
        put(&mut key, offset_of!(WishKey, space), space.to_ne_bytes());
        put(&mut key, offset_of!(WishKey, wish), (wish as u32).to_ne_bytes());
        self.wishes.remove(&key).is_ok()
    }

    /// Whether any address space has this wish.
    pub fn any(&self, wish: Wish) -> bool {
        let offset = offset_of!(WishKey, wish);
        self.wishes
            .keys()
            .filter_map(Result::ok)
            .any(|key| key.get(offset..) == Some(&(wish as u32).to_ne_bytes()))
    }
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}

pub(super) fn take<K: aya::Pod, V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, KernelError> {
    let map: Map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
    HashMap::try_from(map).map_err(|source| KernelError::Map { name, source })
}
