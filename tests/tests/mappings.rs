//! The books of mappings: per call site and kind, the profile says exactly what the target knows of itself.

use anyhow::ensure;
use memtrace_tests::{
    Result,
    child::PATIENCE,
    compile::{Build, NO_FRAME_POINTERS},
    mapping_books::{Compared, Target},
    mmap_profile::{BEFORE_TRACING, Mappings, UNTRACED_CALL},
    serial, skip,
    tracer::Memtrace,
};

/// Mappings alone: no probe in any allocator.
const MAPPINGS_ONLY: [&str; 2] = ["--profiles", "mmap"];
/// The mappings that each of the target's threads holds before the attach are in parts of this size (bytes), and all of
/// them are unmapped when it drains.
const PRIOR: i64 = 4 << 20;

fn mappings() -> Build {
    Build::c("mappings").flags(NO_FRAME_POINTERS)
}

fn assert_nobody_unknown(profile: &Mappings) -> Result<()> {
    let unknown = profile.under(UNTRACED_CALL);
    ensure!(
        unknown.inuse == 0,
        "mapped by an untraced call: {unknown:?}\n{}",
        profile.comments.join("\n")
    );
    Ok(())
}

/// One run: attach, work, compare at two quiet points; then unmap everything and compare again.
fn run(program: &Build, options: &[&str], threads: u32, operations: u64, seed: u64) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Target::start(&program.path()?, threads)?;
    let memtrace = Memtrace::attach(target.pid(), options)?;
    for round in 1..=2 {
        let books = target.go(operations, seed + round)?;
        memtrace.signal(libc::SIGUSR1)?;
        let profile = memtrace.profile(&format!("mmap-{round:04}.pb.gz"), Mappings::read)?;
        books.assert_equal(&profile, Compared::All)?;
        assert_nobody_unknown(&profile)?;
    }
    let drained = target.drain()?;
    let profile = memtrace.interrupt()?.profile("mmap.pb.gz", Mappings::read)?;
    drained.assert_equal(&profile, Compared::All)?;
    assert_nobody_unknown(&profile)?;
    target.exit()
}

#[test]
fn one_thread() -> Result<()> {
    run(&mappings(), &MAPPINGS_ONLY, 1, 30_000, 1)
}

#[test]
fn eight_threads() -> Result<()> {
    run(&mappings(), &MAPPINGS_ONLY, 8, 60_000, 2)
}

#[test]
fn unoptimised() -> Result<()> {
    let program = mappings().named("mappings_O0").flag("-O0");
    run(&program, &MAPPINGS_ONLY, 4, 20_000, 3)
}

#[test]
fn linked_statically() -> Result<()> {
    let program = mappings().named("mappings_static").flag("-static");
    run(&program, &MAPPINGS_ONLY, 2, 20_000, 4)
}

/// With the allocator probed, too: what it maps for itself still is none of the sites'.
#[test]
fn with_all_the_default_profiles() -> Result<()> {
    run(&mappings(), &[], 8, 40_000, 5)
}

#[test]
fn with_descriptors() -> Result<()> {
    run(&mappings(), &["--profiles", "fd,mmap"], 2, 20_000, 6)
}

/// What was mapped when a process ended is what it held to the last.
#[test]
fn a_target_that_ends() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Target::start(&mappings().path()?, 4)?;
    let memtrace = Memtrace::attach(target.pid(), &MAPPINGS_ONLY)?;
    let books = target.go(20_000, 7)?;
    // No call tells by how much a stack grew (`MAP_GROWSDOWN`): that is known from when it was last looked at.
    memtrace.signal(libc::SIGUSR1)?;
    memtrace.profile("mmap-0001.pb.gz", Mappings::read)?;
    target.exit()?;
    let profile = memtrace.finish(PATIENCE)?.profile("mmap.pb.gz", Mappings::read)?;
    books.assert_equal(&profile, Compared::Mapped)
}

/// A second attach finds the mappings of the first one's time already there, and names nobody for them.
#[test]
fn attached_twice() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Target::start(&mappings().path()?, 2)?;
    let first = Memtrace::attach(target.pid(), &MAPPINGS_ONLY)?;
    let books = target.go(5000, 8)?;
    first.interrupt()?.check_code()?;

    let second = Memtrace::attach(target.pid(), &MAPPINGS_ONLY)?;
    second.signal(libc::SIGUSR1)?;
    let profile = second.profile("mmap-0001.pb.gz", Mappings::read)?;
    let sites = profile.by_site("site_");
    ensure!(sites.is_empty(), "mapped before the attach: {sites:?}");
    let before = profile.under(BEFORE_TRACING);
    ensure!(before.inuse >= books.total().inuse, "{before:?}");
    let drained = target.drain()?;
    second.signal(libc::SIGUSR1)?;
    let profile = second.profile("mmap-0002.pb.gz", Mappings::read)?;
    let unmapped = before.inuse - profile.under(BEFORE_TRACING).inuse;
    let expected = books.total().inuse - drained.total().inuse;
    ensure!(
        (expected..=expected + 2 * PRIOR).contains(&unmapped),
        "{unmapped} bytes from before the attach were unmapped, not {expected} and at most {PRIOR} for each thread"
    );
    second.interrupt()?.check_code()?;
    target.exit()
}

/// A child has what its parent mapped, until it unmaps it: then the parent still has it.
#[test]
fn a_forked_child() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Target::start(&mappings().path()?, 4)?;
    let memtrace = Memtrace::attach(target.pid(), &["--children", "--profiles", "mmap"])?;
    target.go(20_000, 9)?;
    let (child, books_of_child) = target.fork(3000, 10)?;
    ensure!(
        books_of_child.parts.keys().any(|part| part.inherited),
        "the child inherited nothing"
    );
    let books = target.books()?;
    memtrace.signal(libc::SIGUSR1)?;
    let profile = memtrace.profile("mmap-0001.pb.gz", Mappings::read)?;
    books.assert_equal(&profile, Compared::All)?;
    let profile = memtrace.profile_of(child, "mmap-0001.pb.gz", Mappings::read)?;
    books_of_child.assert_equal(&profile, Compared::All)?;

    // The parent goes on by itself.
    target.reap()?;
    let books = target.go(20_000, 11)?;
    let outcome = memtrace.interrupt()?;
    let profile = outcome.profile("mmap.pb.gz", Mappings::read)?;
    books.assert_equal(&profile, Compared::All)?;
    let profile = outcome.profile_of(child, "mmap.pb.gz", Mappings::read)?;
    books_of_child.assert_equal(&profile, Compared::Mapped)?;
    target.exit()
}

/// The reference itself, which compares itself with `/proc/self/maps`: draining leaves nothing but cached stacks.
#[test]
fn the_books_add_up() -> Result<()> {
    let mut target = Target::start(&mappings().path()?, 8)?;
    let books = target.go(40_000, 12)?;
    ensure!(books.operations >= 40_000, "{}", books.operations);
    for kind in ["anon", "file", "shared", "stack", "cached"] {
        let held = books
            .parts
            .iter()
            .any(|(part, space)| part.kind == kind && space.inuse > 0);
        ensure!(held, "nothing of kind {kind} is held");
    }
    let (_, child) = target.fork(2000, 13)?;
    ensure!(child.parts.keys().any(|part| part.inherited), "nothing inherited");
    target.reap()?;
    let drained = target.drain()?;
    target.exit()?;
    for (part, space) in &drained.parts {
        ensure!(space.inuse == 0 || part.kind == "cached", "{part:?}: {space:?}");
    }
    for (part, space) in &books.parts {
        let mapped = drained.parts.get(part).map(|space| space.mapped);
        ensure!(
            mapped.unwrap_or_default() == space.mapped,
            "{part:?}: {space:?} before, {mapped:?} mapped after draining"
        );
    }
    Ok(())
}
