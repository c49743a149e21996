//! Executable mappings of the target, remembered for as long as a stored frame may refer to them.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::Arc,
};

use memtrace_ebpf::unwind::frame;
use object::{Object as _, ObjectSegment as _, ReadRef, SegmentFlags};
use procfs::process::{MMPermissions, MMapPath, MemoryMap};

use super::{FileBytes, Process, Root, TargetError, image};

/// What is behind an executable mapping.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A file, opened through `/proc/PID/map_files` so that it is the very file the target maps.
    File(Arc<File>),
    /// An ELF image read from the target's memory, such as the vDSO.
    Image(Arc<[u8]>),
    /// Nothing on disk: JIT-compiled code.
    Anonymous,
    /// The file could not be opened; why.
    Unreadable(String),
}

/// Which file it is, and in which state: one that is changed in place is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileVersion {
    /// Of an open file.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// One executable mapping, living or past.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Names the mapping in stored frames; never reused, never 0.
    pub id: u16,
    /// First byte (virtual address in the process).
    pub begin: u64,
    /// One past the last byte (virtual address in the process).
    pub end: u64,
    /// Offset in the file of the first byte.
    pub file_offset: u64,
    /// Load bias: process address minus the file's virtual address.
    pub bias: u64,
    /// As `/proc/PID/maps` shows it: the path in the target's view, `[vdso]`, or empty.
    pub path: PathBuf,
    /// The GNU build id, when the image has one.
    pub build_id: Option<Vec<u8>>,
    /// Device and inode of the file; mappings with the same pair are of the same file. An image has numbers in their place
    /// that no file has, and equal images have the same; the inode of code that nothing backs is 0.
    pub file_id: (u64, u64),
    /// What is behind it.
    pub backing: Backing,
    /// The root directory from which `path` counts, if memtrace has another.
    pub root: Option<Arc<Root>>,
}

impl Mapping {
    /// The file's name without its folder, for messages.
    pub fn file_name(&self) -> String {
        self.path.file_name().map_or_else(
            || self.path.to_string_lossy().into_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    }
}

/// All executable mappings that the target has or had.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    /// In ascending order of [`Mapping::id`].
    pub all: Vec<Arc<Mapping>>,
}

impl Mappings {
    /// The mapping with this id.
    pub fn get(&self, id: u16) -> Option<&Arc<Mapping>> {
        let index = self.all.binary_search_by_key(&id, |mapping| mapping.id).ok()?;
        self.all.get(index)
    }
}

impl Mappings {
    /// A stored frame that a program knew no mapping for, with the mapping that was read later: the only one that ever was
    /// at this address.
    pub fn place(&self, packed: u64) -> u64 {
        if frame::mapping(packed) != 0 {
            return packed;
        }
        let address = frame::lookup_address(packed);
        let mut there = self
            .all
            .iter()
            .filter(|mapping| (mapping.begin..mapping.end).contains(&address));
        match (there.next(), there.next()) {
            (Some(mapping), None) => packed | u64::from(mapping.id) << 48,
            _ => packed,
        }
    }
}

/// What a reading found different from the one before.
#[derive(Debug, Default)]
pub struct Change {
    /// Mappings that are new.
    pub added: Vec<Arc<Mapping>>,
    /// Mappings that are gone.
    pub removed: Vec<Arc<Mapping>>,
    /// Mappings that could not be named any more, because 65,535 were seen before.
    pub unnamed: usize,
}

impl Change {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// What makes two mappings the same one: a library that comes back to its old place keeps its id.
type Identity = (u64, u64, u64, (u64, u64), PathBuf);

/// Keeps [`Mappings`] up to date with a living process. A copy serves the process's child.
#[derive(Clone, Debug, Default)]
pub struct MappingReader {
    known: Arc<Mappings>,
    ids: HashMap<Identity, u16>,
    live: HashSet<u16>,
}

impl MappingReader {
    /// Everything seen so far.
    pub fn mappings(&self) -> Arc<Mappings> {
        Arc::clone(&self.known)
    }

    /// The mappings that live now.
    pub fn live(&self) -> impl Iterator<Item = &Arc<Mapping>> {
        self.known
            .all
            .iter()
            .filter(|mapping| self.live.contains(&mapping.id))
    }

    /// Reads `/proc/PID/maps` again.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn refresh(&mut self, process: &Process) -> Result<Change, TargetError> {
        let mut change = Change::default();
        let mut seen = HashSet::new();
        for entry in process.memory_maps()? {
            if !entry.perms.contains(MMPermissions::EXECUTE) || is_kernel_made(&entry) {
                continue;
            }
            let identity = identity_of(&entry);
            let id = match self.ids.get(&identity) {
                Some(&id) => id,
                None => match self.remember(process, &entry, identity) {
                    Some(id) => id,
                    None => {
                        change.unnamed += 1;
                        continue;
                    }
                },
            };
            seen.insert(id);
        }
        let mapping = |id: &u16| self.known.get(*id).cloned();
        change.added = seen.difference(&self.live).filter_map(mapping).collect();
        change.removed = self.live.difference(&seen).filter_map(mapping).collect();
        self.live = seen;
        Ok(change)
    }

    fn remember(&mut self, process: &Process, entry: &MemoryMap, identity: Identity) -> Option<u16> {
        let id = u16::try_from(self.known.all.len() + 1).ok()?;
        let mapping = self.open(process, entry, id);
        Arc::make_mut(&mut self.known).all.push(Arc::new(mapping));
        self.ids.insert(identity, id);
        Some(id)
    }

    fn open(&self, process: &Process, entry: &MemoryMap, id: u16) -> Mapping {
        let (begin, end) = entry.address;
        let mut mapping = Mapping {
            id,
            begin,
            end,
            file_offset: entry.offset,
            bias: begin.wrapping_sub(entry.offset),
            path: path_of(&entry.pathname),
            build_id: None,
            file_id: file_id(entry),
            backing: Backing::Anonymous,
            root: process.root().cloned(),
        };
        match &entry.pathname {
            MMapPath::Vdso => {
                let mut image = vec![0; (end - begin) as usize];
                match process.read_memory(begin, &mut image) {
                    Ok(()) => {
                        describe_image(&mut mapping, image.as_slice());
                        let (shared, id) = image::share(&image);
                        mapping.backing = Backing::Image(shared);
                        mapping.file_id = id;
                    }
                    Err(error) => mapping.backing = Backing::Unreadable(error.to_string()),
                }
            }
            MMapPath::Path(_) if entry.inode != 0 => self.open_file(process, &mut mapping),
            _ => {}
        }
        mapping
    }

    fn open_file(&self, process: &Process, mapping: &mut Mapping) {
        let known = self
            .known
            .all
            .iter()
            .rev()
            .find_map(|other| match &other.backing {
                Backing::File(file) if other.file_id == mapping.file_id && other.path == mapping.path => {
                    Some(file)
                }
                _ => None,
            });
        let opened = match known {
            Some(file) => Ok(Arc::clone(file)),
            None => open_mapped_file(process.anchor(), mapping.begin, mapping.end).map(Arc::new),
        };
        match opened {
            Ok(file) => {
                describe_image(mapping, &FileBytes::new(&file));
                mapping.backing = Backing::File(file);
            }
            Err(error) => mapping.backing = Backing::Unreadable(error.to_string()),
        }
    }
}

/// Opens the file behind a mapping through the kernel's own link to it, whatever its path means in which view.
fn open_mapped_file(thread: u32, begin: u64, end: u64) -> io::Result<File> {
    let link = format!("/proc/{thread}/map_files/{begin:x}-{end:x}");
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(link)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Fills in what the ELF headers say.
fn describe_image<'data>(mapping: &mut Mapping, data: impl ReadRef<'data>) {
    let Ok(elf) = object::File::parse(data) else {
        return;
    };
    mapping.build_id = elf.build_id().ok().flatten().map(<[u8]>::to_vec);
    let segment = elf.segments().find(|segment| {
        let (offset, size) = segment.file_range();
        // The kernel maps whole pages, so the mapping may begin before the segment's first byte, and lld lets
        // segments share a page: only the one that is executable is this mapping's.
        let first = offset & !0xfff;
        is_executable(segment.flags())
            && mapping.file_offset >= first
            && mapping.file_offset < offset.saturating_add(size)
    });
    if let Some(segment) = segment {
        let (offset, _) = segment.file_range();
        let address = segment
            .address()
            .wrapping_sub(offset)
            .wrapping_add(mapping.file_offset);
        mapping.bias = mapping.begin.wrapping_sub(address);
    }
}

fn is_executable(flags: SegmentFlags) -> bool {
    matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & object::elf::PF_X != 0)
}

/// Mappings that are not the target's code: the page of the old system calls, and the kernel's slots for probes.
fn is_kernel_made(entry: &MemoryMap) -> bool {
    match &entry.pathname {
        MMapPath::Vsyscall => true,
        MMapPath::Other(name) => name == "uprobes",
        _ => false,
    }
}

fn path_of(path: &MMapPath) -> PathBuf {
    match path {
        MMapPath::Path(path) => path.clone(),
        MMapPath::Vdso => PathBuf::from("[vdso]"),
        MMapPath::Other(name) => PathBuf::from(format!("[{name}]")),
        _ => PathBuf::new(),
    }
}

fn file_id(entry: &MemoryMap) -> (u64, u64) {
    let (major, minor) = entry.dev;
    ((major as u64) << 32 | minor as u64 & 0xffff_ffff, entry.inode)
}

fn identity_of(entry: &MemoryMap) -> Identity {
    (
        entry.address.0,
        entry.address.1,
        entry.offset,
        file_id(entry),
        path_of(&entry.pathname),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        sync::Arc,
    };

    use object::elf::{PF_R, PF_X};

    use super::{Backing, Mapping, MappingReader, Process, describe_image};

    #[test]
    fn processes_share_one_copy_of_the_vdso() {
        // It waits until its end of the pipe is closed.
        let start = || {
            Command::new("cat")
                .stdin(Stdio::piped())
                .spawn()
                .expect("it is installed")
        };
        let read = |child: &Child| {
            let process = Process::open(child.id()).expect("it runs");
            let mut reader = MappingReader::default();
            reader.refresh(&process).expect("it may be read");
            let mappings = reader.mappings();
            let vdso = mappings
                .all
                .iter()
                .find(|mapping| mapping.path == Path::new("[vdso]"));
            vdso.cloned()
        };
        let mut children = [start(), start()];
        let found = children.each_ref().map(read);
        for child in &mut children {
            child.wait().expect("it is a child of this process");
        }
        let [Some(first), Some(second)] = found else {
            println!("SKIPPED: this kernel gives processes no vDSO");
            return;
        };
        assert_eq!(first.file_id, second.file_id);
        assert_ne!(first.file_id.1, 0, "what is known of it is found again");
        match (&first.backing, &second.backing) {
            (Backing::Image(first), Backing::Image(second)) => assert!(Arc::ptr_eq(first, second)),
            backings => panic!("{backings:?}"),
        }
    }

    /// An ELF file (`Elf64_Ehdr`, `Elf64_Phdr` of the System V ABI) with these segments: flags, offset, address, size.
    fn elf(segments: &[(u32, u64, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([3_u16, 62].map(u16::to_le_bytes).as_flattened());
        file.extend(1_u32.to_le_bytes());
        file.extend([0_u64, 64, 0].map(u64::to_le_bytes).as_flattened());
        file.extend(0_u32.to_le_bytes());
        file.extend(
            [64, 56, segments.len() as u16, 64, 0, 0]
                .map(u16::to_le_bytes)
                .as_flattened(),
        );
        for &(flags, offset, address, size) in segments {
            file.extend([1, flags].map(u32::to_le_bytes).as_flattened());
            file.extend(
                [offset, address, address, size, size, 0x1000]
                    .map(u64::to_le_bytes)
                    .as_flattened(),
            );
        }
        file
    }

    /// lld lets segments share a page of the file: that page is mapped once for each, at different addresses.
    #[test]
    fn the_load_bias_is_that_of_the_code() {
        let image = elf(&[(PF_R, 0, 0, 0x1234), (PF_R | PF_X, 0x1240, 0x2240, 0x100)]);
        let begin = 0x5555_0000_2000;
        let mut mapping = Mapping {
            id: 1,
            begin,
            end: begin + 0x1000,
            file_offset: 0x1000,
            bias: 0,
            path: PathBuf::new(),
            build_id: None,
            file_id: (0, 0),
            backing: Backing::Anonymous,
            root: None,
        };
        describe_image(&mut mapping, image.as_slice());
        assert_eq!(mapping.bias, 0x5555_0000_0000);
    }
}
