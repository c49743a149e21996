//! Real code for tests: this process, and programs compiled for a test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use object::{Object, ObjectSegment, ObjectSymbol, SegmentFlags};

use crate::target::{Backing, Mapping, Mappings};

/// The executable mappings of this process, as `/proc/self/maps` shows them.
pub(crate) fn own_mappings() -> Mappings {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let mut all = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.splitn(6, ' ').collect();
        let path = fields.get(5).map_or("", |path| path.trim_start());
        if !fields[1].contains('x') || path == "[vsyscall]" {
            continue;
        }
        let (begin, end) = fields[0].split_once('-').expect("a range");
        let hex = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        all.push(mapping(
            all.len() as u16,
            hex(begin),
            hex(end),
            hex(fields[2]),
            Path::new(path),
        ));
    }
    Mappings { all }
}

/// A mapping of a file as the loader would make it, at an address of our choice.
pub(crate) fn map_code(id: u16, begin: u64, path: &Path) -> Arc<Mapping> {
    let bytes = fs::read(path).expect("the file is there");
    let elf = object::File::parse(&*bytes).expect("an ELF file");
    let code = elf.segments().find(is_code).expect("a segment with code");
    let (offset, _) = code.file_range();
    let page = offset & !0xfff;
    mapping(id, begin, begin + (offset - page) + code.size(), page, path)
}

fn mapping(id: u16, begin: u64, end: u64, file_offset: u64, path: &Path) -> Arc<Mapping> {
    let (backing, bytes) = if path == Path::new("[vdso]") {
        // SAFETY: the vDSO stays mapped and readable for as long as the process lives.
        let image = unsafe { std::slice::from_raw_parts(begin as *const u8, (end - begin) as usize) };
        (Backing::Image(image.into()), image.to_vec())
    } else {
        let file = File::open(path).expect("the file is there");
        (
            Backing::File(Arc::new(file)),
            fs::read(path).expect("the file is there"),
        )
    };
    let elf = object::File::parse(&*bytes).expect("an ELF image");
    let code = elf.segments().find(is_code).expect("a segment with code");
    let (offset, _) = code.file_range();
    Arc::new(Mapping {
        id,
        begin,
        end,
        file_offset,
        bias: begin.wrapping_sub(code.address() - offset + file_offset),
        path: path.to_owned(),
        build_id: elf.build_id().expect("readable notes").map(<[u8]>::to_vec),
        file_id: (0, 0),
        backing,
        root: None,
    })
}

fn is_code(segment: &object::Segment<'_, '_>) -> bool {
    matches!(segment.flags(), SegmentFlags::Elf { p_flags } if p_flags & object::elf::PF_X != 0)
}

/// Where a symbol is (virtual address in the file, and size).
pub(crate) fn symbol(path: &Path, name: &str) -> Option<(u64, u64)> {
    let bytes = fs::read(path).ok()?;
    let elf = object::File::parse(&*bytes).ok()?;
    let symbol = elf
        .symbols()
        .chain(elf.dynamic_symbols())
        .find(|symbol| symbol.name() == Ok(name))?;
    Some((symbol.address(), symbol.size()))
}

/// A directory that is gone after the test.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Compiles a program or library; `None`, with a line that says so, when the compiler is not here.
pub(crate) fn compile(directory: &Path, compiler: &str, source: &str, arguments: &[&str]) -> Option<PathBuf> {
    let output = directory.join("program");
    let extension = match compiler {
        "c++" => "cpp",
        "rustc" => "rs",
        _ => "c",
    };
    let file = directory.join(format!("source.{extension}"));
    fs::write(&file, source).expect("the directory is ours");
    let status = Command::new(compiler)
        .args(arguments)
        .arg("-o")
        .arg(&output)
        .arg(&file)
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "{compiler} failed");
            Some(output)
        }
        Err(error) => {
            println!("SKIPPED: {compiler}: {error}");
            None
        }
    }
}
