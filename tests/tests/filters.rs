//! What is left out on purpose: small blocks, young blocks, the allocator's own functions.

use std::{process::Command, thread::sleep, time::Duration};

use memtrace_tests::{
    Result,
    child::{Child, PATIENCE},
    compile::{Build, NO_FRAME_POINTERS},
    profile::{Heap, Values},
    skip,
    tracer::Memtrace,
};

/// A running `targets/filters.c`.
struct Target(Child);

impl Target {
    fn start() -> Result<Self> {
        let program = Build::c("filters").flags(NO_FRAME_POINTERS).path()?;
        let mut child = Child::spawn(&mut Command::new(program))?;
        child.stdout.expect("ready ", PATIENCE)?;
        Ok(Self(child))
    }

    fn attach(&self, options: &[&str]) -> Result<Memtrace> {
        Memtrace::attach(self.0.pid(), options)
    }

    fn obey(&mut self, command: &str) -> Result<()> {
        self.0.tell(command)?;
        self.0.stdout.expect("done", PATIENCE).map(|_| ())
    }
}

fn values(objects: (i64, i64), size: i64) -> Values {
    Values {
        alloc_objects: objects.0,
        alloc_bytes: objects.0 * size,
        inuse_objects: objects.1,
        inuse_bytes: objects.1 * size,
    }
}

fn assert_sites(heap: &Heap, expected: &[(&str, Values)]) {
    let sites: Vec<_> = heap.by_function("site_").into_iter().collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, values)| ((*name).to_owned(), *values))
        .collect();
    assert_eq!(sites, expected, "\n{}", heap.comments.join("\n"));
}

fn comments(heap: &Heap) -> String {
    heap.comments.join("\n")
}

#[test]
fn blocks_below_the_size_are_not_recorded_and_their_frees_not_missed() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let mut target = Target::start()?;
    let memtrace = target.attach(&["--min-size", "1k"])?;
    for command in ["small", "large"] {
        target.obey(command)?;
    }
    memtrace.signal(libc::SIGUSR1)?;
    let heap = memtrace.snapshot("heap-0001.pb.gz")?;
    assert_sites(&heap, &[("site_large", values((100, 50), 1024))]);
    assert!(
        comments(&heap).contains("not recorded: blocks smaller than 1024 bytes"),
        "{}",
        comments(&heap)
    );

    // A realloc to below the size takes the block out, one from below it enters a new one.
    target.obey("shrink")?;
    target.obey("grow")?;
    memtrace.signal(libc::SIGUSR1)?;
    let expected = |live| {
        [
            ("site_grow", values((100, live), 5000)),
            ("site_large", values((100, 0), 1024)),
        ]
    };
    assert_sites(&memtrace.snapshot("heap-0002.pb.gz")?, &expected(100));

    target.obey("drain")?;
    let (heap, outcome) = memtrace.stop()?;
    assert_sites(&heap, &expected(0));
    assert!(!comments(&heap).contains("seen:"), "{}", comments(&heap));
    assert!(
        comments(&heap).contains("nothing was lost"),
        "{}",
        comments(&heap)
    );
    assert!(
        outcome.stdout.contains("Blocks smaller than 1.0 KiB"),
        "{}",
        outcome.stdout
    );
    Ok(())
}

#[test]
fn only_old_blocks_are_shown_as_live_even_after_the_end() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let mut target = Target::start()?;
    let memtrace = target.attach(&["--older-than", "2s"])?;
    target.obey("large")?;
    sleep(Duration::from_millis(2100));
    target.obey("small")?;
    memtrace.signal(libc::SIGUSR1)?;
    let expected = [
        ("site_large", values((100, 50), 1024)),
        ("site_small", values((100, 0), 1023)),
    ];
    let heap = memtrace.snapshot("heap-0001.pb.gz")?;
    assert_sites(&heap, &expected);
    assert!(
        comments(&heap).contains("inuse values: only of blocks at least 2 s old"),
        "{}",
        comments(&heap)
    );

    target.0.signal(libc::SIGKILL)?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    assert_sites(&heap, &expected);
    assert!(
        outcome.stdout.contains("Only blocks at least 2.0 s old"),
        "{}",
        outcome.stdout
    );
    Ok(())
}

/// Weights are found anew from the sizes, in user space.
#[test]
fn old_blocks_that_were_sampled_are_weighed_alike() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let mut target = Target::start()?;
    // Small blocks are drawn here with a probability of 0.64, and large ones of 0.99.
    let all = target.attach(&["--sample-bytes", "1k"])?;
    let old = target.attach(&["--sample-bytes", "1k", "--older-than", "50ms"])?;
    for command in ["large", "grow", "small", "wrapped"] {
        target.obey(command)?;
    }
    sleep(Duration::from_millis(300));
    for memtrace in [all, old] {
        let (heap, _) = memtrace.stop()?;
        let total = heap.total();
        // 100 + 50 + 100 + 100 blocks were allocated; only the drawn ones of the small and the large were freed, all of
        // which stand for as much as they did when they came.
        assert!((250..450).contains(&total.alloc_objects), "{total:?}");
        let small = heap.by_function("site_small")["site_small"];
        assert!(
            small.inuse_objects > 0 && small.inuse_objects < small.alloc_objects,
            "{small:?}"
        );
        let large = heap.by_function("site_large")["site_large"];
        assert_eq!(
            (large.inuse_objects, large.inuse_bytes),
            (0, 0),
            "all were reallocated"
        );
        let grown = heap.by_function("site_grow")["site_grow"];
        assert_eq!(grown.inuse_bytes, grown.alloc_bytes, "all are live");
        let wrapped = heap.by_function("site_wrapped")["site_wrapped"];
        assert_eq!(wrapped.inuse_objects, wrapped.alloc_objects);
    }
    Ok(())
}

#[test]
fn stacks_begin_with_the_caller_of_the_allocator_unless_asked() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let own = ["_int_malloc", "_mid_memalign"];
    for (options, first) in [
        (&[][..], &[][..]),
        (&["--exclude-allocator-frames", "false"], &own),
    ] {
        let mut target = Target::start()?;
        let memtrace = target.attach(options)?;
        target.obey("wrapped")?;
        let (heap, _) = memtrace.stop()?;
        assert_eq!(heap.stacks.len(), 1, "{options:?}");
        let functions = heap.stacks[0].functions();
        let expected: Vec<&str> = first.iter().copied().chain(["site_wrapped", "main"]).collect();
        assert_eq!(functions[..expected.len()], expected, "{options:?}");
    }
    Ok(())
}
