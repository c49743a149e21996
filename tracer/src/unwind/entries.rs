//! Splits `.eh_frame` into its entries.

/// The first four bytes of an entry whose length is in the eight that follow (LSB Core, "Exception Frames").
const EXTENDED_LENGTH: u32 = u32::MAX;

/// Where an entry begins in the section (bytes), and which kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A common information entry.
    Cie(usize),
    /// A frame description.
    Fde(usize),
}

/// The entries of a section, in its order. They never overlap, so that reading all of them is linear work.
pub(super) struct Entries<'d> {
    section: &'d [u8],
    position: usize,
    zero_terminated: bool,
    damaged: bool,
}

impl<'d> Entries<'d> {
    /// `zero_terminated`: the section ends at a length of zero. Else such a length is skipped: linkers leave the
    /// terminators of object files between entries.
    pub fn new(section: &'d [u8], zero_terminated: bool) -> Self {
        Self {
            section,
            position: 0,
            zero_terminated,
            damaged: false,
        }
    }

    /// Whether the iteration ended at a length that leads out of the section.
    pub fn is_damaged(&self) -> bool {
        self.damaged
    }

    fn u32_at(&self, position: usize) -> Option<u32> {
        self.section
            .get(position..)?
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The entry at the current position, which moves behind it; `None` if it leads out of the section.
    fn take_entry(&mut self, length: u32) -> Option<Entry> {
        let offset = self.position;
        let (length, id_at) = if length == EXTENDED_LENGTH {
            let bytes = self.section.get(offset + 4..)?.first_chunk()?;
            (usize::try_from(u64::from_le_bytes(*bytes)).ok()?, offset + 12)
        } else {
            (length as usize, offset + 4)
        };
        let end = id_at.checked_add(length)?;
        if length < 4 || end > self.section.len() {
            return None;
        }
        let id = self.u32_at(id_at)?;
        self.position = end;
        Some(if id == 0 {
            Entry::Cie(offset)
        } else {
            Entry::Fde(offset)
        })
    }
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        while self.position < self.section.len() {
            let length = self.u32_at(self.position);
            if length == Some(0) {
                if self.zero_terminated {
                    break;
                }
                self.position += 4;
                continue;
            }
            let entry = length.and_then(|length| self.take_entry(length));
            if entry.is_some() {
                return entry;
            }
            self.damaged = true;
            break;
        }
        self.position = self.section.len();
        None
    }
}
