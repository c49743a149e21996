//! The event loop: from attaching to the last profile.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep_until};

use super::{
    Error, REMOVED_SOON, REMOVING, Settings, Tracer,
    events::{self, Events, FOREVER},
    launch::Launched,
    privilege,
    results::Results,
    say,
    signals::{self, Signals, Wish},
    trend::Trend,
};
use crate::{
    cli::{Arguments, ProfileKind},
    kernel::FIRST_SPACE,
    output::{OutputDir, Status, StatusLine},
    snapshot::Origin,
    target::{
        Process, ProcessInfo, TargetError,
        containers::{self, Container, Endpoints},
    },
    text::printable,
};

/// How often the status line changes.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// How often a container is looked at for processes that were started from outside.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

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
    let mut target = Target::find(arguments, &ignored).await?;
    // Only now: a program that memtrace starts has the limits that memtrace was given.
    privilege::lift_limits();
    let info = target.info()?;
    let path = arguments.output.clone();
    let path = path.unwrap_or_else(|| unused(OutputDir::default_path(&info, SystemTime::now())));
    let directory = OutputDir::create(path)?;
    let settings = Settings {
        fd_details: arguments.fd_details,
        children: target.follows_children(arguments),
        floor: arguments.floor,
        ..Settings::of(&arguments.recording)
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

/// Who is traced.
enum Target {
    Running(Arc<Process>),
    /// A container, of which tracing begins with the first process.
    Container {
        container: Container,
        first: Arc<Process>,
    },
    Launched(Launched),
}

impl Target {
    async fn find(arguments: &Arguments, ignored: &[i32]) -> Result<Self, Error> {
        if let Some(wanted) = &arguments.container {
            let endpoints = Endpoints::from_environment(arguments.runtime_endpoint.as_deref());
            let container = containers::find(wanted, &endpoints).await?;
            let first = Arc::new(Process::open(container.init)?);
            return Ok(Self::Container { container, first });
        }
        match arguments.pid {
            Some(pid) => Ok(Self::Running(Arc::new(Process::open(pid)?))),
            None => Ok(Self::Launched(Launched::start(&arguments.command, ignored)?)),
        }
    }

    fn info(&self) -> Result<ProcessInfo, Error> {
        match self {
            Self::Running(process) | Self::Container { first: process, .. } => Ok(process.info().clone()),
            Self::Launched(launched) => Ok(Process::open(launched.pid())?.info().clone()),
        }
    }

    fn attach(&mut self, settings: &Settings) -> Result<Tracer, Error> {
        match self {
            Self::Running(process) => Tracer::attach(Arc::clone(process), Origin::Attached, settings),
            Self::Container { container, first } => {
                let mut tracer = Tracer::attach(Arc::clone(first), Origin::Attached, settings)?;
                add_others(container, &mut tracer);
                Ok(tracer)
            }
            Self::Launched(launched) => launched.attach(settings),
        }
    }

    /// Where it runs, for the line that announces it.
    fn place(&self) -> String {
        match self {
            Self::Container { container, .. } => {
                format!(
                    " in {} container {}",
                    container.engine,
                    printable(&container.name)
                )
            }
            Self::Running(_) | Self::Launched(_) => String::new(),
        }
    }

    /// Whether what the processes fork and execute is traced, too.
    fn follows_children(&self, arguments: &Arguments) -> bool {
        arguments.children || matches!(self, Self::Container { .. })
    }

    fn has_ended(&mut self) -> bool {
        match self {
            Self::Running(process) | Self::Container { first: process, .. } => process.has_ended(),
            Self::Launched(launched) => launched.ended().is_some(),
        }
    }
}

/// Begins to trace the processes of a container that do not descend from its first, as those of `docker exec`.
fn add_others(container: &Container, tracer: &mut Tracer) {
    // When the first has ended, the engine ends the others.
    let Ok(all) = container.processes() else { return };
    for pid in all {
        if tracer.traces(pid) {
            continue;
        }
        let added = Process::open(pid).map_err(Error::from);
        match added.and_then(|process| tracer.add(Arc::new(process))) {
            Ok(_) => log::info!("process {pid} of the container is traced, too"),
            // Most live only for a moment.
            Err(error) => log::debug!("process {pid} of the container is not traced: {error}"),
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
    fn follows_children(&self) -> bool {
        self.target.follows_children(self.arguments)
    }

    /// Says that the probes are live, and what they cover.
    fn announce(&self) {
        let info = self.tracer.root().info();
        let coverage = self.tracer.coverage(FIRST_SPACE);
        let mut covered = coverage.allocators.clone();
        covered.extend(
            self.tracer
                .go_version(FIRST_SPACE)
                .map(|version| format!("Go runtime {version}")),
        );
        let others = [
            (ProfileKind::Fd, "descriptors"),
            (ProfileKind::Mmap, "mappings"),
            (ProfileKind::Growth, "new memory"),
        ];
        let others = others
            .into_iter()
            .filter(|(kind, _)| self.arguments.recording.wants(*kind));
        covered.extend(others.map(|(_, what)| what.to_owned()));
        if covered.is_empty() {
            covered.push("nothing".to_owned());
        }
        say(&format!(
            "tracing {} ({}){}{}: {}",
            info.pid,
            printable(&info.name),
            if self.follows_children() {
                " and its children"
            } else {
                ""
            },
            self.target.place(),
            printable(&covered.join("; "))
        ));
        if self.arguments.quiet {
            return;
        }
        if let Some(refusal) = self.tracer.go_refusal(FIRST_SPACE) {
            say(&printable(&refusal));
        }
        for note in &coverage.not_covered {
            say(&format!("not covered: {}", printable(note)));
        }
    }

    async fn follow(mut self, signals: &mut Signals) -> Result<(), Error> {
        let process_end = events::watch(self.tracer.root().pidfd())?;
        let mut events = Events::watch(&mut self.tracer)?;
        let mut trend = Trend::default();
        let start = Instant::now();
        let end = start + self.arguments.duration.unwrap_or(FOREVER);
        let mut next_status = start
            + if self.line.is_visible() {
                STATUS_PERIOD
            } else {
                FOREVER
            };
        let mut next_look = start
            + match self.target {
                Target::Container { .. } => LOOK_PERIOD,
                Target::Running(_) | Target::Launched(_) => FOREVER,
            };
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
                () = sleep_until(next_status) => {
                    let status = self.status(&mut trend);
                    self.line.update(&status);
                    next_status += STATUS_PERIOD;
                }
                () = sleep_until(next_look) => {
                    if let Target::Container { container, .. } = &self.target {
                        add_others(container, &mut self.tracer);
                    }
                    next_look += LOOK_PERIOD;
                }
                due = events.next(&self.tracer) => events.perform(due, &mut self.tracer),
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
        if past.executed && !self.follows_children() {
            let why = self.explanation(End::TargetExecuted);
            snapshot.coverage.not_covered.push(why);
        }
        self.executed = past.executed;
        self.results.write_past(snapshot, past.executed);
    }

    fn status(&mut self, trend: &mut Trend) -> Status {
        let totals = self.tracer.totals();
        let traces_heap = self.arguments.recording.wants(ProfileKind::Heap);
        let elapsed = self.tracer.elapsed();
        Status {
            elapsed,
            live: traces_heap.then_some((totals.live_bytes, totals.live_objects)),
            open_fds: totals.open_fds,
            mapped_bytes: totals.mapped_bytes,
            change_per_minute: trend.add(elapsed, totals.live_bytes),
            not_recorded: totals.not_recorded,
            is_estimate: self.arguments.recording.sample_bytes.is_some(),
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
        let Self {
            tracer,
            results,
            arguments,
            ..
        } = self;
        let (done, detached) = mpsc::channel::<()>();
        let detaching = std::thread::spawn(move || {
            drop(tracer);
            drop(done);
        });
        let reported = results.finish(last);
        let waits = detached.recv_timeout(REMOVED_SOON) == Err(mpsc::RecvTimeoutError::Timeout);
        if waits && !arguments.quiet {
            say(REMOVING);
        }
        // A panic there would have ended memtrace: there is no result to look at.
        let _detached = detaching.join();
        reported
    }

    fn explanation(&self, end: End) -> String {
        let pid = self.tracer.root().pid();
        match end {
            End::Asked | End::TimeUp => String::new(),
            End::TargetEnded if self.follows_children() => {
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
