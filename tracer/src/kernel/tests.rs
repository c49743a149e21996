//! The kernel's word on every program, also on those that no other test attaches.

use aya::{
    EbpfLoader,
    programs::{Program, ProgramError},
};

use super::{KernelError, programs::OBJECT};

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
