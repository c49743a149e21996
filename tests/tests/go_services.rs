//! Real Go services under load, with pprof compiled in and without: gorilla/mux, and Fiber 2 and 3.

use std::{net::SocketAddr, process::Command, thread::sleep, time::Duration};

use anyhow::{Context, bail, ensure};
use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    driven,
    go_build::{GoProgram, Toolchain, Variant},
    go_profile::{GoHeap, Goroutines},
    go_runs::growing,
    go_text::{HeapText, goroutines},
    net, serial, skip,
    tracer::{Memtrace, Outcome},
};

const MODULE: &str = "go_services";
/// A release that Fiber 3 can be built with.
const VERSION: &str = "1.26";
/// What leaks: orders, and goroutines.
const AUDIT: &str = "go_services/shop.(*Audit).remember";
const CONFIRMATION: &str = "go_services/shop.awaitConfirmation";

/// How many clients at once, and how often each fetches every page.
const WORKERS: i64 = 16;
const ROUNDS: i64 = 150;
/// How often they come back while a service is watched that has no pprof.
const LOADS: i64 = 5;
/// How often a comparison is tried: a collection may come between two looks.
const ATTEMPTS: u32 = 5;

/// A running service.
struct Service {
    process: Child,
    address: SocketAddr,
    toolchain: Toolchain,
}

impl Service {
    fn start(toolchain: Toolchain, program: &GoProgram, variant: Variant) -> Result<Self> {
        let mut process = Child::spawn(&mut Command::new(program.path(&toolchain, variant)?))?;
        let address = process.stdout.expect("listening ", PATIENCE)?.parse()?;
        net::await_server(address)?;
        Ok(Self {
            process,
            address,
            toolchain,
        })
    }

    /// Has all clients fetch all pages, and insists that each was answered.
    fn load(&self) -> Result<()> {
        let client = GoProgram::new(MODULE).package("load");
        let mut command = Command::new(client.path(&self.toolchain, Variant::Default)?);
        command.args([self.address.to_string(), WORKERS.to_string(), ROUNDS.to_string()]);
        let mut client = Child::spawn(&mut command)?;
        let done = client.stdout.expect("done ", PATIENCE)?;
        let expected = format!("{} 0", WORKERS * ROUNDS * 4);
        ensure!(
            done == expected,
            "answered and failed: {done} instead of {expected}"
        );
        Ok(())
    }
}

/// Runs a test with a service that is built with its pprof middleware, or without and stripped.
fn with_service(package: &str, has_pprof: bool, test: impl FnOnce(&Service) -> Result<()>) -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let Some(toolchain) = Toolchain::of(VERSION)? else {
        return Ok(());
    };
    let program = GoProgram::new(MODULE).package(package);
    if !program.has_modules(&toolchain)? {
        return Ok(());
    }
    let _turn = serial::turn()?;
    let service = if has_pprof {
        Service::start(toolchain, &program.with_pprof(), Variant::Default)
    } else {
        Service::start(toolchain, &program, Variant::Stripped)
    };
    test(&service?)
}

// ---------------------------------------------------------------------------------------------- with pprof

/// Compares the heap with the service's own, published by a collection that it is asked for.
fn compare_heaps(service: &Service, memtrace: &Memtrace) -> Result<()> {
    for attempt in 1..=ATTEMPTS {
        let text = net::text(service.address, "/debug/pprof/heap?debug=1&gc=1")?;
        let before = HeapText::parse(text.lines())?;
        memtrace.signal(libc::SIGUSR1)?;
        let heap = memtrace.profile(&format!("heap-{attempt:04}.pb.gz"), GoHeap::read)?;
        let text = net::text(service.address, "/debug/pprof/heap?debug=1")?;
        let after = HeapText::parse(text.lines())?;
        if before.scaled() == after.scaled() {
            ensure!(heap.rate == before.rate, "the period is {}", heap.rate);
            let held = heap.through(AUDIT);
            ensure!(held.inuse_objects > 0, "{AUDIT} holds nothing");
            return driven::check(driven::differences(&before.scaled(), &heap.sites), &heap.comments);
        }
    }
    bail!("the service collected garbage in each of {ATTEMPTS} comparisons");
}

/// Compares the goroutines that hang with the service's own count, which is that of the requests.
fn compare_goroutines(service: &Service, outcome: &Outcome) -> Result<()> {
    let text = net::text(service.address, "/debug/pprof/goroutine?debug=1")?;
    let mut own = goroutines(text.lines())?;
    own.retain(|site, _| site.contains(CONFIRMATION));
    ensure!(own.values().sum::<i64>() == WORKERS * ROUNDS, "{own:?}");
    let goroutines = outcome.profile("goroutine.pb.gz", Goroutines::read)?;
    let mut sites = goroutines.sites();
    sites.retain(|site, _| site.contains(CONFIRMATION));
    driven::check(driven::differences(&own, &sites), &goroutines.comments)
}

/// The profiles of a service that can say what they should be.
fn check_with_pprof(package: &str) -> Result<()> {
    with_service(package, true, |service| {
        let memtrace = Memtrace::attach(service.process.pid(), &["--profiles", "heap,goroutine"])?;
        service.load()?;
        compare_heaps(service, &memtrace)?;
        compare_goroutines(service, &memtrace.interrupt()?)
    })
}

#[test]
fn mux_with_pprof() -> Result<()> {
    check_with_pprof("mux")
}

#[test]
fn fiber_2_with_pprof() -> Result<()> {
    check_with_pprof("fiber2")
}

#[test]
fn fiber_3_with_pprof() -> Result<()> {
    check_with_pprof("fiber3")
}

// ---------------------------------------------------------------------------------------------- without

/// What memtrace says of a service that says nothing itself.
fn check_without_pprof(package: &str) -> Result<()> {
    with_service(package, false, |service| {
        let memtrace = Memtrace::attach(service.process.pid(), &["--go-enable-heap"])?;
        // A leak is what grows between one look of memtrace's and the next.
        for _ in 0..LOADS {
            sleep(Duration::from_secs(1));
            service.load()?;
        }
        let outcome = memtrace.interrupt()?;
        let goroutines = outcome.profile("goroutine.pb.gz", Goroutines::read)?;
        let hanging = goroutines.through(CONFIRMATION);
        ensure!(
            hanging == LOADS * WORKERS * ROUNDS,
            "{hanging} goroutines hang in {CONFIRMATION}"
        );
        let heap = outcome.profile("heap.pb.gz", GoHeap::read)?;
        let held = heap.through(AUDIT);
        ensure!(
            held.inuse_objects > 0,
            "{AUDIT} holds nothing: {:?}",
            heap.comments
        );
        check_both_first(&outcome.stdout)
    })
    .with_context(|| package.to_owned())
}

/// Two leaks, in whatever order, before anything else.
fn check_both_first(report: &str) -> Result<()> {
    let growing = growing(report);
    let first = growing.iter().take(2);
    ensure!(
        first.clone().any(|function| function.contains(AUDIT))
            && first.clone().any(|function| function.contains(CONFIRMATION)),
        "{growing:?} grow:\n{report}"
    );
    Ok(())
}

#[test]
fn mux_without_pprof() -> Result<()> {
    check_without_pprof("mux")
}

#[test]
fn fiber_2_without_pprof() -> Result<()> {
    check_without_pprof("fiber2")
}

#[test]
fn fiber_3_without_pprof() -> Result<()> {
    check_without_pprof("fiber3")
}
