//! The file system as a target sees it, when that is not as memtrace sees it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2, stat};

/// `FUSE_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const FUSE: u64 = 0x6573_5546;

/// The root directory of a process in a container. It stays that directory when the process has ended.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The root directory of a thread; `None` when memtrace has the same, or it cannot be opened, or a program would answer
    /// what is in it (FUSE), which may never do so.
    pub(super) fn of(thread: u32) -> Option<Self> {
        let link = format!("/proc/{thread}/root");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, link, flags, Mode::empty()).ok()?;
        let (its, own) = (fstat(&root).ok()?, stat("/").ok()?);
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        let is_own_directory = (its.st_dev, its.st_ino) == (own.st_dev, own.st_ino);
        if is_own_directory && namespace(&thread.to_string()) == namespace("self") {
            return None;
        }
        let is_fuse = fstatfs(&root).is_ok_and(|system| system.f_type as u64 == FUSE);
        (!is_fuse).then_some(Self(root))
    }

    /// Opens a regular file by its path in the target's view. The target chose the path, and what is there: links do not lead out
    /// of the root, nor to another file system, nor is anything opened that opening could wake.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // Another file system could be one that a program answers for.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let found = openat2(self.0.as_fd(), path, flags, Mode::empty(), resolve)?;
        if rustix::fs::FileType::from_raw_mode(fstat(&found)?.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{self, Read as _},
        os::unix::fs::symlink,
        path::Path,
    };

    use super::Root;

    #[test]
    fn a_process_with_the_same_root_has_none() {
        assert!(Root::of(std::process::id()).is_none());
    }

    #[test]
    fn nothing_outside_is_opened() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let (inside, outside) = (directory.path().join("root"), directory.path().join("secret"));
        fs::create_dir_all(inside.join("lib"))?;
        fs::write(&outside, "outside")?;
        fs::write(inside.join("lib/real"), "inside")?;
        let root = Root(File::open(&inside)?.into());
        let read = |path: &str| -> io::Result<String> {
            let mut text = String::new();
            root.open(Path::new(path))?.read_to_string(&mut text)?;
            Ok(text)
        };
        // Links are those of the container: an absolute one begins at its root.
        symlink("/lib/real", inside.join("absolute"))?;
        symlink("../../../../lib/real", inside.join("lib/upwards"))?;
        for path in [
            "/lib/real",
            "lib/real",
            "/absolute",
            "/lib/upwards",
            "/../../lib/real",
        ] {
            assert_eq!(read(path)?, "inside", "{path}");
        }
        symlink(&outside, inside.join("escape"))?;
        symlink("../secret", inside.join("near"))?;
        symlink("/proc/self/exe", inside.join("magic"))?;
        symlink(
            format!("/proc/{}/root/etc/passwd", std::process::id()),
            inside.join("process"),
        )?;
        for path in [
            "/escape",
            "/near",
            "/../secret",
            "/magic",
            "/process",
            "/lib",
            "/none",
        ] {
            assert!(read(path).is_err(), "{path}");
        }
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inside.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )?;
        assert!(read("/fifo").is_err());
        Ok(())
    }
}
