//! Separate debug files, by build id or by `.gnu_debuglink`.
//!
//! The target chooses the build id and the link; so a debug file is taken only from the host's own debug directories,
//! only when root (or who runs memtrace) owns it and nobody else may write it, and only when its build id or checksum
//! says that it belongs to the image.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt, fs::OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::elf::{DebugLink, Facts, Image};

/// Where distributions install debug files (`Separate Debug Files` in GDB's manual).
pub(crate) const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// A build id shorter than this (bytes) is not worth trusting: GNU ld writes 16 or 20.
const MIN_BUILD_ID: usize = 8;

/// The debug file of an image, `path` being where the target has the image.
pub(crate) fn find(directories: &[PathBuf], facts: &Facts, path: &Path) -> Option<Arc<File>> {
    directories.iter().find_map(|directory| {
        let by_id = facts
            .build_id
            .as_deref()
            .and_then(|id| by_build_id(directory, id));
        by_id.or_else(|| by_link(directory, facts, path))
    })
}

fn by_build_id(directory: &Path, id: &[u8]) -> Option<Arc<File>> {
    if id.len() < MIN_BUILD_ID {
        return None;
    }
    let hex = hex(id);
    let path = directory
        .join(".build-id")
        .join(&hex[..2])
        .join(format!("{}.debug", &hex[2..]));
    let file = open_trusted(&path)?;
    let found = Image::File(Arc::clone(&file)).facts();
    accept(
        found.build_id.as_deref() == Some(id),
        &path,
        "it has another build id",
    )
    .then_some(file)
}

fn by_link(directory: &Path, facts: &Facts, path: &Path) -> Option<Arc<File>> {
    let link = facts.debug_link.as_ref()?;
    let name = plain_name(link)?;
    let beside = below(directory, path.parent()?)?.join(name);
    [beside, directory.join(name)].into_iter().find_map(|path| {
        let file = open_trusted(&path)?;
        let matches = match Image::File(Arc::clone(&file)).facts().build_id {
            Some(id) if facts.build_id.is_some() => Some(id) == facts.build_id,
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
