//! What the files behind new mappings hold: unwind tables, allocators, the dynamic linker.

mod dials;

use std::{fs::File, io, ops::Range, sync::Arc};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadRef as _};

use super::files::{FileId, Probes};
use crate::{
    go::GoBinaries,
    kernel::TableRoom,
    probe::{self, CodeReader, Plan},
    target::{Backing, FileBytes, Mapping, Process},
    unwind::{UnwindError, UnwindTable},
};

/// What the dynamic linker calls after each change (glibc `elf/dl-debug.c`, musl `ldso/dynlink.c`), for debuggers.
const LINKER_HOOK: &[u8] = b"_dl_debug_state";

/// One file or image that is newly mapped.
pub struct Image {
    file_id: FileId,
    name: String,
    /// `None`: the code keeps frame pointers.
    table: Result<Option<UnwindTable>, String>,
    plan: Plan,
    file: Option<Arc<File>>,
    linker_hook: Option<u64>,
    dials: dials::Dials,
}

/// The images of a set of mappings, each read once.
pub struct Images {
    images: Vec<Image>,
}

impl Images {
    /// Reads the image of each mapping; `prefixes` are those of private allocators.
    pub fn read(
        process: &Process,
        mappings: &[Arc<Mapping>],
        prefixes: &[String],
        binaries: &GoBinaries,
    ) -> Self {
        let mut images: Vec<Image> = Vec::new();
        for mapping in mappings {
            if !images
                .iter()
                .any(|image| image.file_id == mapping.file_id && mapping.file_id.1 != 0)
            {
                images.push(Image::read(process, mapping, prefixes, binaries));
            }
        }
        Self { images }
    }

    /// The room that all tables need.
    pub fn room(&self) -> TableRoom {
        let tables = || {
            self.images
                .iter()
                .filter_map(|image| image.table.as_ref().ok()?.as_ref())
        };
        TableRoom {
            rows: tables().map(|table| table.rows.len() as u32).sum(),
            pages: tables().map(|table| table.pages.len() as u32).sum(),
            prefixes: 0,
        }
    }

    /// The table for this mapping; `Ok(None)`: its code keeps frame pointers.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn table(&self, mapping: &Mapping) -> Result<Option<&UnwindTable>, &str> {
        let image = self
            .images
            .iter()
            .find(|image| image.file_id == mapping.file_id && image.name == mapping.file_name());
        match image {
            Some(image) => image.table.as_ref().map(Option::as_ref).map_err(String::as_str),
            None => Ok(None),
        }
    }

    /// Whether anything in the file behind this mapping is probed.
    pub fn has_probes(&self, mapping: &Mapping) -> bool {
        let mut images = self.images.iter();
        images.any(|image| image.file_id == mapping.file_id && image.has_probes())
    }

    /// Everything to probe, the allocators only `with_heap`. Frees first: a free that is seen before its allocation is
    /// harmless, one that is missed is a false leak.
    pub fn probes(&self, with_heap: bool) -> Probes {
        let images = || self.images.iter().filter(|image| !image.is_unreadable());
        let with_sites = images().filter(|_| with_heap);
        let sites = with_sites.flat_map(|image| {
            let file = image.file.as_ref();
            image
                .plan
                .sites
                .iter()
                .filter_map(move |site| Some((site.clone(), Arc::clone(file?))))
        });
        let mut sites: Vec<_> = sites.collect();
        sites.sort_by_key(|(site, _)| !site.shape.is_free());
        let linker = images().find_map(|image| Some((image.linker_hook?, Arc::clone(image.file.as_ref()?))));
        let dials = images().filter_map(Image::dials).collect();
        Probes { sites, dials, linker }
    }

    /// The images.
    pub fn iter(&self) -> impl Iterator<Item = &Image> {
        self.images.iter()
    }
}

impl Image {
    /// Device and inode.
    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Whether anything in it is probed.
    pub fn has_probes(&self) -> bool {
        self.file.is_some()
            && !self.is_unreadable()
            && (!self.plan.sites.is_empty() || self.linker_hook.is_some() || self.dials().is_some())
    }

    /// Where a breakpoint will be (virtual address in the file).
    pub fn breakpoint(&self) -> Option<u64> {
        let site = self.plan.sites.first()?;
        let point = site.inner.first().map_or(&site.entry, |inner| &inner.point);
        Some(point.vaddr)
    }

    /// What is covered: `"libc.so.6: malloc family"`.
    pub fn allocator(&self) -> Option<String> {
        let functions = self.plan.functions();
        (!functions.is_empty()).then(|| format!("{}: {functions}", self.name))
    }

    /// Where the code of its allocation functions is (virtual addresses in the file).
    pub fn allocator_code(&self) -> &[Range<u64>] {
        &self.plan.allocator_code
    }

    /// Whether it is a program that is linked statically and has no symbols.
    pub fn is_stripped_static(&self) -> bool {
        self.plan.is_stripped_static
    }

    /// Whether it could not be read whole: it is to be read again.
    pub fn is_unreadable(&self) -> bool {
        self.plan.is_unreadable
    }

    /// Whether a function of this name is probed.
    pub fn probes(&self, name: &str) -> bool {
        self.plan.probes(name)
    }

    /// What is not covered and why.
    pub fn notes(&self) -> Vec<String> {
        let notes = self.plan.notes.iter();
        notes.map(|note| format!("{}: {note}", self.name)).collect()
    }

    fn read(process: &Process, mapping: &Mapping, prefixes: &[String], binaries: &GoBinaries) -> Self {
        let mut image = Self {
            file_id: mapping.file_id,
            name: mapping.file_name(),
            table: Ok(None),
            plan: Plan::default(),
            file: None,
            linker_hook: None,
            dials: None,
        };
        match &mapping.backing {
            Backing::File(file) => {
                image.read_file(process, mapping, file, prefixes, binaries);
                image.file = Some(Arc::clone(file));
            }
            Backing::Image(bytes) => image.table = usable(UnwindTable::from_elf(&**bytes)),
            Backing::Anonymous => {}
            Backing::Unreadable(reason) => image.table = Err(format!("the file cannot be opened: {reason}")),
        }
        image
    }

    fn read_file(
        &mut self,
        process: &Process,
        mapping: &Mapping,
        file: &File,
        prefixes: &[String],
        binaries: &GoBinaries,
    ) {
        let cache = FileBytes::new(file);
        if !is_elf(&cache) {
            // Code that a program made itself, in a file that only it knows.
            return;
        }
        // Go describes its code elsewhere, and keeps frame pointers.
        let go_code = || match binaries.open(file) {
            Some(Ok(binary)) => binary.table().text(),
            _ => 0..0,
        };
        self.table = usable(UnwindTable::from_elf_with(&cache, go_code));
        let live = LiveCode {
            process,
            bias: mapping.bias,
        };
        match probe::plan_with_prefixes(&cache, &live, prefixes) {
            Ok(plan) => self.plan = plan,
            Err(error) => log::info!("{}: no probes: {error}", self.name),
        }
        self.linker_hook = linker_hook(&cache);
    }
}

fn usable(table: Result<UnwindTable, UnwindError>) -> Result<Option<UnwindTable>, String> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(UnwindError::NoEhFrame) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn is_elf(cache: &FileBytes<'_>) -> bool {
    cache.read_bytes_at(0, 4) == Ok(&object::elf::ELFMAG)
}

/// The file offset of the dynamic linker's hook, if this is the dynamic linker.
fn linker_hook(cache: &FileBytes<'_>) -> Option<u64> {
    let elf = object::File::parse(cache).ok()?;
    let mut symbols = elf.dynamic_symbols().chain(elf.symbols());
    let hook = symbols.find(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(LINKER_HOOK))?;
    let segment = elf
        .segments()
        .find(|s| (s.address()..s.address().saturating_add(s.size())).contains(&hook.address()))?;
    Some(hook.address() - segment.address() + segment.file_range().0)
}

/// The target's code, by the addresses of the file.
struct LiveCode<'a> {
    process: &'a Process,
    bias: u64,
}

impl CodeReader for LiveCode<'_> {
    fn read(&self, vaddr: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.process.read_memory(vaddr.wrapping_add(self.bias), buffer)
    }
}
