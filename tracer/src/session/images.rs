//! What the files behind new mappings hold: unwind tables, allocators, the dynamic linker.

use std::{fs::File, io, sync::Arc};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadCache, ReadRef as _};

use crate::{
    kernel::TableRoom,
    probe::{self, CodeReader, Plan, Site},
    snapshot::Coverage,
    target::{Backing, Mapping, Process},
    unwind::{UnwindError, UnwindTable},
};

/// What the dynamic linker calls after each change (glibc `elf/dl-debug.c`, musl `ldso/dynlink.c`), for debuggers.
const LINKER_HOOK: &[u8] = b"_dl_debug_state";

/// One file or image that is newly mapped.
struct Image {
    file_id: (u64, u64),
    name: String,
    /// `None`: the code keeps frame pointers.
    table: Result<Option<UnwindTable>, String>,
    plan: Plan,
    file: Option<Arc<File>>,
    linker_hook: Option<u64>,
}

/// Where to attach, in this order.
pub struct Probes {
    /// Allocation functions, with the file they are in.
    pub sites: Vec<(Site, Arc<File>)>,
    /// Where the dynamic linker reports changes: file offset and file.
    pub linker: Option<(u64, Arc<File>)>,
}

/// The images of a set of mappings, each read once.
pub struct Images {
    images: Vec<Image>,
}

impl Images {
    /// Reads the image of each mapping; `prefixes` are those of private allocators.
    pub fn read(process: &Process, mappings: &[Arc<Mapping>], prefixes: &[String]) -> Self {
        let mut images: Vec<Image> = Vec::new();
        for mapping in mappings {
            if !images
                .iter()
                .any(|image| image.file_id == mapping.file_id && mapping.file_id.1 != 0)
            {
                images.push(Image::read(process, mapping, prefixes));
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

    /// Everything to probe. Frees first: a free that is seen before its allocation is harmless, one that is missed
    /// is a false leak.
    pub fn probes(&self) -> Probes {
        let sites = self.images.iter().flat_map(|image| {
            let file = image.file.as_ref();
            image
                .plan
                .sites
                .iter()
                .filter_map(move |site| Some((site.clone(), Arc::clone(file?))))
        });
        let mut sites: Vec<_> = sites.collect();
        sites.sort_by_key(|(site, _)| !site.shape.is_free());
        let linker = self
            .images
            .iter()
            .find_map(|image| Some((image.linker_hook?, Arc::clone(image.file.as_ref()?))));
        Probes { sites, linker }
    }

    /// Why no allocator was found, in words.
    pub fn why_heap_is_not_visible(&self) -> &'static str {
        if self.images.iter().any(|image| image.plan.is_stripped_static) {
            "static binary, no symbols: heap not visible"
        } else {
            "heap not visible: no mapped file defines malloc and free, or the functions of an allocator that memtrace \
             knows (a private one can be named: --allocator-prefix), or the program was only starting"
        }
    }

    /// Of these prefixes, those behind which no image defines a `malloc` that is probed; as notes.
    pub fn without_malloc(&self, prefixes: &[String]) -> Vec<String> {
        let probed = |name: &str| self.images.iter().any(|image| image.plan.probes(name));
        prefixes
            .iter()
            .filter(|prefix| !probed(&format!("{prefix}malloc")))
            .map(|prefix| missing_prefix(prefix))
            .collect()
    }

    /// What is covered and what is not.
    pub fn take_coverage(&mut self) -> Coverage {
        let mut coverage = Coverage::default();
        for image in &mut self.images {
            let functions = image.plan.functions();
            if !functions.is_empty() {
                coverage.allocators.push(format!("{}: {functions}", image.name));
            }
            let notes = image.plan.notes.drain(..);
            coverage
                .not_covered
                .extend(notes.map(|note| format!("{}: {note}", image.name)));
        }
        coverage
    }
}

impl Image {
    fn read(process: &Process, mapping: &Mapping, prefixes: &[String]) -> Self {
        let mut image = Self {
            file_id: mapping.file_id,
            name: mapping.file_name(),
            table: Ok(None),
            plan: Plan::default(),
            file: None,
            linker_hook: None,
        };
        match &mapping.backing {
            Backing::File(file) => {
                image.read_file(process, mapping, file, prefixes);
                image.file = Some(Arc::clone(file));
            }
            Backing::Image(bytes) => image.table = usable(UnwindTable::from_elf(&**bytes)),
            Backing::Anonymous => {}
            Backing::Unreadable(reason) => image.table = Err(format!("the file cannot be opened: {reason}")),
        }
        image
    }

    fn read_file(&mut self, process: &Process, mapping: &Mapping, file: &File, prefixes: &[String]) {
        let cache = ReadCache::new(file);
        if !is_elf(&cache) {
            // Code that a program made itself, in a file that only it knows.
            return;
        }
        self.table = usable(UnwindTable::from_elf(&cache));
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

/// What is said of a prefix behind which there is no `malloc`.
fn missing_prefix(prefix: &str) -> String {
    format!("no mapped file defines {prefix}malloc (--allocator-prefix {prefix})")
}

fn usable(table: Result<UnwindTable, UnwindError>) -> Result<Option<UnwindTable>, String> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(UnwindError::NoEhFrame) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn is_elf(cache: &ReadCache<&File>) -> bool {
    cache.read_bytes_at(0, 4) == Ok(&object::elf::ELFMAG)
}

/// The file offset of the dynamic linker's hook, if this is the dynamic linker.
fn linker_hook(cache: &ReadCache<&File>) -> Option<u64> {
    let elf = object::File::parse(cache).ok()?;
    let mut symbols = elf.dynamic_symbols().chain(elf.symbols());
    let hook = symbols.find(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(LINKER_HOOK))?;
    let segment = elf
        .segments()
        .find(|s| (s.address()..s.address() + s.size()).contains(&hook.address()))?;
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
