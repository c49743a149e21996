//! What is at the beginning of the table (`pcHeader`, `runtime/symtab.go`).

/// Its length in bytes.
pub(in crate::go) const HEADER_LENGTH: usize = 72;
/// The magic of Go 1.18 and 1.19, little-endian.
const MAGIC_1_18: [u8; 4] = [0xf0, 0xff, 0xff, 0xff];
/// The magic since Go 1.20.
const MAGIC_1_20: [u8; 4] = [0xf1, 0xff, 0xff, 0xff];
/// Behind the magic on amd64: two bytes of padding, the smallest instruction, the size of a pointer.
const MACHINE: [u8; 4] = [0, 0, 1, 8];
/// More functions than any program has.
const MAX_FUNCTIONS: u64 = 1 << 26;

/// Where the parts of the table are (bytes from its beginning).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::go) struct Header {
    /// Whether it is of Go 1.20 or newer.
    pub is_new: bool,
    /// How many functions there are.
    pub count: u64,
    /// The names of functions.
    pub names: u64,
    /// By compilation unit, which names of files are its.
    pub units: u64,
    /// The names of files.
    pub files: u64,
    /// The tables of values by address.
    pub values: u64,
    /// The functions: in order of address, then one by one.
    pub functions: u64,
}

impl Header {
    /// `None` when `bytes` do not begin with a header.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let is_new = match *bytes.first_chunk::<4>()? {
            MAGIC_1_18 => false,
            MAGIC_1_20 => true,
            _ => return None,
        };
        if bytes.get(4..8)? != MACHINE {
            return None;
        }
        let word = |index: usize| {
            let bytes = bytes.get(8 * index..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        };
        let header = Self {
            is_new,
            count: word(1).filter(|count| (1..=MAX_FUNCTIONS).contains(count))?,
            names: word(4)?,
            units: word(5)?,
            files: word(6)?,
            values: word(7)?,
            functions: word(8)?,
        };
        let parts = [
            header.names,
            header.units,
            header.files,
            header.values,
            header.functions,
        ];
        (parts.is_sorted() && header.names >= HEADER_LENGTH as u64).then_some(header)
    }

    /// Whether the parts, and the list of functions, are within the table.
    pub fn fits(&self, table: &[u8]) -> bool {
        let list = self.count * 8 + 4;
        self.functions
            .checked_add(list)
            .is_some_and(|end| end <= table.len() as u64)
    }
}
