//! The event loop: from attaching to the last profile.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aya_log::EbpfLogger;
use memtrace_ebpf::handles::classes;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    time::{Instant, sleep_until},
};

use super::{
    Error, Settings, Tracer,
    launch::Launched,
    privilege,
    results::Results,
    say,
    signals::{self, Signals, Wish},
    trend::Trend,
};
use crate::{
    cli::{Arguments, ProfileKind},
    output::{OutputDir, Status, StatusLine},
    snapshot::Origin,
    target::{Process, ProcessInfo, TargetError},
    text::printable,
};

/// How often the status line changes.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// How often room is made in the kernel's tables, if it is needed.
const TIDY_PERIOD: Duration = Duration::from_secs(1);
/// Without `--duration`: longer than any machine runs.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// Why tracing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Asked,
    TimeUp,
    TargetEnded,
    TargetExecuted,
}

/// Traces as the command line says, and writes what was found.
///
/// # Errors
/// See [`Error`].
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    privilege::check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::System {
        what: "cannot start the event loop",
        source,
    })?;
    runtime.block_on(trace(arguments))
}

async fn trace(arguments: &Arguments) -> Result<(), Error> {
    let ignored = signals::ignored();
    let mut signals = Signals::listen()?;
    let mut target = Target::find(arguments, &ignored)?;
    // Only now: a program that memtrace starts has the limits that memtrace was given.
    privilege::lift_limits();
    let info = target.info()?;
    let path = arguments.output.clone();
    let path = path.unwrap_or_else(|| unused(OutputDir::default_path(&info, SystemTime::now())));
    let directory = OutputDir::create(path)?;
    let settings = Settings {
        max_live: arguments.max_live(),
        selection: arguments.selection(),
        classes: classes_of(arguments),
        fd_details: arguments.fd_details,
        children: arguments.children,
        go: arguments.go_wishes(),
        floor: arguments.floor,
        allocator_prefixes: arguments.allocator_prefix.clone(),
    };
    let tracer = match target.attach(&settings) {
        Ok(tracer) => tracer,
        Err(error) => {
            directory.discard();
            // Whatever failed when the process has just ended, that is the reason.
            return Err(match target.has_ended() {
                true => TargetError::Ended { pid: info.pid }.into(),
                false => error,
            });
        }
    };
    // The terminal belongs to the program that memtrace started.
    let line = StatusLine::new(arguments.quiet || matches!(target, Target::Launched(_)));
    let results = Results::new(arguments, directory, tracer.go_binaries(), line.clone());
    let run = Run {
        arguments,
        tracer,
        target,
        results,
        line,
        executed: false,
    };
    run.announce();
    run.follow(&mut signals).await
}

/// What is traced, as the programs are told.
fn classes_of(arguments: &Arguments) -> u32 {
    let all = [
        (ProfileKind::Heap, classes::HEAP),
        (ProfileKind::Fd, classes::FD),
        (ProfileKind::Mmap, classes::MAPPING),
        (ProfileKind::Growth, classes::GROWTH),
    ];
    let wanted = all.into_iter().filter(|&(kind, _)| arguments.wants(kind));
    wanted.map(|(_, class)| class).sum()
}

/// Who is traced.
enum Target {
    Running(Arc<Process>),
    Launched(Launched),
}

impl Target {
    fn find(arguments: &Arguments, ignored: &[i32]) -> Result<Self, Error> {
        match arguments.pid {
            Some(pid) => Ok(Self::Running(Arc::new(Process::open(pid)?))),
            None => Ok(Self::Launched(Launched::start(&arguments.command, ignored)?)),
        }
    }

    fn info(&self) -> Result<ProcessInfo, Error> {
        match self {
            Self::Running(process) => Ok(process.info().clone()),
            Self::Launched(launched) => Ok(Process::open(launched.pid())?.info().clone()),
        }
    }

    fn attach(&mut self, settings: &Settings) -> Result<Tracer, Error> {
        match self {
            Self::Running(process) => Tracer::attach(Arc::clone(process), Origin::Attached, settings),
            Self::Launched(launched) => launched.attach(settings),
        }
    }

    fn has_ended(&mut self) -> bool {
        match self {
            Self::Running(process) => process.has_ended(),
            Self::Launched(launched) => launched.ended().is_some(),
        }
    }
}

/// This path, or one with a number behind it: two runs in one second do not share a directory.
fn unused(path: PathBuf) -> PathBuf {
    let numbered = (2_u32..).map(|number| PathBuf::from(format!("{}-{number}", path.display())));
    let mut candidates = std::iter::once(path.clone()).chain(numbered);
    candidates.find(|candidate| !candidate.exists()).unwrap_or(path)
}

/// One run with everything it holds.
struct Run<'a> {
    arguments: &'a Arguments,
    tracer: Tracer,
    target: Target,
    results: Results,
    line: StatusLine,
    /// Whether the last address space that ended did so because its process executed another program.
    executed: bool,
}

impl Run<'_> {
    /// Says that the probes are live, and what they cover.
    fn announce(&self) {
        let info = self.tracer.root().info();
        let coverage = self.tracer.coverage();
        let mut covered = coverage.allocators.clone();
        covered.extend(
            self.tracer
                .go_version()
                .map(|version| format!("Go runtime {version}")),
        );
        let others = [
            (ProfileKind::Fd, "descriptors"),
            (ProfileKind::Mmap, "mappings"),
            (ProfileKind::Growth, "new memory"),
        ];
        let others = others.into_iter().filter(|(kind, _)| self.arguments.wants(*kind));
        covered.extend(others.map(|(_, what)| what.to_owned()));
        if covered.is_empty() {
            covered.push("nothing".to_owned());
        }
        say(&format!(
            "tracing {} ({}){}: {}",
            info.pid,
            printable(&info.name),
            if self.arguments.children {
                " and its children"
            } else {
                ""
            },
            printable(&covered.join("; "))
        ));
        if self.arguments.quiet {
            return;
        }
        for note in &coverage.not_covered {
            say(&format!("not covered: {}", printable(note)));
        }
    }

    async fn follow(mut self, signals: &mut Signals) -> Result<(), Error> {
        let process_end = watch(self.tracer.root().pidfd())?;
        let notices = watch(self.tracer.notices_fd())?;
        let mut log = program_log(&mut self.tracer)?;
        let log_ready = watch(log.as_fd())?;
        let frames = watch(self.tracer.frames_fd())?;
        let map_events = watch(self.tracer.map_events_fd())?;
        let mut next_tidying = Instant::now() + TIDY_PERIOD;
        let mut trend = Trend::default();
        let start = Instant::now();
        let end = start + self.arguments.duration.unwrap_or(FOREVER);
        let mut next_status = start
            + if self.line.is_visible() {
                STATUS_PERIOD
            } else {
                FOREVER
            };
        let at = |instant: Option<std::time::Instant>| instant.map_or(start + FOREVER, Instant::from_std);
        let mut root_lives = true;
        let end = loop {
            if !self.tracer.lives() && !self.tracer.has_past() {
                break if self.executed {
                    End::TargetExecuted
                } else {
                    End::TargetEnded
                };
            }
            tokio::select! {
                // What is told last can wait longest.
                biased;
                wish = signals.next() => match wish {
                    Wish::End => break End::Asked,
                    Wish::Snapshot => {
                        // Also of those that are not heard of yet; those that have ended get their last word instead.
                        self.tracer.find_ended();
                        self.results.write_numbered(self.tracer.snapshots());
                    }
                },
                () = sleep_until(end) => break End::TimeUp,
                _ = process_end.readable(), if root_lives => {
                    root_lives = false;
                    if let Target::Launched(launched) = &mut self.target {
                        // Takes note of how, and leaves no zombie.
                        launched.ended();
                    }
                    self.tracer.handle_notices();
                    self.tracer.find_ended();
                }
                ready = notices.readable() => {
                    acknowledge(ready);
                    self.tracer.handle_notices();
                }
                () = sleep_until(start + self.tracer.next_observation()) => self.tracer.observe(),
                () = sleep_until(at(self.tracer.wishes_from())) => self.tracer.accept_wishes(),
                () = sleep_until(at(self.tracer.ends_due())) => self.tracer.find_ended(),
                () = sleep_until(next_status) => {
                    let status = self.status(&mut trend);
                    self.line.update(&status);
                    next_status += STATUS_PERIOD;
                }
                ready = map_events.readable() => {
                    acknowledge(ready);
                    self.tracer.read_map_events();
                }
                ready = frames.readable() => {
                    acknowledge(ready);
                    self.tracer.read_frames();
                }
                () = sleep_until(next_tidying) => {
                    self.tracer.tidy();
                    next_tidying = Instant::now() + TIDY_PERIOD;
                }
                ready = log_ready.readable() => {
                    acknowledge(ready);
                    log.flush();
                }
                // Lets the loop look at its descriptors, which `ready` alone does not.
                () = tokio::task::yield_now(), if self.tracer.has_past() => self.pass_on(),
            }
        };
        self.line.finish();
        self.finish(end)
    }

    /// Has the last word on an address space written.
    fn pass_on(&mut self) {
        let Some(past) = self.tracer.take_past() else {
            return;
        };
        let mut snapshot = past.snapshot;
        if past.executed && !self.arguments.children {
            let why = self.explanation(End::TargetExecuted);
            snapshot.coverage.not_covered.push(why);
        }
        self.executed = past.executed;
        self.results.write_past(snapshot, past.executed);
    }

    fn status(&mut self, trend: &mut Trend) -> Status {
        let totals = self.tracer.totals();
        let traces_heap = classes_of(self.arguments) & classes::HEAP != 0;
        let elapsed = self.tracer.elapsed();
        Status {
            elapsed,
            live: traces_heap.then_some((totals.live_bytes, totals.live_objects)),
            open_fds: totals.open_fds,
            mapped_bytes: totals.mapped_bytes,
            change_per_minute: trend.add(elapsed, totals.live_bytes),
            not_recorded: totals.not_recorded,
            is_estimate: self.arguments.sample_bytes.is_some(),
        }
    }

    fn finish(mut self, end: End) -> Result<(), Error> {
        self.tracer.stop();
        // What ended or began at the very end.
        self.tracer.handle_notices();
        while self.tracer.has_past() {
            self.pass_on();
        }
        if !matches!(end, End::Asked | End::TimeUp) && !self.arguments.quiet {
            say(&self.explanation(end));
        }
        self.say_what_became_of_the_program();
        let last = self.tracer.snapshots();
        // Removing a probe waits for the kernel, some 50 ms each, one after the other.
        let Self { tracer, results, .. } = self;
        let detaching = std::thread::spawn(move || drop(tracer));
        let reported = results.finish(last);
        // A panic there would have ended memtrace: there is no result to look at.
        let _detached = detaching.join();
        reported
    }

    fn explanation(&self, end: End) -> String {
        let pid = self.tracer.root().pid();
        match end {
            End::Asked | End::TimeUp => String::new(),
            End::TargetEnded if self.arguments.children => {
                "every process has ended; this is what each held then".to_owned()
            }
            End::TargetEnded => format!("process {pid} has ended; this is what it held then"),
            End::TargetExecuted => format!(
                "process {pid} executed another program; this is what the one before it held \
                 (--children goes on with the new one)"
            ),
        }
    }

    fn say_what_became_of_the_program(&mut self) {
        let Target::Launched(launched) = &mut self.target else {
            return;
        };
        if self.arguments.quiet {
            return;
        }
        match launched.ended() {
            Some(status) => say(&format!("the program ended: {status}")),
            None => say(&format!("the program runs on as process {}", launched.pid())),
        }
    }
}

/// A descriptor of its own for the event loop, which leaves the original where it is.
fn watch(fd: BorrowedFd<'_>) -> Result<AsyncFd<OwnedFd>, Error> {
    let refused = |source| Error::System {
        what: "cannot watch a descriptor",
        source,
    };
    let owned = fd.try_clone_to_owned().map_err(refused)?;
    // SAFETY: an `OwnedFd` always returns the descriptor that it keeps open.
    unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) }
        .map_err(|error| refused(error.into()))
}

fn acknowledge(ready: io::Result<AsyncFdReadyGuard<'_, OwnedFd>>) {
    if let Ok(mut ready) = ready {
        ready.clear_ready();
    }
}

fn program_log(tracer: &mut Tracer) -> Result<EbpfLogger<&'static dyn log::Log>, Error> {
    EbpfLogger::init(tracer.programs().ebpf()).map_err(|error| Error::System {
        what: "cannot read the programs' log",
        source: io::Error::other(error),
    })
}
