//! The books of descriptors: by site and kind, the profile says exactly what the target knows of itself.

use std::collections::BTreeMap;

use anyhow::ensure;
use memtrace_tests::{
    Result,
    compile::{Build, NO_FRAME_POINTERS},
    descriptors::{Books, Descriptors},
    fd_profile::{BEFORE_TRACING, Counts, EARLIER_PROGRAM, Fds, UNTRACED_CALL},
    kernel, serial, skip,
    tracer::Memtrace,
};

/// Nothing but descriptors.
const FDS: [&str; 2] = ["--profiles", "fd"];

fn descriptors() -> Build {
    Build::c("descriptors").flags(NO_FRAME_POINTERS)
}

/// One run: attach, give a command, compare at the quiet point; then close everything and compare again.
fn run(program: &Build, threads: u32, command: &str) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Descriptors::start(&program.path()?, threads, 256)?;
    let memtrace = Memtrace::attach(target.pid(), &FDS)?;

    let books = target.tell(command)?;
    books.assert_equal(&memtrace.fd_snapshot(1)?)?;

    let drained = target.tell("drain")?;
    drained.assert_equal(&memtrace.interrupt()?.fds()?)?;
    kernel::await_unpatched(target.pid())?;
    target.exit()
}

#[test]
fn one_thread() -> Result<()> {
    run(&descriptors(), 1, "go 100000 1")
}

#[test]
fn eight_threads() -> Result<()> {
    run(&descriptors(), 8, "go 300000 2")
}

#[test]
fn unoptimised() -> Result<()> {
    let program = descriptors().named("descriptors_O0").flag("-O0");
    run(&program, 8, "go 100000 3")
}

#[test]
fn linked_statically() -> Result<()> {
    let program = descriptors().named("descriptors_static").flag("-static");
    run(&program, 4, "go 100000 4")
}

/// Most calls fail for want of a number, and messages bring fewer descriptors than were sent.
#[test]
fn too_few_numbers() -> Result<()> {
    run(&descriptors(), 4, "starve 100000 5")
}

/// A thread that leaves the table, by `unshare` or by `close_range`, opens and closes in one of its own.
#[test]
fn threads_that_leave_the_table() -> Result<()> {
    run(&descriptors(), 4, "unshare 100000 6")
}

#[test]
fn an_io_uring() -> Result<()> {
    run(&descriptors(), 1, "ring 20000 7")
}

/// What one run has seen is from before to the next.
#[test]
fn attached_twice() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Descriptors::start(&descriptors().path()?, 4, 256)?;
    let first = Memtrace::attach(target.pid(), &FDS)?;
    let books = target.go(20_000, 8)?;
    books.assert_equal(&first.interrupt()?.fds()?)?;

    target.go(20_000, 9)?;
    let before = target.tell("forget")?;
    let second = Memtrace::attach(target.pid(), &FDS)?;
    before.assert_equal(&second.fd_snapshot(1)?)?;
    let books = target.go(20_000, 10)?;
    books.assert_equal(&second.fd_snapshot(2)?)?;
    let drained = target.tell("drain")?;
    drained.assert_equal(&second.interrupt()?.fds()?)?;
    target.exit()
}

/// What is opened while memtrace attaches may count as opened before, but it counts.
#[test]
fn attached_under_load() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Descriptors::start(&descriptors().path()?, 8, 256)?;
    target.begin("go 500000 11")?;
    let memtrace = Memtrace::attach(target.pid(), &FDS)?;
    let books = target.books()?;
    let fds = memtrace.interrupt()?.fds()?;
    assert_eq!(open_by_kind(&fds), open_by_kind_in(&books), "{}", fds.describe());
    for (site, counts) in fds.by_site("site_", false) {
        let all = books.sites.get(&site).copied().unwrap_or_default();
        ensure!(
            counts.opened <= all.opened && counts.open <= all.open,
            "{site:?}: {counts:?} of {all:?}\n{}",
            fds.comments.join("\n")
        );
    }
    assert!(
        fds.by_kind_through(UNTRACED_CALL).is_empty(),
        "{}",
        fds.describe()
    );
    target.exit()
}

fn open_by_kind(fds: &Fds) -> BTreeMap<String, i64> {
    sum(fds
        .stacks
        .iter()
        .map(|stack| (stack.kind.clone(), stack.counts.open)))
}

fn open_by_kind_in(books: &Books) -> BTreeMap<String, i64> {
    let all = books.sites.iter().chain(&books.inherited);
    sum(all.map(|((_, kind), counts)| (kind.clone(), counts.open)))
}

fn sum(counts: impl Iterator<Item = (String, i64)>) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    for (kind, open) in counts.filter(|(_, open)| *open != 0) {
        *sums.entry(kind).or_default() += open;
    }
    sums
}

// ---------------------------------------------------------------------------------------------- children

/// A child has its parent's descriptors, as inherited, and a table of its own from then on.
#[test]
fn after_fork() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Descriptors::start(&descriptors().path()?, 4, 256)?;
    let parent = target.pid();
    let memtrace = Memtrace::attach(parent, &["--children", "--profiles", "fd"])?;
    target.go(50_000, 12)?;
    target.fork()?;
    let child = target.pid();
    target.go(50_000, 13)?;
    // What a child opens in the table that it shares counts as opened in its own profile, and as inherited in this one.
    let without_sharers = |mut books: Books| {
        let is_shared = |site: &str| site.starts_with("site_sharing_child");
        for (key, counts) in books.sites.extract_if(.., |(site, _), _| is_shared(site)) {
            books.inherited.entry(key).or_default().open += counts.open;
        }
        books
    };
    let of_child = without_sharers(target.tell("books")?);
    assert!(of_child.inherited.values().any(|counts| counts.open > 0));
    memtrace.signal(libc::SIGUSR1)?;
    of_child.assert_equal(&memtrace.fd_snapshot_of(child)?)?;

    let drained = target.tell("drain")?;
    target.join(parent)?;
    let of_parent = without_sharers(target.go(50_000, 14)?);
    let outcome = memtrace.interrupt()?;
    of_parent.assert_equal(&outcome.fds()?)?;
    // The kernel closes all at the end; the last word on the child is from when it still lived, or from just after.
    let last = outcome.fds_of(child)?;
    for (site, counts) in last.by_site("site_", false) {
        assert_eq!(
            Some(counts.opened),
            drained.sites.get(&site).map(|of| of.opened),
            "{site:?}"
        );
        assert_eq!(counts.open, 0, "{site:?}");
    }
    target.exit()
}

/// To a memtrace that attaches to a child, all that it has from its parent is from before.
#[test]
fn attached_after_fork() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Descriptors::start(&descriptors().path()?, 4, 256)?;
    let parent = target.pid();
    target.go(10_000, 15)?;
    target.fork()?;
    target.tell("forget")?;
    let memtrace = Memtrace::attach(target.pid(), &FDS)?;
    let books = target.go(50_000, 16)?;
    books.assert_equal(&memtrace.interrupt()?.fds()?)?;
    target.join(parent)?;
    target.exit()
}

/// What is not closed at an exec is of the program before; nothing else is.
#[test]
fn after_exec() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Descriptors::start(&descriptors().path()?, 2, 256)?;
    let memtrace = Memtrace::attach(target.pid(), &["--children", "--profiles", "fd"])?;
    target.go(20_000, 17)?;
    target.exec()?;
    target.go(300, 18)?;
    let books = target.tell("books")?;
    memtrace.signal(libc::SIGUSR1)?;
    let fds = memtrace.fd_snapshot_of(target.pid())?;
    let open = |counts: BTreeMap<String, Counts>| sum(counts.into_iter().map(|(kind, of)| (kind, of.open)));
    let (mine, mut theirs) = (
        open(books.by("earlier")),
        open(fds.by_kind_through(EARLIER_PROGRAM)),
    );
    ensure!(!mine.is_empty(), "nothing was left open");
    // Standard streams, and whatever else the first program did not open itself, were there before the attach.
    for (kind, open) in open(fds.by_kind_through(BEFORE_TRACING)) {
        *theirs.entry(kind).or_default() += open;
    }
    assert_eq!(mine, theirs, "{}", fds.describe());
    assert_eq!(open_by_kind(&fds), open_by_kind_in(&books), "{}", fds.describe());
    target.exit()
}

// ---------------------------------------------------------------------------------------------- numbers that are reused

/// Has a number closed and opened anew by calls of different sorts; nothing may be booked on who had it before.
fn reopen(what: &str) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let mut target = Descriptors::start(&descriptors().path()?, 1, 64)?;
    if !target.grants("untraced") || !target.grants("io_uring") {
        skip::skipped("no pseudoterminals, or no io_uring");
        return Ok(());
    }
    let memtrace = Memtrace::attach(target.pid(), &FDS)?;
    let books = target.tell(&format!("reopen {what}"))?;
    books.assert_equal(&memtrace.fd_snapshot(1)?)?;
    // Whoever opened it, it is closed like any other.
    let drained = target.tell("drain")?;
    drained.assert_equal(&memtrace.interrupt()?.fds()?)?;
    target.exit()
}

#[test]
fn a_number_from_before_is_reopened() -> Result<()> {
    reopen("traced")
}

#[test]
fn a_number_from_before_is_reopened_by_an_untraced_call() -> Result<()> {
    reopen("before")
}

#[test]
fn a_number_is_reopened_by_an_untraced_call() -> Result<()> {
    reopen("untraced")
}

#[test]
fn a_number_that_an_io_uring_closed_is_reopened_by_an_untraced_call() -> Result<()> {
    reopen("ring")
}

// ---------------------------------------------------------------------------------------------- the reference itself

/// Needs no privilege. Whatever it does, the books agree with the kernel, and draining leaves nothing; every call that the
/// machine grants is made.
#[test]
fn the_books_add_up() -> Result<()> {
    let mut target = Descriptors::start(&descriptors().path()?, 4, 256)?;
    for command in ["starve 5000 19", "unshare 5000 20", "ring 500 21", "go 50000 22"] {
        target.tell(command)?;
    }
    let parent = target.pid();
    target.fork()?;
    target.go(5000, 23)?;
    target.join(parent)?;
    let books = target.tell("books")?;
    let drained = target.tell("drain")?;
    assert!(
        books
            .sites
            .keys()
            .any(|(site, _)| site == "site_sharing_child_pipe_0")
    );
    let used: std::collections::BTreeSet<_> = books.sites.keys().map(|(site, _)| site).collect();
    // Three words, and the site of the io_uring, are no sites of calls.
    ensure!(
        used.len() + target.refused.len() >= 100,
        "{} sites are used, {:?} are refused",
        used.len(),
        target.refused
    );
    for ((site, kind), after) in &drained.sites {
        let before = books.sites[&(site.clone(), kind.clone())];
        assert_eq!(after.opened, before.opened, "{site} {kind}");
        assert!(site == "before" || after.open == 0, "{site} {kind}: {after:?}");
    }
    target.exec()?;
    target.go(5000, 24)?;
    target.exit()
}
