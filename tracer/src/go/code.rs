//! Which addresses a function's instructions refer to.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// How an instruction refers to an address that it is given relative to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It computes the address (`lea`).
    Address,
    /// It loads four bytes into a register (`mov`).
    Load4,
    /// It loads eight bytes into a register (`mov`).
    Load8,
    /// It stores eight bytes of a register (`mov`).
    Store8,
}

/// The references of one function.
#[derive(Debug, Default)]
pub(super) struct References(Vec<(Access, u64)>);

impl References {
    /// Decodes `code`, whose first byte is at `address`.
    pub fn of(code: &[u8], address: u64) -> Self {
        let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        Self(
            decoder
                .into_iter()
                .filter_map(|instruction| reference(&instruction))
                .collect(),
        )
    }

    /// Whether the function refers to this address so.
    pub fn has(&self, access: Access, address: u64) -> bool {
        self.0.contains(&(access, address))
    }

    /// The address to which it refers so and for which `also` is true, if it is the only one.
    pub fn only(&self, access: Access, also: impl Fn(u64) -> bool) -> Option<u64> {
        let so = self.0.iter().filter(|(how, _)| *how == access);
        let mut addresses = so.map(|(_, address)| *address).filter(|address| also(*address));
        let first = addresses.next()?;
        addresses.all(|other| other == first).then_some(first)
    }
}

fn reference(instruction: &Instruction) -> Option<(Access, u64)> {
    if !instruction.is_ip_rel_memory_operand() || instruction.segment_prefix() != Register::None {
        return None;
    }
    let access = match (
        instruction.mnemonic(),
        instruction.op0_kind(),
        instruction.op1_kind(),
    ) {
        (Mnemonic::Lea, ..) => Access::Address,
        (Mnemonic::Mov, OpKind::Register, OpKind::Memory) => match instruction.op0_register().size() {
            4 => Access::Load4,
            8 => Access::Load8,
            _ => return None,
        },
        (Mnemonic::Mov, OpKind::Memory, OpKind::Register) if instruction.op1_register().size() == 8 => {
            Access::Store8
        }
        _ => return None,
    };
    Some((access, instruction.ip_rel_memory_address()))
}
