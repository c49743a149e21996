//! The unwind tables in the kernel: each file's rows once, each mapping of it by address.

use std::{
    collections::HashMap,
    ops::Range,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, lpm_trie::Key},
};
use memtrace_ebpf::unwind::{self, NO_TABLE, Page, Row};

use super::{KernelError, array::MappedArray, ranges::Ranges};
use crate::{target::Mapping, unwind::UnwindTable};

/// For how long a table must have had no user before its room is used again.
const IDLE: Duration = Duration::from_secs(1);

/// How much room there is for tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRoom {
    /// Rows of all files.
    pub rows: u32,
    /// Pages of all files.
    pub pages: u32,
    /// Aligned address ranges that the mappings are made of.
    pub prefixes: u32,
}

/// Where the table of a file is.
#[derive(Clone, Copy, Debug)]
pub struct FileTable {
    page_base: u32,
    page_count: u32,
    page_first: u32,
}

impl FileTable {
    /// For code that keeps frame pointers instead of a table.
    pub const FRAME_POINTERS: Self = Self {
        page_base: NO_TABLE,
        page_count: 0,
        page_first: 0,
    };
    /// Whether both are the same table.
    pub fn is_same(self, other: Self) -> bool {
        self.page_base == other.page_base
    }

    /// For code of which nothing is known: a walk stops there.
    pub const NONE: Self = Self {
        page_base: 0,
        page_count: 0,
        page_first: 0,
    };
}

type AddressKey = [u8; 12];
type MappingBytes = [u8; size_of::<unwind::Mapping>()];

/// The tables in the kernel.
pub struct Tables {
    rows: MappedArray<Row>,
    pages: MappedArray<Page>,
    mappings: LpmTrie<MapData, AddressKey, MappingBytes>,
    free_rows: Ranges,
    free_pages: Ranges,
    /// By the index of their first page.
    files: HashMap<u32, PlacedFile>,
    prefixes: HashMap<(u32, u16), PlacedMapping>,
}

/// Where a file's table is, and how many mappings use it.
#[derive(Debug)]
struct PlacedFile {
    rows: Range<u32>,
    pages: Range<u32>,
    users: u32,
    /// When the last of them began or ceased to.
    idle_since: Instant,
    keep: bool,
}

impl PlacedFile {
    /// Whether nothing has used it for a while.
    fn is_idle(&self) -> bool {
        self.users == 0 && self.idle_since.elapsed() > IDLE
    }
}

/// A mapping in the trie.
struct PlacedMapping {
    keys: Vec<Key<AddressKey>>,
    /// Of the table that it uses; that of none if it uses none.
    page_base: u32,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf
            .take_map("MAPPINGS")
            .ok_or(KernelError::Missing("MAPPINGS"))?;
        let mappings = LpmTrie::try_from(map).map_err(|source| KernelError::Map {
            name: "MAPPINGS",
            source,
        })?;
        let rows: MappedArray<Row> = MappedArray::take(ebpf, "ROWS")?;
        let pages: MappedArray<Page> = MappedArray::take(ebpf, "PAGES")?;
        let mut free_pages = Ranges::new(pages.len() as u32);
        // The page base of no table.
        free_pages.take(1);
        Ok(Self {
            free_rows: Ranges::new(rows.len() as u32),
            free_pages,
            rows,
            pages,
            mappings,
            files: HashMap::new(),
            prefixes: HashMap::new(),
        })
    }

    /// Adds the table of a file; `None` if there is no room for it. Tables that no mapping uses make room, unless `keep`
    /// was said when they were added: their page bases are added to `evicted`.
    pub fn add_file(
        &mut self,
        table: &UnwindTable,
        keep: bool,
        evicted: &mut Vec<FileTable>,
    ) -> Option<FileTable> {
        let placed = match self.place(table) {
            Some(placed) => placed,
            None => {
                evicted.extend(self.evict());
                self.place(table)?
            }
        };
        let (first_row, first_page) = (placed.rows.start, placed.pages.start);
        for (i, row) in table.rows.iter().enumerate() {
            self.rows.set(first_row as usize + i, *row);
        }
        for (i, page) in table.pages.iter().enumerate() {
            let moved = Page {
                start: page.start + first_row,
                count: page.count,
            };
            self.pages.set(first_page as usize + i, moved);
        }
        self.files.insert(first_page, PlacedFile { keep, ..placed });
        Some(FileTable {
            page_base: first_page,
            page_count: table.pages.len() as u32,
            page_first: table.base_page,
        })
    }

    fn place(&mut self, table: &UnwindTable) -> Option<PlacedFile> {
        let rows = self.free_rows.take(table.rows.len() as u32)?;
        // Each table has a page of its own, by which it is known.
        let Some(pages) = self.free_pages.take((table.pages.len() as u32).max(1)) else {
            self.free_rows.give_back(rows);
            return None;
        };
        Some(PlacedFile {
            rows,
            pages,
            users: 0,
            idle_since: Instant::now(),
            keep: false,
        })
    }

    /// Gives back the room of tables that nothing has used for a while: no walk is in one any more.
    fn evict(&mut self) -> Vec<FileTable> {
        let idle = |file: &PlacedFile| file.is_idle() && !file.keep;
        let bases = self
            .files
            .iter()
            .filter(|(_, file)| idle(file))
            .map(|(&base, _)| base);
        let bases: Vec<u32> = bases.collect();
        for base in &bases {
            self.remove(*base);
        }
        let table = |page_base| FileTable {
            page_base,
            ..FileTable::NONE
        };
        bases.into_iter().map(table).collect()
    }

    /// Forgets a table, kept or not; false if that is too early, since a mapping uses it or a walk may still be in it.
    pub fn forget_file(&mut self, table: FileTable) -> bool {
        match self.files.get(&table.page_base) {
            Some(file) if file.is_idle() => self.remove(table.page_base),
            Some(_) => return false,
            // It never had a place.
            None => {}
        }
        true
    }

    fn remove(&mut self, page_base: u32) {
        if let Some(file) = self.files.remove(&page_base) {
            self.free_rows.give_back(file.rows);
            self.free_pages.give_back(file.pages);
        }
    }

    /// Counts who uses a table.
    fn use_file(&mut self, page_base: u32, more: bool) {
        if let Some(file) = self.files.get_mut(&page_base) {
            file.users = if more {
                file.users + 1
            } else {
                file.users.saturating_sub(1)
            };
            file.idle_since = Instant::now();
        }
    }

    /// Makes a mapping known to walks in a set of mappings, or changes its table.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn add_mapping(
        &mut self,
        layout: u32,
        mapping: &Mapping,
        file: FileTable,
    ) -> Result<(), KernelError> {
        let value = unwind::Mapping {
            begin: mapping.begin,
            end: mapping.end,
            bias: mapping.bias,
            page_base: file.page_base,
            page_count: file.page_count,
            id: mapping.id,
            _pad: 0,
            page_first: file.page_first,
        };
        // SAFETY: the struct has no padding of its own, so every byte is initialized.
        let value: MappingBytes = unsafe { std::mem::transmute(value) };
        let keys: Vec<_> = aligned_ranges(mapping.begin, mapping.end)
            .map(|(address, free_bits)| Key::new(96 - free_bits, address_key(layout, address)))
            .collect();
        for key in &keys {
            self.mappings
                .insert(key, value, 0)
                .map_err(|source| KernelError::Map {
                    name: "MAPPINGS",
                    source,
                })?;
        }
        self.use_file(file.page_base, true);
        let placed = PlacedMapping {
            keys,
            page_base: file.page_base,
        };
        if let Some(before) = self.prefixes.insert((layout, mapping.id), placed) {
            self.use_file(before.page_base, false);
        }
        Ok(())
    }

    /// Makes walks stop where this mapping was.
    pub fn remove_mapping(&mut self, layout: u32, id: u16) {
        let Some(placed) = self.prefixes.remove(&(layout, id)) else {
            return;
        };
        for key in placed.keys {
            // A newer mapping may have replaced it under the same key; then nothing is lost by trying.
            let _gone = self.mappings.remove(&key);
        }
        self.use_file(placed.page_base, false);
    }

    /// Forgets a set of mappings.
    pub fn remove_layout(&mut self, layout: u32) {
        let ids: Vec<_> = self
            .prefixes
            .keys()
            .filter(|key| key.0 == layout)
            .copied()
            .collect();
        for (_, id) in ids {
            self.remove_mapping(layout, id);
        }
    }
}

/// Big-endian, as a trie compares.
fn address_key(layout: u32, address: u64) -> AddressKey {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&layout.to_be_bytes());
    key[4..].copy_from_slice(&address.to_be_bytes());
    key
}

/// Splits an address range into naturally aligned powers of two: (first address, bits that vary).
fn aligned_ranges(begin: u64, end: u64) -> impl Iterator<Item = (u64, u32)> {
    let mut next = begin;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let largest = 63 - (end - next).leading_zeros();
        let bits = next.trailing_zeros().min(largest);
        let range = (next, bits);
        next += 1 << bits;
        Some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::aligned_ranges;

    #[test]
    fn ranges_cover_exactly() {
        let cases = [
            (0x1000, 0x2000),
            (0x7f00_0012_3000, 0x7f00_0345_6000),
            (0, 0x1000),
            (0x1000, 0x1000),
        ];
        for (begin, end) in cases {
            let mut next = begin;
            for (address, bits) in aligned_ranges(begin, end) {
                assert_eq!(address, next);
                assert_eq!(address % (1 << bits), 0);
                next += 1 << bits;
            }
            assert_eq!(next, end);
        }
    }
}
