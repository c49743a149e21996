//! Which code is an allocator's own, so that what is mapped there can be told from what the program maps.

use std::ops::Range;

use iced_x86::{FlowControl, Mnemonic};
use object::ReadRef;

use super::{
    code::{Code, direct_target},
    image::{Definitions, Image},
};

/// How many functions are looked at.
const MAX_FUNCTIONS: usize = 4096;

/// The code of the allocation functions of an image, and of the functions that they jump to in the end: of a call that
/// went there, no frame of the first is left (virtual addresses in the file).
pub(super) fn of_allocator<'d, R: ReadRef<'d>>(
    image: &Image<'d, R>,
    definitions: &Definitions,
) -> Vec<Range<u64>> {
    let found = definitions.found.values();
    let mut pending: Vec<(u64, u64)> = found.map(|function| (function.address, function.size)).collect();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    while let Some((address, size)) = pending.pop() {
        let Ok(bounds) = image.bounds(address, size) else {
            continue;
        };
        if ranges.contains(&bounds.range) || ranges.len() == MAX_FUNCTIONS {
            continue;
        }
        if let Ok(code) = image.code(bounds.range.clone()) {
            // Whoever else calls the wrapper of a system call, what it maps is not the allocator's.
            if makes_call(&code) {
                continue;
            }
            pending.extend(jumps(&code).map(|target| (target, 0)));
        }
        ranges.push(bounds.range);
    }
    ranges
}

fn makes_call(code: &Code<'_>) -> bool {
    code.instructions()
        .any(|instruction| instruction.mnemonic() == Mnemonic::Syscall)
}

/// Where the code goes for good.
fn jumps(code: &Code<'_>) -> impl Iterator<Item = u64> {
    let range = code.address..code.end();
    let jumps = code
        .instructions()
        .filter(|instruction| instruction.flow_control() == FlowControl::UnconditionalBranch);
    jumps
        .filter_map(|instruction| direct_target(&instruction))
        .filter(move |target| !range.contains(target))
}
