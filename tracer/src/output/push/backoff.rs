//! How long to wait before the next attempt.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// Before the second attempt, at most.
const FIRST: Duration = Duration::from_millis(500);
/// Between two attempts, at most, unless the store asks for more.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest that a store can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// The wait after so many attempts (1 after the first): twice as long each time, half of it by chance, so that many senders do not
/// come at once; or what the store asked for.
pub(super) fn wait(attempts: u32, asked: Option<Duration>) -> Duration {
    if let Some(asked) = asked {
        return asked.min(LONGEST_ASKED) + FIRST.mul_f64(chance());
    }
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    let longest = FIRST.saturating_mul(doubled).min(LONGEST);
    longest.mul_f64(0.5 + chance() / 2.0)
}

/// From 0 up to 1. The standard library's hasher has keys that are random for each value of it.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::wait;

    #[test]
    fn waits_double_up_to_a_bound() {
        for attempts in 1..60 {
            let longest = 0.5 * 2_f64.powi(attempts - 1);
            let longest = Duration::from_secs_f64(longest.min(30.0));
            let waited = wait(attempts as u32, None);
            assert!(
                waited >= longest / 2 && waited <= longest,
                "{attempts}: {waited:?}"
            );
        }
        let waits: Vec<_> = (0..10).map(|_| wait(5, None)).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "no jitter");
    }

    #[test]
    fn a_store_may_ask_for_more_but_not_for_ever() {
        let asked = Duration::from_secs(7);
        assert!((asked..asked + Duration::from_secs(1)).contains(&wait(1, Some(asked))));
        assert!(wait(1, Some(Duration::MAX)) <= Duration::from_secs(301));
    }
}
