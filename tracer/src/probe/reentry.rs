//! Which instructions at the beginning of a function are executed more than once by one call.
//!
//! A probe must fire once per call, so an instruction that a later jump goes back to is no place for one. The jumps of
//! the function itself are found, those of the parts that compilers split off (`.cold`), and, since these look alike
//! in a stripped file, those of everything else that is reached by direct jumps.
//!
//! A jump to the very first instruction is different: with the stack as it is there, that is a call in tail position, which
//! returns to the same caller and is accounted like a nested call.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::code::{Code, direct_target};
use super::prefix::writes;

/// How far into a function a probe site may lie, in bytes.
pub(super) const PREFIX_LIMIT: u64 = 256;
/// Code beyond the function that is decoded before the search gives up.
const MAX_BYTES: usize = 256 << 10;
/// Ranges of code that are decoded before the search gives up.
const MAX_RANGES: usize = 64;
/// Instructions searched backwards for the origin of an indirect jump's target.
const WINDOW: usize = 16;

/// Finds the function, or the part of one, that an address lies in.
pub(super) trait CodeRanges<'d> {
    /// The whole range, or `None` when nothing tells its bounds.
    fn covering(&self, address: u64) -> Option<Code<'d>>;
    /// Some bytes of code from an address on, for what has no bounds.
    fn from(&self, address: u64) -> Option<Code<'d>>;
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
        while let Some(target) = search.pending.pop() {
            if search.has_seen(target) {
                continue;
            }
            let Some(range) = ranges.covering(target).filter(|range| range.contains(target)) else {
                if !ranges.from(target).is_some_and(is_stub) {
                    search.fail(format!("a jump leaves to {target:#x}, in no known function"));
                }
                continue;
            };
            bytes = bytes.saturating_add(range.bytes.len());
            if bytes > MAX_BYTES || search.seen.len() >= MAX_RANGES {
                search.fail("too much code is reached by jumps".to_owned());
                break;
            }
            search.visit(range);
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
        let prefix = self.function.address + 1..self.function.address.saturating_add(PREFIX_LIMIT);
        let mut window: Vec<Instruction> = Vec::with_capacity(WINDOW);
        for instruction in range.instructions() {
            if instruction.is_invalid() {
                self.fail(format!("the code at {:#x} does not decode", instruction.ip()));
            }
            if let Some(target) = direct_target(&instruction) {
                if prefix.contains(&target) {
                    self.found.targets.insert(target);
                }
                let call = instruction.flow_control() == FlowControl::Call;
                if !call && !range.contains(target) {
                    self.pending.push(target);
                }
            }
            if is_jump_table(&instruction, range.encoding(&instruction), &window) {
                self.fail(format!("the jump at {:#x} may go anywhere", instruction.ip()));
            }
            if window.len() == WINDOW {
                window.remove(0);
            }
            window.push(instruction);
        }
    }
}

/// Whether an indirect jump may stay in its function, that is, whether it is not plainly a tail call.
///
/// A tail call loads the address of a function whole, from one place: a GOT entry, a hook, a table of functions. A jump table's
/// target is picked by an index, and nearly always relative.
fn is_jump_table(instruction: &Instruction, encoding: &[u8], before: &[Instruction]) -> bool {
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
    let register = instruction.op0_register().full_register();
    let mut info = InstructionInfoFactory::new();
    let origin = before
        .iter()
        .rev()
        .find(|earlier| writes(&mut info, earlier, register));
    let whole = origin.is_some_and(|load| {
        load.mnemonic() == Mnemonic::Mov
            && load.op1_kind() == OpKind::Memory
            && load.memory_index() == Register::None
            && load.op0_register().is_gpr64()
    });
    !whole
}

/// Whether this is an entry of a procedure linkage table: it jumps through the GOT at once.
fn is_stub(code: Code<'_>) -> bool {
    for instruction in code.instructions().take(3) {
        match instruction.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Nop => {}
            Mnemonic::Jmp => return instruction.is_ip_rel_memory_operand(),
            _ => return false,
        }
    }
    false
}
