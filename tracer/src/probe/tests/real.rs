//! Plans for the libraries of this machine, checked against a decoding of their own.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSymbol};

use super::super::{ExitPoint, Plan, Site, plan};
use super::Unchanged;

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
const JEMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
const MUSL: &str = "/usr/lib/x86_64-linux-musl/libc.so";
const TCMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";
const MIMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBSTDCXX: &str = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";

/// `None`, with the reason printed, when the machine lacks the file.
fn plan_file(path: &str) -> Option<(Vec<u8>, Plan)> {
    let Ok(image) = std::fs::read(path) else {
        println!("SKIPPED: no {path} on this machine");
        return None;
    };
    let plan = plan(image.as_slice(), &Unchanged(&image)).expect("a system library parses");
    Some((image, plan))
}

/// Decodes the function from its symbol on; instruction by virtual address.
fn linear_decode(image: &[u8], symbol: &str) -> BTreeMap<u64, (Instruction, Vec<u8>)> {
    let file = object::File::parse(image).expect("a system library parses");
    let mut symbols = file.dynamic_symbols();
    let symbol = symbols.find(|known| known.name() == Ok(symbol) && known.is_definition());
    let symbol = symbol.expect("the plan names a symbol of the image");
    let mut bytes = vec![0; usize::try_from(symbol.size()).expect("a function fits in memory")];
    super::super::CodeReader::read(&Unchanged(image), symbol.address(), &mut bytes)
        .expect("code is in the file");
    let mut decoder = Decoder::with_ip(64, &bytes, symbol.address(), DecoderOptions::NONE);
    let mut instructions = BTreeMap::new();
    while decoder.can_decode() {
        let begin = decoder.position();
        let instruction = decoder.decode();
        instructions.insert(
            instruction.ip(),
            (instruction, bytes[begin..decoder.position()].to_vec()),
        );
    }
    instructions
}

/// The kernel's rule, written a second time and by opcode only.
fn kernel_emulates(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0x50..=0x57 | 0x90]
            | [0x41, 0x50..=0x57]
            | [0x70..=0x7f | 0xeb, _]
            | [0xe8 | 0xe9, _, _, _, _]
            | [0x0f, 0x80..=0x8f, _, _, _, _]
    )
}

fn check_sites(path: &str) {
    let Some((image, plan)) = plan_file(path) else {
        return;
    };
    for site in &plan.sites {
        println!("{path}: {}", site.why);
        let code = linear_decode(&image, &site.symbol);
        let entry = &site.entry;
        let (_, bytes) = code
            .get(&entry.vaddr)
            .unwrap_or_else(|| panic!("{}: not an instruction", site.why));
        assert_eq!(kernel_emulates(bytes), entry.emulated, "{}", site.why);
        assert!(entry.emulated || entry.function_offset == 0, "{}", site.why);
        let offset = usize::try_from(entry.file_offset).expect("the file fits in memory");
        assert_eq!(
            &image[offset..offset + bytes.len()],
            bytes.as_slice(),
            "{}",
            site.why
        );
        let seen_elsewhere = site.shape.is_free() || site.is_probed_at_exits();
        assert_eq!(site.returns.is_none(), seen_elsewhere);
        let at_ret = |exit: &ExitPoint| exit.returns && exit.point.instruction == "ret";
        let fits = |exit: &ExitPoint| exit.point.emulated != at_ret(exit);
        assert!(site.exits.iter().all(fits), "{}: {:?}", site.why, site.exits);
        assert!(
            site.returns
                .as_ref()
                .is_none_or(|returns| returns.point() == entry)
        );
    }
    for note in &plan.notes {
        println!("{path}: note: {note}");
    }
}

#[test]
fn every_site_is_an_instruction_that_the_kernel_treats_as_planned() {
    for path in [LIBC, JEMALLOC, TCMALLOC, MIMALLOC, MUSL, LOADER, LIBSTDCXX] {
        check_sites(path);
    }
}

/// An exception that passes a function with a return probe ends the process.
#[test]
fn functions_that_throw_have_no_return_probe() {
    for path in [JEMALLOC, TCMALLOC, MIMALLOC] {
        let Some((_, plan)) = plan_file(path) else {
            continue;
        };
        let throws = |name: &str| name.starts_with("_Zn") && !name.contains("nothrow");
        let site = plan.sites.iter().find(|site| throws(&site.symbol));
        let site = site.unwrap_or_else(|| panic!("{path}: no operator new: {:?}", plan.notes));
        assert!(
            site.is_probed_at_exits() && !site.exits.is_empty(),
            "{path}: {}",
            site.why
        );
        for site in &plan.sites {
            assert!(
                !(throws(&site.symbol) && site.returns.is_some()),
                "{path}: {}",
                site.why
            );
        }
    }
}

/// The symbols whose site is emulated, and those whose site is single-stepped.
fn coverage(path: &str) -> Option<(Vec<String>, Vec<String>)> {
    let (_, plan) = plan_file(path)?;
    let (emulated, stepped): (Vec<Site>, Vec<Site>) =
        plan.sites.into_iter().partition(|site| site.entry.emulated);
    let symbols = |sites: Vec<Site>| sites.into_iter().map(|site| site.symbol).collect();
    Some((symbols(emulated), symbols(stepped)))
}

#[test]
fn glibc_is_covered_and_only_reallocarray_is_single_stepped() {
    let Some((emulated, stepped)) = coverage(LIBC) else {
        return;
    };
    assert_eq!(stepped, ["reallocarray"]);
    // memalign and aligned_alloc are one function in glibc before 2.38.
    for name in [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "posix_memalign",
        "aligned_alloc",
        "valloc",
        "pvalloc",
    ] {
        assert!(emulated.iter().any(|symbol| symbol == name), "{name} has no site");
    }
}

#[test]
fn jemalloc_is_covered_by_emulated_sites() {
    let Some((emulated, stepped)) = coverage(JEMALLOC) else {
        return;
    };
    assert!(stepped.is_empty(), "{stepped:?}");
    for name in [
        "malloc", "free", "realloc", "calloc", "mallocx", "rallocx", "xallocx", "sdallocx", "_Znwm",
    ] {
        assert!(emulated.iter().any(|symbol| symbol == name), "{name} has no site");
    }
}

#[test]
fn libraries_without_an_allocator_have_an_empty_plan() {
    for path in [LOADER, LIBSTDCXX] {
        if let Some((_, plan)) = plan_file(path) {
            assert_eq!(plan, Plan::default(), "{path}");
        }
    }
}
