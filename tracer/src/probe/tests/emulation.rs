//! The kernel's own word on `kernel_rules`: what counts as emulated leaves no trace of single-stepping.
//!
//! The first instruction that a process single-steps makes the kernel map a page for the copies, `[uprobes]` in
//! `/proc/PID/maps` (`kernel/events/uprobes.c`, `xol_add_vma`). Return probes map it too; here are none.

use std::{ffi::c_int, fs::File, io::Write, os::fd::AsRawFd, process::Command};

use iced_x86::{Decoder, DecoderOptions};
use memmap2::{Mmap, MmapMut, MmapOptions};

use super::super::{
    ProbePoint,
    kernel_rules::{Handling, handling},
};
use super::kernel::{Counter, unsupported};

/// Tells the test that it is the process to be probed.
const PROBED: &str = "MEMTRACE_TEST_PROBED";
/// How often each function is called.
const CALLS: u64 = 100;
/// What each function returns.
const RESULT: c_int = 7;
/// Bytes between the begin of one function and the next.
const STRIDE: usize = 32;

/// A function that returns [`RESULT`], with a probe at the byte `at`.
struct Case {
    instruction: &'static str,
    code: &'static [u8],
    at: usize,
    emulated: bool,
}

/// Each kind of instruction that counts as emulated, and then one that no kernel emulates.
const CASES: [Case; 11] = [
    case("nop", b"\x90\xb8\x07\0\0\0\xc3", 0, true),
    case("push rbx", b"\x53\xb8\x07\0\0\0\x5b\xc3", 0, true),
    case("push r12", b"\x41\x54\xb8\x07\0\0\0\x41\x5c\xc3", 0, true),
    case(
        "je, taken, short",
        b"\x31\xc0\x74\x01\xcc\xb8\x07\0\0\0\xc3",
        2,
        true,
    ),
    case(
        "jne, not taken, short",
        b"\x31\xc0\x75\x01\x90\xb8\x07\0\0\0\xc3",
        2,
        true,
    ),
    case(
        "je, taken, near",
        b"\x31\xc0\x0f\x84\x01\0\0\0\xcc\xb8\x07\0\0\0\xc3",
        2,
        true,
    ),
    case(
        "jne, not taken, near",
        b"\x31\xc0\x0f\x85\x01\0\0\0\x90\xb8\x07\0\0\0\xc3",
        2,
        true,
    ),
    case("jmp, short", b"\xeb\x01\xcc\xb8\x07\0\0\0\xc3", 0, true),
    case("jmp, near", b"\xe9\x01\0\0\0\xcc\xb8\x07\0\0\0\xc3", 0, true),
    case("call", b"\xe8\x06\0\0\0\xb8\x07\0\0\0\xc3\xc3", 0, true),
    case("test edi, edi", b"\x85\xff\xb8\x07\0\0\0\xc3", 0, false),
];

const fn case(instruction: &'static str, code: &'static [u8], at: usize, emulated: bool) -> Case {
    Case {
        instruction,
        code,
        at,
        emulated,
    }
}

impl Case {
    /// What the planner believes of the probed instruction.
    fn handling(&self) -> Handling {
        let bytes = &self.code[self.at..];
        let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        handling(&instruction, &bytes[..instruction.len()], self.at as u64, false)
    }
}

/// The functions, in a file of their own.
struct Functions {
    file: File,
    code: Mmap,
}

impl Functions {
    fn map() -> Self {
        let mut file = tempfile::tempfile().expect("there is room for a page");
        let mut page = [0xcc; 4096];
        for (index, case) in CASES.iter().enumerate() {
            page[index * STRIDE..][..case.code.len()].copy_from_slice(case.code);
        }
        file.write_all(&page).expect("there is room for a page");
        // SAFETY: nobody else has the file, so it does not change.
        let mapped = unsafe { MmapOptions::new().map_copy(&file) };
        let code = mapped.and_then(MmapMut::make_exec).expect("code can be mapped");
        Self { file, code }
    }

    fn call(&self, index: usize) -> c_int {
        let address: *const u8 = &raw const self.code[index * STRIDE];
        // SAFETY: each function keeps to the C calling convention, takes nothing and returns an int.
        let function: extern "C" fn() -> c_int = unsafe { std::mem::transmute(address) };
        function()
    }

    /// Counts how often the probed instruction of `CASES[index]` is passed by [`CALLS`] calls; `None` when this machine
    /// does not allow it.
    fn count(&self, index: usize) -> Option<u64> {
        let offset = (index * STRIDE + CASES[index].at) as u64;
        let point = ProbePoint {
            file_offset: offset,
            vaddr: offset,
            function_offset: 0,
            instruction: CASES[index].instruction.to_owned(),
            emulated: CASES[index].emulated,
        };
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        // SAFETY: gettid takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        let counter = match Counter::attach(&path, &point, false, thread) {
            Ok(counter) => counter,
            Err(error) if index == 0 && unsupported(&error) => {
                println!("SKIPPED: uprobes through perf_event_open: {error}");
                return None;
            }
            Err(error) => panic!("the kernel refuses {}: {error}", CASES[index].instruction),
        };
        for _ in 0..CALLS {
            assert_eq!(self.call(index), RESULT, "{}", CASES[index].instruction);
        }
        Some(counter.read())
    }
}

fn has_single_stepped() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("a process can read its own maps");
    maps.lines().any(|line| line.ends_with("[uprobes]"))
}

fn probe_everything() {
    let functions = Functions::map();
    for (index, case) in CASES.iter().enumerate() {
        let Some(count) = functions.count(index) else {
            return;
        };
        assert_eq!(count, CALLS, "{}", case.instruction);
        assert_eq!(has_single_stepped(), !case.emulated, "{}", case.instruction);
        println!("{}: as the rules say", case.instruction);
    }
}

#[test]
fn the_kernel_emulates_what_the_rules_say() {
    for case in &CASES {
        let expected = if case.emulated {
            Handling::Emulated
        } else {
            Handling::SingleStepped
        };
        assert_eq!(case.handling(), expected, "{}", case.instruction);
    }
    if std::env::var_os(PROBED).is_some() {
        return probe_everything();
    }
    // In a process of its own: the page stays, and other tests run at the same time.
    let (_, module) = module_path!().split_once("::").expect("in a crate");
    let name = format!("{module}::the_kernel_emulates_what_the_rules_say");
    let output = Command::new(std::env::current_exe().expect("a test knows its executable"))
        .args(["--exact", "--nocapture", &name])
        .env(PROBED, "1")
        .output()
        .expect("the test executable runs");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
