use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use memtrace_ebpf::unwind::frame;

use super::{
    Symbolized, Symbolizer,
    testing::{compile, map_code, own_mappings, scratch, symbol},
};
use crate::target::{Backing, Mapping, Mappings};

const NO_DEBUG_FILES: [&str; 0] = [];

/// Names one address of this process.
fn name_own(symbolizer: &mut Symbolizer, address: u64) -> Symbolized {
    let mappings = own_mappings();
    let mapping = mappings
        .all
        .iter()
        .find(|mapping| (mapping.begin..mapping.end).contains(&address));
    let packed = frame::pack(mapping.expect("the address is code").id, address, false);
    let symbols = symbolizer.symbolize(&mappings, [packed]);
    symbols.get(packed).expect("it was asked for").clone()
}

/// Names a virtual address of a file.
fn name_in(symbolizer: &mut Symbolizer, path: &Path, address: u64) -> Symbolized {
    let mapping = map_code(0, 0x5555_0000_0000, path);
    let packed = frame::pack(0, address.wrapping_add(mapping.bias), false);
    let symbols = symbolizer.symbolize(&Mappings { all: vec![mapping] }, [packed]);
    symbols.get(packed).expect("it was asked for").clone()
}

fn functions(symbolized: &Symbolized) -> Vec<&str> {
    symbolized.lines.iter().map(|line| &*line.function).collect()
}

/// The number of the only line of `source` that contains `text`.
fn line_of(source: &str, text: &str) -> u32 {
    let mut lines = source.lines().zip(1..).filter(|(line, _)| line.contains(text));
    let (_, number) = lines.next().expect("the text is there");
    assert!(lines.next().is_none(), "{text} is there twice");
    number
}

#[inline(always)]
fn inlined_function() -> u64 {
    let address: u64;
    // SAFETY: only writes its output register.
    unsafe { std::arch::asm!("lea {}, [rip]", out(reg) address) };
    address
}

#[inline(never)]
fn outer_function() -> u64 {
    std::hint::black_box(inlined_function())
}

#[test]
fn own_functions_have_names_files_lines_and_inlined_calls() {
    let here = name_own(&mut Symbolizer::new(), outer_function());
    assert!(here.named);
    assert_eq!(
        functions(&here),
        [
            "memtrace::symbol::tests::inlined_function",
            "memtrace::symbol::tests::outer_function"
        ]
    );
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/symbol/tests.rs")).unwrap();
    for (line, text) in here
        .lines
        .iter()
        .zip(["asm!(\"lea", "black_box(inlined_function"])
    {
        assert!(
            line.file
                .as_deref()
                .unwrap()
                .ends_with("tracer/src/symbol/tests.rs"),
            "{line:?}"
        );
        let here = source
            .lines()
            .zip(1..)
            .find(|(line, _)| line.contains(text))
            .unwrap()
            .1;
        assert_eq!(line.line, here, "{line:?}");
        assert!(line.column > 0);
    }
    let raw = here.lines[1].system_name.as_deref().unwrap();
    assert!(raw.starts_with("_R") || raw.starts_with("_ZN"), "{raw}");
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    let begin = outer_function as fn() -> u64 as usize as u64;
    let mappings = own_mappings();
    let mapping = mappings
        .all
        .iter()
        .find(|mapping| (mapping.begin..mapping.end).contains(&begin))
        .unwrap();
    let (entry, returned) = (
        frame::pack(mapping.id, begin, false),
        frame::pack(mapping.id, begin, true),
    );
    let symbols = Symbolizer::new().symbolize(&mappings, [entry, returned, entry]);
    assert_eq!(symbols.len(), 2);
    let (entry, returned) = (symbols.get(entry).unwrap(), symbols.get(returned).unwrap());
    assert_eq!((entry.address, returned.address), (begin, begin - 1));
    assert!(entry.lines.last().unwrap().function.ends_with("outer_function"));
    assert!(
        !returned
            .lines
            .last()
            .unwrap()
            .function
            .ends_with("outer_function")
    );
}

fn libc_path() -> PathBuf {
    let mappings = own_mappings();
    let libc = mappings
        .all
        .iter()
        .find(|mapping| mapping.path.to_string_lossy().contains("/libc.so"));
    libc.expect("tests are linked with libc").path.clone()
}

#[test]
fn libc_has_lines_from_its_debug_file_and_only_exported_names_without() {
    let libc = libc_path();
    let (malloc, size) = symbol(&libc, "malloc").expect("libc exports malloc");
    let without = name_in(
        &mut Symbolizer::with_debug_directories(NO_DEBUG_FILES),
        &libc,
        malloc + size - 1,
    );
    assert_eq!(functions(&without), ["malloc"]);
    assert_eq!(without.lines[0].file, None);

    let with = name_in(&mut Symbolizer::new(), &libc, malloc + 1);
    let Some(file) = with.lines[0].file.as_deref() else {
        println!("SKIPPED: libc's debug file is not installed");
        return;
    };
    assert!(file.ends_with("malloc/malloc.c"), "{file}");
    assert!(!file.contains("/./"), "{file}");
    let line = with.lines.last().unwrap();
    assert_eq!(&*line.function, "__libc_malloc");
    assert_eq!(line.system_name.as_deref(), Some("__GI___libc_malloc"));
    assert!(line.line > 1000, "{line:?}");
}

#[test]
fn a_stripped_file_never_gives_the_name_of_a_neighbour() {
    let directory = scratch();
    let source = "
        #include <stdlib.h>
        __attribute__((noinline)) void *exported(size_t n) { return malloc(n); }
        __attribute__((noinline)) static void *hidden(size_t n) { return calloc(n, 3); }
        int main(int argc, char **argv) { (void)argv; return exported(argc) == hidden(argc); }";
    let Some(program) = compile(
        directory.path(),
        "cc",
        source,
        &["-O1", "-rdynamic", "-fno-toplevel-reorder"],
    ) else {
        return;
    };
    let (exported, exported_size) = symbol(&program, "exported").unwrap();
    let (hidden, _) = symbol(&program, "hidden").unwrap();
    assert!(
        hidden > exported,
        "the hidden function must follow an exported one for this test to mean anything"
    );
    let stripped = directory.path().join("stripped");
    assert!(
        Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );

    let mut symbolizer = Symbolizer::new();
    assert_eq!(functions(&name_in(&mut symbolizer, &program, hidden)), ["hidden"]);
    for address in [exported, exported + exported_size - 1] {
        assert_eq!(
            functions(&name_in(&mut symbolizer, &stripped, address)),
            ["exported"]
        );
    }
    let nameless = name_in(&mut symbolizer, &stripped, hidden + 2);
    assert_eq!(functions(&nameless), [format!("stripped+{:#x}", hidden + 2)]);
    assert!(!nameless.named);
}

#[test]
fn cpp_names_are_demangled_and_the_raw_ones_kept() {
    let directory = scratch();
    let source = "
        #include <vector>
        namespace cache {
        struct Store {
            std::vector<int> items;
            __attribute__((noinline)) void put(int value);
            __attribute__((always_inline)) void put_two(int value) { put(value); put(value + 1); }
        };
        void Store::put(int value) { items.push_back(value); }
        }
        __attribute__((noinline)) void fill(cache::Store &store) { store.put_two(7); asm(\"\"); }
        int main() { cache::Store store; fill(store); return store.items.size(); }";
    let Some(program) = compile(directory.path(), "c++", source, &["-O1", "-g"]) else {
        return;
    };
    let mut symbolizer = Symbolizer::new();
    let (put, _) = symbol(&program, "_ZN5cache5Store3putEi").unwrap();
    let put = name_in(&mut symbolizer, &program, put);
    let line = put.lines.last().unwrap();
    assert_eq!(&*line.function, "cache::Store::put");
    assert_eq!(line.system_name.as_deref(), Some("_ZN5cache5Store3putEi"));
    assert_eq!(line.line, line_of(source, "void Store::put("));

    // Somewhere in `fill` is the inlined call.
    let (fill, size) = symbol(&program, "_Z4fillRN5cache5StoreE").unwrap();
    let inlined = (fill..fill + size)
        .map(|address| name_in(&mut symbolizer, &program, address))
        .find(|symbolized| symbolized.lines.len() == 2)
        .expect("an inlined call");
    assert_eq!(functions(&inlined), ["cache::Store::put_two", "fill"]);
    assert_eq!(inlined.lines[0].line, line_of(source, "always_inline"));
    assert_eq!(inlined.lines[1].line, line_of(source, "store.put_two(7)"));
}

#[test]
fn rust_names_are_demangled_and_the_raw_ones_kept() {
    let directory = scratch();
    let source = "
        mod cache { #[inline(never)] pub fn grow<T: Default>() -> Vec<T> { vec![T::default()] } }
        fn main() { std::hint::black_box(cache::grow::<u64>()); }";
    for mangling in ["v0", "legacy"] {
        let mangling_option = format!("-Csymbol-mangling-version={mangling}");
        let options = [
            "-g",
            "-Copt-level=1",
            "--edition=2021",
            "--crate-name=program",
            "-Zunstable-options",
            &mangling_option,
        ];
        // Choosing the legacy scheme needs an unstable option on newer compilers.
        let options = if mangling == "v0" {
            [&options[..4], &options[5..]].concat()
        } else {
            options[..4].to_vec()
        };
        let Some(program) = compile(directory.path(), "rustc", source, &options) else {
            return;
        };
        let bytes = fs::read(&program).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let raw = object::Object::symbols(&elf)
            .find(|symbol| object::ObjectSymbol::name(symbol).is_ok_and(|name| name.contains("4grow")))
            .unwrap();
        let grow = name_in(
            &mut Symbolizer::new(),
            &program,
            object::ObjectSymbol::address(&raw),
        );
        let line = grow.lines.last().unwrap();
        assert!(line.function.starts_with("program::cache::grow"), "{line:?}");
        assert!(!line.function.contains("::h"), "{line:?}");
        assert_eq!(line.system_name.as_deref(), object::ObjectSymbol::name(&raw).ok());
        assert_eq!(line.line, line_of(source, "mod cache"));
    }
}

#[test]
fn the_vdso_is_read_from_memory() {
    let mappings = own_mappings();
    let Some(vdso) = mappings
        .all
        .iter()
        .find(|mapping| mapping.path == Path::new("[vdso]"))
    else {
        println!("SKIPPED: no vDSO in this process");
        return;
    };
    let Backing::Image(bytes) = &vdso.backing else {
        panic!("{vdso:?}")
    };
    let elf = object::File::parse(&**bytes).unwrap();
    let clock = object::Object::dynamic_symbols(&elf)
        .find(|symbol| object::ObjectSymbol::name(symbol) == Ok("__vdso_clock_gettime"))
        .unwrap();
    let packed = frame::pack(vdso.id, object::ObjectSymbol::address(&clock) + vdso.bias, false);
    let mut symbolizer = Symbolizer::new();
    let symbols = symbolizer.symbolize(&mappings, [packed]);
    let name = &symbols.get(packed).unwrap().lines[0].function;
    assert!(
        ["__vdso_clock_gettime", "clock_gettime"].contains(&&**name),
        "{name}"
    );
    let unused = [0, 3600].map(|seconds| symbolizer.unused_for(Duration::from_secs(seconds)));
    assert_eq!(unused, [1, 0]);
}

#[test]
fn code_without_a_readable_file_has_a_place_but_no_name() {
    let mapping = |id, path: &str, backing| {
        let (begin, path) = (0x7000_0000_0000 + (u64::from(id) << 24), PathBuf::from(path));
        Arc::new(Mapping {
            id,
            begin,
            end: begin + 0x10000,
            file_offset: 0,
            bias: begin,
            path,
            build_id: None,
            file_id: (0, 0),
            backing,
            root: None,
        })
    };
    let mappings = Mappings {
        all: vec![
            mapping(0, "", Backing::Anonymous),
            mapping(
                1,
                "/app/lib\x1bx.so (deleted)",
                Backing::Unreadable("no such file".to_owned()),
            ),
            mapping(2, "[vdso]", Backing::Image(b"not an ELF image".as_slice().into())),
        ],
    };
    let frames: Vec<u64> = (0..4)
        .map(|id| frame::pack(id, 0x7000_0000_0000 + (u64::from(id) << 24) + 0x1234, true))
        .collect();
    let mut symbolizer = Symbolizer::new();
    let symbols = symbolizer.symbolize(&mappings, frames.iter().copied());
    assert_eq!(symbolizer.strings.len(), 0, "such names would pile up");
    let names: Vec<&str> = frames
        .iter()
        .map(|packed| &*symbols.get(*packed).unwrap().lines[0].function)
        .collect();
    assert_eq!(
        names,
        [
            "[anonymous code]+0x1233",
            "lib\x1bx.so+0x1233",
            "[vdso]+0x1233",
            "[unknown code]"
        ]
    );
    assert!(frames.iter().all(|packed| !symbols.get(*packed).unwrap().named));
    assert_eq!(symbols.get(frames[3]).unwrap().mapping, None);
}

/// A program with a debug file: the program is stripped and links to the file.
struct Split {
    directory: tempfile::TempDir,
    program: PathBuf,
    debug: PathBuf,
    address: u64,
}

fn split_program(build_id: &str) -> Option<Split> {
    let directory = scratch();
    let source = "static __attribute__((noinline)) int secret(int n) { asm(\"\"); return n * 3; }
        int main(int argc, char **argv) { (void)argv; return secret(argc); }";
    let program = compile(directory.path(), "cc", source, &["-O1", "-g", build_id])?;
    let (address, _) = symbol(&program, "secret")?;
    let debug = directory.path().join("program.debug");
    let run = |arguments: &[&std::ffi::OsStr]| {
        assert!(
            Command::new("objcopy")
                .args(arguments)
                .status()
                .expect("binutils")
                .success()
        );
    };
    run(&["--only-keep-debug".as_ref(), program.as_ref(), debug.as_ref()]);
    run(&["--strip-all".as_ref(), program.as_ref()]);
    run(&[
        format!("--add-gnu-debuglink={}", debug.display()).as_ref(),
        program.as_ref(),
    ]);
    Some(Split {
        directory,
        program,
        debug,
        address,
    })
}

#[test]
fn debug_files_are_found_by_build_id_and_by_link() {
    for build_id in [
        "-Wl,--build-id=0x00112233445566778899aabbccddeeff",
        "-Wl,--build-id=none",
    ] {
        let Some(split) = split_program(build_id) else {
            return;
        };
        let installed = split.directory.path().join("debug");
        let target = if build_id.ends_with("none") {
            let beside = installed.join(split.directory.path().strip_prefix("/").unwrap());
            fs::create_dir_all(&beside).unwrap();
            beside.join("program.debug")
        } else {
            fs::create_dir_all(installed.join(".build-id/00")).unwrap();
            installed.join(".build-id/00/112233445566778899aabbccddeeff.debug")
        };
        // Beside the program, where the target could have put it, it does not count.
        let before = name_in(
            &mut Symbolizer::with_debug_directories([&installed]),
            &split.program,
            split.address,
        );
        assert!(!before.named, "{before:?}");

        fs::rename(&split.debug, &target).unwrap();
        let after = name_in(
            &mut Symbolizer::with_debug_directories([&installed]),
            &split.program,
            split.address,
        );
        assert_eq!(functions(&after), ["secret"]);
        assert_eq!(after.lines[0].line, 1);

        // Others could have written it.
        fs::set_permissions(&target, fs::Permissions::from_mode(0o666)).unwrap();
        let writable = name_in(
            &mut Symbolizer::with_debug_directories([&installed]),
            &split.program,
            split.address,
        );
        assert!(!writable.named, "{writable:?}");

        // It belongs to another build.
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        let other = split_program("-Wl,--build-id=0xffffffffffffffffffffffffffffffff").unwrap();
        let mut bytes = fs::read(&other.debug).unwrap();
        bytes.push(0);
        fs::write(&target, bytes).unwrap();
        let foreign = name_in(
            &mut Symbolizer::with_debug_directories([&installed]),
            &split.program,
            split.address,
        );
        assert!(!foreign.named, "{foreign:?}");
    }
}

#[test]
fn links_in_the_targets_file_are_not_followed() {
    let directory = scratch();
    let source = "int main(void) { return 0; }";
    let Some(program) = compile(directory.path(), "cc", source, &["-O1", "-g"]) else {
        return;
    };
    let (main, _) = symbol(&program, "main").unwrap();
    let bait = directory.path().join("bait.debug");
    fs::copy(&program, &bait).unwrap();
    let renamed = ["--redefine-sym", "main=bait"];
    assert!(
        Command::new("objcopy")
            .args(renamed)
            .arg(&bait)
            .status()
            .unwrap()
            .success()
    );
    let link = format!("--add-gnu-debuglink={}", bait.display());
    assert!(
        Command::new("objcopy")
            .arg(link)
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    // The names of its own symbol table are left; its DWARF is not read, as blazesym would follow the link too.
    let named = name_in(&mut Symbolizer::new(), &program, main);
    assert_eq!(functions(&named), ["main"]);
    assert_eq!(named.lines[0].file, None);
}

#[test]
fn damaged_files_are_nameless_not_fatal() {
    let directory = scratch();
    let libc = libc_path();
    let whole = fs::read(&libc).unwrap();
    let mapping = map_code(0, 0x5555_0000_0000, &libc);
    let (malloc, _) = symbol(&libc, "malloc").unwrap();
    let damaged = directory.path().join("libc.so.6");
    for (length, step) in [
        (0, 1),
        (3, 1),
        (64, 1),
        (whole.len() / 2, 1),
        (whole.len(), 7),
        (whole.len(), 1013),
    ] {
        let mut bytes = whole[..length].to_vec();
        if step > 1 {
            // All but the identification that says it is an ELF file.
            bytes
                .iter_mut()
                .skip(64)
                .step_by(step)
                .for_each(|byte| *byte = byte.wrapping_mul(13) ^ 0x5a);
        }
        fs::write(&damaged, bytes).unwrap();
        let file = fs::File::open(&damaged).unwrap();
        let mapping = Mapping {
            backing: Backing::File(Arc::new(file)),
            ..(*mapping).clone()
        };
        let packed = frame::pack(0, malloc + mapping.bias, false);
        let mappings = Mappings {
            all: vec![Arc::new(mapping)],
        };
        let symbols = Symbolizer::with_debug_directories(NO_DEBUG_FILES).symbolize(&mappings, [packed]);
        assert_eq!(symbols.get(packed).unwrap().lines.len(), 1);
    }
}

/// A copy of a program whose section headers claim that a table, or the debug information, is a gigabyte of nothing.
fn with_a_hole(program: &Path, kind: u32) -> PathBuf {
    let mut bytes = fs::read(program).expect("the program is there");
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    // `Elf64_Ehdr`: e_shoff, e_shnum. `Elf64_Shdr`: sh_type, sh_size.
    let headers = word(&bytes, 0x28) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[0x3c], bytes[0x3d]]));
    for header in (0..count).map(|index| headers + index * 64) {
        if bytes[header + 4..header + 8] == kind.to_le_bytes() {
            bytes[header + 32..header + 40].copy_from_slice(&(24_u64 << 26).to_le_bytes());
        }
    }
    let path = program.with_extension(format!("hole{kind}"));
    fs::write(&path, &bytes).expect("there is room");
    let file = fs::File::options()
        .write(true)
        .open(&path)
        .expect("the file is there");
    file.set_len(2 << 30).expect("a hole takes no room");
    path
}

#[test]
fn a_hole_that_claims_to_be_a_table_is_not_read() {
    let directory = scratch();
    let source = "int grow(int by) { return by * 2; }\nint main(void) { return grow(21); }\n";
    let Some(program) = compile(directory.path(), "cc", source, &["-g", "-O0"]) else {
        return;
    };
    let (grow, _) = symbol(&program, "grow").expect("it has symbols");
    let named = name_in(&mut Symbolizer::new(), &program, grow);
    assert_eq!(functions(&named), ["grow"]);
    for kind in [object::elf::SHT_SYMTAB, object::elf::SHT_PROGBITS] {
        let mut image = super::elf::FunctionTable::default();
        let file = super::elf::Image::File(Arc::new(
            fs::File::open(with_a_hole(&program, kind)).expect("a file"),
        ));
        assert!(!file.facts().has_dwarf, "blazesym would read it all");
        file.add_functions(&mut image);
        image.finish();
        let name = image.find(grow);
        assert_eq!(name.is_some(), kind == object::elf::SHT_PROGBITS, "{name:?}");
    }
}
