//! What is known and attached of each file, however many processes map it.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    sync::Arc,
};

use super::{Settings, images::Image};
use crate::{
    kernel::{Batch, FileTable, KernelError, Programs, Tables, Threads},
    probe::{DialSites, Site},
    target::{Mapping, Process},
};

/// Device and inode, or what an image has in their place, as in [`Mapping::file_id`].
pub type FileId = (u64, u64);

/// Files that no process maps any more are forgotten once more than this are known, and more than twice as many as are in
/// use: to read one again takes milliseconds, and what a script executes comes back.
const FILES: usize = 256;
/// The same of probes, by what was attached together. Each such set has some 40 descriptors, and the kernel takes most of a second
/// to remove it, for which memtrace waits when it ends.
const BATCHES: usize = 3;

/// The allocation functions of some files, the functions by which Go's `net/http` connects, and the dynamic linker's hook.
#[derive(Clone, Default)]
pub struct Probes {
    /// Allocation functions, with the file they are in, in the order in which they are attached.
    pub sites: Vec<(Site, Arc<File>)>,
    /// Functions of `net/http`, with the file they are in.
    pub dials: Vec<(DialSites, Arc<File>)>,
    /// Where the dynamic linker reports changes: file offset and file.
    pub linker: Option<(u64, Arc<File>)>,
}

impl Probes {
    /// Whether there is nothing to attach.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty() && self.dials.is_empty() && self.linker.is_none()
    }

    fn attach(
        &self,
        programs: &mut Programs,
        settings: &Settings,
        threads: &Threads<'_>,
    ) -> Result<Batch, KernelError> {
        let linker = self.linker.as_ref();
        programs.attach_sites(&self.sites, &self.dials, linker, settings.floor, threads)
    }
}

/// What is kept of a file.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its unwind table.
    pub table: Option<FileTable>,
    /// Its probes, if it has any.
    pub batch: Option<Batch>,
    /// Where one of its breakpoints is (virtual address in the file).
    pub breakpoint: Option<u64>,
    /// Whether it is a program that is linked statically and has no symbols.
    pub is_stripped_static: bool,
    /// Where the code of its allocation functions is (virtual addresses in the file).
    pub allocator_code: Vec<Range<u64>>,
    /// For the profile: which of its functions are covered.
    pub allocator: Option<String>,
    /// For the profile: what is not covered.
    pub notes: Vec<String>,
    /// For the profile: why the descriptors of Go's `net/http` are not told by who asked for them.
    pub dial_note: Option<String>,
}

/// All files, and who uses which set of mappings.
#[derive(Default)]
pub struct Files {
    known: HashMap<FileId, Known>,
    /// What was attached, to attach it again: to one process without its children.
    attached: Vec<Probes>,
    /// What was attached to processes and their children.
    batches: HashSet<Batch>,
    /// How many files are in use, and how many batches, as far as is known.
    used: (usize, usize),
    /// Tables of files that are forgotten. A walk may still be in them.
    forgotten: Vec<FileTable>,
    /// Of the prefixes of private allocators, those that a file had.
    prefixes: HashSet<String>,
    /// Files that could not be read whole.
    unreadable: HashSet<FileId>,
    layouts: HashMap<u32, u32>,
    last_layout: u32,
}

impl Files {
    /// What is known of the file behind a mapping. Memory without a file has no id to be known by.
    pub fn get(&self, mapping: &Mapping) -> Option<&Known> {
        self.known
            .get(&mapping.file_id)
            .filter(|_| mapping.file_id.1 != 0)
    }

    /// Whether the code at an address of the process is an allocation function's.
    pub fn is_allocator(&self, mapping: &Mapping, address: u64) -> bool {
        let vaddr = address.wrapping_sub(mapping.bias);
        let known = self.get(mapping);
        known.is_some_and(|known| known.allocator_code.iter().any(|code| code.contains(&vaddr)))
    }

    /// Whether the file behind a mapping is to be read: it is new, or could not be read whole before.
    pub fn is_unread(&self, mapping: &Mapping) -> bool {
        self.get(mapping).is_none() || self.unreadable.contains(&mapping.file_id)
    }

    /// Remembers what an image says of its allocator, with these prefixes of private ones.
    pub fn remember(&mut self, image: &Image, batch: Option<Batch>, prefixes: &[String]) {
        let found = prefixes
            .iter()
            .filter(|prefix| image.probes(&format!("{prefix}malloc")));
        self.prefixes.extend(found.cloned());
        if image.is_unreadable() {
            self.unreadable.insert(image.file_id());
            return;
        }
        self.unreadable.remove(&image.file_id());
        let known = self.known.entry(image.file_id()).or_default();
        known.batch = batch;
        known.breakpoint = image.breakpoint();
        known.is_stripped_static = image.is_stripped_static();
        known.allocator_code = image.allocator_code().to_vec();
        known.allocator = image.allocator();
        known.notes = image.notes();
        known.dial_note = image.dial_note();
    }

    /// Forgets files whose tables are not in the kernel any more. They have no probes.
    pub fn forget_tables(&mut self, tables: &[FileTable]) {
        let is_gone = |table: FileTable| tables.iter().any(|gone| gone.is_same(table));
        self.known.retain(|_, known| !known.table.is_some_and(is_gone));
        self.forgotten.retain(|table| !is_gone(*table));
    }

    /// Whether so much is known that what is not in use is to be forgotten.
    pub fn are_many(&self) -> bool {
        let (files, batches) = self.used;
        self.known.len() > FILES.max(2 * files) || self.batches.len() > BATCHES.max(2 * batches)
    }

    /// Forgets all files but those that processes map or mapped. Returns probes that nobody has, to be removed: neither any of
    /// these files has them, nor do `bound`.
    pub fn forget_unused(&mut self, mapped: &HashSet<FileId>, bound: &HashSet<Batch>) -> Vec<Batch> {
        let of_mapped = mapped.iter().filter_map(|id| self.known.get(id)?.batch);
        let batches: HashSet<Batch> = of_mapped.chain(bound.iter().copied()).collect();
        let is_used = |id: &FileId, known: &Known| {
            mapped.contains(id) || known.batch.is_some_and(|of| batches.contains(&of))
        };
        let unused = self.known.extract_if(|id, known| !is_used(id, known));
        let tables = unused.filter_map(|(_, known)| known.table);
        self.forgotten.extend(tables);
        self.unreadable.retain(|id| mapped.contains(id));
        let unused = self.batches.extract_if(|batch| !batches.contains(batch));
        let unused = unused.collect();
        self.used = (self.known.len(), self.batches.len());
        unused
    }

    /// Gives back the room of tables of files that are forgotten.
    pub fn give_back_tables(&mut self, tables: &mut Tables) {
        self.forgotten.retain(|table| !tables.forget_file(*table));
    }

    /// What to say of the prefixes that no file has.
    pub fn without_malloc(&self, prefixes: &[String]) -> Vec<String> {
        let missing = prefixes.iter().filter(|prefix| !self.prefixes.contains(*prefix));
        let note = |prefix| format!("no mapped file defines {prefix}malloc (--allocator-prefix {prefix})");
        missing.map(note).collect()
    }

    /// Remembers where a file's table is.
    pub fn remember_table(&mut self, mapping: &Mapping, table: FileTable) {
        if mapping.file_id.1 != 0 {
            self.known.entry(mapping.file_id).or_default().table = Some(table);
        }
    }

    /// Attaches probes that are not attached so far.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(
        &mut self,
        programs: &mut Programs,
        probes: Probes,
        settings: &Settings,
        threads: &Threads<'_>,
    ) -> Result<Batch, KernelError> {
        for (site, _) in &probes.sites {
            log::info!("{}: {}", site.symbol, site.why);
        }
        for (sites, _) in &probes.dials {
            log::info!("net/http: connections are told by whom they were asked for: {sites:?}");
        }
        let batch = probes.attach(programs, settings, threads)?;
        match settings.children {
            true => {
                self.batches.insert(batch);
            }
            false => self.attached.push(probes),
        }
        Ok(batch)
    }

    /// Attaches everything anew, for another thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_again(
        &self,
        programs: &mut Programs,
        settings: &Settings,
        threads: &Threads<'_>,
    ) -> Result<(), KernelError> {
        for probes in &self.attached {
            probes.attach(programs, settings, threads)?;
        }
        Ok(())
    }

    /// Whether the process has memtrace's breakpoints; `None` if none of these mappings has a place for one, or the memory
    /// cannot be read.
    pub fn has_breakpoints<'a>(
        &self,
        process: &Process,
        mappings: impl Iterator<Item = &'a Arc<Mapping>>,
    ) -> Option<bool> {
        /// `int3`, which the kernel puts there.
        const BREAKPOINT: u8 = 0xcc;
        let mut places = mappings.filter_map(|mapping| {
            let vaddr = self.get(mapping)?.breakpoint?;
            Some(vaddr.wrapping_add(mapping.bias))
        });
        let mut byte = [0];
        process.read_memory(places.next()?, &mut byte).ok()?;
        Some(byte == [BREAKPOINT])
    }

    /// A set of mappings with one user.
    pub fn new_layout(&mut self) -> u32 {
        self.last_layout += 1;
        self.layouts.insert(self.last_layout, 1);
        self.last_layout
    }

    /// One more uses the set.
    pub fn share_layout(&mut self, layout: u32) {
        *self.layouts.entry(layout).or_default() += 1;
    }

    /// One fewer uses the set; true if nobody does any more.
    pub fn leave_layout(&mut self, layout: u32) -> bool {
        let Some(users) = self.layouts.get_mut(&layout) else {
            return false;
        };
        *users -= 1;
        let unused = *users == 0;
        if unused {
            self.layouts.remove(&layout);
        }
        unused
    }

    /// Whether others use the set, too.
    pub fn is_shared(&self, layout: u32) -> bool {
        self.layouts.get(&layout).is_some_and(|&users| users > 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{FILES, FileTable, Files, Mapping};
    use crate::target::Backing;

    fn mapping(inode: u64) -> Mapping {
        Mapping {
            id: 1,
            begin: 0,
            end: 0x1000,
            file_offset: 0,
            bias: 0,
            path: "library".into(),
            build_id: None,
            file_id: (1, inode),
            backing: Backing::Anonymous,
            root: None,
        }
    }

    #[test]
    fn files_that_no_process_maps_are_forgotten_when_they_are_many() {
        let mut files = Files::default();
        let read = |files: &mut Files, inodes: std::ops::Range<usize>| {
            inodes.for_each(|inode| files.remember_table(&mapping(inode as u64), FileTable::FRAME_POINTERS));
        };
        read(&mut files, 1..FILES + 1);
        assert!(
            !files.are_many(),
            "a program that is executed again need not be read again"
        );
        read(&mut files, FILES + 1..FILES + 2);
        assert!(files.are_many());
        // More than half of them are in use.
        let mapped: HashSet<_> = (1..FILES as u64).map(|inode| (1, inode)).collect();
        assert!(files.forget_unused(&mapped, &HashSet::new()).is_empty());
        assert!(files.get(&mapping(1)).is_some());
        assert!(files.get(&mapping(FILES as u64)).is_none());
        read(&mut files, FILES..2 * FILES - 1);
        assert!(!files.are_many(), "it does not pay to look so soon");
        read(&mut files, 2 * FILES - 1..2 * FILES);
        assert!(files.are_many());
    }
}
