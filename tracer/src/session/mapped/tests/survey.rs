//! The books and the areas.

use std::{collections::BTreeMap, ops::Range};

use memtrace_ebpf::handles::{MapEvent, MappingKind};

use super::{
    super::{Balance, Missed, Owner, Survey},
    PAGE, all_resident, area, books, mapped, named, never, owners, unmapping,
};
use crate::target::{Residency, Vma};

const ANON: MappingKind = MappingKind::Anon;

/// Pages by owner and kind: held, objects, resident.
fn balances(survey: &Survey) -> BTreeMap<String, (u64, u64, u64)> {
    let brief = |balance: &Balance| (balance.held / PAGE, balance.objects, balance.resident / PAGE);
    survey
        .accounts
        .iter()
        .map(|(account, balance)| {
            let name = format!("{:?} {}", account.owner, account.kind.name());
            (name, brief(balance))
        })
        .collect()
}

fn expected(balances: &[(&str, (u64, u64, u64))]) -> BTreeMap<String, (u64, u64, u64)> {
    balances
        .iter()
        .map(|&(name, balance)| (name.to_owned(), balance))
        .collect()
}

#[test]
fn every_page_has_an_owner() {
    let before = [named("/bin/server", 0..4), named("[heap]", 4..6)];
    let mut books = books(
        &before,
        &[
            mapped(1, ANON, 20..24),
            mapped(2, ANON, 24..26),
            unmapping(22..23),
        ],
    );
    let vmas = [
        named("/bin/server", 0..4),
        named("[heap]", 4..9),
        Vma {
            rss: 3 * PAGE,
            ..area(20..22)
        },
        Vma {
            rss: PAGE,
            ..area(23..30)
        },
        named("/memfd:x (deleted)", 40..42),
        named("[vdso]", 50..51),
        named("[stack]", 60..61),
    ];
    let mut asked = Vec::new();
    let mut reader = |vma: &Vma, ranges: &[Range<u64>]| {
        asked.push((vma.begin / PAGE, ranges.len()));
        Residency {
            bytes: vec![PAGE, 0, 0],
            estimated: true,
        }
    };
    let survey = books.survey(Some(&vmas), &mut reader);
    let expected = expected(&[
        ("Before file", (4, 1, 4)),
        ("Brk anon", (5, 1, 5)),
        ("Stack(1) anon", (3, 1, 4)),
        ("Stack(2) anon", (2, 1, 0)),
        ("Untraced anon", (4, 1, 0)),
        ("Untraced shared", (2, 1, 2)),
        ("Kernel anon", (1, 1, 1)),
        ("FirstStack anon", (1, 1, 1)),
    ]);
    // `named` makes files of what begins with a slash, and this one is memory.
    assert_eq!(balances(&survey), expected);
    assert_eq!(asked, [(23, 3)], "only where several owners share an area");
    assert!(survey.estimated);
    assert_eq!(survey.missed, Missed::default());
}

#[test]
fn what_is_not_mapped_is_dropped_and_counted() {
    let mut books = books(&[area(0..2)], &[mapped(1, ANON, 4..8), mapped(2, ANON, 10..14)]);
    let vmas = [area(5..6), area(10..12)];
    let survey = books.survey(Some(&vmas), &mut never);
    let missed = Missed {
        pieces: 4,
        bytes: 7 * PAGE,
    };
    assert_eq!(survey.missed, missed);
    let left = [(5..6, Owner::Stack(1)), (10..12, Owner::Stack(2))];
    assert_eq!(owners(&books), left);
    let again = books.survey(Some(&vmas), &mut never);
    assert_eq!(again.missed, missed, "once");
    assert_eq!(balances(&again)["Stack(1) anon"], (1, 1, 0));
    // What comes there by an untraced call is not the code's that was there.
    let survey = books.survey(Some(&[area(4..6), area(10..12)]), &mut never);
    assert_eq!(balances(&survey)["Untraced anon"], (1, 1, 0));
}

/// The areas show an older state than the books.
#[test]
fn what_changed_meanwhile_is_not_missed() {
    let at = |time: u64, event: MapEvent| MapEvent { time, ..event };
    let second = 1_000_000_000;
    let mut books = books(&[], &[mapped(1, ANON, 0..8), mapped(1, ANON, 10..11)]);
    books.apply(&MapEvent {
        thread: 2,
        ..at(second - 1, unmapping(10..11))
    });
    books.begin_reading(second);
    let vmas = [
        Vma {
            rss: 8 * PAGE,
            ..area(0..8)
        },
        area(10..11),
        area(12..13),
    ];
    books.apply(&at(second + 1, unmapping(0..4)));
    books.apply(&at(second + 2, mapped(2, ANON, 20..24)));
    let survey = books.survey(Some(&vmas), &mut all_resident);
    let expected = expected(&[
        ("Stack(1) anon", (4, 1, 4)),
        ("Stack(2) anon", (4, 1, 0)),
        ("Unmapped anon", (5, 2, 4)),
        ("Untraced anon", (1, 1, 0)),
    ]);
    assert_eq!(balances(&survey), expected);
    assert_eq!(survey.missed, Missed::default());
    // The next reading has nothing to do with this one.
    let survey = books.survey(Some(&[area(4..8)]), &mut never);
    assert_eq!(survey.missed.pieces, 1);
}

#[test]
fn stacks_that_grew_are_whole() {
    let growing = MapEvent {
        flags: libc::MAP_GROWSDOWN as u32,
        ..mapped(1, MappingKind::Stack, 20..24)
    };
    let mut books = books(&[], &[growing, mapped(2, ANON, 24..26)]);
    let grows = |pages| Vma {
        grows_down: true,
        ..area(pages)
    };
    let survey = books.survey(Some(&[grows(12..24), area(24..26)]), &mut never);
    let expected = expected(&[("Stack(1) stack", (12, 1, 0)), ("Stack(2) anon", (2, 1, 0))]);
    assert_eq!(balances(&survey), expected);
}

#[test]
fn books_alone_serve_when_the_process_has_ended() {
    let mut books = super::super::MappedBooks::new();
    books.apply(&mapped(1, ANON, 0..4));
    let survey = books.survey(None, &mut never);
    assert_eq!(balances(&survey), expected(&[("Stack(1) anon", (4, 1, 0))]));
    assert_eq!(survey.missed, Missed::default());
}

#[test]
fn kinds_are_told_by_path() {
    let vmas = [
        named("/memfd:a (deleted)", 0..1),
        named("/dev/shm/b", 1..2),
        named("/SYSV00000000 (deleted)", 2..3),
        named("/dev/zero (deleted)", 3..4),
        named("/[aio] (deleted)", 4..5),
        named("/anon_hugepage (deleted)", 5..6),
        named("/lib/libc.so.6", 6..7),
        named("[anon: pool]", 7..8),
        named("/dev/zero", 8..9),
    ];
    let survey = books(&vmas, &[]).survey(Some(&vmas), &mut never);
    let expected = expected(&[
        ("Before shared", (5, 5, 5)),
        ("Before anon", (2, 2, 2)),
        ("Before file", (2, 2, 2)),
    ]);
    assert_eq!(balances(&survey), expected);
}
