//! Tables of values by address: pairs of varints, by how much the value changes and for how many bytes of code it holds
//! (`runtime/symtab.go`, `step`).

/// The longest table, in bytes; those of the largest functions that compilers make are far shorter.
const MAX_TABLE: usize = 4 << 20;

/// A table of values.
pub(super) struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Values<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: &bytes[..bytes.len().min(MAX_TABLE)],
        }
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
            let length = self.varint().filter(|length| *length > 0)?;
            end += u64::from(length);
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

#[cfg(test)]
mod tests {
    use super::Values;

    #[test]
    fn values_hold_until_the_next() {
        // From -1 to 0 for 4 bytes, to 8 for 300, to 7 for 1, and the end.
        let table = [2, 4, 16, 0xac, 2, 1, 1, 0];
        let at = |offset| Values::new(&table).at(offset);
        assert_eq!(
            [at(0), at(3), at(4), at(303), at(304)],
            [Some(0), Some(0), Some(8), Some(8), Some(7)]
        );
        assert_eq!(at(305), None);
    }

    #[test]
    fn a_table_that_does_not_end_has_no_value() {
        assert_eq!(Values::new(&[]).at(0), None);
        assert_eq!(Values::new(&[2]).at(0), None);
        assert_eq!(Values::new(&[2, 0, 2, 0]).at(0), None);
        assert_eq!(Values::new(&[0xff; 64]).at(0), None);
        assert_eq!(Values::new(&[2, 1].repeat(64)).at(64), None);
    }
}
