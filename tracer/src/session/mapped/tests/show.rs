//! Holdings and the summary.

use std::time::Duration;

use memtrace_ebpf::{handles::MappingKind, layout::EndReason};

use super::{
    super::{HeapState, HoldingsInput, MapStack, MappedBooks, mark_go_heap},
    PAGE, all_resident, area, books, ended, mapped, named, never, started, unmapping,
};
use crate::{
    snapshot::{Holder, Holdings, Maker, MemorySummary},
    target::Vma,
};

const ANON: MappingKind = MappingKind::Anon;
const STACK: MappingKind = MappingKind::Stack;

/// A stack of the process that mapped so many pages.
fn stack(id: u32, kind: MappingKind, pages: u64) -> MapStack {
    MapStack {
        id,
        kind: Some(kind),
        frames: vec![u64::from(id)],
        end: EndReason::Complete,
        mapped_bytes: pages * PAGE,
        own: true,
    }
}

fn input<'a>(stacks: &'a [MapStack], now: u64) -> HoldingsInput<'a> {
    HoldingsInput {
        stacks,
        is_allocator: &|id| id == 99 || id == 4,
        now,
        earlier: None,
    }
}

/// Maker, frames, kind, cached, and pages made, held, objects and resident.
type Brief = (Maker, Vec<u64>, &'static str, bool, [u64; 4]);

fn brief(holdings: &Holdings) -> Vec<Brief> {
    let brief = |holder: &Holder| {
        let numbers = [
            holder.made / PAGE,
            holder.held / PAGE,
            holder.held_objects,
            holder.resident / PAGE,
        ];
        (
            holder.maker,
            holder.frames.clone(),
            holder.kind,
            holder.cached,
            numbers,
        )
    };
    let mut all: Vec<_> = holdings.holders.iter().map(brief).collect();
    all.sort();
    all
}

#[test]
fn holders_are_by_stack_kind_and_use() {
    let mut books = books(
        &[named("/bin/server", 0..4)],
        &[
            mapped(1, ANON, 10..12),
            mapped(1, ANON, 14..16),
            mapped(2, STACK, 20..25),
            started(7, 3, 25),
            mapped(2, STACK, 30..35),
            started(8, 3, 35),
            ended(8),
            mapped(4, ANON, 40..44),
            mapped(99, ANON, 50..51),
            mapped(77, ANON, 60..61),
            unmapping(11..12),
        ],
    );
    let vmas = [
        named("/bin/server", 0..4),
        named("[heap]", 5..9),
        named("[anon: x]", 10..11),
        named("", 14..16),
        area(20..25),
        area(30..35),
        area(40..44),
        area(50..51),
        area(60..61),
        area(70..72),
    ];
    let survey = books.survey(Some(&vmas), &mut never);
    let stacks = [
        stack(1, ANON, 4),
        stack(2, STACK, 10),
        stack(3, STACK, 0),
        stack(4, ANON, 4),
        stack(5, MappingKind::File, 6),
        stack(99, ANON, 1),
    ];
    let holdings = survey.holdings(&input(&stacks, 100));
    let code = Maker::Code;
    let expected = [
        (code, vec![1], "anon", false, [4, 3, 2, 3]),
        (code, vec![2], "stack", false, [10, 0, 0, 0]),
        (code, vec![3], "stack", false, [0, 5, 1, 0]),
        (code, vec![3], "stack", true, [0, 5, 1, 0]),
        (code, vec![5], "file", false, [6, 0, 0, 0]),
        (Maker::BeforeTracing, vec![], "file", false, [0, 4, 1, 4]),
        // The stack of one was lost.
        (Maker::UntracedCall, vec![], "anon", false, [0, 3, 2, 0]),
    ];
    assert_eq!(brief(&holdings), expected);
    let first = holdings.holders.iter().find(|holder| holder.frames == [1]);
    let age = first.map(|holder| holder.mean_age);
    assert_eq!(age, Some(Duration::from_nanos(100 - 12)));
    assert!(holdings.losses.is_empty() && holdings.notes.is_empty());
}

#[test]
fn changes_are_since_the_earlier_reading() {
    let mut books = books(&[area(0..4)], &[mapped(1, ANON, 10..12), mapped(2, ANON, 20..21)]);
    let earlier = books.held();
    for event in [
        mapped(1, ANON, 30..35),
        unmapping(20..21),
        unmapping(0..1),
        unmapping(10..11),
    ] {
        books.apply(&event);
    }
    let survey = books.survey(None, &mut never);
    let stacks = [stack(1, ANON, 7), stack(2, ANON, 1)];
    let holdings = survey.holdings(&HoldingsInput {
        earlier: Some(&earlier),
        ..input(&stacks, 50)
    });
    let mut changes: Vec<(Maker, Vec<u64>, i64)> = holdings
        .holders
        .iter()
        .map(|holder| {
            let pages = holder.recent_change / PAGE as i64;
            (holder.maker, holder.frames.clone(), pages)
        })
        .collect();
    changes.sort();
    let expected = [
        (Maker::Code, vec![1], 4),
        (Maker::Code, vec![2], -1),
        (Maker::BeforeTracing, vec![], -1),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn inherited_mappings_were_not_made_by_the_child() {
    let parent = books(&[], &[mapped(1, ANON, 0..4)]);
    let mut child = parent.fork(1);
    child.apply(&mapped(2, ANON, 6..7));
    let survey = child.survey(None, &mut never);
    let parents = MapStack {
        own: false,
        ..stack(1, ANON, 4)
    };
    let holdings = survey.holdings(&input(&[parents, stack(2, ANON, 1)], 0));
    let mut found: Vec<(bool, u64, u64)> = holdings
        .holders
        .iter()
        .map(|holder| (holder.inherited, holder.made / PAGE, holder.held / PAGE))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(false, 1, 1), (true, 0, 4)]);
}

#[test]
fn what_was_missed_is_told() {
    let mut books = books(&[], &[mapped(1, ANON, 0..4)]);
    let survey = books.survey(Some(&[area(9..10)]), &mut never);
    let holdings = survey.holdings(&input(&[], 0));
    assert_eq!(
        holdings.losses,
        [(1, "unmappings not seen (16.0 KiB)".to_owned())]
    );
}

/// A process with some of everything, and 42 resident pages.
fn everything() -> (MappedBooks, Vec<Vma>) {
    let vmas = vec![
        named("/bin/server", 0..4),
        named("[heap]", 4..14),
        named("", 20..25),
        named("", 30..34),
        named("", 40..42),
        named("/dev/shm/x", 50..53),
        named("/lib/x.so", 60..61),
        named("", 70..76),
        named("", 80..81),
        named("[vdso]", 90..92),
        named("[stack]", 100..104),
    ];
    let before = [vmas[0].clone(), vmas[1].clone(), vmas[7].clone()];
    let books = books(
        &before,
        &[
            mapped(1, ANON, 20..25),
            mapped(2, ANON, 30..34),
            mapped(3, STACK, 40..42),
            mapped(4, MappingKind::Shared, 50..53),
            mapped(5, MappingKind::File, 60..61),
        ],
    );
    (books, vmas)
}

fn summary(heap: &HeapState, rss: u64) -> MemorySummary {
    let (mut books, vmas) = everything();
    let survey = books.survey(Some(&vmas), &mut all_resident);
    let summary = survey.summary(rss * PAGE, heap, &|stack| stack == 1);
    let sum: u64 = summary.parts.iter().map(|part| part.bytes).sum();
    assert_eq!(sum, rss * PAGE);
    assert!(summary.parts.iter().all(|part| part.bytes > 0));
    summary
}

fn parts(summary: &MemorySummary) -> Vec<(&str, u64)> {
    let parts = summary.parts.iter();
    parts
        .map(|part| (part.what.as_str(), part.bytes / PAGE))
        .collect()
}

#[test]
fn parts_add_up() {
    let heap = HeapState {
        live_bytes: Some(6 * PAGE),
        resident_at_attach: 5 * PAGE,
        ..HeapState::default()
    };
    let summary = summary(&heap, 45);
    let expected = [
        ("live heap blocks, at most", 6),
        ("heap from before the attach, at most", 5),
        ("allocator overhead and fragmentation", 4),
        ("mapped since the attach", 7),
        ("mapped by calls that memtrace does not trace", 1),
        ("stacks of threads", 6),
        ("files: the program, its libraries, mapped files", 7),
        ("other memory from before the attach", 6),
        ("not attributed", 3),
    ];
    assert_eq!(parts(&summary), expected);
    assert_eq!(summary.notes.len(), 1);
}

#[test]
fn an_untraced_heap_is_one_line() {
    let summary = summary(&HeapState::default(), 42);
    assert_eq!(parts(&summary)[0], ("heap (not traced)", 15));
    assert!(summary.notes.is_empty());
}

#[test]
fn live_blocks_are_where_they_can_be() {
    let live = |pages| HeapState {
        live_bytes: Some(pages * PAGE),
        ..HeapState::default()
    };
    // More than the heap has: the rest is in memory from before, such as an arena of another allocator.
    let fits = summary(&live(18), 42);
    let of = |summary: &MemorySummary, what: &str| {
        let part = summary.parts.iter().find(|part| part.what.starts_with(what));
        part.map_or(0, |part| part.bytes / PAGE)
    };
    assert_eq!((of(&fits, "live heap"), of(&fits, "other memory")), (18, 3));
    assert!(fits.notes.is_empty());
    // More than there is at all.
    let too_much = summary(&live(1000), 42);
    assert_eq!(
        (of(&too_much, "live heap"), of(&too_much, "other memory")),
        (21, 0)
    );
    assert_eq!(too_much.notes.len(), 1);
}

#[test]
fn blocks_are_resident_where_their_memory_is() {
    // A heap of ten resident pages from before, and a block of a hundred pages of which one was touched.
    let before = [named("[heap]", 4..14)];
    let mut block = area(20..120);
    block.rss = PAGE;
    let vmas = [before[0].clone(), block];
    let mut books = books(&before, &[mapped(1, ANON, 20..120)]);
    let survey = books.survey(Some(&vmas), &mut never);
    let ranges = survey.ranges();
    assert_eq!(ranges, [4 * PAGE..14 * PAGE, 20 * PAGE..120 * PAGE]);
    let mut heap = HeapState {
        live_bytes: Some(102 * PAGE),
        placed: vec![2 * PAGE, 100 * PAGE],
        resident_at_attach: 10 * PAGE,
    };
    let summary = survey.summary(11 * PAGE, &heap, &|stack| stack == 1);
    let expected = [
        ("live heap blocks, at most", 3),
        ("heap from before the attach, at most", 8),
    ];
    assert_eq!(parts(&summary), expected);
    assert!(summary.notes[0].contains("at least 396 KiB of them are not in memory"));
    // Where nobody knows the place, such as of inherited blocks, all of the heap may be theirs.
    heap.placed = Vec::new();
    let summary = survey.summary(11 * PAGE, &heap, &|stack| stack == 1);
    assert_eq!(parts(&summary), [("live heap blocks, at most", 11)]);
}

#[test]
fn the_go_heap_is_a_part_of_its_own() {
    let (mut books, mut vmas) = everything();
    // From before, and mapped since.
    mark_go_heap(&mut vmas, 70 * PAGE);
    mark_go_heap(&mut vmas, 22 * PAGE);
    let survey = books.survey(Some(&vmas), &mut all_resident);
    let summary = survey.summary(42 * PAGE, &HeapState::default(), &|_| false);
    let expected = [
        ("heap (not traced)", 10),
        ("Go heap, with the stacks of goroutines", 11),
        ("mapped since the attach", 7),
        ("mapped by calls that memtrace does not trace", 1),
        ("stacks of threads", 6),
        ("files: the program, its libraries, mapped files", 7),
    ];
    assert_eq!(parts(&summary), expected);
}

#[test]
fn only_neighbours_without_a_file_are_the_go_heap() {
    let at = |begin: u64, end: u64, file: bool| Vma {
        begin: begin * PAGE,
        end: end * PAGE,
        file,
        ..Vma::default()
    };
    let mut vmas = [
        at(1, 2, false),
        at(4, 5, true),
        at(5, 7, false),
        at(7, 9, false),
        at(9, 12, false),
        at(13, 14, false),
    ];
    mark_go_heap(&mut vmas, 8 * PAGE);
    let marked = vmas.iter().map(|vma| vma.is_go_heap);
    assert!(marked.eq([false, false, true, true, true, false]));
    mark_go_heap(&mut vmas[..2], 4 * PAGE);
    assert!(!vmas[1].is_go_heap);
}

#[test]
fn parts_never_exceed_the_whole() {
    let summary = summary(&HeapState::default(), 30);
    assert_eq!(parts(&summary)[0], ("heap (not traced)", 3));
    assert!(summary.notes[0].contains("48.0 KiB more"));
}
