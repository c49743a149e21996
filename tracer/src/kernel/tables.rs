//! The unwind tables in the kernel: each file's rows once, each mapping of it by address.

use std::collections::HashMap;

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, lpm_trie::Key},
};
use memtrace_ebpf::unwind::{self, NO_TABLE, Page, Row};

use super::{KernelError, array::MappedArray};
use crate::{target::Mapping, unwind::UnwindTable};

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
    used: TableRoom,
    prefixes: HashMap<(u32, u16), Vec<Key<AddressKey>>>,
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
        Ok(Self {
            rows: MappedArray::take(ebpf, "ROWS")?,
            pages: MappedArray::take(ebpf, "PAGES")?,
            mappings,
            used: TableRoom::default(),
            prefixes: HashMap::new(),
        })
    }

    /// How much of the room is used.
    pub fn used(&self) -> TableRoom {
        self.used
    }

    /// Adds the table of a file; `None` if there is no room for it.
    pub fn add_file(&mut self, table: &UnwindTable) -> Option<FileTable> {
        let (first_row, first_page) = (self.used.rows as usize, self.used.pages as usize);
        if first_row + table.rows.len() > self.rows.len() || first_page + table.pages.len() > self.pages.len()
        {
            return None;
        }
        for (i, row) in table.rows.iter().enumerate() {
            self.rows.set(first_row + i, *row);
        }
        for (i, page) in table.pages.iter().enumerate() {
            let moved = Page {
                start: page.start + first_row as u32,
                count: page.count,
            };
            self.pages.set(first_page + i, moved);
        }
        self.used.rows += table.rows.len() as u32;
        self.used.pages += table.pages.len() as u32;
        Some(FileTable {
            page_base: first_page as u32,
            page_count: table.pages.len() as u32,
            page_first: table.base_page,
        })
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
        self.used.prefixes += keys.len() as u32;
        let before = self.prefixes.insert((layout, mapping.id), keys);
        self.used.prefixes -= before.map_or(0, |keys| keys.len() as u32);
        Ok(())
    }

    /// Makes walks stop where this mapping was.
    pub fn remove_mapping(&mut self, layout: u32, id: u16) {
        for key in self.prefixes.remove(&(layout, id)).unwrap_or_default() {
            // A newer mapping may have replaced it under the same key; then nothing is lost by trying.
            let _gone = self.mappings.remove(&key);
            self.used.prefixes -= 1;
        }
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
