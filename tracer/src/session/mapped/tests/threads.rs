//! Stacks of threads.

use std::num::NonZeroU32;

use memtrace_ebpf::handles::{MapEvent, MappingKind};

use super::{
    super::{Account, MappedBooks, Owner},
    area, books, ended, mapped, started, unmapping,
};
use crate::target::Vma;

/// Whose the mapping at this page is.
fn account(books: &MappedBooks, page: u64) -> Account {
    let piece = books.map.get(page * super::PAGE).expect("a mapping");
    books.instances.get(piece.value).expect("an instance").account
}

/// Owner, kind, and whether it is cached.
fn brief(books: &MappedBooks, page: u64) -> (Owner, MappingKind, bool) {
    let account = account(books, page);
    (account.owner, account.kind, account.cached)
}

const STACK: MappingKind = MappingKind::Stack;
const ANON: MappingKind = MappingKind::Anon;

#[test]
fn a_stack_is_of_the_code_that_made_the_thread() {
    let mut books = books(&[], &[mapped(1, STACK, 0..9), unmapping(4..5), started(7, 2, 9)]);
    for page in [0, 3, 5, 8] {
        assert_eq!(brief(&books, page), (Owner::Stack(2), STACK, false));
    }
    books.apply(&ended(7));
    assert_eq!(brief(&books, 0), (Owner::Stack(2), STACK, true));
    books.apply(&started(8, 3, 9));
    assert_eq!(brief(&books, 8), (Owner::Stack(3), STACK, false));
    // The stack was used again before the end of its last user was logged.
    books.apply(&started(9, 4, 9));
    books.apply(&ended(8));
    assert_eq!(brief(&books, 8), (Owner::Stack(4), STACK, false));
}

#[test]
fn an_end_may_come_before_the_beginning() {
    let late = |time, event: MapEvent| MapEvent { time, ..event };
    let mut books = books(&[], &[mapped(1, STACK, 0..9), ended(7), started(7, 2, 9)]);
    assert_eq!(brief(&books, 8), (Owner::Stack(2), STACK, true));
    // The id of a thread from before is used again, long after.
    books.apply(&late(1, ended(8)));
    books.apply(&late(5_000_000_000, started(8, 2, 9)));
    assert_eq!(brief(&books, 8), (Owner::Stack(2), STACK, false));
    for thread in 100..5000 {
        books.apply(&late(u64::from(thread) * 10_000_000, ended(thread)));
    }
    books.apply(&late(50_000_000_000, started(4999, 2, 9)));
    assert_eq!(brief(&books, 8), (Owner::Stack(2), STACK, true));
}

#[test]
fn memory_that_only_holds_a_stack_is_not_one() {
    let block = MapEvent {
        in_allocator: 1,
        ..mapped(1, ANON, 100..110)
    };
    let books = books(
        &[],
        &[
            mapped(1, ANON, 0..50),
            started(7, 2, 20),
            mapped(1, ANON, 60..90),
            started(8, 2, 89),
            block,
            started(9, 2, 110),
            mapped(1, MappingKind::Shared, 120..130),
            started(10, 2, 130),
            started(11, 2, 500),
        ],
    );
    assert_eq!(brief(&books, 0), (Owner::Stack(1), ANON, false), "an arena");
    assert_eq!(brief(&books, 60), (Owner::Stack(2), STACK, false), "near the end");
    assert_eq!(brief(&books, 100), (Owner::Stack(1), ANON, false), "of the heap");
    assert_eq!(brief(&books, 120).0, Owner::Stack(1), "shared");
}

#[test]
fn an_unmapped_stack_is_not_cached() {
    let mut books = books(&[], &[mapped(1, STACK, 0..9), started(7, 2, 9), unmapping(0..9)]);
    // The place of its instance is used again.
    books.apply(&mapped(3, STACK, 20..29));
    books.apply(&ended(7));
    assert_eq!(brief(&books, 20), (Owner::Stack(3), STACK, false));
}

#[test]
fn stacks_from_before_are_known_by_their_pointers() {
    let guard = |pages| Vma {
        accessible: false,
        ..area(pages)
    };
    let vmas = [
        guard(0..1),
        area(1..9),
        guard(9..10),
        area(10..19),
        area(30..90),
        guard(100..50_000),
        area(50_000..50_010),
    ];
    let thread = |id, page: u64| (NonZeroU32::new(id).expect("not 0"), page * super::PAGE + 8);
    let mut books = MappedBooks::new();
    books.seed(&vmas, &[thread(5, 17), thread(7, 40), thread(6, 50_001)]);
    assert_eq!(brief(&books, 0), (Owner::Before, ANON, false));
    assert_eq!(
        brief(&books, 9),
        (Owner::Before, STACK, false),
        "the guard is part of it"
    );
    assert_eq!(brief(&books, 30), (Owner::Before, ANON, false), "an arena");
    assert_eq!(
        brief(&books, 50_000),
        (Owner::Before, ANON, false),
        "part of a reservation"
    );
    books.apply(&ended(5));
    assert_eq!(brief(&books, 12), (Owner::Before, STACK, true));
    // One that nobody was on, kept by the C library.
    books.apply(&started(8, 2, 9));
    assert_eq!(brief(&books, 0), (Owner::Stack(2), STACK, false));
}

#[test]
fn a_child_has_the_thread_that_forked_it() {
    let parent = books(
        &[],
        &[
            mapped(1, STACK, 0..9),
            mapped(1, STACK, 10..19),
            started(7, 2, 9),
            started(8, 2, 19),
        ],
    );
    let child = parent.fork(7);
    assert_eq!(brief(&child, 0), (Owner::Stack(2), STACK, false));
    assert_eq!(brief(&child, 10), (Owner::Stack(2), STACK, true));
    assert!(account(&child, 0).inherited);
    assert_eq!(brief(&parent, 10), (Owner::Stack(2), STACK, false));
}
