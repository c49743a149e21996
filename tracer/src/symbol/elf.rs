//! What the symbolizer must know of an ELF image before it trusts blazesym with it, and its table of functions.

use std::{fs::File, sync::Arc};

use object::{
    CompressionFormat, Endianness, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind,
    elf::FileHeader64,
    read::{
        ReadRef,
        elf::{ElfFile, FileHeader, SectionHeader},
    },
};

use crate::target::FileBytes;

/// So much debug information is unpacked from compressed sections of one file (bytes).
const MOST_UNPACKED: u64 = 2 << 30;

/// The bytes of an ELF image.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    /// A file, the very one that the target maps or a trusted debug file.
    File(Arc<File>),
    /// Memory, such as the vDSO.
    Bytes(Arc<[u8]>),
}

/// A link from an executable to its separate debug file (`.gnu_debuglink`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DebugLink {
    /// The debug file's name, without a directory.
    pub(crate) name: Vec<u8>,
    /// The CRC-32 of the debug file's content.
    pub(crate) crc: u32,
}

/// What decides how an image is symbolized.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The GNU build id.
    pub(crate) build_id: Option<Vec<u8>>,
    /// Whether the image carries DWARF.
    pub(crate) has_dwarf: bool,
    /// Whether the image names other files to read: blazesym would open them, wherever they are.
    pub(crate) links_elsewhere: bool,
    /// The separate debug file.
    pub(crate) debug_link: Option<DebugLink>,
}

impl Image {
    /// Reads the section headers. An image that is not a 64-bit ELF file has no facts.
    pub(crate) fn facts(&self) -> Facts {
        let facts = match self {
            Self::File(file) => {
                let bytes = FileBytes::new(file);
                facts(&bytes).map(|facts| Facts {
                    has_dwarf: facts.has_dwarf && is_reasonable(&bytes),
                    ..facts
                })
            }
            Self::Bytes(bytes) => facts(&**bytes),
        };
        facts.unwrap_or_default()
    }

    /// Adds the image's functions to a table.
    pub(crate) fn add_functions(&self, table: &mut FunctionTable) {
        let added = match self {
            Self::File(file) => {
                let bytes = FileBytes::new(file);
                table.add(&bytes)
            }
            Self::Bytes(bytes) => table.add(&**bytes),
        };
        if let Err(error) = added {
            log::debug!("the symbol table of {self:?} cannot be read: {error}");
        }
    }
}

fn facts<'data, R: ReadRef<'data>>(data: R) -> object::Result<Facts> {
    let elf = ElfFile::<FileHeader64<Endianness>, R>::parse(data)?;
    let has = |name| elf.section_by_name(name).is_some();
    Ok(Facts {
        build_id: elf.build_id().ok().flatten().map(<[u8]>::to_vec),
        has_dwarf: elf
            .section_by_name(".debug_info")
            .is_some_and(|section| section.size() > 0),
        links_elsewhere: has(".gnu_debuglink") || has(".gnu_debugaltlink") || has(".debug_sup"),
        debug_link: (elf.gnu_debuglink().ok().flatten()).map(|(name, crc)| DebugLink {
            name: name.to_vec(),
            crc,
        }),
    })
}

/// Whether blazesym can be trusted with a file: it maps it, and keeps what it makes of the tables and of compressed sections
/// in memory, whatever their headers claim.
fn is_reasonable(bytes: &FileBytes<'_>) -> bool {
    let Ok(elf) = ElfFile::<FileHeader64<Endianness>, _>::parse(bytes) else {
        return false;
    };
    let mut unpacked = 0_u64;
    elf.sections().all(|section| {
        let Ok(part) = section.compressed_file_range() else {
            return false;
        };
        if part.format != CompressionFormat::None {
            unpacked = unpacked.saturating_add(part.uncompressed_size);
        }
        let is_table = section.kind() == SectionKind::Metadata;
        unpacked <= MOST_UNPACKED
            && bytes.is_there(part.offset, part.compressed_size)
            && (!is_table || FileBytes::is_short(part.compressed_size))
    })
}

/// A function as the symbol table describes it.
#[derive(Clone, Copy, Debug)]
struct Function {
    /// First byte (virtual address in the file).
    begin: u64,
    /// One past the last byte.
    end: u64,
    /// The highest `end` of this and all functions before it.
    reach: u64,
    /// Which of the table's string tables holds the name.
    strings: u32,
    /// Where in it.
    name: u32,
    /// How well the name suits a reader: see [`rank`].
    rank: u8,
}

/// The functions of one module, by address. Only functions whose size is known: an address that no function covers has
/// no name, however near the preceding symbol is.
#[derive(Debug, Default)]
pub(crate) struct FunctionTable {
    functions: Vec<Function>,
    strings: Vec<Box<[u8]>>,
}

impl FunctionTable {
    fn add<'data, R: ReadRef<'data>>(&mut self, data: R) -> object::Result<()> {
        let elf = ElfFile::<FileHeader64<Endianness>, R>::parse(data)?;
        self.add_section(&elf, data, object::elf::SHT_SYMTAB)?;
        self.add_section(&elf, data, object::elf::SHT_DYNSYM)
    }

    fn add_section<'data, R: ReadRef<'data>>(
        &mut self,
        elf: &ElfFile<'data, FileHeader64<Endianness>, R>,
        data: R,
        kind: u32,
    ) -> object::Result<()> {
        let endian = elf.endian();
        let sections = elf.elf_header().sections(endian, data)?;
        let symbols = sections.symbols(endian, data, kind)?;
        if symbols.is_empty() {
            return Ok(());
        }
        let strings = sections.section(symbols.string_section())?.data(endian, data)?;
        let source = u32::try_from(self.strings.len()).unwrap_or(u32::MAX);
        let all = if kind == object::elf::SHT_SYMTAB {
            elf.symbols()
        } else {
            elf.dynamic_symbols()
        };
        for symbol in all {
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() || symbol.size() == 0 {
                continue;
            }
            let name = symbol.elf_symbol().st_name.get(endian);
            let Ok(bytes) = symbol.name_bytes() else { continue };
            self.functions.push(Function {
                begin: symbol.address(),
                end: symbol.address().saturating_add(symbol.size()),
                reach: 0,
                strings: source,
                name,
                rank: rank(bytes, symbol.is_local(), symbol.is_weak()),
            });
        }
        self.strings.push(strings.into());
        Ok(())
    }

    /// Sorts the functions; to be called once after the last [`Image::add_functions`].
    pub(crate) fn finish(&mut self) {
        self.functions
            .sort_unstable_by_key(|function| (function.begin, function.rank, function.end));
        let mut reach = 0;
        for function in &mut self.functions {
            reach = reach.max(function.end);
            function.reach = reach;
        }
    }

    /// The name of the innermost function that covers a virtual address.
    pub(crate) fn find(&self, address: u64) -> Option<&str> {
        let after = self
            .functions
            .partition_point(|function| function.begin <= address);
        self.functions[..after]
            .iter()
            .rev()
            .take_while(|function| function.reach > address)
            .find(|function| function.end > address)
            .and_then(|function| self.name(function))
    }

    fn name(&self, function: &Function) -> Option<&str> {
        let strings = self.strings.get(function.strings as usize)?;
        let tail = strings.get(function.name as usize..)?;
        let length = tail.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&tail[..length])
            .ok()
            .filter(|name| !name.is_empty())
    }
}

/// Of the names that a function has (`malloc`, `__libc_malloc`, `__GI___libc_malloc`), the public and plain one is best.
fn rank(name: &[u8], local: bool, weak: bool) -> u8 {
    let plain = !name.starts_with(b"_") || name.starts_with(b"_Z") || name.starts_with(b"_R");
    let binding = if local { 0 } else { 2 - u8::from(weak) };
    4 * u8::from(plain) + binding
}
