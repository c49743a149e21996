//! How fast the live heap grows.

use std::{collections::VecDeque, time::Duration};

/// Looks back at most this long.
const WINDOW: Duration = Duration::from_secs(60);

/// The live bytes of the last minute.
#[derive(Debug, Default)]
pub struct Trend {
    readings: VecDeque<(Duration, u64)>,
}

impl Trend {
    /// Adds a reading; tells the change in bytes per minute over the window.
    pub fn add(&mut self, now: Duration, live_bytes: u64) -> Option<i64> {
        while self
            .readings
            .front()
            .is_some_and(|&(then, _)| now.saturating_sub(then) > WINDOW)
        {
            self.readings.pop_front();
        }
        self.readings.push_back((now, live_bytes));
        let &(then, before) = self.readings.front()?;
        let seconds = now.saturating_sub(then).as_secs_f64();
        (seconds > 0.0).then(|| ((live_bytes as f64 - before as f64) * 60.0 / seconds) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Trend};

    #[test]
    fn looks_back_one_minute() {
        let mut trend = Trend::default();
        assert_eq!(trend.add(Duration::ZERO, 0), None);
        assert_eq!(trend.add(Duration::from_secs(30), 100), Some(200));
        assert_eq!(trend.add(Duration::from_secs(120), 100), None);
        assert_eq!(trend.add(Duration::from_secs(150), 40), Some(-120));
    }
}
