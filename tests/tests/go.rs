//! Go programs: memtrace's profiles of the heap and of the goroutines against what the programs themselves print.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use memtrace_tests::{
    Result,
    driven::{self, Driven},
    go_build::{GoProgram, Toolchain, VERSIONS, Variant},
    go_profile::{GoHeap, Goroutines, Site, WaitKey, read_threads},
    go_text::{HeapText, goroutines, waits},
    kernel,
    profile::{Heap, Values},
    serial, skip,
    tracer::{Memtrace, Outcome},
};

const PROGRAM: &str = "go_books";
/// What is compared.
const PROFILES: [&str; 2] = ["--profiles", "heap,goroutine"];
/// The goroutine that prints the books at one time and reads its stdin at another goes through the last of these; the others
/// are its innermost function when it prints.
const PRINTING: [&str; 3] = ["main.print", "main.books", "main.serve"];

/// What a program prints of itself.
struct Books {
    rate: i64,
    heap: BTreeMap<Site, Values>,
    goroutines: BTreeMap<Site, i64>,
    waits: BTreeMap<WaitKey, i64>,
}

impl Books {
    /// Has the program collect garbage and print.
    fn of(target: &mut Driven) -> Result<Self> {
        target.tell("books")?;
        let heap = lines(target)?;
        let heap = HeapText::parse(heap.iter().map(String::as_str))?;
        let stacks = lines(target)?;
        let mut goroutines = goroutines(stacks.iter().map(String::as_str))?;
        goroutines.retain(|site, _| !site.contains("main.serve"));
        let each = lines(target)?;
        Ok(Self {
            rate: heap.rate,
            heap: heap.scaled(),
            goroutines,
            waits: without_printing(waits(each.iter().map(String::as_str))?),
        })
    }

    fn check_heap(&self, heap: &GoHeap) -> Result<()> {
        ensure!(
            heap.rate == self.rate,
            "the period is {}, the rate {}",
            heap.rate,
            self.rate
        );
        driven::check(differences(&self.heap, &heap.sites), &heap.comments)
    }

    fn check_goroutines(&self, profile: &Goroutines) -> Result<()> {
        // Up to Go 1.22 runtime/pprof shows 32 frames at most; memtrace shows all.
        let most = self.goroutines.keys().map(Site::depth).max().unwrap_or_default();
        let mut sites = BTreeMap::new();
        for (site, count) in profile.sites() {
            if !site.contains("main.serve") {
                *sites.entry(site.innermost(most)).or_default() += count;
            }
        }
        driven::check(differences(&self.goroutines, &sites), &profile.comments)?;
        let waits = without_printing(profile.waits());
        driven::check(driven::differences(&self.waits, &waits), &profile.comments)
    }
}

fn lines(target: &mut Driven) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    target.read_books(|line| {
        lines.push(line.to_owned());
        Ok(())
    })?;
    Ok(lines)
}

fn without_printing(mut waits: BTreeMap<WaitKey, i64>) -> BTreeMap<WaitKey, i64> {
    waits.retain(|key, _| !PRINTING.contains(&key.function.as_str()));
    waits
}

/// As [`driven::differences`], with sites as a person reads them.
fn differences<V: Copy + std::fmt::Debug + Default + PartialEq>(
    books: &BTreeMap<Site, V>,
    profile: &BTreeMap<Site, V>,
) -> Vec<String> {
    let named = |values: &BTreeMap<Site, V>| -> BTreeMap<String, V> {
        let values = values.iter();
        values.map(|(site, value)| (site.to_string(), *value)).collect()
    };
    driven::differences(&named(books), &named(profile))
}

fn start(toolchain: &Toolchain, variant: Variant, arguments: &[&str]) -> Result<Driven> {
    let program = GoProgram::new(PROGRAM).path(toolchain, variant)?;
    Driven::start(Command::new(program).args(arguments))
}

// ---------------------------------------------------------------------------------------------- the matrix

/// Compares a snapshot and the final profiles.
fn compare(toolchain: &Toolchain, variant: Variant, arguments: &[&str]) -> Result<()> {
    let mut target = start(toolchain, variant, arguments)?;
    let memtrace = Memtrace::attach(target.pid(), &PROFILES)?;
    let books = Books::of(&mut target)?;
    ensure!(
        books.heap.len() > 30,
        "{} sites only: a poor comparison",
        books.heap.len()
    );
    memtrace.signal(libc::SIGUSR1)?;
    let heap = memtrace.profile("heap-0001.pb.gz", GoHeap::read)?;
    books.check_heap(&heap).context("the heap in a snapshot")?;
    let goroutines = memtrace.profile("goroutine-0001.pb.gz", Goroutines::read)?;
    books
        .check_goroutines(&goroutines)
        .context("the goroutines in a snapshot")?;

    let outcome = memtrace.interrupt()?;
    let heap = outcome.profile("heap.pb.gz", GoHeap::read)?;
    books.check_heap(&heap).context("the heap")?;
    let goroutines = outcome.profile("goroutine.pb.gz", Goroutines::read)?;
    books.check_goroutines(&goroutines).context("the goroutines")?;
    target.exit()
}

/// Compares programs that a version of Go built in each way.
fn matrix(version: &str) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(toolchain) = Toolchain::of(version)? else {
        return Ok(());
    };
    let _turn = serial::turn()?;
    for variant in Variant::ALL {
        compare(&toolchain, variant, &[]).with_context(|| format!("{toolchain}, {variant:?}"))?;
    }
    Ok(())
}

#[test]
fn go_1_19_prints_the_same() -> Result<()> {
    matrix("1.19")
}

#[test]
fn go_1_21_prints_the_same() -> Result<()> {
    matrix("1.21")
}

#[test]
fn go_1_22_prints_the_same() -> Result<()> {
    matrix("1.22")
}

#[test]
fn go_1_23_prints_the_same() -> Result<()> {
    matrix("1.23")
}

#[test]
fn go_1_24_prints_the_same() -> Result<()> {
    matrix("1.24")
}

#[test]
fn go_1_25_prints_the_same() -> Result<()> {
    matrix("1.25")
}

#[test]
fn go_1_26_prints_the_same() -> Result<()> {
    matrix("1.26")
}

#[test]
fn go_1_27_prints_the_same() -> Result<()> {
    matrix("1.27")
}

// ---------------------------------------------------------------------------------------------- without memtrace

/// The texts say what the program's own profiles say: what memtrace is compared with is read rightly.
#[test]
fn texts_agree_with_the_programs_own_profiles() -> Result<()> {
    let _turn = serial::turn()?;
    for version in VERSIONS {
        let Some(toolchain) = Toolchain::of(version)? else {
            continue;
        };
        let mut target = start(&toolchain, Variant::Default, &[])?;
        let books = Books::of(&mut target)?;
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        target.tell(&format!("profiles {}", path.display()))?;
        target.expect("end")?;
        let context = || toolchain.to_string();
        books
            .check_heap(&GoHeap::read_any(&path.join("heap.pb.gz"))?)
            .with_context(context)?;
        let mut sites = Goroutines::read(&path.join("goroutine.pb.gz"))?.sites();
        sites.retain(|site, _| !site.contains("main.serve"));
        driven::check(differences(&books.goroutines, &sites), &[]).with_context(context)?;
        target.exit()?;
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- the newest and the oldest

/// Runs a test with a program that a version of Go built, if it can be had.
fn with_version(
    version: &str,
    variant: Variant,
    arguments: &[&str],
    test: impl Fn(&mut Driven) -> Result<()>,
) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let Some(toolchain) = Toolchain::of(version)? else {
        return Ok(());
    };
    let mut target = start(&toolchain, variant, arguments)?;
    test(&mut target).with_context(|| toolchain.to_string())?;
    target.exit()
}

fn with_newest_and_oldest(
    variant: Variant,
    arguments: &[&str],
    test: impl Fn(&mut Driven) -> Result<()>,
) -> Result<()> {
    for version in ["1.19", "1.27"] {
        with_version(version, variant, arguments, &test)?;
    }
    Ok(())
}

#[test]
fn the_default_rate_is_scaled() -> Result<()> {
    with_newest_and_oldest(Variant::Default, &["default"], |target| {
        let memtrace = Memtrace::attach(target.pid(), &PROFILES)?;
        let books = Books::of(target)?;
        ensure!(books.rate == 512 * 1024, "the rate is {}", books.rate);
        let outcome = memtrace.interrupt()?;
        books.check_heap(&outcome.profile("heap.pb.gz", GoHeap::read)?)
    })
}

/// What a run of memtrace with these arguments finds of the blocks that no collection has seen.
fn more_blocks(target: &mut Driven, arguments: &[&str]) -> Result<Values> {
    let memtrace = Memtrace::attach(target.pid(), arguments)?;
    let heap = memtrace.interrupt()?.profile("heap.pb.gz", GoHeap::read)?;
    let published = heap.through("main.recurse");
    ensure!(published.inuse_bytes > 0, "what is published is missing");
    Ok(heap.through("main.moreBlocks"))
}

#[test]
fn what_no_collection_has_seen_is_shown_on_demand() -> Result<()> {
    with_newest_and_oldest(Variant::Default, &[], |target| {
        Books::of(target)?;
        target.tell("more")?;
        let answer = target.expect("end ")?;
        let (count, size) = answer.split_once(' ').context("one number")?;
        let (count, size): (f64, f64) = (count.parse()?, size.parse()?);
        let published = more_blocks(target, &["--profiles", "heap"])?;
        ensure!(published == Values::default(), "published: {published:?}");
        let now = more_blocks(target, &["--profiles", "heap", "--go-heap", "now"])?;
        // A block is sampled with this probability: five standard errors of their number, scaled up.
        let probability = 1.0 - (-size / 4096.0).exp();
        let error = 5.0 * (count * (1.0 - probability) / probability).sqrt();
        ensure!(
            (now.inuse_objects as f64 - count).abs() <= error,
            "{now:?} instead of {count} objects, give or take {error:.0}"
        );
        ensure!(
            (now.inuse_bytes as f64 - count * size).abs() <= error * size,
            "{now:?} instead of {count} times {size} bytes"
        );
        Ok(())
    })
}

#[test]
fn c_code_has_a_profile_of_its_own() -> Result<()> {
    with_newest_and_oldest(Variant::Cgo, &[], |target| {
        Books::of(target)?;
        let memtrace = Memtrace::attach(target.pid(), &["--profiles", "heap"])?;
        target.tell("native")?;
        let bytes: i64 = target.expect("end ")?.parse()?;
        let outcome = memtrace.interrupt()?;
        let native = outcome.profile("heap-native.pb.gz", Heap::read)?;
        let held: i64 = native
            .through("native_hold")
            .map(|stack| stack.values.inuse_bytes)
            .sum();
        ensure!(held == bytes, "C code holds {held} bytes instead of {bytes}");
        let heap = outcome.profile("heap.pb.gz", GoHeap::read)?;
        ensure!(heap.through("native_hold") == Values::default());
        ensure!(heap.through("main.recurse").inuse_bytes > 0);
        Ok(())
    })
}

/// How many return probes memtrace holds, if the kernel says, and what it finds when C code allocates while the collector is at
/// work.
fn return_probes(target: &mut Driven) -> Result<(Option<usize>, Outcome)> {
    let memtrace = Memtrace::attach(target.pid(), &["--profiles", "heap"])?;
    let held = kernel::probes_held_by(memtrace.pid())?;
    if let Some((probes, _)) = held {
        ensure!(probes > 0, "C's allocator is not probed");
    }
    begin_stress(target, ALONE)?;
    end_stress(target)?;
    target.tell("native")?;
    target.expect("end ")?;
    Ok((held.map(|(_, returns)| returns), memtrace.interrupt()?))
}

/// Insists that the blocks that C code holds are known, and that those of the stress were seen.
fn check_native(outcome: &Outcome) -> Result<()> {
    let native = outcome.profile("heap-native.pb.gz", Heap::read)?;
    let mut held = Values::default();
    for stack in native.through("native_hold") {
        held.add(&stack.values);
    }
    ensure!(
        (held.inuse_objects, held.inuse_bytes) == (100, 100 * 4096),
        "C code holds {held:?}"
    );
    let all = native.total();
    ensure!(all.alloc_objects > 300, "C code allocated {all:?} only");
    Ok(())
}

#[test]
fn a_go_file_has_no_return_probe() -> Result<()> {
    with_newest_and_oldest(Variant::StaticCgo, &[], |target| {
        let (returns, outcome) = return_probes(target)?;
        ensure!(
            returns.unwrap_or(0) == 0,
            "{returns:?} return probes in a file with Go code"
        );
        check_native(&outcome)?;
        // calloc jumps through a table, so where it returns cannot be told.
        let why = "in a file with Go code";
        let report = outcome.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(
            report.contains("malloc family") && (report.contains(why) || !report.contains("calloc")),
            "{}",
            outcome.stdout
        );
        Ok(())
    })
}

/// libc is a file of its own, and its code runs on the stacks of threads.
#[test]
fn libc_of_a_go_program_has_return_probes() -> Result<()> {
    with_version("1.27", Variant::Cgo, &[], |target| {
        let (returns, outcome) = return_probes(target)?;
        ensure!(
            returns.is_none_or(|returns| returns > 0),
            "no return probe in libc: the other test would prove nothing"
        );
        check_native(&outcome)
    })
}

/// What memtrace says of the threads, and how many there are, when none came or went meanwhile.
fn threads_at_rest(target: &Driven) -> Result<(BTreeMap<String, i64>, usize)> {
    const ATTEMPTS: usize = 10;
    let count = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/task", target.pid()))?.count());
    for _ in 0..ATTEMPTS {
        let before = count()?;
        let memtrace = Memtrace::attach(target.pid(), &["--profiles", "threadcreate"])?;
        let threads = memtrace
            .interrupt()?
            .profile("threadcreate.pb.gz", read_threads)?;
        if before == count()? {
            return Ok((threads, before));
        }
    }
    bail!("threads came or went each time");
}

#[test]
fn threads_are_counted_by_what_holds_them() -> Result<()> {
    for (variant, cgo) in [(Variant::Default, 0), (Variant::Cgo, 1)] {
        with_newest_and_oldest(variant, &[], |target| {
            let (threads, all) = threads_at_rest(target)?;
            let of = |hold: &str| threads.get(hold).copied().unwrap_or_default();
            ensure!(
                threads.values().sum::<i64>() == i64::try_from(all)?,
                "{all}: {threads:?}"
            );
            ensure!(of("locked") == 3, "three goroutines are locked: {threads:?}");
            // One reads its stdin, one a pipe.
            ensure!(of("syscall") == 2, "two goroutines are in a call: {threads:?}");
            ensure!(of("cgo") == cgo, "{cgo} goroutines are in C: {threads:?}");
            Ok(())
        })?;
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- under stress

/// With which versions, and for how long the program collects garbage and memtrace reads, in each of two views of the heap:
/// a minute with the newest.
const STRESS: [(&str, Duration); 2] = [
    ("1.27", Duration::from_secs(30)),
    ("1.19", Duration::from_secs(8)),
];
/// How long the program does the same without memtrace, and with it for other purposes.
const ALONE: Duration = Duration::from_secs(2);
/// The functions that allocate blocks of one size each (bytes).
const STRESS_SITES: [(&str, i64); 4] = [
    ("main.stress256", 256),
    ("main.stress1024", 1024),
    ("main.stress4096", 4096),
    ("main.stress65536", 65536),
];

/// Whether a heap says that something of it is not shown, since the program was counting in it whenever it was read.
fn is_torn(heap: &GoHeap) -> bool {
    let mut comments = heap.comments.iter();
    comments.any(|comment| comment.contains("changed whenever they were read"))
}

/// Insists that nothing was unallocated since the snapshot before, and that blocks have the sizes they can have.
fn check_snapshot(heap: &GoHeap, before: Option<&GoHeap>) -> Result<()> {
    let none = BTreeMap::new();
    let before = before.filter(|_| !is_torn(heap));
    for (site, earlier) in before.map_or(&none, |before| &before.sites) {
        let later = heap.sites.get(site).copied().unwrap_or_default();
        ensure!(
            later.alloc_objects >= earlier.alloc_objects && later.alloc_bytes >= earlier.alloc_bytes,
            "{site}: {later:?} after {earlier:?}"
        );
    }
    for (function, size) in STRESS_SITES {
        for (site, values) in heap.sites.iter().filter(|(site, _)| site.contains(function)) {
            // Blocks and bytes are scaled and rounded on their own.
            let off = values.alloc_bytes - values.alloc_objects * size;
            ensure!(
                (0..=size).contains(&off),
                "{site}: {values:?} of {size} bytes each"
            );
        }
    }
    Ok(())
}

fn begin_stress(target: &mut Driven, length: Duration) -> Result<Instant> {
    target.tell(&format!("stress {}", length.as_millis()))?;
    Ok(Instant::now() + length)
}

/// Insists that the program, which has checked its blocks and the answers to its requests, found no error; returns the number of
/// requests.
fn end_stress(target: &mut Driven) -> Result<u64> {
    let answer = target.expect("end ")?;
    let numbers: Vec<u64> = answer
        .split(' ')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let [damaged, requests, failed] = numbers[..] else {
        bail!("not three numbers: {answer}")
    };
    ensure!(
        damaged == 0 && failed == 0,
        "{damaged} blocks of the program were damaged, {failed} of {requests} requests failed"
    );
    ensure!(requests > 10, "{requests} requests only");
    Ok(requests)
}

/// Takes one snapshot after the other while the program allocates, collects and asks its server; returns how many.
fn read_under_stress(target: &mut Driven, view: &str, length: Duration) -> Result<u32> {
    let memtrace = Memtrace::attach(target.pid(), &["--profiles", "heap,goroutine", "--go-heap", view])?;
    let end = begin_stress(target, length)?;
    let (mut last, mut number, mut fewer, mut torn) = (None, 0, 0, 0);
    while Instant::now() < end {
        number += 1;
        memtrace.signal(libc::SIGUSR1)?;
        let heap = memtrace.profile(&format!("heap-{number:04}.pb.gz"), GoHeap::read)?;
        check_snapshot(&heap, last.as_ref()).with_context(|| format!("snapshot {number}"))?;
        let goroutines = memtrace.profile(&format!("goroutine-{number:04}.pb.gz"), Goroutines::read)?;
        let parked = goroutines.through("main.waitToReceive");
        // Seven, and four that goroutines made. One whose stack the collector moves at that moment may be left out.
        ensure!(parked <= 11, "{parked} goroutines wait in main.waitToReceive");
        fewer += u32::from(parked < 11);
        torn += u32::from(is_torn(&heap));
        last = Some(heap);
        sleep(Duration::from_millis(20));
    }
    let requests = end_stress(target)?;
    memtrace.interrupt()?.check_code()?;
    ensure!(
        fewer * 10 <= number && torn * 10 <= number,
        "of {number} snapshots goroutines are missing in {fewer}, buckets in {torn}"
    );
    let last = last.context("no snapshot")?;
    for (function, _) in STRESS_SITES {
        ensure!(last.through(function).alloc_objects > 0, "{function} is missing");
    }
    println!(
        "{view}: {number} snapshots, {fewer} with fewer goroutines, {torn} with fewer buckets; {requests} requests"
    );
    Ok(number)
}

#[test]
fn nothing_torn_is_shown_under_stress() -> Result<()> {
    for (version, length) in STRESS {
        with_version(version, Variant::Default, &[], |target| {
            // The same errors with memtrace as without: none.
            begin_stress(target, ALONE)?;
            end_stress(target).context("without memtrace")?;
            for view in ["published", "now"] {
                let snapshots = read_under_stress(target, view, length).with_context(|| view.to_owned())?;
                ensure!(snapshots > 5, "{snapshots} snapshots only");
            }
            Ok(())
        })?;
    }
    Ok(())
}
