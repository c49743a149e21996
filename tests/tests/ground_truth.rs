//! The heap's books: per call site, the profile says exactly what the target knows of itself.

use memtrace_tests::{
    Result,
    compile::{Build, NO_FRAME_POINTERS},
    ground::{Books, GroundTruth},
    profile::Values,
    serial, skip,
    tracer::Memtrace,
};

/// Sites in `targets/ground_truth.c`: eight for each of ten functions.
const SITES: usize = 80;

fn ground_truth() -> Build {
    Build::c("ground_truth").flags(NO_FRAME_POINTERS)
}

/// One run: attach, work, compare at the quiet point; then free everything and compare again.
fn run(program: &Build, threads: u32, slots: u32, operations: u64, seed: u64) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = GroundTruth::start(&program.path()?, threads, slots)?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;

    let books = target.go(operations, seed)?;
    assert_eq!(books.sites.len(), SITES);
    assert!(books.operations >= operations);
    memtrace.signal(libc::SIGUSR1)?;
    books.assert_equal(&memtrace.snapshot("heap-0001.pb.gz")?)?;

    let drained = target.drain()?;
    let (heap, _outcome) = memtrace.stop()?;
    drained.assert_equal(&heap)?;
    target.exit()
}

#[test]
fn one_thread() -> Result<()> {
    run(&ground_truth(), 1, 512, 1_500_000, 1)
}

#[test]
fn four_threads() -> Result<()> {
    run(&ground_truth(), 4, 1024, 4_000_000, 2)
}

#[test]
fn sixteen_threads_with_many_live_blocks() -> Result<()> {
    run(&ground_truth(), 16, 16_384, 4_000_000, 3)
}

#[test]
fn unoptimised() -> Result<()> {
    run(
        &ground_truth().named("ground_truth_O0").flag("-O0"),
        4,
        1024,
        1_000_000,
        4,
    )
}

#[test]
fn at_a_fixed_address() -> Result<()> {
    run(
        &ground_truth()
            .named("ground_truth_fixed")
            .flags(["-no-pie", "-fno-pie"]),
        3,
        1024,
        500_000,
        5,
    )
}

#[test]
fn linked_statically() -> Result<()> {
    run(
        &ground_truth().named("ground_truth_static").flag("-static"),
        2,
        1024,
        500_000,
        6,
    )
}

/// A second attach finds the blocks of the first one's time already there: it must not count them, nor their frees.
#[test]
fn attached_twice() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = GroundTruth::start(&ground_truth().path()?, 2, 256)?;
    target.go(100_000, 7)?;
    let first = Memtrace::attach(target.pid(), &[])?;
    let before = target.go(100_000, 8)?;
    first.stop()?;

    let second = Memtrace::attach(target.pid(), &[])?;
    let drained = target.drain()?;
    let (heap, outcome) = second.stop()?;
    assert!(before.sites.values().any(|site| site.inuse_objects > 0));
    assert!(drained.sites.values().all(|site| site.inuse_objects == 0));
    assert_eq!(heap.total().inuse_objects, 0, "{}", outcome.stderr);
    assert!(
        heap.by_function("site_").is_empty(),
        "nothing was allocated while the second one traced"
    );
    target.exit()
}

/// With a table too small for what lives, the profile says how much it lacks, and what it has is right.
#[test]
fn a_full_table_is_reported() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = GroundTruth::start(&ground_truth().path()?, 2, 8192)?;
    let memtrace = Memtrace::attach(target.pid(), &["--max-live", "1000"])?;
    let books = target.go(200_000, 9)?;
    let (heap, _outcome) = memtrace.stop()?;

    let live = books.sites.values().map(|site| site.inuse_objects).sum::<i64>();
    assert!(live > 5000, "{live} blocks live");
    let recorded = heap.total().inuse_objects;
    assert!(
        (1..=1100).contains(&recorded),
        "{recorded} of {live} live blocks are recorded in a table for 1000"
    );
    for (name, values) in heap.by_function("site_") {
        let site = books.sites[&name];
        assert!(
            values.inuse_objects <= site.inuse_objects,
            "{name}: {values:?} of {site:?}"
        );
        assert!(
            values.alloc_objects <= site.alloc_objects,
            "{name}: {values:?} of {site:?}"
        );
    }
    let said = heap.comments.iter().any(|comment| comment.contains("max-live"));
    assert!(
        said,
        "no comment names the table's limit:\n{}",
        heap.comments.join("\n")
    );
    target.exit()
}

/// The reference itself: what is allocated is live or freed, and draining leaves nothing.
#[test]
fn the_books_add_up() -> Result<()> {
    let mut target = GroundTruth::start(&ground_truth().path()?, 4, 1024)?;
    let books = target.go(200_000, 10)?;
    let drained = target.drain()?;
    target.exit()?;
    assert!(sum(&books).inuse_objects > 0);
    for (name, after) in &drained.sites {
        let before = books.sites[name];
        let expected = Values {
            inuse_objects: 0,
            inuse_bytes: 0,
            ..before
        };
        assert_eq!(*after, expected, "{name}");
        assert!(
            before.alloc_objects >= before.inuse_objects && before.alloc_bytes >= before.inuse_bytes,
            "{name}"
        );
    }
    Ok(())
}

fn sum(books: &Books) -> Values {
    books.sites.values().fold(Values::default(), |mut sum, site| {
        sum.add(site);
        sum
    })
}
