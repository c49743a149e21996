//! The targets that are there, and what becomes of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, mpsc},
    time::SystemTime,
};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    discovery::Found,
    group::{Command, Event, Group, GroupId, Owner, Refusal},
    naming::{Job, Profiles},
    notes::Told,
    say,
    source::{Entry, Shared},
};
use crate::{cli::Recording, session::Settings, snapshot::Coverage, target::Process, text::printable};

/// How much may be traced at once.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// So many targets.
    pub targets: usize,
    /// So much kernel memory for tables (bytes).
    pub memory: u64,
}

/// A target of which something is traced, or is going to be.
pub(super) struct Traced {
    pub(super) found: Found,
    pub(super) group: GroupId,
    pub(super) since: SystemTime,
    /// What was attached to, with what is covered of it.
    pub(super) roots: BTreeMap<u32, Coverage>,
    /// Processes that are known, so that each is attached to once.
    known: BTreeSet<u32>,
    /// Why processes are not traced.
    pub(super) refused: BTreeMap<u32, Refusal>,
    pub(super) is_go: bool,
    /// What its Go runtimes do not show.
    pub(super) go_notes: BTreeSet<String>,
    told: Told,
}

/// A target that is not traced.
pub(super) struct Waiting {
    pub(super) found: Found,
    pub(super) why: String,
    until: Until,
}

/// When a target that is not traced is tried again.
enum Until {
    /// Always: it lacks room.
    Room,
    /// When its processes are others, or, if a target is named to which they belong, when that one is traced no more.
    Change(Option<Arc<str>>),
}

impl Until {
    /// Whether there is no use in trying.
    fn holds(&self, traced: &BTreeMap<String, Traced>) -> bool {
        match self {
            Self::Room => false,
            Self::Change(owner) => owner.as_ref().is_none_or(|owner| traced.contains_key(&**owner)),
        }
    }
}

/// Targets of which the same is recorded.
pub(super) struct Member {
    pub(super) group: Group,
    recording: Recording,
    memory: u64,
    /// Whether it has attached to anything; then it ends by itself.
    has_begun: bool,
}

/// What the daemon knows of all of it.
pub struct Targets {
    budget: Budget,
    pub(super) groups: HashMap<GroupId, Member>,
    next_group: GroupId,
    pub(super) traced: BTreeMap<String, Traced>,
    /// Those that are not traced, and why.
    pub(super) waiting: BTreeMap<String, Waiting>,
    events: UnboundedSender<(GroupId, Event)>,
    naming: mpsc::Sender<Job>,
    pub(super) shared: Arc<Shared>,
    /// Whether all of them are about to end, as the daemon does.
    is_ending: bool,
}

/// A target that has ended, whose last profiles come.
pub struct Ending {
    /// What it was.
    pub entry: Entry,
    /// Its last profiles, when they are made.
    pub profiles: oneshot::Receiver<Profiles>,
}

impl Targets {
    /// No targets yet.
    pub fn new(
        budget: Budget,
        events: UnboundedSender<(GroupId, Event)>,
        naming: mpsc::Sender<Job>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            budget,
            groups: HashMap::new(),
            next_group: 0,
            traced: BTreeMap::new(),
            waiting: BTreeMap::new(),
            events,
            naming,
            shared,
            is_ending: false,
        }
    }

    /// Changes how much may be traced at once; what is traced stays.
    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
    }

    /// Begins to trace what is new, and lets go of what is not a target any more. What has ended is told by its group.
    pub fn reconcile(&mut self, found: Vec<Found>) {
        let mut waited = std::mem::take(&mut self.waiting);
        let mut wanted = BTreeSet::new();
        for target in found {
            if let Some(why) = target.absent.clone() {
                let before = waited.remove(&target.id);
                let waiting = told_once(target, why, before.as_ref());
                self.waiting.insert(waiting.found.id.clone(), waiting);
                continue;
            }
            wanted.insert(target.id.clone());
            let is_same = |traced: &Traced| traced.found.spec.recording == target.spec.recording;
            match self.traced.get_mut(&target.id) {
                Some(traced) if is_same(traced) => traced.found = target.clone(),
                // It is let go first, and found again as another.
                Some(_) => {
                    wanted.remove(&target.id);
                    continue;
                }
                None => {
                    let before = waited.remove(&target.id);
                    if let Some(waiting) = self.try_begin(&target, before) {
                        self.waiting.insert(target.id.clone(), waiting);
                        continue;
                    }
                }
            }
            self.attach(&target);
        }
        let gone: Vec<String> = self
            .traced
            .keys()
            .filter(|id| !wanted.contains(*id))
            .cloned()
            .collect();
        for id in gone {
            self.release(&id);
        }
        self.publish();
    }

    /// Begins to trace a target, unless that was refused before, or there is no room.
    fn try_begin(&mut self, target: &Found, before: Option<Waiting>) -> Option<Waiting> {
        let before = match before {
            Some(waiting) if waiting.until.holds(&self.traced) && waiting.found.pids == target.pids => {
                return Some(waiting);
            }
            other => other,
        };
        let why = self.begin(target).err()?;
        Some(told_once(target.clone(), why, before.as_ref()))
    }

    /// Finds or begins a group for a target.
    fn begin(&mut self, target: &Found) -> Result<(), String> {
        if self.traced.len() >= self.budget.targets {
            return Err(format!(
                "there are {} targets already (--max-targets)",
                self.budget.targets
            ));
        }
        let group = self.group_for(&target.spec.recording)?;
        let traced = Traced {
            found: target.clone(),
            group,
            since: SystemTime::now(),
            roots: BTreeMap::new(),
            known: BTreeSet::new(),
            refused: BTreeMap::new(),
            is_go: false,
            go_notes: BTreeSet::new(),
            told: Told::default(),
        };
        self.traced.insert(target.id.clone(), traced);
        Ok(())
    }

    fn group_for(&mut self, recording: &Recording) -> Result<GroupId, String> {
        let is_usable = |member: &&Member| member.recording == *recording && !member.group.is_over();
        let usable = self.groups.iter().find(|(_, member)| is_usable(member));
        if let Some((&id, _)) = usable {
            return Ok(id);
        }
        let settings = Settings {
            children: true,
            ..Settings::of(recording)
        };
        let memory = settings.kernel_bytes();
        let taken: u64 = self.groups.values().map(|member| member.memory).sum();
        if taken + memory > self.budget.memory {
            return Err(format!(
                "its tables take {} MiB of kernel memory, and {} of {} MiB are taken (--max-memory, --max-live)",
                memory >> 20,
                taken >> 20,
                self.budget.memory >> 20
            ));
        }
        let id = self.next_group;
        self.next_group += 1;
        let group = Group::start(id, settings, self.events.clone(), self.naming.clone());
        let group = group.map_err(|error| error.to_string())?;
        let recording = recording.clone();
        self.groups.insert(
            id,
            Member {
                group,
                recording,
                memory,
                has_begun: false,
            },
        );
        Ok(id)
    }

    /// Attaches to the processes of a target that are not known yet.
    fn attach(&mut self, target: &Found) {
        let Some(traced) = self.traced.get_mut(&target.id) else {
            return;
        };
        let Some(member) = self.groups.get(&traced.group) else {
            return;
        };
        let now: BTreeSet<u32> = target.pids.iter().copied().collect();
        traced.known.retain(|pid| now.contains(pid));
        traced.refused.retain(|pid, _| now.contains(pid));
        for pid in now {
            if !traced.known.insert(pid) {
                continue;
            }
            match Process::open(pid) {
                Ok(process) => {
                    let owner = Owner {
                        target: target.id.as_str().into(),
                        frames: target.spec.recording.allocator_frames(),
                    };
                    member.group.ask(Command::Attach(Arc::new(process), owner));
                }
                Err(error) => {
                    log::debug!("{error}");
                    traced.refused.insert(pid, Refusal::Impossible(error.to_string()));
                }
            }
        }
        self.give_up(&target.id);
    }

    /// Makes room for others if no process of a target can be traced.
    fn give_up(&mut self, id: &str) {
        let is_hopeless = |traced: &&Traced| {
            traced.roots.is_empty() && traced.known.iter().all(|pid| traced.refused.contains_key(pid))
        };
        if self.traced.get(id).filter(is_hopeless).is_none() {
            return;
        }
        if let Some(traced) = self.traced.remove(id) {
            self.end_unused(traced.group);
            self.set_aside(id, traced);
        }
    }

    /// Keeps a target of which nothing is traced until there is a reason to try again. What has no process that was refused is
    /// found again by itself.
    fn set_aside(&mut self, id: &str, traced: Traced) {
        let Some(refusal) = traced.refused.values().next().cloned() else {
            return;
        };
        let why = told(&refusal);
        // One that lived for a moment is of no interest.
        let exists = |pid: &u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        if traced.found.pids.iter().any(exists) {
            say(&format!(
                "{} is not traced: {why}",
                printable(&traced.found.title)
            ));
        }
        let until = match refusal {
            Refusal::IsOf(owner) => Until::Change(Some(owner)),
            Refusal::Impossible(_) | Refusal::Over => Until::Change(None),
        };
        let waiting = Waiting {
            found: traced.found,
            why,
            until,
        };
        self.waiting.insert(id.to_owned(), waiting);
    }

    /// Ends a group that no target is traced by and that never had anything to trace.
    fn end_unused(&self, group: GroupId) {
        if self.traced.values().any(|traced| traced.group == group) {
            return;
        }
        if let Some(member) = self.groups.get(&group).filter(|member| !member.has_begun) {
            member.group.ask(Command::End);
        }
    }

    /// Lets go of a target. What it held is told as of one that ended.
    fn release(&mut self, id: &str) {
        let Some(traced) = self.traced.get(id) else { return };
        if let Some(member) = self.groups.get(&traced.group) {
            for &root in traced.roots.keys() {
                member.group.ask(Command::Release(root));
            }
        }
        if traced.roots.is_empty()
            && let Some(traced) = self.traced.remove(id)
        {
            self.end_unused(traced.group);
        }
    }

    /// Takes note of what a group told. Returns targets that have ended by it. Others see it after [`Targets::publish`].
    pub fn note(&mut self, group: GroupId, event: Event) -> Vec<Ending> {
        let mut ended = Vec::new();
        match event {
            Event::Attached {
                pid,
                target,
                root,
                coverage,
                is_go,
            } => self.note_attached(group, pid, &target, root, coverage, is_go),
            Event::Noted {
                target,
                lasting,
                passing,
            } => self.note_go(group, &target, lasting, passing),
            Event::Refused { pid, target, why } => self.note_refused(group, pid, &target, why),
            Event::Ended { root, target } => ended.extend(self.end_root(group, &target, root)),
            Event::Over => ended.extend(self.note_over(group)),
        }
        ended
    }

    /// The target of this id, if this group traces it.
    fn of_group(&mut self, group: GroupId, target: &str) -> Option<&mut Traced> {
        self.traced.get_mut(target).filter(|traced| traced.group == group)
    }

    fn note_attached(
        &mut self,
        group: GroupId,
        pid: u32,
        target: &str,
        root: u32,
        coverage: Coverage,
        is_go: bool,
    ) {
        if let Some(member) = self.groups.get_mut(&group) {
            member.has_begun = true;
        }
        let Some(traced) = self.of_group(group, target) else {
            // It is not wanted any more.
            if let Some(member) = self.groups.get(&group) {
                member.group.ask(Command::Release(root));
            }
            return;
        };
        if traced.roots.contains_key(&root) {
            return;
        }
        log::info!("process {pid} of {} is traced", printable(&traced.found.title));
        if traced.roots.is_empty() {
            say(&format!("tracing {}", printable(&traced.found.title)));
        }
        traced.is_go |= is_go;
        for note in &coverage.not_covered {
            let note = format!("not covered: {note}");
            traced.told.say_once(&traced.found.title, &note);
        }
        traced.roots.insert(root, coverage);
    }

    fn note_go(
        &mut self,
        group: GroupId,
        target: &str,
        lasting: BTreeSet<String>,
        passing: BTreeSet<String>,
    ) {
        let Some(traced) = self.of_group(group, target) else {
            return;
        };
        for note in &lasting {
            traced.told.say_once(&traced.found.title, note);
        }
        traced.go_notes = lasting;
        traced.go_notes.extend(passing);
    }

    fn note_refused(&mut self, group: GroupId, pid: u32, target: &str, why: Refusal) {
        let Some(traced) = self.of_group(group, target) else {
            return;
        };
        if matches!(why, Refusal::Over) {
            traced.known.remove(&pid);
            return;
        }
        // One that lived for a moment is of no interest.
        if matches!(why, Refusal::Impossible(_)) && Process::open(pid).is_ok() {
            log::warn!(
                "process {pid} of {} is not traced: {}",
                printable(&traced.found.title),
                told(&why)
            );
        }
        traced.refused.insert(pid, why);
        self.give_up(target);
    }

    fn end_root(&mut self, group: GroupId, target: &str, root: u32) -> Option<Ending> {
        let Some(traced) = self.of_group(group, target) else {
            if !self.traced.contains_key(target) {
                // What it left is not the next target's of this id.
                let (answer, _) = oneshot::channel();
                let target = target.to_owned();
                let _received = self.naming.send(Job::Last { target, answer });
            }
            return None;
        };
        traced.roots.remove(&root)?;
        if !traced.roots.is_empty() {
            return None;
        }
        let traced = self.traced.remove(target)?;
        Some(self.end(traced))
    }

    /// The last profiles of a target.
    fn end(&self, traced: Traced) -> Ending {
        if !self.is_ending {
            say(&format!(
                "{} has ended, or was let go",
                printable(&traced.found.title)
            ));
        }
        let entry = self.entry(&traced);
        let (answer, profiles) = oneshot::channel();
        let _received = self.naming.send(Job::Last {
            target: entry.summary.id.clone(),
            answer,
        });
        Ending { entry, profiles }
    }

    /// A group is no more: what it was to trace is tried again, with another.
    fn note_over(&mut self, group: GroupId) -> Vec<Ending> {
        if let Some(member) = self.groups.remove(&group) {
            member.group.join();
        }
        let its = self.traced.iter().filter(|(_, traced)| traced.group == group);
        let ids: Vec<String> = its.map(|(id, _)| id.clone()).collect();
        let mut ended = Vec::new();
        for id in ids {
            if let Some(traced) = self.traced.remove(&id) {
                // It is found again, and has another group then.
                match traced.roots.is_empty() {
                    true => self.set_aside(&id, traced),
                    false => ended.push(self.end(traced)),
                }
            }
        }
        ended
    }

    /// Has all groups end; their last words come as events.
    pub fn end_all(&mut self) {
        self.is_ending = true;
        for member in self.groups.values() {
            member.group.end();
        }
    }

    /// Whether any target is traced, or is going to be.
    pub fn has_traced(&self) -> bool {
        !self.traced.is_empty()
    }

    /// Whether any group runs.
    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }
}

/// A target that waits for room or for a process; why it does is said if it is not what was said before.
fn told_once(found: Found, why: String, before: Option<&Waiting>) -> Waiting {
    // Of containers more was said when the engines were asked.
    let is_said = found.absent.is_some() && found.spec.container.is_some();
    if !is_said && before.is_none_or(|waiting| waiting.why != why) {
        say(&format!("{} is not traced: {why}", printable(&found.title)));
    }
    Waiting {
        found,
        why,
        until: Until::Room,
    }
}

/// Why a process is not traced, as people read it.
pub(super) fn told(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Impossible(why) => why.clone(),
        Refusal::IsOf(target) => format!("it descends from a process of {target}, and is counted there"),
        Refusal::Over => "memtrace lets go of it".to_owned(),
    }
}
