//! What waits for one store, within bounds, and what that store has already.
//!
//! Offers wait as they came, with the counts from when tracing began. What is sent of one is worked out when it is its turn, from
//! the last that the store took: so an offer that was dropped takes only its moment with it, and what it added to the
//! counts is in the next.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prost::Message as _;
use tokio::sync::Notify;

use super::{
    Counters, Offer,
    series::{Base, Key, counts},
};

/// How much may wait for a store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Offers.
    pub(super) entries: usize,
    /// Bytes of the offers' profiles, as they are encoded.
    pub(super) bytes: usize,
}

/// An offer whose turn it is, and what the store has of its series.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) offer: Arc<Offer>,
    pub(super) base: Option<Base>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The store has it; so many of its values had fallen.
    Sent { fallen: u64 },
    /// There was nothing to send.
    Empty { fallen: u64 },
    /// The store did not want it, or the attempts are used up.
    Failed,
    /// It was given up because memtrace ends.
    Dropped,
}

#[derive(Debug)]
struct Waiting {
    offer: Arc<Offer>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    under_way: Option<Waiting>,
    /// Bytes of all that waits or is under way.
    bytes: usize,
    bases: HashMap<Key, Base>,
    /// Targets that are gone; their bases go when nothing of theirs waits any more.
    gone: HashSet<Arc<str>>,
    closed: bool,
    counters: Counters,
}

/// The queue of one store: offered to by any thread, taken from by the store's task.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    state: Mutex<State>,
    news: Notify,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Adds an offer, and drops the oldest while there are too many. Does not wait.
    pub(super) fn offer(&self, offer: Arc<Offer>) {
        let bytes = offer.profile.encoded_len();
        let mut state = self.lock();
        if state.closed || bytes > self.bounds.bytes {
            state.counters.dropped += 1;
            return;
        }
        state.gone.remove(&offer.target);
        state.begin(&offer);
        state.bytes += bytes;
        state.waiting.push_back(Waiting { offer, bytes });
        while state.count() > self.bounds.entries || state.bytes > self.bounds.bytes {
            if !state.drop_oldest() {
                break;
            }
        }
        drop(state);
        self.news.notify_one();
    }

    /// Forgets what the store has of a target that is gone, once nothing of it waits.
    pub(super) fn forget(&self, target: &str) {
        let mut state = self.lock();
        state.gone.insert(target.into());
        state.sweep();
    }

    /// The next offer; nothing when the queue is closed and empty. The one before must have been [settled](Self::settle).
    pub(super) async fn next(&self) -> Option<Turn> {
        loop {
            {
                let mut state = self.lock();
                if let Some(turn) = state.take() {
                    return Some(turn);
                }
                if state.closed {
                    return None;
                }
            }
            self.news.notified().await;
        }
    }

    /// Counts how the offer under way ended, and notes what the store has now.
    pub(super) fn settle(&self, end: End) {
        let mut state = self.lock();
        let Some(ended) = state.under_way.take() else {
            return;
        };
        state.bytes -= ended.bytes;
        match end {
            End::Sent { fallen } | End::Empty { fallen } => {
                let was_sent = matches!(end, End::Sent { .. });
                state.counters.sent += u64::from(was_sent);
                state.counters.empty += u64::from(!was_sent);
                state.counters.fallen += fallen;
                state.arrived(&ended.offer);
            }
            End::Failed => state.counters.failed += 1,
            End::Dropped => state.counters.dropped += 1,
        }
        state.sweep();
    }

    pub(super) fn count_retry(&self) {
        self.lock().counters.retried += 1;
    }

    /// Takes no more offers; [`Queue::next`] ends when those that wait are taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.news.notify_one();
    }

    /// Drops and counts all that waits.
    pub(super) fn drop_rest(&self) {
        self.settle(End::Dropped);
        let mut state = self.lock();
        while state.drop_oldest() {}
    }

    pub(super) fn counters(&self) -> Counters {
        let state = self.lock();
        Counters {
            queued: state.count() as u64,
            queued_bytes: state.bytes as u64,
            ..state.counters.clone()
        }
    }

    /// How many series the store is known to have.
    #[cfg(test)]
    pub(super) fn series(&self) -> usize {
        self.lock().bases.len()
    }

    /// No holder of the lock can leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&self) -> usize {
        self.waiting.len() + usize::from(self.under_way.is_some())
    }

    /// The first offer of a series whose counts are from before `from` is what later ones are compared with.
    fn begin(&mut self, offer: &Offer) {
        let is_first = !self.bases.contains_key(&offer.key());
        if offer.counts_from_before && is_first {
            self.arrived(offer);
        }
    }

    fn take(&mut self) -> Option<Turn> {
        let next = self.waiting.pop_front()?;
        let turn = Turn {
            offer: Arc::clone(&next.offer),
            base: self.bases.get(&next.offer.key()).cloned(),
        };
        self.under_way = Some(next);
        Some(turn)
    }

    /// Only counts have to be compared with later ones.
    fn arrived(&mut self, offer: &Offer) {
        if counts(&offer.profile) {
            let base = Base {
                profile: Arc::clone(&offer.profile),
                until: offer.until,
            };
            self.bases.insert(offer.key(), base);
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.waiting.pop_front() else {
            return false;
        };
        self.bytes -= oldest.bytes;
        self.counters.dropped += 1;
        self.sweep();
        true
    }

    /// Removes the bases of targets that are gone and have nothing left to send.
    fn sweep(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        let left: HashSet<&str> = self
            .waiting
            .iter()
            .chain(&self.under_way)
            .map(|waiting| &*waiting.offer.target)
            .collect();
        let done = |target: &Arc<str>| self.gone.contains(target) && !left.contains(&**target);
        self.bases.retain(|key, _| !done(&key.target));
        let gone = std::mem::take(&mut self.gone);
        self.gone = gone
            .into_iter()
            .filter(|target| left.contains(&**target))
            .collect();
    }
}
