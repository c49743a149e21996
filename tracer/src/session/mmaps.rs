//! Mappings: replays what the programs log, and says who holds what at a snapshot, and where the resident memory is.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use memtrace_ebpf::{
    handles::{Class, MapEvent, MapEventKind, MappingKind, classes},
    layout::Counter,
    unwind::frame,
};

use procfs::{FromRead as _, SharedMemorySegments, Shm};

use super::{
    Tracer,
    fds::now,
    mapped::{HeapState, HoldingsInput, MapStack, MappedBooks, Survey, mark_go_heap},
    space::Space,
};
use crate::{
    kernel::RawStack,
    snapshot::{Holdings, MemorySummary},
    target::{Pagemap, Process, Residency, Vma},
    text,
};

/// Bytes in a page.
const PAGE: u64 = 4096;
/// The segments of System V's shared memory (`ipc/shm.c`).
const SEGMENTS: &str = "/proc/sysvipc/shm";

/// What a snapshot says of mappings.
pub(super) struct MapReport {
    pub holdings: Holdings,
    pub memory: Option<MemorySummary>,
}

impl Tracer {
    /// Replays what was logged.
    pub fn read_map_events(&mut self) {
        while let Some((kind, mut event)) = self.programs.map_events().take_next() {
            match kind {
                MapEventKind::Forked => {
                    let parent = self.mapped.get(&event.flags);
                    let child = parent.map_or_else(MappedBooks::new, |parent| parent.fork(event.thread));
                    self.mapped.insert(event.space, child);
                    continue;
                }
                MapEventKind::Mapped if event.length == 0 => {
                    event.length = self.length_of(&event);
                    let books = self.mapped.entry(event.space).or_default();
                    books.add_made(event.stack, event.length);
                }
                MapEventKind::Unmapping if event.length == 0 => {
                    let books = self.mapped.get(&event.space);
                    event.length = books.map_or(0, |books| books.length_at(event.begin));
                }
                _ => {}
            }
            self.mapped.entry(event.space).or_default().apply(&event);
        }
    }

    /// How long the mapping is that `shmat` made, which does not say, where the kernel was too busy to tell the programs.
    fn length_of(&mut self, event: &MapEvent) -> u64 {
        if let Some(&known) = self.segments.get(&event.source) {
            return known;
        }
        let process = self
            .spaces
            .get(&event.space)
            .and_then(|space| space.process.clone());
        // Another namespace has other segments by the same ids.
        let is_ours = process
            .as_ref()
            .is_some_and(|process| process.shares_namespace("ipc"));
        let segments = is_ours
            .then(|| SharedMemorySegments::from_file(SEGMENTS).ok())
            .flatten();
        let is_it = |segment: &&Shm| segment.shmid == event.source;
        if let Some(segment) = segments.as_ref().and_then(|all| all.0.iter().find(is_it)) {
            let length = segment.size.next_multiple_of(PAGE);
            self.segments.insert(event.source, length);
            return length;
        }
        let maps = process.and_then(|process| process.memory_maps().ok());
        let made = maps.iter().flatten().find(|map| map.address.0 == event.begin);
        made.map_or(0, |map| map.address.1 - map.address.0)
    }

    /// Notes what a process has mapped when tracing begins. Recording has begun.
    pub(super) fn note_mappings(&mut self, space: &mut Space) {
        let Some(process) = &space.process else {
            return;
        };
        match process.vmas() {
            Ok(vmas) => {
                let heap = vmas.iter().filter(|vma| vma.is_heap);
                space.heap_resident = heap.map(|vma| vma.rss).sum();
                let pointers = process.stack_pointers();
                self.mapped.entry(space.id).or_default().seed(&vmas, &pointers);
            }
            Err(error) => log::debug!("{error}"),
        }
    }

    /// The same for a program that was just executed.
    pub(super) fn note_new_mappings(&mut self, id: u32) {
        if !self.settings.trace(classes::MAPPING) {
            return;
        }
        if let Some(mut space) = self.spaces.remove(&id) {
            self.note_mappings(&mut space);
            self.spaces.insert(id, space);
        }
    }

    /// Who holds which mappings. `live_heap` are the bytes of the blocks that live, if the heap is traced.
    pub(super) fn map_report(&mut self, space: &Space, live_heap: Option<u64>) -> Option<MapReport> {
        if !self.settings.trace(classes::MAPPING) {
            return None;
        }
        let process = space.process.clone().filter(|process| !process.has_ended());
        self.mapped.entry(space.id).or_default().begin_reading(now());
        let mut vmas = process.as_ref().and_then(|process| process.vmas().ok());
        if let (Some(vmas), Some(address)) = (&mut vmas, self.runtimes.heap_address(space.id)) {
            mark_go_heap(vmas, address);
        }
        let resident = process.as_ref().and_then(|process| process.resident().ok());
        self.read_map_events();
        let mut books = self.mapped.remove(&space.id).unwrap_or_default();
        let survey = survey(&mut books, vmas.as_deref(), process.as_deref());
        let stacks = self.map_stacks(space, &books.held_stacks());
        self.mapped.insert(space.id, books);
        let allocators: HashSet<u32> = stacks
            .iter()
            .filter(|stack| self.is_in_allocator(space, &stack.frames))
            .map(|stack| stack.id)
            .collect();
        let is_allocator = |stack: u32| allocators.contains(&stack);
        let mut holdings = survey.holdings(&HoldingsInput {
            stacks: &stacks,
            is_allocator: &is_allocator,
            now: now(),
            earlier: self
                .earlier(space)
                .and_then(|reading| reading.mapped.get(&space.id)),
        });
        holdings.losses.extend(self.map_losses(space));
        let lost = self
            .programs
            .books()
            .counters(space.id)
            .get(Counter::MapEventsLost);
        holdings.warning = (lost > 0).then(|| {
            let changes = text::counted(lost, "change of mappings was lost", "changes of mappings were lost");
            format!("{changes}, they came too fast: what is said here of bytes, and of who mapped them, may be wrong.")
        });
        let memory = vmas.and(resident).map(|resident| {
            let heap = HeapState {
                live_bytes: live_heap,
                placed: self.placed_blocks(space, &survey, live_heap),
                resident_at_attach: space.heap_resident,
            };
            survey.summary(resident.rss, &heap, &is_allocator)
        });
        Some(MapReport { holdings, memory })
    }

    /// How many bytes of live blocks are in each range that is mapped; nothing if no block is known.
    fn placed_blocks(&self, space: &Space, survey: &Survey, live_heap: Option<u64>) -> Vec<u64> {
        if live_heap.unwrap_or(0) == 0 {
            return Vec::new();
        }
        let placed = self.programs.books().live_bytes_in(space.id, &survey.ranges());
        placed.unwrap_or_else(|error| {
            log::debug!("{error}");
            Vec::new()
        })
    }

    /// The stacks of the address space that mapped something, and those of its ancestors that mapped what it still holds.
    fn map_stacks(&self, space: &Space, held: &HashSet<u32>) -> Vec<MapStack> {
        let books = self.programs.books();
        let own = books.used_stacks(self.programs.stack_count(), space.id, Class::Mapping);
        let mut stacks: Vec<MapStack> = own.into_iter().map(|stack| map_stack(stack, true)).collect();
        let known: HashSet<u32> = stacks.iter().map(|stack| stack.id).collect();
        let others = held.iter().filter(|id| !known.contains(id));
        stacks.extend(others.filter_map(|&id| Some(map_stack(books.stack_with_frames(id)?, false))));
        stacks
    }

    /// Whether a stack goes through an allocation function: what is mapped there is the allocator's.
    fn is_in_allocator(&self, space: &Space, frames: &[u64]) -> bool {
        let mappings = space.reader.mappings();
        frames.iter().any(|&packed| {
            let mapping = mappings.get(frame::mapping(mappings.place(packed)));
            mapping.is_some_and(|mapping| self.files.is_allocator(mapping, frame::lookup_address(packed)))
        })
    }

    fn map_losses(&self, space: &Space) -> Vec<(u64, String)> {
        let counters = self.programs.books().counters(space.id);
        let all = [
            (
                Counter::MapEventsLost,
                "changes of mappings not recorded: they came too fast",
            ),
            (
                Counter::MappingsWithoutStack,
                "mappings recorded without their stack",
            ),
        ];
        let all = all.map(|(counter, what)| (counters.get(counter), what.to_owned()));
        all.into_iter().filter(|&(count, _)| count > 0).collect()
    }
}

fn survey(books: &mut MappedBooks, vmas: Option<&[Vma]>, process: Option<&Process>) -> Survey {
    let mut pagemap = process.and_then(|process| {
        let opened = Pagemap::open(process);
        opened.inspect_err(|error| log::debug!("{error}")).ok()
    });
    let mut resident = |vma: &Vma, ranges: &[Range<u64>]| {
        let read = pagemap.as_mut().map(|pagemap| pagemap.resident(vma, ranges));
        match read {
            Some(Ok(residency)) => residency,
            _ => Residency::default(),
        }
    };
    books.survey(vmas, &mut resident)
}

fn map_stack(stack: RawStack, own: bool) -> MapStack {
    let kind = stack.books.kind;
    MapStack {
        id: stack.id,
        kind: (kind != MappingKind::MOVED).then(|| MappingKind::from_u8(kind)),
        mapped_bytes: stack.books.alloc_bytes,
        frames: stack.frames,
        end: stack.end,
        own,
    }
}

/// Mapped bytes of every address space, by whose they are.
pub(super) type Mapped = HashMap<u32, super::mapped::Held>;
