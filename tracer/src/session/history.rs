//! Earlier readings, so that a leak can be told from a start that has come to rest.

use std::time::Duration;

use super::{golang::GoReadings, mmaps::Mapped};
use crate::kernel::OpenByStack;

/// The live bytes of every stack at one moment.
#[derive(Debug)]
pub struct Reading {
    /// When, counted from the start.
    pub at: Duration,
    /// Live bytes by stack index.
    pub live_bytes: Vec<u64>,
    /// Open descriptors.
    pub open_fds: OpenByStack,
    /// Mapped bytes.
    pub mapped: Mapped,
    /// What Go runtimes knew.
    pub go: GoReadings,
}

/// Readings at 1, 2, 4, 8 … seconds: however long a run is, one of them is near its middle, and keeping them
/// costs nothing between.
#[derive(Debug, Default)]
pub struct History {
    readings: Vec<Reading>,
}

impl History {
    /// How many readings can still be the one nearest to the middle.
    const KEPT: usize = 3;

    /// When the next reading is due, counted from the start.
    pub fn next_due(&self) -> Duration {
        self.readings
            .last()
            .map_or(Duration::from_secs(1), |last| last.at.saturating_mul(2))
    }

    /// Whether a reading is due.
    pub fn is_due(&self, elapsed: Duration) -> bool {
        elapsed >= self.next_due()
    }

    /// Keeps a reading.
    pub fn keep(&mut self, reading: Reading) {
        if self.readings.len() == Self::KEPT {
            self.readings.remove(0);
        }
        self.readings.push(reading);
    }

    /// The latest reading.
    pub fn last(&self) -> Option<&Reading> {
        self.readings.last()
    }

    /// The latest reading of the first half.
    pub fn half_way(&self, elapsed: Duration) -> Option<&Reading> {
        self.readings
            .iter()
            .rev()
            .find(|reading| reading.at <= elapsed / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, GoReadings, History, Mapped, OpenByStack, Reading};

    #[test]
    fn there_is_a_reading_in_the_second_quarter() {
        let mut history = History::default();
        for second in 1..1000 {
            let now = Duration::from_secs(second);
            if history.is_due(now) {
                history.keep(Reading {
                    at: now,
                    live_bytes: vec![second],
                    open_fds: OpenByStack::new(),
                    mapped: Mapped::new(),
                    go: GoReadings::new(),
                });
            }
            if second >= 2 {
                let reading = history
                    .half_way(now)
                    .expect("there is one from the second second on");
                assert!(reading.at * 4 >= now, "{now:?}: {:?}", reading.at);
            }
        }
    }
}
