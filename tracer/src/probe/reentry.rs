//! Which instructions at the beginning of a function are executed more than once by one call.
//!
//! A probe must fire once per call, so an instruction that a later jump goes back to is no place for one. The
//! jumps of the function itself are found, those of the parts that compilers split off (`.cold`), and, since
//! these look alike in a stripped file, those of everything else that is reached by direct jumps. Where that
//! leads to code whose bounds nothing tells (musl's, which has no unwind information), the whole segment is
//! searched for jumps to the prefix.
//!
//! A jump to the very first instruction is different: with the stack as it is there, that is a call in tail
//! position, which returns to the same caller and is accounted like a nested call.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::code::{Code, direct_target, ends_straight_line};
use super::prefix::writes;

/// How far into a function a probe site may lie, in bytes.
pub(super) const PREFIX_LIMIT: u64 = 256;
/// Code beyond the function that is decoded before the search gives up.
const MAX_BYTES: usize = 256 << 10;
/// Ranges of code that are decoded before the search gives up.
const MAX_RANGES: usize = 64;
/// The largest segment that is searched whole.
const MAX_SEGMENT: usize = 8 << 20;

/// Finds the function, or the part of one, that an address lies in.
pub(super) trait CodeRanges<'d> {
    /// The whole range, or `None` when nothing tells its bounds.
    fn covering(&self, address: u64) -> Option<Code<'d>>;
    /// All code of the segment that holds an address.
    fn segment(&self, address: u64) -> Option<Code<'d>>;
}

/// The addresses in the function's prefix, beyond its first byte, that something jumps to.
#[derive(Debug, Default)]
pub(super) struct Reentry {
    /// The targets, relative to nothing: virtual addresses.
    pub targets: BTreeSet<u64>,
    /// Why there may be more targets than could be found; then only the entry is safe.
    pub unproven: Option<String>,
}

impl Reentry {
    /// Searches from `function` on. `entry_points` are the symbols that lie within it.
    pub fn find<'d>(function: Code<'d>, entry_points: &[u64], ranges: &dyn CodeRanges<'d>) -> Self {
        let mut search = Search {
            function,
            seen: BTreeMap::new(),
            pending: Vec::new(),
            found: Self::default(),
        };
        search.found.targets.extend(entry_points);
        search.visit(function);
        let mut bytes = 0_usize;
        let mut unbounded = None;
        while let Some(target) = search.pending.pop() {
            if search.has_seen(target) {
                continue;
            }
            let Some(range) = ranges.covering(target).filter(|range| range.contains(target)) else {
                unbounded = Some(target);
                continue;
            };
            bytes = bytes.saturating_add(range.bytes.len());
            if bytes > MAX_BYTES || search.seen.len() >= MAX_RANGES {
                search.fail("too much code is reached by jumps".to_owned());
                break;
            }
            search.visit(range);
        }
        if let Some(target) = unbounded.filter(|_| search.found.unproven.is_none()) {
            match ranges
                .segment(function.address)
                .filter(|segment| segment.bytes.len() <= MAX_SEGMENT)
            {
                Some(segment) => segment
                    .instructions()
                    .for_each(|instruction| search.note_target(&instruction)),
                None => search.fail(format!("a jump leaves to {target:#x}, in no known function")),
            }
        }
        search.found
    }
}

struct Search<'d> {
    function: Code<'d>,
    /// Begin and end of the ranges decoded so far.
    seen: BTreeMap<u64, u64>,
    /// Targets of jumps out of the ranges decoded so far.
    pending: Vec<u64>,
    found: Reentry,
}

impl<'d> Search<'d> {
    fn has_seen(&self, address: u64) -> bool {
        self.seen
            .range(..=address)
            .next_back()
            .is_some_and(|(_, &end)| address < end)
    }

    fn fail(&mut self, reason: String) {
        self.found.unproven.get_or_insert(reason);
    }

    fn visit(&mut self, range: Code<'d>) {
        self.seen.insert(range.address, range.end());
        // The straight line of instructions that leads to the current one.
        let mut block: Vec<Instruction> = Vec::new();
        for instruction in range.instructions() {
            if instruction.is_invalid() {
                self.fail(format!("the code at {:#x} does not decode", instruction.ip()));
            }
            self.note_target(&instruction);
            if let Some(target) = direct_target(&instruction) {
                let call = instruction.flow_control() == FlowControl::Call;
                if !call && !range.contains(target) {
                    self.pending.push(target);
                }
            }
            if may_be_jump_table(&instruction, range.encoding(&instruction), &block) {
                self.fail(format!("the jump at {:#x} may go anywhere", instruction.ip()));
            }
            if ends_straight_line(&instruction) {
                block.clear();
            } else {
                block.push(instruction);
            }
        }
    }

    /// Remembers where a direct jump or call goes, when that is in the prefix.
    fn note_target(&mut self, instruction: &Instruction) {
        let prefix = self.function.address + 1..self.function.address.saturating_add(PREFIX_LIMIT);
        if let Some(target) = direct_target(instruction).filter(|target| prefix.contains(target)) {
            self.found.targets.insert(target);
        }
    }
}

/// Whether an indirect jump may stay in its function, that is, whether it is not plainly a tail call. `block`
/// is the straight line of instructions before it.
///
/// Compilers compute a jump table's target right before the jump, from an index. A tail call's target is
/// loaded whole from one place (the GOT, a hook, a table of functions), or was loaded and tested before. And
/// a function that has just given its frame back does not loop: compilers keep prologues and epilogues out of
/// loops.
pub(super) fn may_be_jump_table(instruction: &Instruction, encoding: &[u8], block: &[Instruction]) -> bool {
    const NOTRACK: u8 = 0x3e;
    if instruction.flow_control() != FlowControl::IndirectBranch {
        return false;
    }
    if encoding.first() == Some(&NOTRACK) {
        return true;
    }
    if instruction.op0_kind() == OpKind::Memory {
        return instruction.memory_index() != Register::None;
    }
    let mut info = InstructionInfoFactory::new();
    let register = instruction.op0_register().full_register();
    let origin = block
        .iter()
        .rev()
        .find(|earlier| writes(&mut info, earlier, register));
    let released = block.iter().any(gives_stack_back);
    !released && origin.is_some_and(|origin| !loads_whole(origin))
}

/// `mov r64,[memory]` without an index.
fn loads_whole(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_index() == Register::None
        && instruction.op0_register().is_gpr64()
}

/// `pop`, `leave`, or `add rsp,n`.
fn gives_stack_back(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Pop | Mnemonic::Leave => true,
        Mnemonic::Add => instruction.op0_register() == Register::RSP,
        _ => false,
    }
}
