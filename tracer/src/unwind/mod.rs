//! Unwind tables: turns an ELF file's `.eh_frame` into the compact rows that the in-kernel walker reads.
//!
//! [`UnwindTable::from_elf`] reads a file once; every process that maps the file shares its rows. The file belongs
//! to the target and is not to be trusted: each size, count and amount of work taken from it has a limit
//! ([`Limit`]), a description that cannot be read becomes [`CfaKind::Unsupported`] rows, and offsets are checked.
//! Give it an `object::ReadCache` over the opened file, never a mapping of it: a mapped file that shrinks kills
//! the reader with `SIGBUS`.
//!
//! What a row can say is documented at [`CfaKind`] and [`FpKind`](memtrace_ebpf::unwind::FpKind). What it cannot:
//! a CFA relative to another register than `sp` or `fp` (GCC's realigned prologues, for a few instructions), offsets
//! that are no multiple of 8, and a return address elsewhere than at `CFA - 8`.

mod elf;
mod entries;
mod frames;
mod rows;
mod rule;
#[cfg(test)]
mod tests;

use std::ops::Range;

use memtrace_ebpf::unwind::{CfaKind, PAGE_SHIFT, Page, Row};
use thiserror::Error;

use self::{elf::Image, frames::Frames, rows::RowWriter};

/// The rows of one file, by virtual address of the file (`p_vaddr`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnwindTable {
    /// All rows, in ascending order of address.
    pub rows: Vec<Row>,
    /// `pages[i]` covers the virtual addresses from `(base_page + i) << PAGE_SHIFT`; [`Page::start`] indexes `rows`.
    ///
    /// A page with `count == 0` has no description of any code. Addresses behind the last page have none either.
    pub pages: Vec<Page>,
    /// Which page `pages[0]` is.
    ///
    /// 0 unless the file's lowest code lies above 4 GiB, where tables from address 0 would waste memory.
    pub base_page: u32,
    /// How the table came to be.
    pub stats: TableStats,
}

/// What was read, and what a table had to leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Frame descriptions (FDEs) that the table holds.
    pub fdes: u32,
    /// Frame descriptions outside the executable segments, or of no length: left behind by a linker.
    pub dropped_fdes: u32,
    /// Frame descriptions cut short or replaced because another starts inside them.
    pub overlapping_fdes: u32,
    /// Entries that could not be read: their code has [`CfaKind::Unsupported`] or [`CfaKind::NoInfo`] rows.
    pub malformed: u32,
    /// Rows of [`CfaKind::Unsupported`].
    pub unsupported_rows: u32,
    /// Size of the section that was read (bytes).
    pub section_bytes: u64,
}

/// Why there is no table.
#[derive(Debug, Error)]
pub enum UnwindError {
    /// The file has no frame descriptions. The code can only be unwound by frame pointer.
    #[error("no .eh_frame and no PT_GNU_EH_FRAME: unwind this file's code by frame pointer")]
    NoEhFrame,
    /// The file is an ELF file of another kind.
    #[error("not a little-endian 64-bit x86-64 ELF file (e_machine {0}): only x86-64 code can be unwound")]
    WrongMachine(u16),
    /// The ELF structures could not be read.
    #[error("not a complete 64-bit ELF file")]
    Elf(#[from] object::Error),
    /// The file ends before its `.eh_frame` does, or it could not be read.
    #[error("cannot read {size} bytes at offset {offset}; is the file complete?")]
    Truncated {
        /// Offset in the file (bytes).
        offset: u64,
        /// How many bytes were to be read.
        size: u64,
    },
    /// `.eh_frame_hdr`, which locates `.eh_frame` in a file without section headers, could not be read.
    #[error("cannot read .eh_frame_hdr")]
    EhFrameHdr {
        /// Why it could not.
        source: gimli::Error,
    },
    /// The file asks for more than any real file needs; its code can be unwound by frame pointer.
    #[error("{limit} exceed the limit of {max}; the file may be damaged or hostile", max = limit.max())]
    TooLarge {
        /// Which limit.
        limit: Limit,
    },
}

/// What is bounded, since the file may be crafted. Each bound is several times what the largest browsers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of `.eh_frame`.
    SectionBytes,
    /// Program headers.
    ProgramHeaders,
    /// Common information entries.
    Cies,
    /// Frame descriptions.
    Fdes,
    /// Bytes of call frame instructions evaluated, as a multiple of the section's size.
    Work,
    /// Rows.
    Rows,
    /// Pages from the lowest to the highest code address.
    Pages,
}

impl Limit {
    /// The limit itself.
    pub const fn max(self) -> u64 {
        match self {
            Self::SectionBytes => 128 << 20,
            Self::ProgramHeaders => 128,
            Self::Cies => 1 << 16,
            Self::Fdes => 4 << 20,
            Self::Work => 8,
            Self::Rows => 8 << 20,
            Self::Pages => 1 << 16,
        }
    }

    /// An error if `value` is over the limit.
    fn check(self, value: u64) -> Result<(), UnwindError> {
        if value > self.max() {
            Err(UnwindError::TooLarge { limit: self })
        } else {
            Ok(())
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SectionBytes => "bytes of .eh_frame",
            Self::ProgramHeaders => "program headers",
            Self::Cies => "common information entries",
            Self::Fdes => "frame descriptions",
            Self::Work => "instruction bytes per byte of .eh_frame",
            Self::Rows => "unwind rows",
            Self::Pages => "64 KiB pages of code",
        })
    }
}

impl UnwindTable {
    /// Reads the frame descriptions of an ELF file, or of an ELF image in memory such as the vDSO.
    ///
    /// Finds `.eh_frame` by its section header, else through `PT_GNU_EH_FRAME`.
    ///
    /// # Errors
    ///
    /// [`UnwindError::NoEhFrame`] if there is none; the others if the file cannot be read or exceeds a [`Limit`].
    pub fn from_elf<'d, R: object::ReadRef<'d>>(data: R) -> Result<Self, UnwindError> {
        Self::from_elf_with(data, || 0..0)
    }

    /// The same of a file with code that keeps frame pointers at these virtual addresses, which are asked for only if the file
    /// has descriptions at all: where none covers that code, it is unwound by them. A Go program that was linked with C code has descriptions of that alone.
    ///
    /// # Errors
    /// As [`UnwindTable::from_elf`].
    pub fn from_elf_with<'d, R: object::ReadRef<'d>>(
        data: R,
        with_frame_pointers: impl FnOnce() -> Range<u64>,
    ) -> Result<Self, UnwindError> {
        let image = Image::parse(data)?;
        let mut stats = TableStats {
            section_bytes: image.eh_frame.len() as u64,
            ..TableStats::default()
        };
        let frames = Frames::collect(&image, with_frame_pointers(), &mut stats)?;
        let mut writer = RowWriter::new(frames.address_range())?;
        frames.write_rows(&mut writer, &mut stats)?;
        let (rows, pages, base_page) = writer.finish();
        stats.unsupported_rows = rows
            .iter()
            .filter(|row| row.cfa_kind == CfaKind::Unsupported as u8)
            .count() as u32;
        Ok(Self {
            rows,
            pages,
            base_page,
            stats,
        })
    }

    /// The row in force at a virtual address of the file; `None` if the address is in no page or in an empty one.
    ///
    /// For a return address ask for the address minus one: a call can be a function's last instruction.
    pub fn row_at(&self, vaddr: u64) -> Option<Row> {
        let index = (vaddr >> PAGE_SHIFT).checked_sub(u64::from(self.base_page))?;
        let page = self.pages.get(usize::try_from(index).ok()?)?;
        let rows = self.rows.get(page.start as usize..)?.get(..page.count as usize)?;
        let following = rows.partition_point(|row| row.pc_low <= vaddr as u16);
        rows.get(following.checked_sub(1)?).copied()
    }
}
