//! Earlier readings, so that a leak can be told from a start that has come to rest.

use std::{collections::HashMap, time::Duration};

use super::mmaps::Mapped;

/// The live bytes of every stack at one moment.
#[derive(Debug)]
pub struct Reading {
    /// When, counted from the start.
    pub at: Duration,
    /// Live bytes by stack index.
    pub live_bytes: Vec<u64>,
    /// Open descriptors by stack index.
    pub open_fds: HashMap<u32, u64>,
    /// Mapped bytes.
    pub mapped: Mapped,
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
    use super::{Duration, HashMap, History, Reading};

    #[test]
    fn there_is_a_reading_in_the_second_quarter() {
        let mut history = History::default();
        for second in 1..1000 {
            let now = Duration::from_secs(second);
            if history.is_due(now) {
                history.keep(Reading {
                    at: now,
                    live_bytes: vec![second],
                    open_fds: HashMap::new(),
                    mapped: HashMap::new(),
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
