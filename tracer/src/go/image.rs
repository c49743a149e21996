//! The parts of an ELF file in which a Go program's tables are found, read piece by piece with `pread`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::LittleEndian;
use object::elf::{
    EM_X86_64, FileHeader64, PF_W, PF_X, PT_LOAD, SHF_ALLOC, SHT_NOBITS, SHT_RELA, SHT_SYMTAB,
};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader, Sym};

use super::GoError;

const ENDIAN: LittleEndian = LittleEndian;
/// The longest piece that is read, in bytes. The tables of the largest Go programs have some 100 MiB; a file may claim
/// anything.
const MAX_PIECE: u64 = 512 << 20;

/// A part of the file that is loaded (`PT_LOAD`).
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Virtual addresses of what the file holds.
    pub range: Range<u64>,
    /// Where in the file.
    offset: u64,
    pub is_writable: bool,
    pub is_executable: bool,
}

/// A named part of the file that is loaded.
#[derive(Clone, Debug)]
struct Section {
    name: Vec<u8>,
    range: Range<u64>,
}

/// A word that the dynamic linker fills in: load bias plus `value`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocation {
    pub address: u64,
    pub value: u64,
}

/// An ELF file for x86-64.
pub(super) struct Image<'d, R: ReadRef<'d>> {
    file: &'d File,
    length: u64,
    data: R,
    header: &'d FileHeader64<LittleEndian>,
    segments: Vec<Segment>,
    sections: Vec<Section>,
}

impl<'d, R: ReadRef<'d>> Image<'d, R> {
    /// `data` are the bytes of `file`. `None` when it is not a 64-bit ELF file for x86-64.
    pub fn parse(file: &'d File, data: R) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(data).ok()?;
        if !header.is_little_endian() || header.e_machine(ENDIAN) != EM_X86_64 {
            return None;
        }
        Some(Self {
            file,
            length: data.len().ok()?,
            data,
            header,
            segments: segments(header, data)?,
            sections: sections(header, data).unwrap_or_default(),
        })
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The addresses of a section that is in the file.
    pub fn section(&self, name: &[u8]) -> Option<Range<u64>> {
        let mut sections = self.sections.iter();
        Some(sections.find(|section| section.name == name)?.range.clone())
    }

    /// The segment of which the file holds the byte at this address.
    pub fn segment(&self, address: u64) -> Option<&Segment> {
        let mut segments = self.segments.iter();
        segments.find(|segment| segment.range.contains(&address))
    }

    /// What the file has for these addresses.
    ///
    /// # Errors
    /// When they are not all in one segment, or are more than a Go program has, or cannot be read.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>, GoError> {
        let outside = || {
            GoError::Layout(format!(
                "the file does not hold the addresses {range:#x?} which it refers to"
            ))
        };
        let segment = self.segment(range.start).ok_or_else(outside)?;
        let length = range.end.checked_sub(range.start).ok_or_else(outside)?;
        if range.end > segment.range.end || length > MAX_PIECE {
            return Err(outside());
        }
        let offset = (range.start - segment.range.start).checked_add(segment.offset);
        let offset = offset.ok_or_else(outside)?;
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(outside());
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| outside())?];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(GoError::File)?;
        Ok(bytes)
    }

    /// What the file has for a segment, or the beginning of what it has when that is more than a Go program has.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_segment(&self, segment: &Segment) -> Result<Vec<u8>, GoError> {
        let end = segment
            .range
            .end
            .min(segment.range.start.saturating_add(MAX_PIECE));
        self.read(segment.range.start..end)
    }

    /// The addresses of these symbols in `.symtab`, in the same order. When a name is defined twice, it has none.
    pub fn symbols<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        self.find_symbols(names).unwrap_or([None; N])
    }

    fn find_symbols<const N: usize>(&self, names: [&str; N]) -> Option<[Option<u64>; N]> {
        let sections = self.header.sections(ENDIAN, self.data).ok()?;
        if sections.iter().any(is_excessive) {
            return None;
        }
        let symbols = sections.symbols(ENDIAN, self.data, SHT_SYMTAB).ok()?;
        let strings = sections.section(symbols.string_section()).ok()?;
        let strings = strings.data(ENDIAN, self.data).ok()?;
        let mut found = [None; N];
        let mut is_doubtful = [false; N];
        for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined(ENDIAN)) {
            let Some(name) = strings.get(symbol.st_name(ENDIAN) as usize..) else {
                continue;
            };
            let is_named = |wanted: &&str| {
                let rest = name.strip_prefix(wanted.as_bytes());
                rest.is_some_and(|rest| rest.first() == Some(&0))
            };
            if let Some(index) = names.iter().position(is_named) {
                is_doubtful[index] |= found[index].replace(symbol.st_value(ENDIAN)).is_some();
            }
        }
        for (address, is_doubtful) in found.iter_mut().zip(is_doubtful) {
            *address = address.filter(|_| !is_doubtful);
        }
        Some(found)
    }

    /// The words that the dynamic linker fills in with an address in this file (`R_X86_64_RELATIVE`).
    pub fn relocations(&self) -> impl Iterator<Item = Relocation> + use<'d, R> {
        let data = self.data;
        let sections = self.header.sections(ENDIAN, data).ok();
        let sections = sections.into_iter().flat_map(|sections| sections.iter());
        let tables = sections.filter(|section| {
            section.sh_type(ENDIAN) == SHT_RELA
                && section.sh_flags(ENDIAN) & u64::from(SHF_ALLOC) != 0
                && !is_excessive(section)
        });
        let entries = tables.filter_map(move |section| section.rela(ENDIAN, data).ok().flatten());
        let entries = entries.flat_map(|(entries, _)| entries.iter());
        let relative = entries.filter(|entry| entry.r_type(ENDIAN, false) == object::elf::R_X86_64_RELATIVE);
        relative.map(|entry| Relocation {
            address: entry.r_offset(ENDIAN),
            value: entry.r_addend(ENDIAN).cast_unsigned(),
        })
    }
}

fn segments<'d, R: ReadRef<'d>>(header: &FileHeader64<LittleEndian>, data: R) -> Option<Vec<Segment>> {
    let headers = header.program_headers(ENDIAN, data).ok()?;
    let loaded = headers.iter().filter(|header| header.p_type(ENDIAN) == PT_LOAD);
    let segments = loaded.filter_map(|header| {
        let begin = header.p_vaddr(ENDIAN);
        Some(Segment {
            range: begin..begin.checked_add(header.p_filesz(ENDIAN))?,
            offset: header.p_offset(ENDIAN),
            is_writable: header.p_flags(ENDIAN) & PF_W != 0,
            is_executable: header.p_flags(ENDIAN) & PF_X != 0,
        })
    });
    Some(segments.collect())
}

fn sections<'d, R: ReadRef<'d>>(header: &FileHeader64<LittleEndian>, data: R) -> Option<Vec<Section>> {
    let sections = header.sections(ENDIAN, data).ok()?;
    let loaded = sections.iter().filter(|section| {
        section.sh_type(ENDIAN) != SHT_NOBITS && section.sh_flags(ENDIAN) & u64::from(SHF_ALLOC) != 0
    });
    let named = loaded.filter_map(|section| {
        let begin = section.sh_addr(ENDIAN);
        Some(Section {
            name: sections.section_name(ENDIAN, section).ok()?.to_vec(),
            range: begin..begin.checked_add(section.sh_size(ENDIAN))?,
        })
    });
    Some(named.collect())
}

/// Whether a section is larger than any that is read.
fn is_excessive(section: &object::elf::SectionHeader64<LittleEndian>) -> bool {
    matches!(
        section.sh_type(ENDIAN),
        SHT_SYMTAB | object::elf::SHT_STRTAB | SHT_RELA
    ) && section.sh_size(ENDIAN) > MAX_PIECE
}
