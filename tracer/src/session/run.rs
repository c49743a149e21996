//! The event loop: from attaching to the last profile.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aya_log::EbpfLogger;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    time::{Instant, sleep_until},
};

use super::{
    Error, Settings, Tracer, privilege,
    signals::{Signals, Wish},
    trend::Trend,
};
use crate::{
    cli::Arguments,
    output::{OutputDir, ReportOptions, Status, StatusLine, write_report},
    profile,
    snapshot::Snapshot,
    symbol::Symbolizer,
    target::{Process, TargetError},
    text::printable,
};

/// How often the status line changes.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
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
    let mut signals = Signals::listen()?;
    let process = Arc::new(Process::open(arguments.pid)?);
    let path = arguments.output.clone();
    let path = path.unwrap_or_else(|| unused(OutputDir::default_path(process.info(), SystemTime::now())));
    let directory = OutputDir::create(path)?;
    let settings = Settings {
        max_live: arguments.max_live,
        floor: arguments.floor,
        allocator_prefixes: arguments.allocator_prefix.clone(),
    };
    let tracer = match Tracer::attach(Arc::clone(&process), &settings) {
        Ok(tracer) => tracer,
        Err(error) => {
            directory.discard();
            // Whatever failed when the process has just ended, that is the reason.
            let ended = TargetError::Ended { pid: arguments.pid };
            return Err(if process.has_ended() { ended.into() } else { error });
        }
    };
    let mut run = Run {
        arguments,
        tracer,
        directory,
        symbolizer: Symbolizer::new(),
    };
    run.announce();
    let end = run.follow(&mut signals).await?;
    run.finish(end)
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
    directory: OutputDir,
    symbolizer: Symbolizer,
}

impl Run<'_> {
    /// Says that the probes are live, and what they cover.
    fn announce(&self) {
        let info = self.tracer.process().info();
        let coverage = self.tracer.coverage();
        let covered = if coverage.allocators.is_empty() {
            "nothing".to_owned()
        } else {
            coverage.allocators.join("; ")
        };
        say(&format!(
            "tracing {} ({}): {}",
            info.pid,
            printable(&info.name),
            printable(&covered)
        ));
        if self.arguments.quiet {
            return;
        }
        for note in &coverage.not_covered {
            say(&format!("not covered: {}", printable(note)));
        }
    }

    async fn follow(&mut self, signals: &mut Signals) -> Result<End, Error> {
        let process_end = watch(self.tracer.process().pidfd())?;
        let notices = watch(self.tracer.notices_fd())?;
        let mut log = program_log(&mut self.tracer)?;
        let log_ready = watch(log.as_fd())?;
        let line = StatusLine::new(self.arguments.quiet);
        let mut trend = Trend::default();
        let start = Instant::now();
        let end = start + self.arguments.duration.unwrap_or(FOREVER);
        let mut next_status = start + if line.is_visible() { STATUS_PERIOD } else { FOREVER };
        let end = loop {
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::End => break End::Asked,
                    Wish::Snapshot => line.suspend(|| self.write_snapshot()),
                },
                () = sleep_until(end) => break End::TimeUp,
                _ = process_end.readable() => break End::TargetEnded,
                () = sleep_until(start + self.tracer.next_observation()) => self.tracer.observe(),
                () = sleep_until(self.tracer.wishes_from().map_or(start + FOREVER, Instant::from_std)) => {
                    self.tracer.accept_wishes();
                }
                () = sleep_until(next_status) => {
                    line.update(&self.status(&mut trend));
                    next_status += STATUS_PERIOD;
                }
                ready = notices.readable() => {
                    acknowledge(ready);
                    if self.tracer.handle_notices() {
                        break End::TargetExecuted;
                    }
                }
                ready = log_ready.readable() => {
                    acknowledge(ready);
                    log.flush();
                }
            }
        };
        line.finish();
        Ok(end)
    }

    fn status(&self, trend: &mut Trend) -> Status {
        let totals = self.tracer.totals();
        let elapsed = self.tracer.elapsed();
        Status {
            elapsed,
            live_bytes: totals.live_bytes,
            live_objects: totals.live_objects,
            change_per_minute: trend.add(elapsed, totals.live_bytes),
            not_recorded: totals.not_recorded,
        }
    }

    /// Writes a numbered profile. A failure is told, and tracing goes on.
    fn write_snapshot(&mut self) {
        let snapshot = self.tracer.snapshot();
        let profile = profile::heap(&snapshot, &mut self.symbolizer);
        match self.directory.write_numbered("heap", &profile) {
            Ok(path) => say(&format!("snapshot written to {}", path.display())),
            Err(error) => log::error!("{error}"),
        }
    }

    fn finish(mut self, end: End) -> Result<(), Error> {
        self.tracer.stop();
        self.explain(end);
        let snapshot = self.tracer.snapshot();
        // Removing a probe waits for the kernel, some 50 ms each, one after the other.
        let Self {
            arguments,
            tracer,
            directory,
            mut symbolizer,
        } = self;
        let detaching = std::thread::spawn(move || drop(tracer));
        let reported = write_results(arguments, &directory, &snapshot, &mut symbolizer);
        // A panic there would have ended memtrace: there is no result to look at.
        let _detached = detaching.join();
        reported
    }

    fn explain(&mut self, end: End) {
        let pid = self.arguments.pid;
        let text = match end {
            End::Asked | End::TimeUp => return,
            End::TargetEnded => format!("process {pid} has ended; this is what it held then"),
            End::TargetExecuted => {
                let text = format!(
                    "process {pid} executed another program; this is what the one before it held \
                     (trace {pid} again to see the new one)"
                );
                self.tracer.add_note(text.clone());
                text
            }
        };
        if !self.arguments.quiet {
            say(&text);
        }
    }
}

/// Writes the final profile, then the report: a disk that is full does not cost the report.
fn write_results(
    arguments: &Arguments,
    directory: &OutputDir,
    snapshot: &Snapshot,
    symbolizer: &mut Symbolizer,
) -> Result<(), Error> {
    let profile = profile::heap(snapshot, symbolizer);
    let written = directory.write_final("heap", &profile);
    if arguments.quiet {
        written?;
        return Ok(());
    }
    // From here on a second Ctrl-C may end memtrace: the reader of the report may never come.
    super::signals::obey_no_more();
    print_report(arguments, snapshot, symbolizer)?;
    let path = written?;
    print_lines(&format!(
        "Profile: {path}\nOpen it: go tool pprof -http=: {path}\n",
        path = path.display()
    ))
}

/// Tells the person who watches; that nobody does must not cost the profile.
fn say(text: &str) {
    let _nobody_listens = writeln!(io::stderr().lock(), "memtrace: {text}");
}

fn print_report(
    arguments: &Arguments,
    snapshot: &Snapshot,
    symbolizer: &mut Symbolizer,
) -> Result<(), Error> {
    let options = ReportOptions::for_stdout(arguments.top);
    let mut text = Vec::new();
    let written = write_report(&mut text, snapshot, symbolizer, &options);
    tell(written.and_then(|()| io::stdout().lock().write_all(&text)))
}

fn print_lines(text: &str) -> Result<(), Error> {
    tell(io::stdout().lock().write_all(text.as_bytes()))
}

/// A reader that has seen enough, such as `head`, is no failure.
fn tell(written: io::Result<()>) -> Result<(), Error> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|source| Error::System {
            what: "cannot write the report",
            source,
        }),
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
