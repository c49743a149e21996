//! What becomes of the processes: they fork, execute other programs, lose threads, and end.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use memtrace_ebpf::layout::{Notice, NoticeKind};

use super::{Error, Tracer, space::Space};
use crate::{
    kernel::Threads,
    snapshot::{Origin, Snapshot},
    target::{Process, ProcessInfo},
};

/// A process whose first thread has ended is looked at this long after: the kernel tells before it is done.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// An address space that is no more, with the last word on it.
pub struct Past {
    /// What it held.
    pub snapshot: Snapshot,
    /// The address space that memtrace attached to and that this one descends from, or itself.
    pub root: u32,
    /// Whether the process executed another program, rather than ended.
    pub executed: bool,
}

/// The name of the process that a notice is about.
fn name_of(notice: &Notice) -> String {
    let bytes = notice.name.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

impl Tracer {
    /// Acts on what the programs told.
    pub fn handle_notices(&mut self) {
        for (kind, notice) in self.programs.take_notices() {
            match kind {
                NoticeKind::MappingsChanged => self.refresh(notice.space),
                NoticeKind::AnchorEnded => self.rebind(),
                NoticeKind::Forked => self.add_child(&notice),
                NoticeKind::Executed => self.add_executed(&notice),
                NoticeKind::Ended => self.look_at_ends = Some(Instant::now() + LOOK_AGAIN),
            }
        }
    }

    /// When [`Tracer::find_ended`] is due.
    pub fn ends_due(&self) -> Option<Instant> {
        self.look_at_ends
    }

    /// Finds processes that have ended.
    pub fn find_ended(&mut self) {
        self.look_at_ends = None;
        // A child is to be heard of before its parent is forgotten.
        self.handle_notices();
        let ended = self.spaces.values().filter(|space| space.has_ended());
        let ended: Vec<_> = ended.map(|space| space.id).collect();
        for id in ended {
            self.end(id, false);
        }
        if self.settings.children {
            self.anchor_others();
        }
    }

    /// Whether [`Tracer::take_past`] has something to tell.
    pub fn has_past(&self) -> bool {
        !self.ending.is_empty()
    }

    /// The last word on the next address space that is no more; `None` also if there is nothing to tell of it.
    pub fn take_past(&mut self) -> Option<Past> {
        let (mut space, executed) = self.ending.pop_front()?;
        self.read_map_events();
        self.programs.books_mut().read_frames();
        self.dead.insert(space.id);
        space.say_what_is_not_visible(&self.settings);
        let mut snapshot = self.snapshot(&space, &self.old_blocks());
        self.runtimes.forget(space.id);
        // Children that end quickly would fill the table before it is tidied.
        if self.spaces.values().all(|other| other.table != space.table) {
            self.programs.descriptors().forget_small(space.table);
        }
        if snapshot.heap && snapshot.coverage.allocators.is_empty() && !snapshot.sites.is_empty() {
            snapshot
                .coverage
                .allocators
                .push("an allocator that is probed for other processes".into());
        }
        // Most forks only execute a program: of such a moment there is nothing to tell.
        let is_idle = snapshot.sites.iter().all(|site| site.inherited);
        let is_told = !(executed && is_idle && matches!(space.origin, Origin::Forked { .. }));
        is_told.then_some(Past {
            snapshot,
            root: space.root,
            executed,
        })
    }

    /// A process was forked: it has its parent's memory and mappings.
    fn add_child(&mut self, notice: &Notice) {
        let process = Process::open_made_at(notice.process, notice.time)
            .ok()
            .map(Arc::new);
        let parent = self.spaces.get(&notice.earlier);
        // By now it may have executed another program, which has another name.
        let info = ProcessInfo {
            pid: notice.process,
            name: name_of(notice),
            ..parent.map_or_else(ProcessInfo::default, |parent| parent.info.clone())
        };
        let origin = Origin::Forked { parent: notice.by };
        let mut space = Space::new(notice.space, info, process, origin, self.since(notice));
        space.table = notice.table;
        if let Some(parent) = parent {
            space.root = parent.root;
            space.layout = parent.layout;
            space.reader = parent.reader.clone();
            space.bound.clone_from(&parent.bound);
            space.coverage = parent.coverage.clone();
            space.attached = parent.attached.clone();
            self.files.share_layout(parent.layout);
        }
        if space.process.is_none() {
            self.look_at_ends.get_or_insert_with(Instant::now);
        }
        self.anchor(&mut space);
        self.parents.insert(notice.space, notice.earlier);
        self.spaces.insert(notice.space, space);
    }

    /// A process executed a program: one address space ends, and another begins.
    fn add_executed(&mut self, notice: &Notice) {
        let owner = self.spaces.get(&notice.earlier).map(|space| space.info.clone());
        let had_own = owner.as_ref().is_some_and(|info| info.pid == notice.process);
        if !self.settings.children {
            if had_own {
                self.end(notice.earlier, true);
            }
            return;
        }
        let process = Process::open(notice.process).ok().map(Arc::new);
        let info = process.as_ref().map_or_else(
            || ProcessInfo {
                pid: notice.process,
                name: name_of(notice),
                ..ProcessInfo::default()
            },
            |process| process.info().clone(),
        );
        let before = self.spaces.get(&notice.earlier);
        let bound = before.map_or_else(HashSet::new, |space| space.bound.clone());
        let root = before.map_or(notice.space, |space| space.root);
        let origin = match owner {
            Some(info) if had_own => Origin::Executed { before: info.name },
            Some(info) => Origin::Spawned {
                parent: Some(info.pid),
            },
            None => Origin::Spawned { parent: None },
        };
        let mut space = Space::new(notice.space, info, process, origin, self.since(notice));
        space.root = root;
        space.layout = self.files.new_layout();
        // Perf events stay with a thread through an exec.
        space.bound = bound;
        space.table = notice.table;
        self.anchor(&mut space);
        let described = self.programs.spaces().describe(space.id, space.layout, 0);
        if let Err(error) = described {
            space.add_note(format!("stacks are not unwound: {error}"));
        }
        self.spaces.insert(space.id, space);
        // First this, which may not live long.
        self.refresh(notice.space);
        self.note_new_mappings(notice.space);
        if had_own {
            self.end(notice.earlier, true);
        }
    }

    /// When a notice was given, counted from the start.
    fn since(&self, notice: &Notice) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        let ago = now.saturating_sub(Duration::from_nanos(notice.time));
        self.elapsed().saturating_sub(ago)
    }

    /// Begins to trace another process and its descendants, beside those that are traced. Returns the number of its address
    /// space, by which [`Tracer::snapshots_of`] and [`Tracer::release`] know them all; if it is traced already, that of the
    /// process that it descends from. Needs [`Settings::children`](super::Settings::children).
    ///
    /// # Errors
    /// When it has ended, or the kernel refuses.
    pub fn add(&mut self, process: Arc<Process>) -> Result<u32, Error> {
        // One that has ended may have left its id to this one.
        self.find_ended();
        let before: HashSet<u32> = self.spaces.keys().copied().collect();
        let descendants = process.descendants();
        let root = self.add_running(process, None)?;
        self.add_all(&descendants, root);
        let new = self.spaces.keys().copied().filter(|id| !before.contains(id));
        self.note_what_is_there(&new.collect::<Vec<_>>());
        Ok(root)
    }

    /// Ends the tracing of a process that was attached to and of all that descends from it. They run on; what they held
    /// is told as of those that ended.
    pub fn release(&mut self, root: u32) {
        // What it forked just now is to go with it.
        self.handle_notices();
        let of_root = self.spaces.values().filter(|space| space.root == root);
        let ids: Vec<u32> = of_root.map(|space| space.id).collect();
        for id in ids {
            self.end(id, false);
        }
    }

    /// Begins to trace processes that descend from a traced one, but were made before.
    pub(super) fn add_all(&mut self, pids: &[u32], root: u32) {
        for &pid in pids {
            let opened = Process::open(pid).map_err(Error::from);
            if let Err(error) = opened.and_then(|process| self.add_running(Arc::new(process), Some(root))) {
                log::warn!("process {pid} is not traced: {error}");
            }
        }
    }

    /// Begins to trace one process, which descends from this root or is one.
    fn add_running(&mut self, process: Arc<Process>, root: Option<u32>) -> Result<u32, Error> {
        let pid = process.pid();
        if let Some(known) = self.programs.spaces().of(pid) {
            return Ok(self.spaces.get(&known).map_or(known, |space| space.root));
        }
        let id = self.programs.new_space();
        let info = process.info().clone();
        let mut space = Space::new(id, info, Some(process), Origin::Attached, self.elapsed());
        space.root = root.unwrap_or(id);
        space.layout = self.files.new_layout();
        self.note_break(&mut space);
        self.programs.add_process(pid, id, space.layout)?;
        space.is_held = true;
        self.spaces.insert(id, space);
        self.refresh(id);
        if let Some(space) = self.spaces.get_mut(&id) {
            space.is_held = false;
        }
        Ok(root.unwrap_or(id))
    }

    /// An address space is no more.
    fn end(&mut self, id: u32, executed: bool) {
        let Some(space) = self.spaces.remove(&id) else {
            return;
        };
        self.programs.spaces().forget(space.info.pid, id);
        self.programs.forget_break(id);
        if !executed {
            self.programs.unbind(space.info.pid);
        }
        if self.files.leave_layout(space.layout) {
            self.programs.tables().remove_layout(space.layout);
        }
        self.ending.push_back((space, executed));
    }

    /// Finds where return probes return to, which is known only some time after the first.
    pub(super) fn find_trampolines(&mut self) {
        for space in self.spaces.values_mut().filter(|space| space.trampoline == 0) {
            let Some(process) = &space.process else { continue };
            let Ok(Some(address)) = process.trampoline() else {
                continue;
            };
            match self.programs.spaces().describe(space.id, space.layout, address) {
                Ok(()) => space.trampoline = address,
                Err(error) => log::debug!("{error}"),
            }
        }
    }

    /// The thread that the probes were bound to has ended: binds them to another.
    ///
    /// The old ones stay until the end. They are dead, and removing them takes longer than is good here.
    fn rebind(&mut self) {
        let began = Instant::now();
        let Some(anchor) = self.root.choose_anchor() else {
            return;
        };
        let threads = Threads {
            process: self.root.pid(),
            ids: &[anchor],
        };
        let result = self
            .files
            .attach_again(&mut self.programs, &self.settings, &threads);
        self.programs.set_anchor(anchor);
        let ended = "the thread that the probes were bound to ended";
        let note = match result {
            Ok(()) => format!(
                "{ended} after {:.1} s; nothing was recorded for some {} ms, until they were bound to another",
                self.elapsed().as_secs_f64(),
                began.elapsed().as_millis() + 1
            ),
            Err(error) => {
                format!(
                    "{ended}, and they could not be bound to another: nothing was recorded since ({error})"
                )
            }
        };
        // The other threads of a process that ends as a whole end a moment later.
        std::thread::sleep(LOOK_AGAIN);
        if self.root.has_ended() {
            return;
        }
        log::warn!("{note}");
        for space in self.spaces.values_mut() {
            space.add_note(note.clone());
        }
    }
}
