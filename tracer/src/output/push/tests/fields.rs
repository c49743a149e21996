//! What arrives, field by field.

use std::{sync::Arc, time::Duration};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

use super::{
    BEGAN, PLENTY, PROTOCOLS, books, counters, expected, offer, options,
    server::{Answer, Server},
    start, until, url,
};
use crate::{
    output::push::{FINISH, Offer, Pusher},
    profile::{Profile, type_names},
};

fn nanos(seconds: u64) -> i64 {
    (BEGAN + Duration::from_secs(seconds)).as_nanos() as i64
}

fn times(profile: &Profile) -> (i64, i64) {
    (profile.time_nanos, profile.duration_nanos)
}

#[tokio::test]
async fn pyroscope_gets_one_profile_with_all_sample_types() {
    let server = Server::start(|_| Answer::Stored).await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "secret\n").unwrap();
    let mut options = options(&[url("pyroscope", &server)]);
    options.push_token_file = Some(token.path().to_owned());
    options.push_tenant = Some("team".to_owned());
    let pusher = Pusher::start_within(&options, PLENTY, &Handle::current()).unwrap();
    pusher.offer(offer(15, &[("a", 100, 60), ("b", 5, 5)]));
    pusher.offer(offer(30, &[("a", 180, 20), ("b", 5, 5), ("c", 1, 0)]));
    let ended = pusher.finish(FINISH).await;

    let stored = server.stored();
    assert_eq!(ended[0].1.sent, 2);
    assert_eq!(stored.len(), 2);
    for push in &stored {
        assert_eq!(push.path, "/push.v1.PusherService/Push");
        assert_eq!(push.headers["content-type"], "application/proto");
        assert_eq!(push.headers["connect-protocol-version"], "1");
        assert_eq!(push.headers["authorization"], "Bearer secret");
        assert_eq!(push.headers["x-scope-orgid"], "team");
        let labels: Vec<_> = push
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            labels,
            ["__name__=memory", "container=web", "node=n1", "service_name=shop"]
        );
        let types: Vec<_> = type_names(&push.profiles[0]).collect();
        assert_eq!(types, ["alloc_space", "inuse_space"]);
    }
    let values = |push: usize| {
        let samples = stored[push].profiles[0].sample.iter();
        samples.map(|sample| sample.value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(values(0), [[100, 60], [5, 5]]);
    assert_eq!(values(1), [[80, 20], [0, 5], [1, 0]]);
    assert_eq!(times(&stored[0].profiles[0]), (nanos(15), 15_000_000_000));
    assert_eq!(times(&stored[1].profiles[0]), (nanos(30), 15_000_000_000));
    assert_eq!(
        books(&server),
        expected(&[("a", 180, 20), ("b", 5, 5), ("c", 1, 0)])
    );
}

#[tokio::test]
async fn parca_gets_the_state_and_the_interval_apart() {
    let server = Server::start(|_| Answer::Stored).await;
    let store = format!("parca=http://me:pass@{}", server.address);
    let pusher = start(&[store], PLENTY);
    pusher.offer(offer(15, &[("a", 100, 60)]));
    pusher.offer(offer(30, &[("a", 180, 20)]));
    pusher.offer(offer(45, &[("a", 180, 20)]));
    let ended = pusher.finish(FINISH).await;
    assert_eq!(ended[0].0, format!("parca=http://{}", server.address));

    let stored = server.stored();
    assert_eq!(stored.len(), 3);
    for push in &stored {
        assert_eq!(
            push.path,
            "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw"
        );
        assert_eq!(push.headers["te"], "trailers");
        assert_eq!(push.headers["authorization"], "Basic bWU6cGFzcw==");
        assert_eq!(push.labels["__name__"], "memory");
        assert_eq!(push.labels["service_name"], "shop");
    }
    let [state, added] = &stored[1].profiles[..] else {
        panic!("{:?}", stored[1].profiles);
    };
    assert_eq!(type_names(state).collect::<Vec<_>>(), ["inuse_space"]);
    assert_eq!(type_names(added).collect::<Vec<_>>(), ["alloc_space"]);
    assert_eq!(times(state), (nanos(30), 0));
    assert_eq!(times(added), (nanos(30), 15_000_000_000));
    assert_eq!(stored[2].profiles.len(), 1, "nothing was allocated");
    assert_eq!(books(&server), expected(&[("a", 180, 20)]));
}

#[tokio::test]
async fn each_target_and_kind_is_a_series() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    let other = Offer {
        target: "pid-7".into(),
        labels: Vec::new(),
        ..offer(15, &[("a", 7, 7)])
    };
    let native = Offer {
        name: "heap-native",
        ..offer(15, &[("a", 9, 9)])
    };
    pusher.offer(offer(15, &[("a", 100, 60)]));
    pusher.offer(other);
    pusher.offer(native);
    pusher.finish(FINISH).await;
    let stored = server.stored();
    let series: Vec<_> = stored
        .iter()
        .map(|push| {
            let labels = (&*push.labels["__name__"], &*push.labels["service_name"]);
            (labels, push.profiles[0].sample[0].value[0])
        })
        .collect();
    let expected = [
        (("memory", "shop"), 100),
        (("memory", "pid-7"), 7),
        (("memory_native", "shop"), 9),
    ];
    assert_eq!(series, expected);
}

#[tokio::test]
async fn what_fell_is_0_and_counted() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    pusher.offer(offer(15, &[("a", 100, 1), ("gone", 50, 0)]));
    pusher.offer(offer(30, &[("a", 40, 1)]));
    pusher.offer(offer(45, &[("a", 45, 0)]));
    pusher.offer(offer(60, &[("a", 45, 0)]));
    let ended = pusher.finish(FINISH).await.remove(0).1;
    let stored = server.stored();
    let added: Vec<_> = stored
        .iter()
        .map(|push| push.profiles[0].sample[0].value[0])
        .collect();
    assert_eq!(added, [100, 0, 5]);
    assert_eq!((ended.fallen, ended.sent, ended.empty), (2, 3, 1));
}

#[tokio::test]
async fn books_that_began_anew_are_all_new() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    pusher.offer(offer(15, &[("a", 100, 1)]));
    let mut restarted = offer(30, &[("a", 120, 1)]);
    let mut profile = Profile::clone(&restarted.profile);
    profile.time_nanos = nanos(20);
    restarted.profile = Arc::new(profile);
    restarted.from = super::at(20);
    pusher.offer(restarted);
    pusher.finish(FINISH).await;
    let stored = server.stored();
    assert_eq!(stored[1].profiles[0].sample[0].value, [120, 1]);
    assert_eq!(times(&stored[1].profiles[0]), (nanos(30), 10_000_000_000));
}

#[tokio::test]
async fn counts_from_before_are_only_compared_with() {
    let server = Server::start(|_| Answer::Stored).await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    for (seconds, alloc) in [(15, 1_000_000), (30, 1_000_010)] {
        pusher.offer(Offer {
            counts_from_before: true,
            ..offer(seconds, &[("a", alloc, 6)])
        });
    }
    pusher.finish(FINISH).await;
    let stored = server.stored();
    let values: Vec<_> = stored
        .iter()
        .map(|push| push.profiles[0].sample[0].value.clone())
        .collect();
    assert_eq!(values, [[0, 6], [10, 6]]);
}

#[tokio::test]
async fn nothing_is_kept_of_a_target_that_is_gone() {
    let server = Server::start(|_| Answer::Slow(Duration::from_millis(50))).await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    pusher.offer(offer(15, &[("a", 100, 60)]));
    pusher.offer(offer(30, &[("a", 150, 60)]));
    pusher.forget("docker-web");
    until(&pusher, |counters| counters.sent == 2).await;
    assert_eq!(pusher.stores[0].queue.series(), 0);
    assert_eq!(books(&server), expected(&[("a", 150, 60)]));
    pusher.offer(offer(45, &[("a", 1, 1)]));
    until(&pusher, |counters| counters.sent == 3).await;
    assert_eq!(pusher.stores[0].queue.series(), 1);
    pusher.forget("docker-web");
    assert_eq!(pusher.stores[0].queue.series(), 0);
    assert_eq!(counters(&pusher).queued, 0);
}

#[tokio::test]
async fn https_is_trusted_by_the_given_certificate_only() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key);
    let mut config = config.unwrap();
    config.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).to_vec();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let any = "127.0.0.1:0".parse().unwrap();
    let server = Server::start_at(any, Some(acceptor), |_| Answer::Stored).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), cert.pem()).unwrap();

    let stores = PROTOCOLS.map(|protocol| format!("{protocol}=https://localhost:{}", server.address.port()));
    let mut options = options(&stores);
    options.push_ca_file = Some(file.path().to_owned());
    let pusher = Pusher::start_within(&options, PLENTY, &Handle::current()).unwrap();
    pusher.offer(offer(15, &[("a", 1, 1)]));
    let ended = pusher.finish(FINISH).await;
    assert!(ended.iter().all(|(_, counters)| counters.sent == 1), "{ended:?}");
    assert_eq!(server.stored().len(), 2);

    options.push_ca_file = Some("/does/not/exist".into());
    let error = Pusher::start_within(&options, PLENTY, &Handle::current()).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(file.path(), other.cert.pem()).unwrap();
    options.push_ca_file = Some(file.path().to_owned());
    let pusher = Pusher::start_within(&options, PLENTY, &Handle::current()).unwrap();
    pusher.offer(offer(15, &[("a", 1, 1)]));
    let ended = pusher.finish(Duration::from_millis(500)).await;
    assert!(ended.iter().all(|(_, counters)| counters.sent == 0), "{ended:?}");
}
