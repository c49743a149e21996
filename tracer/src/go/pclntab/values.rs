//! Tables of values by address: pairs of varints, by how much the value changes and for how many bytes of code it holds
//! (`runtime/symtab.go`, `step`).

/// A table of values.
pub(super) struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Values<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The value at an offset from the function's entry.
    pub fn at(mut self, offset: u64) -> Option<i32> {
        let (mut value, mut end) = (-1i32, 0u64);
        loop {
            let change = self.varint()?;
            if change == 0 && end != 0 {
                return None;
            }
            value = value.wrapping_add(zigzag(change));
            end = end.checked_add(u64::from(self.varint()?))?;
            if offset < end {
                return Some(value);
            }
        }
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0;
        for shift in (0..32).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// The least significant bit is the sign.
fn zigzag(value: u32) -> i32 {
    let magnitude = (value >> 1).cast_signed();
    if value & 1 == 0 { magnitude } else { !magnitude }
}
