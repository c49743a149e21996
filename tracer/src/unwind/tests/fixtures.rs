//! One small assembled function for each kind of row, its call frame information beside its code.

use std::{fs, process::Command};

use memtrace_ebpf::unwind::{CfaKind, FpKind, Row};
use object::{Object as _, ObjectSymbol as _};
use tempfile::TempDir;

use crate::unwind::{UnwindError, UnwindTable};

/// An assembled shared library.
pub(super) struct Fixture {
    pub data: Vec<u8>,
}

impl Fixture {
    /// Assembles and links; `None`, with a note, on a machine without a C compiler.
    pub fn assemble(source: &str) -> Option<Self> {
        Self::link(source, &[])
    }

    pub fn link(source: &str, arguments: &[&str]) -> Option<Self> {
        if Command::new("cc").arg("--version").output().is_err() {
            println!("SKIPPED: no cc on this machine");
            return None;
        }
        let dir = TempDir::new().expect("a temporary directory can be made");
        let (input, output) = (dir.path().join("fixture.s"), dir.path().join("fixture.so"));
        fs::write(&input, source).expect("a temporary file can be written");
        let linked = Command::new("cc")
            .args(["-shared", "-nostdlib", "-o"])
            .args([&output, &input])
            .args(arguments)
            .output()
            .expect("cc starts");
        let said = String::from_utf8_lossy(&linked.stderr);
        assert!(
            linked.status.success(),
            "the fixture does not assemble:\n{source}\n{said}"
        );
        Some(Self {
            data: fs::read(&output).expect("cc wrote its output"),
        })
    }

    pub fn table(&self) -> UnwindTable {
        UnwindTable::from_elf(&*self.data).expect("a fixture has unwind tables")
    }

    /// Virtual address of a global symbol.
    pub fn address(&self, symbol: &str) -> u64 {
        let file = object::File::parse(&*self.data).expect("cc writes an ELF file");
        file.dynamic_symbols()
            .find(|candidate| candidate.name() == Ok(symbol))
            .unwrap_or_else(|| panic!("the fixture defines {symbol}"))
            .address()
    }

    /// The rows of a function: its address in the function (bytes) and the rule, `pc_low` set to 0.
    fn rows(&self, symbol: &str) -> Vec<(u64, Row)> {
        let (table, start) = (self.table(), self.address(symbol));
        let end = self.address(&format!("{symbol}_end"));
        let mut rows: Vec<(u64, Row)> = Vec::new();
        for address in start..end {
            let row = table
                .row_at(address)
                .map(|row| Row { pc_low: 0, ..row })
                .expect("code of the fixture");
            if rows.last().is_none_or(|(_, last)| *last != row) {
                rows.push((address - start, row));
            }
        }
        rows
    }
}

/// A function with this body, and a symbol at its end.
pub(super) fn function(name: &str, body: &str) -> String {
    format!(
        ".text\n.globl {name}, {name}_end\n.type {name}, @function\n{name}:\n.cfi_startproc\n{body}\n.cfi_endproc\n{name}_end:\n.byte 0xcc\n"
    )
}

fn row(cfa_kind: CfaKind, cfa_offset: u16, fp_kind: FpKind, fp_offset: i16) -> Row {
    Row {
        pc_low: 0,
        cfa_kind: cfa_kind as u8,
        fp_kind: fp_kind as u8,
        cfa_offset,
        fp_offset,
    }
}

/// Assembles `f` with this body and compares all of its rows.
fn expect_rows(body: &str, expected: &[(u64, Row)]) {
    let Some(fixture) = Fixture::assemble(&function("f", body)) else {
        return;
    };
    assert_eq!(fixture.rows("f"), expected, "{body}");
}

const SP8: Row = Row {
    pc_low: 0,
    cfa_kind: CfaKind::Sp as u8,
    fp_kind: FpKind::Same as u8,
    cfa_offset: 1,
    fp_offset: 0,
};

#[test]
fn cfa_from_sp() {
    expect_rows(
        "
        push %rbx                       # 53
        .cfi_def_cfa_offset 16
        .cfi_offset %rbx, -16
        sub $0x1000, %rsp               # 48 81 ec 00 10 00 00
        .cfi_def_cfa_offset 0x1010
        add $0x1000, %rsp               # 48 81 c4 00 10 00 00
        .cfi_def_cfa_offset 16
        pop %rbx                        # 5b
        .cfi_def_cfa_offset 8
        ret                             # c3",
        &[
            (0, SP8),
            (1, row(CfaKind::Sp, 2, FpKind::Same, 0)),
            (8, row(CfaKind::Sp, 0x202, FpKind::Same, 0)),
            (15, row(CfaKind::Sp, 2, FpKind::Same, 0)),
            (16, SP8),
        ],
    );
}

#[test]
fn cfa_from_fp() {
    expect_rows(
        "
        push %rbp                       # 55
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        mov %rsp, %rbp                  # 48 89 e5
        .cfi_def_cfa_register %rbp
        leave                           # c9
        .cfi_def_cfa %rsp, 8
        .cfi_restore %rbp
        ret                             # c3",
        &[
            (0, SP8),
            (1, row(CfaKind::Sp, 2, FpKind::AtCfa, -2)),
            (4, row(CfaKind::Fp, 2, FpKind::AtCfa, -2)),
            (5, SP8),
        ],
    );
}

/// What GCC emits for a function that aligns its stack to 32 bytes.
#[test]
fn cfa_behind_fp_of_a_realigned_frame() {
    expect_rows(
        "
        lea 8(%rsp), %r10               # 4c 8d 54 24 08
        .cfi_def_cfa %r10, 0
        and $-32, %rsp                  # 48 83 e4 e0
        pushq -8(%r10)                  # 41 ff 72 f8
        push %rbp                       # 55
        .cfi_escape 0x10, 0x6, 0x2, 0x76, 0     # DW_CFA_expression rbp: DW_OP_breg6 0
        mov %rsp, %rbp                  # 48 89 e5
        push %r10                       # 41 52
        .cfi_escape 0xf, 0x3, 0x76, 0x78, 0x6   # DW_CFA_def_cfa_expression: DW_OP_breg6 -8, DW_OP_deref
        nop                             # 90",
        &[
            (0, SP8),
            (5, row(CfaKind::Unsupported, 0, FpKind::Same, 0)),
            (19, row(CfaKind::DerefFp, -1_i16 as u16, FpKind::AtFp, 0)),
        ],
    );
}

/// What OpenSSL's assembly declares with `.cfi_cfa_expression %rsp+40,deref,+8`.
#[test]
fn cfa_behind_a_saved_sp() {
    expect_rows(
        "
        nop
        .cfi_escape 0xf, 0x5, 0x77, 0x28, 0x6, 0x23, 0x8
        nop
        .cfi_escape 0xf, 0x5, 0x77, 0x28, 0x6, 0x23, 0x10   # + 16: no row says that
        nop",
        &[
            (0, SP8),
            (1, row(CfaKind::DerefSp, 5, FpKind::Same, 0)),
            (2, row(CfaKind::Unsupported, 0, FpKind::Same, 0)),
        ],
    );
}

/// The linker's description of `.plt`: with and without `endbr64`, and one that no linker emits.
#[test]
fn procedure_linkage_table() {
    let expression = |threshold: u8| {
        format!(
            ".cfi_escape 0xf, 0xb, 0x77, 0x8, 0x80, 0, 0x3f, 0x1a, {:#x}, 0x2a, 0x33, 0x24, 0x22\nnop",
            0x30 + threshold
        )
    };
    expect_rows(
        &format!(
            "{}\n{}\n{}",
            expression(11),
            expression(10),
            expression(11).replace("0x3f", "0x3e")
        ),
        &[
            (0, row(CfaKind::Plt, 11, FpKind::Same, 0)),
            (1, row(CfaKind::Plt, 10, FpKind::Same, 0)),
            (2, row(CfaKind::Unsupported, 0, FpKind::Same, 0)),
        ],
    );
}

/// The linker describes the `.plt` that it makes itself.
#[test]
fn plt_made_by_the_linker() {
    let body = function("f", "call elsewhere@plt\nret");
    let Some(fixture) = Fixture::link(&body, &["-Wl,-z,lazy"]) else {
        return;
    };
    use object::ObjectSection as _;
    let file = object::File::parse(&*fixture.data).expect("cc writes an ELF file");
    let plt = file
        .section_by_name(".plt")
        .expect("a lazy call needs a .plt")
        .address();
    let row_at = |address| {
        fixture
            .table()
            .row_at(address)
            .map(|row| (row.cfa_kind, row.cfa_offset))
    };
    assert_eq!(
        row_at(plt),
        Some((CfaKind::Sp as u8, 2)),
        "the first entry begins with two words pushed"
    );
    assert_eq!(row_at(plt + 6), Some((CfaKind::Sp as u8, 3)));
    assert_eq!(row_at(plt + 16), Some((CfaKind::Plt as u8, 11)));
    assert_eq!(row_at(plt + 31), Some((CfaKind::Plt as u8, 11)));
}

/// The shape of glibc's `__restore_rt`: every register in the `ucontext` at `sp`.
#[test]
fn signal_trampoline() {
    expect_rows(
        "
        .cfi_signal_frame
        .cfi_escape 0xf, 0x4, 0x77, 0xa0, 0x1, 0x6          # CFA: DW_OP_breg7 160, DW_OP_deref
        .cfi_escape 0x10, 0x10, 0x3, 0x77, 0xa8, 0x1        # rip: DW_OP_breg7 168
        mov $15, %rax
        syscall",
        &[(0, row(CfaKind::Signal, 0, FpKind::Same, 0))],
    );
    // A signal frame that keeps its registers elsewhere must not be read as a ucontext.
    expect_rows(
        ".cfi_signal_frame\nnop",
        &[(0, row(CfaKind::Unsupported, 0, FpKind::Same, 0))],
    );
}

#[test]
fn outermost_frame() {
    expect_rows(
        "
        nop
        .cfi_undefined %rip
        nop",
        &[(0, SP8), (1, row(CfaKind::End, 0, FpKind::Same, 0))],
    );
}

#[test]
fn offsets_that_no_row_can_hold() {
    let unsupported = row(CfaKind::Unsupported, 0, FpKind::Same, 0);
    expect_rows(
        "
        nop
        .cfi_def_cfa_offset 12          # no multiple of 8
        nop
        .cfi_def_cfa_offset 8
        nop
        .cfi_def_cfa_offset 524288      # 65,536 words
        nop
        .cfi_def_cfa_offset 524280      # 65,535 words
        nop
        .cfi_def_cfa %rbx, 8            # another register
        nop
        .cfi_def_cfa %rsp, 8
        .cfi_offset %rip, -16           # the return address elsewhere
        nop",
        &[
            (0, SP8),
            (1, unsupported),
            (2, SP8),
            (3, unsupported),
            (4, row(CfaKind::Sp, u16::MAX, FpKind::Same, 0)),
            (5, unsupported),
        ],
    );
}

#[test]
fn frame_pointer_rules() {
    expect_rows(
        "
        .cfi_escape 0x10, 0x6, 0x2, 0x76, 0x74  # DW_OP_breg6 -12: no multiple of 8
        nop
        .cfi_undefined %rbp
        nop
        .cfi_same_value %rbp
        nop
        .cfi_register %rbp, %rbx        # in another register
        nop
        .cfi_escape 0x10, 0x6, 0x2, 0x76, 0x70  # DW_OP_breg6 -16
        nop
        .cfi_escape 0x10, 0x6, 0x2, 0x77, 0     # DW_OP_breg7 0
        nop
        .cfi_offset %rbp, -262144       # -32,768 words
        nop
        .cfi_offset %rbp, -262152
        nop",
        &[
            (0, row(CfaKind::Sp, 1, FpKind::Undefined, 0)),
            (2, SP8),
            (3, row(CfaKind::Sp, 1, FpKind::Undefined, 0)),
            (4, row(CfaKind::Sp, 1, FpKind::AtFp, -2)),
            (5, row(CfaKind::Sp, 1, FpKind::Undefined, 0)),
            (6, row(CfaKind::Sp, 1, FpKind::AtCfa, i16::MIN)),
            (7, row(CfaKind::Sp, 1, FpKind::Undefined, 0)),
        ],
    );
}

#[test]
fn code_without_description() {
    let source = format!(
        "{}\n.globl bare\nbare:\nnop\nret\n{}",
        function("f", "ret"),
        function("g", "ret")
    );
    let Some(fixture) = Fixture::assemble(&source) else {
        return;
    };
    let table = fixture.table();
    let kind_at = |symbol: &str, plus: u64| {
        table
            .row_at(fixture.address(symbol) + plus)
            .map(|row| row.cfa_kind)
    };
    assert_eq!(kind_at("f", 0), Some(CfaKind::Sp as u8));
    assert_eq!(kind_at("f_end", 0), Some(CfaKind::NoInfo as u8));
    assert_eq!(kind_at("bare", 1), Some(CfaKind::NoInfo as u8));
    assert_eq!(kind_at("g", 0), Some(CfaKind::Sp as u8));
}

#[test]
fn a_file_without_descriptions_says_so() {
    let Some(fixture) = Fixture::assemble(".text\n.globl f\nf:\nret\n") else {
        return;
    };
    let result = UnwindTable::from_elf(&*fixture.data);
    assert!(matches!(result, Err(UnwindError::NoEhFrame)), "{result:?}");
}

/// `strip --strip-section-headers` is too new for some machines: the header's fields are cleared instead.
#[test]
fn a_file_without_section_headers_is_found_through_its_program_headers() {
    let Some(mut fixture) = Fixture::assemble(&function("f", "push %rax\n.cfi_def_cfa_offset 16\nret"))
    else {
        return;
    };
    let with_sections = fixture.table();
    // e_shoff is at 40, e_shnum at 60, e_shstrndx at 62 (ELF-64 Object File Format, "ELF header").
    fixture.data[40..48].fill(0);
    fixture.data[60..64].fill(0);
    let without = fixture.table();
    assert_eq!(without.rows, with_sections.rows);
    assert!(without.rows.len() >= 3, "{:?}", without.rows);
}
