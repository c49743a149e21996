//! Compares a function's bytes in the file with those in the process.

use std::collections::HashSet;
use std::io;

use super::code::Code;
use super::error::Refusal;

/// What the kernel (for a uprobe) or a debugger writes over the first byte of an instruction.
const BREAKPOINT: u8 = 0xcc;

/// Reads the target's memory.
pub trait CodeReader {
    /// Fills `buf` with the bytes at `vaddr`, an address as the ELF file counts; the implementation adds the
    /// load bias.
    ///
    /// # Errors
    ///
    /// When any byte of the range cannot be read.
    fn read(&self, vaddr: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// Checks that the process runs the code that was decoded. Returns the offsets of breakpoints that somebody
/// else has set.
///
/// Uprobes show in a process as a lone breakpoint on an instruction; the kernel shares them between tracers,
/// so they do no harm. Any other difference is code that was changed at run time.
pub(super) fn verify(code: Code<'_>, live: &dyn CodeReader) -> Result<Vec<usize>, Refusal> {
    let mut memory = vec![0; code.bytes.len()];
    live.read(code.address, &mut memory)
        .map_err(Refusal::Unreadable)?;
    let mut boundaries: Option<HashSet<u64>> = None;
    let mut breakpoints = Vec::new();
    for (offset, (&file, &live)) in code.bytes.iter().zip(&memory).enumerate() {
        if file == live {
            continue;
        }
        let boundaries = boundaries.get_or_insert_with(|| code.instructions().map(|i| i.ip()).collect());
        if live != BREAKPOINT || !boundaries.contains(&(code.address + offset as u64)) {
            return Err(Refusal::Modified { offset, file, live });
        }
        breakpoints.push(offset);
    }
    Ok(breakpoints)
}
