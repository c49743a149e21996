//! Profiles, as `go tool pprof` and others fetch them.

use std::{process::Command, sync::atomic::Ordering};

use super::fixture::{Fixture, Running, STEP, TOKEN, source};
use crate::{
    output::http::SourceError,
    profile::{Profile, decode_gz},
};

/// What a profile's samples are in all, in the sample type of this name.
fn total(profile: &Profile, name: &str) -> i64 {
    let string = |index: i64| &*profile.string_table[index as usize];
    let mut types = profile.sample_type.iter();
    let at = types.position(|of| string(of.r#type) == name).unwrap();
    profile.sample.iter().map(|sample| sample.value[at]).sum()
}

#[test]
fn a_profile_is_what_the_source_has() {
    let server = Running::at_port(source(&["web", "db"]));
    let answer = server.get("/targets/db/debug/pprof/heap?gc=1");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!(
        answer.header("content-disposition"),
        "attachment; filename=\"heap\""
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("x-go-pprof"), "");
    let profile = decode_gz(&answer.body).unwrap();
    assert_eq!(total(&profile, "inuse_space"), STEP as i64 + 700);
    let default = |profile: &Profile| profile.string_table[profile.default_sample_type as usize].clone();
    assert_eq!(default(&profile), "inuse_space");
    let allocs = decode_gz(&server.get("/targets/db/debug/pprof/allocs").body).unwrap();
    assert_eq!(default(&allocs), "alloc_space");
    assert_eq!(total(&allocs, "inuse_space"), 2 * STEP as i64 + 700);
}

#[test]
fn a_delta_is_what_came_meanwhile() {
    let server = Running::at_port(source(&["web"]));
    let answer = server.get("/debug/pprof/heap?seconds=1");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-disposition"),
        "attachment; filename=\"heap-delta\""
    );
    let delta = decode_gz(&answer.body).unwrap();
    assert_eq!(delta.sample.len(), 1, "what did not change is not in it");
    assert_eq!(total(&delta, "inuse_space"), STEP as i64);
    assert_eq!(total(&delta, "inuse_objects"), 1);
    assert_eq!(total(&delta, "alloc_space"), 2 * STEP as i64);
    assert_eq!(delta.duration_nanos, 1_000_000_000);
    assert_eq!(server.source.taken.load(Ordering::SeqCst), 2);
}

#[test]
fn seconds_have_limits() {
    let server = Running::at_port(source(&["web"]));
    for wrong in [
        "0",
        "-1",
        "3601",
        "1.5",
        "1s",
        "99999999999999999999",
        "%20",
        "1%00",
    ] {
        let answer = server.get(&format!("/debug/pprof/heap?seconds={wrong}"));
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.text().contains("1 to 3600"), "{}", answer.text());
        assert_eq!(answer.header("x-go-pprof"), "1");
    }
    let both = server.get("/debug/pprof/heap?seconds=1&debug=1");
    assert_eq!(
        (both.status.as_u16(), both.text()),
        (400, "seconds and debug params are incompatible\n")
    );
    for none in ["seconds=", "debug=0", "debug=x", "gc=1", "&&=", "%ff=%ff"] {
        let answer = server.get(&format!("/debug/pprof/heap?{none}"));
        assert_eq!(answer.status, 200, "{none}");
        assert_eq!(answer.header("content-type"), "application/octet-stream");
    }
}

#[test]
fn headers_alone_need_no_snapshot() {
    let server = Running::at_port(source(&["web"]));
    let bearer = format!("Bearer {TOKEN}");
    let head = |path: &str| server.ask("HEAD", path, &[("authorization", &bearer)]);
    let answer = head("/debug/pprof/heap?seconds=3600");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-disposition"),
        "attachment; filename=\"heap-delta\""
    );
    assert!(answer.body.is_empty());
    assert_eq!(
        head("/debug/pprof/heap?debug=1").header("content-type"),
        "text/plain; charset=utf-8"
    );
    assert_eq!(head("/debug/pprof/heap?seconds=0").status, 400);
    assert_eq!(head("/debug/pprof/none").status, 404);
    assert!(head("/").body.is_empty());
    assert_eq!(server.source.taken.load(Ordering::SeqCst), 0);
    assert_eq!(server.ask("HEAD", "/debug/pprof/heap", &[]).status, 401);
}

#[test]
fn what_the_source_says_is_passed_on() {
    for (error, status, words) in [
        (SourceError::Gone, 404, "not traced (any more)"),
        (
            SourceError::NotAvailable("no Go".to_owned()),
            404,
            "no such profile: no Go",
        ),
        (
            SourceError::Busy("it is attached to".to_owned()),
            503,
            "attached to; try again",
        ),
        (
            SourceError::Failed("a table is gone".to_owned()),
            500,
            "a table is gone",
        ),
    ] {
        let server = Running::at_port(Fixture {
            error: Some(error),
            ..source(&["web"])
        });
        for query in ["", "?seconds=1", "?debug=1"] {
            let answer = server.get(&format!("/debug/pprof/heap{query}"));
            assert_eq!(answer.status, status);
            assert!(answer.text().contains(words), "{}", answer.text());
            assert_eq!(answer.header("content-disposition"), "");
        }
    }
}

#[test]
fn text_is_there_for_people() {
    let server = Running::at_port(source(&["web"]));
    let heap = server.get("/debug/pprof/heap?debug=1");
    assert_eq!(heap.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(heap.header("content-disposition"), "");
    assert!(
        heap.text()
            .starts_with("heap profile: 8: 4796 [17: 8892] @ heap/2\n1: 4096 [10: 8192] @ 0x1011 0x1021\n"),
        "{}",
        heap.text()
    );
    let goroutines = server.get("/debug/pprof/goroutine?debug=2");
    assert!(
        goroutines
            .text()
            .starts_with("goroutine profile: total 520\n519 @ 0x2011\n"),
        "{}",
        goroutines.text()
    );
}

/// Runs `go tool pprof` in a directory of its own; `None` where there is no Go.
fn pprof(server: &Running, arguments: &[&str]) -> Option<String> {
    let output = Command::new("go")
        .args(["tool", "pprof", "-symbolize=none"])
        .args(arguments)
        .env("PPROF_TMPDIR", server.scratch.path())
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .output();
    match output {
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            let out = String::from_utf8_lossy(&output.stdout);
            Some(format!("{out}{errors}"))
        }
        Err(error) => {
            println!("SKIPPED: go: {error}");
            None
        }
    }
}

#[test]
fn go_tool_pprof_fetches() {
    let server = Running::at_port(source(&["web"]));
    let base = format!("http://x:{TOKEN}@{}", server.address());
    let heap = format!("{base}/debug/pprof/heap");
    let Some(top) = pprof(&server, &["-top", &heap]) else {
        return;
    };
    assert!(
        top.contains("Type: inuse_space") && top.contains("inlined"),
        "{top}"
    );
    assert!(top.contains("4796B total"), "{top}");
    let fetch = |path: &str| {
        pprof(
            &server,
            &["-top", &format!("{base}/targets/web/debug/pprof/{path}")],
        )
        .unwrap()
    };
    let allocs = fetch("allocs");
    assert!(allocs.contains("Type: alloc_space"), "{allocs}");
    let fds = fetch("fd");
    assert!(
        fds.contains("Type: inuse_fds") && fds.contains("open_log"),
        "{fds}"
    );
    let goroutines = fetch("goroutine");
    assert!(
        goroutines.contains("main.hang") && goroutines.contains("519"),
        "{goroutines}"
    );
    let delta = pprof(&server, &["-top", "-seconds=1", &heap]).unwrap();
    assert!(delta.contains("of 4kB total"), "{delta}");
    // It may ask for symbols that are not there; the profile is as good without.
    let symbols = pprof(&server, &["-symbolize=force:remote", "-top", &heap]).unwrap();
    assert!(symbols.contains("inlined"), "{symbols}");
    // The same profile without the authority to see it says why not.
    let refused = pprof(&server, &["-top", &heap.replace(TOKEN, "wrong")]).unwrap();
    assert!(
        refused.contains("401") && refused.contains("wrong token"),
        "{refused}"
    );
    let refused = fetch("heap?seconds=4000");
    assert!(
        refused.contains("400") && refused.contains("1 to 3600"),
        "{refused}"
    );
}

#[test]
fn go_tool_pprof_saves_and_compares() {
    let server = Running::at_port(source(&["web"]));
    let heap = format!("http://x:{TOKEN}@{}/debug/pprof/heap", server.address());
    let saved = server.scratch.path().join("before.pb.gz");
    let saved = saved.to_str().unwrap();
    let output = format!("-output={saved}");
    if pprof(&server, &["-proto", &output, &heap]).is_none() {
        return;
    }
    let diff = pprof(&server, &["-top", "-diff_base", saved, &heap]).unwrap();
    assert!(diff.contains("4kB") && diff.contains("inlined"), "{diff}");
    // The form for people is one that it reads, too.
    for name in ["heap", "goroutine", "fd"] {
        let text = server.get(&format!("/debug/pprof/{name}?debug=1"));
        let path = server.scratch.path().join(name);
        std::fs::write(&path, &text.body).unwrap();
        let read = pprof(&server, &["-raw", path.to_str().unwrap()]).unwrap();
        let (samples, address) = match name {
            "heap" => ("inuse_space/bytes", "0x1010"),
            "goroutine" => ("goroutine/count", "0x2010"),
            _ => ("fd/count", "0x3010"),
        };
        assert!(read.contains(samples) && read.contains(address), "{read}");
    }
}
