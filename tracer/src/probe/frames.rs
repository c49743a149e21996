//! Function bounds from `.eh_frame`.

use std::ops::Range;

use gimli::{BaseAddresses, EhFrame, EndianSlice, LittleEndian, UnwindSection};

type Slice<'d> = EndianSlice<'d, LittleEndian>;

/// `.eh_frame_hdr`: version 1, `eh_frame_ptr` pcrel sdata4, count udata4, table datarel sdata4. Every linker
/// writes it so.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
/// Bytes of the header before the table.
const HEADER_SIZE: usize = 12;
/// A row of the table: where an FDE's code begins and where the FDE is, both relative to the header.
const ROW_SIZE: usize = 8;

/// The unwind information of an image, used for the bounds of functions only.
pub(super) struct Frames<'d> {
    eh_frame: EhFrame<Slice<'d>>,
    /// Virtual address of `eh_frame`.
    address: u64,
    bases: BaseAddresses,
    /// The sorted table of `.eh_frame_hdr`, and the header's virtual address.
    table: Option<(&'d [u8], u64)>,
}

/// Where `.eh_frame_hdr` says that `.eh_frame` begins; `None` when it is written in an unusual way.
pub(super) fn eh_frame_address(header: &[u8], address: u64) -> Option<u64> {
    (header.get(..4)? == HEADER).then_some(())?;
    // The pointer is relative to itself, four bytes into the header.
    address
        .checked_add(4)?
        .checked_add_signed(read_i32(header, 4)?.into())
}

impl<'d> Frames<'d> {
    /// `header` is `.eh_frame_hdr` with its virtual address, when [`eh_frame_address`] understands it.
    pub fn new(eh_frame: &'d [u8], address: u64, header: Option<(&'d [u8], u64)>) -> Self {
        let mut bases = BaseAddresses::default().set_eh_frame(address);
        if let Some((_, header)) = header {
            bases = bases.set_eh_frame_hdr(header);
        }
        let table = header.and_then(|(bytes, address)| {
            let rows = usize::try_from(read_u32(bytes, 8)?).ok()?;
            let size = rows.checked_mul(ROW_SIZE)?;
            let table = bytes.get(HEADER_SIZE..HEADER_SIZE.checked_add(size)?)?;
            Some((table, address))
        });
        Self {
            eh_frame: EhFrame::new(eh_frame, LittleEndian),
            address,
            bases,
            table,
        }
    }

    /// The code that the FDE which covers `vaddr` describes; `None` when no FDE covers it.
    pub fn covering(&self, vaddr: u64) -> Option<Range<u64>> {
        let fde = match self.table {
            Some((table, header)) => {
                let offset = self.lookup(table, header, vaddr)?;
                self.eh_frame
                    .fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset)
                    .ok()?
            }
            None => self
                .eh_frame
                .fde_for_address(&self.bases, vaddr, EhFrame::cie_from_offset)
                .ok()?,
        };
        let begin = fde.initial_address();
        let range = begin..begin.checked_add(fde.len())?;
        range.contains(&vaddr).then_some(range)
    }

    /// The offset in `.eh_frame` of the last FDE that begins at or before `vaddr`.
    fn lookup(&self, table: &[u8], header: u64, vaddr: u64) -> Option<usize> {
        let field = |row: usize, field: usize| {
            let offset = row.checked_mul(ROW_SIZE)?.checked_add(field)?;
            header.checked_add_signed(read_i32(table, offset)?.into())
        };
        let (mut low, mut high) = (0, table.len() / ROW_SIZE);
        while low < high {
            let middle = low.midpoint(high);
            if field(middle, 0)? <= vaddr {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let fde = field(low.checked_sub(1)?, 4)?;
        usize::try_from(fde.checked_sub(self.address)?).ok()
    }
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..offset.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

fn read_i32(bytes: &[u8], offset: usize) -> Option<i32> {
    read_u32(bytes, offset).map(u32::cast_signed)
}
