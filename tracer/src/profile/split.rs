//! A profile in parts, by what the labels of its samples say.

use std::collections::BTreeMap;

use super::{
    join::{Join, Source, text},
    proto::{Label, Profile, Sample},
};

/// The samples of a profile by the `key` that their string labels (names and values) give, each part without these labels and
/// with only what its samples need, and the main binary. The parts add up to the whole. They have no comments.
///
/// There are at most `most` parts: of more, those are told apart that have the most of the default sample type, and the rest
/// is with what has no string labels.
pub fn split<K: Ord>(
    profile: &Profile,
    most: usize,
    key: impl Fn(&[(&str, &str)]) -> K,
) -> BTreeMap<K, Profile> {
    let mut same_labels: BTreeMap<Vec<(&str, &str)>, Vec<&Sample>> = BTreeMap::new();
    for sample in &profile.sample {
        let labels = string_labels(profile, sample);
        same_labels.entry(labels).or_default().push(sample);
    }
    let mut parts: BTreeMap<K, Vec<&Sample>> = BTreeMap::new();
    for (labels, samples) in same_labels {
        parts.entry(key(&labels)).or_default().extend(samples);
    }
    if parts.len() > most {
        let rest = keep_largest(&mut parts, most.saturating_sub(1), default_type(profile));
        parts.entry(key(&[])).or_default().extend(rest);
    }
    let source = Source::new(profile);
    let parts = parts.into_iter();
    parts
        .map(|(key, samples)| (key, part(profile, &source, samples)))
        .collect()
}

/// Leaves the `most` parts that have the most of the sample type of this index, and gives the samples of the others.
fn keep_largest<'p, K: Ord>(
    parts: &mut BTreeMap<K, Vec<&'p Sample>>,
    most: usize,
    sample_type: usize,
) -> Vec<&'p Sample> {
    let amount = |samples: &[&Sample]| {
        let values = samples.iter().filter_map(|sample| sample.value.get(sample_type));
        values.fold(0_i64, |sum, value| sum.saturating_add(*value))
    };
    let mut largest_first: Vec<(K, Vec<&Sample>)> = std::mem::take(parts).into_iter().collect();
    // Stable: of equals the first by their key.
    largest_first.sort_by_key(|(_, samples)| std::cmp::Reverse(amount(samples)));
    let rest = largest_first.split_off(most.min(largest_first.len()));
    parts.extend(largest_first);
    rest.into_iter().flat_map(|(_, samples)| samples).collect()
}

fn part(profile: &Profile, source: &Source<'_>, samples: Vec<&Sample>) -> Profile {
    let mut join = Join::new(profile);
    let types = profile.sample_type.iter();
    let places: Vec<usize> = types.map(|of| join.sample_type(profile, *of)).collect();
    let place = |index: usize, value| Some((*places.get(index)?, value));
    join.add_some(source, samples, |label| !is_string(label), place);
    join.finish()
}

/// In the format a label is a string or a number, and the string table's first string is the empty one.
fn is_string(label: &Label) -> bool {
    label.str != 0
}

fn string_labels<'p>(profile: &'p Profile, sample: &Sample) -> Vec<(&'p str, &'p str)> {
    let labels = sample.label.iter().filter(|label| is_string(label));
    let mut labels: Vec<_> = labels
        .map(|label| (text(profile, label.key), text(profile, label.str)))
        .collect();
    labels.sort_unstable();
    labels
}

fn default_type(profile: &Profile) -> usize {
    let mut types = profile.sample_type.iter();
    types
        .position(|of| of.r#type == profile.default_sample_type)
        .unwrap_or(0)
}
