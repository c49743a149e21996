//! Differences and sums of profiles.

use std::{
    collections::{BTreeMap, HashSet},
    process::Command,
};

use super::real_profile;
use crate::profile::{
    Profile, delta, encode_gz, merge,
    proto::{Function, Label, Line, Location, Mapping, Sample, ValueType},
};

const SECOND: i64 = 1_000_000_000;

/// Numbers that look random (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What a sample is, in words: the labels, and each frame with all that tells it from others.
type Content = Vec<String>;

/// The values of each sample by its content; two samples with the same content are an error.
fn contents(profile: &Profile) -> BTreeMap<Content, Vec<i64>> {
    let mut all = BTreeMap::new();
    for sample in &profile.sample {
        let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
        let mut labels: Vec<String> = sample
            .label
            .iter()
            .map(|label| format!("{}={}{}", text(label.key), text(label.str), label.num))
            .collect();
        labels.sort();
        let frames = sample.location_id.iter().map(|id| frame(profile, *id));
        let content = labels.into_iter().chain(frames).collect();
        assert_eq!(all.insert(content, sample.value.clone()), None);
    }
    all
}

fn frame(profile: &Profile, id: u64) -> String {
    let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
    let location = profile.location.iter().find(|of| of.id == id).unwrap();
    let mapping = profile.mapping.iter().find(|of| of.id == location.mapping_id);
    let mapping = mapping.map(|of| {
        let names = (text(of.filename), text(of.build_id));
        (names, of.memory_start, of.memory_limit, of.file_offset)
    });
    let lines: Vec<_> = location
        .line
        .iter()
        .map(|line| {
            let function = profile.function.iter().find(|of| of.id == line.function_id);
            let function = function.unwrap();
            let names = (text(function.name), text(function.system_name));
            (
                names,
                text(function.filename),
                function.start_line,
                line.line,
                line.column,
            )
        })
        .collect();
    format!("{mapping:?} {:#x} {lines:?}", location.address)
}

fn totals(profile: &Profile) -> Vec<i64> {
    let mut totals = vec![0; profile.sample_type.len()];
    for sample in &profile.sample {
        totals
            .iter_mut()
            .zip(&sample.value)
            .for_each(|(sum, value)| *sum += value);
    }
    totals
}

/// Writes a profile whose ids and strings are in an order that depends on the samples, so that no two agree.
struct Writer(Profile);

impl Writer {
    /// A profile with these sample types, from second `from` on for `seconds`.
    fn new(types: &[&str], from: i64, seconds: i64) -> Self {
        let mut writer = Self(Profile {
            string_table: vec![String::new()],
            time_nanos: from * SECOND,
            duration_nanos: seconds * SECOND,
            period: 1,
            ..Profile::default()
        });
        for name in types {
            let of = ValueType {
                r#type: writer.string(name),
                unit: writer.string("bytes"),
            };
            writer.0.sample_type.push(of);
        }
        writer
    }

    fn string(&mut self, text: &str) -> i64 {
        let table = &mut self.0.string_table;
        let known = table.iter().position(|known| known == text);
        known.unwrap_or_else(|| {
            table.push(text.to_owned());
            table.len() - 1
        }) as i64
    }

    fn comment(&mut self, text: &str) {
        let index = self.string(text);
        self.0.comment.push(index);
    }

    /// A frame in a file with this number; every frame gets tables of its own.
    fn frame(&mut self, file: u64, address: u64, function: &str) -> u64 {
        let id = self.0.mapping.len() as u64 + 1;
        let mapping = Mapping {
            id,
            memory_start: file << 16,
            memory_limit: (file + 1) << 16,
            filename: self.string(&format!("/lib/{file}.so")),
            build_id: self.string(&format!("{file:08x}")),
            has_functions: true,
            ..Mapping::default()
        };
        self.0.mapping.push(mapping);
        let name = self.string(function);
        self.0.function.push(Function {
            id,
            name,
            system_name: name,
            ..Function::default()
        });
        let line = vec![Line {
            function_id: id,
            line: 7,
            ..Line::default()
        }];
        self.0.location.push(Location {
            id,
            mapping_id: id,
            address,
            line,
            ..Location::default()
        });
        id
    }

    /// A sample of the stack with this number; the third of them have a label each.
    fn sample(&mut self, stack: u64, value: &[i64]) {
        let location_id = (0..=stack % 3)
            .map(|depth| self.frame(stack % 2, 0x100 + stack, &format!("f{stack}_{depth}")))
            .collect();
        let label = stack.is_multiple_of(3).then(|| Label {
            key: self.string("kind"),
            str: self.string(&format!("k{stack}")),
            ..Label::default()
        });
        self.0.sample.push(Sample {
            location_id,
            value: value.to_vec(),
            label: label.into_iter().collect(),
        });
    }
}

/// Fails unless ids count from 1, as some stores want them, lead somewhere, and nothing is there twice or for nothing.
fn assert_tidy(profile: &Profile) {
    assert_eq!(profile.string_table[0], "");
    let strings: HashSet<_> = profile.string_table.iter().collect();
    assert_eq!(strings.len(), profile.string_table.len());
    assert!(
        profile
            .location
            .iter()
            .map(|of| of.id)
            .eq(1..=profile.location.len() as u64)
    );
    assert!(
        profile
            .function
            .iter()
            .map(|of| of.id)
            .eq(1..=profile.function.len() as u64)
    );
    assert!(
        profile
            .mapping
            .iter()
            .map(|of| of.id)
            .eq(1..=profile.mapping.len() as u64)
    );
    let used: HashSet<u64> = profile
        .sample
        .iter()
        .flat_map(|of| of.location_id.clone())
        .collect();
    assert_eq!(used.len(), profile.location.len(), "no location without a sample");
    let lines = profile.location.iter().flat_map(|of| &of.line);
    let used: HashSet<u64> = lines.map(|line| line.function_id).collect();
    assert_eq!(
        used.len(),
        profile.function.len(),
        "no function without a location"
    );
    for sample in &profile.sample {
        assert_eq!(sample.value.len(), profile.sample_type.len());
        assert!(sample.value.iter().any(|value| *value != 0));
    }
}

#[test]
fn the_chosen_types_are_subtracted_by_content() {
    let mut earlier = Writer::new(&["alloc_space", "inuse_space"], 100, 30);
    earlier.sample(1, &[10, 10]);
    earlier.sample(2, &[20, 5]);
    earlier.sample(4, &[40, 0]);
    let mut later = Writer::new(&["alloc_space", "inuse_space"], 100, 45);
    later.comment("about later");
    later.sample(4, &[40, 0]);
    later.sample(2, &[25, 3]);
    later.sample(1, &[7, 10]);
    later.sample(3, &[1, 1]);

    let between = delta(&later.0, &earlier.0, |name| name == "alloc_space");

    assert_tidy(&between);
    let values: Vec<_> = between.sample.iter().map(|of| of.value.clone()).collect();
    assert_eq!(values, [[5, 3], [-3, 10], [1, 1]]);
    assert_eq!(between.time_nanos, 130 * SECOND);
    assert_eq!(between.duration_nanos, 15 * SECOND);
    assert_eq!(between.comment.len(), 1);
    assert!(!between.string_table.iter().any(|text| text.starts_with("f4")));
}

#[test]
fn a_type_that_the_earlier_profile_lacks_counts_as_0_there() {
    let mut earlier = Writer::new(&["other", "alloc_space"], 0, 1);
    earlier.sample(1, &[100, 4]);
    let mut later = Writer::new(&["alloc_space", "new"], 0, 2);
    later.sample(1, &[10, 6]);
    let between = delta(&later.0, &earlier.0, |_| true);
    assert_eq!(totals(&between), [6, 6]);
}

#[test]
fn a_profile_minus_itself_is_empty_and_minus_nothing_is_itself() {
    let profile = real_profile();
    let nothing = delta(&profile, &profile, |_| true);
    assert_tidy(&nothing);
    assert!(nothing.sample.is_empty());
    assert_eq!(nothing.sample_type.len(), profile.sample_type.len());
    assert_eq!(nothing.mapping.len(), 1, "the main binary");
    let same = delta(&profile, &Profile::default(), |_| true);
    assert_tidy(&same);
    assert_eq!(contents(&same), contents(&profile));
}

#[test]
fn deltas_of_a_sequence_add_up() {
    for seed in 1..=50 {
        let mut random = Random(seed);
        let mut values: BTreeMap<u64, [i64; 2]> = BTreeMap::new();
        let mut sequence = Vec::new();
        for step in 0..8 {
            for _ in 0..random.below(12) {
                let value = values.entry(random.below(20)).or_default();
                value[0] += random.below(1000) as i64;
                value[1] = random.below(1000) as i64;
            }
            let mut writer = Writer::new(&["alloc_space", "inuse_space"], 100, step);
            let mut stacks: Vec<_> = values.iter().collect();
            stacks.sort_by_key(|_| random.below(100));
            stacks
                .iter()
                .for_each(|(stack, value)| writer.sample(**stack, *value));
            sequence.push(writer.0);
        }
        let deltas: Vec<_> = sequence
            .windows(2)
            .map(|pair| delta(&pair[1], &pair[0], |_| true))
            .collect();
        deltas.iter().for_each(assert_tidy);
        let added = merge(&deltas);
        let at_once = delta(sequence.last().unwrap(), &sequence[0], |_| true);
        assert_eq!(contents(&added), contents(&at_once), "seed {seed}");
        assert_eq!(
            (added.time_nanos, added.duration_nanos),
            (at_once.time_nanos, at_once.duration_nanos)
        );
    }
}

#[test]
fn merging_adds_by_content_whatever_the_order() {
    for seed in 1..=50 {
        let mut random = Random(seed);
        let mut expected = BTreeMap::new();
        let profiles: Vec<Profile> = (0..4)
            .map(|_| {
                let mut writer = Writer::new(&["alloc_space"], 1, 1);
                for _ in 0..random.below(10) {
                    let (stack, value) = (random.below(12), random.below(100) as i64);
                    *expected.entry(stack).or_default() += value;
                    writer.sample(stack, &[value]);
                }
                writer.0
            })
            .collect();
        let mut whole = Writer::new(&["alloc_space"], 1, 1);
        expected.retain(|_, value| *value != 0);
        expected
            .iter()
            .for_each(|(stack, value)| whole.sample(*stack, &[*value]));
        let merged = merge(&profiles);
        assert_eq!(contents(&merged), contents(&whole.0), "seed {seed}");
        let reversed: Vec<&Profile> = profiles.iter().rev().collect();
        assert_eq!(contents(&merge(&reversed)), contents(&merged));
    }
}

#[test]
fn what_profiles_say_of_themselves_is_merged() {
    let mut first = Writer::new(&["alloc_space", "inuse_space"], 100, 30);
    first.comment("same");
    first.comment("first");
    first.sample(1, &[1, 2]);
    let mut second = Writer::new(&["mmap_space", "inuse_space"], 90, 60);
    second.0.period = 512;
    second.comment("same");
    second.comment("second");
    second.sample(1, &[4, 8]);
    let merged = merge(&[first.0, second.0]);
    assert_tidy(&merged);
    let text = |index: &i64| merged.string_table[*index as usize].as_str();
    let types: Vec<_> = merged.sample_type.iter().map(|of| text(&of.r#type)).collect();
    assert_eq!(types, ["alloc_space", "inuse_space", "mmap_space"]);
    assert_eq!(totals(&merged), [1, 10, 4]);
    let comments: Vec<_> = merged.comment.iter().map(text).collect();
    assert_eq!(comments, ["same", "first", "second"]);
    assert_eq!(
        (merged.time_nanos, merged.duration_nanos),
        (90 * SECOND, 60 * SECOND)
    );
    assert_eq!(merged.period, 512);
    assert!(merged.mapping.iter().all(|of| of.has_functions));
}

#[test]
fn mappings_are_one_only_at_the_same_place() {
    let mut first = Writer::new(&["alloc_space"], 0, 0);
    first.sample(2, &[1]);
    let mut second = Writer::new(&["alloc_space"], 0, 0);
    second.sample(2, &[1]);
    assert_eq!(merge(&[&first.0, &second.0]).mapping.len(), 1);
    second
        .0
        .mapping
        .iter_mut()
        .for_each(|of| of.memory_limit += 0x1000);
    let merged = merge(&[&first.0, &second.0]);
    assert_eq!(merged.mapping.len(), 2);
    assert_eq!(merged.sample.len(), 2);
}

#[test]
fn merging_none_is_empty_and_ids_that_lead_nowhere_do_no_harm() {
    assert_eq!(merge::<Profile>(&[]).string_table, [""]);
    let mut broken = Writer::new(&["alloc_space"], 0, 0);
    broken.sample(0, &[5]);
    broken.0.sample[0].location_id.push(99);
    broken.0.sample[0].value.push(3);
    broken.0.comment.push(77);
    broken.0.location[0].mapping_id = 12;
    let merged = merge(&[&broken.0]);
    assert_tidy(&merged);
    assert_eq!(totals(&merged), [5]);
    assert_eq!(totals(&delta(&broken.0, &merged, |_| true)), [0]);
}

/// The totals of each sample type as `go tool pprof` adds them up, and the bytes of what it writes.
fn merged_by_pprof(profiles: &[Profile]) -> Option<Profile> {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (index, profile) in profiles.iter().enumerate() {
        let file = directory.path().join(format!("{index}.pb.gz"));
        std::fs::write(&file, encode_gz(profile)).unwrap();
        files.push(file);
    }
    let output = directory.path().join("merged.pb.gz");
    let pprof = Command::new("go")
        .args(["tool", "pprof", "-proto", "-output"])
        .arg(&output)
        .args(&files)
        .env("PPROF_TMPDIR", directory.path())
        .output()
        .ok()?;
    assert!(
        pprof.status.success(),
        "{}",
        String::from_utf8_lossy(&pprof.stderr)
    );
    Some(crate::profile::decode_gz(&std::fs::read(output).unwrap()).unwrap())
}

#[test]
fn totals_are_those_of_pprof() {
    let mut first = real_profile();
    first.sample[0].value = vec![3, 300, 2, 200];
    let profiles = [first, real_profile()];
    let Some(theirs) = merged_by_pprof(&profiles) else {
        eprintln!("skipped: there is no go");
        return;
    };
    let ours = merge(&profiles);
    assert_eq!(totals(&ours), totals(&theirs));
    assert_eq!(ours.sample.len(), theirs.sample.len());
    assert_eq!(ours.period, theirs.period);
}
