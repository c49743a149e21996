//! Unwind tables: one [`Row`] a range of code, grouped in 64 KiB [`Page`]s, one [`Mapping`] a mapped segment.
//!
//! Rows are made from `.eh_frame` by user space (`memtrace::unwind`) and read by the walker.
//! Register names: `sp` is `%rsp`, `fp` is `%rbp`; the CFA is the value of `sp` before the call.

/// How many bytes of a file's address space one [`Page`] covers, as a power of two.
pub const PAGE_SHIFT: u32 = 16;

/// How to find the canonical frame address (CFA); `offset` is [`Row::cfa_offset`], counted in 8-byte words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CfaKind {
    /// `CFA = sp + 8 * offset`
    Sp = 0,
    /// `CFA = fp + 8 * offset`
    Fp = 1,
    /// `CFA = *(fp + 8 * offset as i16)`: a function that realigned its stack (GCC's `DW_OP_breg6 n, DW_OP_deref`).
    DerefFp = 2,
    /// `CFA = *(sp + 8 * offset) + 8`: hand-written assembly that saved the old `sp` on its stack.
    DerefSp = 3,
    /// `CFA = sp + 8 + 8 * ((pc & 15) >= offset)`: a procedure linkage table's entry.
    Plt = 4,
    /// A signal trampoline: every register is in the `ucontext` at `sp`.
    Signal = 5,
    /// The outermost frame: the return address is undefined here, as in `_start` and in a thread's `clone`.
    End = 6,
    /// There is a rule, but not one this table can express.
    Unsupported = 7,
    /// No frame description covers this code.
    NoInfo = 8,
    /// `CFA = fp + 16`, `fp = *(CFA - 16)`: code without tables that keeps frame pointers (JIT, Go).
    FramePointer = 9,
}

/// Where the caller's `fp` is; `offset` is [`Row::fp_offset`], counted in 8-byte words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FpKind {
    /// Unchanged by this function.
    Same = 0,
    /// `fp = *(CFA + 8 * offset)`
    AtCfa = 1,
    /// `fp = *(fp + 8 * offset)`: saved relative to a realigned frame.
    AtFp = 2,
    /// Lost: a caller that needs `fp` cannot be unwound.
    Undefined = 3,
}

/// One rule: holds from `pc_low` until the next row's. The return address is at `CFA - 8` (System V ABI, x86-64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// First address of the range, relative to the start of its page (bytes).
    pub pc_low: u16,
    /// A [`CfaKind`].
    pub cfa_kind: u8,
    /// A [`FpKind`].
    pub fp_kind: u8,
    /// The CFA rule's offset in 8-byte words; [`CfaKind::Plt`]: the threshold in bytes.
    pub cfa_offset: u16,
    /// The `fp` rule's offset in 8-byte words.
    pub fp_offset: i16,
}

/// The rows of one 64 KiB page of a file's address space.
///
/// The first row of a non-empty page has `pc_low == 0`, so that a look-up never leaves its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Page {
    /// Index of the first row.
    pub start: u32,
    /// How many rows follow.
    pub count: u32,
}

/// One executable mapping of an address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// First byte (virtual address in the process).
    pub begin: u64,
    /// One past the last byte (virtual address in the process).
    pub end: u64,
    /// Load bias: process address minus the file's virtual address.
    pub bias: u64,
    /// Index, among the pages of all files, of the file's first [`Page`].
    ///
    /// [`NO_TABLE`]: there is no table, step by frame pointer.
    pub page_base: u32,
    /// How many pages the file has.
    pub page_count: u32,
    /// Names the mapping in stored frames, see [`frame`]; never reused for another file or bias.
    pub id: u16,
    /// Padding.
    pub _pad: u16,
    /// Which 64 KiB page of the file's virtual addresses its first [`Page`] is.
    pub page_first: u32,
}

/// [`Mapping::page_base`] of code without a table, such as JIT-compiled code.
pub const NO_TABLE: u32 = u32::MAX;

const _: () = assert!(size_of::<Row>() == 8);
const _: () = assert!(size_of::<Page>() == 8);
const _: () = assert!(size_of::<Mapping>() == 40);

/// A stored frame: the mapping's id in the upper 16 bits, the process address in the lower 48.
///
/// The address is the return address, unchanged, except for a frame that a signal interrupted and for the
/// innermost: viewers and symbolizers want the call's own address, so user space subtracts one where
/// [`frame::RETURN`] says so; 47 bits hold a user address (`Documentation/arch/x86/x86_64/mm.rst`).
pub mod frame {
    /// Set when the address is a return address.
    pub const RETURN: u64 = 1 << 47;
    const ADDRESS: u64 = RETURN - 1;

    /// Packs a frame.
    #[inline(always)]
    pub const fn pack(mapping: u16, address: u64, is_return: bool) -> u64 {
        (mapping as u64) << 48 | if is_return { RETURN } else { 0 } | address & ADDRESS
    }

    /// The mapping's id.
    pub const fn mapping(frame: u64) -> u16 {
        (frame >> 48) as u16
    }

    /// The process address as the register or stack held it.
    pub const fn address(frame: u64) -> u64 {
        frame & ADDRESS
    }

    /// The address to symbolize: inside the call instruction for a return address.
    pub const fn lookup_address(frame: u64) -> u64 {
        address(frame) - (frame & RETURN != 0) as u64
    }
}

impl Row {
    /// A row that carries only its kind.
    pub const fn of_kind(pc_low: u16, kind: CfaKind) -> Self {
        Self {
            pc_low,
            cfa_kind: kind as u8,
            fp_kind: FpKind::Same as u8,
            cfa_offset: 0,
            fp_offset: 0,
        }
    }
}
