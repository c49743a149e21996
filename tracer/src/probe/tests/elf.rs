//! Writes small ELF files, sound and otherwise.

/// The virtual address of the file's first byte.
pub const BASE: u64 = 0x40_0000;
/// Where the code begins in the file.
const TEXT: usize = 0x200;
/// The largest code that fits before the tables.
const TEXT_SIZE: usize = 0x600;

/// A symbol of the file.
#[derive(Clone)]
pub struct Symbol {
    pub name: &'static str,
    /// Offset in the code.
    pub at: u64,
    pub size: u64,
    /// `st_info`: binding times 16, plus type.
    pub info: u8,
    /// `st_shndx`; 1 is the code.
    pub section: u16,
}

/// A shared object with one segment, a dynamic symbol table and, if there are frames, `.eh_frame`.
#[derive(Clone, Default)]
pub struct Elf {
    pub code: Vec<u8>,
    pub symbols: Vec<Symbol>,
    /// FDEs: offset in the code, and length.
    pub frames: Vec<(u64, u64)>,
    /// `p_flags` of the segment, 5 (read and execute) when 0.
    pub flags: u32,
    /// The name of the section that holds the code, `.text` when empty.
    pub section: &'static str,
}

/// A global function.
pub const FUNCTION: u8 = 0x12;
/// A local function.
pub const LOCAL_FUNCTION: u8 = 0x02;
/// A global indirect function.
pub const INDIRECT: u8 = 0x1a;
/// A global variable.
pub const VARIABLE: u8 = 0x11;

/// The virtual address of an offset in the code.
pub const fn vaddr(at: u64) -> u64 {
    BASE + TEXT as u64 + at
}

impl Elf {
    /// A file whose only function is `name`, with an FDE.
    pub fn with_function(name: &'static str, code: &[u8]) -> Self {
        let size = code.len() as u64;
        let symbols = vec![Symbol {
            name,
            at: 0,
            size,
            info: FUNCTION,
            section: 1,
        }];
        Self {
            code: code.to_vec(),
            symbols,
            frames: vec![(0, size)],
            ..Self::default()
        }
    }

    /// A file with these global functions, one after the other, each with an FDE.
    pub fn with_functions(functions: &[(&'static str, &[u8])]) -> Self {
        let mut elf = Self::default();
        for (name, code) in functions {
            let (at, size) = (elf.code.len() as u64, code.len() as u64);
            elf.code.extend_from_slice(code);
            elf.frames.push((at, size));
            elf.symbols.push(Symbol {
                name,
                at,
                size,
                info: FUNCTION,
                section: 1,
            });
        }
        elf
    }

    pub fn build(&self) -> Vec<u8> {
        assert!(self.code.len() <= TEXT_SIZE);
        let mut file = vec![0; TEXT + TEXT_SIZE];
        file[TEXT..TEXT + self.code.len()].copy_from_slice(&self.code);
        let (symbols, names) = self.symbol_table();
        let mut section_names = b"\0.text\0.dynsym\0.dynstr\0.eh_frame\0.shstrtab\0".to_vec();
        let code_name = match self.section {
            "" => 1,
            _ => u32::try_from(section_names.len()).expect("few names"),
        };
        section_names.extend(self.section.as_bytes());
        section_names.push(0);
        // Type, flags, content, link, entry size.
        let tables = [
            (11_u32, 2_u64, symbols, 3_u32, 24_u64),
            (3, 0, names, 0, 0),
            (1, 2, self.eh_frame(), 0, 0),
            (3, 0, section_names, 0, 0),
        ];
        let mut headers = vec![0; 64];
        headers.extend(section(
            code_name,
            1,
            6,
            (TEXT as u64, self.code.len() as u64),
            0,
            0,
        ));
        for ((kind, flags, content, link, entry), name) in tables.into_iter().zip([7, 15, 23, 33]) {
            file.resize(file.len().next_multiple_of(8), 0);
            let place = (file.len() as u64, content.len() as u64);
            headers.extend(section(name, kind, flags, place, link, entry));
            file.extend(content);
        }
        file.resize(file.len().next_multiple_of(8), 0);
        let section_headers = file.len() as u64;
        file.extend(headers);
        let header = self.header(section_headers, file.len() as u64);
        file[..header.len()].copy_from_slice(&header);
        file
    }

    /// The ELF header and the one program header.
    fn header(&self, section_headers: u64, file_size: u64) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        header.extend([3_u16, 62].into_iter().flat_map(u16::to_le_bytes)); // ET_DYN, EM_X86_64
        header.extend(1_u32.to_le_bytes());
        header.extend([0, 64, section_headers].into_iter().flat_map(u64::to_le_bytes));
        header.extend(0_u32.to_le_bytes());
        header.extend([64_u16, 56, 1, 64, 6, 5].into_iter().flat_map(u16::to_le_bytes));
        let flags = if self.flags == 0 { 5 } else { self.flags };
        header.extend([1_u32, flags].into_iter().flat_map(u32::to_le_bytes));
        header.extend(
            [0, BASE, BASE, file_size, file_size, 0x1000]
                .into_iter()
                .flat_map(u64::to_le_bytes),
        );
        header
    }

    fn symbol_table(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut table, mut names) = (vec![0; 24], vec![0]);
        for symbol in &self.symbols {
            table.extend(u32::try_from(names.len()).expect("few names").to_le_bytes());
            table.extend([symbol.info, 0]);
            table.extend(symbol.section.to_le_bytes());
            table.extend(
                [vaddr(symbol.at), symbol.size]
                    .into_iter()
                    .flat_map(u64::to_le_bytes),
            );
            names.extend(symbol.name.as_bytes());
            names.push(0);
        }
        (table, names)
    }

    /// One CIE with absolute pointers (augmentation `zR`, encoding 0), then the FDEs, then the terminator.
    fn eh_frame(&self) -> Vec<u8> {
        let cie = b"\0\0\0\0\x01zR\0\x01\x78\x10\x01\0\x0c\x07\x08\x90\x01\0\0";
        let mut frames = Vec::new();
        frames.extend(20_u32.to_le_bytes());
        frames.extend(cie);
        for &(at, size) in &self.frames {
            frames.extend(28_u32.to_le_bytes());
            frames.extend(u32::try_from(frames.len()).expect("few frames").to_le_bytes());
            frames.extend([vaddr(at), size].into_iter().flat_map(u64::to_le_bytes));
            frames.extend([0; 8]);
        }
        frames.extend([0; 4]);
        frames
    }
}

fn section(name: u32, kind: u32, flags: u64, (offset, size): (u64, u64), link: u32, entry: u64) -> Vec<u8> {
    let mut header = [name, kind].map(u32::to_le_bytes).concat();
    header.extend(
        [flags, BASE + offset, offset, size]
            .into_iter()
            .flat_map(u64::to_le_bytes),
    );
    header.extend([link, 1].into_iter().flat_map(u32::to_le_bytes));
    header.extend([8, entry].into_iter().flat_map(u64::to_le_bytes));
    header
}
