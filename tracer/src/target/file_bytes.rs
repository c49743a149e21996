//! The bytes of a file that a target chose, for those who parse it.

use std::{
    cell::RefCell,
    collections::HashSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom as From},
    ops::Range,
    os::unix::fs::FileExt as _,
};

use object::{ReadCache, ReadRef};
use rustix::fs::{SeekFrom, seek};

/// The longest part that is read at once (bytes): several times the largest symbol or unwind table known.
const LONGEST: u64 = 256 << 20;
/// All parts together (bytes).
const MOST: u64 = 1 << 30;
/// From here on a part is looked at for holes (bytes).
const LONG: u64 = 1 << 20;
/// So many holes are looked at.
const HOLES: u32 = 64;

/// The bytes of a file, to be given to parsers by reference.
///
/// They are read with `pread`, not mapped: a target that truncates its file then causes an error, not a SIGBUS. The headers of
/// a file can claim what they like, and a sparse file has as many bytes as it likes for nothing: a part that is too long, or
/// most of which is a hole, is an error, and so is what would be too much in all. It is kept until this is dropped.
#[derive(Debug)]
pub struct FileBytes<'f> {
    file: &'f File,
    cache: ReadCache<Pread<'f>>,
    parts: RefCell<Parts>,
}

/// What has been read.
#[derive(Debug, Default)]
struct Parts {
    known: HashSet<(u64, u64)>,
    bytes: u64,
}

impl<'f> FileBytes<'f> {
    /// Those of this file.
    pub fn new(file: &'f File) -> Self {
        Self {
            file,
            cache: ReadCache::new(Pread { file, at: 0 }),
            parts: RefCell::default(),
        }
    }

    /// Whether a part may have something in it: most of it is not a hole.
    pub fn is_there(&self, offset: u64, size: u64) -> bool {
        size <= LONG || !is_mostly_hole(self.file, offset, size)
    }

    /// Whether a part can be read as far as its length goes.
    pub fn is_short(size: u64) -> bool {
        size <= LONGEST
    }

    /// Whether a part may be read; if so, it is counted.
    fn admits(&self, offset: u64, size: u64) -> bool {
        let mut parts = self.parts.borrow_mut();
        if parts.known.contains(&(offset, size)) {
            return true;
        }
        let bytes = parts.bytes.saturating_add(size);
        if !Self::is_short(size) || bytes > MOST || !self.is_there(offset, size) {
            log::debug!("{size} bytes at {offset} of {:?} are not read", self.file);
            return false;
        }
        parts.bytes = bytes;
        parts.known.insert((offset, size))
    }
}

impl<'a, 'f: 'a> ReadRef<'a> for &'a FileBytes<'f> {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if !self.admits(offset, size) {
            return Err(());
        }
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

/// Whether more of a part has no bytes on the disk than has. A file system that does not know says no.
fn is_mostly_hole(file: &File, offset: u64, size: u64) -> bool {
    let end = offset.saturating_add(size);
    let (mut at, mut holes) = (offset, 0);
    for _ in 0..HOLES {
        let Ok(hole) = seek(file, SeekFrom::Hole(at)) else {
            return false;
        };
        if hole >= end {
            break;
        }
        // There is no data behind the last hole.
        at = seek(file, SeekFrom::Data(hole)).map_or(end, |data| data.min(end));
        holes += at - hole;
        if at >= end {
            break;
        }
    }
    holes > size / 2
}

/// Positioned reads, so that the file's own offset, which others share, stays as it is.
#[derive(Debug)]
struct Pread<'f> {
    file: &'f File,
    at: u64,
}

impl Read for Pread<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Pread<'_> {
    fn seek(&mut self, to: From) -> io::Result<u64> {
        let (base, offset) = match to {
            From::Start(at) => (at, 0),
            From::Current(offset) => (self.at, offset),
            From::End(offset) => (self.file.metadata()?.len(), offset),
        };
        self.at = base
            .checked_add_signed(offset)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::{FileBytes, LONG, LONGEST, MOST, ReadRef as _};

    #[test]
    fn claims_of_a_sparse_file_are_not_believed() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(200 << 30).expect("a hole");
        let data = vec![7; 3 << 20];
        file.write_all_at(&data, 4 << 20).expect("bytes");
        let bytes = FileBytes::new(&file);
        let read = |offset, size| (&bytes).read_bytes_at(offset, size).map(<[u8]>::len);
        assert_eq!(read(0, 64), Ok(64));
        assert_eq!(read(4 << 20, 3 << 20), Ok(3 << 20));
        assert_eq!(read(4 << 20, 5 << 20), Ok(5 << 20), "the smaller part is a hole");
        assert_eq!(read(4 << 20, 7 << 20), Err(()));
        assert_eq!(read(0, LONGEST + 1), Err(()));
        assert_eq!(read(100 << 30, LONG + 1), Err(()));
    }

    #[test]
    fn what_is_read_in_all_is_bounded() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(2 * LONG).expect("a hole");
        let bytes = FileBytes::new(&file);
        bytes.parts.borrow_mut().bytes = MOST - 3 * LONG;
        let parts = (0..).take_while(|part| (&bytes).read_bytes_at(*part, LONG).is_ok());
        assert_eq!(parts.count(), 3);
        assert!(
            (&bytes).read_bytes_at(0, LONG).is_ok(),
            "what is there costs nothing"
        );
    }
}
