//! A push to a real store; docs/push.md says how it is started and asked what it has.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{PLENTY, offer, start};
use crate::{
    output::push::{FINISH, Offer},
    profile::Profile,
};

#[tokio::test]
#[ignore = "needs a store, as MEMTRACE_STORE=parca=http://127.0.0.1:7070"]
async fn a_real_store_takes_it() {
    let store = std::env::var("MEMTRACE_STORE").unwrap();
    let pusher = start(&[store], PLENTY);
    let began = SystemTime::now() - Duration::from_secs(60);
    for (seconds, values) in [
        (15, [("a", 1000, 600), ("b", 50, 50)]),
        (30, [("a", 1800, 200), ("b", 50, 50)]),
        (45, [("a", 2500, 300), ("b", 75, 70)]),
    ] {
        let made = offer(seconds, &values);
        let mut profile = Profile::clone(&made.profile);
        profile.time_nanos = began.duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        pusher.offer(Offer {
            profile: Arc::new(profile),
            from: began,
            until: began + Duration::from_secs(seconds),
            ..made
        });
    }
    let ended = pusher.finish(FINISH).await.remove(0).1;
    assert_eq!((ended.sent, ended.failed, ended.dropped), (3, 0, 0));
}
