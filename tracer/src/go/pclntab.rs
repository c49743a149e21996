//! `.gopclntab`: functions, files, lines, inlined calls and sizes of frames, for every address in a Go program.
//!
//! Always there, also in a stripped file: the runtime needs it. Layout: `runtime/symtab.go`, `runtime/symtabinl.go`,
//! `runtime/runtime2.go` (`_func`), `internal/abi/symtab.go`. Every address here is a virtual address in the file, of
//! an instruction: who has a return address subtracts one.

mod header;
mod inline;
mod values;

use std::ops::Range;
use std::sync::Arc;

use object::read::ReadRef;

use super::image::Image;
use super::module::Module;
use super::{GoError, GoFrame, Version};
pub(super) use header::{HEADER_LENGTH, Header};
use inline::InlinedCall;
use values::Values;

/// What the runtime calls a file that it does not know.
const UNKNOWN_FILE: &str = "?";
/// How many calls may be inlined into one another. Compilers stop long before; a file may claim a cycle.
const MAX_INLINED: usize = 256;
/// How much more than the beginning of the last inline tree is read of it (bytes).
const MAX_INLINE_TREE: u64 = 1 << 20;
/// What stands for a `FUNCDATA` that a function does not have.
const NO_DATA: u32 = u32::MAX;
/// `FuncFlagTopFrame`.
const TOP_FRAME: u8 = 1;
/// `PCDATA_InlTreeIndex`.
const INLINE_INDEX: u32 = 2;
/// `FUNCDATA_InlTree`.
const INLINE_TREE: u32 = 3;

/// Fields of `_func`, as offsets in bytes.
mod field {
    pub(super) const ENTRY: usize = 0;
    pub(super) const NAME: usize = 4;
    pub(super) const STACK: usize = 16;
    pub(super) const FILE: usize = 20;
    pub(super) const LINE: usize = 24;
    pub(super) const PCDATA_COUNT: usize = 28;
    pub(super) const UNIT: usize = 32;
    /// Since 1.20; the fields behind it are four bytes further on than before.
    pub(super) const START_LINE: usize = 36;
}

/// The table of functions of one Go program.
#[derive(Debug)]
pub struct Pclntab {
    bytes: Vec<u8>,
    header: Header,
    text: Range<u64>,
    /// From `go:func.*` on, as far as inline trees reach.
    gofunc: Vec<u8>,
    /// `funcID_wrapper`.
    wrapper: u8,
}

/// A function's `_func`, and its code.
#[derive(Clone, Copy, Debug)]
struct Function<'a> {
    fields: &'a [u8],
    entry: u64,
    end: u64,
}

impl Pclntab {
    /// The Go code of the program (virtual addresses in the file): from `runtime.text` to `runtime.etext`.
    pub fn text(&self) -> Range<u64> {
        self.text.clone()
    }

    pub(super) fn read<'d, R: ReadRef<'d>>(
        image: &Image<'d, R>,
        module: &Module,
        version: Version,
    ) -> Result<Self, GoError> {
        let mut table = Self {
            bytes: image.read(module.table.clone())?,
            header: module.header.clone(),
            text: module.text.clone(),
            gofunc: Vec::new(),
            wrapper: wrapper(version),
        };
        if !table.header.fits(&table.bytes) {
            return Err(GoError::Layout(
                "the Go function table is shorter than it claims".to_owned(),
            ));
        }
        let functions = (0..table.header.count).filter_map(|index| table.function_at(index));
        let trees = functions.filter_map(|function| table.inline_tree(function));
        if let Some(last) = trees.max() {
            let segment = image.segment(module.gofunc);
            let end = segment.map_or(module.gofunc, |segment| segment.range.end);
            let wanted = module
                .gofunc
                .saturating_add(u64::from(last))
                .saturating_add(MAX_INLINE_TREE);
            table.gofunc = image.read(module.gofunc..end.min(wanted))?;
        }
        Ok(table)
    }

    /// The calls under way at an instruction, innermost first, inlined calls included. Empty when no Go function covers
    /// the address. A file that is not known is `?`, as in Go.
    pub fn frames(&self, address: u64) -> Vec<GoFrame> {
        self.calls(address).collect()
    }

    /// The innermost call at an instruction: the first of [`Self::frames`].
    pub fn innermost(&self, address: u64) -> Option<GoFrame> {
        self.calls(address).next()
    }

    /// The first address of the function that covers this one.
    pub fn entry(&self, address: u64) -> Option<u64> {
        Some(self.function(address)?.entry)
    }

    /// Where the return address is at an instruction: bytes above the stack pointer.
    pub fn frame_size(&self, address: u64) -> Option<u32> {
        let function = self.function(address)?;
        let value = self.value(u32_at(function.fields, field::STACK)?, function, address)?;
        u32::try_from(value).ok()
    }

    /// Whether nothing calls the function that covers an address, as `runtime.goexit` and `runtime.mstart`: a walk of a
    /// stack ends there (`FuncFlagTopFrame`, `internal/abi/symtab.go`).
    pub fn is_outermost(&self, address: u64) -> bool {
        let function = self.function(address);
        let flags = function.and_then(|function| function.fields.get(self.variable_part() - 3));
        flags.is_some_and(|flags| flags & TOP_FRAME != 0)
    }

    /// The code of the function with this name, such as `runtime.mallocgc`, if there is exactly one.
    pub fn find(&self, name: &str) -> Option<Range<u64>> {
        let functions = (0..self.header.count).filter_map(|index| self.function_at(index));
        let mut named = functions.filter(|function| self.is_named(*function, name));
        let function = named.next()?;
        named.next().is_none().then_some(function.entry..function.end)
    }

    /// Every function's first address, name not included, in order of address.
    #[cfg(test)]
    pub(super) fn entries(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.header.count).filter_map(|index| Some(self.function_at(index)?.entry))
    }

    fn calls(&self, address: u64) -> impl Iterator<Item = GoFrame> + '_ {
        let function = self.function(address);
        let mut next = function.map(|_| address);
        let calls = std::iter::from_fn(move || {
            let (function, address) = (function?, next?);
            let inlined = self.inlined(function, address);
            next = inlined
                .as_ref()
                .map(|call| function.entry.wrapping_add(call.caller));
            next = next.filter(|caller| (function.entry..function.end).contains(caller));
            self.frame(function, inlined, address)
        });
        calls.take(MAX_INLINED)
    }

    /// The call of `function`, or of what is inlined in it, that is at `address`.
    fn frame(&self, function: Function<'_>, inlined: Option<InlinedCall>, address: u64) -> Option<GoFrame> {
        let (name, start_line, kind) = match inlined {
            Some(call) => (call.name, call.start_line, call.kind),
            None => (
                u32_at(function.fields, field::NAME)?,
                self.own_start_line(function)?,
                self.kind(function)?,
            ),
        };
        let line = self.value(u32_at(function.fields, field::LINE)?, function, address);
        let file = self.file(function, address);
        Some(GoFrame {
            function: self.string(self.header.names, name)?,
            line: line.filter(|_| file.is_some()).map_or(0, positive),
            file: file.unwrap_or_else(|| UNKNOWN_FILE.into()),
            start_line,
            is_wrapper: kind == self.wrapper,
        })
    }

    fn file(&self, function: Function<'_>, address: u64) -> Option<Arc<str>> {
        let index = self.value(u32_at(function.fields, field::FILE)?, function, address)?;
        let unit = u64::from(u32_at(function.fields, field::UNIT)?);
        let entry = unit.checked_add(u64::try_from(index).ok()?)?.checked_mul(4)?;
        let name = u32_at(self.part(self.header.units)?, usize::try_from(entry).ok()?)?;
        (name != u32::MAX).then(|| self.string(self.header.files, name))?
    }

    /// The innermost inlined call at an address, if there is one.
    fn inlined(&self, function: Function<'_>, address: u64) -> Option<InlinedCall> {
        let tree = self.gofunc.get(self.inline_tree(function)? as usize..)?;
        let count = u32_at(function.fields, field::PCDATA_COUNT)?;
        if INLINE_INDEX >= count {
            return None;
        }
        let table = u32_at(function.fields, self.variable_part() + 4 * INLINE_INDEX as usize)?;
        let index = self.value(table, function, address)?;
        InlinedCall::read(tree, usize::try_from(index).ok()?, self.header.is_new)
    }

    /// Where a function's inline tree is behind `go:func.*`, if it has one.
    fn inline_tree(&self, function: Function<'_>) -> Option<u32> {
        let pcdata = u32_at(function.fields, field::PCDATA_COUNT)? as usize;
        let count = *function.fields.get(self.variable_part() - 1)?;
        if INLINE_TREE >= u32::from(count) {
            return None;
        }
        let index = pcdata.checked_add(INLINE_TREE as usize)?.checked_mul(4)?;
        let offset = u32_at(function.fields, self.variable_part().checked_add(index)?)?;
        (offset != NO_DATA).then_some(offset)
    }

    /// Where `pcdata` begins in `_func`; the byte before it counts the `funcdata` behind it.
    fn variable_part(&self) -> usize {
        if self.header.is_new { 44 } else { 40 }
    }

    fn own_start_line(&self, function: Function<'_>) -> Option<u32> {
        if !self.header.is_new {
            return Some(0);
        }
        Some(positive(
            u32_at(function.fields, field::START_LINE)?.cast_signed(),
        ))
    }

    /// `funcID`.
    fn kind(&self, function: Function<'_>) -> Option<u8> {
        function.fields.get(self.variable_part() - 4).copied()
    }

    /// The value at `address` of one of a function's tables; 0 is no table.
    fn value(&self, table: u32, function: Function<'_>, address: u64) -> Option<i32> {
        if table == 0 {
            return None;
        }
        let bytes = self.part(self.header.values)?.get(table as usize..)?;
        Values::new(bytes).at(address.checked_sub(function.entry)?)
    }

    fn is_named(&self, function: Function<'_>, name: &str) -> bool {
        let own = u32_at(function.fields, field::NAME);
        let own = own.and_then(|own| self.part(self.header.names)?.get(own as usize..));
        let rest = own.and_then(|own| own.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The string in this part of the table, up to its NUL.
    fn string(&self, part: u64, at: u32) -> Option<Arc<str>> {
        let bytes = self.part(part)?.get(at as usize..)?;
        let length = bytes.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..length]).into())
    }

    /// The table from an offset of the header on.
    fn part(&self, offset: u64) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(offset).ok()?..)
    }

    /// The function that covers an address.
    fn function(&self, address: u64) -> Option<Function<'_>> {
        if !self.text.contains(&address) {
            return None;
        }
        let offset = u32::try_from(address - self.text.start).ok()?;
        let (mut low, mut high) = (0, self.header.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.functab(middle)?.0 <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let function = self.function_at(low.checked_sub(1)?)?;
        (function.entry..function.end)
            .contains(&address)
            .then_some(function)
    }

    /// A function by its place in the order of addresses.
    fn function_at(&self, index: u64) -> Option<Function<'_>> {
        let (entry, offset) = self.functab(index)?;
        let (end, _) = self.functab(index + 1)?;
        let fields = self.part(self.header.functions)?.get(offset as usize..)?;
        if u32_at(fields, field::ENTRY)? != entry {
            return None;
        }
        Some(Function {
            fields,
            entry: self.text.start.checked_add(u64::from(entry))?,
            end: self.text.start.checked_add(u64::from(end))?,
        })
    }

    /// Where a function begins in the text, and where its `_func` is; behind the last function there is only the
    /// former.
    fn functab(&self, index: u64) -> Option<(u32, u32)> {
        let functab = self.part(self.header.functions)?;
        let at = usize::try_from(index.checked_mul(8)?).ok()?;
        let entry = u32_at(functab, at)?;
        Some((entry, u32_at(functab, at + 4).unwrap_or_default()))
    }
}

/// `funcID_wrapper` (`internal/abi/symtab.go`, before 1.21 `cmd/internal/objabi/funcid.go`).
fn wrapper(version: Version) -> u8 {
    match version.minor {
        ..=21 => 21,
        22..=24 => 22,
        _ => 23,
    }
}

fn positive(value: i32) -> u32 {
    u32::try_from(value).unwrap_or_default()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
