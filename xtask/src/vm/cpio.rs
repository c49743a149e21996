//! An archive that the kernel unpacks as its first file system (`Documentation/driver-api/early-userspace/buffer-format.rst`
//! of Linux: cpio, format `newc`).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path},
};

/// `S_IFDIR`, `S_IFREG` and `S_IFCHR` with permissions (`include/uapi/linux/stat.h`).
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;
/// The device number of `/dev/console` (`Documentation/admin-guide/devices.txt`).
const CONSOLE: (u32, u32) = (5, 1);
/// The name that ends an archive.
const END: &str = "TRAILER!!!";

/// An archive under construction.
pub struct Archive<W> {
    output: W,
    directories: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An archive that has only `/dev/console`, without which the first process would have no output.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(output: W) -> io::Result<Self> {
        let mut archive = Self {
            output,
            directories: BTreeSet::new(),
            entries: 0,
        };
        archive.directory(Path::new("/dev"))?;
        archive.entry("dev/console", DEVICE, CONSOLE, b"")?;
        Ok(archive)
    }

    /// Adds a directory and those above it, unless they are there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for component in path.components() {
            if let Component::Normal(part) = component {
                if !name.is_empty() {
                    name.push('/');
                }
                name.push_str(&part.to_string_lossy());
                if self.directories.insert(name.clone()) {
                    self.entry(&name, DIRECTORY, (0, 0), b"")?;
                }
            }
        }
        Ok(())
    }

    /// Adds a file that everybody may execute.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let name = path.to_string_lossy();
        self.entry(name.trim_start_matches('/'), EXECUTABLE, (0, 0), content)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry(END, 0, (0, 0), b"")?;
        self.output.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_length = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time of modification
            length,
            0, // device that holds the file: major
            0, // and minor
            device.0,
            device.1,
            name_length,
            0, // checksum, not used in this format
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(name.as_bytes())?;
        // The name's NUL, then both name and content padded to a multiple of 4.
        self.pad(1, header.len() + name.len())?;
        self.output.write_all(content)?;
        self.pad(0, content.len())
    }

    /// Writes `least` zeros, and as many more as make the `written` bytes end at a multiple of 4.
    fn pad(&mut self, least: usize, written: usize) -> io::Result<()> {
        let zeros = least + (4 - (written + least) % 4) % 4;
        self.output.write_all(&[0; 4][..zeros])
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Archive;

    /// Reads an archive as the format's description says: 110 bytes of header, name and content at multiples of 4.
    fn read(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            let field = |number: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * number..][..8]).expect("digits");
                usize::from_str_radix(digits, 16).expect("digits")
            };
            let (length, name_length) = (field(6), field(11));
            let content = (110 + name_length).next_multiple_of(4);
            let name = std::str::from_utf8(&bytes[110..110 + name_length - 1]).expect("a name");
            assert_eq!(bytes[110 + name_length - 1], 0);
            entries.push((name.to_owned(), bytes[content..content + length].to_vec()));
            bytes = &bytes[(content + length).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn what_was_added_is_read_again() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes).expect("memory takes everything");
        for (path, content) in [("/init", "12345"), ("/a/b/file", ""), ("/a/c", "1234")] {
            archive
                .file(Path::new(path), content.as_bytes())
                .expect("memory takes everything");
        }
        archive.finish().expect("memory takes everything");

        let entries = read(&bytes);
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "dev",
            "dev/console",
            "init",
            "a",
            "a/b",
            "a/b/file",
            "a/c",
            "TRAILER!!!",
        ];
        assert_eq!(names, expected);
        assert_eq!(entries[2].1, b"12345");
        assert_eq!(entries[6].1, b"1234");
    }
}
