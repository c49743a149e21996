use std::{collections::HashSet, fs, path::Path, process::Command};

use memtrace_ebpf::{layout::EndReason, unwind::frame};

use super::{
    AllocatorFrames, Profile, decode_gz, encode_gz, heap,
    proto::{Location, Mapping},
    testing::{site, snapshot},
};
use crate::{
    snapshot::{Losses, Snapshot},
    symbol::{
        Symbolizer,
        testing::{own_mappings, symbol},
    },
};

mod holdings;
mod joined;

#[inline(never)]
fn allocating_function() -> u64 {
    std::hint::black_box(1)
}

#[inline(never)]
fn calling_function() -> u64 {
    std::hint::black_box(2)
}

/// A snapshot whose frames are functions of this very process and of its libc.
fn real_snapshot() -> Snapshot {
    let mappings = own_mappings();
    let executable = std::env::current_exe().unwrap();
    let frame_of = |address: u64, is_return| {
        let mapping = mappings
            .all
            .iter()
            .find(|mapping| (mapping.begin..mapping.end).contains(&address))
            .unwrap();
        frame::pack(mapping.id, address, is_return)
    };
    let libc = mappings
        .all
        .iter()
        .find(|mapping| mapping.path.to_string_lossy().contains("/libc.so"))
        .unwrap();
    let malloc = frame_of(libc.bias + symbol(&libc.path, "malloc").unwrap().0, false);
    let allocating = frame_of(allocating_function as fn() -> u64 as usize as u64 + 4, true);
    let calling = frame_of(calling_function as fn() -> u64 as usize as u64 + 4, true);
    let nameless = frame::pack(u16::MAX, 0x1234_5678, true);
    let complete = EndReason::Complete;
    let sites = vec![
        site(&[malloc, allocating, calling], complete, (2, 200), (10, 1000)),
        site(&[malloc, allocating, calling], complete, (1, 50), (1, 50)),
        site(&[malloc, calling], complete, (0, 0), (5, 0)),
        site(&[malloc, allocating], complete, (0, 0), (0, 0)),
        site(&[malloc, nameless], EndReason::NoUnwindInfo, (7, 70), (7, 70)),
        site(&[], EndReason::Running, (3, 30), (3, 30)),
    ];
    snapshot(sites, mappings, executable)
}

fn real_profile() -> Profile {
    decode_gz(&encode_gz(&heap(
        &real_snapshot(),
        &mut Symbolizer::new(),
        AllocatorFrames::Keep,
    )))
    .unwrap()
}

/// Looks things up by their ids, and fails when an id leads nowhere.
struct Reader<'a>(&'a Profile);

impl<'a> Reader<'a> {
    fn string(&self, index: i64) -> &'a str {
        &self.0.string_table[usize::try_from(index).unwrap()]
    }

    fn location(&self, id: u64) -> &'a Location {
        self.0.location.iter().find(|location| location.id == id).unwrap()
    }

    fn mapping(&self, id: u64) -> &'a Mapping {
        self.0.mapping.iter().find(|mapping| mapping.id == id).unwrap()
    }

    fn names(&self, locations: &[u64]) -> Vec<&'a str> {
        let lines = locations.iter().flat_map(|id| &self.location(*id).line);
        lines
            .map(|line| {
                self.0
                    .function
                    .iter()
                    .find(|function| function.id == line.function_id)
                    .unwrap()
            })
            .map(|function| self.string(function.name))
            .collect()
    }

    fn comments(&self) -> Vec<&'a str> {
        self.0.comment.iter().map(|index| self.string(*index)).collect()
    }
}

#[test]
fn the_values_are_those_that_heap_viewers_know() {
    let profile = real_profile();
    let reader = Reader(&profile);
    let types: Vec<_> = profile
        .sample_type
        .iter()
        .map(|of| (reader.string(of.r#type), reader.string(of.unit)))
        .collect();
    assert_eq!(
        types,
        [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes")
        ]
    );
    assert_eq!(reader.string(profile.default_sample_type), "inuse_space");
    let period = profile.period_type.unwrap();
    assert_eq!(
        (
            reader.string(period.r#type),
            reader.string(period.unit),
            profile.period
        ),
        ("space", "bytes", 1)
    );
    assert_eq!(profile.time_nanos, 1_795_368_817_000_000_000);
    assert_eq!(profile.duration_nanos, 30_000_000_000);
}

#[test]
fn samples_are_merged_by_stack_and_those_without_values_left_out() {
    let profile = real_profile();
    let reader = Reader(&profile);
    let mut samples: Vec<(Vec<&str>, &[i64])> = profile
        .sample
        .iter()
        .map(|sample| (reader.names(&sample.location_id), &*sample.value))
        .collect();
    samples.sort_by_key(|(_, values)| values[0]);
    let allocating = "memtrace::profile::tests::allocating_function";
    let calling = "memtrace::profile::tests::calling_function";
    let malloc = samples[1].0[0];
    assert!(malloc.ends_with("malloc"), "{malloc}");
    assert_eq!(
        samples,
        [
            (vec!["[stack not recorded]"], &[3, 30, 3, 30][..]),
            (vec![malloc, calling], &[5, 0, 0, 0]),
            (
                vec![malloc, "[unknown code]", "[stack truncated: no unwind info]"],
                &[7, 70, 7, 70]
            ),
            (vec![malloc, allocating, calling], &[11, 1050, 3, 250]),
        ]
    );
    assert!(profile.sample.iter().all(|sample| sample.label.is_empty()));
}

#[test]
fn the_tables_are_as_the_format_wants_them() {
    let profile = real_profile();
    let reader = Reader(&profile);
    assert_eq!(profile.string_table[0], "");
    let distinct: HashSet<&String> = profile.string_table.iter().collect();
    assert_eq!(
        distinct.len(),
        profile.string_table.len(),
        "a string is stored twice"
    );
    assert!(
        profile
            .mapping
            .iter()
            .map(|mapping| mapping.id)
            .eq(1..=profile.mapping.len() as u64)
    );
    assert!(
        profile
            .location
            .iter()
            .map(|location| location.id)
            .eq(1..=profile.location.len() as u64)
    );
    assert!(
        profile
            .function
            .iter()
            .map(|function| function.id)
            .eq(1..=profile.function.len() as u64)
    );
    for location in &profile.location {
        assert!(!location.line.is_empty());
        if location.mapping_id != 0 {
            let mapping = reader.mapping(location.mapping_id);
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
        }
    }
}

#[test]
fn the_first_mapping_is_the_main_binary() {
    let profile = real_profile();
    let reader = Reader(&profile);
    let executable = std::env::current_exe().unwrap();
    assert_eq!(Path::new(reader.string(profile.mapping[0].filename)), executable);
    let libc = profile
        .mapping
        .iter()
        .find(|mapping| reader.string(mapping.filename).contains("/libc.so"))
        .unwrap();
    assert_eq!(reader.string(libc.build_id).len(), 40);
    assert!(
        reader
            .string(libc.build_id)
            .chars()
            .all(|digit| digit.is_ascii_hexdigit() && !digit.is_uppercase())
    );
    assert!(
        profile.mapping[0].has_functions
            && profile.mapping[0].has_line_numbers
            && profile.mapping[0].has_filenames
    );

    let mut elsewhere = real_snapshot();
    elsewhere.process.executable = "/app/server".into();
    let profile = heap(&elsewhere, &mut Symbolizer::new(), AllocatorFrames::Keep);
    assert_eq!(
        Reader(&profile).string(profile.mapping[0].filename),
        "/app/server"
    );
    assert!(!profile.mapping[0].has_functions);
}

#[test]
fn a_mapping_does_not_claim_what_it_has_not() {
    let profile = heap(
        &real_snapshot(),
        &mut Symbolizer::with_debug_directories([""; 0]),
        AllocatorFrames::Keep,
    );
    let reader = Reader(&profile);
    let libc = profile
        .mapping
        .iter()
        .find(|mapping| reader.string(mapping.filename).contains("/libc.so"))
        .unwrap();
    assert!(libc.has_functions);
    assert!(!libc.has_filenames && !libc.has_line_numbers && !libc.has_inline_frames);
}

#[test]
fn a_location_is_inside_the_call() {
    let snapshot = real_snapshot();
    let profile = heap(&snapshot, &mut Symbolizer::new(), AllocatorFrames::Keep);
    let addresses: HashSet<u64> = profile.location.iter().map(|location| location.address).collect();
    let frames = snapshot.sites[0].frames.iter();
    assert!(
        frames
            .clone()
            .all(|packed| addresses.contains(&frame::lookup_address(*packed)))
    );
    assert!(addresses.contains(&0), "synthetic frames have no address");
}

#[test]
fn inlined_calls_are_lines_of_one_location() {
    let line = |function: &str, line| crate::symbol::Line {
        function: function.into(),
        system_name: Some(format!("_{function}").into()),
        file: Some("a.c".into()),
        line,
        column: 0,
    };
    let code = crate::symbol::Symbolized {
        address: 0x1000,
        mapping: None,
        lines: [line("inner", 1), line("outer", 2)].into(),
        named: true,
    };
    let mappings = own_mappings();
    let process = snapshot(Vec::new(), own_mappings(), "/bin/true".into()).process;
    let mut builder = super::Builder::new(&super::HEAP, &process, &mappings);
    let stack =
        [super::Frame::Code(&code), super::Frame::Synthetic("[end]")].map(|frame| builder.location(frame));
    assert_eq!(builder.location(super::Frame::Code(&code)), stack[0]);
    builder.add_sample(stack, &[], &[1, 1, 1, u64::MAX]);
    builder.add_sample(stack, &[], &[0, 0, 0, 1]);
    let profile = builder.finish();
    assert_eq!(profile.sample.len(), 1);
    assert_eq!(profile.sample[0].value, [1, 1, 1, i64::MAX]);
    let location = Reader(&profile).location(profile.sample[0].location_id[0]);
    assert_eq!(Reader(&profile).names(&[location.id]), ["inner", "outer"]);
    assert_eq!(
        location.line.iter().map(|line| line.line).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(Reader(&profile).string(profile.function[0].system_name), "_inner");
}

#[test]
fn comments_say_what_was_covered_and_what_was_lost() {
    let mut snapshot = real_snapshot();
    let profile = heap(&snapshot, &mut Symbolizer::new(), AllocatorFrames::Keep);
    assert_eq!(
        Reader(&profile).comments(),
        [
            &*format!("memtrace {}: process 4711 (server)", env!("CARGO_PKG_VERSION")),
            "tracing began at 2026-11-22T17:33:37Z",
            "duration 30.000 s",
            "Memory allocated before memtrace attached is not counted.",
            "covered: libc.so.6: malloc, calloc, realloc, free",
            "nothing was lost",
            "every recorded stack is complete",
        ]
    );

    snapshot.process.name = "a\x1b]0;b".to_owned();
    snapshot.coverage.allocators.clear();
    snapshot.coverage.not_covered = vec!["/app/server has its own allocator".to_owned()];
    snapshot.failed_calls = 2;
    snapshot.losses = Losses {
        blocks_full: 1,
        blocks_full_bytes: 2,
        threads_full: 3,
        without_stack: 4,
        unmatched_frees: 5,
        missed_frees: 6,
        abandoned_calls: 7,
        unmatched_returns: 8,
        nested_too_deep: 9,
        unreadable_results: 10,
        stale_mappings: 0,
        not_inherited: 0,
        truncated: vec![(EndReason::TooDeep, 11)],
    };
    let profile = heap(&snapshot, &mut Symbolizer::new(), AllocatorFrames::Keep);
    let comments = Reader(&profile).comments().join("\n");
    assert!(!comments.contains('\x1b'));
    assert!(comments.contains("covered: nothing"), "{comments}");
    assert!(
        comments.contains("not covered: /app/server has its own allocator"),
        "{comments}"
    );
    for count in (1..=10).filter(|count| *count != 2) {
        let kind = if [5, 8].contains(&count) { "seen" } else { "lost" };
        assert!(
            comments.contains(&format!("\n{kind}: {count} ")),
            "{count} is not in {comments}"
        );
    }
    assert!(
        comments.contains("truncated stacks: 11 blocks: too deep"),
        "{comments}"
    );
    assert!(!comments.contains("nothing was lost"));
}

#[test]
fn estimates_are_called_so() {
    let mut snapshot = real_snapshot();
    assert_eq!(
        heap(&snapshot, &mut Symbolizer::new(), AllocatorFrames::Keep).period,
        1
    );
    snapshot.selection.sample_bytes = std::num::NonZeroU64::new(4096);
    snapshot.selection.min_size = 16;
    snapshot.sites[0].live_samples = 3;
    snapshot.sites[1].live_samples = 1;
    let profile = heap(&snapshot, &mut Symbolizer::new(), AllocatorFrames::Keep);
    assert_eq!(profile.period, 4096);
    let comments = Reader(&profile).comments().join("\n");
    assert!(
        comments.contains("sampled: one in 4096 bytes") && comments.contains("samples that live: 4"),
        "{comments}"
    );
    assert!(
        comments.contains("not recorded: blocks smaller than 16 bytes"),
        "{comments}"
    );
}

#[test]
fn stacks_begin_with_the_caller_of_the_allocator() {
    let profile = heap(&real_snapshot(), &mut Symbolizer::new(), AllocatorFrames::Exclude);
    let reader = Reader(&profile);
    for sample in &profile.sample {
        let names = reader.names(&sample.location_id);
        assert!(!names[0].contains("malloc"), "{names:?}");
    }
    let objects: i64 = profile.sample.iter().map(|sample| sample.value[2]).sum();
    assert_eq!(objects, 2 + 1 + 7 + 3);
}

#[test]
fn what_is_no_profile_is_refused() {
    assert!(decode_gz(b"nothing").is_err());
    let mut cut = encode_gz(&real_profile());
    cut.truncate(cut.len() / 2);
    assert!(decode_gz(&cut).is_err());
}

#[test]
fn pprof_reads_it() {
    let directory = crate::symbol::testing::scratch();
    let path = directory.path().join("heap.pb.gz");
    let profile = heap(&real_snapshot(), &mut Symbolizer::new(), AllocatorFrames::Exclude);
    fs::write(&path, encode_gz(&profile)).unwrap();
    let pprof = |options: &[&str]| {
        let output = Command::new("go")
            .args(["tool", "pprof", "-symbolize=none"])
            .args(options)
            .arg(&path)
            .output();
        match output {
            Ok(output) => {
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{errors}");
                Some(String::from_utf8(output.stdout).unwrap())
            }
            Err(error) => {
                println!("SKIPPED: go: {error}");
                None
            }
        }
    };
    let Some(top) = pprof(&["-top", "-lines"]) else {
        return;
    };
    println!("{top}");
    assert!(top.contains("Type: inuse_space"), "{top}");
    assert!(top.contains("350B"), "{top}");
    // Viewers charge the function that called the allocator.
    let flat = top
        .lines()
        .find(|line| line.contains("allocating_function"))
        .unwrap();
    assert!(flat.trim_start().starts_with("250B"), "{top}");
    assert!(!top.contains("__libc_malloc"), "{top}");
    assert!(
        top.contains("memtrace::profile::tests::calling_function"),
        "{top}"
    );
    let raw = pprof(&["-raw"]).unwrap();
    assert!(
        raw.contains("alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes[dflt]"),
        "{raw}"
    );
    assert!(raw.contains("[stack truncated: no unwind info]"), "{raw}");
    println!("{raw}");
    let comments = pprof(&["-comments"]).unwrap();
    assert!(comments.contains("nothing was lost"), "{comments}");
    let traces = pprof(&["-traces", "-sample_index=alloc_objects"]).unwrap();
    println!("{traces}");
    assert!(traces.contains("allocating_function"), "{traces}");
    let peek = pprof(&["-peek", "allocating_function"]).unwrap();
    println!("{peek}");
    assert!(peek.contains("calling_function"), "{peek}");
}
