//! The sections beside the heap's.

use std::time::Duration;

use memtrace_ebpf::layout::EndReason;

use super::{assert_golden, server};
use crate::{
    output::{
        report::ReportOptions,
        testing::{START, Words},
    },
    profile::testing::{holder, nobody},
    snapshot::{
        ConnectionLoops, FdDetail, Growth, Growths, Holder, Holdings, Maker, MemoryPart, MemorySummary,
        Origin, Snapshot,
    },
    target::Resident,
};

/// A stack of the server's, down to its start.
fn frames(words: &mut Words, stack: &[&str]) -> Vec<u64> {
    let stack: Vec<&str> = stack.iter().chain(&START).copied().collect();
    words.frames(&stack)
}

fn descriptors(words: &mut Words) -> Holdings {
    let accept = [
        "libc!accept4 at ../sysdeps/unix/sysv/linux/accept4.c:32",
        "net_accept at src/net.c:88",
        "accept_client at src/net.c:210",
        "event_loop at src/loop.c:31",
    ];
    let fopen = [
        "libc!__open64 at open64.c:41",
        "libc!_IO_file_open",
        "libc!_IO_new_fopen",
        "report_page at src/page.c:40",
        "event_loop at src/loop.c:31",
    ];
    let accept = frames(words, &accept);
    let fopen = frames(words, &fopen);
    let helper = frames(words, &["libc!pipe2", "helper_start at src/helper.c:9"]);
    let holders = vec![
        Holder {
            recent_change: 12,
            mean_age: Duration::from_millis(14_200),
            ..holder("tcp", &accept, 1_200, 20)
        },
        holder("file", &fopen, 30, 10),
        holder("dir", &fopen, 2, 1),
        nobody("file", Maker::BeforeTracing, 3),
        nobody("unix", Maker::BeforeTracing, 2),
        nobody("other", Maker::IoUring, 1),
        // All closed again.
        holder("pipe", &accept, 400, 0),
        Holder {
            inherited: true,
            end: EndReason::NoUnwindInfo,
            ..holder("eventfd", &words.frames(&["libx.so.1+0x1234"]), 1, 1)
        },
        holder("pipe", &helper, 6, 2),
        holder("epoll", &frames(words, &[]), 1, 1),
    ];
    Holdings {
        holders,
        losses: vec![(1, "descriptors received whose kind is not known".to_owned())],
        warning: None,
        notes: vec!["Two processes share the table of descriptors.".to_owned()],
    }
}

fn details() -> Vec<FdDetail> {
    let file = |number, kind, target: &str, holder| FdDetail {
        number,
        kind,
        target: target.to_owned(),
        local: None,
        peer: None,
        state: None,
        age: Some(Duration::from_millis(4_900)),
        holder,
    };
    vec![
        FdDetail {
            age: None,
            ..file(0, "file", "/dev/null", 3)
        },
        file(
            5,
            "file",
            "/var/lib/server/pages/of/a/very/long/path/that/nobody/would/type/index.html",
            1,
        ),
        FdDetail {
            local: Some("10.0.0.1:80".to_owned()),
            peer: Some("10.0.0.2:41234".to_owned()),
            state: Some("ESTABLISHED".to_owned()),
            ..file(17, "tcp", "socket:[4711]", 0)
        },
        FdDetail {
            local: Some("[2001:db8:85a3::8a2e:370:7334]:443".to_owned()),
            peer: Some("[2001:db8:85a3::8a2e:370:7335]:55555".to_owned()),
            state: Some("CLOSE_WAIT".to_owned()),
            age: Some(Duration::from_secs(3_599)),
            ..file(1_000_017, "tcp", "socket:[4712]", 0)
        },
        FdDetail {
            local: Some("0.0.0.0:80".to_owned()),
            state: Some("LISTEN".to_owned()),
            age: None,
            ..file(18, "tcp", "socket:[4713]", 3)
        },
        file(19, "other", "anon_inode:\x1b[31m[x]", 5),
        file(20, "eventfd", "anon_inode:[eventfd]", 7),
    ]
}

fn mappings(words: &mut Words) -> Holdings {
    let cache = frames(
        words,
        &[
            "libc!mmap64 at ../sysdeps/unix/sysv/linux/mmap64.c:58",
            "cache_grow at src/cache.c:31",
        ],
    );
    let spawn = frames(
        words,
        &[
            "libc!mmap64",
            "libc!allocate_stack",
            "libc!pthread_create at pthread_create.c:647",
            "start_workers at src/workers.c:12",
        ],
    );
    let mapping = |kind, frames: &[u64], held: u64, objects, resident| Holder {
        held_objects: objects,
        resident,
        ..holder(kind, frames, held * 2, held)
    };
    let holders = vec![
        Holder {
            recent_change: 4 << 20,
            ..mapping("anon", &cache, 120 << 20, 30, 118 << 20)
        },
        mapping("stack", &spawn, 64 << 20, 8, 300 << 10),
        Holder {
            cached: true,
            mean_age: Duration::ZERO,
            ..mapping("stack", &spawn, 16 << 20, 2, 72 << 10)
        },
        Holder {
            held_objects: 41,
            resident: 3 << 20,
            ..nobody("file", Maker::BeforeTracing, 9 << 20)
        },
    ];
    Holdings {
        holders,
        ..Holdings::default()
    }
}

fn memory() -> MemorySummary {
    let part = |what: &str, bytes| MemoryPart {
        what: what.to_owned(),
        bytes,
    };
    let parts = vec![
        part("mapped since the attach, by kind anon, file or shared", 118 << 20),
        part("live blocks of the heap", 37 << 20),
        part(
            "what the allocator keeps beside live blocks: its own books, free blocks, and what is between them",
            5 << 20,
        ),
        part("stacks of threads", 372 << 10),
        part("not known", 24 << 10),
    ];
    MemorySummary {
        rss: parts.iter().map(|part| part.bytes).sum(),
        parts,
        notes: vec!["Pages that other processes have too count in whole.".to_owned()],
    }
}

fn everything(words: &mut Words) -> Snapshot {
    let fds = descriptors(words);
    let mmap = mappings(words);
    Snapshot {
        recent: Duration::from_secs(10),
        fds: Some(fds),
        fd_details: Some(details()),
        mmap: Some(mmap),
        memory: Some(memory()),
        ..words.snapshot()
    }
}

#[test]
fn many_descriptors_are_in_the_file() {
    let mut words = Words::default();
    let mut snapshot = everything(&mut words);
    let details = |number| FdDetail {
        number,
        target: String::new(),
        age: (number >= 60).then_some(Duration::from_secs(1)),
        ..details().remove(0)
    };
    snapshot.fd_details = Some((0..110).map(details).collect());
    let report = report(&words, &snapshot, 100);
    let (_, table) = report.split_once("\nOpen descriptors\n").expect("a table");
    let numbers = table.lines().skip(1).filter(|line| line.contains("file"));
    let numbers: Vec<&str> = numbers
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(numbers.len(), 50, "{table}");
    assert_eq!(
        numbers.first(),
        Some(&"60"),
        "those that were opened while tracing come first"
    );
    assert!(table.contains("(not known)") && table.ends_with("and 60 more: fd-details.json has them all.\n"));
}

#[test]
fn what_is_wrong_is_said_first() {
    let mut words = Words::default();
    let mut snapshot = everything(&mut words);
    let mmap = snapshot.mmap.as_mut().expect("mappings");
    mmap.warning = Some("7 changes were lost: numbers may be wrong.".to_owned());
    mmap.losses = vec![(1, "changes of mappings not recorded".to_owned())];
    let report = report(&words, &snapshot, 100);
    assert!(
        report.contains("\nMappings\n  7 changes were lost: numbers may be wrong.\n  mapped "),
        "{report}"
    );
    assert!(
        report.contains("Lost: 1 change of mappings not recorded."),
        "{report}"
    );
}

fn resident(rss: u64, anonymous: u64) -> Resident {
    Resident { rss, anonymous }
}

fn growth(words: &mut Words) -> Growths {
    let mut site = |stack: &[&str], touched, samples, (brk, mapped)| Growth {
        frames: frames(words, stack),
        end: EndReason::Complete,
        touched,
        brk,
        mapped,
        samples,
    };
    let sites = vec![
        site(
            &["fill at src/cache.c:77", "cache_put at src/cache.c:90"],
            40 << 20,
            640,
            (0, 0),
        ),
        site(
            &["libc!__memset_avx2", "page_new at src/page.c:7"],
            10 << 20,
            160,
            (0, 0),
        ),
        site(
            &[
                "libc!__brk",
                "libc!__sbrk",
                "libc!malloc",
                "page_new at src/page.c:5",
            ],
            64 << 10,
            1,
            (1 << 20, 64 << 20),
        ),
        // By the same line as the second, and by nobody else.
        site(
            &["libc!__mmap64", "page_new at src/page.c:7"],
            0,
            0,
            (0, 32 << 20),
        ),
        site(
            &["libc!__mmap64", "arena_new at src/arena.c:3"],
            0,
            0,
            (0, 96 << 20),
        ),
        site(&["libc!__brk", "grow at src/arena.c:9"], 0, 0, (1 << 20, 0)),
    ];
    Growths {
        sites,
        sample_bytes: 64 << 10,
        resident: Some((resident(20 << 20, 8 << 20), resident(171 << 20, 140 << 20))),
        ..Growths::default()
    }
}

fn report(words: &Words, snapshot: &Snapshot, width: usize) -> String {
    let options = ReportOptions {
        width,
        ..ReportOptions::default()
    };
    words.report(snapshot, &options)
}

#[test]
fn sections_follow_the_heap() {
    let mut words = server();
    let mut snapshot = everything(&mut words);
    let mut narrow = report(&words, &snapshot, 80);
    assert_golden(&narrow, include_str!("all-80.txt"));
    let wide = report(&words, &snapshot, 140);
    assert_golden(&wide, include_str!("all-140.txt"));
    // The heap's own section is the same as without the others.
    (snapshot.fds, snapshot.mmap, snapshot.memory) = (None, None, None);
    let alone = report(&words, &snapshot, 80);
    let (_, heap) = alone.split_once("\n  allocated ").expect("the heap's section");
    let (_, others) = narrow.split_once(heap).expect("the same section");
    narrow = others.to_owned();
    assert!(narrow.lines().all(|line| line.chars().count() <= 80));
    assert!(wide.lines().all(|line| line.chars().count() <= 140));
}

#[test]
fn colour_moves_no_word() {
    let mut words = server();
    let mut snapshot = everything(&mut words);
    snapshot.growth = Some(growth(&mut words));
    for width in 60..140 {
        let plain = report(&words, &snapshot, width);
        let options = ReportOptions {
            width,
            colour: true,
            ..ReportOptions::default()
        };
        let mut coloured = words.report(&snapshot, &options);
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[33m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, plain);
    }
}

#[test]
fn a_section_alone_shows_all_that_was_asked_for() {
    let mut words = Words::default();
    let mut snapshot = everything(&mut words);
    snapshot.heap = false;
    snapshot.coverage.allocators.clear();
    (snapshot.mmap, snapshot.memory, snapshot.fd_details) = (None, None, None);
    snapshot.recent = Duration::ZERO;
    for held in 1..=5 {
        let stack = frames(&mut words, &[&format!("opener_{held} at src/many.c:{held}")]);
        let fds = snapshot.fds.as_mut().unwrap();
        fds.holders.push(holder("pipe", &stack, held, held));
    }
    assert_golden(&report(&words, &snapshot, 100), include_str!("fds.txt"));
}

#[test]
fn new_memory_has_its_section() {
    let mut words = Words::default();
    let growth = growth(&mut words);
    let snapshot = Snapshot {
        heap: false,
        growth: Some(growth),
        ..words.snapshot()
    };
    assert_golden(&report(&words, &snapshot, 80), include_str!("growth.txt"));
}

#[test]
fn a_section_without_anything_says_so() {
    let words = Words::default();
    let snapshot = Snapshot {
        heap: false,
        origin: Origin::Started,
        fds: Some(Holdings::default()),
        fd_details: Some(Vec::new()),
        mmap: Some(Holdings::default()),
        growth: Some(Growths::default()),
        memory: Some(MemorySummary::default()),
        ..words.snapshot()
    };
    assert_golden(&report(&words, &snapshot, 80), include_str!("nothing.txt"));
}

#[test]
fn the_parts_of_the_memory_add_up() {
    let memory = memory();
    let words = Words::default();
    let snapshot = Snapshot {
        heap: false,
        memory: Some(memory.clone()),
        ..words.snapshot()
    };
    let report = report(&words, &snapshot, 100);
    println!("{report}");
    assert_eq!(
        memory.parts.iter().map(|part| part.bytes).sum::<u64>(),
        memory.rss
    );
    assert!(report.contains("160 MiB   100%   resident in all"), "{report}");
}

#[test]
fn nothing_that_the_target_chose_drives_the_terminal() {
    let mut words = Words::default();
    let evil = "\x1b]0;owned\x07";
    let stack = words.frames(&[evil]);
    let detail = |local: Option<&str>| FdDetail {
        target: evil.to_owned(),
        local: local.map(str::to_owned),
        peer: local.map(str::to_owned),
        state: Some(evil.to_owned()),
        ..details().remove(0)
    };
    let holdings = Holdings {
        warning: None,
        holders: vec![holder("file", &stack, 1, 1)],
        losses: vec![(1, evil.to_owned())],
        notes: vec![evil.to_owned()],
    };
    let snapshot = Snapshot {
        heap: false,
        fds: Some(holdings.clone()),
        fd_details: Some(vec![
            FdDetail {
                holder: 0,
                ..detail(None)
            },
            detail(Some(evil)),
        ]),
        mmap: Some(holdings),
        memory: Some(MemorySummary {
            rss: 1,
            parts: vec![MemoryPart {
                what: evil.to_owned(),
                bytes: 1,
            }],
            notes: vec![evil.to_owned()],
        }),
        ..words.snapshot()
    };
    let report = report(&words, &snapshot, 100);
    let harmless = |character: char| character == '\n' || !character.is_control();
    assert!(report.chars().all(harmless), "{report:?}");
    assert!(report.contains(r"\u{1b}]0;owned\u{7} (\u{1b}"), "{report}");
}

#[test]
fn goroutines_that_wait_for_connections_are_counted_with_them() {
    let mut words = Words::default();
    let ask = frames(&mut words, &["main.fetchPrice at price.go:48"]);
    let loops = ConnectionLoops {
        readers: 37,
        writers: 36,
    };
    let holder = Holder {
        loops,
        ..holder("tcp", &ask, 40, 37)
    };
    let snapshot = Snapshot {
        fds: Some(Holdings {
            holders: vec![holder],
            ..Holdings::default()
        }),
        ..everything(&mut words)
    };
    let text = report(&words, &snapshot, 140);
    let line = "tcp, mean age 4.0 s, 37 readLoop and 36 writeLoop goroutines wait";
    assert!(text.contains(line), "{text}");
}
