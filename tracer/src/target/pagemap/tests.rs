//! Against memory that the tests themselves touched.

use std::{fs::File, ops::Range};

use super::{PAGE, Pagemap, Residency, Tally, Vma};
use crate::target::memory::tests::{Sleeper, own_vmas};

/// Memory that is only reserved until it is touched; unmapped when dropped.
struct Reserved {
    begin: u64,
    length: u64,
}

impl Reserved {
    fn new(length: u64) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let begin = unsafe { libc::mmap(std::ptr::null_mut(), length as usize, protection, flags, -1, 0) };
        assert_ne!(begin, libc::MAP_FAILED);
        // SAFETY: the mapping that was made.
        let asked = unsafe { libc::madvise(begin, length as usize, libc::MADV_NOHUGEPAGE) };
        assert_eq!(asked, 0);
        Self {
            begin: begin as u64,
            length,
        }
    }

    fn write(&self, page: u64) {
        assert!(page * PAGE < self.length);
        // SAFETY: an address of the mapping.
        unsafe { ((self.begin + page * PAGE) as *mut u8).write_volatile(1) };
    }

    fn read(&self, page: u64) {
        assert!(page * PAGE < self.length);
        // SAFETY: an address of the mapping.
        let byte = unsafe { ((self.begin + page * PAGE) as *const u8).read_volatile() };
        assert_eq!(byte, 0);
    }

    fn pages(&self, pages: Range<u64>) -> Range<u64> {
        self.begin + pages.start * PAGE..self.begin + pages.end * PAGE
    }

    /// The area that it is in.
    fn vma(&self) -> Vma {
        let mut vmas = own_vmas().into_iter();
        let vma = vmas.find(|vma| (vma.begin..vma.end).contains(&self.begin));
        vma.expect("it is mapped")
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nothing refers to it.
        unsafe { libc::munmap(self.begin as *mut libc::c_void, self.length as usize) };
    }
}

/// One that lets the kernel look, where it can, and one that does not.
fn both() -> [Pagemap; 2] {
    let open = || Pagemap::new(File::open("/proc/self/pagemap").expect("pagemap"));
    let mut reading = open();
    reading.can_scan = false;
    [open(), reading]
}

#[test]
fn ranges_of_a_child_add_up_to_its_areas() {
    let (_sleeper, process) = Sleeper::start();
    let vmas = process.vmas().expect("areas");
    for can_scan in [true, false] {
        let mut pagemap = Pagemap::open(&process).expect("pagemap");
        pagemap.can_scan = can_scan;
        for vma in vmas.iter().filter(|vma| vma.rss > 0) {
            let middle = vma.begin + vma.length() / 2 / PAGE * PAGE;
            let ranges = [vma.begin..middle, middle..vma.end];
            let residency = pagemap.resident(vma, &ranges).expect("residency");
            assert!(!residency.estimated);
            assert_eq!(residency.bytes.iter().sum::<u64>(), vma.rss, "{vma:?}");
        }
    }
}

#[test]
fn pages_of_zeros_do_not_count() {
    let memory = Reserved::new(64 * PAGE);
    for page in [3, 20, 21, 63] {
        memory.write(page);
    }
    for page in [0, 4, 22, 40] {
        memory.read(page);
    }
    let ranges = [0..4, 4..21, 21..22, 40..64].map(|pages| memory.pages(pages));
    let vma = memory.vma();
    for mut pagemap in both() {
        let residency = pagemap.resident(&vma, &ranges).expect("residency");
        assert!(!residency.estimated);
        assert_eq!(residency.bytes, [1, 1, 1, 1].map(|pages: u64| pages * PAGE));
    }
}

#[test]
fn huge_reservations_are_quick() {
    let pages = (1 << 40) / PAGE;
    let memory = Reserved::new(1 << 40);
    memory.write(5);
    memory.write(pages / 2);
    memory.write(pages - 1);
    let ranges = [0..pages / 2, pages / 2..pages].map(|pages| memory.pages(pages));
    // Neighbours that this process mapped meanwhile may have been joined with it.
    let vma = Vma {
        rss: 3 * PAGE,
        ..memory.vma()
    };
    for mut pagemap in both() {
        let begun = std::time::Instant::now();
        let residency = pagemap.resident(&vma, &ranges).expect("residency");
        println!(
            "scan {}: {:?} in {:?}",
            pagemap.can_scan,
            residency,
            begun.elapsed()
        );
        assert!(begun.elapsed().as_secs() < 2);
        assert_eq!(residency.estimated, !pagemap.can_scan);
        if pagemap.can_scan {
            assert_eq!(residency.bytes, [PAGE, 2 * PAGE]);
        }
        assert_eq!(residency.bytes.iter().sum::<u64>(), 3 * PAGE);
    }
}

#[test]
fn what_was_not_read_is_divided_by_length() {
    let ranges = [0..10 * PAGE, 10 * PAGE..20 * PAGE, 20 * PAGE..50 * PAGE];
    let mut tally = Tally::new(&ranges);
    tally.add(PAGE..3 * PAGE);
    tally.divide(8 * PAGE, 1, 10 * PAGE);
    let expected = Residency {
        bytes: vec![2 * PAGE, 2 * PAGE, 6 * PAGE],
        estimated: true,
    };
    assert_eq!(tally.finish(true), expected);
}

#[test]
fn regions_reach_over_ranges() {
    let ranges = [PAGE..2 * PAGE, 2 * PAGE..4 * PAGE, 6 * PAGE..7 * PAGE];
    let mut tally = Tally::new(&ranges);
    tally.add(0..PAGE);
    tally.add(PAGE..3 * PAGE);
    tally.add(3 * PAGE..9 * PAGE);
    assert_eq!(tally.sum(), 4 * PAGE);
    assert_eq!(tally.finish(false).bytes, [PAGE, 2 * PAGE, PAGE]);
}
