//! A profile with fewer sample types.

use super::{
    join::{Join, text},
    proto::Profile,
};

/// The profile with only the sample types for whose names `which` is true; what then has no samples left is left out of its
/// tables. The default sample type is the profile's if it is among them, or else the first.
pub fn select(profile: &Profile, which: impl Fn(&str) -> bool) -> Profile {
    let mut join = Join::new(profile);
    let places: Vec<Option<usize>> = profile
        .sample_type
        .iter()
        .map(|of| which(text(profile, of.r#type)).then(|| join.sample_type(profile, *of)))
        .collect();
    for comment in &profile.comment {
        join.comment(text(profile, *comment));
    }
    join.add(profile, |index, value| {
        Some((places.get(index).copied().flatten()?, value))
    });
    let mut selected = join.finish();
    let default = selected.default_sample_type;
    if !selected.sample_type.iter().any(|of| of.r#type == default) {
        selected.default_sample_type = selected.sample_type.first().map_or(0, |of| of.r#type);
    }
    selected
}

/// The sample types that count from when tracing began, and so only grow; all others are the state at one moment.
const CUMULATIVE: [&str; 6] = [
    "alloc_objects",
    "alloc_space",
    "open_fds",
    "mmap_space",
    "touched_space",
    "brk_space",
];

/// Whether a sample type counts from when tracing began.
pub fn is_cumulative(sample_type: &str) -> bool {
    CUMULATIVE.contains(&sample_type)
}

/// The names of a profile's sample types, in their order.
pub fn type_names(profile: &Profile) -> impl Iterator<Item = &str> {
    profile.sample_type.iter().map(|of| text(profile, of.r#type))
}
