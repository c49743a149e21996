use std::path::PathBuf;

use super::text;
use crate::{
    profile::{Builder, FDS, Frame, HEAP, Kind, Profile},
    target::{Mappings, ProcessInfo},
};

fn profile(kind: &Kind, samples: &[(&str, &[u64])]) -> Profile {
    let mappings = Mappings { all: Vec::new() };
    let process = ProcessInfo {
        pid: 1,
        name: "a".to_owned(),
        executable: PathBuf::from("/a"),
    };
    let mut builder = Builder::new(kind, &process, &mappings);
    builder.add_comment("covered: all");
    for (name, values) in samples {
        let location = builder.location(Frame::Synthetic(name));
        builder.add_sample([location], &[("kind", "a\"b")], values);
    }
    builder.finish()
}

#[test]
fn the_most_live_bytes_come_first() {
    let heap = profile(&HEAP, &[("few", &[5, 50, 1, 10]), ("many", &[6, 60, 6, 60])]);
    assert_eq!(
        text(&heap, "heap").unwrap(),
        "heap profile: 7: 70 [11: 110] @ heap/2
6: 60 [6: 60] @ 0x0
# labels: {\"kind\":\"a\\\"b\"}
#\t0x0\tmany

1: 10 [5: 50] @ 0x0
# labels: {\"kind\":\"a\\\"b\"}
#\t0x0\tfew


# memtrace
# covered: all
"
    );
}

#[test]
fn equal_totals_are_made_to_differ() {
    let heap = profile(&HEAP, &[("all", &[6, 60, 6, 60])]);
    assert!(
        text(&heap, "heap")
            .unwrap()
            .starts_with("heap profile: 6: 60 [6: 61] @ heap/2\n")
    );
}

#[test]
fn counts_are_of_what_viewers_show_first() {
    let fds = profile(&FDS, &[("closed", &[9, 0]), ("open\n1 @ 0x1", &[3, 2])]);
    let text = text(&fds, "fd").unwrap();
    assert!(text.starts_with("fd profile: total 2\n2 @ 0x0\n"), "{text}");
    assert!(
        text.contains("#\t0x0\topen\\u{a}1 @ 0x1\n") && !text.contains("closed"),
        "{text}"
    );
}

#[test]
fn ids_that_lead_nowhere_do_no_harm() {
    let mut heap = profile(&HEAP, &[("a", &[1, 1, 1, 1])]);
    heap.location.clear();
    heap.string_table.truncate(1);
    heap.sample[0].value.clear();
    assert!(text(&heap, "heap").is_ok());
}
