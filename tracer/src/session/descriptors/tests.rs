use std::{collections::HashMap, time::Duration};

use memtrace_ebpf::{
    handles::{FdKind, opener},
    layout::EndReason,
};

use super::{Context, Doubts, FdStack, Reading, Record, reconcile};
use crate::{
    snapshot::{ConnectionLoops, FdDetail, Holder, Holdings, Maker},
    target::{Descriptor, SocketDetails},
};

const SECOND: u64 = 1_000_000_000;
/// When the readings are made.
const NOW: u64 = 100 * SECOND;

const MISSED: &str = "descriptors whose closing was missed";

/// A record of a file that was opened this many seconds ago.
fn record(number: i32, stack: u32, seconds: u64) -> Record {
    Record {
        number,
        stack,
        kind: FdKind::File,
        opened: NOW - seconds * SECOND,
        dialer: 0,
    }
}

fn of_kind(record: Record, kind: FdKind) -> Record {
    Record { kind, ..record }
}

fn before_tracing(number: i32) -> Record {
    Record {
        number,
        stack: opener::BEFORE,
        kind: FdKind::Other,
        opened: 0,
        dialer: 0,
    }
}

fn file(number: i32, path: &str, inode: u64) -> Descriptor {
    Descriptor {
        number,
        target: path.to_owned(),
        kind: FdKind::File,
        inode: None,
        file_id: Some((1, inode)),
    }
}

fn socket(number: i32, inode: u64) -> Descriptor {
    Descriptor {
        number,
        target: format!("socket:[{inode}]"),
        kind: FdKind::Tcp,
        inode: Some(inode),
        file_id: None,
    }
}

/// A stack of files with one frame, which tells it from the others.
fn stack(id: u32, frame: u64, opened: u64) -> FdStack {
    FdStack {
        id,
        kind: FdKind::File,
        frames: vec![frame],
        end: EndReason::Complete,
        opened,
        own: true,
    }
}

fn context(stacks: &[FdStack]) -> Context<'_> {
    Context {
        stacks,
        attached: &[],
        earlier: None,
        loops: None,
        now: NOW,
        confirmed: None,
    }
}

/// A reading in which the books did not change.
fn quiet<'a>(records: &'a [Record], listing: &'a [Descriptor]) -> Reading<'a> {
    Reading {
        before: records,
        listing: Some(listing),
        after: records,
    }
}

fn holdings(reading: &Reading, context: &Context) -> Holdings {
    let (holdings, details) = reconcile(reading, context, None);
    assert_eq!(details, None);
    holdings
}

/// Maker, kind, made and held of each holder, in order.
fn sums(holdings: &Holdings) -> Vec<(Maker, &'static str, u64, u64)> {
    let mut sums: Vec<_> = holdings
        .holders
        .iter()
        .map(|holder| {
            assert_eq!(holder.held, holder.held_objects);
            (holder.maker, holder.kind, holder.made, holder.held)
        })
        .collect();
    sums.sort_unstable();
    sums
}

fn of_frame(holdings: &Holdings, frame: u64) -> Vec<&Holder> {
    let holders = holdings.holders.iter();
    holders.filter(|holder| holder.frames == [frame]).collect()
}

#[test]
fn what_is_open_is_held_by_its_stack() {
    let stacks = [stack(7, 70, 5), stack(8, 80, 2), stack(9, 90, 0)];
    let records = [record(3, 7, 10), record(4, 7, 20)];
    let listing = [file(3, "/a", 1), file(4, "/b", 2)];
    let found = holdings(&quiet(&records, &listing), &context(&stacks));
    assert_eq!(
        sums(&found),
        [(Maker::Code, "file", 2, 0), (Maker::Code, "file", 5, 2)]
    );
    assert_eq!(of_frame(&found, 70)[0].mean_age, Duration::from_secs(15));
    assert_eq!(of_frame(&found, 80)[0].mean_age, Duration::ZERO);
    assert!(of_frame(&found, 90).is_empty(), "it did nothing");
    assert!(found.losses.is_empty());
    assert!(quiet(&records, &listing).doubts().is_empty());
}

#[test]
fn what_proc_says_it_is_it_is_and_sums_stay_right() {
    let stacks = [stack(7, 70, 3)];
    let records = [
        of_kind(record(3, 7, 1), FdKind::Other),
        record(4, 7, 1),
        record(5, 7, 1),
    ];
    let listing = [socket(3, 30), socket(4, 40), file(5, "/a", 1)];
    let found = holdings(&quiet(&records, &listing), &context(&stacks));
    assert_eq!(
        sums(&found),
        [(Maker::Code, "file", 1, 1), (Maker::Code, "tcp", 2, 2)]
    );
}

#[test]
fn a_stack_of_which_nothing_keeps_its_kind_has_no_holder_of_it() {
    let mut received = stack(7, 70, 1);
    received.kind = FdKind::Other;
    let stacks = [received];
    let found = holdings(&quiet(&[record(3, 7, 1)], &[file(3, "/a", 1)]), &context(&stacks));
    assert_eq!(sums(&found), [(Maker::Code, "file", 1, 1)]);
}

#[test]
fn stacks_that_become_the_same_by_kind_are_one_holder() {
    let mut sockets = stack(8, 70, 4);
    sockets.kind = FdKind::Tcp;
    let stacks = [stack(7, 70, 1), sockets];
    let records = [record(3, 7, 1), of_kind(record(4, 8, 3), FdKind::Tcp)];
    let listing = [socket(3, 30), socket(4, 40)];
    let found = holdings(&quiet(&records, &listing), &context(&stacks));
    assert_eq!(sums(&found), [(Maker::Code, "tcp", 5, 2)]);
    assert_eq!(found.holders[0].mean_age, Duration::from_secs(2));
}

#[test]
fn stacks_that_end_differently_are_not_one_holder() {
    let mut cut = stack(8, 70, 1);
    cut.end = EndReason::TooDeep;
    let stacks = [stack(7, 70, 1), cut];
    let records = [record(3, 7, 1), record(4, 8, 1)];
    let listing = [file(3, "/a", 1), file(4, "/b", 2)];
    let found = holdings(&quiet(&records, &listing), &context(&stacks));
    assert_eq!(found.holders.len(), 2);
}

#[test]
fn inherited_descriptors_were_not_made_here() {
    let mut parents = stack(7, 70, 9);
    parents.own = false;
    let mut grandparents = stack(6, 70, 9);
    grandparents.own = false;
    let mut unused = stack(5, 50, 9);
    unused.own = false;
    let stacks = [parents, grandparents, stack(8, 70, 1), unused];
    let records = [
        record(3, 7, 1),
        of_kind(record(4, 7, 1), FdKind::Other),
        record(5, 6, 1),
    ];
    let listing = [file(3, "/a", 1), socket(4, 40), file(5, "/b", 2)];
    let found = holdings(&quiet(&records, &listing), &context(&stacks));
    let inherited: Vec<_> = found
        .holders
        .iter()
        .filter(|holder| holder.inherited)
        .map(|holder| (holder.kind, holder.made, holder.held))
        .collect();
    assert_eq!(inherited, [("file", 0, 2), ("tcp", 0, 1)]);
    assert_eq!(
        sums(&found).last(),
        Some(&(Maker::Code, "tcp", 0, 1)),
        "nothing else is shown of them but what they hold"
    );
    assert_eq!(found.holders.len(), 3);
}

#[test]
fn a_closing_that_was_missed_is_counted() {
    let stacks = [stack(7, 70, 2)];
    let records = [record(3, 7, 1), record(4, 7, 1)];
    let reading = quiet(&records, &[]);
    let found = holdings(&reading, &context(&stacks));
    assert_eq!(sums(&found), [(Maker::Code, "file", 2, 0)]);
    assert_eq!(found.losses, [(2, MISSED.to_owned())]);
    assert!(!reading.doubts().is_empty());
}

#[test]
fn what_nobody_booked_was_opened_by_an_untraced_call() {
    let listing = [file(3, "/a", 1), socket(4, 40), socket(5, 50)];
    let found = holdings(&quiet(&[], &listing), &context(&[]));
    let untraced = Maker::UntracedCall;
    assert_eq!(sums(&found), [(untraced, "file", 1, 1), (untraced, "tcp", 2, 2)]);
    assert!(found.losses.is_empty());
    for holder in &found.holders {
        assert_eq!((holder.end, holder.frames.len()), (EndReason::Complete, 0));
    }
}

#[test]
fn what_is_opened_or_closed_meanwhile_is_neither_missed_nor_untraced() {
    let stacks = [stack(7, 70, 9)];
    let closed_before_proc = record(3, 7, 9);
    let closed_after_proc = record(4, 7, 9);
    let opened_before_proc = record(5, 7, 0);
    let opened_after_proc = record(6, 7, 0);
    // Closed and opened again: the same number, and another record.
    let (replaced, replacement) = (record(8, 7, 9), record(8, 7, 0));
    let (replaced_unseen, replacement_unseen) = (record(9, 7, 9), record(9, 7, 0));
    let reading = Reading {
        before: &[closed_before_proc, closed_after_proc, replaced, replaced_unseen],
        listing: Some(&[file(4, "/a", 1), socket(5, 50), socket(8, 80)]),
        after: &[
            opened_before_proc,
            opened_after_proc,
            replacement,
            replacement_unseen,
        ],
    };
    let found = holdings(&reading, &context(&stacks));
    // What /proc shows may be what was there before: the books say what it is.
    assert_eq!(sums(&found), [(Maker::Code, "file", 9, 4)]);
    assert!(found.losses.is_empty());
    assert!(reading.doubts().is_empty());
}

#[test]
fn a_kind_that_becomes_known_makes_no_other_record() {
    let stacks = [stack(7, 70, 1)];
    let reading = Reading {
        before: &[of_kind(record(3, 7, 1), FdKind::Other)],
        listing: Some(&[]),
        after: &[record(3, 7, 1)],
    };
    assert_eq!(holdings(&reading, &context(&stacks)).losses.len(), 1);
}

#[test]
fn doubts_count_if_a_second_reading_confirms_them() {
    let stacks = [stack(7, 70, 5)];
    let first_records = [record(3, 7, 5), record(4, 7, 5)];
    let first_listing = [socket(10, 100), socket(11, 110), file(12, "/a", 1)];
    let doubts = quiet(&first_records, &first_listing).doubts();
    // 4 was being closed, and 11 is another socket by now; 5 and 13 are new doubts.
    let records = [record(3, 7, 5), record(5, 7, 1)];
    let listing = [
        socket(10, 100),
        socket(11, 111),
        file(12, "/a", 1),
        file(13, "/b", 2),
    ];
    let confirmed = Context {
        confirmed: Some(&doubts),
        ..context(&stacks)
    };
    let found = holdings(&quiet(&records, &listing), &confirmed);
    let untraced = Maker::UntracedCall;
    assert_eq!(
        sums(&found),
        [
            (Maker::Code, "file", 5, 0),
            (untraced, "file", 1, 1),
            (untraced, "tcp", 1, 1)
        ]
    );
    assert_eq!(found.losses, [(1, MISSED.to_owned())]);

    let without_doubts = Doubts::default();
    let confirmed = Context {
        confirmed: Some(&without_doubts),
        ..confirmed
    };
    let found = holdings(&quiet(&records, &listing), &confirmed);
    assert_eq!(sums(&found), [(Maker::Code, "file", 5, 0)]);
    assert!(found.losses.is_empty());
}

#[test]
fn what_was_there_is_before_tracing_as_long_as_it_is_the_same() {
    let attached = [
        file(0, "/dev/null", 1),
        file(1, "/log", 2),
        file(2, "/log", 2),
        socket(3, 30),
        socket(4, 40),
    ];
    let records: Vec<_> = (0..=5).map(before_tracing).collect();
    let listing = [
        file(0, "/dev/null", 1),
        file(1, "/log.1 (deleted)", 2),
        file(2, "/log", 9),
        socket(3, 30),
        socket(4, 41),
        // Opened after the listing and before the books were begun.
        file(5, "/late", 5),
    ];
    let context = Context {
        attached: &attached,
        ..context(&[])
    };
    let found = holdings(&quiet(&records, &listing), &context);
    assert_eq!(
        sums(&found),
        [
            (Maker::BeforeTracing, "file", 0, 3),
            (Maker::BeforeTracing, "tcp", 0, 1),
            (Maker::UntracedCall, "file", 1, 1),
            (Maker::UntracedCall, "tcp", 1, 1),
        ]
    );
    assert!(
        found
            .holders
            .iter()
            .all(|holder| holder.mean_age == Duration::ZERO)
    );
}

#[test]
fn the_marks_of_the_books_are_understood() {
    let records = [
        record(3, opener::EARLIER_PROGRAM, 10),
        record(4, opener::IO_URING, 20),
        record(5, opener::UNTRACED, 30),
        record(6, 77, 40),
    ];
    let listing = [
        file(3, "/a", 1),
        file(4, "/b", 2),
        file(5, "/c", 3),
        file(6, "/d", 4),
    ];
    let found = holdings(&quiet(&records, &listing), &context(&[]));
    assert_eq!(
        sums(&found),
        [
            (Maker::EarlierProgram, "file", 0, 1),
            (Maker::UntracedCall, "file", 2, 2),
            (Maker::IoUring, "file", 1, 1),
        ]
    );
    assert_eq!(found.losses, [(1, "descriptors whose stack was lost".to_owned())]);
    let ages = |maker| {
        let mut of = found.holders.iter().filter(move |holder| holder.maker == maker);
        of.next().map(|holder| holder.mean_age.as_secs())
    };
    assert_eq!(ages(Maker::EarlierProgram), Some(10));
    assert_eq!(ages(Maker::IoUring), Some(20));
    // That of the one whose stack was lost.
    assert_eq!(ages(Maker::UntracedCall), Some(40));
}

#[test]
fn the_books_are_the_truth_of_one_who_has_ended() {
    let stacks = [stack(7, 70, 3)];
    let reading = Reading {
        before: &[record(3, 7, 1), record(4, 7, 1)],
        listing: None,
        after: &[
            record(4, 7, 1),
            before_tracing(0),
            of_kind(record(5, 7, 1), FdKind::Other),
        ],
    };
    let attached = [file(0, "/dev/null", 1)];
    let context = Context {
        attached: &attached,
        ..context(&stacks)
    };
    let found = holdings(&reading, &context);
    assert_eq!(
        sums(&found),
        [
            (Maker::Code, "file", 2, 1),
            (Maker::Code, "other", 1, 1),
            (Maker::BeforeTracing, "other", 0, 1),
        ]
    );
    assert!(found.losses.is_empty());
    assert!(reading.doubts().is_empty());
    let (_, details) = reconcile(&reading, &context, Some(&HashMap::new()));
    let details = details.unwrap_or_default();
    let targets: Vec<_> = details
        .iter()
        .map(|detail| (detail.number, detail.target.as_str()))
        .collect();
    assert_eq!(targets, [(0, "/dev/null"), (4, ""), (5, "")]);
}

/// The change of each kind of a stack's descriptors.
fn changes(records: &[Record], listing: &[Descriptor], opened: u64, then: u64) -> Vec<(&'static str, i64)> {
    let stacks = [stack(7, 70, opened)];
    let earlier = HashMap::from([(7, then)]);
    let context = Context {
        earlier: Some(&earlier),
        ..context(&stacks)
    };
    let found = holdings(&quiet(records, listing), &context);
    let mut changes: Vec<_> = found
        .holders
        .iter()
        .map(|holder| (holder.kind, holder.recent_change))
        .collect();
    changes.sort_unstable();
    changes
}

#[test]
fn changes_are_those_since_the_earlier_reading() {
    let records: Vec<_> = (3..9).map(|number| record(number, 7, 1)).collect();
    let files: Vec<_> = (3..9).map(|number| file(number, "/a", number as u64)).collect();
    assert_eq!(changes(&records, &files, 6, 2), [("file", 4)]);
    assert_eq!(changes(&records, &files, 9, 9), [("file", -3)]);
    assert_eq!(changes(&[], &[], 9, 9), [("file", -9)]);
    // One whose closing was missed was not open then, either, as far as is known.
    assert_eq!(changes(&records, &files[1..], 6, 6), [("file", 0)]);
}

#[test]
fn changes_of_mixed_kinds_add_up() {
    let records: Vec<_> = (3..9).map(|number| record(number, 7, 1)).collect();
    let mut listing: Vec<_> = (3..7).map(|number| file(number, "/a", number as u64)).collect();
    listing.extend([socket(7, 70), socket(8, 80)]);
    assert_eq!(changes(&records, &listing, 6, 6), [("file", 0), ("tcp", 0)]);
    assert_eq!(changes(&records, &listing, 6, 3), [("file", 2), ("tcp", 1)]);
    assert_eq!(changes(&records, &listing, 6, 5), [("file", 0), ("tcp", 1)]);
}

#[test]
fn a_stack_that_is_new_has_changed_by_all_it_holds() {
    let stacks = [stack(7, 70, 1)];
    let records = [record(3, 7, 1), before_tracing(0)];
    let listing = [file(3, "/a", 1), file(0, "/b", 2)];
    let earlier = HashMap::new();
    let mut context = Context {
        earlier: Some(&earlier),
        ..context(&stacks)
    };
    let change = |context: &Context, maker| {
        let found = holdings(&quiet(&records, &listing), context);
        let mut of = found.holders.into_iter().filter(|holder| holder.maker == maker);
        of.next().map(|holder| holder.recent_change)
    };
    assert_eq!(change(&context, Maker::Code), Some(1));
    assert_eq!(change(&context, Maker::BeforeTracing), Some(0));
    let earlier = HashMap::from([(opener::BEFORE, 3)]);
    context.earlier = Some(&earlier);
    assert_eq!(change(&context, Maker::BeforeTracing), Some(-2));
    context.earlier = None;
    assert_eq!(
        change(&context, Maker::Code),
        Some(0),
        "there is nothing to compare"
    );
}

#[test]
fn details_are_in_the_order_of_the_numbers() {
    let stacks = [stack(7, 70, 3)];
    let reading = Reading {
        before: &[record(9, 7, 2), before_tracing(0)],
        listing: Some(&[file(0, "/dev/null", 1), file(5, "/c", 3), socket(9, 90)]),
        after: &[record(9, 7, 2), before_tracing(0), record(4, 7, 0)],
    };
    let details = SocketDetails {
        local: Some("127.0.0.1:80".to_owned()),
        peer: Some("127.0.0.1:5000".to_owned()),
        state: Some("ESTABLISHED"),
    };
    let sockets = HashMap::from([(90, details)]);
    let (holdings, details) = reconcile(&reading, &context(&stacks), Some(&sockets));
    let detail = |number, kind, target: &str, age| FdDetail {
        number,
        kind,
        target: target.to_owned(),
        local: None,
        peer: None,
        state: None,
        age,
        holder: 0,
    };
    let mut expected = [
        detail(0, "file", "/dev/null", None),
        detail(4, "file", "", Some(Duration::ZERO)),
        detail(5, "file", "/c", None),
        FdDetail {
            local: Some("127.0.0.1:80".to_owned()),
            peer: Some("127.0.0.1:5000".to_owned()),
            state: Some("ESTABLISHED".to_owned()),
            ..detail(9, "tcp", "socket:[90]", Some(Duration::from_secs(2)))
        },
    ];
    let details = details.unwrap();
    let makers = [
        Maker::BeforeTracing,
        Maker::Code,
        Maker::UntracedCall,
        Maker::Code,
    ];
    for ((expected, found), maker) in expected.iter_mut().zip(&details).zip(makers) {
        expected.holder = found.holder;
        let holder = &holdings.holders[found.holder];
        assert_eq!((holder.maker, holder.kind), (maker, found.kind));
    }
    assert_eq!(details, expected);
}

/// Whatever is read, each descriptor is counted once, and no more is made than the books say.
#[test]
fn sums_add_up_whatever_happens() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..500 {
        let stacks: Vec<_> = (1..5).map(|id| stack(id, u64::from(id % 3), random(9))).collect();
        let mut books = || -> Vec<Record> {
            let numbers = 0..20;
            let record = |number| record(number, random(6) as u32, random(2));
            numbers.map(record).filter(|record| record.stack != 0).collect()
        };
        let (before, mut after) = (books(), books());
        after.truncate(10);
        after.extend(before.iter().filter(|record| record.number >= 15));
        after.sort_unstable_by_key(|record| record.number);
        after.dedup_by_key(|record| record.number);
        let listing: Vec<_> = (0..20)
            .filter_map(|number| match random(3) {
                0 => None,
                1 => Some(file(number, "/a", number as u64)),
                _ => Some(socket(number, number as u64)),
            })
            .collect();
        let reading = Reading {
            before: &before,
            listing: Some(&listing),
            after: &after,
        };
        let sockets = HashMap::new();
        let (found, details) = reconcile(&reading, &context(&stacks), Some(&sockets));
        let details = details.unwrap();
        let held: u64 = found.holders.iter().map(|holder| holder.held).sum();
        assert_eq!(held, details.len() as u64);
        assert!(details.is_sorted_by(|one, next| one.number < next.number));
        let by_code = found.holders.iter().filter(|holder| holder.maker == Maker::Code);
        let made: u64 = by_code.map(|holder| holder.made).sum();
        assert_eq!(made, stacks.iter().map(|stack| stack.opened).sum::<u64>());
        let missed = found.losses.iter().find(|(_, what)| what == MISSED);
        let untraced = reading
            .doubts()
            .numbers
            .iter()
            .filter(|(_, target)| target.is_some())
            .count();
        let missed = missed.map_or(0, |&(count, _)| count);
        assert_eq!(held + missed, (after.len() + untraced) as u64);
    }
}

#[test]
fn goroutines_are_counted_with_the_connection_that_theirs_dialed() {
    let dialed = |number, stack, dialer| Record {
        dialer,
        ..of_kind(record(number, stack, 1), FdKind::Tcp)
    };
    // Two numbers of one goroutine: it tries two addresses.
    let records = [
        dialed(3, 1, 40),
        dialed(4, 1, 40),
        dialed(5, 1, 41),
        dialed(6, 2, 0),
    ];
    let listing = [3, 4, 5, 6].map(|number| socket(number, number as u64));
    let stacks = [stack(1, 0x10, 3), stack(2, 0x20, 1)];
    let loops = |readers, writers| ConnectionLoops { readers, writers };
    let known = HashMap::from([(40, loops(1, 1)), (41, loops(1, 0)), (42, loops(1, 1))]);
    let context = Context {
        loops: Some(&known),
        ..context(&stacks)
    };
    let holders = holdings(&quiet(&records, &listing), &context).holders;
    let of = |frame| {
        holders
            .iter()
            .find(|holder| holder.frames == [frame])
            .map(|of| of.loops)
    };
    assert_eq!(of(0x10), Some(loops(2, 1)));
    assert_eq!(of(0x20), Some(loops(0, 0)));
}
