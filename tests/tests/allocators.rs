//! Allocators other than glibc's: per call site, the profile says exactly what the target knows of itself.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use memtrace_tests::{
    Result,
    compile::{self, Build, NO_FRAME_POINTERS},
    ground::GroundTruth,
    profile::Heap,
    serial, skip,
    tracer::Memtrace,
};

/// Where Debian puts libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const JEMALLOC: &str = "libjemalloc.so.2";
const TCMALLOC: &str = "libtcmalloc_minimal.so.4";
const MIMALLOC: &str = "libmimalloc.so.2.0";

/// The targets hold 64 blocks a thread before the attach, and each thread has some of the C library's.
const OLDER_BLOCKS: u64 = 300;
/// glibc frees what it kept for a thread when the thread ends: up to 7 blocks of each of 64 sizes.
const KEPT_BY_GLIBC: u64 = 4 * 7 * 64;

/// The path of a library, or the reason to skip a test.
fn library(name: &str) -> Option<PathBuf> {
    let path = Path::new(LIBRARIES).join(name);
    if path.exists() {
        return Some(path);
    }
    skip::skipped(&format!("{name} is not installed"));
    None
}

fn ground_truth() -> Build {
    Build::c("ground_truth").flags(NO_FRAME_POINTERS)
}

/// The same target without sites for pvalloc, which jemalloc and musl lack.
fn without_pvalloc() -> Build {
    ground_truth()
        .named("ground_truth_no_pvalloc")
        .flag("-DWITHOUT_PVALLOC")
}

/// How a target is run and what is to be said of it.
struct Run<'a> {
    program: PathBuf,
    preload: Option<PathBuf>,
    /// Call sites in the target.
    sites: usize,
    arguments: &'a [&'a str],
    /// What the announcement names.
    covered: &'a [&'a str],
    /// How many frees may match no block: of blocks from before the attach, or that the C library kept for itself.
    unmatched: u64,
}

impl Run<'_> {
    /// Attaches, lets the target work, compares; frees everything and compares again.
    fn check(&self) -> Result<()> {
        const OPERATIONS: u64 = 400_000;
        let _turn = serial::turn()?;
        let mut target = GroundTruth::start_preloaded(&self.program, self.preload.as_deref(), 3, 1024)?;
        let memtrace = Memtrace::attach(target.pid(), self.arguments)?;
        for covered in self.covered {
            ensure!(
                memtrace.announcement.contains(covered),
                "no {covered} in {}",
                memtrace.announcement
            );
        }
        let books = target.go(OPERATIONS, 21)?;
        ensure!(books.sites.len() == self.sites, "{} sites", books.sites.len());
        memtrace.signal(libc::SIGUSR1)?;
        let heap = memtrace.snapshot("heap-0001.pb.gz")?;
        books.assert_equal(&heap)?;
        let drained = target.drain()?;
        let (heap, _outcome) = memtrace.stop()?;
        drained.assert_equal(&heap)?;
        // A function that frees by calling another one is counted once, if at all.
        let unmatched = unmatched_frees(&heap);
        ensure!(unmatched <= self.unmatched, "{unmatched} unmatched frees");
        target.exit()
    }
}

/// As [`Run::check`], of samples: what their estimates are off by is within bounds, and frees leave nothing.
fn check_sampled(program: &Path, preload: Option<&Path>) -> Result<()> {
    const DISTANCE: f64 = 1024.0;
    let _turn = serial::turn()?;
    let mut target = GroundTruth::start_preloaded(program, preload, 3, 1024)?;
    let memtrace = Memtrace::attach(target.pid(), &["--sample-bytes", "1k"])?;
    let books = target.go(400_000, 22)?;
    memtrace.signal(libc::SIGUSR1)?;
    let sites = memtrace.snapshot("heap-0001.pb.gz")?.by_function("site_");
    for (name, site) in &books.sites {
        let estimate = sites.get(name).copied().unwrap_or_default();
        for (truth, estimate) in [
            (site.alloc_bytes, estimate.alloc_bytes),
            (site.inuse_bytes, estimate.inuse_bytes),
        ] {
            let error = (DISTANCE * truth as f64).sqrt().max(DISTANCE);
            ensure!(
                ((estimate - truth) as f64).abs() < 6.0 * error,
                "{name}: {estimate} instead of {truth} bytes, more than 6 times {error:.0} off"
            );
        }
    }
    target.drain()?;
    let (heap, _outcome) = memtrace.stop()?;
    for (name, site) in heap.by_function("site_") {
        ensure!(
            site.inuse_bytes == 0,
            "{name} still has {} bytes",
            site.inuse_bytes
        );
    }
    target.exit()
}

#[test]
fn operators_are_sampled_once() -> Result<()> {
    let Some(tcmalloc) = library(TCMALLOC).filter(|_| skip::can_trace()) else {
        return Ok(());
    };
    let program = Build::cpp("operators").flags(NO_FRAME_POINTERS).path()?;
    check_sampled(&program, Some(&tcmalloc))?;
    check_sampled(&program, None)
}

/// What the profile says of frees that match no block.
fn unmatched_frees(heap: &Heap) -> u64 {
    let seen = heap
        .comments
        .iter()
        .filter(|comment| comment.contains("frees of blocks"));
    let counts = seen.filter_map(|comment| {
        comment
            .strip_prefix("seen: ")?
            .split(' ')
            .next()?
            .parse::<u64>()
            .ok()
    });
    counts.sum()
}

fn preloaded(name: &str, covered: &[&str]) -> Result<()> {
    let (true, Some(preload)) = (skip::can_trace(), library(name)) else {
        return Ok(());
    };
    let run = Run {
        program: without_pvalloc().path()?,
        preload: Some(preload),
        sites: 72,
        arguments: &[],
        covered,
        unmatched: OLDER_BLOCKS,
    };
    run.check()
}

#[test]
fn jemalloc() -> Result<()> {
    preloaded(
        JEMALLOC,
        &["libjemalloc.so.2: malloc family, operator new/delete, mallocx family"],
    )
}

#[test]
fn tcmalloc() -> Result<()> {
    preloaded(
        TCMALLOC,
        &["malloc family, tc_malloc family, operator new/delete"],
    )
}

#[test]
fn mimalloc() -> Result<()> {
    preloaded(
        MIMALLOC,
        &["malloc family, mi_malloc family, operator new/delete, mi_heap_malloc family"],
    )
}

/// musl has no unwind tables: a stack through its own functions, such as strndup, stops there.
fn musl(name: &str, flags: &[&str], covered: &str) -> Result<()> {
    let (true, Some(_)) = (skip::can_trace(), skip::installed(&["musl-gcc"])) else {
        return Ok(());
    };
    let program = without_pvalloc()
        .named(name)
        .compiler("musl-gcc")
        .flag("-DWITHOUT_STRNDUP")
        .flags(flags);
    let run = Run {
        program: program.path()?,
        preload: None,
        sites: 64,
        arguments: &[],
        covered: &[covered],
        unmatched: OLDER_BLOCKS,
    };
    run.check()
}

#[test]
fn musl_linked_statically() -> Result<()> {
    musl(
        "ground_truth_musl_static",
        &["-static"],
        "ground_truth_musl_static: malloc family",
    )
}

#[test]
fn musl_with_its_own_loader() -> Result<()> {
    musl("ground_truth_musl", &[], "libc.so: malloc family")
}

fn private(prefix: &str, arguments: &[&str]) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let program = ground_truth()
        .named(&format!("ground_truth_{prefix}"))
        .flag(format!("-DALLOCATOR_PREFIX={prefix}"));
    let run = Run {
        program: program.path()?,
        preload: None,
        sites: 80,
        arguments,
        covered: &[&format!("ground_truth_{prefix}: {prefix}malloc family")],
        unmatched: OLDER_BLOCKS,
    };
    run.check()
}

#[test]
fn a_private_allocator() -> Result<()> {
    private("pool_", &["--allocator-prefix", "pool_"])
}

/// jemalloc's prefix is known; whose allocator it is does not matter.
#[test]
fn a_known_prefix() -> Result<()> {
    private("je_", &[])
}

/// Every form of operator new and delete: 16 sites, some of which ask for what cannot be had.
fn operators(preload: Option<&str>, flags: &[&str], covered: &[&str]) -> Result<()> {
    let preload = preload.map(library);
    let (true, Some(preload)) = (
        skip::can_trace(),
        preload.map_or(Some(None), |found| found.map(Some)),
    ) else {
        return Ok(());
    };
    let preloaded = preload.is_some();
    let run = Run {
        program: Build::cpp("operators")
            .flags(NO_FRAME_POINTERS)
            .flags(flags)
            .path()?,
        preload,
        sites: 16,
        arguments: &[],
        covered,
        unmatched: if preloaded { 20 } else { KEPT_BY_GLIBC },
    };
    run.check()
}

#[test]
fn operators_of_libstdcxx() -> Result<()> {
    operators(None, &[], &["libc.so.6: malloc family"])
}

#[test]
fn operators_linked_statically() -> Result<()> {
    operators(None, &["-static"], &["operators: malloc family"])
}

#[test]
fn operators_of_jemalloc() -> Result<()> {
    operators(Some(JEMALLOC), &[], &["operator new/delete"])
}

#[test]
fn operators_of_tcmalloc() -> Result<()> {
    operators(Some(TCMALLOC), &[], &["operator new/delete"])
}

#[test]
fn operators_of_mimalloc() -> Result<()> {
    operators(Some(MIMALLOC), &["-DWITHOUT_FAILURES"], &["operator new/delete"])
}

/// The functions that only this allocator has.
fn own_functions(name: &str, library_name: &str, flags: &[&str], sites: usize) -> Result<()> {
    let (true, Some(_)) = (skip::can_trace(), library(library_name)) else {
        return Ok(());
    };
    let program = Build::c("own_functions")
        .named(name)
        .flags(NO_FRAME_POINTERS)
        .flags(flags)
        .flag(format!("-l:{library_name}"));
    let run = Run {
        program: program.path()?,
        preload: None,
        sites,
        arguments: &[],
        covered: &[],
        unmatched: 20,
    };
    run.check()
}

#[test]
fn own_functions_of_jemalloc() -> Result<()> {
    own_functions("own_functions_jemalloc", JEMALLOC, &[], 5)
}

#[test]
fn own_functions_of_mimalloc() -> Result<()> {
    own_functions("own_functions_mimalloc", MIMALLOC, &["-DMIMALLOC"], 14)
}

fn rust(feature: &str, covered: &[&str]) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let run = Run {
        program: compile::rust_allocators(feature)?,
        preload: None,
        sites: 12,
        arguments: &[],
        covered,
        unmatched: 20,
    };
    run.check()
}

#[test]
fn rust_with_jemalloc() -> Result<()> {
    rust(
        "jemalloc",
        &["_rjem_calloc, _rjem_malloc, _rjem_realloc, _rjem_mallocx family"],
    )
}

#[test]
fn rust_with_mimalloc() -> Result<()> {
    rust("mimalloc", &["mi_malloc_aligned", "mi_zalloc_aligned", "mi_free"])
}

/// A prefix that nothing has is told, and everything else is traced all the same.
#[test]
fn a_prefix_that_nothing_has() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let target = GroundTruth::start(&ground_truth().path()?, 1, 64)?;
    let memtrace = Memtrace::attach(target.pid(), &["--allocator-prefix", "nobodys_"])?;
    ensure!(
        memtrace.announcement.contains("malloc family"),
        "{}",
        memtrace.announcement
    );
    let (heap, outcome) = memtrace.stop()?;
    ensure!(outcome.stderr.contains("nobodys_malloc"), "{}", outcome.stderr);
    let said = heap
        .comments
        .iter()
        .any(|comment| comment.contains("nobodys_malloc"));
    ensure!(said, "{}", heap.comments.join("\n"));
    target.exit()
}
