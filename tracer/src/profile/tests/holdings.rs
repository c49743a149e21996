//! The profiles of descriptors, mappings and new memory.

use memtrace_ebpf::layout::EndReason;

use super::{Reader, real_snapshot};
use crate::{
    profile::{
        Profile, fds, growth, mmap,
        proto::ValueType,
        testing::{holder, nobody},
    },
    snapshot::{Growth, Growths, Holder, Holdings, Maker, Origin, Snapshot},
    symbol::Symbolizer,
    target::Resident,
};

/// Stacks of real code: of `allocating_function` and its caller, and of a call to `malloc`.
fn stacks(snapshot: &Snapshot) -> (Vec<u64>, Vec<u64>) {
    let frames = |site: usize| snapshot.sites[site].frames.clone();
    (frames(0), frames(2))
}

/// The sample types, the default one, the period type and the period.
fn kind(profile: &Profile) -> (Vec<String>, &str, String, i64) {
    let reader = Reader(profile);
    let name = |of: &ValueType| format!("{}/{}", reader.string(of.r#type), reader.string(of.unit));
    (
        profile.sample_type.iter().map(name).collect(),
        reader.string(profile.default_sample_type),
        name(profile.period_type.as_ref().unwrap()),
        profile.period,
    )
}

/// The samples in words: the names without their paths, the labels and the values.
fn samples(profile: &Profile) -> Vec<String> {
    let reader = Reader(profile);
    let mut samples: Vec<String> = profile
        .sample
        .iter()
        .map(|sample| {
            let names = reader.names(&sample.location_id);
            let names: Vec<&str> = names
                .iter()
                .map(|name| name.rsplit("::").next().unwrap())
                .map(|name| if name.ends_with("malloc") { "malloc" } else { name })
                .collect();
            let labels: Vec<String> = sample
                .label
                .iter()
                .map(|label| format!("{}={}", reader.string(label.key), reader.string(label.str)))
                .collect();
            format!("{} {} {:?}", names.join(" < "), labels.join(","), sample.value)
        })
        .collect();
    samples.sort();
    samples
}

fn descriptors(snapshot: &Snapshot) -> Holdings {
    let (a, b) = stacks(snapshot);
    let holders = vec![
        holder("tcp", &a, 5, 2),
        holder("tcp", &a, 1, 1),
        holder("file", &a, 4, 0),
        Holder {
            inherited: true,
            ..holder("tcp", &a, 3, 3)
        },
        Holder {
            end: EndReason::TooDeep,
            ..holder("pipe", &b, 2, 2)
        },
        holder("pipe", &[], 1, 1),
        // Nothing of these is left to tell.
        holder("udp", &b, 0, 0),
        nobody("file", Maker::BeforeTracing, 3),
        nobody("file", Maker::EarlierProgram, 1),
        nobody("unix", Maker::UntracedCall, 1),
        nobody("other", Maker::IoUring, 1),
    ];
    Holdings {
        holders,
        ..Holdings::default()
    }
}

#[test]
fn descriptors_are_counted_by_stack_and_kind() {
    let snapshot = real_snapshot();
    let profile = fds(&snapshot, &descriptors(&snapshot), &mut Symbolizer::new());
    assert_eq!(
        kind(&profile),
        (
            vec!["open_fds/count".to_owned(), "inuse_fds/count".to_owned()],
            "inuse_fds",
            "fds/count".to_owned(),
            1
        )
    );
    assert_eq!(
        samples(&profile),
        [
            "[opened before tracing] kind=file [0, 3]",
            "[opened by an untraced call] kind=unix [0, 1]",
            "[opened by io_uring] kind=other [0, 1]",
            "[opened by the program before] kind=file [0, 1]",
            "[stack not recorded] kind=pipe [1, 1]",
            "malloc < allocating_function < calling_function kind=file [4, 0]",
            "malloc < allocating_function < calling_function kind=tcp [6, 3]",
            "malloc < allocating_function < calling_function kind=tcp,fd=inherited [0, 3]",
            "malloc < calling_function < [stack truncated: too deep] kind=pipe [2, 2]",
        ]
    );
}

#[test]
fn mappings_have_three_values_and_cached_stacks_a_frame() {
    let snapshot = real_snapshot();
    let (a, b) = stacks(&snapshot);
    let holders = vec![
        Holder {
            resident: 4096,
            ..holder("anon", &a, 16_384, 8192)
        },
        Holder {
            cached: true,
            ..holder("stack", &b, 8192, 8192)
        },
        Holder {
            inherited: true,
            ..holder("shared", &b, 4096, 4096)
        },
        nobody("file", Maker::BeforeTracing, 4096),
    ];
    let holdings = Holdings {
        holders,
        ..Holdings::default()
    };
    let profile = mmap(&snapshot, &holdings, &mut Symbolizer::new());
    assert_eq!(
        kind(&profile),
        (
            ["mmap_space/bytes", "inuse_space/bytes", "resident_space/bytes"]
                .map(str::to_owned)
                .to_vec(),
            "inuse_space",
            "space/bytes".to_owned(),
            1
        )
    );
    assert_eq!(
        samples(&profile),
        [
            "[cached thread stack] < malloc < calling_function kind=stack [8192, 8192, 0]",
            "[mapped before tracing] kind=file [0, 4096, 0]",
            "malloc < allocating_function < calling_function kind=anon [16384, 8192, 4096]",
            "malloc < calling_function kind=shared,mmap=inherited [0, 4096, 0]",
        ]
    );
}

fn new_memory(snapshot: &Snapshot) -> Growths {
    let (a, b) = stacks(snapshot);
    let site = |frames: &[u64], end, touched, brk, mapped| Growth {
        frames: frames.to_vec(),
        end,
        touched,
        brk,
        mapped,
        samples: touched / 65_536,
    };
    Growths {
        sites: vec![
            site(&a, EndReason::Complete, 655_360, 0, 0),
            site(&b, EndReason::NoUnwindInfo, 0, 4096, 8192),
        ],
        sample_bytes: 65_536,
        resident: Some((
            Resident {
                rss: 1_000_000,
                anonymous: 600_000,
            },
            Resident {
                rss: 2_000_000,
                anonymous: 700_000,
            },
        )),
        ..Growths::default()
    }
}

#[test]
fn new_memory_is_an_estimate() {
    let snapshot = real_snapshot();
    let profile = growth(&snapshot, &new_memory(&snapshot), &mut Symbolizer::new());
    assert_eq!(
        kind(&profile),
        (
            ["touched_space/bytes", "brk_space/bytes", "mmap_space/bytes"]
                .map(str::to_owned)
                .to_vec(),
            "touched_space",
            "space/bytes".to_owned(),
            65_536
        )
    );
    assert_eq!(
        samples(&profile),
        [
            "malloc < allocating_function < calling_function  [655360, 0, 0]",
            "malloc < calling_function < [stack truncated: no unwind info]  [0, 4096, 8192]",
        ]
    );
}

#[test]
fn comments_are_of_the_profile_that_they_stand_in() {
    let mut snapshot = real_snapshot();
    // What only the heap's profile says.
    snapshot.selection.min_size = 64;
    snapshot.losses.missed_frees = 1;
    snapshot.failed_calls = 1;
    let head = [
        &*format!("memtrace {}: process 4711 (server)", env!("CARGO_PKG_VERSION")),
        "tracing began at 2026-11-22T17:33:37Z",
        "duration 30.000 s",
    ];
    let profile = fds(&snapshot, &descriptors(&snapshot), &mut Symbolizer::new());
    let comments = Reader(&profile).comments();
    assert_eq!(comments[..3], head);
    assert_eq!(
        comments[3..],
        [
            "What the process held before memtrace attached is shown apart.",
            "covered: the descriptors that any thread opens, copies, receives and closes; those of calls that are not traced stand apart",
            "nothing was lost",
            "truncated stacks: 2 descriptors: too deep",
        ]
    );
    let holdings = Holdings {
        warning: None,
        holders: Vec::new(),
        losses: vec![(7, "events of mappings (\x1b)".to_owned())],
        notes: vec!["Some pages are shared.".to_owned()],
    };
    snapshot.origin = Origin::Started;
    let profile = mmap(&snapshot, &holdings, &mut Symbolizer::new());
    let comments = Reader(&profile).comments();
    assert_eq!(comments[..3], head);
    assert_eq!(
        comments[3..],
        [
            "memtrace started it, and watched from its first instruction on.",
            "covered: what any thread maps, moves and unmaps, and the stacks of threads, by who made the thread",
            "not covered: what an allocator maps for its own use, and what brk adds",
            "note: Some pages are shared.",
            r"lost: 7 events of mappings (\u{1b})",
            "every recorded stack is complete",
        ]
    );
    let profile = growth(&snapshot, &new_memory(&snapshot), &mut Symbolizer::new());
    let comments = Reader(&profile).comments();
    assert_eq!(comments[..3], head);
    assert_eq!(
        comments[4..],
        [
            "sampled: one in 65536 bytes on average; touched_space is an estimate; \
             standard error of b bytes: at most √(65536·b)",
            "samples: 10",
            "covered: pages that are touched for the first time, what brk adds, and what is mapped",
            "resident memory: 1000000 bytes when tracing began, 2000000 bytes at the end; anonymous: 600000 and 700000 bytes",
            "nothing was lost",
            "truncated stacks: 12288 bytes: no unwind info",
        ]
    );
}
