//! The books of descriptors.

use std::{cell::RefCell, mem::offset_of};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use memtrace_ebpf::handles::{Fd, FdKey, FdKind, Table, opener};

use super::{KernelError, blocks::BatchMap};

/// Up to this number it is quicker to ask for each.
const FEW: i32 = 8192;

/// A descriptor that is in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFd {
    /// Its number.
    pub number: i32,
    /// What the programs know of it.
    pub fd: Fd,
}

/// How many descriptors are open: by table, then by the index of the stack.
pub type OpenByStack = std::collections::HashMap<u32, std::collections::HashMap<u32, u64>>;

/// The tables of descriptors.
#[derive(Debug)]
pub struct Descriptors {
    open: BatchMap<FdKey, Fd>,
    tables: HashMap<MapData, u32, [u8; size_of::<Table>()]>,
    private: HashMap<MapData, u32, u32>,
    /// The table that was read last, with the numbers that it had.
    read_last: RefCell<(u32, Vec<i32>)>,
}

impl Descriptors {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            open: BatchMap::take(ebpf, "FDS")?,
            tables: super::spaces::take(ebpf, "TABLES")?,
            private: super::spaces::take(ebpf, "PRIVATE_TABLES")?,
            read_last: RefCell::default(),
        })
    }

    /// The descriptor table of a thread that has one of its own.
    pub fn private_table(&self, thread: u32) -> Option<u32> {
        self.private.get(&thread, 0).ok()
    }

    /// The descriptors of some table that are in the books, by number.
    ///
    /// # Errors
    /// When the kernel does not let the books be read.
    pub fn of(&self, table: u32) -> Result<Vec<OpenFd>, KernelError> {
        let highest = self.highest(table);
        if highest < FEW {
            // The whole table takes some milliseconds.
            let found = (0..=highest).filter_map(|number| {
                let fd = self.open.get(&FdKey { table, number })?;
                Some(OpenFd { number, fd })
            });
            let found: Vec<OpenFd> = found.collect();
            self.read_last.replace((table, numbers_of(&found)));
            return Ok(found);
        }
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

    /// The highest number that was in the books of a table; -1 if none was.
    fn highest(&self, table: u32) -> i32 {
        let highest = self.tables.get(&table, 0).ok().and_then(|known| {
            let bytes = known.get(offset_of!(Table, highest)..)?.first_chunk()?;
            Some(i32::from_ne_bytes(*bytes))
        });
        highest.unwrap_or(-1)
    }

    /// How many descriptors each stack has open, by table.
    ///
    /// # Errors
    /// As [`Descriptors::of`].
    pub fn open_by_stack(&self) -> Result<OpenByStack, KernelError> {
        let mut open = OpenByStack::new();
        self.open.for_each(|key, fd| {
            *open.entry(key.table).or_default().entry(fd.stack).or_default() += 1;
        })?;
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
        let mut value = [0; size_of::<Table>()];
        let highest = highest.max(self.highest(table));
        value[offset_of!(Table, highest)..][..4].copy_from_slice(&highest.to_ne_bytes());
        self.tables
            .insert(table, value, 0)
            .map_err(|source| KernelError::Map { name: NAME, source })?;
        for &(number, kind) in numbers {
            let fd = Fd {
                opened: 0,
                stack: opener::BEFORE,
                kind: kind as u32,
                dialer: 0,
            };
            self.open.insert_new(&FdKey { table, number }, &fd)?;
        }
        Ok(())
    }

    /// Forgets a table at once, if that is quick. Nobody uses it any more.
    pub fn forget_small(&mut self, table: u32) {
        if self.highest(table) >= FEW {
            return;
        }
        // It was read just now: to try each number takes as long again.
        let (read, numbers) = self.read_last.take();
        let numbers = match read == table {
            true => numbers,
            false => self
                .of(table)
                .map_or_else(|_| Vec::new(), |open| numbers_of(&open)),
        };
        for number in numbers {
            self.open.remove(&FdKey { table, number });
        }
        let _never_used = self.tables.remove(&table);
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

fn numbers_of(open: &[OpenFd]) -> Vec<i32> {
    open.iter().map(|open| open.number).collect()
}
