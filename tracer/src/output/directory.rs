//! The directory that a run writes its profiles into.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, fchmod, fstat, mkdirat, openat, renameat, statat, unlinkat},
    io::Errno,
    process::{geteuid, getpid},
};

use crate::{
    profile::{Profile, encode_gz},
    target::ProcessInfo,
    time::compact,
};

/// Why nothing could be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The directory could not be made or opened.
    #[error("cannot use {path} for the profiles: {source}; choose another directory with --output")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is in somebody else's hands.
    #[error("will not write profiles to {path}: {why}; choose another directory with --output")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}; choose another directory with --output")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A directory that holds one file per profile.
///
/// Only the owner can read what is in it. No symbolic link is followed: the directory is opened once, files are written
/// under a temporary name relative to it and then renamed, so a file is either whole or not there.
#[derive(Debug)]
pub struct OutputDir {
    path: PathBuf,
    directory: OwnedFd,
    made: bool,
}

impl OutputDir {
    /// The directory used when none is asked for: `memtrace-PID-TIME` (UTC) in the current one.
    pub fn default_path(process: &ProcessInfo, started: SystemTime) -> PathBuf {
        format!("memtrace-{}-{}", process.pid, compact(started)).into()
    }

    /// Makes the directory, mode 0700, or takes one that is there.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be made or is not a directory, when its last component is a symbolic link, and, for root, when
    /// it belongs to another user or others can write to it.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, OutputError> {
        // A slash at the end would make the system follow a symbolic link.
        let path: PathBuf = path.into().components().collect();
        Self::make(CWD, &path.clone(), path)
    }

    /// Makes a directory in this one, for the profiles of another process. `name` is made fit for a file name, and given a
    /// number if it is taken.
    ///
    /// # Errors
    ///
    /// As [`OutputDir::create`].
    pub fn make_inside(&self, name: &str) -> Result<Self, OutputError> {
        let fit = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        let name: String = name.chars().map(|c| if fit(c) { c } else { '_' }).collect();
        let numbered = (2_u32..).map(|number| format!("{name}-{number}"));
        let is_free = |name: &String| statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).is_err();
        let free = std::iter::once(name.clone()).chain(numbered).find(is_free);
        let name = free.unwrap_or(name);
        Self::make(self.directory.as_fd(), Path::new(&name), self.path.join(&name))
    }

    /// `name` is relative to `parent`, `path` is what messages say.
    fn make(parent: BorrowedFd<'_>, name: &Path, path: PathBuf) -> Result<Self, OutputError> {
        let failed = |errno: Errno| OutputError::Directory {
            path: path.clone(),
            source: errno.into(),
        };
        let made = match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(failed(errno)),
        };
        let directory = open_directory(parent, name).map_err(|errno| match errno {
            Errno::NOTDIR if path.is_symlink() => refuse(&path, "it is a symbolic link"),
            errno => failed(errno),
        })?;
        check(&path, &directory)?;
        if made {
            // The umask may have taken bits away.
            fchmod(&directory, Mode::RWXU).map_err(failed)?;
        }
        Ok(Self {
            path,
            directory,
            made,
        })
    }

    /// Where the directory is, as it was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory if it was made by [`OutputDir::create`] and nothing was written to it.
    pub fn discard(self) {
        if self.made {
            // A directory that is not empty stays, which is what is wanted.
            let _not_empty = std::fs::remove_dir(&self.path);
        }
    }

    /// Writes the final profile of a kind, `KIND.pb.gz`, over an earlier one. Returns its path.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written; nothing is left behind then.
    pub fn write_final(&self, kind: &str, profile: &Profile) -> Result<PathBuf, OutputError> {
        self.write(&format!("{kind}.pb.gz"), &encode_gz(profile))
    }

    /// Writes a profile under the first free of the names `KIND-0001.pb.gz`, `KIND-0002.pb.gz`, …. Returns its path.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written; nothing is left behind then.
    pub fn write_numbered(&self, kind: &str, profile: &Profile) -> Result<PathBuf, OutputError> {
        let free = (1_u32..)
            .map(|number| format!("{kind}-{number:04}.pb.gz"))
            .find(|name| {
                let there = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
                // Any other failure will show when the file is written.
                there.is_err()
            });
        let name = free.unwrap_or_else(|| format!("{kind}-{}.pb.gz", u32::MAX));
        self.write(&name, &encode_gz(profile))
    }

    /// Writes a file of this name, mode 0600, over an earlier one. Returns its path.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written; nothing is left behind then.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, OutputError> {
        let path = self.path.join(name);
        self.replace(name, content).map_err(|source| OutputError::File {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!(".{name}.{}", getpid());
        let mut file = self.create_new(&temporary)?;
        let written = file
            .write_all(content)
            .and_then(|()| Ok(renameat(&self.directory, &temporary, &self.directory, name)?));
        if written.is_err() {
            // The first failure is the one to report.
            let _ = unlinkat(&self.directory, &temporary, AtFlags::empty());
        }
        written
    }

    fn create_new(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let create = || openat(&self.directory, name, flags, mode);
        let file = match create() {
            // Left by a process that had our id and was killed.
            Err(Errno::EXIST) => {
                unlinkat(&self.directory, name, AtFlags::empty())?;
                create()?
            }
            other => other?,
        };
        fchmod(&file, mode)?;
        Ok(File::from(file))
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn check(path: &Path, directory: &OwnedFd) -> Result<(), OutputError> {
    let status = fstat(directory).map_err(|errno| OutputError::Directory {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    let user = geteuid();
    if !user.is_root() {
        return Ok(());
    }
    if status.st_uid != user.as_raw() {
        return Err(refuse(
            path,
            format!("it belongs to another user (uid {})", status.st_uid),
        ));
    }
    if status.st_mode & 0o022 != 0 {
        let mode = status.st_mode & 0o7777;
        return Err(refuse(
            path,
            format!("other users can write to it (mode {mode:04o})"),
        ));
    }
    Ok(())
}

fn refuse(path: &Path, why: impl Into<String>) -> OutputError {
    OutputError::Unsafe {
        path: path.to_owned(),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests;
