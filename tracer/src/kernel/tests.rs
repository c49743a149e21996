//! The kernel's word on every program, also on those that no other test attaches; and what becomes of full tables.

use aya::{
    EbpfLoader,
    programs::{Program, ProgramError},
};

use memtrace_ebpf::{
    handles::classes,
    unwind::{CfaKind, Page, Row},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::{FileTable, KernelError, Limits, Programs, TableRoom, programs::OBJECT, tables::Tables};
use crate::{
    target::{Backing, Mapping},
    unwind::{TableStats, UnwindTable},
};

/// Loads the program, if it is of a kind that memtrace has.
fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::UProbe(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        other => panic!("this test does not know how to load {other:?}"),
    }
}

/// What the kernel says, and the end of the verifier's log, where the reason is.
fn reason(error: &ProgramError) -> String {
    const LINES: usize = 30;
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return error.to_string();
    };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(LINES)..].join("\n    ");
    format!("{io_error}\n    {tail}")
}

#[test]
fn every_program_is_accepted() {
    let mut ebpf = match EbpfLoader::new().load(OBJECT) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            let error = KernelError::from(error);
            assert!(error.is_privilege(), "the maps are refused: {error:?}");
            println!("SKIPPED: loading eBPF programs: {error}");
            return;
        }
    };
    let mut refused = Vec::new();
    let mut accepted = 0;
    for (name, program) in ebpf.programs_mut() {
        match load(program) {
            Ok(()) => {
                accepted += 1;
                let count = program
                    .info()
                    .ok()
                    .and_then(|info| info.verified_instruction_count());
                println!("accepted {name}: {} instructions followed", count.unwrap_or(0));
            }
            Err(error) => refused.push(format!("{name}: {}", reason(&error))),
        }
    }
    println!("{accepted} programs accepted");
    assert!(refused.is_empty(), "refused:\n{}", refused.join("\n"));
    assert!(accepted >= 10, "the object has only {accepted} programs");
}

/// A table with so many rows that all say the same.
fn table(rows: usize) -> UnwindTable {
    UnwindTable {
        rows: vec![Row::of_kind(0, CfaKind::Unsupported); rows],
        pages: vec![Page {
            start: 0,
            count: rows as u32,
        }],
        base_page: 0,
        stats: TableStats::default(),
    }
}

fn mapping(id: u16) -> Mapping {
    let begin = u64::from(id) << 32;
    Mapping {
        id,
        begin,
        end: begin + 0x1000,
        file_offset: 0,
        bias: 0,
        path: "library".into(),
        build_id: None,
        file_id: (1, u64::from(id)),
        backing: Backing::Anonymous,
        root: None,
    }
}

/// As in a program that loads and unloads ever new libraries.
#[test]
fn tables_that_nobody_uses_make_room() {
    let limits = Limits {
        blocks: 16,
        threads: 16,
        processes: 16,
        stacks: 16,
        fds: 16,
        tables: TableRoom {
            rows: 100,
            pages: 8,
            prefixes: 64,
        },
    };
    let mut programs = match Programs::load(&limits, false, classes::HEAP) {
        Ok(programs) => programs,
        Err(error) => {
            assert!(error.is_privilege(), "the programs are refused: {error:?}");
            println!("SKIPPED: loading eBPF programs: {error}");
            return;
        }
    };
    let tables = programs.tables();
    let mut evicted = Vec::new();
    let add = |tables: &mut Tables, rows, keep, evicted: &mut Vec<FileTable>| {
        tables.add_file(&table(rows), keep, evicted)
    };
    let kept = add(tables, 30, true, &mut evicted).expect("there is room for the first");
    let used = add(tables, 30, false, &mut evicted).expect("and for the second");
    let idle = add(tables, 30, false, &mut evicted).expect("and for the third");
    tables.add_mapping(1, &mapping(1), used).expect("there is room");
    tables.add_mapping(1, &mapping(2), idle).expect("there is room");
    tables.remove_mapping(1, 2);
    assert!(
        add(tables, 30, false, &mut evicted).is_none(),
        "a walk may still be in it"
    );
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let next = add(tables, 30, false, &mut evicted).expect("the third makes room");
    assert!(evicted.iter().any(|table| table.is_same(idle)));
    assert!(
        !evicted
            .iter()
            .any(|table| table.is_same(used) || table.is_same(kept))
    );
    assert!(!next.is_same(used) && !next.is_same(kept));
    assert!(!tables.forget_file(used), "a mapping uses it");
    assert!(!tables.forget_file(next), "it is new");
    assert!(tables.forget_file(kept), "nothing uses it");
    assert!(
        add(tables, 30, false, &mut evicted).is_some_and(|table| table.is_same(kept)),
        "its place is used again"
    );
}

/// `BPF_JMP | BPF_CALL` (`include/uapi/linux/bpf_common.h`).
const CALL: u8 = 0x85;
/// `BPF_FUNC_tail_call` (`include/uapi/linux/bpf.h`).
const TAIL_CALL: u32 = 12;
/// The register that points to a program's stack.
const FRAME_POINTER: u8 = 10;

/// Opcode, registers, immediate.
type Instruction = (u8, u8, u32);

/// Every program in the sections for uprobes, by name.
fn uprobe_programs() -> Vec<(String, Vec<Instruction>)> {
    let object = object::File::parse(OBJECT).expect("the object was just built");
    let functions = object
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
    let in_uprobe_section = functions.filter_map(|symbol| {
        let section = object.section_by_index(symbol.section_index()?).ok()?;
        let name = section.name().ok()?;
        if !name.starts_with("uprobe") && !name.starts_with("uretprobe") {
            return None;
        }
        let begin = symbol.address() as usize;
        let code = &section.data().ok()?[begin..begin + symbol.size() as usize];
        let instructions = code
            .chunks_exact(8)
            .map(|i| (i[0], i[1], u32::from_le_bytes([i[4], i[5], i[6], i[7]])));
        Some((symbol.name().ok()?.to_owned(), instructions.collect()))
    });
    in_uprobe_section.collect()
}

/// Without it the kernel may give the program a private stack per CPU, which a preempted program corrupts.
#[test]
fn every_uprobe_program_has_a_tail_call_or_no_stack() {
    let programs = uprobe_programs();
    assert!(programs.len() >= 10, "found only {}", programs.len());
    for (name, instructions) in programs {
        let tail_call = instructions.contains(&(CALL, 0, TAIL_CALL));
        let stack = instructions
            .iter()
            .any(|&(_, registers, _)| registers & 15 == FRAME_POINTER || registers >> 4 == FRAME_POINTER);
        assert!(
            tail_call || !stack,
            "{name} uses its stack and contains no tail call"
        );
    }
}
