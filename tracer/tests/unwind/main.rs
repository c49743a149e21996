//! The walker and the unwind tables on real stacks, compared with framehop frame by frame.

mod debuggee;
mod oracle;
mod walker;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use memtrace_ebpf::{
    layout::{EndReason, MAX_FRAMES},
    unwind::CfaKind,
};
use object::{Object as _, ObjectSymbol as _};
use tempfile::TempDir;

use debuggee::{Debuggee, Registers};
use oracle::Oracle;
use walker::{Code, NativeTables, Walked, walk};

/// Each shape of `program.c`, and a kind of row that its stack must lead through.
const SHAPES: [(&str, CfaKind); 10] = [
    ("recurse", CfaKind::Sp),
    ("alloca", CfaKind::Fp),
    ("array", CfaKind::Fp),
    ("realigned", CfaKind::DerefFp),
    ("library", CfaKind::Sp),
    ("qsort", CfaKind::Sp),
    ("signal", CfaKind::Signal),
    ("signal-stack", CfaKind::Signal),
    ("signal-at-start", CfaKind::Signal),
    ("thread", CfaKind::End),
];

/// The test program, built.
struct Program {
    path: PathBuf,
    _dir: TempDir,
}

impl Program {
    /// Builds `program.c` and its library; `None`, with a note, on a machine without a C compiler.
    fn build(optimization: &str) -> Option<Self> {
        if Command::new("cc").arg("--version").output().is_err() {
            println!("SKIPPED: no cc on this machine");
            return None;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unwind");
        let dir = TempDir::new().expect("a temporary directory can be made");
        let (path, library) = (dir.path().join("program"), dir.path().join("liblibrary.so"));
        let compile = |output: &Path, input: &str, arguments: &[&str]| {
            let status = Command::new("cc")
                .args([
                    "-g",
                    "-fomit-frame-pointer",
                    "-fno-optimize-sibling-calls",
                    "-Wl,-z,lazy",
                ])
                .args([optimization, "-o"])
                .args([output, &source.join(input)])
                .args(arguments)
                .status()
                .expect("cc starts");
            assert!(status.success(), "cannot build {input}");
        };
        compile(&library, "library.c", &["-shared", "-fPIC"]);
        let directory = dir
            .path()
            .to_str()
            .expect("temporary directories have UTF-8 names");
        let run_path = format!("-Wl,-rpath,{directory}");
        compile(
            &path,
            "program.c",
            &["-pthread", "-L", directory, "-llibrary", &run_path],
        );
        Some(Self { path, _dir: dir })
    }

    fn start(&self, shape: &str, depth: usize) -> (Debuggee, Registers) {
        let mut debuggee =
            Debuggee::start(&self.path, &[shape, &depth.to_string()]).expect("the test program starts");
        let registers = debuggee
            .run_to_breakpoint()
            .expect("the test program reaches its breakpoint");
        (debuggee, registers)
    }
}

/// The process's code, for the walker and for the oracle.
struct Both {
    code: Vec<Code>,
    tables: NativeTables,
    oracle: Oracle,
}

impl Both {
    fn of(debuggee: &Debuggee) -> Self {
        let code = Code::of(debuggee);
        Self {
            tables: NativeTables::of(&code),
            oracle: Oracle::of(&code),
            code,
        }
    }

    /// What `_Unwind_Backtrace` found before the breakpoint in `end`, innermost first.
    fn found_by_gcc(&self, debuggee: &Debuggee) -> Vec<u64> {
        let program = &self.code[0];
        let file = object::File::parse(&*program.data).expect("the test program is ELF");
        let address = |name| {
            let symbol = file.symbol_by_name(name).expect("the test program defines it");
            symbol.address() + program.bias
        };
        let read = |address| {
            debuggee
                .read_u64(address)
                .expect("the test program's data is readable")
        };
        let (first, length) = (address("unwound"), read(address("unwound_length")));
        (0..length).map(|i| read(first + 8 * i)).collect()
    }

    /// The function at each address, for messages.
    fn names(&self, frames: &[u64]) -> Vec<String> {
        frames.iter().map(|&address| self.name(address)).collect()
    }

    fn name(&self, address: u64) -> String {
        let Some(code) = self
            .code
            .iter()
            .find(|code| (code.mapped.begin..code.mapped.end).contains(&address))
        else {
            return format!("{address:#x}");
        };
        let vaddr = address.wrapping_sub(code.bias);
        let file = object::File::parse(&*code.data).expect("mapped code is ELF");
        let symbol = file
            .symbols()
            .chain(file.dynamic_symbols())
            .filter(|symbol| symbol.is_definition() && symbol.address() <= vaddr)
            .max_by_key(|symbol| symbol.address());
        let module = code.mapped.name.rsplit('/').next().unwrap_or_default();
        match symbol.filter(|symbol| symbol.address() + symbol.size().max(1) > vaddr) {
            Some(symbol) => format!("{module}!{}", symbol.name().unwrap_or("?")),
            None => format!("{module}+{vaddr:#x}"),
        }
    }
}

/// Walks one stack and compares it with GCC's own unwinder, and with framehop where that can follow.
fn compare_shape(program: &Program, shape: &str, depth: usize, kind: CfaKind) {
    let (debuggee, registers) = program.start(shape, depth);
    let mut both = Both::of(&debuggee);
    let ours = walk(&debuggee, &both.tables, registers);
    let context = format!("{shape} at depth {depth}, ended by {:?}", ours.reason);
    let gcc = both.found_by_gcc(&debuggee);
    assert_eq!(
        both.names(&ours.frames[1..]),
        both.names(&gcc[1..]),
        "{context}, GCC's unwinder"
    );
    // Both are in `end`, at different instructions.
    assert_eq!(ours.frames[1..], gcc[1..], "{context}, GCC's unwinder");
    // framehop does not evaluate a CFA expression that reads memory.
    if kind != CfaKind::DerefFp {
        let framehop = both.oracle.walk(&debuggee, registers);
        assert_eq!(
            both.names(&ours.frames),
            both.names(&framehop),
            "{context}, framehop"
        );
        assert_eq!(ours.frames, framehop, "{context}, framehop");
    }
    assert_eq!(ours.reason, EndReason::Complete, "{context}");
    assert!(
        ours.frames.len() > depth,
        "{context}: only {} frames",
        ours.frames.len()
    );
    assert!(both.tables.met(kind as u8), "{context}: met no row of {kind:?}");
    let outermost = both.name(ours.frames[ours.frames.len() - 1]);
    let expected = if shape == "thread" {
        "libc.so.6"
    } else {
        "program!_start"
    };
    assert!(
        outermost.starts_with(expected),
        "{context}: {outermost} is the outermost"
    );
}

fn compare_shapes(optimization: &str) {
    let Some(program) = Program::build(optimization) else {
        return;
    };
    for (shape, kind) in SHAPES {
        for depth in [5, 60] {
            compare_shape(&program, shape, depth, kind);
        }
    }
}

#[test]
fn stacks_of_unoptimized_code() {
    compare_shapes("-O0");
}

#[test]
fn stacks_of_optimized_code() {
    compare_shapes("-O2");
}

#[test]
fn a_stack_deeper_than_the_limit_keeps_its_innermost_frames() {
    let Some(program) = Program::build("-O2") else {
        return;
    };
    let (debuggee, registers) = program.start("recurse", 200);
    let both = Both::of(&debuggee);
    let ours = walk(&debuggee, &both.tables, registers);
    assert_eq!(ours.reason, EndReason::TooDeep);
    assert_eq!(ours.frames.len(), MAX_FRAMES);
    assert_eq!(ours.frames[1..], both.found_by_gcc(&debuggee)[1..MAX_FRAMES]);
}

/// The comparisons must be able to fail.
#[test]
fn damaged_tables_are_noticed() {
    let Some(program) = Program::build("-O2") else {
        return;
    };
    let (debuggee, registers) = program.start("recurse", 5);
    let mut both = Both::of(&debuggee);
    both.tables.damage();
    let ours = walk(&debuggee, &both.tables, registers);
    assert_ne!(ours.frames[1..], both.found_by_gcc(&debuggee)[1..]);
    assert_ne!(ours.frames, both.oracle.walk(&debuggee, registers));
}

/// What differed at one instruction: where, and how our walk ended.
type Differences = BTreeMap<(String, String), usize>;

/// Executes `steps` one instruction at a time and compares at each: prologues, epilogues, lazy binding, the vDSO.
fn compare_every_instruction(optimization: &str) -> Option<(usize, Differences)> {
    let program = Program::build(optimization)?;
    let (mut debuggee, mut registers) = program.start("steps", 2);
    let mut both = Both::of(&debuggee);
    let mut differences = Differences::new();
    let mut compared = 0;
    loop {
        let mut instruction = [0];
        debuggee
            .read(registers.pc, &mut instruction)
            .expect("code is readable");
        if instruction == [0xcc] {
            break;
        }
        let ours = walk(&debuggee, &both.tables, registers);
        let theirs = both.oracle.walk(&debuggee, registers);
        if ours.frames != theirs || ours.reason != EndReason::Complete {
            let where_ended = ours
                .frames
                .last()
                .map_or_else(String::new, |&address| both.name(address));
            *differences
                .entry((where_ended, describe(&ours, &theirs)))
                .or_default() += 1;
        }
        compared += 1;
        registers = debuggee.step().expect("the test program goes on");
    }
    Some((compared, differences))
}

fn describe(ours: &Walked, theirs: &[u64]) -> String {
    let agree = theirs.get(..ours.frames.len()) == Some(&ours.frames);
    format!(
        "{:?}, frames so far {}",
        ours.reason,
        if agree { "agree" } else { "differ" }
    )
}

/// The lazy binder, `_dl_runtime_resolve`, aligns its stack and keeps the CFA in `rbx`, which rows do not follow.
fn is_expected(function: &str, description: &str) -> bool {
    function.starts_with("ld-linux") && description == "UnsupportedRule, frames so far agree"
}

fn check_every_instruction(optimization: &str) {
    let Some((compared, differences)) = compare_every_instruction(optimization) else {
        return;
    };
    println!("{compared} instructions at {optimization}, differences: {differences:#?}");
    assert!(compared > 10_000, "only {compared} instructions");
    let unexpected: Vec<_> = differences
        .iter()
        .filter(|((function, description), _)| !is_expected(function, description))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

#[test]
fn every_instruction_of_unoptimized_code() {
    check_every_instruction("-O0");
}

#[test]
fn every_instruction_of_optimized_code() {
    check_every_instruction("-O2");
}
