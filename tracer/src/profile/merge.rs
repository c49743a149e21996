//! Several profiles in one.

use std::borrow::Borrow;

use super::{
    join::{Join, ended_nanos, text},
    proto::Profile,
};

/// The sum of the profiles, such as those of the processes of one container.
///
/// Samples are the same when their stacks and labels have the same content, and mappings are when file, build id, offset,
/// begin and end are equal: each process keeps its own addresses. Sample types are matched by name and unit; a type that
/// only some of the profiles have counts as 0 in the others. Each comment is there once. The time is from the first that
/// began to the last that ended, the period the largest, as in `pprof -proto`. What else a profile says of itself (default
/// sample type, period type, main binary) is the first one's. No profiles make an empty one.
pub fn merge<P: Borrow<Profile>>(profiles: &[P]) -> Profile {
    let Some(first) = profiles.first() else {
        return Join::new(&Profile::default()).finish();
    };
    let mut join = Join::new(first.borrow());
    let profiles = || profiles.iter().map(Borrow::borrow);
    set_time_and_period(join.profile_mut(), profiles());
    let places: Vec<Vec<usize>> = profiles()
        .map(|of| {
            let types = of.sample_type.iter();
            types
                .map(|sample_type| join.sample_type(of, *sample_type))
                .collect()
        })
        .collect();
    for (of, places) in profiles().zip(&places) {
        for comment in &of.comment {
            join.comment(text(of, *comment));
        }
        join.add(of, |index, value| places.get(index).map(|to| (*to, value)));
    }
    join.finish()
}

fn set_time_and_period<'a>(merged: &mut Profile, all: impl Iterator<Item = &'a Profile> + Clone) {
    let from = all
        .clone()
        .map(|of| of.time_nanos)
        .filter(|time| *time != 0)
        .min();
    let until = all.clone().map(ended_nanos).max();
    merged.time_nanos = from.unwrap_or(0);
    merged.duration_nanos = until.unwrap_or(0).saturating_sub(merged.time_nanos).max(0);
    merged.period = all.map(|of| of.period).max().unwrap_or(0);
}
