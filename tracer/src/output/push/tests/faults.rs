//! Stores that are away, busy, broken, or never answer: nothing is lost but what is counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    PLENTY, PROTOCOLS, books, counters, expected, offer,
    server::{Answer, Server},
    start, until, url,
};
use crate::output::push::{Bounds, FINISH};

#[tokio::test]
async fn a_store_that_fails_for_a_while_gets_everything() {
    let http: fn(usize) -> Answer = |number| match number {
        0 => Answer::Status(503, None, "starting"),
        1 => Answer::Status(429, Some("1"), ""),
        2 => Answer::Reset,
        3 => Answer::Status(500, None, "{\"code\":\"unknown\",\"message\":\"x\"}"),
        _ => Answer::Stored,
    };
    let grpc: fn(usize) -> Answer = |number| match number {
        0 => Answer::Grpc(14, "starting"),
        1 => Answer::Grpc(8, "slow down"),
        2 => Answer::Reset,
        3 => Answer::Grpc(2, "x"),
        _ => Answer::Stored,
    };
    for (protocol, answers) in PROTOCOLS.into_iter().zip([http, grpc]) {
        let server = Server::start(answers).await;
        let pusher = start(&[url(protocol, &server)], PLENTY);
        let began = Instant::now();
        pusher.offer(offer(15, &[("a", 100, 60)]));
        pusher.offer(offer(30, &[("a", 130, 70)]));
        let ended = until(&pusher, |counters| counters.sent == 2).await;
        assert_eq!(
            (ended.retried, ended.failed, ended.dropped),
            (4, 0, 0),
            "{protocol}"
        );
        assert_eq!(server.requests(), 6);
        if protocol == "pyroscope" {
            assert!(
                began.elapsed() > Duration::from_secs(1),
                "Retry-After was not heeded"
            );
        }
        assert_eq!(books(&server), expected(&[("a", 130, 70)]));
    }
}

#[tokio::test]
async fn a_store_that_is_not_there_yet_gets_everything() {
    for protocol in PROTOCOLS {
        // A port that was free a moment ago.
        let address = Server::start(|_| Answer::Stored).await.address;
        tokio::task::yield_now().await;
        let pusher = start(&[format!("{protocol}=http://{address}")], PLENTY);
        pusher.offer(offer(15, &[("a", 100, 60)]));
        until(&pusher, |counters| counters.retried > 0).await;
        assert_eq!(counters(&pusher).queued, 1);
        let server = Server::start_at(address, None, |_| Answer::Stored).await;
        until(&pusher, |counters| counters.sent == 1).await;
        assert_eq!(books(&server), expected(&[("a", 100, 60)]), "{protocol}");
    }
}

#[tokio::test]
async fn what_a_store_refuses_is_counted_and_its_counts_are_in_the_next() {
    let http: fn(usize) -> Answer = |number| match number {
        1 => Answer::Status(413, None, "too large"),
        2 => Answer::Status(400, None, "{\"code\":\"invalid_argument\",\"message\":\"no\"}"),
        _ => Answer::Stored,
    };
    let grpc: fn(usize) -> Answer = |number| match number {
        1 => Answer::Grpc(8, "grpc: received message larger than max (9 vs. 8)"),
        2 => Answer::Grpc(3, "no"),
        _ => Answer::Stored,
    };
    for (protocol, answers) in PROTOCOLS.into_iter().zip([http, grpc]) {
        let server = Server::start(answers).await;
        let pusher = start(&[url(protocol, &server)], PLENTY);
        for (seconds, alloc) in [(15, 10), (30, 30), (45, 60), (60, 100)] {
            pusher.offer(offer(seconds, &[("a", alloc, 7)]));
        }
        let ended = pusher.finish(FINISH).await.remove(0).1;
        assert_eq!((ended.sent, ended.failed, ended.retried), (2, 2, 0), "{protocol}");
        assert_eq!(server.requests(), 4);
        assert_eq!(books(&server), expected(&[("a", 100, 7)]));
        let last = server.stored().pop().unwrap().profiles.pop().unwrap();
        assert_eq!(last.duration_nanos, 45_000_000_000);
    }
}

#[tokio::test]
async fn a_store_that_fails_at_one_push_gets_the_next() {
    let server = Server::start(|number| match number {
        0..5 => Answer::Status(500, None, ""),
        _ => Answer::Stored,
    })
    .await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    pusher.offer(offer(15, &[("a", 10, 1)]));
    pusher.offer(offer(30, &[("a", 30, 2)]));
    let ended = until(&pusher, |counters| counters.sent == 1).await;
    assert_eq!((ended.failed, ended.retried), (1, 4));
    assert_eq!(books(&server), expected(&[("a", 30, 2)]));
}

#[tokio::test]
async fn a_store_that_hangs_delays_no_other() {
    for protocol in PROTOCOLS {
        let hangs = Server::start(|_| Answer::Hang).await;
        let works = Server::start(|_| Answer::Stored).await;
        let pusher = start(&[url(protocol, &hangs), url(protocol, &works)], PLENTY);
        let began = Instant::now();
        for seconds in 1..=20 {
            pusher.offer(offer(seconds, &[("a", seconds as i64, 1)]));
        }
        assert!(began.elapsed() < Duration::from_millis(500), "offering waited");
        while works.stored().len() < 20 {
            assert!(began.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before_end = Instant::now();
        let ended = pusher.finish(Duration::from_millis(300)).await;
        assert!(before_end.elapsed() < Duration::from_secs(3));
        let (hung, worked) = (&ended[0].1, &ended[1].1);
        assert_eq!(
            (hung.sent, hung.dropped, hung.queued, hung.queued_bytes),
            (0, 20, 0, 0)
        );
        assert_eq!((worked.sent, worked.dropped), (20, 0));
        assert_eq!(books(&works), expected(&[("a", 20, 1)]));
    }
}

#[tokio::test]
async fn what_does_not_fit_is_counted_and_its_counts_are_in_the_next() {
    let is_back = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_back);
    let server = Server::start(move |_| match flag.load(Ordering::SeqCst) {
        true => Answer::Stored,
        false => Answer::Status(503, None, ""),
    })
    .await;
    let three = Bounds { entries: 3, ..PLENTY };
    let pusher = start(&[url("pyroscope", &server)], three);
    pusher.offer(offer(1, &[("a", 1, 1)]));
    until(&pusher, |counters| counters.retried > 0).await;
    for seconds in 2..=10 {
        pusher.offer(offer(seconds, &[("a", seconds as i64 * 10, 1)]));
    }
    let full = counters(&pusher);
    assert_eq!((full.queued, full.dropped), (3, 7));
    is_back.store(true, Ordering::SeqCst);
    let ended = until(&pusher, |counters| counters.queued == 0).await;
    assert_eq!((ended.sent, ended.dropped, ended.failed), (3, 7, 0));
    assert_eq!(ended.queued_bytes, 0);
    assert_eq!(books(&server), expected(&[("a", 100, 1)]));
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes() {
    let server = Server::start(|_| Answer::Hang).await;
    let small = Bounds {
        entries: 100,
        bytes: 500,
    };
    let pusher = start(&[url("pyroscope", &server)], small);
    for seconds in 1..=50 {
        pusher.offer(offer(seconds, &[("a", 1, 1)]));
        assert!(counters(&pusher).queued_bytes <= 500);
    }
    let long = "f".repeat(1000);
    pusher.offer(offer(60, &[(&long, 1, 1)]));
    let ended = pusher.finish(Duration::from_millis(50)).await.remove(0).1;
    assert_eq!(ended.dropped, 51);
}

#[tokio::test]
async fn what_waits_at_the_end_is_sent() {
    let server = Server::start(|number| match number {
        0 => Answer::Status(503, Some("60"), ""),
        _ => Answer::Slow(Duration::from_millis(20)),
    })
    .await;
    let pusher = start(&[url("pyroscope", &server)], PLENTY);
    for seconds in 1..=10 {
        pusher.offer(offer(seconds, &[("a", seconds as i64, 1)]));
    }
    let began = Instant::now();
    let ended = pusher.finish(FINISH).await.remove(0).1;
    assert!(began.elapsed() < FINISH, "the wait of a minute was not cut short");
    assert_eq!((ended.sent, ended.dropped, ended.queued), (10, 0, 0));
    assert_eq!(books(&server), expected(&[("a", 10, 1)]));
    pusher.offer(offer(11, &[("a", 11, 1)]));
    assert_eq!(counters(&pusher).dropped, 1, "after the end");
}
