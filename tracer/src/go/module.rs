//! `runtime.moduledata` as the file has it: where a program's tables and its code are (`runtime/symtab.go`).
//!
//! It has no symbol in a stripped file. It is found by its first words, which are addresses in the table of
//! functions (`.gopclntab`), and believed when the seven pointers into that table all agree.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use object::read::ReadRef;

use super::image::Image;
use super::pclntab::{HEADER_LENGTH, Header};
use super::{GoError, Version};

/// Fields of moduledata, as offsets in bytes: the same in Go 1.19 and 1.21 to 1.27.
mod field {
    pub(super) const PC_HEADER: u64 = 0;
    pub(super) const FUNC_NAME_TABLE: u64 = 8;
    pub(super) const CU_TABLE: u64 = 32;
    pub(super) const FILE_TABLE: u64 = 56;
    pub(super) const PC_TABLE: u64 = 80;
    pub(super) const PCLN_TABLE: u64 = 104;
    pub(super) const PCLN_TABLE_LENGTH: u64 = 112;
    pub(super) const FUNC_TABLE: u64 = 128;
    pub(super) const FUNC_TABLE_LENGTH: u64 = 136;
    pub(super) const TEXT: u64 = 176;
    pub(super) const TEXT_END: u64 = 184;
}

/// How much of moduledata is read, in bytes: up to the last field that is used, in any version.
const LENGTH: u64 = 352;
/// The sections of the table of functions; in the second, a linker has put what needs relocations.
const TABLE_SECTIONS: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];
/// How many tables of functions are tried. There is one; a file may pretend to have many.
const MAX_TABLES: usize = 8;
/// How many places are tried in which moduledata could be.
const MAX_PLACES: usize = 64;

/// Where the tables are (virtual addresses in the file).
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// The table of functions.
    pub table: Range<u64>,
    /// What is at its beginning.
    pub header: Header,
    /// The code that it describes.
    pub text: Range<u64>,
    /// What the offsets of `FUNCDATA` are relative to (`go:func.*`).
    pub gofunc: u64,
}

impl Module {
    /// Finds it.
    ///
    /// # Errors
    /// When the file cannot be read, or there is not exactly one that is consistent.
    pub fn find<'d, R: ReadRef<'d>>(image: &Image<'d, R>, version: Version) -> Result<Self, GoError> {
        let tables = find_tables(image)?;
        let mut found = None;
        for (address, header) in &tables {
            let places = places(image, *address, header)?;
            for place in places.into_iter().take(MAX_PLACES) {
                let Some(module) = Words::read(image, place)?.module(*address, header, version) else {
                    continue;
                };
                if found.replace(module).is_some() {
                    return Err(GoError::Layout("the file has several Go modules".to_owned()));
                }
            }
        }
        found.ok_or_else(|| {
            let tables = tables.len();
            GoError::Layout(format!(
                "no moduledata refers to the Go function table ({tables} found)"
            ))
        })
    }
}

/// Where gofunc is in moduledata (bytes): `covctrs`, `ecovctrs` came in 1.20, `typedesclen`, `itaboffset`, `itabsize` in 1.27.
fn gofunc_field(version: Version) -> u64 {
    match version.minor {
        ..=19 => 304,
        20..=26 => 320,
        _ => 344,
    }
}

/// Every table of functions: where its section is, else wherever its header is.
fn find_tables<'d, R: ReadRef<'d>>(image: &Image<'d, R>) -> Result<Vec<(u64, Header)>, GoError> {
    for name in TABLE_SECTIONS {
        let Some(range) = image.section(name) else {
            continue;
        };
        let bytes = image.read(range.start..range.start.saturating_add(HEADER_LENGTH as u64))?;
        if let Some(header) = Header::parse(&bytes) {
            return Ok(vec![(range.start, header)]);
        }
    }
    let mut tables = Vec::new();
    for segment in image.segments().iter().filter(|segment| !segment.is_executable) {
        let bytes = image.read_segment(segment)?;
        for place in aligned(segment.range.start, bytes.len()) {
            if let Some(header) = Header::parse(&bytes[place..]) {
                tables.push((segment.range.start + place as u64, header));
                if tables.len() == MAX_TABLES {
                    return Ok(tables);
                }
            }
        }
    }
    Ok(tables)
}

/// Where moduledata may be: two words in a row, in the file or filled in by the dynamic linker, are the addresses of
/// the table of functions and of the names in it.
fn places<'d, R: ReadRef<'d>>(
    image: &Image<'d, R>,
    table: u64,
    header: &Header,
) -> Result<Vec<u64>, GoError> {
    let names = table.wrapping_add(header.names);
    let mut places = Vec::new();
    for segment in image.segments().iter().filter(|segment| segment.is_writable) {
        let bytes = image.read_segment(segment)?;
        let found = aligned(segment.range.start, bytes.len())
            .filter(|&place| word(&bytes, place) == Some(table) && word(&bytes, place + 8) == Some(names));
        places.extend(found.map(|place| segment.range.start + place as u64));
    }
    let of_table: HashSet<_> = image
        .relocations()
        .filter(|relocation| relocation.value == table)
        .map(|relocation| relocation.address)
        .collect();
    let of_names = image
        .relocations()
        .filter(|relocation| relocation.value == names)
        .map(|relocation| relocation.address.wrapping_sub(8));
    places.extend(of_names.filter(|place| of_table.contains(place)));
    places.sort_unstable();
    places.dedup();
    Ok(places)
}

/// The offsets of the words that are at a multiple of eight when the first byte is at `address`.
fn aligned(address: u64, length: usize) -> impl Iterator<Item = usize> {
    let first = (address.wrapping_neg() % 8) as usize;
    (first..length).step_by(8)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Words in a row, as they will be in memory without a load bias.
struct Words {
    bytes: Vec<u8>,
    relocated: HashMap<u64, u64>,
}

impl Words {
    fn read<'d, R: ReadRef<'d>>(image: &Image<'d, R>, address: u64) -> Result<Self, GoError> {
        let range = address..address.saturating_add(LENGTH);
        let relocations = image.relocations();
        let relocated = relocations.filter(|relocation| range.contains(&relocation.address));
        Ok(Self {
            relocated: relocated
                .map(|relocation| (relocation.address - address, relocation.value))
                .collect(),
            bytes: image.read(range)?,
        })
    }

    fn word(&self, at: u64) -> Option<u64> {
        let relocated = self.relocated.get(&at).copied();
        relocated.or_else(|| word(&self.bytes, usize::try_from(at).ok()?))
    }

    /// The module, if these words are one that belongs to this table.
    fn module(&self, table: u64, header: &Header, version: Version) -> Option<Module> {
        let pointers = [
            (field::PC_HEADER, 0),
            (field::FUNC_NAME_TABLE, header.names),
            (field::CU_TABLE, header.units),
            (field::FILE_TABLE, header.files),
            (field::PC_TABLE, header.values),
            (field::PCLN_TABLE, header.functions),
            (field::FUNC_TABLE, header.functions),
        ];
        for (field, offset) in pointers {
            if self.word(field)? != table.checked_add(offset)? {
                return None;
            }
        }
        if self.word(field::FUNC_TABLE_LENGTH)? != header.count.checked_add(1)? {
            return None;
        }
        let functions = self.word(field::PCLN_TABLE_LENGTH)?;
        let end = self.word(field::PCLN_TABLE)?.checked_add(functions)?;
        let text = self.word(field::TEXT)?..self.word(field::TEXT_END)?;
        let module = Module {
            table: table..end,
            header: header.clone(),
            text,
            gofunc: self.word(gofunc_field(version))?,
        };
        (module.text.start < module.text.end).then_some(module)
    }
}
