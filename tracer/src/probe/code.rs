//! A range of machine code and its instructions.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, OpKind};

/// The bytes of one function, or of a part of one, as the file has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code<'a> {
    /// Virtual address of the first byte, as the ELF file counts.
    pub address: u64,
    /// The bytes; `address + bytes.len()` does not overflow.
    pub bytes: &'a [u8],
}

impl<'a> Code<'a> {
    /// `None` when the range would reach beyond the end of the address space.
    pub fn new(address: u64, bytes: &'a [u8]) -> Option<Self> {
        let length = u64::try_from(bytes.len()).ok()?;
        address.checked_add(length)?;
        Some(Self { address, bytes })
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.address + self.bytes.len() as u64
    }

    /// Whether the range holds this address.
    pub fn contains(&self, address: u64) -> bool {
        (self.address..self.end()).contains(&address)
    }

    /// Every instruction, in order of address; invalid ones included.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> + use<'a> {
        let mut decoder = Decoder::with_ip(64, self.bytes, self.address, DecoderOptions::NONE);
        std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
    }

    /// The instructions from an address on; `None` if it is not in the range.
    pub fn instructions_from(&self, address: u64) -> Option<impl Iterator<Item = Instruction> + use<'a>> {
        let skipped = usize::try_from(address.checked_sub(self.address)?).ok()?;
        let rest = Self {
            address,
            bytes: self.bytes.get(skipped..).filter(|rest| !rest.is_empty())?,
        };
        Some(rest.instructions())
    }

    /// The encoding of one of [`Self::instructions`].
    pub fn encoding(&self, instruction: &Instruction) -> &'a [u8] {
        let begin = usize::try_from(instruction.ip().wrapping_sub(self.address)).unwrap_or(usize::MAX);
        self.bytes
            .get(begin..begin.saturating_add(instruction.len()))
            .unwrap_or_default()
    }
}

/// Where a direct jump, conditional jump, loop or call goes; `None` for everything else.
pub(super) fn direct_target(instruction: &Instruction) -> Option<u64> {
    let near = (0..instruction.op_count()).any(|operand| {
        matches!(
            instruction.op_kind(operand),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        )
    });
    near.then(|| instruction.near_branch_target())
}

/// The address of what an indirect call or jump reads its target from, if that is fixed.
pub(super) fn fixed_slot(instruction: &Instruction) -> Option<u64> {
    let fixed = instruction.op0_kind() == OpKind::Memory && instruction.is_ip_rel_memory_operand();
    fixed.then(|| instruction.ip_rel_memory_address())
}

/// Whether control may leave the straight line at this instruction.
pub(super) fn ends_straight_line(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
}

/// The instruction in Intel syntax, `test rdi,rdi`.
pub(super) fn disassemble(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}
