//! What becomes of the string labels of samples.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    PLENTY, books, expected, offer,
    server::{Answer, Server, Stored},
    start, url,
};
use crate::{
    output::push::{FINISH, Offer},
    profile::{Profile, proto::Label},
};

/// The offer with these string labels at its samples, in their order.
fn labeled(mut offer: Offer, labels: &[&[(&str, &str)]]) -> Offer {
    let mut profile = Profile::clone(&offer.profile);
    for (sample, labels) in profile.sample.iter_mut().zip(labels) {
        let mut index = |text: &str| {
            profile.string_table.push(text.to_owned());
            profile.string_table.len() as i64 - 1
        };
        let labels = labels.iter().map(|(name, value)| Label {
            key: index(name),
            str: index(value),
            ..Label::default()
        });
        sample.label = labels.collect();
    }
    offer.profile = Arc::new(profile);
    offer
}

/// The labels beside those of the target, and the sum of each profile, by sample type.
fn sums(stored: &[Stored]) -> Vec<(String, Vec<i64>)> {
    let own = ["__name__", "service_name", "container", "node"];
    let series = stored.iter().map(|series| {
        let labels = series.labels.iter();
        let labels: Vec<_> = labels
            .filter(|(name, _)| !own.contains(&&***name))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let sum = |profile: &Profile| profile.sample.iter().map(|sample| sample.value[0]).sum();
        (labels.join(","), series.profiles.iter().map(sum).collect())
    });
    series.collect()
}

fn expect(series: &[(&str, &[i64])]) -> Vec<(String, Vec<i64>)> {
    let series = series.iter();
    series
        .map(|(labels, sums)| (labels.to_string(), sums.to_vec()))
        .collect()
}

#[tokio::test]
async fn parca_gets_a_series_for_each_set_of_labels() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("parca", &server)], PLENTY);
    let kinds: [&[(&str, &str)]; 4] = [
        &[("kind", "tcp")],
        &[("kind", "file"), ("container", "x")],
        &[("kind", "tcp")],
        &[],
    ];
    let first = [("a", 100, 60), ("b", 20, 5), ("c", 7, 7), ("d", 1, 1)];
    let second = [("a", 100, 40), ("b", 30, 8), ("c", 9, 9), ("d", 1, 0)];
    pusher.offer(labeled(offer(15, &first), &kinds));
    pusher.offer(labeled(offer(30, &second), &kinds));
    let ended = pusher.finish(FINISH).await.remove(0).1;

    // One request for each offer.
    assert_eq!((ended.sent, server.requests()), (2, 2));
    let stored = server.stored();
    let series = expect(&[
        ("", &[1, 1]),
        ("exported_container=x,kind=file", &[5, 20]),
        ("kind=tcp", &[67, 107]),
        ("exported_container=x,kind=file", &[8, 10]),
        ("kind=tcp", &[49, 2]),
    ]);
    let mut sums = sums(&stored);
    sums[..3].sort();
    sums[3..].sort();
    assert_eq!(sums, series);
    for series in &stored {
        assert_eq!(series.labels["container"], "web", "the target's own");
        for profile in &series.profiles {
            let mut labels = profile.sample.iter().flat_map(|sample| &sample.label);
            assert_eq!(labels.next(), None);
            assert!(profile.location.len() <= 2 && profile.function.len() <= 2);
        }
    }
    // What was held and is no more is in no later profile.
    let whole = expected(&[("a", 100, 40), ("b", 30, 8), ("c", 9, 9), ("d", 1, 1)]);
    assert_eq!(books(&server), whole);
}

#[tokio::test]
async fn pyroscope_gets_the_labels_of_samples_as_they_are() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    let kinds: [&[(&str, &str)]; 2] = [&[("kind", "tcp")], &[("kind", "file")]];
    pusher.offer(labeled(offer(15, &[("a", 100, 60), ("b", 20, 5)]), &kinds));
    pusher.finish(FINISH).await;
    let stored = server.stored();
    assert_eq!(stored.len(), 1);
    let profile = &stored[0].profiles[0];
    let text = |index: i64| &*profile.string_table[index as usize];
    let labels = profile.sample.iter().flat_map(|sample| &sample.label);
    let kinds: Vec<_> = labels.map(|label| (text(label.key), text(label.str))).collect();
    assert_eq!(kinds, [("kind", "tcp"), ("kind", "file")]);
}

#[tokio::test]
async fn what_holds_least_is_together_when_there_are_very_many_labels() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("parca", &server)], PLENTY);
    let names: Vec<String> = (0..1000).map(|number| format!("f{number}")).collect();
    let values: Vec<_> = names.iter().zip(1..).map(|(name, n)| (&**name, n, n)).collect();
    let labels: Vec<_> = names.iter().map(|name| [("created_by", &**name)]).collect();
    let labels: Vec<&[(&str, &str)]> = labels.iter().map(|labels| &labels[..]).collect();
    pusher.offer(labeled(offer(15, &values), &labels));
    pusher.finish(FINISH).await;

    let sums: BTreeMap<String, Vec<i64>> = sums(&server.stored()).into_iter().collect();
    assert_eq!(sums.len(), 200);
    let rest: i64 = (1..=801).sum();
    assert_eq!(sums[""], [rest, rest]);
    assert_eq!(sums["created_by=f999"], [1000, 1000]);
    assert_eq!(sums["created_by=f801"], [802, 802]);
}
