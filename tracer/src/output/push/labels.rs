//! The labels of a series, as both stores accept them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Offer, messages::Label};

/// The longest value of a label that is sent (bytes). Pyroscope's own default limit is 2048
/// (`validation.max-length-label-value`).
const LONGEST: usize = 1024;

/// The label with the kind of profile; stores make the profile type of it, such as
/// `memory:inuse_space:bytes:space:bytes`.
const NAME: &str = "__name__";
/// The label by which Pyroscope's pages list what there is; it refuses pushes without.
const SERVICE: &str = "service_name";
/// What Prometheus puts before the name of a label that the target has, too (`honor_labels` in its configuration); Parca's
/// normalizer does the same.
const EXPORTED: &str = "exported_";

/// The labels of an offer's series, sorted by name.
pub(super) fn labels(offer: &Offer) -> Vec<Label> {
    let mut labels = BTreeMap::new();
    for (name, value) in &offer.labels {
        let name = label_name(name);
        // Names that begin so are the stores' own.
        if !name.starts_with("__") && !value.is_empty() {
            labels.entry(name).or_insert_with(|| shortened(value));
        }
    }
    let service = labels.entry(SERVICE.to_owned());
    service.or_insert_with(|| shortened(&offer.target));
    labels.insert(NAME.to_owned(), profile_name(offer.name));
    let labels = labels.into_iter();
    labels.map(|(name, value)| Label { name, value }).collect()
}

/// The labels of a series of these labels that is about the samples with these string labels (names and values), sorted by name.
///
/// A name that is a label of the target gets [`EXPORTED`] before it, so that the target's stays. Of several values of one name
/// the first counts.
pub(super) fn with_samples(series: &[Label], of_samples: &[(&str, &str)]) -> Vec<Label> {
    let series = series.iter();
    let mut labels: BTreeMap<String, String> = series
        .map(|label| (label.name.clone(), label.value.clone()))
        .collect();
    let mut names = BTreeSet::new();
    for (given, value) in of_samples {
        let mut name = label_name(given);
        if name.starts_with("__") || value.is_empty() || !names.insert(name.clone()) {
            continue;
        }
        while labels.contains_key(&name) {
            name.insert_str(0, EXPORTED);
        }
        labels.insert(name, shortened(value));
    }
    let labels = labels.into_iter();
    labels.map(|(name, value)| Label { name, value }).collect()
}

/// The name that stores know a profile by. Heap profiles are `memory` there, whoever makes them; a hyphen cannot stand in
/// the name of a profile type.
fn profile_name(name: &str) -> String {
    match name.strip_prefix("heap") {
        Some(which) => label_name(&format!("memory{which}")),
        None => label_name(name),
    }
}

/// A name of letters, digits and `_` that does not begin with a digit, which is what Prometheus allows for the names of labels;
/// what else there is becomes `_`.
fn label_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut fit: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if !fit.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        fit.insert(0, '_');
    }
    fit
}

fn shortened(value: &str) -> String {
    let mut end = value.len().min(LONGEST);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::{labels, with_samples};
    use crate::output::push::{Offer, messages::Label};

    fn of(name: &'static str, given: &[(&str, &str)]) -> Vec<(String, String)> {
        let given = given.iter();
        let offer = Offer {
            target: "pid-1".into(),
            labels: given
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            name,
            profile: Arc::default(),
            from: SystemTime::UNIX_EPOCH,
            until: SystemTime::UNIX_EPOCH,
            counts_from_before: false,
        };
        let labels = labels(&offer).into_iter();
        labels.map(|label| (label.name, label.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let expected = expected.iter();
        expected
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn names_are_made_to_fit_and_sorted() {
        let given = [
            ("service_name", "shop"),
            ("app.kubernetes.io/name", "a"),
            ("app-kubernetes-io-name", "b"),
            ("1st", "x"),
            ("empty", ""),
            ("__name__", "cpu"),
        ];
        let expected = [
            ("_1st", "x"),
            ("__name__", "memory"),
            ("app_kubernetes_io_name", "a"),
            ("service_name", "shop"),
        ];
        assert_eq!(of("heap", &given), pairs(&expected));
    }

    #[test]
    fn a_series_has_a_service_and_a_kind() {
        let expected = [("__name__", "memory_native"), ("service_name", "pid-1")];
        assert_eq!(of("heap-native", &[]), pairs(&expected));
        assert_eq!(of("goroutine", &[])[0].1, "goroutine");
    }

    #[test]
    fn values_are_cut_between_characters() {
        let long = "ü".repeat(1000);
        let value = of("fd", &[("node", &long)])[1].1.clone();
        assert_eq!(value, "ü".repeat(512));
    }

    #[test]
    fn labels_of_samples_leave_the_targets_as_they_are() {
        let series = [("__name__", "fd"), ("kind", "web")].map(|(name, value)| Label {
            name: name.to_owned(),
            value: value.to_owned(),
        });
        let of_samples = [
            ("__name__", "cpu"),
            ("created by", "main.run"),
            ("created-by", "main.other"),
            ("empty", ""),
            ("exported_kind", "b"),
            ("kind", "tcp"),
        ];
        let expected = [
            ("__name__", "fd"),
            ("created_by", "main.run"),
            ("exported_exported_kind", "tcp"),
            ("exported_kind", "b"),
            ("kind", "web"),
        ];
        let labels = with_samples(&series, &of_samples).into_iter();
        let labels: Vec<_> = labels.map(|label| (label.name, label.value)).collect();
        assert_eq!(labels, pairs(&expected));
    }
}
