use std::{num::NonZeroU64, time::Duration};

use memtrace_ebpf::layout::EndReason;

use super::{ReportOptions, write_symbolized};
use crate::{
    output::testing::{START, Words},
    profile::testing::site,
    snapshot::{Losses, Selection, Snapshot},
};

mod growing;
mod holdings;

impl Words {
    fn report(&self, snapshot: &Snapshot, options: &ReportOptions) -> String {
        let mut out = Vec::new();
        write_symbolized(&mut out, snapshot, &self.symbols(), options).unwrap();
        String::from_utf8(out).unwrap()
    }
}

fn server() -> Words {
    let mut words = Words::default();
    let mut add = |live, stack: &[&str]| {
        let stack: Vec<&str> = stack.iter().chain(&START).copied().collect();
        words.site(live, &stack);
    };
    add(
        (12_100, 31 << 20),
        &[
            "__libc_malloc at malloc/malloc.c:3294",
            "operator new",
            "std::__new_allocator<Entry>::allocate < \
         std::vector<Entry, std::allocator<Entry> >::push_back at /usr/include/c++/12/bits/stl_vector.h:1281",
            "cache::Store::put at src/cache.cpp:120",
            "http::Handler::get at src/http.cpp:88",
            "event_loop at src/loop.c:30",
        ],
    );
    add(
        (4_000, 5 << 20),
        &[
            "calloc",
            "session_new at src/session.c:41",
            "accept_client at src/net.c:210",
            "event_loop at src/loop.c:31",
        ],
    );
    add((9, 300 << 10), &["malloc", "load_config at src/config.c:12"]);
    add((1, 24), &["malloc", "log_open at src/log.c:7"]);
    words.sites[0].recent_change = 1_258_291;
    words.sites[0].mean_age = Duration::from_millis(14_200);
    words.sites[1].recent_change = -2048;
    words
}

fn assert_golden(report: &str, expected: &str) {
    println!("{report}");
    assert_eq!(report, expected);
    assert!(!report.contains('\x1b'));
}

#[test]
fn what_a_tired_person_reads_first() {
    let words = server();
    let mut snapshot = words.snapshot();
    snapshot.recent = Duration::from_secs(10);
    snapshot.losses.unmatched_frees = 1_234;
    let report = words.report(
        &snapshot,
        &ReportOptions {
            top: Some(3),
            ..ReportOptions::default()
        },
    );
    assert_golden(&report, include_str!("tests/server.txt"));
    assert!(report.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn what_was_chosen_is_said_and_how_far_off_it_may_be() {
    let mut words = server();
    words.sites[0].live_samples = 64;
    words.sites[1].live_samples = 1;
    words.sites[3].live_samples = 0;
    let mut snapshot = words.snapshot();
    snapshot.selection = Selection {
        sample_bytes: NonZeroU64::new(512 << 10),
        min_size: 64,
        min_age: Duration::from_secs(90),
    };
    let report = words.report(&snapshot, &ReportOptions::default());
    println!("{report}");
    let text = report.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        "Sampled, one in 512 KiB on average: the numbers are estimates",
        "Blocks smaller than 64 bytes are not counted. Only blocks at least 1 min 30 s old",
        "freed, young",
        // 512 KiB times the root of the samples, of 36.3, 31 and 5 MiB.
        "objects (±11%, 65 samples)",
        "12.1 k objects (±13%, 64 samples)",
        "4.0 k objects (±10%, 1 sample)",
    ] {
        assert!(text.contains(said), "{said}");
    }
    let exact = words.report(&words.snapshot(), &ReportOptions::default());
    assert!(!exact.contains('±') && !exact.contains("ample") && !exact.contains("young"));
}

#[test]
fn what_was_lost_or_not_known_is_said() {
    let mut words = server();
    // The same place once it is symbolized, at another address.
    words.site(
        (2, 1 << 20),
        &[
            "malloc",
            "load_config at src/config.c:12",
            START[0],
            START[1],
            START[2],
            START[3],
        ],
    );
    let truncated = words.site(
        (5, 4 << 20),
        &[
            "malloc",
            "libx.so.1+0x1234",
            "plugin_run < inlined_in at src/plugin.c:9",
        ],
    );
    truncated.end = EndReason::NoUnwindInfo;
    words.site((3, 2 << 20), &[]).end = EndReason::Running;
    let mut snapshot = words.snapshot();
    snapshot.losses = Losses {
        blocks_full: 12_345,
        blocks_full_bytes: 1 << 20,
        missed_frees: 1,
        truncated: vec![(EndReason::NoUnwindInfo, 5)],
        ..Losses::default()
    };
    snapshot.coverage.not_covered = vec!["/app/libpool.so: an allocator of its own".to_owned()];
    assert_golden(
        &words.report(&snapshot, &ReportOptions::default()),
        include_str!("tests/lost.txt"),
    );
}

#[test]
fn a_narrow_terminal_is_not_overrun() {
    let words = server();
    let report = words.report(
        &words.snapshot(),
        &ReportOptions {
            top: Some(1),
            width: 40,
            colour: false,
        },
    );
    assert_golden(&report, include_str!("tests/narrow.txt"));
    assert!(report.lines().all(|line| line.chars().count() <= 60));
}

#[test]
fn no_coverage_is_not_reported_as_no_memory() {
    let words = Words::default();
    let mut snapshot = words.snapshot();
    snapshot.coverage.allocators.clear();
    snapshot.coverage.not_covered =
        vec!["/app/server is static and stripped: it has no malloc by name".to_owned()];
    let report = words.report(&snapshot, &ReportOptions::default());
    assert_golden(&report, include_str!("tests/blind.txt"));
    assert!(!report.contains("0 bytes") && !report.contains("Nothing was lost"));
}

#[test]
fn nothing_allocated_and_nothing_live_are_told_apart() {
    let mut words = Words::default();
    let idle = words.report(&words.snapshot(), &ReportOptions::default());
    assert!(idle.contains("No allocation was seen in this time."), "{idle}");
    words
        .sites
        .push(site(&[], EndReason::Running, (0, 0), (1_000, 64_000)));
    let freed = words.report(&words.snapshot(), &ReportOptions::default());
    assert!(freed.contains("still live     0 bytes in 0 objects"), "{freed}");
    assert!(freed.contains("100%"), "{freed}");
}

#[test]
fn names_from_the_target_cannot_drive_the_terminal() {
    let mut words = Words::default();
    words.site(
        (1, 1),
        &["f\x1b]0;owned\x07 at a\x1b[2J.c:1", "g\r\u{9b}31m\u{202e}"],
    );
    let mut snapshot = words.snapshot();
    snapshot.process.name = "x\x1b[8m".to_owned();
    snapshot.coverage.allocators = vec!["lib\x1bc.so".to_owned()];
    let report = words.report(&snapshot, &ReportOptions::default());
    let harmless =
        |character: char| character == '\n' || !(character.is_control() || character == '\u{202e}');
    assert!(report.chars().all(harmless), "{report:?}");
    assert!(report.contains(r"f\u{1b}]0;owned\u{7}"), "{report}");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let words = server();
    let mut snapshot = words.snapshot();
    snapshot.recent = Duration::from_secs(10);
    let plain = words.report(&snapshot, &ReportOptions::default());
    let coloured = words.report(
        &snapshot,
        &ReportOptions {
            colour: true,
            ..ReportOptions::default()
        },
    );
    assert!(
        coloured.contains("\x1b[1m") && coloured.contains("\x1b[33m"),
        "{coloured:?}"
    );
    let mut stripped = coloured;
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[33m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);
}

#[test]
fn standard_output_that_is_no_terminal_gets_no_colour() {
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        println!("SKIPPED: standard output is a terminal");
        return;
    }
    let options = ReportOptions::for_stdout(Some(3));
    assert_eq!(
        (options.top, options.width, options.colour),
        (Some(3), 100, false)
    );
}
