//! What a program's DWARF says: sizes of frames, and offsets of fields.

use std::{borrow::Cow, collections::HashMap, fs, path::Path, sync::Arc};

use gimli::{
    AttributeValue, BaseAddresses, CfaRule, CieOrFde, DebugFrame, Dwarf, EndianArcSlice,
    FrameDescriptionEntry, LittleEndian, UnwindContext, UnwindSection as _,
};
use object::{Object as _, ObjectSection as _};

use super::target::Symbols;
use crate::go::FrameSizes;

type Reader = EndianArcSlice<LittleEndian>;

/// Functions that nothing called (`TOPFRAME` in the runtime's assembly).
const OUTERMOST: [&str; 6] = [
    "runtime.goexit",
    "runtime.mstart",
    "runtime.rt0_go",
    "runtime.mcall",
    "runtime.morestack",
    "runtime.systemstack_switch",
];

fn section(elf: &object::File<'_>, name: &str) -> Reader {
    let section = elf.section_by_name(name);
    let data = section.map_or(Ok(Cow::Borrowed(&[][..])), |section| section.uncompressed_data());
    Reader::new(Arc::from(&*data.expect("a readable section")), LittleEndian)
}

/// The sizes of frames by `.debug_frame`.
pub(super) struct DebugFrames<'t> {
    symbols: &'t Symbols,
    section: DebugFrame<Reader>,
    functions: Vec<FrameDescriptionEntry<Reader>>,
}

impl<'t> DebugFrames<'t> {
    pub(super) fn read(symbols: &'t Symbols) -> Self {
        let bytes = fs::read(&symbols.path).expect("the program was built");
        let elf = object::File::parse(&*bytes).expect("an ELF file");
        let section = DebugFrame::from(section(&elf, ".debug_frame"));
        let bases = BaseAddresses::default();
        let mut functions = Vec::new();
        let mut entries = section.entries(&bases);
        while let Some(entry) = entries.next().expect("readable frames") {
            if let CieOrFde::Fde(partial) = entry {
                let function = partial.parse(DebugFrame::cie_from_offset);
                functions.push(function.expect("a readable frame"));
            }
        }
        functions.sort_unstable_by_key(FrameDescriptionEntry::initial_address);
        Self {
            symbols,
            section,
            functions,
        }
    }
}

impl FrameSizes for DebugFrames<'_> {
    fn frame_size(&self, address: u64) -> Option<u32> {
        let behind = self
            .functions
            .partition_point(|fde| fde.initial_address() <= address);
        let function = self.functions.get(behind.checked_sub(1)?)?;
        let bases = BaseAddresses::default();
        let mut context = UnwindContext::new();
        let row = function.unwind_info_for_address(&self.section, &bases, &mut context, address);
        match row.ok()?.cfa() {
            CfaRule::RegisterAndOffset { offset, .. } => u32::try_from(offset - 8).ok(),
            CfaRule::Expression(_) => None,
        }
    }

    fn entry(&self, address: u64) -> Option<u64> {
        let (begin, _) = self.symbols.containing(address)?;
        let etext = self.symbols.address("runtime.etext")?;
        (address < etext).then_some(begin)
    }

    fn is_outermost(&self, entry: u64) -> bool {
        let symbol = self.symbols.containing(entry);
        symbol.is_some_and(|(_, name)| OUTERMOST.contains(&name))
    }

    fn is_injected(&self, entry: u64) -> bool {
        let symbol = self.symbols.containing(entry);
        symbol.is_some_and(|(_, name)| matches!(name, "runtime.sigpanic" | "runtime.asyncPreempt"))
    }
}

/// The fields of these structures by `.debug_info`, as `structure.field`, and their sizes as `structure`.
pub(super) fn fields(path: &Path, structures: &[&str]) -> HashMap<String, u64> {
    let bytes = fs::read(path).expect("the program was built");
    let elf = object::File::parse(&*bytes).expect("an ELF file");
    let dwarf = Dwarf::load(|id| Ok::<_, gimli::Error>(section(&elf, id.name()))).expect("sections");
    let mut found = HashMap::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next().expect("readable units") {
        let unit = dwarf.unit(header).expect("a readable unit");
        let mut structure = String::new();
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs().expect("readable entries") {
            let name = entry
                .attr_value(gimli::DW_AT_name)
                .and_then(|name| dwarf.attr_string(&unit, name).ok())
                .map(|name| String::from_utf8_lossy(&name).into_owned());
            let number = |attribute| {
                entry
                    .attr_value(attribute)
                    .as_ref()
                    .and_then(AttributeValue::udata_value)
            };
            match (entry.tag(), name) {
                (gimli::DW_TAG_structure_type, Some(name)) => {
                    structure.clear();
                    if structures.contains(&name.as_str()) {
                        found.insert(name.clone(), number(gimli::DW_AT_byte_size).expect("a size"));
                        structure = name;
                    }
                }
                (gimli::DW_TAG_member, Some(name)) if !structure.is_empty() => {
                    let offset = number(gimli::DW_AT_data_member_location).expect("an offset");
                    found.insert(format!("{structure}.{name}"), offset);
                }
                _ => {}
            }
        }
    }
    found
}
