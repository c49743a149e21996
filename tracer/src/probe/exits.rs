//! Where functions return that may throw.
//!
//! A return probe replaces the return address on the stack. An exception that passes the function, as `operator new`
//! throws one when there is no memory, would find no unwind information for what is there instead, and end the process
//! (`std::terminate`). So these functions get probes at the instructions where they return: their own, and those of the
//! functions that they jump to in the end.
//!
//! A jump through a pointer in tail position is not followed: that is how allocators reach the handlers of a failure.

use std::collections::{BTreeSet, HashMap};

use iced_x86::{FlowControl, Instruction};
use object::ReadRef;

use super::code::{Code, direct_target, disassemble};
use super::error::Refusal;
use super::image::Image;
use super::kernel_rules::{Handling, handling};
use super::reentry::{CodeRanges as _, may_be_jump_table};
use super::verify::{CodeReader, verify};
use super::{ProbePoint, Site};

/// Instructions followed in one function and those that it jumps to.
const MAX_INSTRUCTIONS: usize = 1 << 14;
/// Places where it may return.
const MAX_EXITS: usize = 64;

/// The names of imported functions, by the slot that stubs of the PLT jump through.
pub(super) type Imports = HashMap<u64, String>;

/// Plans where the functions of an image return that may throw.
pub(super) struct Exits<'i, 'd, R: ReadRef<'d>> {
    image: &'i Image<'d, R>,
    imports: &'i Imports,
    live: &'i dyn CodeReader,
    /// The addresses that have a probe already.
    planned: BTreeSet<u64>,
}

impl<'i, 'd, R: ReadRef<'d>> Exits<'i, 'd, R> {
    pub fn new(image: &'i Image<'d, R>, imports: &'i Imports, live: &'i dyn CodeReader) -> Self {
        Self {
            image,
            imports,
            live,
            planned: BTreeSet::new(),
        }
    }

    /// Replaces the return probe of a site.
    pub fn plan(&mut self, site: &mut Site) -> Result<(), Refusal> {
        let function = self.image.code(site.range.clone())?;
        let found = self.find(function)?;
        let points: Vec<_> = found
            .iter()
            .map(|&address| self.point(address, function))
            .collect::<Result<_, _>>()?;
        site.why.push_str(&format!(
            "; may throw, so it is probed at {} places where it returns",
            points.len()
        ));
        site.returns = None;
        site.exits = points
            .into_iter()
            .filter(|point| self.planned.insert(point.vaddr))
            .collect();
        Ok(())
    }

    /// The addresses of all `ret` that end a call of the function.
    fn find(&self, function: Code<'d>) -> Result<BTreeSet<u64>, Refusal> {
        let mut search = Search {
            image: self.image,
            imports: self.imports,
            seen: BTreeSet::new(),
            pending: vec![(function, function.address)],
            exits: BTreeSet::new(),
        };
        while let Some((range, begin)) = search.pending.pop() {
            search.follow(range, begin)?;
        }
        if search.exits.is_empty() {
            return Err(Refusal::NoExit);
        }
        Ok(search.exits)
    }

    /// The probe at a `ret`, which must also be an instruction when its function is decoded from the beginning, and be
    /// in the process what it is in the file.
    fn point(&self, address: u64, function: Code<'d>) -> Result<ProbePoint, Refusal> {
        let range = if function.contains(address) {
            function
        } else {
            self.image.covering(address).ok_or(Refusal::NotInCode)?
        };
        verify(range, self.live)?;
        let mut instructions = range.instructions();
        let instruction = instructions
            .find(|instruction| instruction.ip() == address)
            .ok_or(Refusal::UnknownJump(address))?;
        let why = match handling(
            &instruction,
            range.encoding(&instruction),
            address - range.address,
            false,
        ) {
            Handling::Refused(why) => Some(why),
            Handling::Emulated | Handling::SingleStepped => None,
        };
        if let Some(why) = why {
            let instruction = disassemble(&instruction);
            return Err(Refusal::NoLegalInstruction { instruction, why });
        }
        Ok(ProbePoint {
            file_offset: self.image.file_offset(address).ok_or(Refusal::NotInCode)?,
            vaddr: address,
            function_offset: u32::try_from(address - range.address).unwrap_or(u32::MAX),
            instruction: disassemble(&instruction),
            emulated: false,
        })
    }
}

struct Search<'i, 'd, R: ReadRef<'d>> {
    image: &'i Image<'d, R>,
    imports: &'i Imports,
    seen: BTreeSet<u64>,
    /// Code to be followed, and the address where.
    pending: Vec<(Code<'d>, u64)>,
    exits: BTreeSet<u64>,
}

impl<'d, R: ReadRef<'d>> Search<'_, 'd, R> {
    /// Follows one path until it ends, joins another, or leaves the range.
    fn follow(&mut self, range: Code<'d>, begin: u64) -> Result<(), Refusal> {
        let mut block: Vec<Instruction> = Vec::new();
        let Some(instructions) = range.instructions_from(begin) else {
            return Ok(());
        };
        for instruction in instructions {
            // What does not decode is padding behind a call that never returns.
            if instruction.is_invalid() || !self.seen.insert(instruction.ip()) {
                return Ok(());
            }
            if self.seen.len() > MAX_INSTRUCTIONS || self.exits.len() > MAX_EXITS {
                return Err(Refusal::ManyExits);
            }
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => block.push(instruction),
                FlowControl::Return => {
                    self.exits.insert(instruction.ip());
                    return Ok(());
                }
                FlowControl::ConditionalBranch => {
                    self.branch(range, &instruction)?;
                    block.clear();
                }
                FlowControl::UnconditionalBranch => return self.branch(range, &instruction),
                FlowControl::IndirectBranch => {
                    if may_be_jump_table(&instruction, range.encoding(&instruction), &block) {
                        return Err(Refusal::UnknownJump(instruction.ip()));
                    }
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn branch(&mut self, range: Code<'d>, instruction: &Instruction) -> Result<(), Refusal> {
        let unknown = Refusal::UnknownJump(instruction.ip());
        let Some(target) = direct_target(instruction) else {
            return Err(unknown);
        };
        if range.contains(target) {
            self.pending.push((range, target));
            return Ok(());
        }
        let target = match self.image.slot_of_stub(target) {
            Some(slot) => {
                let name = self.imports.get(&slot);
                name.and_then(|name| self.image.address_of(name)).ok_or(unknown)?
            }
            None => target,
        };
        let known = self.image.covering(target).filter(|code| code.contains(target));
        let code = known.ok_or(Refusal::UnknownJump(instruction.ip()))?;
        self.pending.push((code, target));
        Ok(())
    }
}
