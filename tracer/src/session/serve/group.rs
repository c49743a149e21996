//! Targets of which the same is recorded: they share a tracer, in a thread of its own.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use crate::{
    session::{Error, Settings, Tracer, events::Events},
    snapshot::{Coverage, Origin, Snapshot},
    target::Process,
};

/// The number of a group, unique in the daemon.
pub type GroupId = u32;

/// What a group is asked for.
pub enum Command {
    /// Begin to trace this process and what descends from it. [`Event::Attached`] or [`Event::Refused`] answers.
    Attach(Arc<Process>),
    /// Let go of what was attached to.
    Release(u32),
    /// What the processes that descend from these hold now. Those that have ended are left out.
    Snapshot(Vec<u32>, oneshot::Sender<Vec<Snapshot>>),
    /// Let go of everything, and end.
    End,
}

/// What a group tells. `root` is the number of the address space that was attached to, see [`Tracer::add`].
pub enum Event {
    /// A process is traced.
    Attached {
        /// Its process id.
        pid: u32,
        /// By what it is known from now on.
        root: u32,
        /// What is covered and what not.
        coverage: Coverage,
        /// Whether a Go runtime is read.
        is_go: bool,
    },
    /// A process cannot be traced.
    Refused {
        /// Its process id.
        pid: u32,
        /// Why; `None` if another group may trace it.
        why: Option<String>,
    },
    /// The last word on a process that has ended, or executed another program.
    Past {
        /// Which it descends from.
        root: u32,
        /// What it held.
        snapshot: Box<Snapshot>,
    },
    /// Everything that descends from this has ended, or was let go.
    Ended {
        /// Which.
        root: u32,
    },
    /// The group has nothing left to trace and is no more; or it could not begin.
    Over,
}

/// A group that runs.
pub struct Group {
    commands: mpsc::UnboundedSender<Command>,
    thread: std::thread::JoinHandle<()>,
}

impl Group {
    /// Begins a group, which ends by itself when it has nothing left to trace.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        id: GroupId,
        settings: Settings,
        events: mpsc::UnboundedSender<(GroupId, Event)>,
    ) -> Result<Self, Error> {
        let (commands, received) = mpsc::unbounded_channel();
        let tell = move |event| {
            // The daemon listens until it has joined every group.
            let _received = events.send((id, event));
        };
        let thread = std::thread::Builder::new()
            .name(format!("group-{id}"))
            .spawn(move || run(&settings, received, tell));
        let thread = thread.map_err(|source| Error::System {
            what: "cannot start a thread",
            source,
        })?;
        Ok(Self { commands, thread })
    }

    /// Asks for something; false if the group is over.
    pub fn ask(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// A way to ask for snapshots from elsewhere.
    pub fn commands(&self) -> mpsc::UnboundedSender<Command> {
        self.commands.clone()
    }

    /// Whether its thread has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until its thread has ended, which [`Event::Over`] tells beforehand.
    pub fn join(self) {
        // A panic there would have ended memtrace.
        let _ended = self.thread.join();
    }
}

fn run(settings: &Settings, commands: mpsc::UnboundedReceiver<Command>, tell: impl Fn(Event)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(follow(settings, commands, &tell)),
        Err(error) => log::error!("cannot start an event loop: {error}"),
    }
    tell(Event::Over);
}

async fn follow(settings: &Settings, mut commands: mpsc::UnboundedReceiver<Command>, tell: &impl Fn(Event)) {
    let Some((tracer, process)) = first(settings, &mut commands, tell).await else {
        return;
    };
    let mut group = Running {
        tracer,
        roots: HashSet::new(),
        tell,
    };
    group.note_attached(process.pid(), crate::kernel::FIRST_SPACE);
    let mut events = match Events::watch(&mut group.tracer) {
        Ok(events) => events,
        Err(error) => {
            log::error!("{error}");
            return;
        }
    };
    loop {
        if group.roots.is_empty() && !group.tracer.has_past() {
            break;
        }
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::End) | None => break,
                Some(command) => {
                    group.obey(command);
                    group.tell_ended();
                }
            },
            due = events.next(&group.tracer) => events.perform(due, &mut group.tracer),
            () = tokio::task::yield_now(), if group.tracer.has_past() => {
                group.tell_past();
                group.tell_ended();
            }
        }
    }
    group.finish();
    // Whoever asked meanwhile is told that there is nobody.
    commands.close();
    while let Some(command) = commands.recv().await {
        refuse(command, tell);
    }
}

/// Attaches to the first process that can be attached to.
async fn first(
    settings: &Settings,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    tell: &impl Fn(Event),
) -> Option<(Tracer, Arc<Process>)> {
    let mut command = commands.recv().await?;
    loop {
        if let Command::Attach(process) = &command {
            match Tracer::attach(Arc::clone(process), Origin::Attached, settings) {
                Ok(tracer) => return Some((tracer, Arc::clone(process))),
                Err(error) => tell(Event::Refused {
                    pid: process.pid(),
                    why: Some(error.to_string()),
                }),
            }
        }
        match commands.try_recv() {
            Ok(Command::End) | Err(_) => break,
            Ok(next) => command = next,
        }
    }
    commands.close();
    while let Some(command) = commands.recv().await {
        refuse(command, tell);
    }
    None
}

/// Answers what can no longer be done. A snapshot is answered by its sender being dropped.
fn refuse(command: Command, tell: &impl Fn(Event)) {
    if let Command::Attach(process) = command {
        tell(Event::Refused {
            pid: process.pid(),
            why: None,
        });
    }
}

struct Running<'t, T> {
    tracer: Tracer,
    /// What was attached to.
    roots: HashSet<u32>,
    tell: &'t T,
}

impl<T: Fn(Event)> Running<'_, T> {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(process) => {
                let pid = process.pid();
                match self.tracer.add(process) {
                    Ok(root) => self.note_attached(pid, root),
                    Err(error) => (self.tell)(Event::Refused {
                        pid,
                        why: Some(error.to_string()),
                    }),
                }
            }
            Command::Release(root) => self.tracer.release(root),
            Command::End => {}
            Command::Snapshot(roots, answer) => {
                // Also of children that are not heard of yet.
                self.tracer.find_ended();
                let roots: HashSet<u32> = roots.into_iter().collect();
                // Whoever asked may have left.
                let _left = answer.send(self.tracer.snapshots_of(|root| roots.contains(&root)));
            }
        }
    }

    fn note_attached(&mut self, pid: u32, root: u32) {
        self.roots.insert(root);
        (self.tell)(Event::Attached {
            pid,
            root,
            coverage: self.tracer.coverage(root),
            is_go: self.tracer.go_version(root).is_some(),
        });
    }

    fn tell_past(&mut self) {
        if let Some(past) = self.tracer.take_past() {
            (self.tell)(Event::Past {
                root: past.root,
                snapshot: Box::new(past.snapshot),
            });
        }
    }

    /// Tells of roots of which nothing is left, after the last word on all of it.
    fn tell_ended(&mut self) {
        let held = self.tracer.roots();
        let tell = self.tell;
        self.roots.retain(|root| {
            let lives = held.contains(root);
            if !lives {
                tell(Event::Ended { root: *root });
            }
            lives
        });
    }

    /// The last words, of those that run on, too.
    fn finish(&mut self) {
        self.tracer.stop();
        let roots: Vec<u32> = self.roots.iter().copied().collect();
        for root in roots {
            self.tracer.release(root);
        }
        while self.tracer.has_past() {
            self.tell_past();
        }
        self.tell_ended();
    }
}
