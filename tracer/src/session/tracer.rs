//! Everything that is attached to one process, from the first reading of its mappings to the last snapshot.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use memtrace_ebpf::layout::Notice;

use super::{
    Error,
    history::History,
    images::{Images, Probes},
    snapshot,
};
use crate::{
    kernel::{FileTable, Limits, Programs, TableRoom},
    snapshot::{Coverage, Snapshot},
    target::{Change, Mapping, MappingReader, Process},
};

/// Threads that can call the allocator in one run before calls are not recorded.
const THREADS: u32 = 16 << 10;
/// Distinct stacks of one run.
const STACKS: u32 = 64 << 10;
/// Frames of all distinct stacks.
const FRAMES: u32 = 1 << 20;
/// Rows kept free for libraries that are loaded later.
const SPARE_ROWS: u32 = 1536 << 10;
/// Pages kept free for them.
const SPARE_PAGES: u32 = 32 << 10;
/// Address ranges that all mappings together can take.
const PREFIXES: u32 = 64 << 10;

/// How long a wish to read the mappings has to wait after one that found nothing new.
const WISH_PERIOD: Duration = Duration::from_secs(1);

/// In what a profile says that cannot show anything.
const HEAP_NOT_VISIBLE: &str = "heap not visible";

/// How to trace.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Live blocks that can be recorded at once.
    pub max_live: u32,
    /// Attach programs that do nothing, to measure the cost of the probes alone.
    pub floor: bool,
    /// What private allocators put before the names of C's functions.
    pub allocator_prefixes: Vec<String>,
}

/// A process with memtrace's probes in it. Dropping it removes them.
pub struct Tracer {
    process: Arc<Process>,
    reader: MappingReader,
    programs: Programs,
    tables: HashMap<(u64, u64), FileTable>,
    coverage: Coverage,
    probes: Probes,
    floor: bool,
    allocator_prefixes: Vec<String>,
    /// What was said of prefixes that no file had so far.
    prefix_notes: Vec<String>,
    wishes_from: Option<Instant>,
    knows_trampoline: bool,
    history: History,
    started: SystemTime,
    clock: Instant,
}

impl Tracer {
    /// Plans, loads and attaches; recording has begun when it returns.
    ///
    /// # Errors
    /// When the process is gone, or the kernel refuses.
    pub fn attach(process: Arc<Process>, settings: &Settings) -> Result<Self, Error> {
        let mut reader = MappingReader::default();
        let change = reader.refresh(&process)?;
        let mut images = Images::read(&process, &change.added, &settings.allocator_prefixes);
        let limits = limits(settings, images.room());
        log::info!(
            "kernel memory: {} MiB for {} live blocks (--max-live), {} MiB for everything else",
            limits.block_bytes() >> 20,
            limits.blocks,
            limits.other_bytes() >> 20
        );
        let programs = Programs::load(&limits, process.pid())?;
        let missing_prefixes = images.without_malloc(&settings.allocator_prefixes);
        let mut tracer = Self {
            process,
            reader,
            programs,
            tables: HashMap::new(),
            probes: images.probes(),
            floor: settings.floor,
            allocator_prefixes: settings.allocator_prefixes.clone(),
            prefix_notes: missing_prefixes,
            wishes_from: None,
            knows_trampoline: false,
            coverage: images.take_coverage(),
            history: History::default(),
            started: SystemTime::now(),
            clock: Instant::now(),
        };
        tracer.add_mappings(&change, &images);
        tracer.programs.attach_process_events()?;
        if tracer.coverage.allocators.is_empty() {
            let reason = images.why_heap_is_not_visible().to_owned();
            tracer.coverage.not_covered.insert(0, reason);
        }
        tracer
            .coverage
            .not_covered
            .extend(tracer.prefix_notes.iter().cloned());
        for (site, _) in &tracer.probes.sites {
            log::info!("{}: {}", site.symbol, site.why);
        }
        let anchor = NonZeroU32::new(tracer.process.anchor());
        tracer.attach_probes(anchor.ok_or_else(|| Error::Usage("a process id is never 0".into()))?)?;
        tracer.programs.record(!settings.floor);
        tracer.started = SystemTime::now();
        tracer.clock = Instant::now();
        Ok(tracer)
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What is covered and what is not.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
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

    /// Acts on what the programs told; `true` if the process executed another program.
    pub fn handle_notices(&mut self) -> bool {
        let notices = self.programs.take_notices();
        if notices.contains(&Notice::Executed) {
            return true;
        }
        // A thread that has ended has no mappings to read.
        if notices.contains(&Notice::AnchorEnded) {
            self.rebind();
        }
        if notices.contains(&Notice::MappingsChanged) {
            self.refresh();
        }
        false
    }

    /// Stops recording, so that the next snapshot is the last word.
    pub fn stop(&mut self) {
        self.programs.record(false);
    }

    /// Says in the profile that something is not covered.
    pub fn add_note(&mut self, note: String) {
        if !self.coverage.not_covered.contains(&note) {
            self.coverage.not_covered.push(note);
        }
    }

    /// Keeps a reading for later comparison, if one is due.
    pub fn observe(&mut self) {
        let elapsed = self.elapsed();
        if self.history.is_due(elapsed) {
            self.find_trampoline();
            let count = self.programs.stack_count();
            self.history
                .keep(elapsed, snapshot::live_bytes(self.programs.books(), count));
        }
    }

    /// When [`Tracer::observe`] is due next, counted from the start.
    pub fn next_observation(&self) -> Duration {
        self.history.next_due()
    }

    /// Live bytes, live objects, and events that were not recorded.
    pub fn totals(&self) -> snapshot::Totals {
        snapshot::totals(self.programs.books(), self.programs.stack_count())
    }

    /// Reads the books.
    pub fn snapshot(&self) -> Snapshot {
        let elapsed = self.elapsed();
        let earlier = self.history.half_way(elapsed);
        let (sites, losses, failed_calls) =
            snapshot::read(self.programs.books(), self.programs.stack_count(), earlier);
        Snapshot {
            process: self.process.info().clone(),
            started: self.started,
            duration: elapsed,
            recent: earlier.map_or(Duration::ZERO, |reading| elapsed.saturating_sub(reading.at)),
            sites,
            losses,
            coverage: self.coverage.clone(),
            failed_calls,
            mappings: self.reader.mappings(),
        }
    }

    /// Reads the mappings again.
    ///
    /// A walk that ends nowhere asks for this, too. When there was nothing new, the next wish has to wait: code that
    /// cannot be unwound must not keep memtrace busy.
    fn refresh(&mut self) {
        self.programs.mappings_wanted();
        match self.reader.refresh(&self.process) {
            Ok(change) if change.is_empty() => self.wishes_from = Some(Instant::now() + WISH_PERIOD),
            Ok(change) => {
                let is_new = |mapping: &&Arc<Mapping>| !self.tables.contains_key(&mapping.file_id);
                let unknown: Vec<_> = change.added.iter().filter(is_new).cloned().collect();
                self.name_mappings(&unknown);
                let images = Images::read(&self.process, &unknown, &self.allocator_prefixes);
                self.add_mappings(&change, &images);
                self.attach_late(images);
                self.programs.mappings_changed();
                self.programs.accept_wishes();
            }
            Err(error) => log::debug!("the mappings were not read again: {error}"),
        }
    }

    /// Attaches to allocators that came after tracing began, such as the C library of a program that was only starting.
    fn attach_late(&mut self, mut images: Images) {
        let late = images.probes();
        let missing_prefixes = images.without_malloc(&self.allocator_prefixes);
        let coverage = images.take_coverage();
        for note in coverage.not_covered {
            self.add_note(note);
        }
        let (Some(anchor), false) = (
            NonZeroU32::new(self.process.anchor()),
            coverage.allocators.is_empty(),
        ) else {
            return;
        };
        let first = self.probes.sites.len();
        self.probes.sites.extend(late.sites);
        let attached = self.probes.sites[first..].iter().try_for_each(|(site, file)| {
            log::info!("{}: {}", site.symbol, site.why);
            self.programs.attach_site(site, file, anchor, self.floor)
        });
        match attached {
            Ok(()) => {
                let from = format!("from {:.1} s on", self.elapsed().as_secs_f64());
                let allocators = coverage
                    .allocators
                    .iter()
                    .map(|allocator| format!("{allocator} ({from})"));
                self.coverage.allocators.extend(allocators);
                let found = |note: &String| {
                    note.contains(HEAP_NOT_VISIBLE)
                        || self.prefix_notes.contains(note) && !missing_prefixes.contains(note)
                };
                self.coverage.not_covered.retain(|note| !found(note));
            }
            Err(error) => self.add_note(format!(
                "an allocator that was loaded later is not probed: {error}"
            )),
        }
    }

    /// When programs may ask for the mappings again, if they may not now.
    pub fn wishes_from(&self) -> Option<Instant> {
        self.wishes_from
    }

    /// Lets programs ask for the mappings again.
    pub fn accept_wishes(&mut self) {
        self.wishes_from = None;
        self.programs.accept_wishes();
    }

    /// Finds where return probes return to, which is known only some time after the first.
    fn find_trampoline(&mut self) {
        if self.knows_trampoline {
            return;
        }
        if let Ok(Some(address)) = self.process.trampoline() {
            self.programs.set_trampoline(address);
            self.knows_trampoline = true;
        }
    }

    /// Until its table is read, which takes a while for a large library, stacks end in a mapping by name.
    fn name_mappings(&mut self, mappings: &[Arc<Mapping>]) {
        for mapping in mappings {
            // Should there be no room, it is told when the mapping is added with its table.
            let _no_room = self.programs.tables().add_mapping(mapping, FileTable::NONE);
        }
    }

    fn add_mappings(&mut self, change: &Change, images: &Images) {
        for mapping in &change.removed {
            self.programs.tables().remove_mapping(mapping);
        }
        for mapping in &change.added {
            let file = self.table_of(mapping, images);
            if let Err(error) = self.programs.tables().add_mapping(mapping, file) {
                self.add_note(format!("stacks stop in {}: {error}", mapping.file_name()));
            }
        }
        if change.unnamed > 0 {
            self.add_note(format!(
                "stacks stop in {} mappings: too many came and went",
                change.unnamed
            ));
        }
    }

    fn table_of(&mut self, mapping: &Mapping, images: &Images) -> FileTable {
        if let Some(&table) = self.tables.get(&mapping.file_id) {
            return table;
        }
        let table = match images.table(mapping) {
            Ok(Some(table)) => match self.programs.tables().add_file(table) {
                Some(placed) => placed,
                None => {
                    self.add_note(format!(
                        "stacks stop in {}: no room for its unwind table",
                        mapping.file_name()
                    ));
                    FileTable::NONE
                }
            },
            Ok(None) => FileTable::FRAME_POINTERS,
            Err(reason) => {
                self.add_note(format!("stacks stop in {}: {reason}", mapping.file_name()));
                FileTable::NONE
            }
        };
        // Mappings without a file have no id to be known again by.
        if mapping.file_id.1 != 0 {
            self.tables.insert(mapping.file_id, table);
        }
        table
    }

    /// Attaches every probe, bound to this thread's address space.
    fn attach_probes(&mut self, anchor: NonZeroU32) -> Result<(), Error> {
        for (site, file) in &self.probes.sites {
            self.programs.attach_site(site, file, anchor, self.floor)?;
        }
        if let Some((offset, file)) = &self.probes.linker {
            self.programs.attach_linker(*offset, file, anchor)?;
        }
        self.programs.set_anchor(anchor);
        Ok(())
    }

    /// The thread that the probes were bound to has ended: binds them to another.
    ///
    /// The old ones stay until the end. They are dead, and removing them takes longer than is good here.
    fn rebind(&mut self) {
        let began = Instant::now();
        let Some(anchor) = self.process.choose_anchor() else {
            return;
        };
        let result = self.attach_probes(anchor);
        let ended = "the thread that the probes were bound to ended";
        self.add_note(match result {
            Ok(()) => format!(
                "{ended} after {:.1} s; nothing was recorded for some {} ms, until they were bound to another",
                self.elapsed().as_secs_f64(),
                began.elapsed().as_millis() + 1
            ),
            Err(error) => format!("{ended}, and they could not be bound to another: nothing was recorded since ({error})"),
        });
        log::warn!(
            "{}",
            self.coverage.not_covered.last().map_or(ended, String::as_str)
        );
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
        stacks: STACKS,
        frames: FRAMES,
        tables,
    }
}
