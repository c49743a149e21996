//! Sampling by bytes: estimates are as near to the truth as theory says, and what is freed is taken out again exactly.

use std::{collections::BTreeMap, process::Command};

use anyhow::Context;
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile::{Build, NO_FRAME_POINTERS},
    ground::GroundTruth,
    profile::{Heap, Values},
    serial, skip,
    tracer::Memtrace,
};

/// Sites in `targets/sampling.c`: three for each of ten runs.
const SITES: usize = 30;
/// The mean distance between two samples (bytes): so short that a second's work is precise enough.
const DISTANCE: u32 = 256;
/// A normal variable lies within so many standard deviations with a probability of 99.9%.
const BOUNDS: f64 = 3.2905;
/// None of all estimates lies beyond this in one of a million tests, their skew included.
const FAR: f64 = 6.0;
/// With 0.12 sites beyond [`BOUNDS`] expected, so many are in one of 100,000 tests.
const TOO_MANY: usize = 4;

/// What a site allocated and holds, and the variances of estimates of these four values.
struct Truth {
    values: [f64; 4],
    variances: [f64; 4],
}

/// A running `targets/sampling.c`.
struct Target(Child);

impl Target {
    fn start() -> Result<Self> {
        let program = Build::c("sampling").flags(NO_FRAME_POINTERS).flag("-lm").path()?;
        let mut child = Child::spawn(Command::new(program).arg(DISTANCE.to_string()))?;
        child.stdout.expect("ready ", PATIENCE)?;
        Ok(Self(child))
    }

    fn books(&mut self, command: &str) -> Result<BTreeMap<String, Truth>> {
        self.0.tell(command)?;
        let mut books = BTreeMap::new();
        loop {
            let line = self.0.stdout.next(PATIENCE)?;
            let (name, numbers) = line.split_once(' ').context("not a line of the books")?;
            if name == "end" {
                return Ok(books);
            }
            let numbers: Vec<f64> = numbers.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let (values, variances) = numbers.split_at(4);
            let truth = Truth {
                values: values.try_into()?,
                variances: variances.try_into()?,
            };
            books.insert(name.to_owned(), truth);
        }
    }
}

fn four(values: &Values) -> [f64; 4] {
    [
        values.alloc_objects,
        values.alloc_bytes,
        values.inuse_objects,
        values.inuse_bytes,
    ]
    .map(|value| value as f64)
}

/// By how many standard deviations an estimate is off, at most, of a site's four values.
fn deviation(truth: &Truth, estimate: &[f64; 4]) -> f64 {
    let values = truth.values.iter().zip(estimate).zip(&truth.variances);
    values
        .map(|((value, estimate), variance)| {
            // Estimates are rounded to whole numbers.
            ((estimate - value).abs() - 0.5).max(0.0) / variance.max(0.25).sqrt()
        })
        .fold(0.0, f64::max)
}

fn assert_near(books: &BTreeMap<String, Truth>, heap: &Heap) {
    let profiled = heap.by_function("site_");
    let mut outside = Vec::new();
    let mut sums = [(0.0, 0.0, 0.0); 4];
    for (name, truth) in books {
        let estimate = profiled.get(name).map(four).unwrap_or_default();
        let deviation = deviation(truth, &estimate);
        assert!(
            deviation < FAR,
            "{name} is off by {deviation:.1} standard deviations: {estimate:?} instead of {:?}",
            truth.values
        );
        if deviation > BOUNDS {
            outside.push(format!("{name} by {deviation:.2}"));
        }
        for (i, (value, estimated, variance)) in sums.iter_mut().enumerate() {
            *value += truth.values[i];
            *estimated += estimate[i];
            *variance += truth.variances[i];
        }
    }
    assert!(
        outside.len() < TOO_MANY,
        "outside of their 99.9% bounds: {}",
        outside.join(", ")
    );
    for (i, (value, estimated, variance)) in sums.into_iter().enumerate() {
        let error = estimated / value - 1.0;
        // At most 0.24%, of live objects.
        let standard_error = variance.sqrt() / value;
        println!(
            "value {i}: mean error {:+.3}%, standard error {:.3}%",
            error * 100.0,
            standard_error * 100.0
        );
        assert!(error.abs() < 0.01, "value {i} is off by {:+.2}%", error * 100.0);
        assert!(error.abs() < 5.0 * standard_error, "value {i} is biased");
    }
}

/// Of every site: threads that have ended leave blocks of the C library's behind, for the next.
fn assert_drained(heap: &Heap) {
    let sites = heap.by_function("site_");
    assert!(!sites.is_empty());
    for (name, values) in sites {
        assert_eq!((values.inuse_objects, values.inuse_bytes), (0, 0), "{name}");
    }
}

fn assert_comment(heap: &Heap, text: &str) {
    let comments = heap.comments.join("\n");
    assert!(comments.contains(text), "no {text:?} in\n{comments}");
}

#[test]
fn estimates_are_within_their_bounds_and_drain_to_nothing() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let mut target = Target::start()?;
    let distance = DISTANCE.to_string();
    let options = ["--sample-bytes", &distance, "--max-live", "200000"];
    let memtrace = Memtrace::attach(target.0.pid(), &options)?;

    let books = target.books("go 1")?;
    assert_eq!(books.len(), SITES);
    memtrace.signal(libc::SIGUSR1)?;
    let heap = memtrace.snapshot("heap-0001.pb.gz")?;
    assert_near(&books, &heap);
    assert_comment(&heap, &format!("sampled: one in {DISTANCE} bytes"));
    assert_comment(&heap, "nothing was lost");

    target.books("drain")?;
    let (heap, outcome) = memtrace.stop()?;
    assert_drained(&heap);
    assert_eq!(heap.period, i64::from(DISTANCE));
    let comments = heap.comments.join("\n");
    assert!(
        !comments.contains("seen:"),
        "nothing strange was seen:\n{comments}"
    );
    assert!(outcome.stdout.contains("estimates"), "{}", outcome.stdout);
    Ok(())
}

/// Every function of the allocator, blocks that other threads free or reallocate, calls that fail.
#[test]
fn samples_of_four_threads_drain_to_nothing() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let program = Build::c("ground_truth").flags(NO_FRAME_POINTERS).path()?;
    let mut target = GroundTruth::start(&program, 4, 1024)?;
    let memtrace = Memtrace::attach(target.pid(), &["--sample-bytes", "1k"])?;
    let books = target.go(500_000, 11)?;
    memtrace.signal(libc::SIGUSR1)?;
    let heap = memtrace.snapshot("heap-0001.pb.gz")?;

    let truth = |value: fn(&Values) -> i64| books.sites.values().map(value).sum::<i64>() as f64;
    let estimate = heap.total();
    for (truth, estimate) in [
        (truth(|site| site.alloc_bytes), estimate.alloc_bytes),
        (truth(|site| site.inuse_bytes), estimate.inuse_bytes),
    ] {
        // n bytes are estimated from n/N samples at most but for large blocks, each of which is off by N at most.
        let error = (truth * 1024.0).sqrt();
        assert!(
            (estimate as f64 - truth).abs() < FAR * error,
            "{estimate} instead of {truth}, off by more than {FAR} times {error}"
        );
    }

    target.drain()?;
    let (heap, _outcome) = memtrace.stop()?;
    assert_drained(&heap);
    assert_comment(&heap, "nothing was lost");
    target.exit()
}
