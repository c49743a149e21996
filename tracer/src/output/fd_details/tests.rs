use std::time::Duration;

use memtrace_ebpf::layout::EndReason;
use serde_json::{Value, json};

use super::json as details_json;
use crate::{
    output::testing::Words,
    profile::testing::{holder, nobody},
    snapshot::{FdDetail, Holder, Holdings, Maker},
    symbol::Symbolizer,
};

#[test]
fn each_descriptor_has_its_object() {
    let mut words = Words::default();
    let accept = words.frames(&[
        "libc!accept4",
        "net_accept < accept_client at src/net.c:210",
        "main",
    ]);
    let holdings = Holdings {
        holders: vec![
            Holder {
                end: EndReason::TooDeep,
                ..holder("tcp", &accept, 1, 1)
            },
            nobody("file", Maker::BeforeTracing, 1),
        ],
        ..Holdings::default()
    };
    let details = [
        FdDetail {
            number: 7,
            kind: "tcp",
            target: "socket:[4711]".to_owned(),
            local: Some("10.0.0.1:80".to_owned()),
            peer: Some("10.0.0.2:41234".to_owned()),
            state: Some("ESTABLISHED".to_owned()),
            age: Some(Duration::from_millis(1_500)),
            holder: 0,
        },
        FdDetail {
            number: 0,
            kind: "file",
            target: "/tmp/\x1b\"x\u{202e}".to_owned(),
            local: None,
            peer: None,
            state: None,
            age: None,
            holder: 1,
        },
    ];
    let text = details_json(&words.snapshot(), &holdings, &details, &words.symbols());
    assert!(text.ends_with(b"}\n") && !text.contains(&0x1b));
    let value: Value = serde_json::from_slice(&text).unwrap();
    let expected = json!({
        "pid": 4711,
        "name": "server",
        "time": "2026-11-22T17:34:07Z",
        "fds": [
            {
                "fd": 7,
                "kind": "tcp",
                "target": "socket:[4711]",
                "local": "10.0.0.1:80",
                "peer": "10.0.0.2:41234",
                "state": "ESTABLISHED",
                "age_seconds": 1.5,
                "opened_by": ["accept4", "net_accept", "accept_client", "main", "[stack truncated: too deep]"],
            },
            {
                "fd": 0,
                "kind": "file",
                "target": "/tmp/\x1b\"x\u{202e}",
                "local": null,
                "peer": null,
                "state": null,
                "age_seconds": null,
                "opened_by": ["[opened before tracing]"],
            },
        ],
    });
    assert_eq!(value, expected);
}

#[test]
fn without_details_the_list_is_empty() {
    let snapshot = Words::default().snapshot();
    let text = super::fd_details_json(&snapshot, &mut Symbolizer::new());
    let value: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(value["fds"], json!([]));
    assert_eq!(value["pid"], 4711);
}
