//! The runtime's variables in real processes, compared with the symbol table.

use std::fs::{self, File};

use object::{Object, ObjectSymbol};

use super::fixtures::{self, Fixture, Mode};
use super::open;
use super::process::Running;
use crate::go::image::Image;
use crate::go::variables::Locations;
use crate::go::{Memory, Variables, read_u64};
use crate::target::FileBytes;

/// The variables as the symbol table has them.
fn expected(fixture: &Fixture, bias: u64) -> Variables {
    let bytes = fs::read(&fixture.path).expect("the program is there");
    let elf = object::File::parse(&*bytes).expect("it is an ELF file");
    let address = |name: &str| {
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name));
        Some(symbol.expect("it is there").address() + bias)
    };
    Variables {
        mbuckets: address("runtime.mbuckets"),
        mprof_cycle: address("runtime.mProfCycle"),
        mem_profile_rate: address("runtime.MemProfileRate"),
        allgs: address("runtime.allgs"),
        allm: address("runtime.allm"),
    }
}

fn words(variables: Variables) -> [u64; 5] {
    let Variables {
        mbuckets,
        mprof_cycle,
        mem_profile_rate,
        allgs,
        allm,
    } = variables;
    [mbuckets, mprof_cycle, mem_profile_rate, allgs, allm].map(|address| address.expect("it was found"))
}

#[test]
fn variables_are_those_of_the_symbol_table() {
    for fixture in fixtures::all() {
        for path in [&fixture.path].into_iter().chain(&fixture.stripped) {
            let (running, binary) = (Running::start(path), open(path));
            let bias = running.main - binary.table().find("main.main").expect("it is there").start;
            let variables = binary.variables(&running, bias).expect("memory is readable");
            let moved = words(variables)[0].wrapping_sub(words(expected(fixture, bias))[0]);
            let expected = words(expected(fixture, bias)).map(|address| address.wrapping_add(moved));
            assert_eq!(words(variables), expected, "{}", path.display());
            // Without debug information the linker needs less space before the data.
            assert!(moved == 0 || path.to_string_lossy().ends_with("-sw"));
            let word = |address: Option<u64>| {
                read_u64(&running, address.expect("it was found")).expect("memory is readable")
            };
            let is_profiled = matches!(fixture.mode, Mode::Cgo | Mode::CgoPie);
            let rate = word(variables.mem_profile_rate);
            assert_eq!(
                rate,
                if is_profiled { 512 * 1024 } else { 0 },
                "{}",
                path.display()
            );
            // With rate 0 there may be a bucket from before the runtime switched the profile off.
            assert!(
                !is_profiled || word(variables.mbuckets) != 0,
                "{}",
                path.display()
            );
            assert!(word(variables.mprof_cycle) as u32 >> 1 > 0, "after a collection");
        }
    }
}

#[test]
fn symbols_and_references_agree() {
    for fixture in fixtures::all() {
        let file = File::open(&fixture.path).expect("the program is there");
        let cache = FileBytes::new(&file);
        let image = Image::parse(&file, &cache).expect("it is an ELF file");
        let table = open(&fixture.path).table();
        let referred = Locations::by_reference(&image, &table);
        assert_eq!(referred, Locations::by_symbol(&image), "{fixture:?}");
        assert_ne!(referred, Locations::default());
    }
}

/// Memory of zeros, as it is before the runtime has begun.
struct Zeros;

impl Memory for Zeros {
    fn read(&self, _address: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
}

/// Memory in which no pointer makes sense.
struct Noise;

impl Memory for Noise {
    fn read(&self, address: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let noise = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63;
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = noise.to_le_bytes()[index % 8];
        }
        Ok(())
    }
}

#[test]
fn what_contradicts_memory_is_not_used() {
    let Some(fixture) = fixtures::all().last() else {
        return;
    };
    let binary = open(&fixture.path);
    let untouched = binary.variables(&Zeros, 0).expect("memory is readable");
    assert_eq!(untouched, expected(fixture, 0));
    let noise = binary.variables(&Noise, 0).expect("memory is readable");
    let pointers = (noise.mbuckets, noise.allgs, noise.allm, noise.mem_profile_rate);
    assert_eq!(pointers, (None, None, None, None));
}
