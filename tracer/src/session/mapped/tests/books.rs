//! Replaying, forks, and what was there before.

use memtrace_ebpf::handles::{MapEvent, MappingKind};

use super::{
    super::{MappedBooks, Owner},
    PAGE, area, books, mapped, named, owners, undone, unmapping,
};

const ANON: MappingKind = MappingKind::Anon;

#[test]
fn overlays_and_partial_unmappings_cut() {
    let books = books(
        &[],
        &[
            mapped(1, ANON, 0..10),
            mapped(2, ANON, 4..6),
            unmapping(1..2),
            unmapping(9..20),
        ],
    );
    let expected = [
        (0..1, Owner::Stack(1)),
        (2..4, Owner::Stack(1)),
        (4..6, Owner::Stack(2)),
        (6..9, Owner::Stack(1)),
    ];
    assert_eq!(owners(&books), expected);
    let held = books.held_by_stack();
    assert_eq!((held[&1], held[&2]), (6 * PAGE, 2 * PAGE));
}

#[test]
fn what_was_not_unmapped_comes_back() {
    let other = MapEvent {
        thread: 2,
        ..mapped(3, ANON, 4..5)
    };
    let books = books(
        &[],
        &[
            mapped(1, ANON, 0..6),
            mapped(2, ANON, 6..8),
            unmapping(2..7),
            other,
            undone(1),
        ],
    );
    let expected = [
        (0..4, Owner::Stack(1)),
        (4..5, Owner::Stack(3)),
        (5..6, Owner::Stack(1)),
        (6..8, Owner::Stack(2)),
    ];
    assert_eq!(owners(&books), expected);
    assert_eq!(books.held_by_stack()[&1], 5 * PAGE);
}

#[test]
fn only_the_last_unmapping_of_a_thread_comes_back() {
    let mut books = books(
        &[],
        &[mapped(1, ANON, 0..4), unmapping(0..2), unmapping(2..4), undone(1)],
    );
    assert_eq!(owners(&books), [(2..4, Owner::Stack(1))]);
    books.apply(&undone(1));
    books.apply(&unmapping(2..4));
    assert_eq!(owners(&books), []);
    assert!(books.held_stacks().contains(&1), "it may come back");
    books.apply(&mapped(2, ANON, 0..1));
    assert!(!books.held_stacks().contains(&1));
    assert_eq!(books.instances.iter().count(), 1);
}

#[test]
fn a_moved_mapping_is_of_the_code_that_moved_it() {
    let moved = [mapped(1, ANON, 0..4), unmapping(0..4), mapped(2, ANON, 8..16)];
    assert_eq!(owners(&books(&[], &moved)), [(8..16, Owner::Stack(2))]);
    // `MREMAP_DONTUNMAP`
    let kept = [mapped(1, ANON, 0..4), mapped(2, ANON, 8..12)];
    let expected = [(0..4, Owner::Stack(1)), (8..12, Owner::Stack(2))];
    assert_eq!(owners(&books(&[], &kept)), expected);
}

#[test]
fn what_makes_no_sense_is_ignored() {
    let unknown = MapEvent {
        kind: 77,
        ..mapped(1, ANON, 0..1)
    };
    let huge = MapEvent {
        begin: u64::MAX - 4095,
        length: u64::MAX,
        ..mapped(2, ANON, 0..1)
    };
    let books = books(&[], &[unknown, mapped(1, ANON, 5..5), undone(9), huge]);
    assert_eq!(books.held_by_stack().len(), 1);
    assert_eq!(books.held_by_stack()[&2], 4095);
}

#[test]
fn what_was_there_before_is_seeded_without_what_is_never_shown() {
    let vmas = [
        named("/usr/bin/server", 0..4),
        named("[heap]", 4..8),
        area(10..12),
        named("[vvar_vclock]", 20..21),
        named("[vdso]", 21..22),
        named("[stack]", 30..32),
    ];
    let expected = [(0..4, Owner::Before), (10..12, Owner::Before)];
    assert_eq!(owners(&books(&vmas, &[])), expected);
}

/// The areas are read while 1 to 3 happen, and handed over before or after these are replayed.
#[test]
fn no_event_is_lost_against_what_was_read() {
    let events = [
        mapped(1, ANON, 0..2),
        unmapping(4..5),
        mapped(2, ANON, 4..5),
        unmapping(8..9),
    ];
    // The last event is not in it.
    let vmas = [area(0..2), area(4..9)];
    for replayed in 0..=events.len() {
        let mut books = MappedBooks::new();
        for event in &events[..replayed] {
            books.apply(event);
        }
        assert!(replayed == 0 || books.held_stacks().contains(&1));
        books.seed(&vmas, &[]);
        for event in &events[replayed..] {
            books.apply(event);
        }
        books.seed(&[area(0..100)], &[]);
        let expected = [
            (0..2, Owner::Stack(1)),
            (4..5, Owner::Stack(2)),
            (5..8, Owner::Before),
        ];
        assert_eq!(owners(&books), expected);
    }
}

#[test]
fn a_child_inherits_everything() {
    let parent = books(&[area(0..2)], &[mapped(1, ANON, 4..8)]);
    let mut child = parent.fork(1);
    assert_eq!(owners(&child), owners(&parent));
    child.apply(&mapped(2, ANON, 4..5));
    child.apply(&unmapping(0..1));
    let expected = [
        (1..2, Owner::Before),
        (4..5, Owner::Stack(2)),
        (5..8, Owner::Stack(1)),
    ];
    assert_eq!(owners(&child), expected);
    assert_eq!(owners(&parent), [(0..2, Owner::Before), (4..8, Owner::Stack(1))]);
    let inherited: Vec<bool> = child
        .instances
        .iter()
        .map(|instance| instance.account.inherited)
        .collect();
    assert_eq!(inherited.iter().filter(|&&inherited| inherited).count(), 2);
}

#[test]
fn a_child_of_books_that_wait_inherits_what_waits() {
    let mut parent = MappedBooks::new();
    parent.apply(&mapped(1, ANON, 0..2));
    let mut child = parent.fork(1);
    child.apply(&mapped(2, ANON, 4..5));
    child.seed(&[area(0..2), area(4..5), area(7..8)], &[]);
    let inherited: Vec<(Owner, bool)> = child
        .map
        .iter()
        .filter_map(|piece| child.instances.get(piece.value))
        .map(|instance| (instance.account.owner, instance.account.inherited))
        .collect();
    let expected = [
        (Owner::Stack(1), true),
        (Owner::Stack(2), false),
        (Owner::Before, true),
    ];
    assert_eq!(inherited, expected);
}
