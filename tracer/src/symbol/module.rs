//! One ELF image with all that is known of its code.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Component, PathBuf},
    sync::Arc,
};

use blazesym::symbolize::{
    CodeInfo, Input, Sym, Symbolizer as Blazesym,
    source::{Elf, Source},
};

use super::{
    FrameMap, Line, Resolved, debug_file,
    demangle::readable,
    elf::{FunctionTable, Image},
    intern::Strings,
};
use crate::{
    go::{GoBinaries, GoFrame, Pclntab},
    target::{Backing, FileVersion, Mapping},
};

/// Tells images apart. A file changed in place is another image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ModuleKey {
    File(FileVersion),
    /// Address of the image's bytes, which the module keeps alive.
    Bytes(usize),
}

impl ModuleKey {
    /// `None` when nothing readable is behind the mapping.
    pub(crate) fn of(mapping: &Mapping) -> Option<Self> {
        match &mapping.backing {
            Backing::File(file) => Some(Self::File(FileVersion::of(file).ok()?)),
            Backing::Image(bytes) => Some(Self::Bytes(bytes.as_ptr().addr())),
            Backing::Anonymous | Backing::Unreadable(_) => None,
        }
    }
}

/// One ELF image: where its names are, and the addresses already looked up.
#[derive(Debug)]
pub(crate) struct Module {
    image: Image,
    debug_file: Option<Arc<File>>,
    /// Where blazesym finds DWARF; `None` when there is none that can be trusted.
    dwarf: Option<Source<'static>>,
    functions: Option<FunctionTable>,
    /// What Go's compiler noted of its code, which is what the runtime itself goes by.
    go: Option<Arc<Pclntab>>,
    /// By virtual address in the file.
    resolved: FrameMap<Option<Resolved>>,
}

impl Module {
    /// Opens what is behind a mapping; nothing is parsed but the section headers.
    pub(crate) fn open(
        mapping: &Mapping,
        debug_directories: &[PathBuf],
        binaries: &GoBinaries,
    ) -> Option<Self> {
        let image = match &mapping.backing {
            Backing::File(file) => Image::File(Arc::clone(file)),
            Backing::Image(bytes) => Image::Bytes(Arc::clone(bytes)),
            Backing::Anonymous | Backing::Unreadable(_) => return None,
        };
        let facts = image.facts();
        let found = debug_file::find(debug_directories, mapping.root.as_deref(), &facts, &mapping.path);
        let follows_links = found.as_ref().is_some_and(|debug| debug.follows_links);
        let debug_file = found.map(|debug| debug.file);
        let dwarf = match (&debug_file, &image) {
            // Told to read DWARF, blazesym also opens whatever file the image's links name, and the target wrote
            // those: such an image is left with the names in its symbol table.
            (Some(debug), _) => follows_links.then_some(debug),
            (None, Image::File(file)) if facts.has_dwarf && !facts.links_elsewhere => Some(file),
            (None, _) => None,
        };
        let dwarf = dwarf.map(|file| Source::Elf(Elf::new(own_path(file))));
        Some(Self {
            image,
            debug_file,
            dwarf,
            functions: None,
            go: go_table(&mapping.backing, binaries),
            resolved: FrameMap::default(),
        })
    }

    /// What was found at a virtual address of the file; `None` when nothing has a name there.
    pub(crate) fn get(&self, address: u64) -> Option<&Resolved> {
        self.resolved.get(&address)?.as_ref()
    }

    /// Looks up those of the addresses that were not looked up before.
    pub(crate) fn resolve(&mut self, addresses: &[u64], blazesym: &Blazesym, strings: &mut Strings) {
        let mut missing: Vec<u64> = addresses
            .iter()
            .copied()
            .filter(|address| !self.resolved.contains_key(address))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return;
        }
        if let Some(table) = &self.go {
            missing.retain(|address| {
                let resolved = go_lines(table, *address, strings);
                let is_missing = resolved.is_none();
                if let Some(lines) = resolved {
                    self.resolved.insert(*address, Some(lines));
                }
                is_missing
            });
        }
        let found = self.look_up_dwarf(&missing, blazesym);
        for (address, symbol) in missing.iter().zip(found) {
            let resolved = self.combine(*address, symbol.as_ref(), strings);
            self.resolved.insert(*address, resolved);
        }
    }

    fn look_up_dwarf<'a>(&mut self, addresses: &[u64], blazesym: &'a Blazesym) -> Vec<Option<Sym<'a>>> {
        let found =
            (self.dwarf.as_ref()).map(|source| blazesym.symbolize(source, Input::VirtOffset(addresses)));
        match found {
            Some(Ok(found)) => found.into_iter().map(|symbol| symbol.into_sym()).collect(),
            Some(Err(error)) => {
                log::debug!(
                    "the debug information of {:?} cannot be read: {error:#}",
                    self.image
                );
                self.dwarf = None;
                vec![None; addresses.len()]
            }
            None => vec![None; addresses.len()],
        }
    }

    /// Puts together what DWARF and the symbol table say of one address.
    fn combine(&mut self, address: u64, dwarf: Option<&Sym<'_>>, strings: &mut Strings) -> Option<Resolved> {
        let trusted = dwarf.map(|symbol| &*symbol.name).filter(|name| !name.is_empty());
        let trusted = trusted.filter(|_| dwarf.is_some_and(|symbol| covers(symbol, address)));
        let outermost = trusted.or_else(|| self.functions().find(address));
        let inlined = dwarf.map_or(&[][..], |symbol| &symbol.inlined[..]);
        let mut lines = Vec::with_capacity(1 + inlined.len());
        for call in inlined.iter().rev().filter(|call| !call.name.is_empty()) {
            lines.push(line(&call.name, call.code_info.as_ref(), strings));
        }
        if let Some(name) = outermost {
            let location = dwarf.and_then(|symbol| symbol.code_info.as_deref());
            lines.push(line(name, location, strings));
        }
        (!lines.is_empty()).then(|| lines.into())
    }

    fn functions(&mut self) -> &FunctionTable {
        self.functions.get_or_insert_with(|| {
            let mut table = FunctionTable::default();
            if let Some(debug) = &self.debug_file {
                Image::File(Arc::clone(debug)).add_functions(&mut table);
            }
            self.image.add_functions(&mut table);
            table.finish();
            table
        })
    }
}

/// The table of Go functions in an image; `None` if it is no Go program.
fn go_table(backing: &Backing, binaries: &GoBinaries) -> Option<Arc<Pclntab>> {
    let Backing::File(file) = backing else {
        return None;
    };
    let binary = binaries.open(file)?.inspect_err(|error| log::debug!("{error}"));
    Some(binary.ok()?.table())
}

/// The functions at an address of a Go program; `None` where there are none. Wrappers that the compiler made are left out,
/// as in Go's own stacks, unless there is nothing else.
fn go_lines(table: &Pclntab, address: u64, strings: &mut Strings) -> Option<Resolved> {
    let frames = table.frames(address);
    let is_shown = |frame: &&GoFrame| !frame.is_wrapper;
    let all_hidden = frames.iter().all(|frame| frame.is_wrapper);
    let lines = frames.iter().filter(|frame| all_hidden || is_shown(frame));
    let lines: Vec<Line> = lines
        .map(|frame| Line {
            function: strings.intern(&frame.function),
            system_name: None,
            file: Some(strings.intern(&frame.file)),
            line: frame.line,
            column: 0,
        })
        .collect();
    (!lines.is_empty()).then(|| lines.into())
}

/// Whether a symbol that blazesym chose covers the address.
///
/// For code that DWARF does not describe blazesym takes the nearest preceding symbol when that has no size. A function
/// in several pieces has neither start nor size here, but was found by its exact ranges.
fn covers(symbol: &Sym<'_>, address: u64) -> bool {
    match symbol.size {
        Some(size) => address.wrapping_sub(symbol.addr) < size as u64,
        None => symbol.addr == 0 || symbol.addr == address,
    }
}

fn line(raw: &str, location: Option<&CodeInfo<'_>>, strings: &mut Strings) -> Line {
    let name = readable(raw);
    let system_name = (name != raw).then(|| strings.intern(raw));
    Line {
        function: strings.intern(&name),
        system_name,
        file: location.map(|location| strings.intern(&source_path(location))),
        line: location.and_then(|location| location.line).unwrap_or(0),
        column: location.and_then(|location| location.column).map_or(0, u32::from),
    }
}

/// The path as the compiler recorded it, but without `.`, and without `directory/..`.
fn source_path(location: &CodeInfo<'_>) -> String {
    let path = location.to_path();
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(clean.components().next_back(), Some(Component::Normal(_))) => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean.to_string_lossy().into_owned()
}

/// A path that opens the very file of this descriptor, whatever has become of its name.
fn own_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
