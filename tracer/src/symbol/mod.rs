//! Names for addresses: functions, inlined calls, files and lines.
//!
//! A [`Symbolizer`] reads the files that the target itself maps, through descriptors opened before; what it parsed and
//! found is kept from one snapshot to the next. Sources, best first:
//!
//! 0. `.gopclntab` of a Go program, for its Go code;
//! 1. DWARF in a separate debug file of the host (`/usr/lib/debug`, by build id or `.gnu_debuglink`), when only root
//!    can write it and it belongs to the image;
//! 2. DWARF in the image itself;
//! 3. the symbol tables of both, of which only functions of known size that cover the address count.
//!
//! Code that none of these names is called `module+0xADDRESS`, ADDRESS being the *virtual address in the file* (what
//! `addr2line` and `objdump` take); for code that no file backs it is the offset in the mapping.
//!
//! Not read: `perf` maps, links to debug files outside the debug directories, and anything else the target could use
//! to choose which file a privileged process opens. Not solved here: DWARF is parsed in this process, from a mapping of
//! the file, and a hostile image, or one that is truncated meanwhile, can end it.

mod allocator;
mod debug_file;
mod demangle;
mod elf;
mod frame_map;
mod intern;
mod module;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use blazesym::symbolize::Symbolizer as Blazesym;
use memtrace_ebpf::unwind::frame;

pub(crate) use allocator::is_allocator;
pub(crate) use debug_file::hex;
pub(crate) use frame_map::{FrameMap, WordHashing};
use intern::Strings;
use module::{Module, ModuleKey};

use crate::{
    go::GoBinaries,
    target::{Backing, Mapping, Mappings},
};

/// One function at an address; an address has several when calls were inlined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// The function's name, demangled.
    pub function: Arc<str>,
    /// Its name in the symbol table or in DWARF, when that differs.
    pub system_name: Option<Arc<str>>,
    /// The source file, as the compiler recorded it.
    pub file: Option<Arc<str>>,
    /// The line in `file`; 0 when not known.
    pub line: u32,
    /// The column in `line`; 0 when not known.
    pub column: u32,
}

/// The functions at one address of a module, the innermost inlined first.
pub(crate) type Resolved = Arc<[Line]>;

/// What is known of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbolized {
    /// The address that was looked up (virtual address in the process): inside the call instruction.
    pub address: u64,
    /// The mapping that holds the address, when it is known.
    pub mapping: Option<u16>,
    /// The functions at the address, the innermost inlined first; never empty.
    pub lines: Arc<[Line]>,
    /// Whether the names are functions' names; otherwise `lines` is the single `module+0xADDRESS`.
    pub named: bool,
}

/// The frames of a snapshot, symbolized.
#[derive(Clone, Debug, Default)]
pub struct Symbols(FrameMap<Symbolized>);

impl Symbols {
    /// What is known of a packed frame; `None` when it was not among those symbolized.
    pub fn get(&self, frame: u64) -> Option<&Symbolized> {
        self.0.get(&frame)
    }

    #[cfg(test)]
    pub(crate) fn from_parts(parts: impl IntoIterator<Item = (u64, Symbolized)>) -> Self {
        Self(parts.into_iter().collect())
    }

    /// How many distinct frames there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Finds names, and remembers them; serves any number of processes.
///
/// It holds `Rc`s of blazesym's and so stays on the thread that made it.
#[derive(Debug)]
pub struct Symbolizer {
    blazesym: Blazesym,
    debug_directories: Vec<PathBuf>,
    binaries: GoBinaries,
    modules: HashMap<ModuleKey, Opened>,
    strings: Strings,
}

/// A file that was opened to find names.
#[derive(Debug)]
struct Opened {
    /// `None` if there is nothing to be read.
    module: Option<Module>,
    /// When it was needed last.
    used: Instant,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Symbolizer {
    /// A symbolizer that takes separate debug files from `/usr/lib/debug`.
    pub fn new() -> Self {
        Self::with_debug_directories([debug_file::DEBUG_DIRECTORY])
    }

    /// A symbolizer that takes separate debug files from these directories of the host, or none.
    pub fn with_debug_directories(directories: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let debug_directories: Vec<PathBuf> = directories.into_iter().map(Into::into).collect();
        let blazesym = Blazesym::builder()
            // Files are opened once, by descriptor.
            .enable_auto_reload(false)
            .enable_code_info(true)
            .enable_inlined_fns(true)
            // `demangle` does it, and keeps the raw name too.
            .enable_demangling(false)
            // For the links of debug files that are already trusted (`dwz`).
            .set_debug_dirs(Some(&debug_directories))
            .build();
        Self {
            blazesym,
            debug_directories,
            binaries: GoBinaries::default(),
            modules: HashMap::new(),
            strings: Strings::default(),
        }
    }

    /// How many files were opened to find names.
    pub fn module_count(&self) -> usize {
        self.modules.len()
    }

    /// How many of them were not needed for so long.
    pub fn unused_for(&self, time: Duration) -> usize {
        let modules = self.modules.values();
        modules.filter(|module| module.used.elapsed() >= time).count()
    }

    /// The same, which shares the Go programs that were opened with others.
    pub fn sharing(mut self, binaries: GoBinaries) -> Self {
        self.binaries = binaries;
        self
    }

    /// Names packed frames ([`memtrace_ebpf::unwind::frame`]), which may repeat.
    pub fn symbolize(&mut self, mappings: &Mappings, frames: impl IntoIterator<Item = u64>) -> Symbols {
        let mut distinct: Vec<u64> = frames.into_iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut symbols = FrameMap::default();
        for frames in distinct.chunk_by(|a, b| frame::mapping(*a) == frame::mapping(*b)) {
            match mappings.get(frame::mapping(frames[0])) {
                Some(mapping) => self.symbolize_mapping(mapping, frames, &mut symbols),
                None => symbols.extend(frames.iter().map(|packed| (*packed, unknown(*packed)))),
            }
        }
        Symbols(symbols)
    }

    fn symbolize_mapping(&mut self, mapping: &Mapping, frames: &[u64], symbols: &mut FrameMap<Symbolized>) {
        let now = Instant::now();
        let mut module = ModuleKey::of(mapping).and_then(|key| {
            let opened = self.modules.entry(key).or_insert_with(|| Opened {
                module: Module::open(mapping, &self.debug_directories, &self.binaries),
                used: now,
            });
            opened.used = now;
            opened.module.as_mut()
        });
        let virtual_address = |packed| frame::lookup_address(packed).wrapping_sub(mapping.bias);
        if let Some(module) = &mut module {
            let addresses: Vec<u64> = frames.iter().copied().map(virtual_address).collect();
            module.resolve(&addresses, &self.blazesym, &mut self.strings);
        }
        let label = module_label(mapping);
        for packed in frames.iter().copied() {
            let address = virtual_address(packed);
            let found = module.as_ref().and_then(|module| module.get(address)).cloned();
            let named = found.is_some();
            let lines = found.unwrap_or_else(|| {
                let offset = match mapping.backing {
                    Backing::Anonymous => frame::lookup_address(packed).wrapping_sub(mapping.begin),
                    _ => address,
                };
                only_name(&format!("{label}+{offset:#x}"))
            });
            let symbolized = Symbolized {
                address: frame::lookup_address(packed),
                mapping: Some(mapping.id),
                lines,
                named,
            };
            symbols.insert(packed, symbolized);
        }
    }
}

/// A frame of a mapping that is not known.
fn unknown(packed: u64) -> Symbolized {
    Symbolized {
        address: frame::lookup_address(packed),
        mapping: None,
        lines: only_name("[unknown code]"),
        named: false,
    }
}

/// A name that is made here and not kept: there is no end of addresses in code that programs make themselves.
fn only_name(name: &str) -> Resolved {
    Arc::new([Line {
        function: name.into(),
        system_name: None,
        file: None,
        line: 0,
        column: 0,
    }])
}

/// What a mapping is called in `module+0xADDRESS`: the file's name without its directory.
fn module_label(mapping: &Mapping) -> String {
    let name = mapping
        .path
        .file_name()
        .unwrap_or_else(|| Path::new("[anonymous code]").as_os_str());
    let name = name.to_string_lossy();
    // The kernel appends this to the path of a file that has been unlinked (fs/d_path.c).
    name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
