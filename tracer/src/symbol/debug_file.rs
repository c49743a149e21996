//! Separate debug files, by build id or by `.gnu_debuglink`.
//!
//! The target chooses the build id and the link; so a debug file of the host's is taken only from the host's own debug
//! directories, only when root (or who runs memtrace) owns it and nobody else may write it, and only when its build id or
//! checksum says that it belongs to the image. What is in a container is the target's own, as the image itself is, and is
//! found in the container's view.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt, fs::OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::elf::{DebugLink, Facts, Image};
use crate::target::Root;

/// Where distributions install debug files (`Separate Debug Files` in GDB's manual).
pub(crate) const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// A build id shorter than this (bytes) is not worth trusting: GNU ld writes 16 or 20.
const MIN_BUILD_ID: usize = 8;

/// The longest debug file of a container's that is read to compare its checksum (bytes).
const LONGEST: u64 = 1 << 30;

/// A debug file.
#[derive(Debug)]
pub(crate) struct DebugFile {
    /// It.
    pub(crate) file: Arc<File>,
    /// Whether the files may be opened that it names in turn: not if the target wrote it.
    pub(crate) follows_links: bool,
}

/// Where debug files are looked for.
#[derive(Clone, Copy)]
enum Shelf<'a> {
    /// A directory of the host's.
    Host(&'a Path),
    /// The usual directory in the root of the target's container.
    Container(&'a Root),
}

impl Shelf<'_> {
    fn directory(&self) -> &Path {
        match self {
            Self::Host(directory) => directory,
            Self::Container(_) => Path::new(DEBUG_DIRECTORY),
        }
    }

    fn open(&self, path: &Path) -> Option<Arc<File>> {
        match self {
            Self::Host(_) => open_trusted(path),
            Self::Container(root) => root.open(path).ok().map(Arc::new),
        }
    }
}

/// The debug file of an image, `path` being where the target has the image: in its container, whose root directory `root` is, or
/// on the host.
pub(crate) fn find(
    directories: &[PathBuf],
    root: Option<&Root>,
    facts: &Facts,
    path: &Path,
) -> Option<DebugFile> {
    let by_id = |shelf| by_build_id(shelf, facts.build_id.as_deref()?);
    let any = |shelf| by_id(shelf).or_else(|| by_link(shelf, facts, path));
    let mut hosts = directories.iter().map(|directory| Shelf::Host(directory));
    let Some(root) = root else {
        let file = hosts.find_map(any)?;
        return Some(DebugFile {
            file,
            follows_links: true,
        });
    };
    if let Some(file) = any(Shelf::Container(root)) {
        let facts = Image::File(Arc::clone(&file)).facts();
        let follows_links = facts.has_dwarf && !facts.links_elsewhere;
        return Some(DebugFile { file, follows_links });
    }
    // The paths of a container mean nothing on the host; a build id does.
    let file = hosts.find_map(by_id)?;
    Some(DebugFile {
        file,
        follows_links: true,
    })
}

fn by_build_id(shelf: Shelf<'_>, id: &[u8]) -> Option<Arc<File>> {
    if id.len() < MIN_BUILD_ID {
        return None;
    }
    let hex = hex(id);
    let path = shelf
        .directory()
        .join(".build-id")
        .join(&hex[..2])
        .join(format!("{}.debug", &hex[2..]));
    let file = shelf.open(&path)?;
    let found = Image::File(Arc::clone(&file)).facts();
    accept(
        found.build_id.as_deref() == Some(id),
        &path,
        "it has another build id",
    )
    .then_some(file)
}

fn by_link(shelf: Shelf<'_>, facts: &Facts, path: &Path) -> Option<Arc<File>> {
    let directory = shelf.directory();
    let link = facts.debug_link.as_ref()?;
    let name = plain_name(link)?;
    let beside = below(directory, path.parent()?)?.join(name);
    [beside, directory.join(name)].into_iter().find_map(|path| {
        let file = shelf.open(&path)?;
        let matches = match Image::File(Arc::clone(&file)).facts().build_id {
            Some(id) if facts.build_id.is_some() => Some(id) == facts.build_id,
            _ if is_too_long(shelf, &file) => false,
            _ => checksum(&file).is_ok_and(|crc| crc == link.crc),
        };
        accept(matches, &path, "it belongs to another build").then_some(file)
    })
}

fn accept(matches: bool, path: &Path, why_not: &str) -> bool {
    if !matches {
        log::debug!("debug file {} not used: {why_not}", path.display());
    }
    matches
}

/// The link's file name, when it is nothing but a file name.
fn plain_name(link: &DebugLink) -> Option<&OsStr> {
    let path = Path::new(OsStr::from_bytes(&link.name));
    let mut components = path.components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(name)), None) => Some(name),
        _ => None,
    }
}

/// `directory` followed by an absolute `path`, when no component of it leads elsewhere.
fn below(directory: &Path, path: &Path) -> Option<PathBuf> {
    let mut below = directory.to_path_buf();
    for component in path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => below.push(name),
            Component::Prefix(_) | Component::CurDir | Component::ParentDir => return None,
        }
    }
    Some(below)
}

fn open_trusted(path: &Path) -> Option<Arc<File>> {
    // A FIFO must not make us wait.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let owner = rustix::process::geteuid().as_raw();
    let owned = metadata.uid() == 0 || metadata.uid() == owner;
    let trusted = metadata.is_file() && owned && metadata.mode() & 0o022 == 0;
    accept(trusted, path, "it is not a regular file that only root can write").then(|| Arc::new(file))
}

/// Whether a target could keep memtrace busy for long with this file.
fn is_too_long(shelf: Shelf<'_>, file: &File) -> bool {
    let length = file.metadata().map_or(u64::MAX, |metadata| metadata.len());
    matches!(shelf, Shelf::Container(_)) && length > LONGEST
}

fn checksum(file: &File) -> io::Result<u32> {
    let mut file = file.try_clone()?;
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc.sum()),
            count => crc.update(&buffer[..count]),
        }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
