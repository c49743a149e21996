//! Writes what was found, in a thread of its own: naming code takes long, and must not keep the tracer from its events.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    path::PathBuf,
    sync::mpsc,
    thread::JoinHandle,
};

use super::{
    Error,
    profiles::{names_of, profile_of},
    say, signals,
};
use crate::{
    cli::Arguments,
    go::GoBinaries,
    kernel::FIRST_SPACE,
    output::{
        Amount, OutputDir, OutputError, ProcessRow, ReportOptions, StatusLine, fd_details_json,
        write_processes, write_report,
    },
    profile::Profile,
    snapshot::Snapshot,
    symbol::Symbolizer,
};

/// The list of open descriptors, beside the profiles.
const FD_DETAILS: &str = "fd-details.json";

/// What is to be written.
enum Job {
    /// Numbered profiles of processes that go on.
    Numbered(Vec<Snapshot>),
    /// The last word on an address space; `true` if its process executed another program.
    Past(Box<Snapshot>, bool),
    /// The last words on those that still live, then the report.
    Last(Vec<Snapshot>),
}

/// The thread that writes.
pub struct Results {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Results {
    /// Begins to wait for what is to be written; Go programs that were opened need not be opened again to name code.
    pub fn new(arguments: &Arguments, directory: OutputDir, go: GoBinaries, line: StatusLine) -> Self {
        let (jobs, received) = mpsc::channel();
        let arguments = arguments.clone();
        let thread = std::thread::spawn(move || {
            let mut writer = Writer {
                arguments,
                directory,
                line,
                symbolizer: Symbolizer::new().sharing(go),
                directories: HashMap::new(),
                rows: Vec::new(),
                largest: None,
                failure: None,
            };
            received.iter().for_each(|job| writer.perform(job));
            writer.failure.map_or(Ok(()), Err)
        });
        Self { jobs, thread }
    }

    /// Writes numbered profiles; a failure is told, and tracing goes on.
    pub fn write_numbered(&self, snapshots: Vec<Snapshot>) {
        self.send(Job::Numbered(snapshots));
    }

    /// Writes the last word on an address space.
    pub fn write_past(&self, snapshot: Snapshot, executed: bool) {
        self.send(Job::Past(Box::new(snapshot), executed));
    }

    /// Writes the last words on the others and the report, and waits until all is written.
    ///
    /// # Errors
    /// The first thing that could not be written.
    pub fn finish(self, last: Vec<Snapshot>) -> Result<(), Error> {
        self.send(Job::Last(last));
        drop(self.jobs);
        // A panic there would have ended memtrace: there is always a result.
        self.thread.join().unwrap_or(Ok(()))
    }

    fn send(&self, job: Job) {
        // The thread receives until `finish`.
        let _received = self.jobs.send(job);
    }
}

struct Writer {
    arguments: Arguments,
    directory: OutputDir,
    line: StatusLine,
    symbolizer: Symbolizer,
    /// Of the address spaces beside the first.
    directories: HashMap<u32, OutputDir>,
    rows: Vec<ProcessRow>,
    /// The one that the report is about.
    largest: Option<Largest>,
    failure: Option<Error>,
}

/// The snapshot that the report is about.
struct Largest {
    /// What speaks for it: whether it runs on, how much it holds, and how much of it is resident (a Go program may keep no heap
    /// profile).
    weight: (bool, u64, u64),
    snapshot: Snapshot,
    /// Its profiles, if they could be written.
    written: Option<Written>,
}

/// The profiles of a snapshot that were written.
#[derive(Clone)]
struct Written {
    /// The first of them, or the directory if there is none.
    path: PathBuf,
    /// What each is of: the names without their numbers.
    kinds: Vec<&'static str>,
}

impl Writer {
    fn perform(&mut self, job: Job) {
        match job {
            Job::Numbered(snapshots) => {
                for snapshot in &snapshots {
                    let written = self.write(snapshot, true);
                    self.line.suspend(|| match written {
                        Ok(written) => say(&format!("snapshot written to {}", written.path.display())),
                        Err(error) => log::error!("{error}"),
                    });
                }
            }
            Job::Past(snapshot, executed) => {
                let end = if executed { "executed" } else { "ended" };
                self.write_last(*snapshot, end);
            }
            Job::Last(snapshots) => {
                for snapshot in snapshots {
                    self.write_last(snapshot, "");
                }
                if !self.arguments.quiet {
                    // From here on a second Ctrl-C may end memtrace: the reader of the report may never come.
                    signals::obey_no_more();
                    let reported = self.report();
                    self.keep(reported);
                }
            }
        }
    }

    fn write_last(&mut self, snapshot: Snapshot, end: &'static str) {
        let written = self.write(&snapshot, false);
        let held = Amount::of(&snapshot);
        self.rows.push(ProcessRow {
            pid: snapshot.process.pid,
            name: snapshot.process.name.clone(),
            held,
            end,
            profile: written.as_ref().ok().map(|written| written.path.clone()),
        });
        // One that runs on is of more interest than one that is gone.
        let resident = snapshot.memory.as_ref().map_or(0, |memory| memory.rss);
        let weight = (end.is_empty(), held.size(), resident);
        if self.largest.as_ref().is_none_or(|before| before.weight < weight) {
            self.largest = Some(Largest {
                weight,
                snapshot,
                written: written.as_ref().ok().cloned(),
            });
        }
        self.keep(written.map_err(Error::from));
    }

    /// Writes the profiles of a snapshot.
    fn write(&mut self, snapshot: &Snapshot, numbered: bool) -> Result<Written, OutputError> {
        let profiles = self.profiles(snapshot);
        let details = match snapshot.fd_details {
            Some(_) if !numbered => Some(fd_details_json(snapshot, &mut self.symbolizer)),
            _ => None,
        };
        let directory = self.directory_of(snapshot)?;
        let (mut first, mut kinds) = (None, Vec::new());
        for (kind, profile) in profiles {
            let path = if numbered {
                directory.write_numbered(kind, &profile)?
            } else {
                directory.write_final(kind, &profile)?
            };
            first.get_or_insert(path);
            kinds.push(kind);
        }
        if let Some(details) = details {
            directory.write(FD_DETAILS, &details)?;
        }
        Ok(Written {
            path: first.unwrap_or_else(|| directory.path().to_owned()),
            kinds,
        })
    }

    fn profiles(&mut self, snapshot: &Snapshot) -> Vec<(&'static str, Profile)> {
        let frames = self.arguments.recording.allocator_frames();
        let names = names_of(snapshot).into_iter();
        let made = names.filter_map(|name| {
            let profile = profile_of(snapshot, name, &mut self.symbolizer, frames)?;
            Some((name, profile))
        });
        made.collect()
    }

    /// The directory for the profiles of the snapshot's address space.
    fn directory_of(&mut self, snapshot: &Snapshot) -> Result<&OutputDir, OutputError> {
        if snapshot.space == FIRST_SPACE {
            return Ok(&self.directory);
        }
        if !self.directories.contains_key(&snapshot.space) {
            let name = format!("{}-{}", snapshot.process.pid, snapshot.process.name);
            let made = self.directory.make_inside(&name)?;
            self.directories.insert(snapshot.space, made);
        }
        Ok(&self.directories[&snapshot.space])
    }

    /// The first failure decides how memtrace ends.
    fn keep<T>(&mut self, result: Result<T, Error>) {
        if let Err(error) = result {
            match self.failure {
                None => self.failure = Some(error),
                Some(_) => log::error!("{error}"),
            }
        }
    }

    fn report(&mut self) -> Result<(), Error> {
        let Some(largest) = &self.largest else {
            return Ok(());
        };
        let snapshot = &largest.snapshot;
        let options = ReportOptions::for_stdout(self.arguments.top);
        let mut text = Vec::new();
        let mut written = Ok(());
        if self.rows.len() > 1 {
            written = write_processes(&mut text, &self.rows, &options);
        }
        let written =
            written.and_then(|()| write_report(&mut text, snapshot, &mut self.symbolizer, &options));
        if let Some(written) = &largest.written {
            text.extend(written.where_to_look().bytes());
        }
        if self.rows.len() > 1 {
            let directory = self.directory.path().display();
            let count = self.rows.len();
            text.extend(
                format!("Those of all {count} programs: {directory}/ and the directories in it\n").bytes(),
            );
        }
        tell(written.and_then(|()| io::stdout().lock().write_all(&text)))
    }
}

impl Written {
    /// What the reader can open now.
    fn where_to_look(&self) -> String {
        let first = self.path.display();
        match (self.kinds.as_slice(), self.path.parent()) {
            ([_, _, ..], Some(directory)) => {
                let directory = directory.display();
                let names = self.kinds.join(",");
                format!("Profiles: {directory}/{{{names}}}.pb.gz\nOpen one: go tool pprof -http=: {first}\n")
            }
            ([], _) => "No profile was written: the program has nothing of what was asked for with --profiles (goroutine and \
                        threadcreate are of Go programs).\n"
                .to_owned(),
            _ => format!("Profile: {first}\nOpen it: go tool pprof -http=: {first}\n"),
        }
    }
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
