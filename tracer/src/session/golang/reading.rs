//! Readings of Go runtimes, to tell what grows and what stays.

use std::collections::{HashMap, HashSet};

use crate::{
    snapshot::{GoHeapState, GoState, GoroutineGroup, Site, ThreadGroup},
    symbol::WordHashing,
};

/// Ids of goroutines.
pub(super) type Ids = HashSet<u64, WordHashing>;

/// A reading to compare later ones with.
#[derive(Debug, Default)]
pub struct GoReading {
    /// All that was read: the last word on a process that ends before the next reading.
    pub state: GoState,
    /// The ids of all goroutines.
    pub(super) ids: Ids,
}

/// Readings of all address spaces, by their numbers.
pub type GoReadings = HashMap<u32, GoReading>;

/// An earlier reading, sorted for looking up.
#[derive(Debug)]
pub(super) struct Earlier<'r> {
    /// Live bytes of the heap by stack.
    live_bytes: HashMap<&'r [u64], u64>,
    /// Bytes allocated on the heap.
    alloc_bytes: u64,
    /// Goroutines by stack.
    goroutines: HashMap<&'r [u64], u64>,
    /// Threads by what holds them and by stack.
    threads: HashMap<(&'static str, &'r [u64]), u64>,
    ids: &'r Ids,
}

impl<'r> Earlier<'r> {
    pub fn of(reading: &'r GoReading) -> Self {
        let GoState {
            heap,
            goroutines,
            threads,
            ..
        } = &reading.state;
        let sites = heap.iter().flat_map(|heap| &heap.sites);
        let threads = threads.iter().flatten();
        Self {
            alloc_bytes: heap.as_ref().map_or(0, GoHeapState::allocated),
            live_bytes: sites.map(|site| (&*site.frames, site.live_bytes)).collect(),
            goroutines: by_stack(goroutines.iter().flatten()),
            threads: threads
                .map(|group| ((group.hold, &*group.frames), group.count))
                .collect(),
            ids: &reading.ids,
        }
    }

    /// Whether a heap has had no allocation since, as far as it shows them.
    pub fn heap_stands_still(&self, heap: &GoHeapState) -> bool {
        heap.allocated() == self.alloc_bytes
    }

    /// By how much a site's live bytes have changed since.
    pub fn change_of_site(&self, site: &Site) -> i64 {
        let before = self.live_bytes.get(&*site.frames).copied().unwrap_or(0);
        difference(site.live_bytes, before)
    }

    /// How many goroutines with this stack there were.
    pub fn goroutines_at(&self, frames: &[u64]) -> u64 {
        self.goroutines.get(frames).copied().unwrap_or(0)
    }

    /// Whether the goroutine with this id was there.
    pub fn had(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    /// By how much the number of such threads has changed since.
    pub fn change_of_threads(&self, group: &ThreadGroup) -> i64 {
        let key = (group.hold, &*group.frames);
        difference(group.count, self.threads.get(&key).copied().unwrap_or(0))
    }
}

/// How many goroutines there are with each stack, whatever they wait for.
fn by_stack<'g>(groups: impl Iterator<Item = &'g GoroutineGroup>) -> HashMap<&'g [u64], u64> {
    let mut counts = HashMap::new();
    for group in groups {
        *counts.entry(&*group.frames).or_default() += group.count;
    }
    counts
}

/// How much more there is now; less than nothing if it is less.
pub(super) fn difference(now: u64, before: u64) -> i64 {
    let magnitude = i64::try_from(now.abs_diff(before)).unwrap_or(i64::MAX);
    if now < before { -magnitude } else { magnitude }
}
