//! Which pages of a process are in memory.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use procfs::{
    PhysicalPageFlags,
    process::{MemoryPageFlags, Pfn},
};

use super::{Process, TargetError, Vma, process::lost};

/// Bytes of a page on x86-64.
const PAGE: u64 = 4096;
/// Bytes of an entry of `/proc/PID/pagemap` and of `/proc/kpageflags` (`Documentation/admin-guide/mm/pagemap.rst`).
const ENTRY: usize = 8;
/// Entries read at once.
const CHUNK: usize = 8192;
/// How many entries one [`Pagemap`] reads where the kernel cannot look for pages itself: those of 32 GiB of addresses, which
/// takes some 50 ms.
const ENTRIES: u64 = 8 << 20;
/// Ranges of pages that the kernel tells at once.
const REGIONS: usize = 1024;

/// `PAGE_IS_PRESENT` and `PAGE_IS_PFNZERO` (`include/uapi/linux/fs.h`).
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// `PAGEMAP_SCAN` (`include/uapi/linux/fs.h`), since Linux 6.7.
const PAGEMAP_SCAN: u32 = rustix::ioctl::opcode::read_write::<ScanArguments>(b'f', 16);

/// `struct pm_scan_arg` (`include/uapi/linux/fs.h`).
#[derive(Debug, Default)]
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` (`include/uapi/linux/fs.h`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// How much of some ranges is in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Resident bytes of each range, in their order.
    pub bytes: Vec<u64>,
    /// Whether that is an estimate for some, because there was too much to look through.
    pub estimated: bool,
}

/// Looks through the page tables of a process. What it does for one process is bounded, so each reading takes a new one.
#[derive(Debug)]
pub struct Pagemap {
    pages: File,
    /// `/proc/kpageflags`, if it was needed and may be read.
    flags: Option<io::Result<File>>,
    can_scan: bool,
    /// How many more entries may be read.
    entries: u64,
}

impl Pagemap {
    /// Opens `/proc/PID/pagemap`.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn open(process: &Process) -> Result<Self, TargetError> {
        let path = format!("/proc/{}/pagemap", process.anchor());
        let pages = File::open(path).map_err(|error| lost(process.pid(), error))?;
        Ok(Self::new(pages))
    }

    fn new(pages: File) -> Self {
        Self {
            pages,
            flags: None,
            can_scan: true,
            entries: ENTRIES,
        }
    }

    /// How much of these ranges of an area is in memory: ranges of whole pages, in ascending order and disjoint. As in
    /// [`Vma::rss`], pages that are nothing but the kernel's page of zeros do not count.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn resident(&mut self, vma: &Vma, ranges: &[Range<u64>]) -> io::Result<Residency> {
        let mut tally = Tally::new(ranges);
        if vma.rss == 0 {
            return Ok(tally.finish(false));
        }
        if self.can_scan {
            match self.scan(&mut tally) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self.can_scan = false,
                Err(error) => return Err(error),
                Ok(()) => return Ok(tally.finish(false)),
            }
        }
        self.read(vma, tally)
    }

    /// Lets the kernel look: it skips what has no page tables, so that reserved addresses cost nothing.
    fn scan(&self, tally: &mut Tally<'_>) -> io::Result<()> {
        let Some(mut next) = tally.span() else {
            return Ok(());
        };
        let mut regions = [Region::default(); REGIONS];
        while next.start < next.end {
            let mut arguments = ScanArguments {
                size: size_of::<ScanArguments>() as u64,
                start: next.start,
                end: next.end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                category_inverted: PAGE_IS_PFNZERO,
                category_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
                return_mask: PAGE_IS_PRESENT,
                ..ScanArguments::default()
            };
            // SAFETY: `arguments` is what the call takes, and the kernel writes at most `vec_len` regions at `vec`.
            let found = unsafe {
                libc::ioctl(
                    self.pages.as_raw_fd(),
                    PAGEMAP_SCAN as libc::Ioctl,
                    &raw mut arguments,
                )
            };
            let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
            for region in regions.iter().take(found) {
                tally.add(region.start..region.end);
            }
            if arguments.walk_end <= next.start {
                break;
            }
            next.start = arguments.walk_end;
        }
        Ok(())
    }

    /// Reads the entry of every page, until all that the area has in memory is found or enough was read. What is left then
    /// is divided among the ranges by what was not read of them.
    fn read(&mut self, vma: &Vma, mut tally: Tally<'_>) -> io::Result<Residency> {
        let mut buffer = vec![0; CHUNK * ENTRY];
        let mut zeros = Zeros::default();
        let ranges = tally.ranges;
        for (index, range) in ranges.iter().enumerate() {
            let mut next = range.start;
            while next < range.end {
                if tally.sum() >= vma.rss {
                    return Ok(tally.finish(false));
                }
                let wanted = ((range.end - next) / PAGE).min(CHUNK as u64);
                if wanted == 0 || wanted > self.entries {
                    let rest = vma.rss - tally.sum();
                    tally.divide(rest, index, next);
                    return Ok(tally.finish(true));
                }
                self.entries -= wanted;
                let read = &mut buffer[..wanted as usize * ENTRY];
                if self.pages.read_at(read, next / PAGE * ENTRY as u64)? != read.len() {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                for entry in read.as_chunks::<ENTRY>().0 {
                    let page = MemoryPageFlags::from_bits_retain(u64::from_ne_bytes(*entry));
                    if page.contains(MemoryPageFlags::PRESENT) && !self.is_zero(vma, page, &mut zeros) {
                        tally.add(next..next + PAGE);
                    }
                    next += PAGE;
                }
            }
        }
        Ok(tally.finish(zeros.unknown))
    }

    /// Whether this is the kernel's page of zeros, which every process shares that only reads untouched memory.
    fn is_zero(&mut self, vma: &Vma, page: MemoryPageFlags, zeros: &mut Zeros) -> bool {
        let may_be = !vma.file && !vma.shared && !page.contains(MemoryPageFlags::MMAP_EXCLUSIVE);
        let number = page.get_page_frame_number();
        if !may_be || number == Pfn(0) {
            zeros.unknown |= may_be;
            return false;
        }
        if zeros.known == Some(number) {
            return true;
        }
        // A system call for each page that several processes share: they count as more than one entry.
        self.entries = self.entries.saturating_sub(16);
        let flags = self.flags.get_or_insert_with(|| File::open("/proc/kpageflags"));
        let mut entry = [0; ENTRY];
        let read = match flags {
            Ok(file) => file.read_exact_at(&mut entry, number.0 * ENTRY as u64).is_ok(),
            Err(_) => false,
        };
        zeros.unknown |= !read;
        let flags = PhysicalPageFlags::from_bits_retain(u64::from_ne_bytes(entry));
        let is_zero = flags.contains(PhysicalPageFlags::ZERO_PAGE);
        if is_zero {
            zeros.known = Some(number);
        }
        is_zero
    }
}

/// What is known of the page of zeros.
#[derive(Default)]
struct Zeros {
    /// Its number, if it was met. Huge ones have another for each of their parts.
    known: Option<Pfn>,
    /// Whether a page could not be told from it.
    unknown: bool,
}

/// Resident bytes of ranges.
struct Tally<'a> {
    ranges: &'a [Range<u64>],
    bytes: Vec<u64>,
    /// The first range that does not end before what was added last.
    at: usize,
    sum: u64,
}

impl<'a> Tally<'a> {
    fn new(ranges: &'a [Range<u64>]) -> Self {
        Self {
            ranges,
            bytes: vec![0; ranges.len()],
            at: 0,
            sum: 0,
        }
    }

    /// From the first byte of the first range to the last of the last one.
    fn span(&self) -> Option<Range<u64>> {
        Some(self.ranges.first()?.start..self.ranges.last()?.end)
    }

    fn sum(&self) -> u64 {
        self.sum
    }

    /// Counts resident pages; they come in ascending order.
    fn add(&mut self, pages: Range<u64>) {
        let ended = self.ranges[self.at..]
            .iter()
            .take_while(|range| range.end <= pages.start);
        self.at += ended.count();
        let reached = self.ranges[self.at..].iter().zip(&mut self.bytes[self.at..]);
        for (range, bytes) in reached.take_while(|(range, _)| range.start < pages.end) {
            let resident = range.end.min(pages.end) - range.start.max(pages.start);
            *bytes += resident;
            self.sum += resident;
        }
    }

    /// Divides bytes among what was not looked at: the range with this index from this address on, and those after it.
    fn divide(&mut self, bytes: u64, index: usize, from: u64) {
        let unread = |range: &Range<u64>| range.end - range.start.max(from);
        let mut length: u64 = self.ranges[index..].iter().map(unread).sum();
        let mut rest = bytes.min(length);
        for (range, resident) in self.ranges[index..].iter().zip(&mut self.bytes[index..]) {
            let own = (u128::from(rest) * u128::from(unread(range)) / u128::from(length.max(1))) as u64;
            let own = own - own % PAGE;
            *resident += own;
            rest -= own;
            length -= unread(range);
        }
    }

    fn finish(self, estimated: bool) -> Residency {
        Residency {
            bytes: self.bytes,
            estimated,
        }
    }
}

#[cfg(test)]
mod tests;
