//! Who touches new memory, without a probe in the allocator; and where a process's resident memory is.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, bail, ensure};
use memtrace_tests::{
    Result,
    compile::{self, Build, NO_FRAME_POINTERS},
    driven::Driven,
    kernel,
    mmap_profile::{Growth, NewMemory},
    serial, skip,
    tracer::Memtrace,
};

/// Estimates are within so many standard errors: all of a test's together are in 999 of 1,000 runs.
const BOUNDS: f64 = 4.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Starts a target that makes a file of its own.
fn start(name: &str) -> Result<Driven> {
    let program = Build::c(name).flags(NO_FRAME_POINTERS).path()?;
    Driven::start(Command::new(program).arg(compile::cache_directory()?))
}

/// Has `targets/growth.c` touch what it does, and returns its books.
fn go(target: &mut Driven) -> Result<BTreeMap<String, NewMemory>> {
    target.tell("go")?;
    let mut books = BTreeMap::new();
    target.read_books(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [site, touched, brk, mapped] = words[..] else {
            bail!("{} words instead of 4", words.len());
        };
        let new = NewMemory {
            touched: touched.parse()?,
            brk: brk.parse()?,
            mapped: mapped.parse()?,
        };
        books.insert(site.to_owned(), new);
        Ok(())
    })?;
    Ok(books)
}

/// How far off an estimate of so many bytes may be. Samples that come by chance are Poisson's: n of them, which stand
/// for `period` bytes each, have a standard error of √n. One sample more or less is rounding.
fn tolerance(touched: i64, period: f64) -> f64 {
    BOUNDS * (touched as f64 * period).sqrt() + period
}

fn assert_near(books: &BTreeMap<String, NewMemory>, growth: &Growth) -> Result<()> {
    let profiled = growth.by_site("site_");
    let period = growth.period as f64;
    let comments = growth.comments.join("\n");
    ensure!(period >= 4096.0, "the period is {period} bytes\n{comments}");
    let unknown: Vec<_> = profiled
        .keys()
        .filter(|site| !books.contains_key(*site))
        .collect();
    ensure!(unknown.is_empty(), "unknown sites: {unknown:?}");
    let mut differences = Vec::new();
    for (site, expected) in books {
        let found = profiled.get(site).copied().unwrap_or_default();
        let off = (found.touched - expected.touched).abs() as f64;
        let is_near = off <= tolerance(expected.touched, period);
        if !is_near || (found.brk, found.mapped) != (expected.brk, expected.mapped) {
            differences.push(format!("{site}: books {expected:?}, profile {found:?}"));
        }
    }
    ensure!(
        differences.is_empty(),
        "period {period}:\n{}\n{comments}",
        differences.join("\n")
    );
    let sum = |sites: &BTreeMap<String, NewMemory>| sites.values().map(|new| new.touched).sum::<i64>();
    let (truth, estimate) = (sum(books), sum(&profiled));
    ensure!(
        (estimate - truth).abs() as f64 <= tolerance(truth, period),
        "{estimate} instead of {truth} bytes in all, period {period}\n{comments}"
    );
    Ok(())
}

#[test]
fn new_memory_is_found_where_it_is_touched() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start("growth")?;
    let memtrace = Memtrace::attach(target.pid(), &["--growth"])?;
    // One that tells of new libraries, none in the allocator.
    let probes = kernel::patched_addresses(target.pid())?;
    ensure!(probes.len() <= 1, "probes in the program: {probes:x?}");
    let books = go(&mut target)?;
    memtrace.signal(libc::SIGUSR1)?;
    let growth = memtrace.profile("growth-0001.pb.gz", Growth::read)?;
    assert_near(&books, &growth)?;
    let outcome = memtrace.interrupt()?;
    let growth = outcome.profile("growth.pb.gz", Growth::read)?;
    assert_near(&books, &growth)?;
    ensure!(
        outcome.stdout.contains("of which page faults seen explain"),
        "the report compares nothing:\n{}",
        outcome.stdout
    );
    ensure!(
        !outcome.output().join("heap.pb.gz").exists(),
        "there is a heap profile, but no probes were set for one"
    );
    target.exit()
}

/// The reference itself: what is known beforehand is in its books.
#[test]
fn the_books_of_growth() -> Result<()> {
    let mut target = start("growth")?;
    let books = go(&mut target)?;
    for (site, touched) in [
        ("site_write", 48.0),
        ("site_write_again", 0.0),
        ("site_read_call", 48.0),
        ("site_read_file", 0.0),
        ("site_write_in_thread", 96.0),
    ] {
        let new = books.get(site).with_context(|| format!("no {site}"))?;
        ensure!(new.touched as f64 == touched * MIB, "{site}: {new:?}");
    }
    let blocks = books["site_malloc"].touched + books["site_write_blocks"].touched;
    ensure!((blocks as f64 - 64.0 * MIB).abs() < MIB, "{blocks} bytes");
    Ok(())
}

/// The report's section on memory: each part (bytes) with what it is, and what they add up to.
#[derive(Debug)]
struct Memory {
    parts: Vec<(f64, String)>,
    rss: f64,
}

impl Memory {
    /// Reads lines `64.0 MiB  51%  what it is`, the last of which is of all.
    fn read(report: &str) -> Result<Self> {
        let lines = report.lines().skip_while(|line| line.trim() != "Memory");
        let mut parts = Vec::new();
        for line in lines.skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [number, unit, share, what @ ..] = &words[..] else {
                continue;
            };
            let (Ok(number), true) = (number.parse::<f64>(), share.ends_with('%')) else {
                continue;
            };
            let bytes = number * bytes_of(unit)?;
            if what.starts_with(&["resident", "in", "all,"]) {
                return Ok(Self { parts, rss: bytes });
            }
            parts.push((bytes, what.join(" ").to_lowercase()));
        }
        bail!("no section on memory in the report:\n{report}")
    }

    /// The bytes of the parts of which the text has this word.
    fn of(&self, word: &str) -> f64 {
        let parts = self.parts.iter().filter(|(_, what)| what.contains(word));
        parts.map(|(bytes, _)| bytes).sum()
    }
}

fn bytes_of(unit: &str) -> Result<f64> {
    let units = ["B", "KiB", "MiB", "GiB"];
    let power = units.iter().position(|name| *name == unit);
    let power = power.with_context(|| format!("{unit:?} is no unit"))?;
    Ok(1024_f64.powi(i32::try_from(power)?))
}

/// Resident bytes, counted page by page.
fn rss(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no Rss in smaps_rollup")?
        .parse()?;
    Ok(kib * 1024.0)
}

#[test]
fn the_parts_of_resident_memory_add_up() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = start("holds")?;
    let memtrace = Memtrace::attach(target.pid(), &[])?;
    target.tell("hold")?;
    target.expect("held")?;
    let truth = rss(target.pid())?;
    let outcome = memtrace.interrupt()?;
    outcome.check_code()?;
    let memory = Memory::read(&outcome.stdout)?;
    // A number with three digits is off by half a unit of the last one: 0.05 MiB, or 0.5 MiB of the sum.
    ensure!(
        (memory.rss - truth).abs() < MIB,
        "{truth} bytes are resident: {memory:?}"
    );
    let sum: f64 = memory.parts.iter().map(|(bytes, _)| bytes).sum();
    ensure!(
        (sum - memory.rss).abs() < MIB,
        "the parts are {sum} bytes: {memory:?}"
    );
    for (what, least) in [
        // Of the block of 256 MiB, nothing was touched.
        ("live heap blocks", 64.0),
        ("heap from before", 32.0),
        ("mapped since", 32.0),
        ("stack", 2.0),
        ("files:", 16.0),
    ] {
        let found = memory.of(what) / MIB;
        ensure!(
            (least - 0.5..least + 4.0).contains(&found),
            "{what}: {found:.1} MiB instead of {least:.1} and a little: {memory:?}"
        );
    }
    Ok(())
}
