//! Damaged and hostile files: every outcome is an error or a table, soon, and within the limits.

use std::time::{Duration, Instant};

use memtrace_ebpf::unwind::CfaKind;
use object::{Object as _, ObjectSection as _};

use super::{
    fixtures::{Fixture, function},
    real_files::LOADER,
    table,
};
use crate::unwind::{Limit, UnwindError, UnwindTable};

/// How many damaged variants each test tries.
const VARIANTS: u32 = 3000;

/// Far more than any variant takes, even in a debug build on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// A xorshift generator: the same damage in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// The loader, and where its `.eh_frame` is in the file.
fn loader() -> (Vec<u8>, std::ops::Range<usize>) {
    let data = std::fs::read(LOADER).expect("glibc is installed");
    let file = object::File::parse(&*data).expect("the loader parses");
    let section = file
        .section_by_name(".eh_frame")
        .expect("the loader has .eh_frame");
    let (offset, size) = section.file_range().expect(".eh_frame is in the file");
    let range = offset as usize..(offset + size) as usize;
    (data, range)
}

/// Builds a table, within the time limit, and checks what holds of every table.
fn build(data: &[u8]) -> Result<UnwindTable, UnwindError> {
    let begin = Instant::now();
    let result = UnwindTable::from_elf(data);
    assert!(begin.elapsed() < TIME_LIMIT, "took {:?}", begin.elapsed());
    if let Ok(table) = &result {
        let counted: u64 = table.pages.iter().map(|page| u64::from(page.count)).sum();
        assert_eq!(counted, table.rows.len() as u64);
        for page in table.pages.iter().filter(|page| page.count > 0) {
            assert_eq!(table.rows[page.start as usize].pc_low, 0);
        }
    }
    result
}

#[test]
fn flipped_bits() {
    let (original, section) = loader();
    let mut random = Random(0x5eed_0001);
    let (mut tables, mut damaged) = (0, 0);
    for _ in 0..VARIANTS {
        let mut data = original.clone();
        for _ in 0..=random.below(8) {
            data[section.start + random.below(section.len())] ^= 1 << random.below(8);
        }
        if let Ok(table) = build(&data) {
            tables += 1;
            damaged += u32::from(table.stats.malformed > 0);
        }
    }
    assert!(
        tables > VARIANTS / 2,
        "most damage is local, but only {tables} tables were made"
    );
    assert!(
        damaged > VARIANTS / 10,
        "only {damaged} tables noticed the damage"
    );
}

#[test]
fn rubbish_in_the_section() {
    let (original, section) = loader();
    let mut random = Random(0x5eed_0002);
    for _ in 0..VARIANTS / 4 {
        let mut data = original.clone();
        let start = section.start + random.below(section.len());
        let end = section.end.min(start + 1 + random.below(256));
        data[start..end].fill_with(|| random.below(256) as u8);
        // Any outcome will do, but no panic and no endless loop.
        let _outcome = build(&data);
    }
}

#[test]
fn flipped_bits_in_the_headers() {
    let (original, _) = loader();
    let section_headers = object::read::elf::ElfFile64::<object::LittleEndian>::parse(&*original)
        .expect("the loader parses")
        .elf_header()
        .e_shoff
        .get(object::LittleEndian) as usize;
    let mut random = Random(0x5eed_0003);
    for _ in 0..VARIANTS {
        let mut data = original.clone();
        // The file's and the program headers begin the file, the section headers end it.
        let at = if random.below(2) == 0 {
            random.below(0x300)
        } else {
            section_headers + random.below(data.len() - section_headers)
        };
        data[at] ^= 1 << random.below(8);
        let _outcome = build(&data);
    }
}

#[test]
fn truncated_files() {
    let (original, section) = loader();
    let mut random = Random(0x5eed_0004);
    for _ in 0..VARIANTS / 4 {
        let result = build(&original[..random.below(section.end)]);
        assert!(
            result.is_err(),
            "a file cut before the end of its .eh_frame gave a table"
        );
    }
}

#[test]
fn a_damaged_description_leaves_the_others_intact() {
    let (data, section) = loader();
    let intact = table(&data);
    let mut data = data;
    // The first entry of a section is a CIE, followed by its first FDE: an invalid pointer to the CIE.
    let first_length = u32::from_le_bytes(data[section.start..][..4].try_into().expect("four bytes"));
    let fde = section.start + 4 + first_length as usize;
    data[fde + 4..fde + 8].copy_from_slice(&1_u32.to_le_bytes());
    let damaged = table(&data);
    assert_eq!(damaged.stats.malformed, 1);
    assert_eq!(damaged.stats.fdes + 1, intact.stats.fdes);
}

#[test]
fn unreadable_instructions_are_unsupported_from_there_on() {
    // 0x3e is no call frame instruction; `g` follows to show that nothing spills over.
    let body = "nop\n.cfi_def_cfa_offset 16\nnop\n.cfi_escape 0x3e\nnop";
    let Some(fixture) = Fixture::assemble(&(function("f", body) + &function("g", "nop"))) else {
        return;
    };
    let table = fixture.table();
    let kind_at = |symbol: &str, plus| {
        table
            .row_at(fixture.address(symbol) + plus)
            .map(|row| row.cfa_kind)
    };
    assert_eq!(kind_at("f", 0), Some(CfaKind::Sp as u8));
    // The line that the instruction would have begun or changed starts at 2.
    assert_eq!(kind_at("f", 1), Some(CfaKind::Sp as u8));
    assert_eq!(kind_at("f", 2), Some(CfaKind::Unsupported as u8));
    assert_eq!(kind_at("g", 0), Some(CfaKind::Sp as u8));
    assert_eq!(table.stats.malformed, 1);
}

/// Two descriptions of the same code, one of them starting inside the other: the later start wins to its end.
#[test]
fn overlapping_descriptions() {
    let source = "
        .text
        .globl f
        f:
        f_outer:
        nop
        nop
        f_inner:
        nop
        nop
        nop
        .section .eh_frame, \"a\", @unwind
        cie:
        .long cie_end - . - 4, 0
        .byte 1                         # version
        .asciz \"zR\"
        .byte 1, 0x78, 16, 1, 0x1b      # alignment factors 1 and -8, return address 16, DW_EH_PE_pcrel | sdata4
        .byte 0x0c, 7, 8, 0x90, 1       # DW_CFA_def_cfa rsp 8, DW_CFA_offset rip at CFA-8
        .balign 4
        cie_end:
        .long outer_end - . - 4
        .long . - cie
        .long f_outer - .
        .long 5
        .byte 0
        .balign 4
        outer_end:
        .long inner_end - . - 4
        .long . - cie
        .long f_inner - .
        .long 2
        .byte 0, 0x0e, 24               # DW_CFA_def_cfa_offset 24
        .balign 4
        inner_end:
        .long 0";
    // The linker would reject what it cannot sort into .eh_frame_hdr.
    let Some(fixture) = Fixture::link(source, &["-Wl,--no-eh-frame-hdr"]) else {
        return;
    };
    let (table, f) = (fixture.table(), fixture.address("f"));
    let at = |plus| table.row_at(f + plus).map(|row| (row.cfa_kind, row.cfa_offset));
    assert_eq!(at(1), Some((CfaKind::Sp as u8, 1)));
    assert_eq!(at(2), Some((CfaKind::Sp as u8, 3)));
    assert_eq!(at(3), Some((CfaKind::Sp as u8, 3)));
    assert_eq!(at(4), Some((CfaKind::NoInfo as u8, 0)));
    assert_eq!(table.stats.overlapping_fdes, 1);
}

/// One CIE with long instructions, evaluated again for each of many tiny descriptions: quadratic work.
#[test]
fn quadratic_work_is_refused() {
    let source = "
        .text
        f:
        .skip 20000, 0x90
        .section .eh_frame, \"a\", @unwind
        cie:
        .long cie_end - . - 4, 0
        .byte 1
        .asciz \"zR\"
        .byte 1, 0x78, 16, 1, 0x1b
        .skip 60000, 0x0a               # DW_CFA_remember_state
        .balign 4
        cie_end:
        .set n, 0
        .rept 9000
        .long 16
        .long . - cie
        .long f + n - .
        .long 1
        .byte 0, 0, 0, 0
        .set n, n + 1
        .endr
        .long 0";
    let Some(fixture) = Fixture::link(source, &["-Wl,--no-eh-frame-hdr"]) else {
        return;
    };
    let result = build(&fixture.data);
    assert!(
        matches!(result, Err(UnwindError::TooLarge { limit: Limit::Work })),
        "{result:?}"
    );
}

/// A sparse file can claim any size; what is read at once is limited.
#[test]
fn a_huge_section_is_refused() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let (mut data, _) = loader();
    let file =
        object::read::elf::ElfFile64::<object::LittleEndian>::parse(&*data).expect("the loader parses");
    let index = file
        .section_by_name(".eh_frame")
        .expect("the loader has .eh_frame")
        .index()
        .0;
    // sh_size is at 32 in a section header of 64 bytes (ELF-64 Object File Format, "Sections").
    let sh_size = file.elf_header().e_shoff.get(object::LittleEndian) as usize + index * 64 + 32;
    data[sh_size..sh_size + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let mut sparse = tempfile::tempfile().expect("a temporary file can be made");
    sparse.write_all(&data).expect("a temporary file can be written");
    sparse.set_len(1 << 42).expect("the file system has sparse files");
    sparse.seek(SeekFrom::Start(0)).expect("files can seek");
    let result = UnwindTable::from_elf(&object::ReadCache::new(sparse));
    assert!(
        matches!(
            result,
            Err(UnwindError::TooLarge {
                limit: Limit::SectionBytes
            })
        ),
        "{result:?}"
    );
}

#[test]
fn other_files_are_named_as_such() {
    assert!(matches!(build(b"#!/bin/sh\n"), Err(UnwindError::Elf(_))));
    let (mut data, _) = loader();
    // e_machine is at 18; 183 is AArch64.
    data[18] = 183;
    assert!(matches!(build(&data), Err(UnwindError::WrongMachine(183))));
}
