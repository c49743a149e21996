//! What one push of a series says: values as they are, and values of the interval since the last push that arrived.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Offer;
use crate::profile::{Profile, delta, ended_nanos, is_cumulative, select, type_names};

/// A series of offers: the target's id and the profile's name. A store may make several series of its own of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) target: Arc<str>,
    pub(super) name: &'static str,
}

/// What a store has of a series.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) profile: Arc<Profile>,
    pub(super) until: SystemTime,
}

/// What is pushed of an offer.
#[derive(Clone, Debug)]
pub(super) struct Interval {
    /// All sample types: those that count are of the interval, and never negative.
    pub(super) profile: Profile,
    /// How many values fell since the last push, and are 0 instead.
    pub(super) fallen: u64,
}

impl Interval {
    /// What came to an offer since `base`. Stores add up what is pushed, so of what counts from when tracing began they get what
    /// came since the last push.
    ///
    /// The time of the profile is that of its collection, the end of the interval, and its duration is the interval's. A
    /// profile whose books began after the base ended has nothing in common with it: all of it is new.
    pub(super) fn new(offer: &Offer, base: Option<&Base>) -> Self {
        let began_anew = |base: &&Base| offer.profile.time_nanos >= ended_nanos(&base.profile);
        let base = base.filter(|base| !began_anew(base));
        let from = base.map_or(offer.from, |base| base.until);
        let empty = Profile::default();
        let earlier = base.map_or(&empty, |base| &base.profile);
        let mut profile = delta(&offer.profile, earlier, is_cumulative);
        let fallen = raise_to_zero(&mut profile);
        profile.time_nanos = nanoseconds(offer.until.duration_since(UNIX_EPOCH).unwrap_or_default());
        profile.duration_nanos = nanoseconds(offer.until.duration_since(from).unwrap_or_default());
        // What became 0 goes.
        let profile = select(&profile, |_| true);
        Self { profile, fallen }
    }
}

/// How many values were below 0. A process of the target that ended takes its counts with it.
fn raise_to_zero(profile: &mut Profile) -> u64 {
    let values = profile.sample.iter_mut().flat_map(|sample| &mut sample.value);
    let below = values.filter(|value| **value < 0);
    below.map(|value| *value = 0).count() as u64
}

/// Whether a profile has values that count from when tracing began.
pub(super) fn counts(profile: &Profile) -> bool {
    type_names(profile).any(is_cumulative)
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
