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
//! What is not found: functions under other names (`je_malloc`), copies that a compiler inlined into their
//! callers, and anything in a file without section headers.

mod code;
mod error;
mod frames;
mod function;
mod image;
mod inner;
mod kernel_rules;
mod prefix;
mod reentry;
mod verify;

#[cfg(test)]
mod tests;

pub use error::PlanError;
pub use function::{AllocFunction, ArgumentRegister};
pub use inner::InnerRole;
pub use verify::CodeReader;

use error::Refusal;
use image::{Definition, Image};
use object::ReadRef;
use reentry::Reentry;

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
    /// What the function does, hence how its arguments are read.
    pub function: AllocFunction,
    /// The symbol that names it in this image, without a version.
    pub symbol: String,
    /// Other symbols of the same code.
    pub aliases: Vec<String>,
    /// Where every register of [`AllocFunction::arguments`] still holds its argument. Except for `free`, the
    /// stack pointer points at the return address.
    pub entry: ProbePoint,
    /// Where the return probe is registered: the stack pointer points at the return address. The same
    /// instruction as `entry`, so that one trap serves both; `None` for `free`.
    pub returns: Option<ProbePoint>,
    /// Sites inside the function that replace both `entry` and `returns`; empty unless the build is known.
    pub inner: Vec<InnerPoint>,
    /// One sentence for `--verbose`.
    pub why: String,
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

/// All probe sites of an image.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In the order of [`AllocFunction::ALL`], then by address.
    pub sites: Vec<Site>,
    /// What was left alone and why; one sentence each.
    pub notes: Vec<String>,
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
    let image = Image::parse(image)?;
    let mut plan = Plan::default();
    if !image.has_sections() {
        plan.notes
            .push("the file has no section headers, so its functions cannot be found by name".to_owned());
    }
    let definitions = image.definitions();
    for (name, _, refusal) in &definitions.refused {
        plan.notes.push(format!("{name} is not probed: {refusal}"));
    }
    for definition in definitions.found.values() {
        match plan_site(&image, definition, live) {
            Ok(site) => plan.sites.push(site),
            Err(refusal) => plan
                .notes
                .push(format!("{} is not probed: {refusal}", display_name(definition))),
        }
    }
    plan.sites.sort_by_key(|site| (site.function, site.entry.vaddr));
    note_missing_counterpart(&mut plan);
    Ok(plan)
}

fn plan_site<'d, R: ReadRef<'d>>(
    image: &Image<'d, R>,
    definition: &Definition,
    live: &dyn CodeReader,
) -> Result<Site, Refusal> {
    let function = definition.function;
    let bounds = image.bounds(definition.address, definition.size)?;
    let code = image.code(bounds.range)?;
    let breakpoints = verify::verify(code, live)?;
    let reentry = Reentry::find(code, &image.entry_points(&code), image);
    let choice = prefix::choose(function, code, &reentry, image.allows_shadow_stack())?;
    let vaddr = definition.address + u64::from(choice.offset);
    let entry = ProbePoint {
        file_offset: image.file_offset(vaddr).ok_or(Refusal::NotInCode)?,
        vaddr,
        function_offset: choice.offset,
        instruction: choice.instruction,
        emulated: choice.emulated,
    };
    let symbol = display_name(definition);
    let inner = if function == AllocFunction::Malloc {
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
    let aliases = definition
        .symbols
        .iter()
        .filter(|name| **name != symbol)
        .cloned()
        .collect();
    let returns = (!function.is_free()).then(|| entry.clone());
    Ok(Site {
        function,
        symbol,
        aliases,
        entry,
        returns,
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

/// The function's own name where the image has it, else the alias that it has.
fn display_name(definition: &Definition) -> String {
    let name = definition.function.name();
    let known = definition.symbols.iter().find(|symbol| symbol.as_str() == name);
    known
        .or(definition.symbols.first())
        .map_or_else(|| name.to_owned(), Clone::clone)
}

/// Says so when blocks can be seen to begin but not to end, or the reverse.
fn note_missing_counterpart(plan: &mut Plan) {
    let has = |function| plan.sites.iter().any(|site| site.function == function);
    let note = match (has(AllocFunction::Malloc), has(AllocFunction::Free)) {
        (true, false) => "malloc is probed but no free: its blocks look live after they are freed",
        (false, true) => "free is probed but no malloc: what it frees may be unknown",
        _ => return,
    };
    plan.notes.push(note.to_owned());
}
