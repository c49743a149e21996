//! Keeps what the programs know of an address space's mappings, and what is attached there, up to date.

use std::{
    collections::HashSet,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use memtrace_ebpf::{handles::classes, layout::Wish};

use super::{Error, Settings, Tracer, images::Images, space::Space};
use crate::{
    go::GoBinaries,
    kernel::{Batch, FileTable, Threads},
    target::{Change, Mapping, Process},
    unwind::UnwindTable,
};

/// How long a wish to read the mappings has to wait after one that found nothing new.
const WISH_PERIOD: Duration = Duration::from_secs(1);
/// How often the threads of a process are listed until no new one is found.
const LISTINGS: usize = 8;

/// What a profile says that cannot show anything.
pub(super) const HEAP_NOT_VISIBLE: &str = "heap not visible: no mapped file defines malloc and free, or the functions of an \
     allocator that memtrace knows (a private one can be named: --allocator-prefix), or the program was only starting";
/// The same of a program that hides them.
pub(super) const NO_SYMBOLS: &str = "static binary, no symbols: heap not visible";
/// What a profile says that cannot show names.
const TOO_SHORT: &str = "names: the process ended before memtrace read what it maps";

impl Space {
    /// Notes that nothing is covered, or that something is by now.
    pub fn say_what_is_not_visible(&mut self, settings: &Settings) {
        let notes = &mut self.coverage.not_covered;
        notes.retain(|note| ![HEAP_NOT_VISIBLE, NO_SYMBOLS, TOO_SHORT].contains(&note.as_str()));
        if self.reader.live().next().is_none() {
            notes.insert(0, TOO_SHORT.to_owned());
        } else if self.coverage.allocators.is_empty() && settings.trace(classes::HEAP) {
            let why = if self.is_stripped_static {
                NO_SYMBOLS
            } else {
                HEAP_NOT_VISIBLE
            };
            notes.insert(0, why.to_owned());
        }
    }
}

/// Reads the images of these mappings.
pub(super) fn read_images(
    process: &Process,
    mappings: &[Arc<Mapping>],
    settings: &Settings,
    binaries: &GoBinaries,
) -> Images {
    let mut images = Images::read(process, mappings, &settings.allocator_prefixes, binaries);
    if settings.trace(classes::FD) {
        images.find_dials(process, mappings, binaries);
    }
    images
}

impl Tracer {
    /// When programs may ask again for mappings to be read.
    pub fn wishes_from(&self) -> Option<Instant> {
        self.spaces.values().filter_map(|space| space.wishes_from).min()
    }

    /// Lets programs ask for mappings again, where it is time.
    pub fn accept_wishes(&mut self) {
        let now = Instant::now();
        for space in self.spaces.values_mut() {
            if space.wishes_from.is_some_and(|from| from <= now) {
                space.wishes_from = None;
                self.programs.spaces().grant(space.id, Wish::Refresh);
            }
        }
    }

    /// Reads the mappings of an address space again.
    ///
    /// A walk that ends nowhere asks for this, too. When there was nothing new, the next wish has to wait: code that
    /// cannot be unwound must not keep memtrace busy.
    pub(super) fn refresh(&mut self, id: u32) {
        self.programs.mappings_wanted(id);
        let Some(mut space) = self.spaces.remove(&id) else {
            return;
        };
        if let Some(process) = space.process.clone() {
            self.refresh_space(&mut space, &process);
        }
        self.spaces.insert(id, space);
    }

    fn refresh_space(&mut self, space: &mut Space, process: &Process) {
        match space.reader.refresh(process) {
            Ok(change) => {
                let unread = self.unread(space, &change);
                if change.is_empty() && unread.is_empty() {
                    space.wishes_from = Some(Instant::now() + WISH_PERIOD);
                    return;
                }
                self.own_layout(space);
                let is_new = |mapping: &&Arc<Mapping>| self.files.get(mapping).is_none();
                let new: Vec<_> = change.added.iter().filter(is_new).cloned().collect();
                // What is known first: reading a large file takes long, and stacks go through its libraries meanwhile.
                self.update_known(space, &change);
                self.name_mappings(space.layout, &new);
                self.programs.mappings_changed();
                let images = read_images(process, &unread, &self.settings, &self.runtimes.binaries());
                self.add_mappings(space, &new, &images);
                if let Err(error) = self.attach_images(space, images) {
                    space.add_note(format!(
                        "an allocator that was loaded later is not probed: {error}"
                    ));
                }
                self.bind_known(space, &change.added);
                space.say_what_is_not_visible(&self.settings);
                self.programs.mappings_changed();
                self.programs.spaces().grant(space.id, Wish::Refresh);
            }
            Err(error) => log::debug!("the mappings were not read again: {error}"),
        }
    }

    /// The mappings whose files are to be read.
    fn unread(&self, space: &Space, change: &Change) -> Vec<Arc<Mapping>> {
        let without_file = |mapping: &&Arc<Mapping>| mapping.file_id.1 == 0;
        let with_file = |mapping: &&Arc<Mapping>| mapping.file_id.1 != 0 && self.files.is_unread(mapping);
        let added = change.added.iter().filter(without_file);
        added
            .chain(space.reader.live().filter(with_file))
            .cloned()
            .collect()
    }

    /// Gives the space a set of mappings of its own, if it shares one since a fork.
    fn own_layout(&mut self, space: &mut Space) {
        if !self.files.is_shared(space.layout) {
            return;
        }
        self.files.leave_layout(space.layout);
        space.layout = self.files.new_layout();
        for mapping in space.reader.live() {
            let table = self.files.get(mapping).and_then(|known| known.table);
            let table = table.unwrap_or(FileTable::NONE);
            // What does not fit is told when the mapping is added the next time.
            let _no_room = self.programs.tables().add_mapping(space.layout, mapping, table);
        }
        let described = self
            .programs
            .spaces()
            .describe(space.id, space.layout, space.trampoline);
        if let Err(error) = described {
            space.add_note(format!("stacks are not unwound: {error}"));
        }
    }

    /// Until its table is read, which takes a while for a large library, stacks end in a mapping by name.
    fn name_mappings(&mut self, layout: u32, mappings: &[Arc<Mapping>]) {
        for mapping in mappings {
            // Should there be no room, it is told when the mapping is added with its table.
            let _no_room = self
                .programs
                .tables()
                .add_mapping(layout, mapping, FileTable::NONE);
        }
    }

    /// Removes the mappings that are gone, and adds those of files that are known.
    fn update_known(&mut self, space: &mut Space, change: &Change) {
        for mapping in &change.removed {
            self.programs.tables().remove_mapping(space.layout, mapping.id);
        }
        let known = change.added.iter().filter_map(|mapping| {
            let known = self.files.get(mapping)?;
            Some((mapping, known.table.unwrap_or(FileTable::NONE)))
        });
        let known: Vec<_> = known.collect();
        for (mapping, table) in known {
            self.add_mapping(space, mapping, table);
        }
        if change.unnamed > 0 {
            space.add_note(format!(
                "stacks stop in {} mappings: too many came and went",
                change.unnamed
            ));
        }
    }

    /// Adds the mappings of files that were read just now.
    pub(super) fn add_mappings(&mut self, space: &mut Space, new: &[Arc<Mapping>], images: &Images) {
        for mapping in new {
            let table = self.table_of(space, mapping, images);
            self.add_mapping(space, mapping, table);
        }
    }

    fn add_mapping(&mut self, space: &mut Space, mapping: &Mapping, table: FileTable) {
        if let Err(error) = self.programs.tables().add_mapping(space.layout, mapping, table) {
            space.add_note(format!("stacks stop in {}: {error}", mapping.file_name()));
        }
    }

    fn table_of(&mut self, space: &mut Space, mapping: &Mapping, images: &Images) -> FileTable {
        if let Some(table) = self.files.get(mapping).and_then(|known| known.table) {
            return table;
        }
        let table = match images.table(mapping) {
            Ok(Some(table)) => match self.place(table, images.has_probes(mapping)) {
                Some(placed) => placed,
                None => {
                    space.add_note(format!(
                        "stacks stop in {}: no room for its unwind table",
                        mapping.file_name()
                    ));
                    FileTable::NONE
                }
            },
            Ok(None) => FileTable::FRAME_POINTERS,
            Err(reason) => {
                space.add_note(format!("stacks stop in {}: {reason}", mapping.file_name()));
                FileTable::NONE
            }
        };
        self.files.remember_table(mapping, table);
        table
    }

    /// Puts a table into the kernel, where others that are not used any more may make room for it.
    fn place(&mut self, table: &UnwindTable, keep: bool) -> Option<FileTable> {
        let mut evicted = Vec::new();
        let placed = self.programs.tables().add_file(table, keep, &mut evicted);
        self.files.forget_tables(&evicted);
        placed
    }

    /// Attaches to the allocators of files that no process mapped before, and notes what is covered.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn attach_images(&mut self, space: &mut Space, images: Images) -> Result<(), Error> {
        let with_heap = self.settings.trace(classes::HEAP);
        let probes = images.probes(with_heap);
        let threads = self.threads_of(space);
        let batch = if probes.is_empty() {
            None
        } else {
            let programs = &mut self.programs;
            let threads = Threads {
                process: space.info.pid,
                ids: &threads,
            };
            Some(self.files.attach(programs, probes, &self.settings, &threads)?)
        };
        for image in images.iter() {
            let prefixes = &self.settings.allocator_prefixes;
            self.files
                .remember(image, batch.filter(|_| image.has_probes()), prefixes);
            if !image.is_unreadable() {
                self.cover(space, image.allocator(), image.notes(), true);
            }
            if let Some(note) = image.dial_note() {
                space.add_note(note);
            }
            space.is_stripped_static |= image.is_stripped_static();
        }
        if let Some(batch) = batch {
            space.bound.insert(batch);
            self.bind_threads(space, batch, &threads)?;
        }
        Ok(())
    }

    /// Makes the probes of files that other processes mapped before live in this one.
    fn bind_known(&mut self, space: &mut Space, mappings: &[Arc<Mapping>]) {
        let known: Vec<_> = mappings
            .iter()
            .filter_map(|mapping| self.files.get(mapping).cloned())
            .collect();
        for file in known {
            space.is_stripped_static |= file.is_stripped_static;
            if let Some(note) = file.dial_note {
                space.add_note(note);
            }
            let Some(batch) = file.batch else { continue };
            // What it has from its parent was there from the beginning.
            let is_new = space.bound.insert(batch);
            self.cover(space, file.allocator, file.notes, is_new);
            if is_new && let Err(error) = self.bind_threads(space, batch, &[]) {
                space.add_note(format!("an allocator is not probed: {error}"));
            }
        }
        self.anchor(space);
    }

    /// Keeps a process attached that has its probes from another, see [`Programs::anchor`].
    ///
    /// [`Programs::anchor`]: crate::kernel::Programs::anchor
    pub(super) fn anchor(&mut self, space: &mut Space) {
        let Some(process) = space.process.clone() else {
            return;
        };
        let Some(thread) = NonZeroU32::new(process.anchor()) else {
            return;
        };
        let had_probes = self.files.has_breakpoints(&process, space.reader.live());
        match self.programs.anchor(&space.bound, thread) {
            Ok(anchors) => space.anchors = anchors,
            Err(error) if process.has_ended() => log::debug!("{error}"),
            Err(error) => space.add_note(format!("what the kernel takes off it by mistake: {error}")),
        }
        if had_probes == Some(false) && !process.has_ended() {
            space.add_note(
                "a moment: the kernel had taken its probes off before memtrace could hold them".into(),
            );
        }
    }

    /// Holds on to another thread where the first has ended and others go on.
    pub(super) fn anchor_others(&mut self) {
        let ids: Vec<u32> = self.spaces.keys().copied().collect();
        for id in ids {
            let Some(mut space) = self.spaces.remove(&id) else {
                continue;
            };
            let moved = space
                .process
                .as_ref()
                .is_some_and(|process| process.replace_anchor());
            if moved {
                self.anchor(&mut space);
            }
            self.spaces.insert(id, space);
        }
    }

    fn cover(&self, space: &mut Space, allocator: Option<String>, notes: Vec<String>, is_new: bool) {
        if !self.settings.trace(classes::HEAP) {
            return;
        }
        for note in notes {
            space.add_note(note);
        }
        let late = self.elapsed().saturating_sub(space.since);
        let covers = &mut space.coverage.allocators;
        if let Some(allocator) = allocator.filter(|new| !covers.iter().any(|old| old.starts_with(new))) {
            covers.push(if !is_new || late < Duration::from_millis(50) || space.is_held {
                allocator
            } else {
                format!("{allocator} (from {:.1} s on)", late.as_secs_f64())
            });
        }
    }

    /// The threads that probes are bound to.
    fn threads_of(&self, space: &Space) -> Vec<NonZeroU32> {
        let Some(process) = &space.process else {
            return Vec::new();
        };
        if self.settings.children {
            process.threads()
        } else {
            NonZeroU32::new(process.anchor()).into_iter().collect()
        }
    }

    /// Binds probes to the threads that came while they were bound to the others: a thread that is bound hands it on to
    /// those that it makes, one that is not so far does not.
    fn bind_threads(&mut self, space: &Space, batch: Batch, bound: &[NonZeroU32]) -> Result<(), Error> {
        if !self.settings.children {
            return Ok(());
        }
        let mut bound: HashSet<_> = bound.iter().copied().collect();
        for _ in 0..LISTINGS {
            let threads = self.threads_of(space);
            let new: Vec<_> = threads
                .into_iter()
                .filter(|&thread| bound.insert(thread))
                .collect();
            if new.is_empty() {
                break;
            }
            let new = Threads {
                process: space.info.pid,
                ids: &new,
            };
            self.programs.bind(batch, &new)?;
        }
        Ok(())
    }
}
