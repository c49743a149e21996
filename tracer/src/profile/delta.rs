//! What came between two profiles of the same kind.

use super::{
    join::{Join, ended_nanos, text},
    proto::Profile,
};

/// `later` minus `earlier`, in the sample types for which `which` is true (it gets their names, such as `alloc_space`); in
/// the others the values of `later`.
///
/// Samples are the same when their stacks and labels have the same content (file, build id, place, address, functions,
/// lines); ids are of no account. What fell is negative, as in `?seconds=` of Go's `net/http/pprof`; samples whose values are
/// all 0 are left out, and so is what only these needed. A sample type that `earlier` does not have counts as 0 there.
///
/// The time of the result begins where `earlier` ends and lasts until `later` ends. (memtrace's profiles carry the time
/// when their time began, which is when tracing began for both. `net/http/pprof` sets the time when `later` was collected
/// and the same duration.)
pub fn delta(later: &Profile, earlier: &Profile, which: impl Fn(&str) -> bool) -> Profile {
    let mut join = Join::new(later);
    for sample_type in &later.sample_type {
        join.sample_type(later, *sample_type);
    }
    for comment in &later.comment {
        join.comment(text(later, *comment));
    }
    set_time(join.profile_mut(), later, earlier);
    join.add(later, |index, value| {
        (index < later.sample_type.len()).then_some((index, value))
    });
    let minus: Vec<Option<usize>> = earlier
        .sample_type
        .iter()
        .map(|of| {
            let chosen = which(text(earlier, of.r#type));
            chosen.then(|| join.known_sample_type(earlier, *of)).flatten()
        })
        .collect();
    join.add(earlier, |index, value| {
        let to = minus.get(index).copied().flatten()?;
        Some((to, value.saturating_neg()))
    });
    join.finish()
}

fn set_time(delta: &mut Profile, later: &Profile, earlier: &Profile) {
    let (from, until) = (ended_nanos(earlier), ended_nanos(later));
    delta.time_nanos = from.min(until);
    delta.duration_nanos = until.saturating_sub(from).max(0);
}
