//! Everything that is attached, from the first reading of the mappings to the last snapshot.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    num::NonZeroU32,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use memtrace_ebpf::handles::classes;

use super::{
    Error,
    files::Files,
    golang::Runtimes,
    heirs::Heirs,
    history::{History, Reading},
    mapped::MappedBooks,
    mappings::{HEAP_NOT_VISIBLE, NO_SYMBOLS, read_images},
    snapshot,
    space::Space,
};
use crate::{
    cli::Recording,
    go::GoBinaries,
    kernel::{FIRST_SPACE, Limits, Programs, TableRoom},
    snapshot::{Coverage, GoState, GoWishes, Origin, Selection},
    target::Process,
};

/// Threads that can call the allocator in one run before calls are not recorded.
const THREADS: u32 = 16 << 10;
/// Processes that can be traced at once.
const PROCESSES: u32 = 16 << 10;
/// Distinct stacks of one run.
const STACKS: u32 = 64 << 10;
/// Descriptors that can be open at once in all tables.
const FDS: u32 = 1 << 20;
/// Of the pages that are touched one in so many is recorded.
pub(super) const TOUCH_DISTANCE: u32 = 16;
/// Rows kept free for libraries that are loaded later.
const SPARE_ROWS: u32 = 1536 << 10;
/// Pages kept free for them.
const SPARE_PAGES: u32 = 32 << 10;
/// Address ranges that all mappings together can take.
const PREFIXES: u32 = 64 << 10;

/// How to trace.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Live blocks that can be recorded at once.
    pub max_live: u32,
    /// Which blocks are recorded, and which of them are shown.
    pub selection: Selection,
    /// What is traced: bits of [`memtrace_ebpf::handles::classes`].
    pub classes: u32,
    /// Whether each open descriptor is listed.
    pub fd_details: bool,
    /// Trace what the process forks and executes, too.
    pub children: bool,
    /// What is wanted of Go runtimes.
    pub go: GoWishes,
    /// Attach programs that do nothing, to measure the cost of the probes alone.
    pub floor: bool,
    /// What private allocators put before the names of C's functions.
    pub allocator_prefixes: Vec<String>,
}

impl Settings {
    /// For this recording: of one process, without lists of descriptors.
    pub fn of(recording: &Recording) -> Self {
        Self {
            max_live: recording.max_live(),
            selection: recording.selection(),
            classes: recording.classes(),
            fd_details: false,
            children: false,
            go: recording.go_wishes(),
            floor: false,
            allocator_prefixes: recording.allocator_prefix.clone(),
        }
    }

    /// The kernel memory that a tracer takes with these settings (bytes).
    pub fn kernel_bytes(&self) -> u64 {
        let limits = limits(self, TableRoom::default());
        limits.block_bytes() + limits.other_bytes()
    }

    /// Whether anything of these classes is traced.
    pub fn trace(&self, classes: u32) -> bool {
        self.classes & classes != 0
    }
}

/// The processes with memtrace's probes in them. Dropping it removes the probes.
pub struct Tracer {
    pub(super) programs: Programs,
    pub(super) files: Files,
    pub(super) spaces: BTreeMap<u32, Space>,
    pub(super) settings: Settings,
    pub(super) root: Arc<Process>,
    pub(super) history: History,
    clock: Instant,
    /// When the snapshot or reading that is being made began, counted from the start.
    pub(super) moment: Option<Duration>,
    /// Address spaces that are no more; `true` if the process executed another program. Their books stay in the kernel until
    /// there is time to read them.
    pub(super) ending: VecDeque<(Space, bool)>,
    /// Address spaces whose books have been read for the last time.
    pub(super) dead: HashSet<u32>,
    /// Which address space was forked from which, as long as the tables may hold something of either.
    pub(super) parents: HashMap<u32, u32>,
    pub(super) look_at_ends: Option<Instant>,
    /// Whether what an io_uring opens is seen.
    pub(super) sees_io_uring: bool,
    /// The mappings of each address space.
    pub(super) mapped: HashMap<u32, MappedBooks>,
    /// Those of them that were not known at the last look.
    pub(super) unknown: HashSet<u32>,
    /// The Go runtimes among the processes.
    pub(super) runtimes: Runtimes,
    /// How long segments of System V's shared memory are (bytes), by their ids, which are not used again soon.
    pub(super) segments: HashMap<u64, u64>,
}

impl Tracer {
    /// Plans, loads and attaches; recording has begun when it returns.
    ///
    /// # Errors
    /// When the process is gone, or the kernel refuses.
    pub fn attach(process: Arc<Process>, origin: Origin, settings: &Settings) -> Result<Self, Error> {
        let info = process.info().clone();
        let mut space = Space::new(
            FIRST_SPACE,
            info,
            Some(Arc::clone(&process)),
            origin,
            Duration::ZERO,
        );
        let change = space.reader.refresh(&process)?;
        let runtimes = Runtimes::default();
        let images = read_images(&process, &change.added, settings, &runtimes.binaries());
        let limits = limits(settings, images.room());
        log::info!(
            "kernel memory: {} MiB for {} live blocks (--max-live), {} MiB for everything else",
            limits.block_bytes() >> 20,
            limits.blocks,
            limits.other_bytes() >> 20
        );
        let mut programs = Programs::load(&limits, settings.children, settings.classes)?;
        programs.choose_blocks(settings.selection.sample_bytes, settings.selection.min_size)?;
        let mut tracer = Self {
            programs,
            files: Files::default(),
            spaces: BTreeMap::new(),
            settings: settings.clone(),
            root: Arc::clone(&process),
            history: History::default(),
            clock: Instant::now(),
            moment: None,
            ending: VecDeque::new(),
            dead: HashSet::new(),
            parents: HashMap::new(),
            look_at_ends: None,
            sees_io_uring: true,
            mapped: HashMap::new(),
            unknown: HashSet::new(),
            segments: HashMap::new(),
            runtimes,
        };
        space.layout = tracer.files.new_layout();
        tracer
            .programs
            .add_process(process.pid(), FIRST_SPACE, space.layout)?;
        tracer.add_mappings(&mut space, &change.added, &images);
        tracer.programs.attach_process_events()?;
        if let Err(error) = tracer.programs.attach_forks() {
            if settings.children {
                return Err(error.into());
            }
            log::info!("processes that borrow the address space (vfork) are not recorded: {error}");
        }
        if settings.trace(!classes::HEAP) {
            tracer.programs.attach_calls()?;
        }
        if settings.trace(classes::FD) {
            tracer.sees_io_uring = tracer.attach_requests();
        }
        if settings.trace(classes::GROWTH) {
            tracer.programs.sample_touches(TOUCH_DISTANCE);
            tracer.programs.attach_faults()?;
        }
        // Whatever is attached here is attached from the beginning.
        space.is_held = true;
        tracer.attach_images(&mut space, images)?;
        space.is_held = false;
        space.say_what_is_not_visible(settings);
        if let Some(anchor) = NonZeroU32::new(process.anchor()) {
            tracer.programs.set_anchor(anchor);
        }
        tracer.spaces.insert(FIRST_SPACE, space);
        if settings.children {
            tracer.add_descendants();
        }
        tracer.note_breaks();
        tracer.programs.record(!settings.floor);
        tracer.clock = Instant::now();
        for space in tracer.spaces.values_mut() {
            space.started = SystemTime::now();
            space.since = Duration::ZERO;
        }
        let all: Vec<u32> = tracer.spaces.keys().copied().collect();
        tracer.note_what_is_there(&all);
        Ok(tracer)
    }

    /// Whether what an io_uring opens is seen.
    fn attach_requests(&mut self) -> bool {
        self.programs.attach_requests().unwrap_or_else(|error| {
            log::info!("{error}");
            false
        })
    }

    /// Notes what processes hold when their tracing begins.
    pub(super) fn note_what_is_there(&mut self, ids: &[u32]) {
        for id in ids {
            let Some(mut space) = self.spaces.remove(id) else {
                continue;
            };
            if self.settings.trace(classes::FD) {
                self.note_open_descriptors(&mut space);
            }
            if self.settings.trace(classes::MAPPING) {
                self.note_mappings(&mut space);
            }
            self.runtimes.discover(&space, &self.settings.go);
            self.spaces.insert(*id, space);
        }
    }

    /// The children that the process has already, and theirs. From here on the programs follow those that are made.
    fn add_descendants(&mut self) {
        // Another look finds those that were made by one that was not traced so far.
        for _ in 0..3 {
            self.add_all(&self.root.descendants(), FIRST_SPACE);
        }
    }

    /// The process that tracing began with.
    pub fn root(&self) -> &Arc<Process> {
        &self.root
    }

    /// Whether a process of this id is traced now.
    pub fn traces(&self, pid: u32) -> bool {
        self.spaces
            .values()
            .any(|space| space.info.pid == pid && !space.has_ended())
    }

    /// What is covered of a process that was attached to, and what is not.
    pub fn coverage(&self, root: u32) -> Coverage {
        let first = self.spaces.get(&root);
        first.map_or_else(Coverage::default, |space| self.coverage_of(space))
    }

    /// The version of the Go runtime in a process that was attached to, if it has one that can be read.
    pub fn go_version(&self, root: u32) -> Option<&str> {
        self.runtimes.version(root)
    }

    /// Why what is wanted of a Go runtime cannot be had of a process that was attached to, if it cannot.
    pub fn go_refusal(&self, root: u32) -> Option<String> {
        self.runtimes.refusal(root, &self.settings.go)
    }

    /// The Go runtimes of what descends from these, after a short look: without goroutines and threads.
    pub fn go_at_a_glance(&self, is_wanted: impl Fn(u32) -> bool) -> Vec<GoState> {
        let wishes = GoWishes {
            goroutines: false,
            threads: false,
            ..self.settings.go
        };
        let spaces = self.spaces.values().filter(|space| is_wanted(space.root));
        spaces
            .filter_map(|space| self.runtimes.state(space, &wishes, None))
            .collect()
    }

    /// What was attached to and has something left, see [`Tracer::add`].
    pub fn roots(&self) -> HashSet<u32> {
        let ending = self.ending.iter().map(|(space, _)| space);
        self.spaces
            .values()
            .chain(ending)
            .map(|space| space.root)
            .collect()
    }

    /// The Go programs that were opened.
    pub fn go_binaries(&self) -> GoBinaries {
        self.runtimes.binaries()
    }

    pub(super) fn coverage_of(&self, space: &Space) -> Coverage {
        let mut coverage = space.coverage.clone();
        if self.runtimes.has_runtime(space.id) {
            coverage
                .not_covered
                .retain(|note| note != HEAP_NOT_VISIBLE && note != NO_SYMBOLS);
        }
        let missing = self.files.without_malloc(&self.settings.allocator_prefixes);
        coverage.not_covered.extend(missing);
        coverage
    }

    /// The loaded programs, for their log.
    pub fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// The descriptor that becomes readable when there are notices.
    pub fn notices_fd(&self) -> BorrowedFd<'_> {
        self.programs.notices_fd()
    }

    /// For how long it has been recording.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Whether there is an address space left that is traced.
    pub fn lives(&self) -> bool {
        !self.spaces.is_empty()
    }

    /// Whether the process is stopped whenever its dynamic linker changed its mappings, so that nothing is missed.
    pub fn hold(&mut self, on: bool) {
        self.programs.hold(if on { self.root.pid() } else { 0 });
        for space in self.spaces.values_mut() {
            space.is_held = on;
        }
    }

    /// The descriptor that becomes readable when mappings changed.
    pub fn map_events_fd(&self) -> BorrowedFd<'_> {
        self.programs.map_events_fd()
    }

    /// The descriptor that becomes readable when many frames wait to be read.
    pub fn frames_fd(&self) -> BorrowedFd<'_> {
        self.programs.books().frames_fd()
    }

    /// Reads frames that wait.
    pub fn read_frames(&mut self) {
        self.programs.books_mut().read_frames();
    }

    /// Looks for Go runtimes in what was forked or executed since.
    fn find_runtimes(&mut self) {
        for space in self.spaces.values() {
            self.runtimes.discover(space, &self.settings.go);
        }
    }

    /// Makes room in the tables, and does what was too early before; to be called now and then.
    pub fn tidy(&mut self) {
        self.find_runtimes();
        self.runtimes.enable_awaited();
        self.forget_the_past();
        let count = self.programs.stack_count();
        if self.programs.books().wants_room(count) {
            let held = self.held_stacks();
            if self.programs.books_mut().make_room(count, &held) {
                self.programs.mappings_changed();
            }
        }
        if self.dead.is_empty() {
            return;
        }
        let ending = self.ending.iter().map(|(space, _)| &space.id);
        let heirs = Heirs::of(&self.parents, self.spaces.keys().chain(ending));
        // What a descendant inherited refers to the stacks of its ancestors.
        let dead: HashSet<u32> = self.dead.difference(&heirs.needed).copied().collect();
        if dead.is_empty() {
            return;
        }
        self.dead.retain(|space| !dead.contains(space));
        self.mapped.retain(|space, _| !dead.contains(space));
        let given_back = self
            .programs
            .books_mut()
            .give_back(count, &dead, |key| heirs.may_hold(key, &dead));
        let given_back = given_back.and_then(|()| {
            let descriptors = self.programs.descriptors();
            descriptors.forget(|table| dead.contains(&table))
        });
        if let Err(error) = given_back {
            log::debug!("the books are not tidied: {error}");
        }
        let needed = heirs.needed;
        self.parents
            .retain(|child, parent| needed.contains(child) || needed.contains(parent));
    }

    /// The stacks at which descriptors or mappings are held.
    fn held_stacks(&self) -> HashSet<u32> {
        let open = self.programs.descriptors_ref().open_by_stack();
        let mapped = self.mapped.values().flat_map(MappedBooks::held_stacks);
        let open = open.unwrap_or_default();
        open.values()
            .flat_map(HashMap::keys)
            .copied()
            .chain(mapped)
            .collect()
    }

    /// Stops recording, so that the next snapshot is the last word.
    pub fn stop(&mut self) {
        self.programs.record(false);
    }

    /// Keeps a reading for later comparison, if one is due.
    pub fn observe(&mut self) {
        let elapsed = self.elapsed();
        if self.history.is_due(elapsed) {
            self.moment = Some(elapsed);
            self.find_runtimes();
            self.read_map_events();
            self.find_trampolines();
            let count = self.programs.stack_count();
            let open_fds = self.open_by_stack();
            self.history.keep(Reading {
                at: elapsed,
                live_bytes: snapshot::live_bytes(self.programs.books(), count),
                open_fds,
                mapped: self
                    .mapped
                    .iter()
                    .map(|(&space, books)| (space, books.held()))
                    .collect(),
                go: self
                    .runtimes
                    .read(&self.spaces, &self.settings.go, |space| self.before(space)),
            });
            self.moment = None;
        }
    }

    /// When [`Tracer::observe`] is due next, counted from the start.
    pub fn next_observation(&self) -> Duration {
        self.history.next_due()
    }

    /// What the processes hold now, and events that were not recorded.
    pub fn totals(&mut self) -> snapshot::Totals {
        let mut totals = snapshot::totals(
            self.programs.books(),
            self.programs.stack_count(),
            self.spaces.keys().copied(),
        );
        if self.settings.trace(classes::FD) {
            let processes = self.spaces.values().filter_map(|space| space.process.as_ref());
            let counts = processes.filter_map(|process| process.descriptor_count());
            totals.open_fds = counts.reduce(|sum, count| sum + count);
        }
        if self.settings.trace(classes::MAPPING) {
            self.read_map_events();
            let held = self.mapped.values().map(MappedBooks::mapped_while_tracing);
            totals.mapped_bytes = Some(held.sum());
        }
        totals
    }
}

fn limits(settings: &Settings, room: TableRoom) -> Limits {
    let tables = TableRoom {
        rows: room.rows.saturating_add(SPARE_ROWS),
        pages: room.pages.saturating_add(SPARE_PAGES),
        prefixes: PREFIXES,
    };
    Limits {
        blocks: settings.max_live,
        threads: THREADS,
        processes: PROCESSES,
        stacks: STACKS,
        fds: FDS,
        tables,
    }
}
