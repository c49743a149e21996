//! The books of an address space's mappings: who mapped what is mapped.
//!
//! The kernel logs each call that maps or unmaps, and this replays the log. Each event sets what a range is, whatever it was
//! before, so the newest wins.

mod go_heap;
mod holdings;
mod instances;
mod intervals;
mod seed;
mod summary;
mod survey;
mod threads;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use memtrace_ebpf::handles::{MapEvent, MapEventKind, MappingKind};

pub use go_heap::mark_go_heap;
pub use holdings::{HoldingsInput, MapStack};
pub use instances::{Account, Held, Owner};
pub use intervals::{IntervalMap, Piece};
pub use summary::HeapState;
pub use survey::{Balance, Survey};

use instances::{Instance, Instances, Slot};
use threads::Threads;

/// By how much an event can be older than what it tells of: an unmapping is logged before it is done (nanoseconds).
const IN_FLIGHT: u64 = 50_000_000;

/// The books of one address space. New ones wait for [`MappedBooks::seed`]; what is logged meanwhile is kept.
#[derive(Clone, Debug)]
pub struct MappedBooks {
    map: IntervalMap<Slot>,
    instances: Instances,
    /// By thread: what its last event began to unmap.
    leaving: HashMap<u32, Leaving>,
    threads: Threads,
    /// Bytes that `mremap` moved, by its stack and by kind: only what was there before tells the kind.
    moved: HashMap<u32, [u64; 4]>,
    /// Bytes that the kernel's books do not have, by stack: growth by touching (`MAP_GROWSDOWN`), and what a call did not tell.
    unbooked: HashMap<u32, u64>,
    /// What was logged before [`MappedBooks::seed`]; `None` since then.
    waiting: Option<Vec<Waiting>>,
    /// What was changed since the areas are read; `None` while they are not.
    reading: Option<Reading>,
    missed: Missed,
    /// Room for what an event removes.
    removed: Vec<Piece<Slot>>,
}

/// What a thread is unmapping.
#[derive(Clone, Debug)]
struct Leaving {
    time: u64,
    range: Range<u64>,
    pieces: Vec<Piece<Slot>>,
}

/// What is replayed after [`MappedBooks::seed`].
#[derive(Clone, Copy, Debug)]
enum Waiting {
    Event(MapEvent),
    /// The fork that made this address space, by this thread.
    Fork(u32),
}

/// The changes since the areas are read.
#[derive(Clone, Debug)]
struct Reading {
    /// Changes from this time on may not be in what is read (`CLOCK_MONOTONIC`, nanoseconds).
    since: u64,
    changed: IntervalMap<()>,
}

/// Mappings that were gone without an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missed {
    pieces: u64,
    bytes: u64,
}

impl Default for MappedBooks {
    fn default() -> Self {
        Self::new()
    }
}

impl MappedBooks {
    /// Books that wait for [`MappedBooks::seed`].
    pub fn new() -> Self {
        Self {
            map: IntervalMap::default(),
            instances: Instances::default(),
            leaving: HashMap::new(),
            threads: Threads::default(),
            moved: HashMap::new(),
            unbooked: HashMap::new(),
            waiting: Some(Vec::new()),
            reading: None,
            missed: Missed::default(),
            removed: Vec::new(),
        }
    }

    /// Replays an event of this address space. They come in the order of the log; [`MapEventKind::Forked`] says nothing
    /// here, see [`MappedBooks::fork`].
    pub fn apply(&mut self, event: &MapEvent) {
        match &mut self.waiting {
            Some(waiting) => waiting.push(Waiting::Event(*event)),
            None => self.replay(event),
        }
    }

    fn replay(&mut self, event: &MapEvent) {
        let range = event.begin..event.begin.saturating_add(event.length);
        match kind(event) {
            Some(MapEventKind::Mapped) => self.mapped(event, range),
            Some(MapEventKind::Unmapping) => self.unmapping(event, range),
            Some(MapEventKind::Undone) => self.undone(event),
            Some(MapEventKind::ThreadStarted) => self.thread_started(event),
            Some(MapEventKind::ThreadEnded) => self.thread_ended(event),
            Some(MapEventKind::Forked) | None => {}
        }
    }

    fn mapped(&mut self, event: &MapEvent, range: Range<u64>) {
        let mut instance = Instance::mapped(event);
        if event.mapping == MappingKind::MOVED {
            let kind = self.kind_before(event);
            instance.account.kind = kind;
            self.moved.entry(event.stack).or_default()[kind as usize] += event.length;
        }
        self.settle(event.thread);
        if range.is_empty() {
            return;
        }
        self.note_change(event.time, &range);
        self.put(range, instance);
    }

    /// The kind of what a thread has just moved.
    fn kind_before(&self, event: &MapEvent) -> MappingKind {
        // What the thread unmapped before is another matter.
        let leaving = self.leaving.get(&event.thread);
        let leaving = leaving.filter(|leaving| leaving.range.start == event.source);
        let moved = leaving.and_then(|leaving| leaving.pieces.first()).copied();
        let piece = moved.or_else(|| self.map.get(event.source));
        let instance = piece.and_then(|piece| self.instances.get(piece.value));
        instance.map_or(MappingKind::Anon, |instance| instance.account.kind)
    }

    /// Counts bytes that a stack mapped and that the kernel could not count.
    pub fn add_made(&mut self, stack: u32, bytes: u64) {
        *self.unbooked.entry(stack).or_default() += bytes;
    }

    /// How long the mapping is that begins here (bytes), as far as one call made it; for `shmdt`, which does not say.
    pub fn length_at(&self, begin: u64) -> u64 {
        let Some(first) = self.map.get(begin) else {
            return 0;
        };
        let mut end = first.end;
        while let Some(next) = self.map.get(end).filter(|next| next.value == first.value) {
            end = next.end;
        }
        end - begin
    }

    /// Puts a new instance over what is there.
    fn put(&mut self, range: Range<u64>, instance: Instance) -> Slot {
        let length = range.end - range.start;
        let slot = self.instances.add(instance);
        self.instances.change(slot, length as i64, 0);
        self.map.insert(range, slot, &mut self.removed);
        for piece in self.removed.drain(..) {
            self.instances.change(piece.value, -(piece.length() as i64), 0);
        }
        slot
    }

    /// What is removed is kept until the thread's next event tells that this succeeded.
    fn unmapping(&mut self, event: &MapEvent, range: Range<u64>) {
        self.settle(event.thread);
        self.note_change(event.time, &range);
        self.map.remove(range.clone(), &mut self.removed);
        if self.removed.is_empty() {
            return;
        }
        for piece in &self.removed {
            let length = piece.length() as i64;
            self.instances.change(piece.value, -length, length);
        }
        let leaving = Leaving {
            time: event.time,
            range,
            pieces: self.removed.clone(),
        };
        self.removed.clear();
        self.leaving.insert(event.thread, leaving);
    }

    /// Brings back what the thread did not unmap, except where something was mapped meanwhile.
    fn undone(&mut self, event: &MapEvent) {
        let Some(leaving) = self.leaving.remove(&event.thread) else {
            return;
        };
        self.note_change(event.time, &leaving.range);
        for piece in leaving.pieces {
            let length = piece.length() as i64;
            let filled = self.map.fill(piece.begin..piece.end, piece.value);
            self.instances.change(piece.value, filled as i64, -length);
        }
    }

    /// The thread goes on: what it unmapped is gone.
    fn settle(&mut self, thread: u32) {
        if self.leaving.is_empty() {
            return;
        }
        for piece in self
            .leaving
            .remove(&thread)
            .into_iter()
            .flat_map(|leaving| leaving.pieces)
        {
            self.instances.change(piece.value, 0, -(piece.length() as i64));
        }
    }

    /// The books of a process that this thread of this one forked: all is inherited. The stacks of the other threads are
    /// nobody's there; the C library keeps them for the next thread.
    pub fn fork(&self, thread: u32) -> Self {
        let mut child = self.clone();
        child.reading = None;
        child.missed = Missed::default();
        match &mut child.waiting {
            Some(waiting) => waiting.push(Waiting::Fork(thread)),
            None => child.forked(thread),
        }
        child
    }

    fn forked(&mut self, thread: u32) {
        // A fork sees an unmapping of another thread done or not begun. It mostly takes less time than a fork.
        let threads: Vec<u32> = self.leaving.keys().copied().collect();
        for leaving in threads {
            self.settle(leaving);
        }
        for instance in self.instances.iter_mut() {
            instance.account.inherited = true;
            instance.account.cached |= instance.user != 0 && instance.user != thread;
            instance.user = 0;
        }
        self.threads = Threads::default();
        self.moved = HashMap::new();
        self.unbooked = HashMap::new();
    }

    /// Call this before the areas are read for [`MappedBooks::survey`], with the time: what the log says of later
    /// changes then counts more than what was read.
    pub fn begin_reading(&mut self, now: u64) {
        let since = now.saturating_sub(IN_FLIGHT);
        let mut changed = IntervalMap::default();
        for leaving in self.leaving.values().filter(|leaving| leaving.time >= since) {
            changed.insert(leaving.range.clone(), (), &mut Vec::new());
        }
        self.reading = Some(Reading { since, changed });
    }

    fn note_change(&mut self, time: u64, range: &Range<u64>) {
        if let Some(reading) = &mut self.reading
            && time >= reading.since
        {
            reading.changed.insert(range.clone(), (), &mut Vec::new());
        }
    }

    /// The stacks that the books refer to, those of events that wait included.
    pub fn held_stacks(&self) -> HashSet<u32> {
        let of_instance = |instance: &Instance| match instance.account.owner {
            Owner::Stack(stack) => Some(stack),
            _ => None,
        };
        let of_waiting = |waiting: &Waiting| match waiting {
            Waiting::Event(event) => Some(event.stack),
            Waiting::Fork(_) => None,
        };
        let waiting = self.waiting.iter().flatten().filter_map(of_waiting);
        self.instances
            .iter()
            .filter_map(of_instance)
            .chain(waiting)
            .collect()
    }

    /// The bytes that are mapped, by whose they are. To be kept for [`HoldingsInput::earlier`].
    pub fn held(&self) -> Held {
        let mut held = Held::new();
        for instance in self.instances.iter().filter(|instance| instance.held > 0) {
            *held.entry(instance.account).or_default() += instance.held;
        }
        held
    }

    /// The bytes that a stack mapped and that still are.
    pub fn mapped_while_tracing(&self) -> u64 {
        let is_ours = |instance: &&Instance| matches!(instance.account.owner, Owner::Stack(_));
        self.instances
            .iter()
            .filter(is_ours)
            .map(|instance| instance.held)
            .sum()
    }

    /// The bytes that are mapped, by the stack that mapped them.
    #[cfg(test)]
    pub fn held_by_stack(&self) -> HashMap<u32, u64> {
        let mut held = HashMap::new();
        for instance in self.instances.iter() {
            if let Owner::Stack(stack) = instance.account.owner {
                *held.entry(stack).or_default() += instance.held;
            }
        }
        held
    }
}

/// What an event says, if it is known.
fn kind(event: &MapEvent) -> Option<MapEventKind> {
    MapEventKind::ALL
        .into_iter()
        .find(|&kind| kind as u32 == event.kind)
}

#[cfg(test)]
mod tests;
