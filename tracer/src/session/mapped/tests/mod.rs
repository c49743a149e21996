//! Tests of the books of mappings. Addresses are given in pages.

mod books;
mod model;
mod show;
mod survey;
mod threads;

use std::ops::Range;

use memtrace_ebpf::handles::{MapEvent, MapEventKind, MappingKind};

use super::{MappedBooks, Owner};
use crate::target::{Residency, Vma};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// An event of thread 1 with stack 1, at a time that is its address.
pub fn event(kind: MapEventKind, pages: Range<u64>) -> MapEvent {
    MapEvent {
        time: pages.start,
        begin: pages.start * PAGE,
        length: (pages.end - pages.start) * PAGE,
        kind: kind as u32,
        stack: 1,
        thread: 1,
        ..MapEvent::default()
    }
}

/// A mapping by this stack.
pub fn mapped(stack: u32, kind: MappingKind, pages: Range<u64>) -> MapEvent {
    MapEvent {
        stack,
        mapping: kind as u8,
        ..event(MapEventKind::Mapped, pages)
    }
}

pub fn unmapping(pages: Range<u64>) -> MapEvent {
    event(MapEventKind::Unmapping, pages)
}

/// The failure of what this thread began to unmap.
pub fn undone(thread: u32) -> MapEvent {
    MapEvent {
        thread,
        ..event(MapEventKind::Undone, 0..0)
    }
}

/// The beginning of a thread that this stack made, with the stack pointer at the end of a page.
pub fn started(thread: u32, stack: u32, pointer: u64) -> MapEvent {
    MapEvent {
        thread,
        stack,
        ..event(MapEventKind::ThreadStarted, pointer..pointer)
    }
}

pub fn ended(thread: u32) -> MapEvent {
    MapEvent {
        thread,
        ..event(MapEventKind::ThreadEnded, 0..0)
    }
}

/// An area without a file, of which nothing is in memory.
pub fn area(pages: Range<u64>) -> Vma {
    Vma {
        begin: pages.start * PAGE,
        end: pages.end * PAGE,
        accessible: true,
        ..Vma::default()
    }
}

/// An area with a name, of which all is in memory.
pub fn named(path: &str, pages: Range<u64>) -> Vma {
    Vma {
        path: path.to_owned(),
        file: path.starts_with('/'),
        is_heap: path == "[heap]",
        is_stack: path == "[stack]",
        rss: (pages.end - pages.start) * PAGE,
        ..area(pages)
    }
}

/// Books of a process that had these areas, and then these events.
pub fn books(vmas: &[Vma], events: &[MapEvent]) -> MappedBooks {
    let mut books = MappedBooks::new();
    books.seed(vmas, &[]);
    for event in events {
        books.apply(event);
    }
    books
}

/// What the books say: pages and whose they are, neighbours of the same owner as one.
pub fn owners(books: &MappedBooks) -> Vec<(Range<u64>, Owner)> {
    let mut owners: Vec<(Range<u64>, Owner)> = Vec::new();
    for piece in books.map.iter() {
        let owner = books
            .instances
            .get(piece.value)
            .expect("an instance")
            .account
            .owner;
        match owners.last_mut() {
            Some((range, last)) if *last == owner && range.end == piece.begin / PAGE => {
                range.end = piece.end / PAGE;
            }
            _ => owners.push((piece.begin / PAGE..piece.end / PAGE, owner)),
        }
    }
    owners
}

/// A reader of areas that are in memory wherever they are asked for.
pub fn all_resident(_: &Vma, ranges: &[Range<u64>]) -> Residency {
    Residency {
        bytes: ranges.iter().map(|range| range.end - range.start).collect(),
        estimated: false,
    }
}

/// A reader that must not be asked.
pub fn never(vma: &Vma, _: &[Range<u64>]) -> Residency {
    panic!("{vma:?} was read")
}
