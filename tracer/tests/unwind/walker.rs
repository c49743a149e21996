//! Runs the kernel's walker natively, over tables in vectors and a stopped process's memory.

use std::{cell::RefCell, collections::BTreeSet, fs};

use memtrace::unwind::UnwindTable;
use memtrace_ebpf::{
    layout::EndReason,
    unwind::{CfaKind, Mapping, Page, Row, frame},
    walk::{Memory, Tables, Walk},
};
use object::{
    LittleEndian,
    read::elf::{ElfFile64, ProgramHeader as _},
};

use crate::debuggee::{Debuggee, MappedCode, Registers};

/// A mapped file or image.
pub struct Code {
    pub mapped: MappedCode,
    pub bias: u64,
    pub data: Vec<u8>,
}

impl Code {
    /// Reads the file or image behind each executable mapping.
    pub fn of(debuggee: &Debuggee) -> Vec<Self> {
        let mapped = debuggee.code().expect("a stopped process has mappings");
        mapped
            .into_iter()
            .map(|mapped| Self::read(debuggee, mapped))
            .collect()
    }

    fn read(debuggee: &Debuggee, mapped: MappedCode) -> Self {
        let data = if mapped.name == "[vdso]" {
            let mut image = vec![0; (mapped.end - mapped.begin) as usize];
            debuggee
                .read(mapped.begin, &mut image)
                .expect("the vDSO is readable");
            image
        } else {
            fs::read(&mapped.name).expect("the mapped file is readable")
        };
        let file = ElfFile64::<LittleEndian>::parse(&*data).expect("mapped code is ELF");
        let address = file
            .elf_program_headers()
            .iter()
            .find_map(|segment| {
                let (offset, size) = segment.file_range(LittleEndian);
                let begins = segment.p_type(LittleEndian) == object::elf::PT_LOAD
                    && (offset & !0xfff..offset + size).contains(&mapped.offset);
                begins.then(|| {
                    segment
                        .p_vaddr(LittleEndian)
                        .wrapping_sub(offset)
                        .wrapping_add(mapped.offset)
                })
            })
            .expect("a mapping is part of a segment");
        let bias = mapped.begin.wrapping_sub(address);
        Self { mapped, bias, data }
    }
}

/// The tables of all code of a process.
pub struct NativeTables {
    mappings: Vec<Mapping>,
    pages: Vec<Page>,
    rows: Vec<Row>,
    /// Which kinds of rows the walks met.
    kinds: RefCell<BTreeSet<u8>>,
}

impl NativeTables {
    pub fn of(code: &[Code]) -> Self {
        let mut tables = Self {
            mappings: Vec::new(),
            pages: Vec::new(),
            rows: Vec::new(),
            kinds: RefCell::default(),
        };
        for code in code {
            let table = UnwindTable::from_elf(&*code.data).expect("mapped code has unwind tables");
            let (first_page, first_row) = (tables.pages.len() as u32, tables.rows.len() as u32);
            tables.rows.extend(table.rows);
            let relocated = |page: Page| Page {
                start: page.start + first_row,
                ..page
            };
            tables.pages.extend(table.pages.into_iter().map(relocated));
            tables.mappings.push(Mapping {
                begin: code.mapped.begin,
                end: code.mapped.end,
                bias: code.bias,
                page_base: first_page,
                page_first: table.base_page,
                page_count: tables.pages.len() as u32 - first_page,
                id: tables.mappings.len() as u16 + 1,
                ..Mapping::default()
            });
        }
        tables
    }

    /// Makes every row that finds the CFA from `sp` wrong by one word.
    pub fn damage(&mut self) {
        for row in self
            .rows
            .iter_mut()
            .filter(|row| row.cfa_kind == CfaKind::Sp as u8)
        {
            row.cfa_offset += 1;
        }
    }

    /// Whether some walk met a row of this kind, a `CfaKind`.
    pub fn met(&self, kind: u8) -> bool {
        self.kinds.borrow().contains(&kind)
    }
}

impl Tables for NativeTables {
    fn mapping(&self, address: u64) -> Option<Mapping> {
        self.mappings
            .iter()
            .find(|mapping| (mapping.begin..mapping.end).contains(&address))
            .copied()
    }

    fn page(&self, index: u32) -> Option<Page> {
        self.pages.get(index as usize).copied()
    }

    fn row(&self, index: u32) -> Option<Row> {
        let row = self.rows.get(index as usize).copied()?;
        self.kinds.borrow_mut().insert(row.cfa_kind);
        Some(row)
    }
}

struct Target<'a>(&'a Debuggee);

impl Memory for Target<'_> {
    fn read_u64(&self, address: u64) -> Option<u64> {
        self.0.read_u64(address)
    }

    fn replaced_return_address(&self, _slot: u64) -> Option<u64> {
        None
    }
}

/// What a walk found: addresses, innermost first, and why it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    pub frames: Vec<u64>,
    pub reason: EndReason,
}

/// Walks the whole stack of the stopped thread.
pub fn walk(debuggee: &Debuggee, tables: &NativeTables, registers: Registers) -> Walked {
    let mut walk = Box::new(Walk::new());
    walk.begin(registers.pc, registers.sp, registers.fp, false, false);
    let mut reason = EndReason::Running;
    while reason == EndReason::Running {
        reason = walk.step(&Target(debuggee), tables);
    }
    let frames = walk.frames[..walk.frames_len as usize]
        .iter()
        .map(|&packed| frame::address(packed))
        .collect();
    Walked { frames, reason }
}
