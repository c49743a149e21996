//! Targets of which the same is recorded: they share a tracer, in a thread of its own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::naming::Job;
use crate::{
    profile::{AllocatorFrames, comments::no_heap_profile},
    session::{
        Error, Settings, Tracer,
        events::{Due, Events},
    },
    snapshot::{Coverage, GoState, Origin, Snapshot},
    target::Process,
};

/// The number of a group, unique in the daemon.
pub type GroupId = u32;

/// How long a group stays that has nothing to trace. To end it and begin another takes seconds on a busy machine, in which what
/// restarts, or lives for a moment only, would not be traced.
const LINGER: Duration = Duration::from_secs(5);

/// What a group is asked for.
pub enum Command {
    /// Begin to trace this process and what descends from it, for this target. [`Event::Attached`] or [`Event::Refused`] answers.
    Attach(Arc<Process>, Owner),
    /// Let go of what was attached to.
    Release(u32),
    /// What the processes that descend from these hold now. Those that have ended are left out.
    Snapshot(Vec<u32>, oneshot::Sender<Vec<Snapshot>>),
    /// Let go of everything, and end.
    End,
}

/// The target that a process is traced for.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its id.
    pub target: Arc<str>,
    /// How its stacks are shown.
    pub frames: AllocatorFrames,
}

/// Why a process is not traced.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// It cannot be, and why.
    Impossible(String),
    /// It descends from a process of this target, and is counted there.
    IsOf(Arc<str>),
    /// This group is over; another may trace it.
    Over,
}

/// What a group tells. `root` is the number of the address space that was attached to, see [`Tracer::add`].
pub enum Event {
    /// A process is traced.
    Attached {
        /// Its process id.
        pid: u32,
        /// For whom.
        target: Arc<str>,
        /// By what it is known from now on.
        root: u32,
        /// What is covered and what not.
        coverage: Coverage,
        /// Whether a Go runtime is read.
        is_go: bool,
    },
    /// What the Go runtimes of a target do not show, one sentence each.
    Noted {
        /// Whose.
        target: Arc<str>,
        /// What stays so while it is traced.
        lasting: BTreeSet<String>,
        /// What may be otherwise at the next look, such as a garbage collection that has not been yet.
        passing: BTreeSet<String>,
    },
    /// A process cannot be traced.
    Refused {
        /// Its process id.
        pid: u32,
        /// For whom it was to be.
        target: Arc<str>,
        /// Why.
        why: Refusal,
    },
    /// Everything that descends from this has ended, or was let go. The last words on it were sent as [`Job::Past`].
    Ended {
        /// Which.
        root: u32,
        /// Whose it was.
        target: Arc<str>,
    },
    /// The group has nothing left to trace and is no more; or it could not begin.
    Over,
}

/// A group that runs.
pub struct Group {
    commands: mpsc::UnboundedSender<Command>,
    /// Whether what is to be attached to yet need not be.
    is_ending: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Group {
    /// Begins a group, which ends by itself when it has had nothing to trace for a while. The last words on processes go to `naming`: from
    /// here, so that they are there before the next snapshot is, and nothing is missing or counted twice.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        id: GroupId,
        settings: Settings,
        events: mpsc::UnboundedSender<(GroupId, Event)>,
        naming: std_mpsc::Sender<Job>,
    ) -> Result<Self, Error> {
        let (commands, received) = mpsc::unbounded_channel();
        let tell = move |event| {
            // The daemon listens until it has joined every group.
            let _received = events.send((id, event));
        };
        let is_ending = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_ending);
        let thread = std::thread::Builder::new()
            .name(format!("group-{id}"))
            .spawn(move || run(&settings, received, &naming, tell, &ends));
        let thread = thread.map_err(|source| Error::System {
            what: "cannot start a thread",
            source,
        })?;
        Ok(Self {
            commands,
            is_ending,
            thread,
        })
    }

    /// Asks for something; false if the group is over.
    pub fn ask(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Asks it to end, before it attaches to what it was asked for and did not come to yet.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        self.ask(Command::End);
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

fn run(
    settings: &Settings,
    commands: mpsc::UnboundedReceiver<Command>,
    naming: &std_mpsc::Sender<Job>,
    tell: impl Fn(Event),
    is_ending: &AtomicBool,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(follow(settings, commands, naming, &tell, is_ending)),
        Err(error) => log::error!("cannot start an event loop: {error}"),
    }
    tell(Event::Over);
}

async fn follow(
    settings: &Settings,
    mut commands: mpsc::UnboundedReceiver<Command>,
    naming: &std_mpsc::Sender<Job>,
    tell: &impl Fn(Event),
    is_ending: &AtomicBool,
) {
    let Some((tracer, pid, owner)) = first(settings, &mut commands, tell, is_ending).await else {
        return;
    };
    let mut group = Running {
        tracer,
        roots: HashMap::new(),
        naming,
        tell,
    };
    group.note_attached(pid, crate::kernel::FIRST_SPACE, owner);
    let mut events = match Events::watch(&mut group.tracer) {
        Ok(events) => events,
        Err(error) => {
            log::error!("{error}");
            return;
        }
    };
    let mut idle_since: Option<Instant> = None;
    loop {
        let is_idle = group.roots.is_empty() && !group.tracer.has_past();
        idle_since = is_idle.then(|| idle_since.unwrap_or_else(Instant::now));
        let idle_until = idle_since.unwrap_or_else(Instant::now) + LINGER;
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::End) | None => break,
                Some(Command::Attach(..)) if is_ending.load(Ordering::Relaxed) => break,
                Some(command) => group.obey(command),
            },
            () = sleep_until(idle_until), if is_idle => break,
            due = events.next(&group.tracer) => {
                events.perform(due, &mut group.tracer);
                if due == Due::Tidying {
                    group.release_strays();
                }
                // Under load something is always due, and those that end must not pile up.
                group.tell_past();
            }
            () = tokio::task::yield_now(), if group.tracer.has_past() => group.tell_past(),
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
    is_ending: &AtomicBool,
) -> Option<(Tracer, u32, Owner)> {
    let mut command = commands.recv().await?;
    loop {
        match command {
            Command::Attach(..) if is_ending.load(Ordering::Relaxed) => break,
            Command::Attach(process, owner) => {
                let pid = process.pid();
                match Tracer::attach(process, Origin::Attached, settings) {
                    Ok(tracer) => return Some((tracer, pid, owner)),
                    Err(error) => tell(Event::Refused {
                        pid,
                        target: owner.target,
                        why: Refusal::Impossible(error.to_string()),
                    }),
                }
            }
            Command::End => break,
            Command::Release(_) | Command::Snapshot(..) => {}
        }
        match commands.try_recv() {
            Err(_) => break,
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
    if let Command::Attach(process, owner) = command {
        tell(Event::Refused {
            pid: process.pid(),
            target: owner.target,
            why: Refusal::Over,
        });
    }
}

struct Running<'t, T> {
    tracer: Tracer,
    /// What was attached to, and for whom.
    roots: HashMap<u32, Owner>,
    naming: &'t std_mpsc::Sender<Job>,
    tell: &'t T,
}

impl<T: Fn(Event)> Running<'_, T> {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(process, owner) => {
                let pid = process.pid();
                let began = Instant::now();
                let added = self.tracer.add(process);
                log::debug!("process {pid} was added in {} ms", began.elapsed().as_millis());
                match added {
                    Ok(root) => self.note_attached(pid, root, owner),
                    Err(error) => (self.tell)(Event::Refused {
                        pid,
                        target: owner.target,
                        why: Refusal::Impossible(error.to_string()),
                    }),
                }
            }
            Command::Release(root) => self.tracer.release(root),
            Command::End => {}
            Command::Snapshot(roots, answer) => {
                // Also of children that are not heard of yet, and of those that have ended.
                self.tracer.find_ended();
                while self.tracer.has_past() {
                    self.tell_past();
                }
                let snapshots = self.tracer.snapshots_of(|root| roots.contains(&root));
                if let Some(owner) = roots.first().and_then(|root| self.roots.get(root)) {
                    self.tell_notes(&owner.target, &snapshots);
                }
                // Whoever asked may have left.
                let _left = answer.send(snapshots);
            }
        }
    }

    fn note_attached(&mut self, pid: u32, root: u32, owner: Owner) {
        let target = Arc::clone(&owner.target);
        let of = self.roots.entry(root).or_insert(owner);
        if of.target != target {
            let why = Refusal::IsOf(Arc::clone(&of.target));
            (self.tell)(Event::Refused { pid, target, why });
            return;
        }
        (self.tell)(Event::Attached {
            pid,
            target: Arc::clone(&target),
            root,
            coverage: self.tracer.coverage(root),
            is_go: self.tracer.go_version(root).is_some(),
        });
        let is_its = |root: u32| self.roots.get(&root).is_some_and(|of| of.target == target);
        let go = self.tracer.go_at_a_glance(is_its);
        if !go.is_empty() {
            // What cannot be read at first cannot be later.
            let notes = |go: &GoState| no_heap_profile(go).into_iter().chain(go.notes.clone());
            let lasting = go.iter().flat_map(notes).collect();
            let passing = BTreeSet::new();
            (self.tell)(Event::Noted {
                target,
                lasting,
                passing,
            });
        }
    }

    /// What the Go runtimes of a target's processes did not show in a snapshot, if it has any.
    fn tell_notes(&self, target: &Arc<str>, snapshots: &[Snapshot]) {
        let go = || snapshots.iter().filter_map(|snapshot| snapshot.go.as_ref());
        if go().next().is_some() {
            (self.tell)(Event::Noted {
                target: Arc::clone(target),
                lasting: go().filter_map(no_heap_profile).collect(),
                passing: go().flat_map(|go| go.notes.clone()).collect(),
            });
        }
    }

    /// The last word on the next process that has ended, and which roots ended by that.
    fn tell_past(&mut self) {
        if !self.tracer.has_past() {
            return;
        }
        if let Some(past) = self.tracer.take_past()
            && let Some(owner) = self.roots.get(&past.root)
        {
            // The thread receives until the daemon has joined it.
            let _received = self.naming.send(Job::Past {
                target: owner.target.to_string(),
                snapshot: Box::new(past.snapshot),
                frames: owner.frames,
            });
        }
        self.tell_ended();
    }

    /// Tells of roots of which nothing is left, after the last word on all of it.
    fn tell_ended(&mut self) {
        let held = self.tracer.roots();
        let tell = self.tell;
        self.roots.retain(|root, owner| {
            let lives = held.contains(root);
            if !lives {
                let target = Arc::clone(&owner.target);
                tell(Event::Ended { root: *root, target });
            }
            lives
        });
    }

    /// Lets go of what descends from a process that was let go of while it forked: nobody asked for it.
    fn release_strays(&mut self) {
        for root in self.tracer.roots() {
            if !self.roots.contains_key(&root) {
                self.tracer.release(root);
            }
        }
    }

    /// The last words, of those that run on, too.
    fn finish(&mut self) {
        self.tracer.stop();
        let roots: Vec<u32> = self.roots.keys().copied().collect();
        for root in roots {
            self.tracer.release(root);
        }
        while self.tracer.has_past() {
            self.tell_past();
        }
        self.tell_ended();
    }
}
