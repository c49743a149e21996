//! The parts of an ELF image that planning needs: symbols, code by virtual address, and function bounds.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use iced_x86::{FlowControl, Mnemonic};
use object::elf::{
    EM_X86_64, ET_DYN, ET_EXEC, GNU_PROPERTY_X86_FEATURE_1_AND, GNU_PROPERTY_X86_FEATURE_1_SHSTK, PF_W, PF_X,
    PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD, PT_NOTE, ProgramHeader64, SHN_LORESERVE, SHN_UNDEF, SHN_XINDEX,
    STB_LOCAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, Sym64,
};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Sym, SymbolTable};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, ReadRef, RelocationTarget,
};

use super::code::{Code, fixed_slot};
use super::error::{PlanError, Refusal};
use super::frames::{Frames, eh_frame_address};
use super::function::Shape;
use super::names::{Family, Known, Names};
use super::reentry::CodeRanges;

const ENDIAN: LittleEndian = LittleEndian;
/// The longest function that is decoded and verified, in bytes.
const MAX_FUNCTION: u64 = 1 << 20;

/// Sections that only Go's linker makes; which version built the file, its functions, and the note with its build id.
const GO_SECTIONS: [&[u8]; 3] = [b".go.buildinfo", b".gopclntab", b".note.go.buildid"];

/// One function by one address, under one or several names.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    /// What it does.
    pub shape: Shape,
    /// The names at this address, without versions, the plainest first.
    pub names: Vec<(String, Family)>,
    /// Virtual address.
    pub address: u64,
    /// `st_size`, 0 when unknown.
    pub size: u64,
    /// Whether an exception may pass it.
    pub throws: bool,
}

/// What the symbol tables say about the allocation functions.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    /// Functions to plan for, by address.
    pub found: BTreeMap<u64, Definition>,
    /// Names that are defined, but not as a function that can be probed.
    pub refused: Vec<(String, u64, Refusal)>,
}

/// A function's bounds, in virtual addresses, and where they come from.
#[derive(Debug)]
pub(super) struct Bounds {
    pub range: Range<u64>,
    /// Whether `.eh_frame` confirms the beginning.
    pub confirmed: bool,
}

/// A parsed ELF image.
pub(super) struct Image<'d, R: ReadRef<'d>> {
    file: ElfFile64<'d, LittleEndian, R>,
    data: R,
    frames: Option<Frames<'d>>,
}

impl<'d, R: ReadRef<'d>> Image<'d, R> {
    pub fn parse(data: R) -> Result<Self, PlanError> {
        let file = ElfFile64::<LittleEndian, R>::parse(data)?;
        let machine = file.elf_header().e_machine(ENDIAN);
        if machine != EM_X86_64 {
            return Err(PlanError::Machine(machine));
        }
        let kind = file.elf_header().e_type(ENDIAN);
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(PlanError::Type(kind));
        }
        let mut image = Self {
            file,
            data,
            frames: None,
        };
        image.frames = image.find_frames();
        Ok(image)
    }

    /// Whether the file has section headers; without them its symbols are not found.
    pub fn has_sections(&self) -> bool {
        self.file.sections().next().is_some()
    }

    /// Whether nothing loads libraries for the program, and no symbol names its functions.
    pub fn is_stripped_static(&self) -> bool {
        let mut headers = self.file.elf_program_headers().iter();
        let has_loader = headers.any(|header| header.p_type(ENDIAN) == PT_INTERP);
        !has_loader && self.defined_symbols().next().is_none()
    }

    /// Whether some of its code is Go's: it has a section that only Go's linker makes (`cmd/link/internal/ld/data.go`; the names have a prefix
    /// in position-independent files). In a file without sections no function is found, so nothing is probed.
    pub fn has_go_code(&self) -> bool {
        let mut sections = self.file.sections();
        sections.any(|section| {
            let name = section.name_bytes().unwrap_or_default();
            GO_SECTIONS.iter().any(|of_go| name.ends_with(of_go))
        })
    }

    /// Whether the image is marked as fit for a user shadow stack (`.note.gnu.property`).
    pub fn allows_shadow_stack(&self) -> bool {
        self.feature_bits()
            .is_some_and(|bits| bits & GNU_PROPERTY_X86_FEATURE_1_SHSTK != 0)
    }

    fn feature_bits(&self) -> Option<u32> {
        let notes = self
            .file
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(ENDIAN) == PT_NOTE);
        for header in notes {
            let mut notes = header.notes(ENDIAN, self.data).ok()??;
            while let Some(note) = notes.next().ok()? {
                let Some(mut properties) = note.gnu_properties(ENDIAN) else {
                    continue;
                };
                while let Some(property) = properties.next().ok()? {
                    if property.pr_type() == GNU_PROPERTY_X86_FEATURE_1_AND {
                        return property.data_u32(ENDIAN).ok();
                    }
                }
            }
        }
        None
    }

    /// The allocation functions that the image defines; `prefixes` are those that the user named.
    pub fn definitions(&self, prefixes: &[String]) -> Definitions {
        let names = Names::new(prefixes, self.defined_symbols().map(|(name, _)| name));
        let candidates = self.defined_symbols().filter_map(|(name, symbol)| {
            let name = std::str::from_utf8(name).ok()?;
            let known = names.get(name)?;
            Some(Candidate { name, known, symbol })
        });
        Definitions::of(&names, &candidates.collect::<Vec<_>>())
    }

    /// The name, without a version, of everything that is defined.
    fn defined_symbols(&self) -> impl Iterator<Item = (&'d [u8], &'d Sym64<LittleEndian>)> {
        let tables = self.symbol_tables().into_iter();
        tables.flat_map(|table| {
            let symbols = table.iter().filter(|symbol| is_defined(symbol));
            symbols.filter_map(|symbol| {
                let name = table.symbol_name(ENDIAN, symbol).ok()?;
                Some((name.split(|&byte| byte == b'@').next()?, symbol))
            })
        })
    }

    /// The addresses strictly within `code` that a symbol names: code that may be entered from elsewhere.
    pub fn entry_points(&self, code: &Code<'_>) -> Vec<u64> {
        let inside = |symbol: &&Sym64<LittleEndian>| {
            let address = symbol.st_value(ENDIAN);
            address != code.address && code.contains(address)
        };
        let is_code =
            |symbol: &&Sym64<LittleEndian>| matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC | STT_NOTYPE);
        let symbols = self.symbol_tables().into_iter().flat_map(|table| table.iter());
        let symbols = symbols
            .filter(|symbol| is_defined(symbol))
            .filter(is_code)
            .filter(inside);
        symbols.map(|symbol| symbol.st_value(ENDIAN)).collect()
    }

    /// The bounds of a function, from its symbol and from the FDE that covers it.
    pub fn bounds(&self, address: u64, size: u64) -> Result<Bounds, Refusal> {
        let fde = self.frames.as_ref().and_then(|frames| frames.covering(address));
        let symbol_end = if size == 0 {
            None
        } else {
            Some(address.checked_add(size).ok_or(Refusal::NotInCode)?)
        };
        let (end, confirmed) = match (fde, symbol_end) {
            (Some(fde), _) if fde.start != address => {
                return Err(Refusal::FrameElsewhere {
                    fde: fde.start,
                    symbol: address,
                });
            }
            (Some(fde), Some(end)) => (end.min(fde.end), true),
            (Some(fde), None) => (fde.end, true),
            (None, Some(end)) => (end, false),
            (None, None) => return Err(Refusal::NoBounds),
        };
        let length = end.saturating_sub(address);
        if length > MAX_FUNCTION {
            return Err(Refusal::TooLarge(length));
        }
        Ok(Bounds {
            range: address..end,
            confirmed,
        })
    }

    /// The code of a range that lies wholly in one executable segment.
    pub fn code(&self, range: Range<u64>) -> Result<Code<'d>, Refusal> {
        let segment = self.code_segment(range.start).ok_or(Refusal::NotInCode)?;
        let length = range
            .end
            .checked_sub(range.start)
            .filter(|&length| length != 0)
            .ok_or(Refusal::NotInCode)?;
        let bytes = self
            .segment_bytes(segment, range.start, Some(length))
            .ok_or(Refusal::NotInCode)?;
        Code::new(range.start, bytes).ok_or(Refusal::NotInCode)
    }

    /// The file offset of an address in an executable segment.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.code_segment(address)?;
        address
            .checked_sub(segment.p_vaddr(ENDIAN))?
            .checked_add(segment.p_offset(ENDIAN))
    }

    /// The names of the functions that the dynamic linker fills in, by the address of their slot.
    pub fn imports(&self) -> HashMap<u64, String> {
        let Some((relocations, symbols)) = self
            .file
            .dynamic_relocations()
            .zip(self.file.dynamic_symbol_table())
        else {
            return HashMap::new();
        };
        let named = relocations.filter_map(|(slot, relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return None;
            };
            let name = symbols.symbol_by_index(index).ok()?.name().ok()?;
            Some((slot, name.to_owned()))
        });
        named.collect()
    }

    /// Whether the unwind information covers an address.
    pub fn has_frame(&self, address: u64) -> bool {
        self.frames
            .as_ref()
            .is_some_and(|frames| frames.covering(address).is_some())
    }

    /// The slot that the code at this address jumps through, if it is a stub of the PLT.
    pub fn slot_of_stub(&self, address: u64) -> Option<u64> {
        let segment = self.segment(address)?;
        let mut instructions = segment.instructions_from(address)?;
        let mut first = instructions.next()?;
        if first.mnemonic() == Mnemonic::Endbr64 {
            first = instructions.next()?;
        }
        (first.flow_control() == FlowControl::IndirectBranch).then(|| fixed_slot(&first))?
    }

    /// The address of a function that the image defines.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let mut symbols = self.defined_symbols();
        let (_, symbol) =
            symbols.find(|(known, symbol)| *known == name.as_bytes() && symbol.st_type() == STT_FUNC)?;
        Some(symbol.st_value(ENDIAN))
    }

    fn symbol_tables(&self) -> [&SymbolTable<'d, object::elf::FileHeader64<LittleEndian>, R>; 2] {
        [self.file.elf_dynamic_symbol_table(), self.file.elf_symbol_table()]
    }

    /// The kernel places uprobes only in mappings that are executable and not writable.
    fn code_segment(&self, address: u64) -> Option<&'d ProgramHeader64<LittleEndian>> {
        self.loaded_segment(address)
            .filter(|segment| segment.p_flags(ENDIAN) & (PF_X | PF_W) == PF_X)
    }

    /// The loaded segment whose file bytes hold `address`.
    fn loaded_segment(&self, address: u64) -> Option<&'d ProgramHeader64<LittleEndian>> {
        self.file
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(ENDIAN) == PT_LOAD)
            .find(|header| {
                let within = address.checked_sub(header.p_vaddr(ENDIAN));
                within.is_some_and(|within| within < header.p_filesz(ENDIAN))
            })
    }

    /// `length` bytes of a segment from `address` on, or all that follow.
    fn segment_bytes(
        &self,
        segment: &ProgramHeader64<LittleEndian>,
        address: u64,
        length: Option<u64>,
    ) -> Option<&'d [u8]> {
        let skipped = address.checked_sub(segment.p_vaddr(ENDIAN))?;
        let available = segment.p_filesz(ENDIAN).checked_sub(skipped)?;
        let length = length.unwrap_or(available);
        if length > available {
            return None;
        }
        self.data
            .read_bytes_at(segment.p_offset(ENDIAN).checked_add(skipped)?, length)
            .ok()
    }

    fn find_frames(&self) -> Option<Frames<'d>> {
        let header = self
            .file
            .elf_program_headers()
            .iter()
            .find(|header| header.p_type(ENDIAN) == PT_GNU_EH_FRAME);
        let header =
            header.and_then(|header| Some((header.data(ENDIAN, self.data).ok()?, header.p_vaddr(ENDIAN))));
        let eh_frame = header.and_then(|(bytes, address)| {
            let address = eh_frame_address(bytes, address)?;
            Some((
                self.segment_bytes(self.loaded_segment(address)?, address, None)?,
                address,
            ))
        });
        if let Some((bytes, address)) = eh_frame {
            return Some(Frames::new(bytes, address, header));
        }
        let section = self.file.section_by_name(".eh_frame")?;
        Some(Frames::new(section.data().ok()?, section.address(), None))
    }

    /// The function symbol whose size covers an address.
    fn symbol_covering(&self, address: u64) -> Option<Range<u64>> {
        let mut symbols = self.symbol_tables().into_iter().flat_map(|table| table.iter());
        symbols.find_map(|symbol| {
            let begin = symbol.st_value(ENDIAN);
            let range = begin..begin.checked_add(symbol.st_size(ENDIAN))?;
            (is_defined(symbol) && symbol.st_type() == STT_FUNC && range.contains(&address)).then_some(range)
        })
    }
}

impl<'d, R: ReadRef<'d>> CodeRanges<'d> for Image<'d, R> {
    fn covering(&self, address: u64) -> Option<Code<'d>> {
        let fde = self.frames.as_ref().and_then(|frames| frames.covering(address));
        let range = fde.or_else(|| self.symbol_covering(address))?;
        self.code(range).ok()
    }

    fn segment(&self, address: u64) -> Option<Code<'d>> {
        let segment = self.code_segment(address)?;
        let begin = segment.p_vaddr(ENDIAN);
        Code::new(begin, self.segment_bytes(segment, begin, None)?)
    }
}

/// A symbol whose name is that of an allocation function.
struct Candidate<'a> {
    name: &'a str,
    known: &'a Known,
    symbol: &'a Sym64<LittleEndian>,
}

impl Candidate<'_> {
    fn address(&self) -> u64 {
        self.symbol.st_value(ENDIAN)
    }

    /// Why the symbol is not believed; `all` are all candidates.
    fn refusal(&self, all: &[Candidate<'_>]) -> Option<Refusal> {
        match (self.symbol.st_type(), self.symbol.st_bind()) {
            (STT_GNU_IFUNC, _) => Some(Refusal::IndirectFunction),
            (STT_FUNC, STB_LOCAL) => {
                let is_other =
                    |other: &&Candidate<'_>| other.name == self.name && other.address() != self.address();
                let certain = self.known.is_unmistakable() && !all.iter().any(|other| is_other(&other));
                (!certain).then_some(Refusal::Local)
            }
            (STT_FUNC, _) => None,
            (other, _) => Some(Refusal::NotAFunction(other)),
        }
    }
}

impl Definitions {
    fn of(names: &Names, candidates: &[Candidate<'_>]) -> Self {
        let mut definitions = Self::default();
        let judged: Vec<_> = candidates
            .iter()
            .map(|candidate| (candidate, candidate.refusal(candidates)))
            .collect();
        let believed = judged.iter().filter(|(_, refusal)| refusal.is_none());
        let defined: BTreeMap<_, _> = believed
            .map(|(candidate, _)| (candidate.name, candidate.known))
            .collect();
        let families = names.families(&defined);
        for (candidate, refusal) in judged {
            let is_plain = !candidate.known.is_unmistakable();
            match refusal {
                None if families.contains(&candidate.known.family) => definitions.merge(candidate),
                Some(refusal) if is_plain || families.contains(&candidate.known.family) => {
                    definitions.refuse(candidate, refusal);
                }
                _ => {}
            }
        }
        definitions.finish(names)
    }

    fn refuse(&mut self, candidate: &Candidate<'_>, refusal: Refusal) {
        let (name, address) = (candidate.name, candidate.address());
        if !self
            .refused
            .iter()
            .any(|(known, at, _)| (known.as_str(), *at) == (name, address))
        {
            self.refused.push((name.to_owned(), address, refusal));
        }
    }

    fn merge(&mut self, candidate: &Candidate<'_>) {
        let shape = candidate.known.shape;
        let size = candidate.symbol.st_size(ENDIAN);
        let new = Definition {
            shape,
            names: Vec::new(),
            address: candidate.address(),
            size,
            throws: false,
        };
        let known = self.found.entry(new.address).or_insert(new);
        if !known.shape.agrees_with(shape) {
            let other = known.names.first().map(|(name, _)| name.clone());
            let refusal = Refusal::Conflict(other.unwrap_or_default(), candidate.name.to_owned());
            return self.refuse(candidate, refusal);
        }
        known.shape = known.shape.min(shape);
        known.throws |= candidate.known.throws(candidate.name);
        known.size = if known.size == 0 { size } else { known.size };
        if !known.names.iter().any(|(name, _)| name == candidate.name) {
            let name = (candidate.name.to_owned(), candidate.known.family.clone());
            known.names.push(name);
        }
    }

    /// Drops what conflicts, and local names of what also has a global one.
    fn finish(mut self, names: &Names) -> Self {
        for (_, address, refusal) in &self.refused {
            if matches!(refusal, Refusal::Conflict(..) | Refusal::IndirectFunction) {
                self.found.remove(address);
            }
        }
        self.refused
            .retain(|(_, address, _)| !self.found.contains_key(address));
        for definition in self.found.values_mut() {
            definition
                .names
                .sort_by_key(|(name, _)| names.get(name).map(|known| known.rank));
        }
        self
    }
}

fn is_defined(symbol: &Sym64<LittleEndian>) -> bool {
    let section = symbol.st_shndx(ENDIAN);
    section != SHN_UNDEF && (section < SHN_LORESERVE || section == SHN_XINDEX)
}
