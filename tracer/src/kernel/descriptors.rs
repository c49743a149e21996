//! The books of descriptors.

use std::mem::offset_of;

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use memtrace_ebpf::handles::{Fd, FdKey, FdKind, Table, opener};

use super::{KernelError, blocks::BatchMap};

/// A descriptor that is in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFd {
    /// Its number.
    pub number: i32,
    /// What the programs know of it.
    pub fd: Fd,
}

/// The tables of descriptors.
#[derive(Debug)]
pub struct Descriptors {
    open: BatchMap<FdKey, Fd>,
    tables: HashMap<MapData, u32, [u8; size_of::<Table>()]>,
    private: HashMap<MapData, u32, u32>,
}

impl Descriptors {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            open: BatchMap::take(ebpf, "FDS")?,
            tables: super::spaces::take(ebpf, "TABLES")?,
            private: super::spaces::take(ebpf, "PRIVATE_TABLES")?,
        })
    }

    /// The descriptor table of a thread that has one of its own.
    pub fn private_table(&self, thread: u32) -> Option<u32> {
        self.private.get(&thread, 0).ok()
    }

    /// The descriptors of some table that are in the books.
    ///
    /// # Errors
    /// When the kernel does not let the books be read.
    pub fn of(&self, table: u32) -> Result<Vec<OpenFd>, KernelError> {
        let mut open = Vec::new();
        self.open.for_each(|key, fd| {
            if key.table == table {
                open.push(OpenFd {
                    number: key.number,
                    fd: *fd,
                });
            }
        })?;
        Ok(open)
    }

    /// How many descriptors each stack has open, over all tables.
    ///
    /// # Errors
    /// As [`Descriptors::of`].
    pub fn open_by_stack(&self) -> Result<std::collections::HashMap<u32, u64>, KernelError> {
        let mut open = std::collections::HashMap::new();
        self.open
            .for_each(|_, fd| *open.entry(fd.stack).or_default() += 1)?;
        Ok(open)
    }

    /// Notes descriptors that were open before tracing, where nothing is known of the number so far.
    ///
    /// # Errors
    /// When there is no room.
    pub fn seed(&mut self, table: u32, numbers: &[(i32, FdKind)]) -> Result<(), KernelError> {
        const NAME: &str = "TABLES";
        let Some(highest) = numbers.iter().map(|&(number, _)| number).max() else {
            return Ok(());
        };
        let known = self.tables.get(&table, 0).ok().and_then(|known| {
            let bytes = known.get(offset_of!(Table, highest)..)?.first_chunk()?;
            Some(i32::from_ne_bytes(*bytes))
        });
        let mut value = [0; size_of::<Table>()];
        let highest = known.map_or(highest, |known| known.max(highest));
        value[offset_of!(Table, highest)..][..4].copy_from_slice(&highest.to_ne_bytes());
        self.tables
            .insert(table, value, 0)
            .map_err(|source| KernelError::Map { name: NAME, source })?;
        for &(number, kind) in numbers {
            let fd = Fd {
                opened: 0,
                stack: opener::BEFORE,
                kind: kind as u32,
            };
            self.open.insert_new(&FdKey { table, number }, &fd)?;
        }
        Ok(())
    }

    /// Forgets tables.
    ///
    /// # Errors
    /// As [`Descriptors::of`].
    pub fn forget(&mut self, is_gone: impl Fn(u32) -> bool) -> Result<(), KernelError> {
        self.open.remove_if(|key| is_gone(key.table))?;
        let gone: Vec<u32> = self
            .tables
            .keys()
            .filter_map(Result::ok)
            .filter(|&table| is_gone(table))
            .collect();
        for table in gone {
            match self.tables.remove(&table) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => log::debug!("table {table} stays: {error}"),
            }
        }
        Ok(())
    }
}
