//! Probes before a `ret` instead of at it, where the kernel emulates the instruction.
//!
//! From the `ret` the code is followed backwards along every way that leads to it, until an instruction that the kernel
//! emulates: a conditional jump, a jump, a push or a nop. Between it and the `ret` there is only straight code, so
//! whoever is there (and takes the jump, or does not, as the way demands) will return; and the result must be in one
//! register there, from which it only moves to `rax`. If one way has no such instruction, the `ret` itself is probed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iced_x86::{ConditionCode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::prefix::{register_copy, writes};

/// Instructions looked at for one `ret`.
const MAX_STEPS: usize = 256;

/// How control gets from one instruction to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Edge {
    /// Always.
    Next,
    /// If a conditional jump is taken.
    Taken,
    /// If it is not.
    NotTaken,
}

/// The instructions that a call can reach, and the ways between them.
#[derive(Debug)]
pub(super) struct Flow {
    /// Where the call begins.
    entry: u64,
    instructions: BTreeMap<u64, Instruction>,
    /// By the address that is reached.
    before: HashMap<u64, Vec<(u64, Edge)>>,
}

/// A place from which on the function returns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Exit {
    /// The instruction.
    pub address: u64,
    /// Bytes from the stack pointer up to the slot of the return address.
    pub slot: u16,
    /// The number of the register that holds the result.
    pub register: u8,
    /// The condition under which this is the way to a return, as encoded in a conditional jump; `None`: always.
    pub condition: Option<u8>,
    /// Whether the instruction is the `ret`.
    pub returns: bool,
}

impl Exit {
    /// At the `ret` itself.
    pub fn at_return(address: u64) -> Self {
        Self {
            address,
            slot: 0,
            register: 0,
            condition: None,
            returns: true,
        }
    }
}

impl Flow {
    /// Of a call that begins at `entry`.
    pub fn new(entry: u64) -> Self {
        Self {
            entry,
            instructions: BTreeMap::new(),
            before: HashMap::new(),
        }
    }

    /// Adds an instruction; `false` if it is there already.
    pub fn add(&mut self, instruction: &Instruction) -> bool {
        self.instructions.insert(instruction.ip(), *instruction).is_none()
    }

    /// Adds a way from an instruction to an address.
    pub fn connect(&mut self, from: &Instruction, to: u64, edge: Edge) {
        self.before.entry(to).or_default().push((from.ip(), edge));
    }

    /// How many instructions there are.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// The instruction at an address.
    pub fn instruction(&self, address: u64) -> Option<&Instruction> {
        self.instructions.get(&address)
    }
}

/// Where the search is: before the instruction at this address.
#[derive(Clone, Copy)]
struct Position {
    address: u64,
    /// The register that holds the result.
    result: Register,
    /// Bytes from the stack pointer up to the slot of the return address.
    slot: i64,
}

/// The places to probe instead of the `ret` at this address; `None` if it must be probed itself.
pub(super) fn sites(flow: &Flow, ret: u64, is_emulated: impl Fn(u64) -> bool) -> Option<Vec<Exit>> {
    let mut info = InstructionInfoFactory::new();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut pending = vec![Position {
        address: ret,
        result: Register::RAX,
        slot: 0,
    }];
    while let Some(position) = pending.pop() {
        let from_outside = position.address == flow.entry;
        if from_outside || !seen.insert(position.address) || seen.len() > MAX_STEPS {
            return None;
        }
        let before = flow.before.get(&position.address)?;
        for &(address, edge) in before {
            let instruction = flow.instruction(address)?;
            if is_emulated(address) {
                found.push(exit(instruction, edge, position)?);
            } else {
                pending.push(back_over(&mut info, instruction, position)?);
            }
        }
    }
    Some(found)
}

/// The probe at an emulated instruction, which changes neither the result nor, if it is a jump, the stack.
fn exit(instruction: &Instruction, edge: Edge, position: Position) -> Option<Exit> {
    let pushed = if instruction.mnemonic() == Mnemonic::Push {
        8
    } else {
        0
    };
    let condition = match edge {
        Edge::Next => None,
        Edge::Taken => Some(condition(instruction)?),
        // The last bit of a condition's encoding negates it.
        Edge::NotTaken => Some(condition(instruction)? ^ 1),
    };
    Some(Exit {
        address: instruction.ip(),
        slot: u16::try_from(position.slot - pushed).ok()?,
        register: u8::try_from(position.result.number()).ok()?,
        condition,
        returns: false,
    })
}

/// A condition as the low bits of a conditional jump's opcode say it.
fn condition(instruction: &Instruction) -> Option<u8> {
    match instruction.condition_code() {
        ConditionCode::None => None,
        // The decoder counts from 1, in the order of the encoding.
        code => u8::try_from(code as usize - 1).ok(),
    }
}

/// The position before an instruction, from that behind it; `None` if the result or the stack pointer comes from it.
fn back_over(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    position: Position,
) -> Option<Position> {
    let mut before = Position {
        address: instruction.ip(),
        ..position
    };
    match instruction.flow_control() {
        FlowControl::Next => {}
        FlowControl::UnconditionalBranch => return Some(before),
        _ => return None,
    }
    if let Some((to, from)) = register_copy(instruction)
        && to == position.result
    {
        before.result = from;
    } else if writes(info, instruction, position.result) {
        return None;
    }
    before.slot += stack_given_back(info, instruction)?;
    (before.result != Register::RSP && before.slot >= 0).then_some(before)
}

/// By how much an instruction raises the stack pointer (bytes); `None` if that is not plain.
fn stack_given_back(info: &mut InstructionInfoFactory, instruction: &Instruction) -> Option<i64> {
    let of_stack_pointer =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    let constant = matches!(
        instruction.op1_kind(),
        OpKind::Immediate8to64 | OpKind::Immediate32to64
    );
    match instruction.mnemonic() {
        Mnemonic::Pop if !of_stack_pointer => Some(8),
        Mnemonic::Push => Some(-8),
        Mnemonic::Add if of_stack_pointer && constant => i64::try_from(instruction.immediate(1)).ok(),
        Mnemonic::Sub if of_stack_pointer && constant => {
            i64::try_from(instruction.immediate(1)).ok().map(|n| -n)
        }
        _ if writes(info, instruction, Register::RSP) => None,
        _ => Some(0),
    }
}
