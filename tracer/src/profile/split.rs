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

#[cfg(test)]
mod tests {
    use super::{split, text};
    use crate::profile::proto::{Label, Location, Profile, Sample, ValueType};

    const TCP: Label = string(3, 4);
    const FILE: Label = string(3, 5);
    const ONE_GOROUTINE: Label = Label {
        key: 6,
        str: 0,
        num: 7,
        num_unit: 0,
    };

    const fn string(key: i64, str: i64) -> Label {
        Label {
            key,
            str,
            num: 0,
            num_unit: 0,
        }
    }

    /// Samples of these locations with a label or none and two values, of which the second is shown by default.
    fn profile(samples: &[(u64, &[Label], [i64; 2])]) -> Profile {
        let location = |id| Location {
            id,
            address: id * 16,
            ..Location::default()
        };
        let sample = |(id, labels, values): &(u64, &[Label], [i64; 2])| Sample {
            location_id: vec![*id],
            value: values.to_vec(),
            label: labels.to_vec(),
        };
        Profile {
            string_table: ["", "opened", "open", "kind", "tcp", "file", "goroutine"]
                .map(str::to_owned)
                .to_vec(),
            sample_type: [1, 2].map(|r#type| ValueType { r#type, unit: 0 }).to_vec(),
            default_sample_type: 2,
            location: (1..=3).map(location).collect(),
            sample: samples.iter().map(sample).collect(),
            time_nanos: 5,
            duration_nanos: 9,
            ..Profile::default()
        }
    }

    /// Address and values of each sample.
    fn samples(profile: &Profile) -> Vec<(u64, Vec<i64>)> {
        let samples = profile.sample.iter();
        let address = |sample: &Sample| profile.location[sample.location_id[0] as usize - 1].address;
        samples
            .map(|sample| (address(sample), sample.value.clone()))
            .collect()
    }

    fn kind(labels: &[(&str, &str)]) -> String {
        labels
            .first()
            .map(|(_, value)| *value)
            .unwrap_or_default()
            .to_owned()
    }

    #[test]
    fn parts_have_what_their_samples_need() {
        let whole = profile(&[
            (1, &[TCP], [1, 1]),
            (2, &[FILE, ONE_GOROUTINE], [2, 0]),
            (1, &[FILE], [3, 3]),
            (3, &[], [4, 4]),
        ]);
        let parts = split(&whole, 10, kind);
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["", "file", "tcp"]);
        assert_eq!(samples(&parts[""]), [(48, vec![4, 4])]);
        assert_eq!(samples(&parts["file"]), [(32, vec![2, 0]), (16, vec![3, 3])]);
        assert_eq!(samples(&parts["tcp"]), [(16, vec![1, 1])]);
        assert_eq!(parts["tcp"].location.len(), 1);
        let labels = &parts["file"].sample[0].label;
        assert_eq!((labels.len(), labels[0].num), (1, 7));
        for part in parts.values() {
            assert_eq!((part.time_nanos, part.duration_nanos), (5, 9));
            assert_eq!(text(part, part.default_sample_type), "open");
            let types = part.sample_type.iter().map(|of| text(part, of.r#type));
            assert_eq!(types.collect::<Vec<_>>(), ["opened", "open"]);
        }
    }

    #[test]
    fn the_smallest_are_with_what_has_no_labels() {
        let whole = profile(&[
            (1, &[TCP], [100, 1]),
            (2, &[FILE], [1, 2]),
            (1, &[], [5, 5]),
            (3, &[string(3, 6)], [9, 0]),
        ]);
        let parts = split(&whole, 3, kind);
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["", "file"]);
        assert_eq!(samples(&parts[""]), [(16, vec![105, 6]), (48, vec![9, 0])]);
        let one = split(&whole, 1, kind);
        assert_eq!(samples(&one[""]).len(), 3);
        assert!(split(&Profile::default(), 3, kind).is_empty());
    }
}
