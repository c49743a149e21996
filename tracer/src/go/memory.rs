//! Reading words of a target's memory.

use std::io;

use super::GoError;
use crate::target::Process;

pub use crate::target::Piece;

/// A target's memory.
pub trait Memory {
    /// Fills `buffer` from this virtual address.
    ///
    /// # Errors
    /// When not every byte could be read.
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Reads many pieces; each says whether it was read.
    fn read_many(&self, pieces: &mut [Piece<'_>]) {
        for piece in pieces {
            piece.is_read = self.read(piece.address, piece.buffer).is_ok();
        }
    }
}

impl Memory for Process {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_memory(address, buffer)
    }

    fn read_many(&self, pieces: &mut [Piece<'_>]) {
        self.read_pieces(pieces);
    }
}

/// Reads a word of 8 bytes.
///
/// # Errors
/// When it cannot be read.
pub fn read_u64(memory: &dyn Memory, address: u64) -> Result<u64, GoError> {
    let mut bytes = [0; 8];
    read(memory, address, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Reads a word of 4 bytes.
///
/// # Errors
/// When it cannot be read.
pub fn read_u32(memory: &dyn Memory, address: u64) -> Result<u32, GoError> {
    let mut bytes = [0; 4];
    read(memory, address, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Reads `count` words of 8 bytes.
///
/// # Errors
/// When they cannot be read.
pub fn read_words(memory: &dyn Memory, address: u64, count: usize) -> Result<Vec<u64>, GoError> {
    let mut bytes = vec![0; count * 8];
    read(memory, address, &mut bytes)?;
    let words = bytes.chunks_exact(8).filter_map(|chunk| chunk.first_chunk());
    Ok(words.map(|word| u64::from_ne_bytes(*word)).collect())
}

fn read(memory: &dyn Memory, address: u64, buffer: &mut [u8]) -> Result<(), GoError> {
    memory
        .read(address, buffer)
        .map_err(|source| GoError::Memory { address, source })
}
