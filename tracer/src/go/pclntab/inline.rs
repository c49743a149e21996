//! Calls that the compiler inlined (`inlinedCall`, `runtime/symtabinl.go`).

use super::{positive, u32_at};

/// An inlined call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InlinedCall {
    /// Where the called function's name is among the names.
    pub name: u32,
    /// Where the called function begins (line); 0 when not known.
    pub start_line: u32,
    /// An instruction of the caller's at the place of the call, as an offset from the entry.
    pub caller: u64,
    /// `funcID` of the called function.
    pub kind: u8,
}

impl InlinedCall {
    /// Reads an entry of a tree; `is_new` since Go 1.20.
    pub fn read(tree: &[u8], index: usize, is_new: bool) -> Option<Self> {
        let length: usize = if is_new { 16 } else { 20 };
        let entry = tree.get(index.checked_mul(length)?..)?.get(..length)?;
        let word = |at| u32_at(entry, at);
        // Before: parent (i16), funcID, padding, file, line, func, parentPc. Since: funcID, padding, nameOff, parentPc,
        // startLine.
        let call = if is_new {
            Self {
                name: word(4)?,
                start_line: positive(word(12)?.cast_signed()),
                caller: u64::from(word(8)?),
                kind: entry[0],
            }
        } else {
            Self {
                name: word(12)?,
                start_line: 0,
                caller: u64::from(word(16)?),
                kind: entry[2],
            }
        };
        Some(call)
    }
}
