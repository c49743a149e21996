//! The end of the server.

use std::{
    io::Write as _,
    net::TcpStream,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::fixture::{Fixture, Running, TOKEN, read_all, source, wait_until};

#[test]
fn who_waits_is_told() {
    let mut server = Running::at_port(source(&["web"]));
    let mut waiting: Vec<TcpStream> = (0..3)
        .map(|_| server.begin("/debug/pprof/heap?seconds=3600"))
        .collect();
    wait_until("the first snapshots", || {
        server.source.taken.load(Ordering::SeqCst) == 3
    });
    let mut idle = TcpStream::connect(server.address()).unwrap();
    let address = server.address();
    // A second, and what a busy machine adds.
    assert!(server.stop() < Duration::from_secs(5));
    for stream in &mut waiting {
        let answer = read_all(stream);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("memtrace stops"), "{answer}");
    }
    assert_eq!(read_all(&mut idle), "");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_snapshot_that_takes_long_does_not_delay_the_end() {
    let mut server = Running::at_port(Fixture {
        delay: Duration::from_secs(600),
        ..source(&["web"])
    });
    let mut asking = server.begin("/debug/pprof/heap");
    thread::sleep(Duration::from_millis(100));
    assert!(server.stop() < Duration::from_secs(5));
    let answer = read_all(&mut asking);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 503 "),
        "{answer}"
    );
}

#[test]
fn who_does_not_read_does_not_delay_the_end() {
    let mut server = Running::at_port(source(&["web"]));
    let mut streams: Vec<TcpStream> = (0..20).map(|_| server.begin("/targets")).collect();
    for stream in &mut streams {
        // Many requests, no answer of which is read.
        let request =
            format!("GET /targets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(50) && stream.write_all(request.as_bytes()).is_ok() {}
    }
    assert!(server.stop() < Duration::from_secs(5));
}
