//! Functions, lines, inlined calls and frames of real programs, compared with what others say.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use gimli::{BaseAddresses, CfaRule, DebugFrame, LittleEndian, Register, UnwindContext, UnwindSection};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use super::fixtures::{self, Fixture, Mode};
use super::open;
use super::process::Running;
use crate::go::{GoBinary, GoFrame};

#[test]
fn versions_are_those_of_the_toolchains() {
    for fixture in fixtures::all() {
        for path in [&fixture.path].into_iter().chain(&fixture.stripped) {
            let binary = open(path);
            assert!(binary.version_text().starts_with(fixture.toolchain));
            let version = format!("go{}.{}", binary.version().major, binary.version().minor);
            assert!(fixture.toolchain.starts_with(&version));
        }
    }
    let this = File::open("/proc/self/exe").expect("it is there");
    assert!(matches!(GoBinary::open(&this), Ok(None)));
}

#[test]
fn functions_are_those_of_the_symbol_table() {
    for fixture in fixtures::all() {
        let symbols = symbols(fixture);
        for path in [&fixture.path].into_iter().chain(&fixture.stripped) {
            let table = open(path).table();
            let entries: Vec<_> = table.entries().collect();
            assert!(entries.is_sorted() && entries.len() > 1000);
            for entry in entries {
                let Some(names) = symbols.get(&entry) else {
                    panic!("{}: {entry:#x} has no symbol", path.display());
                };
                let function = table.frames(entry).pop().expect("it is covered").function;
                // The linker writes the middle dot as a full stop.
                let function = function.replace('·', ".");
                let is_so = |name: &String| {
                    let printed = printed_name(name);
                    function == **name || (fixture.toolchain == "go1.19" && function == *printed)
                };
                assert!(names.iter().any(is_so), "{names:?} {function}");
                assert_eq!(table.entry(entry + 1).unwrap_or(entry), entry);
            }
            let main = table.find("main.main").expect("it is there");
            assert!(symbols[&main.start].contains(&"main.main".to_owned()));
            assert!(
                table
                    .frames(main.end - 1)
                    .iter()
                    .any(|frame| &*frame.function == "main.main")
            );
            assert_eq!(table.frames(0), []);
            assert_eq!(table.frames(u64::MAX), []);
        }
    }
}

#[test]
fn lines_are_those_of_addr2line() {
    for fixture in fixtures::all()
        .iter()
        .filter(|fixture| fixture.mode == Mode::Default)
    {
        let table = open(&fixture.path).table();
        let entries: Vec<_> = table.entries().collect();
        let middles = entries.windows(2).map(|pair| pair[0] + (pair[1] - pair[0]) / 2);
        let addresses: Vec<_> = middles
            .step_by(3)
            .chain(entries.iter().copied().step_by(7))
            .collect();
        let said = addr2line(fixture, &addresses);
        assert_eq!(said.len(), addresses.len());
        for (address, (function, place)) in addresses.iter().zip(said) {
            let frames = table.frames(*address);
            let (first, last) = (&frames[0], &frames[frames.len() - 1]);
            assert_eq!(*last.function, *function, "{address:#x}");
            let place = if place.starts_with(":-") { "?:0" } else { &place };
            assert_eq!(format!("{}:{}", first.file, first.line), place, "{address:#x}");
            assert_eq!(table.innermost(*address).as_ref(), Some(first));
        }
    }
}

#[test]
fn inlined_calls_are_those_that_the_program_sees() {
    for fixture in fixtures::all() {
        let running = Running::start(&fixture.stripped[0]);
        let binary = open(&fixture.stripped[0]);
        let table = binary.table();
        let main = table.find("main.main").expect("it is there").start;
        let bias = running.main - main;
        assert!(bias.is_multiple_of(4096) && (bias != 0) == fixture.is_pie());
        let mut longest = 0;
        for stack in &running.stacks {
            for (index, said) in stack.iter().enumerate() {
                let frames = table.frames(said.pc - 1 - bias);
                longest = longest.max(frames.len());
                assert!(!frames.is_empty());
                let rest = stack[index..].iter();
                let rest = rest.map(|said| (said.function.as_str(), said.file.as_str(), said.line));
                let expanded = frames.iter().filter(|frame| !frame.is_wrapper);
                let expanded =
                    expanded.map(|frame| (printed_name(&frame.function), &*frame.file, frame.line));
                let pairs: Vec<_> = expanded.zip(rest).collect();
                assert!(
                    pairs
                        .iter()
                        .all(|((name, file, line), theirs)| (&**name, *file, *line) == *theirs),
                    "{fixture:?} {pairs:#?}"
                );
            }
        }
        assert!(longest >= 3, "{longest} calls inlined into one another");
        check_wrappers_and_beginnings(&binary);
    }
}

/// `(*derived).visit` is a method that the compiler makes.
fn check_wrappers_and_beginnings(binary: &GoBinary) {
    let table = binary.table();
    let named = |name: &str| -> GoFrame {
        let entry = table.find(name).expect("it is there").start;
        table.frames(entry).pop().expect("it is covered")
    };
    let (wrapper, main) = (named("main.(*derived).visit"), named("main.main"));
    assert!(wrapper.is_wrapper && !main.is_wrapper);
    let is_outermost = |name: &str| table.is_outermost(table.find(name).expect("it is there").start);
    assert!(is_outermost("runtime.goexit") && is_outermost("runtime.mstart"));
    assert!(!is_outermost("main.main") && !table.is_outermost(0));
    let source = include_str!("program/main.go");
    let line = source.lines().position(|line| line.starts_with("func main()"));
    let line = line.map_or(0, |line| line as u32 + 1);
    assert_eq!(
        main.start_line,
        if binary.version().minor < 20 { 0 } else { line }
    );
}

#[test]
fn frame_sizes_are_those_of_the_debug_information() {
    for fixture in fixtures::all() {
        let table = open(&fixture.path).table();
        let bytes = fs::read(&fixture.path).expect("the program is there");
        let elf = object::File::parse(&*bytes).expect("it is an ELF file");
        let section = elf
            .section_by_name(".debug_frame")
            .expect("it has debug information");
        let section = section.uncompressed_data().expect("it can be read");
        let mut debug_frame = DebugFrame::new(&section, LittleEndian);
        debug_frame.set_address_size(8);
        let (bases, mut context, mut compared) = (BaseAddresses::default(), UnwindContext::new(), 0);
        let mut entries = debug_frame.entries(&bases);
        while let Some(entry) = entries.next().expect("it is well formed") {
            let gimli::CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let entry = partial
                .parse(DebugFrame::cie_from_offset)
                .expect("it is well formed");
            let mut rows = entry
                .rows(&debug_frame, &bases, &mut context)
                .expect("it has rows");
            while let Some(row) = rows.next_row().expect("it is well formed") {
                let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else {
                    continue;
                };
                let address = row.start_address();
                let is_go = table.entry(address).is_some();
                if register != Register(7) || !is_go || row.end_address() == address {
                    continue;
                }
                compared += 1;
                let size = table.frame_size(address);
                // Negative in `rawVforkSyscall`, which keeps the return address in a register.
                assert_eq!(size, u32::try_from(offset - 8).ok(), "{fixture:?} {address:#x}");
            }
        }
        assert!(compared > 2000, "{compared}");
    }
}

#[test]
fn lookups_are_fast() {
    for fixture in fixtures::all()
        .iter()
        .filter(|fixture| fixture.mode == Mode::Default)
    {
        let table = open(&fixture.path).table();
        let entries: Vec<_> = table.entries().collect();
        let start = Instant::now();
        let frames: usize = (0..20_000)
            .map(|index| table.frames(entries[index % entries.len()] + 8).len())
            .sum();
        let elapsed = start.elapsed();
        println!(
            "{}: 20,000 lookups, {frames} frames: {elapsed:?}",
            fixture.toolchain
        );
        assert!(elapsed.as_secs() < 5, "{elapsed:?}");
    }
}

/// The names of every function in the symbol table, by address. Go appends the ABI to names that two functions have.
fn symbols(fixture: &Fixture) -> HashMap<u64, Vec<String>> {
    let bytes = fs::read(&fixture.path).expect("the program is there");
    let elf = object::File::parse(&*bytes).expect("it is an ELF file");
    let mut names: HashMap<u64, Vec<String>> = HashMap::new();
    for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let name = symbol.name().expect("it is text");
        let name = name.strip_suffix(".abi0").unwrap_or(name);
        names.entry(symbol.address()).or_default().push(name.to_owned());
    }
    names
}

/// The outermost function, and the innermost file and line, of each address.
fn addr2line(fixture: &Fixture, addresses: &[u64]) -> Vec<(String, String)> {
    let mut child = fixture
        .go()
        .args(["tool", "addr2line"])
        .arg(&fixture.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("go is installed");
    let mut input = child.stdin.take().expect("it is piped");
    let addresses: String = addresses
        .iter()
        .map(|address| format!("{address:#x}\n"))
        .collect();
    let writer = std::thread::spawn(move || input.write_all(addresses.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("it ends").expect("it reads");
    let text = String::from_utf8(output.stdout).expect("it is text");
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines
        .chunks_exact(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

/// The function's name as Go prints it in stack traces: `funcNameForPrint` (`runtime/symtab.go`).
fn printed_name(name: &str) -> Cow<'_, str> {
    match (name.find('['), name.rfind(']')) {
        (Some(begin), Some(end)) if begin < end => {
            Cow::Owned(format!("{}[...]{}", &name[..begin], &name[end + 1..]))
        }
        _ => Cow::Borrowed(name),
    }
}
