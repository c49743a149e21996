//! Clients that ask too much, too slowly, or nonsense.

use std::{
    collections::HashMap,
    future::poll_fn,
    io::{self, Write as _},
    net::TcpStream,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWrite as _, net::UnixStream, time::timeout};

use super::fixture::{AGES, Fixture, Running, TOKEN, read_all, runtime, source, wait_until};
use crate::output::http::server::patient;

#[test]
fn oversized_heads_are_refused() {
    let server = Running::at_port(source(&["web"]));
    let head = |path: &str, extra: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n{extra}\r\n"
        )
    };
    let filler = |size: usize| format!("X-Filler: {}\r\n", "x".repeat(size));
    let fits = server.raw(head("/targets", &filler(12 << 10)).as_bytes());
    assert!(fits.starts_with("HTTP/1.1 200 "), "{fits}");
    for (what, request) in [
        ("a header", head("/", &filler(17 << 10))),
        ("a path", head(&format!("/{}", "x".repeat(17 << 10)), "")),
        ("many headers", head("/", &"X: y\r\n".repeat(500))),
        ("no end", format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(1 << 20))),
    ] {
        let answer = server.raw(request.as_bytes());
        // A client that goes on sending may have its connection reset before it can read the answer.
        let refused = ["HTTP/1.1 431 ", "HTTP/1.1 414 "]
            .iter()
            .any(|line| answer.starts_with(line));
        assert!(refused || answer.is_empty(), "{what}: {answer}");
    }
    assert_eq!(server.get("/targets").status, 200);
}

#[test]
fn nonsense_is_refused() {
    let server = Running::at_port(source(&["web"]));
    let binary: Vec<u8> = (0..=255).cycle().take(4096).collect();
    for sent in [
        &b"hello\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0",
        b"",
        &binary,
    ] {
        let answer = server.raw_and_end(sent);
        let what = String::from_utf8_lossy(sent);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 505 "),
            "{what}: {answer}"
        );
    }
    assert_eq!(server.get("/targets").status, 200);
}

#[test]
fn slow_heads_and_idle_connections_are_dropped() {
    let server = Running::at_port(source(&["web"]));
    let began = Instant::now();
    let mut idle = TcpStream::connect(server.address()).unwrap();
    let mut after_an_answer = TcpStream::connect(server.address()).unwrap();
    after_an_answer
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut slow = TcpStream::connect(server.address()).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    // A byte now and then does not make the time longer.
    let mut drip = slow.try_clone().unwrap();
    let dripping = thread::spawn(move || {
        while began.elapsed() < AGES && drip.write_all(b"X").is_ok() {
            thread::sleep(Duration::from_millis(200));
        }
    });
    for stream in [&mut idle, &mut after_an_answer, &mut slow] {
        stream.set_read_timeout(Some(AGES)).unwrap();
        let answer = read_all(stream);
        assert!(answer.is_empty() || answer.ends_with("\r\n\r\nok\n"), "{answer}");
    }
    assert!(began.elapsed() < AGES);
    dripping.join().unwrap();
    assert_eq!(server.get("/targets").status, 200);
}

#[test]
fn of_two_hundred_clients_few_get_snapshots_at_once_and_none_hangs() {
    let server = Running::at_port(Fixture {
        delay: Duration::from_millis(100),
        ..source(&["web"])
    });
    let mut counts: HashMap<u16, usize> = HashMap::new();
    thread::scope(|scope| {
        let asking = || {
            let answer = server.get("/debug/pprof/heap");
            if answer.status == 429 {
                assert_eq!(answer.header("retry-after"), "1");
                assert_eq!(answer.header("x-go-pprof"), "1");
            }
            answer.status.as_u16()
        };
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(asking)).collect();
        for client in clients {
            *counts.entry(client.join().unwrap()).or_default() += 1;
        }
    });
    let (good, busy) = (counts.get(&200).copied(), counts.get(&429).copied());
    assert!(good >= Some(4), "{counts:?}");
    assert_eq!(good.unwrap_or(0) + busy.unwrap_or(0), 200, "{counts:?}");
    assert!(server.source.most.load(Ordering::SeqCst) <= 4);
    assert_eq!(server.get("/debug/pprof/heap").status, 200);
}

#[test]
fn who_takes_nothing_of_an_answer_is_dropped() {
    runtime().block_on(async {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut near = patient(near, Duration::from_millis(50));
        // Until what the system keeps for the other end is full, and then for that time.
        let error = loop {
            let written = poll_fn(|context| near.as_mut().poll_write(context, &[0; 4096]));
            if let Err(error) = timeout(AGES, written).await.unwrap() {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn more_connections_than_are_allowed_wait() {
    let server = Running::at_port(source(&["web"]));
    // They say nothing, and are dropped in time; a client that comes after them is answered then.
    let silent: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(server.address()).unwrap())
        .collect();
    assert_eq!(server.get("/healthz").status, 200);
    drop(silent);
}

#[test]
fn waiting_holds_no_snapshot_slot() {
    let server = Running::at_port(source(&["web"]));
    let mut waiting = Vec::new();
    // Twice as many as may take snapshots at once.
    for number in 1..=8 {
        waiting.push(server.begin("/debug/pprof/heap?seconds=3600"));
        let deltas = format!("memtrace_http_deltas {number}\n");
        wait_until("a first snapshot", || {
            let metrics = server.get("/metrics");
            let is_done = server.source.taken.load(Ordering::SeqCst) == number;
            is_done
                && metrics.text().contains(&deltas)
                && metrics.text().contains("memtrace_http_snapshots 0\n")
        });
    }
    assert_eq!(server.get("/debug/pprof/heap").status, 200);
    // Who leaves does not wait any more.
    drop(waiting);
    wait_until("the end of waiting", || {
        server.get("/metrics").text().contains("memtrace_http_deltas 0\n")
    });
}

#[test]
fn a_client_that_leaves_frees_its_slot_when_the_snapshot_is_done() {
    let server = Running::at_port(Fixture {
        delay: Duration::from_millis(300),
        ..source(&["web"])
    });
    for _ in 0..20 {
        let stream = server.begin("/debug/pprof/heap");
        thread::sleep(Duration::from_millis(10));
        drop(stream);
    }
    assert!(server.source.most.load(Ordering::SeqCst) <= 4);
    wait_until("a free slot", || server.get("/debug/pprof/heap").status == 200);
}
