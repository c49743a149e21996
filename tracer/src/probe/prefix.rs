//! Chooses the probe site in the straight line of instructions that every call executes exactly once.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::code::{Code, disassemble, ends_straight_line};
use super::error::Refusal;
use super::function::{ArgumentRegister, Arguments, Shape};
use super::kernel_rules::{Handling, handling};
use super::reentry::{PREFIX_LIMIT, Reentry};

/// The chosen instruction.
#[derive(Debug)]
pub(super) struct Choice {
    /// Bytes from the function's first.
    pub offset: u32,
    /// In Intel syntax.
    pub instruction: String,
    /// Whether the kernel emulates it.
    pub emulated: bool,
    /// Where the arguments are when it is reached.
    pub arguments: Arguments<Register>,
    /// What `--verbose` says after the name and the offset.
    pub reason: String,
}

/// Why the walk stopped without an emulated instruction, as the end of a sentence.
struct Stop(String);

/// Whether an instruction writes any part of `register`.
pub(super) fn writes(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    register: Register,
) -> bool {
    info.info(instruction).used_registers().iter().any(|used| {
        used.register().full_register() == register
            && !matches!(
                used.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            )
    })
}

/// The registers that hold each argument, as the straight line of instructions moves them about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holders {
    arguments: Arguments<Register>,
    /// For each argument that there is, in order: one bit for every general register that holds it, by number.
    registers: [u16; 3],
}

impl Holders {
    /// At the function's entry.
    pub fn at_entry(shape: Shape) -> Self {
        let mut holders = Self {
            arguments: shape.arguments().map(ArgumentRegister::decoded),
            registers: [0; 3],
        };
        for (bits, register) in holders.registers.iter_mut().zip(holders.arguments.iter()) {
            *bits = 1 << register.number();
        }
        holders
    }

    /// After an instruction.
    pub fn step(&mut self, info: &mut InstructionInfoFactory, instruction: &Instruction) {
        let copied = register_copy(instruction);
        for bits in &mut self.registers {
            let held = copied.is_some_and(|(_, from)| *bits & (1 << from.number()) != 0);
            for number in 0..16_u16 {
                if *bits & (1 << number) != 0 && writes(info, instruction, general_register(number)) {
                    *bits &= !(1 << number);
                }
            }
            if let Some((to, _)) = copied.filter(|_| held) {
                *bits |= 1 << to.number();
            }
        }
    }

    /// Where each argument is: in the register of the entry if it still is there; `None` if one was lost.
    pub fn places(&self) -> Option<Arguments<Register>> {
        let mut bits = self.registers.iter();
        // The order of `Arguments::iter` and of `try_map` is the same.
        self.arguments.try_map(|register| {
            let bits = bits.next()?;
            if bits & (1 << register.number()) != 0 {
                return Some(register);
            }
            (*bits != 0).then(|| general_register(bits.trailing_zeros() as u16))
        })
    }

    /// Whether each argument is in the register that holds it at the entry of `inner`.
    pub fn fit(&self, inner: Shape) -> bool {
        let wanted = inner.arguments();
        let pairs = [
            (self.arguments.size, wanted.size),
            (self.arguments.count, wanted.count),
            (self.arguments.pointer, wanted.pointer),
        ];
        if pairs
            .iter()
            .any(|(mine, theirs)| mine.is_some() != theirs.is_some())
        {
            return false;
        }
        let wanted = wanted.iter().map(|register| register.decoded().number());
        wanted
            .zip(self.registers)
            .all(|(number, bits)| bits & (1 << number) != 0)
    }
}

/// A 64-bit general register by the number in an instruction's encoding.
fn general_register(number: u16) -> Register {
    Register::RAX + u32::from(number)
}

/// Destination and source of `mov r64,r64`.
pub(super) fn register_copy(instruction: &Instruction) -> Option<(Register, Register)> {
    let copies = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register().is_gpr64()
        && instruction.op1_register().is_gpr64();
    copies.then(|| (instruction.op0_register(), instruction.op1_register()))
}

/// The first instruction on the function's prefix that the kernel emulates while the arguments are still in
/// registers; without one, the first that it can single-step, which is nearly always the entry.
///
/// For a function that returns a block the stack pointer must still point at the return address, for the
/// return probe. For one that frees, the address must still be in its own register.
pub(super) fn choose(
    shape: Shape,
    code: Code<'_>,
    reentry: &Reentry,
    shadow_stack: bool,
) -> Result<Choice, Refusal> {
    let kept: &[Register] = if shape.is_free() {
        &[Register::RDI]
    } else {
        &[Register::RSP]
    };
    let mut info = InstructionInfoFactory::new();
    let mut holders = Holders::at_entry(shape);
    let mut stepped: Option<(Instruction, Arguments<Register>)> = None;
    let mut refused: Option<(Instruction, &'static str)> = None;
    let mut stop = Stop("before the end of the function".to_owned());
    let mut previous: Option<Instruction> = None;
    for instruction in code.instructions() {
        let offset = instruction.ip() - code.address;
        if let Some(previous) = previous.replace(instruction) {
            let lost = kept
                .iter()
                .any(|&register| writes(&mut info, &previous, register));
            holders.step(&mut info, &previous);
            if lost || holders.places().is_none() {
                stop = Stop(format!(
                    "before `{}` overwrites what is needed",
                    disassemble(&previous)
                ));
                break;
            }
        }
        let Some(arguments) = holders.places() else { break };
        if let Some(reason) = blocked(&instruction, offset, reentry)? {
            stop = reason;
            break;
        }
        match handling(&instruction, code.encoding(&instruction), offset, shadow_stack) {
            Handling::Emulated => return Ok(emulated(code, &instruction, offset, arguments)),
            Handling::SingleStepped => _ = stepped.get_or_insert((instruction, arguments)),
            Handling::Refused(why) => _ = refused.get_or_insert((instruction, why)),
        }
        if ends_straight_line(&instruction) {
            stop = Stop(format!("up to the first branch, `{}`", disassemble(&instruction)));
            break;
        }
    }
    let Some((instruction, arguments)) = stepped else {
        let (instruction, why) = refused.map_or_else(
            || (String::new(), "does not decode"),
            |(i, w)| (disassemble(&i), w),
        );
        return Err(Refusal::NoLegalInstruction { instruction, why });
    };
    let Stop(stop) = stop;
    let skipped = match refused.filter(|(refused, _)| refused.ip() < instruction.ip()) {
        Some((first, why)) => format!("; the entry `{}` {why}", disassemble(&first)),
        None => String::new(),
    };
    let offset = instruction.ip() - code.address;
    let reason = format!("single-stepped, for no instruction {stop} is emulated{skipped}");
    Ok(choice(&instruction, offset, false, reason, arguments))
}

/// Whether something jumps to this instruction, or into it.
fn blocked(instruction: &Instruction, offset: u64, reentry: &Reentry) -> Result<Option<Stop>, Refusal> {
    let inside = instruction.ip() + 1..instruction.next_ip();
    let middle = reentry.targets.range(inside).next().is_some();
    if offset == 0 {
        return if middle {
            Err(Refusal::EntryOverlaps)
        } else {
            Ok(None)
        };
    }
    if let Some(why) = &reentry.unproven {
        return Ok(Some(Stop(format!(
            "that is surely executed once per call ({why})"
        ))));
    }
    if middle || reentry.targets.contains(&instruction.ip()) {
        return Ok(Some(Stop(format!("before +{offset}, where a jump comes back,"))));
    }
    if offset >= PREFIX_LIMIT {
        return Ok(Some(Stop(format!("in the first {PREFIX_LIMIT} bytes"))));
    }
    Ok(None)
}

fn emulated(
    code: Code<'_>,
    instruction: &Instruction,
    offset: u64,
    arguments: Arguments<Register>,
) -> Choice {
    let reason = match code.instructions().next().filter(|_| offset != 0) {
        Some(entry) => format!(
            "emulated; the entry `{}` would be single-stepped",
            disassemble(&entry)
        ),
        None => "emulated, at the entry".to_owned(),
    };
    choice(instruction, offset, true, reason, arguments)
}

fn choice(
    instruction: &Instruction,
    offset: u64,
    emulated: bool,
    reason: String,
    arguments: Arguments<Register>,
) -> Choice {
    // The walk ends at PREFIX_LIMIT, far below the width of the offset.
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    Choice {
        offset,
        instruction: disassemble(instruction),
        emulated,
        reason,
        arguments,
    }
}
