//! Compares the tables of real libraries with what gimli says at each address.

use std::{fs::File, path::PathBuf};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, Expression, FrameDescriptionEntry, LittleEndian,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection as _, UnwindTableRow, X86_64,
};
use memtrace_ebpf::unwind::{CfaKind, FpKind, PAGE_SHIFT, Row};
use object::{Object as _, ObjectSection as _, ReadCache};

use super::{read_or_skip, table};
use crate::unwind::UnwindTable;

type Slice<'d> = EndianSlice<'d, LittleEndian>;
type Fde<'d> = FrameDescriptionEntry<Slice<'d>>;

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
pub(super) const LOADER: &str = "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBSTDCXX: &str = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";
const LIBCRYPTO: &str = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";

/// A DWARF expression's bytes, spelt as the toolchains emit them: the reader under test decodes operations.
fn expected_cfa_expression(bytes: &[u8]) -> Option<(CfaKind, u16)> {
    match bytes {
        // DW_OP_breg6 n, DW_OP_deref
        [0x76, offset @ .., 0x06] => Some((CfaKind::DerefFp, words(sleb(offset)?)? as i16 as u16)),
        // DW_OP_breg7 n, DW_OP_deref, DW_OP_plus_uconst 8
        [0x77, offset @ .., 0x06, 0x23, 0x08] => {
            Some((CfaKind::DerefSp, u16::try_from(words(sleb(offset)?)?).ok()?))
        }
        // DW_OP_breg7 8, DW_OP_breg16 0, DW_OP_lit15, DW_OP_and, DW_OP_lit<n>, DW_OP_ge, DW_OP_lit3, DW_OP_shl, DW_OP_plus
        [
            0x77,
            0x08,
            0x80,
            0x00,
            0x3f,
            0x1a,
            n @ 0x30..=0x3f,
            0x2a,
            0x33,
            0x24,
            0x22,
        ] => Some((CfaKind::Plt, u16::from(n - 0x30))),
        _ => None,
    }
}

/// A complete signed LEB128 number.
fn sleb(bytes: &[u8]) -> Option<i64> {
    let mut slice = EndianSlice::new(bytes, LittleEndian);
    let value = gimli::Reader::read_sleb128(&mut slice).ok()?;
    slice.is_empty().then_some(value)
}

/// `bytes / 8` if a row's offset can hold it.
fn words(bytes: i64) -> Option<i64> {
    (bytes % 8 == 0 && (-(1 << 15)..1 << 16).contains(&(bytes / 8))).then_some(bytes / 8)
}

fn expression<'d>(expression: &UnwindExpression<usize>, section: &EhFrame<Slice<'d>>) -> &'d [u8] {
    let Expression(bytes) = expression
        .get(section)
        .expect("a real library's expressions are intact");
    bytes.slice()
}

/// What the row at this line must be, `pc_low` aside, straight from the documentation of `CfaKind` and `FpKind`.
fn expected(line: &UnwindTableRow<usize>, fde: &Fde<'_>, section: &EhFrame<Slice<'_>>) -> Row {
    let return_address = line.register(X86_64::RA);
    if return_address == Some(RegisterRule::Undefined) {
        return Row::of_kind(0, CfaKind::End);
    }
    if fde.is_signal_trampoline() {
        return Row::of_kind(0, CfaKind::Signal);
    }
    let cfa = match line.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let kind = if *register == X86_64::RSP {
                Some(CfaKind::Sp)
            } else if *register == X86_64::RBP {
                Some(CfaKind::Fp)
            } else {
                None
            };
            kind.zip(words(*offset).and_then(|words| u16::try_from(words).ok()))
        }
        CfaRule::Expression(bytes) => expected_cfa_expression(expression(bytes, section)),
    };
    let Some((kind, offset)) = cfa.filter(|_| return_address == Some(RegisterRule::Offset(-8))) else {
        return Row::of_kind(0, CfaKind::Unsupported);
    };
    let fp = match line.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue) => Some((FpKind::Same, 0)),
        Some(RegisterRule::Offset(offset)) => words(offset).map(|words| (FpKind::AtCfa, words)),
        Some(RegisterRule::Expression(bytes)) => match expression(&bytes, section) {
            [0x76, offset @ ..] => sleb(offset).and_then(words).map(|words| (FpKind::AtFp, words)),
            _ => None,
        },
        _ => None,
    };
    let (fp_kind, fp_offset) = fp
        .and_then(|(kind, words)| Some((kind, i16::try_from(words).ok()?)))
        .unwrap_or((FpKind::Undefined, 0));
    Row {
        pc_low: 0,
        cfa_kind: kind as u8,
        fp_kind: fp_kind as u8,
        cfa_offset: offset,
        fp_offset,
    }
}

fn is_same_rule(row: Row, expected: Row) -> bool {
    Row { pc_low: 0, ..row } == expected
}

/// Compares every line of every frame description; returns how many addresses it compared.
fn compare_with_gimli(path: &str, data: &[u8], table: &UnwindTable) -> usize {
    let file = object::File::parse(data).expect("a system library parses");
    let eh_frame = file
        .section_by_name(".eh_frame")
        .expect("a system library has .eh_frame");
    let bases = BaseAddresses::default().set_eh_frame(eh_frame.address());
    let section = EhFrame::new(
        eh_frame.data().expect(".eh_frame is not compressed"),
        LittleEndian,
    );
    let mut context = UnwindContext::new();
    let mut compared = 0;
    let mut check = |address: u64, expected: Row| {
        let found = table.row_at(address);
        assert!(
            found.is_some_and(|row| is_same_rule(row, expected)),
            "{path} at {address:#x}: table has {found:?}, gimli says {expected:?}"
        );
        compared += 1;
    };
    let mut ends = Vec::new();
    let mut starts = Vec::new();
    let mut entries = section.entries(&bases);
    while let Some(entry) = entries.next().expect("entries are intact") {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial
            .parse(EhFrame::cie_from_offset)
            .expect("frame descriptions are intact");
        starts.push(fde.initial_address());
        ends.push(fde.end_address());
        let mut lines = fde
            .rows(&section, &bases, &mut context)
            .expect("CIE instructions are intact");
        while let Some(line) = lines.next_row().expect("FDE instructions are intact") {
            let (first, end) = (line.start_address(), line.end_address());
            if first >= end {
                continue;
            }
            let expected = expected(line, &fde, &section);
            check(first, expected);
            check(first + (end - first) / 2, expected);
            check(end - 1, expected);
            let mut border = (first | ((1 << PAGE_SHIFT) - 1)) + 1;
            while border < end {
                check(border, expected);
                border += 1 << PAGE_SHIFT;
            }
        }
    }
    starts.sort_unstable();
    for &end in ends.iter().filter(|end| starts.binary_search(end).is_err()) {
        let found = table.row_at(end);
        assert!(
            found.is_none_or(|row| is_same_rule(row, Row::of_kind(0, CfaKind::NoInfo))),
            "{path} at {end:#x}: no description covers it, but the table has {found:?}"
        );
    }
    compared
}

/// What each page promises to a look-up that knows nothing but its page.
fn check_pages(path: &str, table: &UnwindTable) {
    let mut next_start = 0;
    for (i, page) in table.pages.iter().enumerate() {
        assert_eq!(
            page.start, next_start,
            "{path}: rows of page {i} do not follow those before"
        );
        next_start += page.count;
        let rows = &table.rows[page.start as usize..next_start as usize];
        assert!(
            rows.first().is_none_or(|row| row.pc_low == 0),
            "{path}: page {i} starts with a gap"
        );
        for pair in rows.windows(2) {
            assert!(
                pair[0].pc_low < pair[1].pc_low,
                "{path}: rows of page {i} are out of order: {pair:?}"
            );
            assert!(
                !is_same_rule(pair[1], Row { pc_low: 0, ..pair[0] }),
                "{path}: a row of page {i} repeats the one before: {pair:?}"
            );
        }
    }
    assert_eq!(
        next_start as usize,
        table.rows.len(),
        "{path}: rows that belong to no page"
    );
}

fn compare_library(path: &str, at_least: usize) {
    let Some(data) = read_or_skip(path) else { return };
    let table = table(&data);
    check_pages(path, &table);
    let compared = compare_with_gimli(path, &data, &table);
    assert!(compared >= at_least, "{path}: only {compared} addresses compared");
    assert_eq!(
        (table.stats.malformed, table.stats.overlapping_fdes),
        (0, 0),
        "{path}"
    );
    println!(
        "{path}: {compared} addresses, {} rows, {:?}",
        table.rows.len(),
        table.stats
    );
}

#[test]
fn libc_agrees_with_gimli() {
    compare_library(LIBC, 50_000);
}

#[test]
fn loader_agrees_with_gimli() {
    compare_library(LOADER, 5_000);
}

#[test]
fn libstdcxx_agrees_with_gimli() {
    compare_library(LIBSTDCXX, 50_000);
}

/// Hand-written assembly: `DerefSp`, odd offsets, CFAs relative to other registers.
#[test]
fn libcrypto_agrees_with_gimli() {
    compare_library(LIBCRYPTO, 50_000);
}

#[test]
fn this_rust_program_agrees_with_gimli() {
    let path = std::env::current_exe().expect("a running test has an executable");
    compare_library(path.to_str().expect("cargo's paths are UTF-8"), 10_000);
}

/// The comparison must be able to fail: one damaged row of libc's table is noticed.
#[test]
#[should_panic(expected = "gimli says")]
fn comparison_notices_a_wrong_row() {
    let data = std::fs::read(LIBC).expect("glibc is installed");
    let mut table = table(&data);
    let middle = table.rows.len() / 2;
    table.rows[middle].cfa_offset ^= 1;
    compare_with_gimli(LIBC, &data, &table);
}

#[test]
fn a_file_read_piecewise_gives_the_same_table() {
    let file = File::open(LIBC).expect("glibc is installed");
    let cache = ReadCache::new(file);
    let piecewise = UnwindTable::from_elf(&cache).expect("libc has unwind tables");
    let data = std::fs::read(LIBC).expect("glibc is installed");
    assert!(piecewise == table(&data));
}

/// The row at a symbol of a library, a few bytes into the function.
fn rows_of_function(data: &[u8], name: &str) -> Vec<Row> {
    use object::ObjectSymbol as _;
    let file = object::File::parse(data).expect("a system library parses");
    let symbol = file
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .unwrap_or_else(|| panic!("libc exports {name}"));
    let table = table(data);
    (symbol.address()..symbol.address() + symbol.size())
        .filter_map(|address| table.row_at(address))
        .collect()
}

#[test]
fn thread_start_of_glibc_ends_the_stack() {
    let data = std::fs::read(LIBC).expect("glibc is installed");
    let clone = rows_of_function(&data, "clone");
    assert!(
        clone.iter().any(|row| row.cfa_kind == CfaKind::End as u8),
        "glibc's clone marks the child's return address as undefined"
    );
}

#[test]
fn process_start_ends_the_stack() {
    let path: PathBuf = std::env::current_exe().expect("a running test has an executable");
    let data = std::fs::read(path).expect("this executable is readable");
    let entry = object::File::parse(&*data)
        .expect("this executable parses")
        .entry();
    let row = table(&data)
        .row_at(entry + 4)
        .expect("_start has a frame description");
    assert_eq!(row.cfa_kind, CfaKind::End as u8);
}
