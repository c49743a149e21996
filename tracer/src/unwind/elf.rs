//! Finds `.eh_frame` and the executable segments of an ELF file.

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, LittleEndian, Pointer};
use object::{
    LittleEndian as LE, ReadRef,
    elf::{EM_X86_64, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64, SHT_NOBITS},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
};

use super::{Limit, UnwindError};

/// The most section headers that are searched for `.eh_frame`. Linked files have fewer than a hundred.
const MAX_SECTIONS: usize = 4096;

/// Size of a pointer, which `.eh_frame` leaves to the machine (bytes).
const ADDRESS_SIZE: u8 = 8;

/// The parts of an ELF file that unwind tables are made from.
pub(super) struct Image<'d> {
    /// The bytes of `.eh_frame`.
    pub eh_frame: &'d [u8],
    /// Virtual address of `.eh_frame`, which its relative pointers are relative to.
    pub bases: BaseAddresses,
    /// Whether a zero length ends the entries; else the size of the section does.
    pub zero_terminated: bool,
    /// Where the kernel lets the file begin (virtual address); 0 if it does not.
    pub entry: u64,
    /// Virtual addresses of the executable segments: first, one past the last.
    pub executable: Vec<(u64, u64)>,
}

impl<'d> Image<'d> {
    /// Reads the headers and `.eh_frame`, nothing else.
    pub fn parse<R: ReadRef<'d>>(data: R) -> Result<Self, UnwindError> {
        let header = FileHeader64::<LE>::parse(data)?;
        let machine = header.e_machine(LE);
        if machine != EM_X86_64 || !header.is_little_endian() {
            return Err(UnwindError::WrongMachine(machine));
        }
        Limit::ProgramHeaders.check(header.phnum(LE, data)? as u64)?;
        let segments = header.program_headers(LE, data)?;
        let executable = segments
            .iter()
            .filter(|segment| segment.p_type(LE) == PT_LOAD && segment.p_flags(LE) & PF_X != 0)
            .map(|segment| {
                (
                    segment.p_vaddr(LE),
                    segment.p_vaddr(LE).saturating_add(segment.p_memsz(LE)),
                )
            })
            .collect();
        // Section headers are not needed to run a file: whatever is wrong with them, the segments may do.
        let by_section = by_section(header, data).ok().flatten();
        let zero_terminated = by_section.is_none();
        let (location, address) = match by_section {
            Some(found) => found,
            None => by_segment(segments, data)?.ok_or(UnwindError::NoEhFrame)?,
        };
        let eh_frame = location.read(data)?;
        Ok(Self {
            eh_frame,
            bases: BaseAddresses::default().set_eh_frame(address),
            zero_terminated,
            entry: header.e_entry(LE),
            executable,
        })
    }

    /// The section for gimli.
    pub fn section(&self) -> EhFrame<gimli::EndianSlice<'d, LittleEndian>> {
        let mut section = EhFrame::new(self.eh_frame, LittleEndian);
        section.set_address_size(ADDRESS_SIZE);
        section
    }
}

/// A range of a file (bytes).
struct FileRange {
    offset: u64,
    size: u64,
}

impl FileRange {
    fn read<'d, R: ReadRef<'d>>(&self, data: R) -> Result<&'d [u8], UnwindError> {
        Limit::SectionBytes.check(self.size)?;
        data.read_bytes_at(self.offset, self.size)
            .map_err(|()| UnwindError::Truncated {
                offset: self.offset,
                size: self.size,
            })
    }
}

/// `.eh_frame` and its virtual address, by its section header.
fn by_section<'d, R: ReadRef<'d>>(
    header: &FileHeader64<LE>,
    data: R,
) -> Result<Option<(FileRange, u64)>, object::Error> {
    if header.shnum(LE, data)? > MAX_SECTIONS {
        return Ok(None);
    }
    let sections = header.sections(LE, data)?;
    let Some((_, section)) = sections.section_by_name(LE, b".eh_frame") else {
        return Ok(None);
    };
    if section.sh_type(LE) == SHT_NOBITS || section.sh_size(LE) == 0 {
        return Ok(None);
    }
    let range = FileRange {
        offset: section.sh_offset(LE),
        size: section.sh_size(LE),
    };
    Ok(Some((range, section.sh_addr(LE))))
}

/// `.eh_frame` and its virtual address, through `.eh_frame_hdr`, which a program header locates.
///
/// Its size is not recorded: it ends at an entry of length zero, or with its segment.
fn by_segment<'d, R: ReadRef<'d>>(
    segments: &[ProgramHeader64<LE>],
    data: R,
) -> Result<Option<(FileRange, u64)>, UnwindError> {
    let Some(hdr_segment) = segments
        .iter()
        .find(|segment| segment.p_type(LE) == PT_GNU_EH_FRAME)
    else {
        return Ok(None);
    };
    let hdr_address = hdr_segment.p_vaddr(LE);
    let hdr_range = FileRange {
        offset: hdr_segment.p_offset(LE),
        size: hdr_segment.p_filesz(LE),
    };
    let hdr = EhFrameHdr::new(hdr_range.read(data)?, LittleEndian)
        .parse(
            &BaseAddresses::default().set_eh_frame_hdr(hdr_address),
            ADDRESS_SIZE,
        )
        .map_err(|source| UnwindError::EhFrameHdr { source })?;
    let Pointer::Direct(address) = hdr.eh_frame_ptr() else {
        return Ok(None);
    };
    let containing = segments.iter().find_map(|segment| {
        let inside = address.checked_sub(segment.p_vaddr(LE))?;
        let size = segment.p_filesz(LE).checked_sub(inside)?;
        let offset = segment.p_offset(LE).checked_add(inside)?;
        (segment.p_type(LE) == PT_LOAD && size > 0).then_some(FileRange { offset, size })
    });
    Ok(containing.map(|range| {
        let size = range.size.min(Limit::SectionBytes.max());
        (FileRange { size, ..range }, address)
    }))
}
