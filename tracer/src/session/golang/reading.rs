//! Readings of Go runtimes, to tell what grows and what stays.

use std::collections::{HashMap, HashSet};

use crate::snapshot::{GoState, GoroutineGroup, Site, ThreadGroup};

/// A reading to compare later ones with.
#[derive(Debug, Default)]
pub struct GoReading {
    /// Live bytes of the heap by stack.
    live_bytes: HashMap<Vec<u64>, u64>,
    /// Goroutines by stack.
    goroutines: HashMap<Vec<u64>, u64>,
    /// Threads by what holds them and by stack.
    threads: HashMap<(&'static str, Vec<u64>), u64>,
    /// The ids of all goroutines.
    pub(super) ids: HashSet<u64>,
    /// All of it: the last word on a process that ends before the next reading.
    pub state: GoState,
}

/// Readings of all address spaces, by their numbers.
pub type GoReadings = HashMap<u32, GoReading>;

impl GoReading {
    /// Keeps what changes are told from.
    pub(super) fn of(state: GoState, ids: HashSet<u64>) -> Self {
        let mut reading = Self {
            ids,
            ..Self::default()
        };
        for site in state.heap.iter().flat_map(|heap| &heap.sites) {
            *reading.live_bytes.entry(site.frames.clone()).or_default() += site.live_bytes;
        }
        for group in state.goroutines.iter().flatten() {
            *reading.goroutines.entry(group.frames.clone()).or_default() += group.count;
        }
        for group in state.threads.iter().flatten() {
            let key = (group.hold, group.frames.clone());
            *reading.threads.entry(key).or_default() += group.count;
        }
        reading.state = state;
        reading
    }

    /// By how much a site's live bytes have changed since.
    pub(super) fn change_of_site(&self, site: &Site) -> i64 {
        let before = self.live_bytes.get(&site.frames).copied().unwrap_or(0);
        difference(site.live_bytes, before)
    }

    /// How many goroutines with this stack there were.
    pub(super) fn goroutines_like(&self, group: &GoroutineGroup) -> u64 {
        self.goroutines.get(&group.frames).copied().unwrap_or(0)
    }

    /// By how much the number of such threads has changed since.
    pub(super) fn change_of_threads(&self, group: &ThreadGroup) -> i64 {
        let key = (group.hold, group.frames.clone());
        difference(group.count, self.threads.get(&key).copied().unwrap_or(0))
    }
}

/// How much more there is now; less than nothing if it is less.
pub(super) fn difference(now: u64, before: u64) -> i64 {
    let magnitude = i64::try_from(now.abs_diff(before)).unwrap_or(i64::MAX);
    if now < before { -magnitude } else { magnitude }
}
