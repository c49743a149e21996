//! Who may ask, over TCP.

use std::sync::Mutex;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::fixture::{Running, TOKEN, source};

#[test]
fn everything_but_health_needs_the_token() {
    let server = Running::at_port(source(&["web"]));
    let wrong = format!("Bearer {TOKEN}x");
    let short = format!("Bearer {}", &TOKEN[1..]);
    let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
    let as_user = basic(&format!("{TOKEN}:x"));
    let headers = [
        "",
        "Bearer",
        "Bearer ",
        "Basic %%%",
        "Basic eA==",
        &wrong,
        &short,
        TOKEN,
        &as_user,
    ];
    for path in [
        "/",
        "/targets",
        "/metrics",
        "/debug/pprof/heap",
        "/debug/pprof/heap?seconds=9999",
        "/nothing",
        "/healthz/",
    ] {
        for shown in headers {
            let headers = [("authorization", shown)];
            let headers = if shown.is_empty() { &[][..] } else { &headers };
            let answer = server.ask("GET", path, headers);
            assert_eq!(answer.status, 401, "{path} {shown}");
            assert!(answer.header("www-authenticate").starts_with("Basic "), "{path}");
            assert_eq!(answer.header("x-go-pprof"), "1");
            assert_eq!(answer.header("connection"), "close");
            assert!(answer.text().contains("token"), "{}", answer.text());
            assert!(!answer.text().contains(TOKEN));
        }
    }
    let health = server.ask("GET", "/healthz", &[("host", "anything.example")]);
    assert_eq!((health.status.as_u16(), health.text()), (200, "ok\n"));
}

#[test]
fn the_token_is_a_bearer_or_anybodys_password() {
    let server = Running::at_port(source(&["web"]));
    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{TOKEN}")));
    for shown in [
        format!("Bearer {TOKEN}"),
        format!("bearer  {TOKEN}"),
        basic("x"),
        basic(""),
        basic("größe"),
        basic("admin").replace("Basic", "BASIC"),
    ] {
        let answer = server.ask("GET", "/debug/pprof/heap", &[("authorization", &shown)]);
        assert_eq!(answer.status, 200, "{shown}: {}", answer.text());
    }
}

#[test]
fn only_names_of_this_machine_are_answered_to() {
    let server = Running::with(source(&["web"]), |options, _| {
        options.allow_host = vec!["node-7.example".to_owned()];
    });
    let bearer = format!("Bearer {TOKEN}");
    let ask = |host: &str| {
        let headers = [("authorization", &*bearer), ("host", host)];
        server.ask("GET", "/targets", &headers).status.as_u16()
    };
    let port = server.address().port();
    let own = format!("127.0.0.1:{port}");
    // 7000 is the near end of a tunnel.
    for host in [
        &*own,
        "localhost",
        "LOCALHOST:7000",
        "localhost.",
        "127.0.0.1:7000",
        "[::1]:6060",
        "node-7.example",
        "Node-7.example:1",
    ] {
        assert_eq!(ask(host), 200, "{host}");
    }
    let with_port = format!("evil.example:{port}");
    for host in [
        &*with_port,
        "evil.example",
        "localhost.evil.example",
        "node-7.example.evil.example",
        "10.0.0.1",
        "127.0.0.1.nip.io",
        "[2001:db8::1]",
    ] {
        assert_eq!(ask(host), 421, "{host}");
    }
    for host in ["", "a b", "localhost/", "[::1"] {
        assert_eq!(ask(host), 400, "{host}");
    }
}

#[test]
fn one_host_is_needed_and_no_other_may_be_in_the_address() {
    let server = Running::at_port(source(&["web"]));
    let get = |line: &str, hosts: &str| {
        let request = format!(
            "GET {line} HTTP/1.1\r\n{hosts}Authorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        );
        let answer = server.raw(request.as_bytes());
        answer.lines().next().unwrap_or("").to_owned()
    };
    assert_eq!(get("/targets", "Host: localhost\r\n"), "HTTP/1.1 200 OK");
    assert!(get("/targets", "").contains(" 400 "));
    assert!(get("/targets", "Host: localhost\r\nHost: localhost\r\n").contains(" 400 "));
    assert!(get("http://localhost/targets", "Host: localhost\r\n").contains(" 200 "));
    assert!(get("http://evil.example/targets", "Host: localhost\r\n").contains(" 421 "));
    assert!(get("http://localhost/targets", "Host: evil.example\r\n").contains(" 421 "));
}

#[test]
fn only_reading_and_no_bodies() {
    let server = Running::at_port(source(&["web"]));
    let bearer = format!("Bearer {TOKEN}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "WHATEVER"] {
        for path in ["/", "/debug/pprof/symbol", "/healthz", "/nothing"] {
            let answer = server.ask(method, path, &[("authorization", &bearer)]);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), "GET, HEAD");
        }
    }
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n{body}");
        let answer = server.raw(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
}

/// Keeps what is logged, by all tests of this program.
struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn the_log_has_neither_tokens_nor_queries() {
    static LINES: Lines = Lines(Mutex::new(Vec::new()));
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let server = Running::at_port(source(&["web"]));
    server.get(&format!("/debug/pprof/heap?token={TOKEN}"));
    server.ask(
        "GET",
        &format!("/targets?token={TOKEN}"),
        &[("authorization", &format!("Bearer x{TOKEN}"))],
    );
    let lines = LINES.0.lock().unwrap();
    let logged = |words: &str| lines.iter().any(|line| line.contains(words));
    assert!(logged("http: GET /debug/pprof/heap 200 in "), "{lines:?}");
    assert!(logged("http: GET /targets 401 in "), "{lines:?}");
    assert!(!logged(TOKEN) && !logged("?"), "{lines:?}");
}
