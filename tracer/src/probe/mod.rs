//! Finds the allocation functions of an ELF image and plans where to put uprobes.
//!
//! Where a probe sits decides what it costs: an instruction that the kernel *emulates* needs one trap, one
//! that it must *single-step* needs two and a page of its own, which in a virtual machine is twenty times
//! slower. [`plan`] walks the straight line of instructions that every call executes exactly once, and takes
//! the first emulated one at which the arguments are still in their registers. It falls back to the
//! function's entry, and it rather leaves a function alone than puts a probe in the middle of an instruction,
//! which would corrupt the target.
//!
//! The image is untrusted: nothing in it makes the planner panic, and what it decodes is compared with the
//! memory of the process before it is believed.
//!
//! The caller opens the very file that the target maps, adds the load bias in its [`CodeReader`], and
//! attaches at [`ProbePoint::file_offset`].
//!
//! What is not found: functions under names that nothing here knows (`names`), copies that a compiler inlined into
//! their callers, and anything in a file without section headers.

mod code;
mod error;
mod exits;
mod forward;
mod frames;
mod function;
mod go_entry;
mod hoist;
mod image;
mod inner;
mod kernel_rules;
mod names;
mod own_code;
mod prefix;
mod reentry;
mod returns;
mod verify;

#[cfg(test)]
mod tests;

pub use error::PlanError;
pub use function::{ArgumentRegister, Arguments, Shape};
pub use go_entry::{DialSites, after_stack_check};
pub use inner::InnerRole;
pub use names::Family;
pub use returns::ReturnPoint;
pub use verify::CodeReader;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use error::Refusal;
use exits::Exits;
use forward::Forwarding;
use iced_x86::Register;
use image::{Definition, Image};
use object::ReadRef;
use reentry::Reentry;
use returns::{FixedStacks, NoReturnProbe};

/// An instruction that carries a probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProbePoint {
    /// Offset in the file, which is what the kernel attaches to.
    pub file_offset: u64,
    /// Virtual address as the ELF file counts, without the load bias.
    pub vaddr: u64,
    /// Bytes from the beginning of the function.
    pub function_offset: u32,
    /// The instruction in Intel syntax.
    pub instruction: String,
    /// Whether the kernel emulates the instruction; otherwise it is single-stepped.
    pub emulated: bool,
}

/// Where one function is probed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Site {
    /// What the function does, hence what its arguments mean.
    pub shape: Shape,
    /// The plainest symbol that names it in this image, without a version.
    pub symbol: String,
    /// Every symbol of this code and of what it serves, and what it belongs to.
    pub names: Vec<(String, Family)>,
    /// Functions that are not probed because they leave their work to this one; one symbol each.
    pub serves: Vec<String>,
    /// The function, in virtual addresses as the ELF file counts.
    pub range: Range<u64>,
    /// Where every argument still is in a register, see `arguments`. Except in functions that free, the stack
    /// pointer points at the return address.
    pub entry: ProbePoint,
    /// Which register holds each argument there, by its number in an instruction's encoding (`rax` 0, `rcx` 1,
    /// `rdx` 2, … `r15` 15); `None` if they are where [`Shape::arguments`] says.
    pub moved: Option<Arguments<u8>>,
    /// Where the return probe is registered: the stack pointer points at the return address. The same
    /// instruction as `entry`, so that one trap serves both; `None` for functions that free or may throw, and for all
    /// of a file with Go code.
    pub returns: Option<ReturnPoint>,
    /// Where the function returns, if it can have no return probe: these replace `returns`, see `exits`. What several
    /// functions share is listed at one of them.
    pub exits: Vec<ExitPoint>,
    /// Sites inside the function that replace both `entry` and `returns`; empty unless the build is known.
    pub inner: Vec<InnerPoint>,
    /// One sentence for `--verbose`.
    pub why: String,
}

impl Site {
    /// Which register holds each argument at the entry site, by its number in an instruction's encoding.
    pub fn places(&self) -> Arguments<u8> {
        self.moved
            .unwrap_or_else(|| self.shape.arguments().map(ArgumentRegister::number))
    }

    /// Whether the function's return is seen by probes at `exits`, of this site and others, and not by a return probe.
    pub fn is_probed_at_exits(&self) -> bool {
        !self.shape.is_free() && self.returns.is_none()
    }

    /// Whether nothing but its return tells which block there is.
    fn needs_its_return(&self) -> bool {
        !self.shape.is_free() && self.inner.is_empty()
    }

    /// Where the function begins (virtual address as the ELF file counts).
    fn function_address(&self) -> u64 {
        self.range.start
    }

    /// Whether this is one of the function's names.
    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|(known, _)| known == name)
    }
}

/// A site inside a function.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InnerPoint {
    /// What is known there.
    pub role: InnerRole,
    /// Bytes from the stack pointer up to the slot of the return address.
    pub slot: u16,
    /// The instruction.
    pub point: ProbePoint,
}

/// A site from which on a function returns.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExitPoint {
    /// The instruction.
    pub point: ProbePoint,
    /// Bytes from the stack pointer up to the slot of the return address.
    pub slot: u16,
    /// The number of the register that holds the result.
    pub register: u8,
    /// The condition under which the function returns from here, as encoded in a conditional jump; `None`: always.
    pub condition: Option<u8>,
    /// Whether the instruction is the `ret`, at which the caller's registers are restored.
    pub returns: bool,
}

/// All probe sites of an image.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In the order of [`Shape`], then by address.
    pub sites: Vec<Site>,
    /// What was left alone and why; one sentence each.
    pub notes: Vec<String>,
    /// Where the code of allocation functions is, probed or not (virtual addresses in the file): what is mapped there is the
    /// allocator's.
    pub allocator_code: Vec<Range<u64>>,
    /// Whether the file is a program linked statically that has no symbols: its allocator cannot be found.
    pub is_stripped_static: bool,
    /// Whether some code could not be read from the process, as while the dynamic linker maps the file.
    pub is_unreadable: bool,
}

impl Plan {
    /// Whether calls of the function with this name are seen.
    pub fn probes(&self, name: &str) -> bool {
        self.sites.iter().any(|site| site.is_named(name))
    }

    /// What is probed, in few words: whole families by their name, single functions by theirs. Empty if nothing is.
    pub fn functions(&self) -> String {
        let mut families: BTreeMap<&Family, BTreeSet<&str>> = BTreeMap::new();
        for site in &self.sites {
            for (name, family) in &site.names {
                families.entry(family).or_default().insert(name);
            }
        }
        let parts = families
            .into_iter()
            .map(|(family, names)| family.describe(&names.into_iter().collect::<Vec<_>>()));
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// Plans the probes for one ELF image.
///
/// `image` is the file that the target maps and `live` its memory. An image that defines no allocation
/// function gives an empty plan. A function that cannot be probed safely is left out, with a note.
///
/// # Errors
///
/// When the image is not an ELF executable or shared object for x86-64.
pub fn plan<'d, R: ReadRef<'d>>(image: R, live: &dyn CodeReader) -> Result<Plan, PlanError> {
    plan_with_prefixes(image, live, &[])
}

/// As [`plan`], and for the functions of private allocators, whose names are those of C behind one of `prefixes`.
///
/// # Errors
///
/// As [`plan`].
pub fn plan_with_prefixes<'d, R: ReadRef<'d>>(
    image: R,
    live: &dyn CodeReader,
    prefixes: &[String],
) -> Result<Plan, PlanError> {
    let image = Image::parse(image)?;
    let mut plan = Plan::default();
    if !image.has_sections() {
        plan.notes
            .push("the file has no section headers, so its functions cannot be found by name".to_owned());
    }
    plan.is_stripped_static = image.is_stripped_static();
    let mut refused = Refused::default();
    let definitions = image.definitions(prefixes);
    for (name, _, refusal) in &definitions.refused {
        refused.add([name.as_str()], refusal);
    }
    plan.allocator_code = own_code::of_allocator(&image, &definitions);
    let stacks = FixedStacks::of(&image);
    let mut sites = Vec::new();
    for definition in definitions.found.values() {
        match plan_site(&image, definition, live, stacks) {
            Ok(site) => sites.push(site),
            Err(refusal) => {
                plan.is_unreadable |= matches!(refusal, Refusal::Unreadable(_));
                refused.add([display_name(definition).as_str()], &refusal);
            }
        }
    }
    if !sites.is_empty() {
        let throws = |site: &Site| definitions.found.get(&site.range.start).is_some_and(|d| d.throws);
        let no_return = |site: &Site| match stacks {
            _ if throws(site) => Some(NoReturnProbe::Throws),
            None if site.needs_its_return() => Some(NoReturnProbe::GoFile),
            _ => None,
        };
        plan.sites = without_needless(&image, sites, live, no_return, &mut refused);
    }
    plan.notes.extend(refused.into_notes());
    if plan.probes("mi_heap_malloc") && image.address_of("mi_heap_destroy").is_some() {
        plan.notes
            .push("mi_heap_destroy is not followed: the blocks that it frees look live".to_owned());
    }
    note_missing_counterpart(&mut plan);
    Ok(plan)
}

/// The sites that are to be probed: without those that leave their work to others, and with exits where there must be
/// no return probe.
fn without_needless<'d, R: ReadRef<'d>>(
    image: &Image<'d, R>,
    sites: Vec<Site>,
    live: &dyn CodeReader,
    no_return: impl Fn(&Site) -> Option<NoReturnProbe>,
    refused: &mut Refused,
) -> Vec<Site> {
    let imports = image.imports();
    let sites = Forwarding::new(image, &sites, &imports).apply(sites);
    let mut exits = Exits::new(image, &imports, live);
    let mut planned = Vec::new();
    for mut site in sites {
        let result = match no_return(&site) {
            Some(why) => exits.plan(&mut site, why),
            None => Ok(()),
        };
        match result {
            Ok(()) => planned.push(site),
            Err(refusal) => refused.add(site.names.iter().map(|(name, _)| name.as_str()), &refusal),
        }
    }
    for site in planned.iter_mut().filter(|site| !site.serves.is_empty()) {
        let more = format!("; sees also the calls of {}", site.serves.join(", "));
        site.why.push_str(&more);
    }
    planned.sort_by_key(|site| (site.shape, site.entry.vaddr));
    planned
}

/// Functions that are not probed, by the reason.
#[derive(Default)]
struct Refused(Vec<(String, Vec<String>)>);

impl Refused {
    fn add<'a>(&mut self, names: impl IntoIterator<Item = &'a str>, refusal: &Refusal) {
        let reason = refusal.to_string();
        let names = names.into_iter().map(str::to_owned);
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, known)) => known.extend(names),
            None => self.0.push((reason, names.collect())),
        }
    }

    fn into_notes(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(reason, names)| {
            let verb = if names.len() == 1 { "is" } else { "are" };
            format!("{} {verb} not probed: {reason}", names.join(", "))
        })
    }
}

fn plan_site<'d, R: ReadRef<'d>>(
    image: &Image<'d, R>,
    definition: &Definition,
    live: &dyn CodeReader,
    stacks: Option<FixedStacks>,
) -> Result<Site, Refusal> {
    let shape = definition.shape;
    let bounds = image.bounds(definition.address, definition.size)?;
    let code = image.code(bounds.range.clone())?;
    let breakpoints = verify::verify(code, live)?;
    let reentry = Reentry::find(code, &image.entry_points(&code), image);
    let choice = prefix::choose(shape, code, &reentry, image.allows_shadow_stack())?;
    let vaddr = definition.address + u64::from(choice.offset);
    let entry = ProbePoint {
        file_offset: image.file_offset(vaddr).ok_or(Refusal::NotInCode)?,
        vaddr,
        function_offset: choice.offset,
        instruction: choice.instruction,
        emulated: choice.emulated,
    };
    let symbol = display_name(definition);
    let inner = if symbol == "malloc" {
        inner_points(image, code)
    } else {
        Vec::new()
    };
    let unconfirmed = if bounds.confirmed {
        ""
    } else {
        " (bounds from the symbol table alone)"
    };
    let mut why = format!(
        "{symbol}+{} `{}`: {}{unconfirmed}",
        choice.offset, entry.instruction, choice.reason
    );
    for offset in breakpoints {
        why.push_str(&format!(
            "; +{offset} already carries a breakpoint, such as another tracer's uprobe"
        ));
    }
    if let Some(names) = inner_names(&inner) {
        why =
            format!("{symbol}{names}: a known build, the block is at hand inside and needs no return probe");
    }
    let returns = stacks
        .filter(|_| !shape.is_free())
        .map(|stacks| ReturnPoint::new(entry.clone(), stacks));
    Ok(Site {
        shape,
        symbol,
        names: definition.names.clone(),
        serves: Vec::new(),
        range: bounds.range,
        entry,
        moved: moved(shape, choice.arguments),
        returns,
        exits: Vec::new(),
        inner,
        why,
    })
}

/// The inner sites of a known build, if the kernel emulates each of them.
fn inner_points<'d, R: ReadRef<'d>>(image: &Image<'d, R>, code: code::Code<'_>) -> Vec<InnerPoint> {
    let Some((sites, slot)) = inner::find(code) else {
        return Vec::new();
    };
    let points = sites.iter().map(|site| {
        let vaddr = code.address + u64::from(site.offset);
        let instruction = code
            .instructions()
            .find(|instruction| instruction.ip() == vaddr)?;
        let handling = kernel_rules::handling(
            &instruction,
            code.encoding(&instruction),
            u64::from(site.offset),
            image.allows_shadow_stack(),
        );
        let point = ProbePoint {
            file_offset: image.file_offset(vaddr)?,
            vaddr,
            function_offset: site.offset,
            instruction: code::disassemble(&instruction),
            emulated: matches!(handling, kernel_rules::Handling::Emulated),
        };
        point.emulated.then_some(InnerPoint {
            role: site.role,
            slot,
            point,
        })
    });
    points.collect::<Option<_>>().unwrap_or_default()
}

/// The offsets of the inner sites, for a person.
fn inner_names(inner: &[InnerPoint]) -> Option<String> {
    let offsets: Vec<_> = inner
        .iter()
        .map(|inner| format!("+{:#x}", inner.point.function_offset))
        .collect();
    (!offsets.is_empty()).then(|| offsets.join(", "))
}

/// The numbers of the registers, if they are not those of the function's entry.
fn moved(shape: Shape, places: Arguments<Register>) -> Option<Arguments<u8>> {
    let entry = shape.arguments().map(ArgumentRegister::decoded);
    (places != entry).then(|| places.map(register_number))
}

/// The number of a general register in an instruction's encoding.
fn register_number(register: Register) -> u8 {
    // There are 16.
    register.number() as u8
}

/// The plainest of its names.
fn display_name(definition: &Definition) -> String {
    let plainest = definition.names.first();
    plainest.map(|(name, _)| name.clone()).unwrap_or_default()
}

/// Says so when blocks can be seen to begin but not to end, or the reverse.
fn note_missing_counterpart(plan: &mut Plan) {
    let note = match (plan.probes("malloc"), plan.probes("free")) {
        (true, false) => "malloc is probed but no free: its blocks look live after they are freed",
        (false, true) => "free is probed but no malloc: what it frees may be unknown",
        _ => return,
    };
    plan.notes.push(note.to_owned());
}
