//! Pages, lists and metrics.

use super::fixture::{Running, TOKEN, source};

#[test]
fn the_index_names_targets_and_escapes_their_words() {
    let server = Running::at_port(source(&["web", "db"]));
    let page = server.get("/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("cache-control"), "no-store");
    assert!(
        page.header("content-security-policy")
            .starts_with("default-src 'none'")
    );
    let text = page.text();
    assert!(text.contains("href=\"/targets/web/debug/pprof/\""), "{text}");
    assert!(text.contains("&lt;db&gt; &amp; co"), "{text}");
    assert!(text.contains("not covered: &lt;a library&gt;"), "{text}");
    assert!(
        text.contains("2026-11-22T17:33:37Z") && text.contains("4711, 4712"),
        "{text}"
    );
    assert!(!text.contains("<db>") && !text.contains("<a library>"));
    assert!(
        Running::at_port(source(&[]))
            .get("/")
            .text()
            .contains("No target is traced now")
    );
}

#[test]
fn the_list_is_json() {
    let server = Running::at_port(source(&["web"]));
    let answer = server.get("/targets");
    assert_eq!(answer.header("content-type"), "application/json");
    let list: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let target = &list["targets"][0];
    assert_eq!(target["id"], "web");
    assert_eq!(target["title"], "<web> & co");
    assert_eq!(target["pids"][1], 4712);
    assert_eq!(target["path"], "/targets/web/debug/pprof/");
    assert_eq!(target["profiles"][1], "allocs");
    assert_eq!(target["notes"][0], "not covered: <a library>");
}

#[test]
fn a_targets_page_has_commands_without_the_token() {
    let server = Running::at_port(source(&["web"]));
    let port = server.address().port();
    for path in ["/targets/web/debug/pprof/", "/debug/pprof/"] {
        let page = server.get(path);
        let text = page.text();
        let command = format!(
            "go tool pprof \"http://memtrace:$MEMTRACE_TOKEN@127.0.0.1:{port}/targets/web/debug/pprof/heap?seconds=30\""
        );
        assert!(text.contains(&command.replace('"', "&quot;")), "{text}");
        assert!(
            text.contains("href=\"/targets/web/debug/pprof/goroutine?debug=1\""),
            "{text}"
        );
        assert!(!text.contains(TOKEN) && !text.contains("threadcreate"), "{text}");
    }
    for path in ["/targets/web", "/targets/web/", "/targets/web/debug/pprof"] {
        let answer = server.get(path);
        assert_eq!(
            (answer.status.as_u16(), answer.header("location")),
            (308, "/targets/web/debug/pprof/")
        );
    }
    assert_eq!(server.get("/debug/pprof").header("location"), "/debug/pprof/");
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let server = Running::at_port(source(&["web", "db"]));
    let answer = server.get("/debug/pprof/heap");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.header("x-go-pprof"), "1");
    assert!(
        answer.text().contains("/targets/db/debug/pprof/"),
        "{}",
        answer.text()
    );
    for (path, words) in [
        ("/targets/none/debug/pprof/heap", "/targets/web/debug/pprof/"),
        ("/targets/none", "/targets/web/debug/pprof/"),
        ("/targets/web/debug/pprof/cmdline", "does not show command lines"),
        ("/targets/web/debug/pprof/profile", "no CPU profiles"),
        ("/targets/web/debug/pprof/trace", "no execution traces"),
        ("/targets/web/debug/pprof/symbol", "have their symbols"),
        (
            "/targets/web/debug/pprof/growth",
            "are: heap, allocs, fd, mmap, goroutine",
        ),
        ("/targets/web/debug/pprof/mmap", "no such profile: mmap"),
        ("/targets/web/debug/pprof/%2e%2e", "Unknown profile"),
        ("/targets/..%2f..%2fetc/debug/pprof/heap", "not traced"),
        ("/nothing", "/ lists the targets"),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains(words), "{path}: {}", answer.text());
    }
    let none = Running::at_port(source(&[])).get("/debug/pprof/heap");
    assert!(none.text().contains("no target is traced now"), "{}", none.text());
}

#[test]
fn metrics_count_answers() {
    let server = Running::at_port(source(&["web"]));
    for _ in 0..3 {
        server.get("/debug/pprof/heap");
    }
    server.ask("GET", "/debug/pprof/heap", &[]);
    let metrics = server.get("/metrics");
    assert!(
        metrics
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    let text = metrics.text();
    for line in [
        "memtrace_http_requests_total{code=\"200\"} 3",
        "memtrace_http_requests_total{code=\"401\"} 1",
        "memtrace_http_snapshots 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}: {text}");
    }
}
