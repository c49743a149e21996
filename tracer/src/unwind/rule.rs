//! Turns one evaluated line of call frame information into what a row can say.

use gimli::{
    CfaRule, EhFrame, Encoding, EndianSlice, Expression, Format, LittleEndian, Operation, Register,
    RegisterRule, UnwindContextStorage, UnwindExpression, UnwindTableRow, X86_64,
};
use memtrace_ebpf::unwind::{CfaKind, FpKind, Row};

/// How gimli reads the section.
pub(super) type Slice<'d> = EndianSlice<'d, LittleEndian>;

/// Room for evaluating one frame description: fixed, so that a crafted one can cost neither memory nor much time.
///
/// x86-64 has 16 general registers and the return address; `ms_abi` functions also save ten vector registers.
pub(super) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 40];
    type Stack = Box<[UnwindTableRow<usize, Self>; 8]>;
}

/// Where the return address is, as seen from the CFA (System V ABI, x86-64, bytes).
const RETURN_ADDRESS_AT: i64 = -8;
/// Offset of `rsp` in the `ucontext` at a signal trampoline's `sp` (`arch/x86/include/uapi/asm/sigcontext.h`).
const UCONTEXT_SP: i64 = 160;
/// The longest expression that a row can stand for (operations).
const MAX_OPERATIONS: usize = 9;

/// A [`Row`] without its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    cfa_kind: CfaKind,
    fp_kind: FpKind,
    cfa_offset: u16,
    fp_offset: i16,
}

impl Rule {
    /// A frame description covers this code, but no row can express it.
    pub const UNSUPPORTED: Self = Self::of_kind(CfaKind::Unsupported);
    /// Nothing covers this code.
    pub const NO_INFO: Self = Self::of_kind(CfaKind::NoInfo);
    /// Code without descriptions that keeps frame pointers.
    pub const FRAME_POINTER: Self = Self::of_kind(CfaKind::FramePointer);
    /// The outermost frame.
    pub const END: Self = Self::of_kind(CfaKind::End);

    pub const fn of_kind(cfa_kind: CfaKind) -> Self {
        Self {
            cfa_kind,
            fp_kind: FpKind::Same,
            cfa_offset: 0,
            fp_offset: 0,
        }
    }

    /// The row at this address of its page.
    pub fn at(self, pc_low: u16) -> Row {
        Row {
            pc_low,
            cfa_kind: self.cfa_kind as u8,
            fp_kind: self.fp_kind as u8,
            cfa_offset: self.cfa_offset,
            fp_offset: self.fp_offset,
        }
    }

    /// What a row can say of this line; `is_signal`: the description carries the augmentation `S`.
    pub fn of_line(
        line: &UnwindTableRow<usize, Storage>,
        is_signal: bool,
        section: &EhFrame<Slice<'_>>,
    ) -> Self {
        match line.register(X86_64::RA) {
            Some(RegisterRule::Undefined) => return Self::of_kind(CfaKind::End),
            _ if is_signal => return Self::of_signal(line.cfa(), section),
            Some(RegisterRule::Offset(RETURN_ADDRESS_AT)) => {}
            _ => return Self::UNSUPPORTED,
        }
        let Some((cfa_kind, cfa_offset)) = cfa(line.cfa(), section) else {
            return Self::UNSUPPORTED;
        };
        let (fp_kind, fp_offset) = fp(line.register(X86_64::RBP), section);
        Self {
            cfa_kind,
            fp_kind,
            cfa_offset,
            fp_offset,
        }
    }

    /// A signal trampoline is one whose CFA is the `rsp` of the `ucontext` at `sp`.
    fn of_signal(cfa: &CfaRule<usize>, section: &EhFrame<Slice<'_>>) -> Self {
        let CfaRule::Expression(expression) = cfa else {
            return Self::UNSUPPORTED;
        };
        match Operations::parse(expression, section).as_deref() {
            Some(
                [
                    Operation::RegisterOffset {
                        register: X86_64::RSP,
                        offset: UCONTEXT_SP,
                        ..
                    },
                    Operation::Deref {
                        size: 8,
                        space: false,
                        ..
                    },
                ],
            ) => Self::of_kind(CfaKind::Signal),
            _ => Self::UNSUPPORTED,
        }
    }
}

/// The CFA rule and its offset in words.
fn cfa(rule: &CfaRule<usize>, section: &EhFrame<Slice<'_>>) -> Option<(CfaKind, u16)> {
    match rule {
        CfaRule::RegisterAndOffset {
            register: X86_64::RSP,
            offset,
        } => Some((CfaKind::Sp, unsigned_words(*offset)?)),
        CfaRule::RegisterAndOffset {
            register: X86_64::RBP,
            offset,
        } => Some((CfaKind::Fp, unsigned_words(*offset)?)),
        CfaRule::RegisterAndOffset { .. } => None,
        CfaRule::Expression(expression) => cfa_expression(&Operations::parse(expression, section)?),
    }
}

fn cfa_expression(operations: &[Operation<Slice<'_>>]) -> Option<(CfaKind, u16)> {
    match operations {
        [
            Operation::RegisterOffset {
                register: X86_64::RBP,
                offset,
                ..
            },
            Operation::Deref {
                size: 8,
                space: false,
                ..
            },
        ] => Some((CfaKind::DerefFp, signed_words(*offset)? as u16)),
        [
            Operation::RegisterOffset {
                register: X86_64::RSP,
                offset,
                ..
            },
            Operation::Deref {
                size: 8,
                space: false,
                ..
            },
            Operation::PlusConstant { value: 8 },
        ] => Some((CfaKind::DerefSp, unsigned_words(*offset)?)),
        // The linker's own description of a procedure linkage table: entries of 16 bytes, and the first `threshold`
        // bytes of each run before its push.
        [
            Operation::RegisterOffset {
                register: X86_64::RSP,
                offset: 8,
                ..
            },
            Operation::RegisterOffset {
                register: X86_64::RA,
                offset: 0,
                ..
            },
            Operation::UnsignedConstant { value: 15 },
            Operation::And,
            Operation::UnsignedConstant {
                value: threshold @ 0..16,
            },
            Operation::Ge,
            Operation::UnsignedConstant { value: 3 },
            Operation::Shl,
            Operation::Plus,
        ] => Some((CfaKind::Plt, *threshold as u16)),
        _ => None,
    }
}

/// The frame pointer's rule and its offset in words. A register without a rule is unchanged.
fn fp(rule: Option<RegisterRule<usize>>, section: &EhFrame<Slice<'_>>) -> (FpKind, i16) {
    let known = match rule {
        None | Some(RegisterRule::SameValue) => Some((FpKind::Same, 0)),
        Some(RegisterRule::Offset(offset)) => signed_words(offset).map(|words| (FpKind::AtCfa, words)),
        Some(RegisterRule::Expression(expression)) => fp_expression(&expression, section),
        Some(_) => None,
    };
    known.unwrap_or((FpKind::Undefined, 0))
}

fn fp_expression(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'_>>,
) -> Option<(FpKind, i16)> {
    match &*Operations::parse(expression, section)? {
        [
            Operation::RegisterOffset {
                register: X86_64::RBP,
                offset,
                ..
            },
        ] => Some((FpKind::AtFp, signed_words(*offset)?)),
        _ => None,
    }
}

fn unsigned_words(bytes: i64) -> Option<u16> {
    if bytes % 8 == 0 {
        u16::try_from(bytes / 8).ok()
    } else {
        None
    }
}

fn signed_words(bytes: i64) -> Option<i16> {
    if bytes % 8 == 0 {
        i16::try_from(bytes / 8).ok()
    } else {
        None
    }
}

/// The operations of a short expression.
struct Operations<'d> {
    operations: [Operation<Slice<'d>>; MAX_OPERATIONS],
    len: usize,
}

impl<'d> Operations<'d> {
    /// `None` if the expression is damaged or longer than any that a row can stand for.
    fn parse(expression: &UnwindExpression<usize>, section: &EhFrame<Slice<'d>>) -> Option<Self> {
        let Expression(bytes) = expression.get(section).ok()?;
        let encoding = Encoding {
            address_size: 8,
            format: Format::Dwarf32,
            version: 4,
        };
        let mut operations = Expression(bytes).operations(encoding);
        let mut parsed = Self {
            operations: [Operation::Nop; MAX_OPERATIONS],
            len: 0,
        };
        while let Some(operation) = operations.next().ok()? {
            *parsed.operations.get_mut(parsed.len)? = operation;
            parsed.len += 1;
        }
        Some(parsed)
    }
}

impl<'d> std::ops::Deref for Operations<'d> {
    type Target = [Operation<Slice<'d>>];

    fn deref(&self) -> &Self::Target {
        &self.operations[..self.len]
    }
}
