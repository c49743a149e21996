//! Files that are damaged, or made to mislead.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use object::{Object, ObjectSection};

use super::fixtures::{self, Mode};
use super::open;
use crate::go::{GoBinary, GoError, Version, build_info};

/// Opens the file, and asks everything of it.
fn exercise(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(bytes).expect("it can be written");
    let Ok(Some(binary)) = GoBinary::open(&file) else {
        return;
    };
    let table = binary.table();
    let entries: Vec<_> = table.entries().step_by(41).collect();
    for address in entries.iter().flat_map(|entry| [*entry, entry.wrapping_add(30)]) {
        table.frames(address);
        table.frame_size(address);
        table.entry(address);
    }
}

/// Numbers that look random (`xorshift64`).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Where the tables are in the file, so that damage hits what is read.
fn parts(path: &Path) -> Vec<(usize, usize)> {
    let bytes = fs::read(path).expect("the program is there");
    let elf = object::File::parse(&*bytes).expect("it is an ELF file");
    let sections = elf.sections().filter(|section| {
        let name = section.name().unwrap_or_default();
        [
            ".gopclntab",
            ".go.buildinfo",
            ".go.module",
            ".noptrdata",
            ".rela",
            ".data.rel.ro",
            ".symtab",
        ]
        .iter()
        .any(|known| name.starts_with(known))
    });
    let ranges = sections.filter_map(|section| section.file_range());
    let mut parts: Vec<_> = ranges
        .map(|(offset, size)| (offset as usize, size as usize))
        .collect();
    parts.extend([(0, 1024), (bytes.len().saturating_sub(4096), 4096)]);
    // The header of the table, and the beginning of the list of functions.
    parts.extend(
        parts
            .clone()
            .into_iter()
            .map(|(offset, size)| (offset, size.min(96))),
    );
    parts
}

#[test]
fn damaged_files_do_no_harm() {
    let mut random = Random(0x5eed);
    for fixture in fixtures::all()
        .iter()
        .rev()
        .take(4)
        .chain(fixtures::all().iter().take(4))
    {
        let path = &fixture.stripped[0];
        let original = fs::read(path).expect("the program is there");
        let parts = parts(path);
        for _ in 0..12 {
            let mut bytes = original.clone();
            for _ in 0..=random.below(12) {
                let (offset, size) = parts[random.below(parts.len())];
                let at = (offset + random.below(size.max(1))).min(bytes.len() - 1);
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, random.below(256) as u8][random.below(6)];
            }
            exercise(&bytes);
        }
        for part in [0, 63, 64, 4096, original.len() / 2, original.len() - 1] {
            exercise(&original[..part]);
        }
    }
}

#[test]
fn sections_are_not_needed() {
    let fixtures = fixtures::all().iter();
    for fixture in fixtures.filter(|fixture| fixture.mode == Mode::Default) {
        let mut bytes = fs::read(&fixture.path).expect("the program is there");
        // e_shoff, e_shnum and e_shstrndx.
        bytes[0x28..0x30].fill(0);
        bytes[0x3c..0x40].fill(0);
        let mut file = tempfile::tempfile().expect("a temporary file can be made");
        file.write_all(&bytes).expect("it can be written");
        let binary = GoBinary::open(&file)
            .expect("it is not damaged")
            .expect("it is Go");
        let (ours, whole) = (binary.table(), open(&fixture.path).table());
        assert!(ours.entries().eq(whole.entries()));
        let main = whole.find("main.main").expect("it is there").start;
        assert_eq!(ours.frames(main), whole.frames(main));
    }
}

#[test]
fn versions_that_are_not_known_are_refused() {
    let known = |text: &str| {
        build_info::version(text)
            .ok()
            .map(|version| (version.major, version.minor))
    };
    assert_eq!(known("go1.24.11"), Some((1, 24)));
    assert_eq!(known("go1.27"), Some((1, 27)));
    assert_eq!(known("go1.24rc1"), Some((1, 24)));
    assert_eq!(known("go1.25.5 X:nogreenteagc"), Some((1, 25)));
    for text in [
        "devel go1.22-abcdef Mon",
        "go1.26-devel_1234 linux",
        "",
        "go1",
        "go1.",
        "go.1",
        "1.24",
        "go1.x",
    ] {
        assert!(
            matches!(build_info::version(text), Err(GoError::Layout(_))),
            "{text}"
        );
    }
    let old = Version { major: 1, minor: 9 };
    assert!(old < Version { major: 1, minor: 24 });
}

#[test]
fn a_version_before_1_18_is_refused() {
    let Some(fixture) = fixtures::all().first() else {
        return;
    };
    let mut bytes = fs::read(&fixture.path).expect("the program is there");
    let elf = object::File::parse(&*bytes).expect("it is an ELF file");
    let section = elf.section_by_name(".go.buildinfo").expect("it is there");
    let (offset, _) = section.file_range().expect("it is in the file");
    bytes[offset as usize + 15] = 0;
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(&bytes).expect("it can be written");
    let error = GoBinary::open(&file).expect_err("it is too old");
    assert!(error.to_string().contains("before 1.18"), "{error}");
    let version = bytes.windows(6).position(|window| window == b"go1.19");
    bytes[offset as usize + 15] = 2;
    if let Some(at) = version.filter(|at| *at > offset as usize) {
        bytes[at + 5] = b'8';
        let mut file = tempfile::tempfile().expect("a temporary file can be made");
        file.write_all(&bytes).expect("it can be written");
        let error = GoBinary::open(&file).expect_err("it is not known");
        assert!(error.to_string().contains("only Go 1.19"), "{error}");
    }
}

#[test]
fn other_files_are_not_go() {
    for path in ["/bin/sh", "/dev/null", "/etc/passwd"] {
        let file = File::open(path).expect("it is there");
        assert!(matches!(GoBinary::open(&file), Ok(None)), "{path}");
    }
}
