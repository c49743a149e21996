//! Tests of the planner: prefixes of known functions, crafted images, the machine's libraries, and the kernel
//! itself.

mod crafted;
mod elf;
mod emulation;
mod exits;
mod forward;
mod go_entry;
mod kernel;
mod names;
mod prefixes;
mod real;
mod returns;

use std::io;

use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{LittleEndian, ReadRef};

use super::CodeReader;

/// The memory of a process that maps the file and changed nothing.
struct Unchanged<'d>(&'d [u8]);

impl CodeReader for Unchanged<'_> {
    fn read(&self, vaddr: u64, buf: &mut [u8]) -> io::Result<()> {
        let file = ElfFile64::<LittleEndian>::parse(self.0).map_err(io::Error::other)?;
        let segments = file.elf_program_headers().iter();
        let offset = segments
            .filter(|header| header.p_type(LittleEndian) == PT_LOAD)
            .find_map(|header| {
                let within = vaddr.checked_sub(header.p_vaddr(LittleEndian))?;
                (within < header.p_filesz(LittleEndian)).then(|| header.p_offset(LittleEndian) + within)
            })
            .ok_or(io::ErrorKind::NotFound)?;
        let bytes = self.0.read_bytes_at(offset, buf.len() as u64);
        buf.copy_from_slice(bytes.map_err(|()| io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The same memory, with some bytes changed: `(vaddr, byte)`.
struct Changed<'d>(&'d [u8], &'d [(u64, u8)]);

impl CodeReader for Changed<'_> {
    fn read(&self, vaddr: u64, buf: &mut [u8]) -> io::Result<()> {
        Unchanged(self.0).read(vaddr, buf)?;
        for &(address, byte) in self.1 {
            let index = address
                .checked_sub(vaddr)
                .and_then(|index| usize::try_from(index).ok());
            if let Some(slot) = index.and_then(|index| buf.get_mut(index)) {
                *slot = byte;
            }
        }
        Ok(())
    }
}
