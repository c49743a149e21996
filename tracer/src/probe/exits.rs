//! Where functions return that can have no return probe.
//!
//! A return probe replaces the return address on the stack. An exception that passes the function, as `operator new`
//! throws one when there is no memory, would find no unwind information for what is there instead, and end the process
//! (`std::terminate`); and a file with Go code gets none at all ([`super::returns`]). So these functions get probes where
//! they return: at every `ret` of their own, and of the functions that they jump to in the end.
//!
//! A `ret` is single-stepped. Where each way to it leads over an instruction that the kernel emulates, from which on
//! nothing but straight code follows and the result is in some register, the probes go there ([`super::hoist`]).
//!
//! A jump through a pointer in tail position is not followed: that is how allocators reach the handlers of a failure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use iced_x86::{FlowControl, Instruction};
use object::ReadRef;

use super::code::{Code, direct_target, disassemble};
use super::error::Refusal;
use super::hoist::{self, Edge, Flow};
use super::image::Image;
use super::kernel_rules::{Handling, handling};
use super::reentry::{CodeRanges as _, may_be_jump_table};
use super::returns::NoReturnProbe;
use super::verify::{CodeReader, verify};
use super::{ExitPoint, ProbePoint, Site};

/// Instructions followed in one function and those that it jumps to.
const MAX_INSTRUCTIONS: usize = 1 << 14;
/// Places where it may return.
const MAX_EXITS: usize = 64;

/// The names of imported functions, by the slot that stubs of the PLT jump through.
pub(super) type Imports = HashMap<u64, String>;

/// Plans where functions of an image return.
pub(super) struct Exits<'i, 'd, R: ReadRef<'d>> {
    image: &'i Image<'d, R>,
    imports: &'i Imports,
    live: &'i dyn CodeReader,
    /// What has a probe already: address, and the condition of a jump.
    planned: BTreeSet<(u64, Option<u8>)>,
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

    /// Has a site probed where its function returns instead of by a return probe, which it must not have for this reason.
    pub fn plan(&mut self, site: &mut Site, why: NoReturnProbe) -> Result<(), Refusal> {
        let points = self
            .find(site.range.clone())
            .map_err(|refusal| Refusal::NoReturnProbe(why, Box::new(refusal)))?;
        let stepped = points.iter().filter(|exit| !exit.point.emulated).count();
        site.why.push_str(&format!(
            "; {why}, so it is probed where it returns: at {} places, {stepped} of them single-stepped",
            points.len(),
        ));
        site.returns = None;
        site.exits = points
            .into_iter()
            .filter(|exit| self.planned.insert((exit.point.vaddr, exit.condition)))
            .collect();
        Ok(())
    }

    /// Everywhere from where a function returns.
    fn find(&self, function: Range<u64>) -> Result<Vec<ExitPoint>, Refusal> {
        let search = self.search(self.image.code(function)?)?;
        self.points(&search)
    }

    /// Follows every path of a call of the function.
    fn search(&self, function: Code<'d>) -> Result<Search<'i, 'd, R>, Refusal> {
        let mut search = Search {
            image: self.image,
            imports: self.imports,
            flow: Flow::new(function.address),
            ranges: BTreeMap::new(),
            pending: vec![(function, function.address)],
            exits: BTreeSet::new(),
        };
        while let Some((range, begin)) = search.pending.pop() {
            search.ranges.insert(range.address, range);
            search.follow(range, begin)?;
        }
        if search.exits.is_empty() {
            return Err(Refusal::NoExit);
        }
        // What is believed must be what the process runs, and also what its functions decode to from the beginning.
        for range in search.ranges.values() {
            verify(*range, self.live)?;
        }
        Ok(search)
    }

    fn points(&self, search: &Search<'i, 'd, R>) -> Result<Vec<ExitPoint>, Refusal> {
        let mut points = Vec::new();
        for &exit in &search.exits {
            let emulated = |at: u64| {
                let code = search.range_of(at)?;
                let instruction = search.flow.instruction(at)?;
                let rule = handling(
                    instruction,
                    code.encoding(instruction),
                    at - code.address,
                    self.shadow_stack(),
                );
                Some(rule == Handling::Emulated && self.image.has_frame(at))
            };
            let sites = hoist::sites(&search.flow, exit, |at| emulated(at).unwrap_or(false));
            let sites = sites.unwrap_or_else(|| vec![hoist::Exit::at_return(exit)]);
            for site in sites {
                points.push(self.point(site, search)?);
            }
        }
        Ok(points)
    }

    fn shadow_stack(&self) -> bool {
        self.image.allows_shadow_stack()
    }

    fn point(&self, exit: hoist::Exit, search: &Search<'i, 'd, R>) -> Result<ExitPoint, Refusal> {
        let address = exit.address;
        let range = search.range_of(address).ok_or(Refusal::NotInCode)?;
        let mut instructions = range.instructions();
        let instruction = instructions
            .find(|instruction| instruction.ip() == address)
            .ok_or(Refusal::UnknownJump(address))?;
        let offset = address - range.address;
        let emulated = match handling(
            &instruction,
            range.encoding(&instruction),
            offset,
            self.shadow_stack(),
        ) {
            Handling::Refused(why) => {
                let instruction = disassemble(&instruction);
                return Err(Refusal::NoLegalInstruction { instruction, why });
            }
            handling => handling == Handling::Emulated,
        };
        Ok(ExitPoint {
            point: ProbePoint {
                file_offset: self.image.file_offset(address).ok_or(Refusal::NotInCode)?,
                vaddr: address,
                function_offset: u32::try_from(offset).unwrap_or(u32::MAX),
                instruction: disassemble(&instruction),
                emulated,
            },
            slot: exit.slot,
            register: exit.register,
            condition: exit.condition,
            returns: exit.returns,
        })
    }
}

struct Search<'i, 'd, R: ReadRef<'d>> {
    image: &'i Image<'d, R>,
    imports: &'i Imports,
    flow: Flow,
    /// The functions that were entered, by address.
    ranges: BTreeMap<u64, Code<'d>>,
    /// Code to be followed, and the address where.
    pending: Vec<(Code<'d>, u64)>,
    exits: BTreeSet<u64>,
}

impl<'d, R: ReadRef<'d>> Search<'_, 'd, R> {
    fn range_of(&self, address: u64) -> Option<Code<'d>> {
        let (_, range) = self.ranges.range(..=address).next_back()?;
        range.contains(address).then_some(*range)
    }

    /// Follows one path until it ends, joins another, or leaves the range.
    fn follow(&mut self, range: Code<'d>, begin: u64) -> Result<(), Refusal> {
        let mut block: Vec<Instruction> = Vec::new();
        let Some(instructions) = range.instructions_from(begin) else {
            return Ok(());
        };
        for instruction in instructions {
            // What does not decode is padding behind a call that never returns.
            if instruction.is_invalid() || !self.flow.add(&instruction) {
                return Ok(());
            }
            if self.flow.len() > MAX_INSTRUCTIONS || self.exits.len() > MAX_EXITS {
                return Err(Refusal::ManyExits);
            }
            let flow = instruction.flow_control();
            match flow {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                    self.flow.connect(&instruction, instruction.next_ip(), Edge::Next);
                    block.push(instruction);
                }
                FlowControl::Return => {
                    self.exits.insert(instruction.ip());
                    return Ok(());
                }
                FlowControl::ConditionalBranch => {
                    self.flow
                        .connect(&instruction, instruction.next_ip(), Edge::NotTaken);
                    self.branch(range, &instruction, Edge::Taken)?;
                    block.clear();
                }
                FlowControl::UnconditionalBranch => return self.branch(range, &instruction, Edge::Next),
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

    fn branch(&mut self, range: Code<'d>, instruction: &Instruction, edge: Edge) -> Result<(), Refusal> {
        let unknown = || Refusal::UnknownJump(instruction.ip());
        let mut target = direct_target(instruction).ok_or_else(unknown)?;
        if range.contains(target) {
            self.flow.connect(instruction, target, edge);
            self.pending.push((range, target));
            return Ok(());
        }
        if let Some(slot) = self.image.slot_of_stub(target) {
            let name = self.imports.get(&slot).ok_or_else(unknown)?;
            target = self.image.address_of(name).ok_or_else(unknown)?;
        }
        let code = self.image.covering(target).filter(|code| code.contains(target));
        self.flow.connect(instruction, target, edge);
        self.pending.push((code.ok_or_else(unknown)?, target));
        Ok(())
    }
}
