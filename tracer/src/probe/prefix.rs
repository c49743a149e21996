//! Chooses the probe site in the straight line of instructions that every call executes exactly once.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register};

use super::code::{Code, disassemble, ends_straight_line};
use super::error::Refusal;
use super::function::AllocFunction;
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

/// The first instruction on the function's prefix that the kernel emulates while the arguments are still in
/// their registers; without one, the first that it can single-step, which is nearly always the entry.
///
/// For a function that returns a block the stack pointer must still point at the return address, for the
/// return probe.
pub(super) fn choose(
    function: AllocFunction,
    code: Code<'_>,
    reentry: &Reentry,
    shadow_stack: bool,
) -> Result<Choice, Refusal> {
    let mut needed: Vec<Register> = function
        .arguments()
        .iter()
        .map(|register| register.decoded())
        .collect();
    if !function.is_free() {
        needed.push(Register::RSP);
    }
    let mut info = InstructionInfoFactory::new();
    let mut stepped: Option<Instruction> = None;
    let mut refused: Option<(Instruction, &'static str)> = None;
    let mut stop = Stop("before the end of the function".to_owned());
    for instruction in code.instructions() {
        let offset = instruction.ip() - code.address;
        if let Some(reason) = blocked(&instruction, offset, reentry)? {
            stop = reason;
            break;
        }
        match handling(&instruction, code.encoding(&instruction), offset, shadow_stack) {
            Handling::Emulated => return Ok(emulated(code, &instruction, offset)),
            Handling::SingleStepped => _ = stepped.get_or_insert(instruction),
            Handling::Refused(why) => _ = refused.get_or_insert((instruction, why)),
        }
        if ends_straight_line(&instruction) {
            stop = Stop(format!("up to the first branch, `{}`", disassemble(&instruction)));
            break;
        }
        if let Some(lost) = needed
            .iter()
            .find(|&&register| writes(&mut info, &instruction, register))
        {
            let name = format!("{lost:?}").to_lowercase();
            stop = Stop(format!(
                "before `{}` overwrites {name}",
                disassemble(&instruction)
            ));
            break;
        }
    }
    let Some(instruction) = stepped else {
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
    Ok(choice(&instruction, offset, false, reason))
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

fn emulated(code: Code<'_>, instruction: &Instruction, offset: u64) -> Choice {
    let reason = match code.instructions().next().filter(|_| offset != 0) {
        Some(entry) => format!(
            "emulated; the entry `{}` would be single-stepped",
            disassemble(&entry)
        ),
        None => "emulated, at the entry".to_owned(),
    };
    choice(instruction, offset, true, reason)
}

fn choice(instruction: &Instruction, offset: u64, emulated: bool, reason: String) -> Choice {
    // The walk ends at PREFIX_LIMIT, far below the width of the offset.
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    Choice {
        offset,
        instruction: disassemble(instruction),
        emulated,
        reason,
    }
}
