//! Functions that leave their work to another one which is probed: a probe in these would only cost.
//!
//! `cfree` that jumps to `free`, mimalloc's functions that jump to those for the default heap, libstdc++'s
//! `operator new` that calls `malloc`: where one function does all that the other is called for, the call is seen there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory};
use object::ReadRef;

use super::Site;
use super::code::{Code, direct_target, fixed_slot};
use super::exits::Imports;
use super::function::Shape;
use super::image::Image;
use super::names::{Family, is_plain_allocation};
use super::prefix::Holders;
use super::reentry::CodeRanges as _;

/// Instructions after which a function is not taken for one that only hands its arguments on.
const MAX_STRAIGHT: usize = 24;
/// Instructions followed in an operator.
const MAX_FOLLOWED: usize = 256;
/// Jumps from function to function.
const MAX_CHAIN: usize = 8;

/// Which function of an image leaves its work to which, by address.
pub(super) struct Forwarding<'i, 'd, R: ReadRef<'d>> {
    image: &'i Image<'d, R>,
    /// What is planned, by the function's address.
    shapes: BTreeMap<u64, Shape>,
    /// The same by name, for calls through the PLT.
    addresses: HashMap<String, u64>,
    /// Names of imported functions by the address of their slot.
    imports: &'i Imports,
}

/// What a jump or a call leads to.
enum Target {
    /// A function of the image that is planned.
    Planned(u64),
    /// A function of C that allocates, of whichever image.
    Imported,
}

impl<'i, 'd, R: ReadRef<'d>> Forwarding<'i, 'd, R> {
    /// For all planned sites of an image.
    pub fn new(image: &'i Image<'d, R>, sites: &[Site], imports: &'i Imports) -> Self {
        let names = sites.iter().flat_map(|site| {
            let address = site.function_address();
            site.names.iter().map(move |(name, _)| (name.clone(), address))
        });
        Self {
            image,
            shapes: sites
                .iter()
                .map(|site| (site.function_address(), site.shape))
                .collect(),
            addresses: names.collect(),
            imports,
        }
    }

    /// Takes out the sites whose calls are seen elsewhere, and gives their names to the sites that see them.
    pub fn apply(&self, sites: Vec<Site>) -> Vec<Site> {
        let next: BTreeMap<u64, Option<u64>> = sites
            .iter()
            .filter_map(|site| Some((site.function_address(), self.successor(site)?)))
            .collect();
        let (mut kept, mut left) = (Vec::new(), Vec::new());
        for site in sites {
            match last(&next, site.function_address()) {
                Some(end) => left.push((site, end)),
                None => kept.push(site),
            }
        }
        for (site, end) in left {
            let at_end = |kept: &&mut Site| Some(kept.function_address()) == end;
            // The operators of C++ that call malloc in another image are covered there.
            if let Some(end) = kept.iter_mut().find(at_end) {
                end.serves.push(site.symbol);
                end.names.extend(site.names);
            }
        }
        kept
    }

    /// The function that does this one's work; `Some(None)` if that is one of another image, `None` if it does its own.
    fn successor(&self, site: &Site) -> Option<Option<u64>> {
        let code = self.image.code(site.range.clone()).ok()?;
        if let Some(target) = self.jump(site.shape, code) {
            return Some(Some(target));
        }
        let is_operator = site.names.iter().any(|(_, family)| *family == Family::Operators);
        if is_operator && site.shape == Shape::Malloc {
            return self.first_allocation(code);
        }
        None
    }

    /// Where straight-line code jumps in the end, with all arguments where they belong there.
    fn jump(&self, shape: Shape, code: Code<'_>) -> Option<u64> {
        let mut info = InstructionInfoFactory::new();
        let mut holders = Holders::at_entry(shape);
        for instruction in code.instructions().take(MAX_STRAIGHT) {
            match instruction.flow_control() {
                FlowControl::Next => holders.step(&mut info, &instruction),
                FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                    let Some(Target::Planned(target)) = self.target(&instruction) else {
                        return None;
                    };
                    let inner = *self.shapes.get(&target)?;
                    let does_it = target != code.address && shape.is_served_by(inner) && holders.fit(inner);
                    return does_it.then_some(target);
                }
                _ => return None,
            }
        }
        None
    }

    /// The allocating function that every path through the code calls before it can return; of several, any.
    fn first_allocation(&self, code: Code<'d>) -> Option<Option<u64>> {
        let mut found = None;
        let mut pending = vec![code.address];
        let mut seen = BTreeSet::new();
        while let Some(begin) = pending.pop() {
            let range = if code.contains(begin) {
                code
            } else {
                self.image.covering(begin)?
            };
            for instruction in range.instructions_from(begin)? {
                if !seen.insert(instruction.ip()) {
                    break;
                }
                if seen.len() > MAX_FOLLOWED || instruction.is_invalid() {
                    return None;
                }
                let flow = instruction.flow_control();
                if flow == FlowControl::Next {
                    continue;
                }
                if let Some(target) = self
                    .allocation(&instruction)
                    .filter(|target| *target != Some(code.address))
                {
                    found = Some(target);
                    break;
                }
                match flow {
                    FlowControl::Call | FlowControl::IndirectCall => {}
                    FlowControl::ConditionalBranch => pending.push(direct_target(&instruction)?),
                    FlowControl::UnconditionalBranch => {
                        pending.push(direct_target(&instruction)?);
                        break;
                    }
                    FlowControl::Exception => break,
                    _ => return None,
                }
            }
        }
        found
    }

    /// The allocating function that this instruction calls or jumps to.
    fn allocation(&self, instruction: &Instruction) -> Option<Option<u64>> {
        match self.target(instruction)? {
            Target::Planned(address) => {
                let shape = self.shapes.get(&address)?;
                shape.is_served_by(Shape::Malloc).then_some(Some(address))
            }
            Target::Imported => Some(None),
        }
    }

    fn target(&self, instruction: &Instruction) -> Option<Target> {
        let slot = match direct_target(instruction) {
            Some(target) if self.shapes.contains_key(&target) => return Some(Target::Planned(target)),
            Some(target) => self.image.slot_of_stub(target)?,
            None => fixed_slot(instruction)?,
        };
        let name = self.imports.get(&slot)?;
        match self.addresses.get(name) {
            Some(&address) => Some(Target::Planned(address)),
            None => is_plain_allocation(name).then_some(Target::Imported),
        }
    }
}

/// Where the chain from `first` on ends: `Some(None)` in another image, `None` if nothing follows `first`.
fn last(next: &BTreeMap<u64, Option<u64>>, first: u64) -> Option<Option<u64>> {
    let mut end = *next.get(&first)?;
    for _ in 0..MAX_CHAIN {
        match end.and_then(|address| next.get(&address)) {
            Some(&further) => end = further,
            None => return Some(end),
        }
    }
    None
}
