//! The heap profile: what was allocated since tracing began, and what of it still lives.

use super::{
    builder::{Builder, Frame, Kind, LocationId, SampleType},
    comments,
    proto::Profile,
    stacks::{Stacks, missing_frames},
};
use crate::{
    snapshot::{Site, Snapshot},
    symbol::{Symbolized, Symbolizer, Symbols, is_allocator},
};

/// As Go's `runtime/pprof` names them, so that every viewer knows what to do with them.
pub const HEAP: Kind = Kind {
    sample_types: &[
        SampleType {
            name: "alloc_objects",
            unit: "count",
        },
        SampleType {
            name: "alloc_space",
            unit: "bytes",
        },
        SampleType {
            name: "inuse_objects",
            unit: "count",
        },
        SampleType {
            name: "inuse_space",
            unit: "bytes",
        },
    ],
    default: "inuse_space",
    period_type: SampleType {
        name: "space",
        unit: "bytes",
    },
    period: 1,
};

/// The label of what a process has from before the fork that made it: key and value.
pub const INHERITED: (&str, &str) = ("heap", "inherited");

/// What becomes of functions such as `operator new` at the innermost end of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocatorFrames {
    /// Left out, so that a stack begins with the caller of the allocator.
    Exclude,
    /// Kept as recorded; the probed function itself, such as `malloc`, never is.
    Keep,
}

/// The heap profile of a snapshot.
pub fn heap(snapshot: &Snapshot, symbolizer: &mut Symbolizer, allocator_frames: AllocatorFrames) -> Profile {
    let frames = snapshot.sites.iter().flat_map(|site| site.frames.iter().copied());
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames);
    let period = snapshot
        .selection
        .sample_bytes
        .map_or(HEAP.period, |mean| mean.get() as i64);
    let kind = Kind { period, ..HEAP };
    let mut builder = Builder::new(&kind, &snapshot.process, &snapshot.mappings);
    builder.set_time(snapshot.started, snapshot.duration);
    for comment in comments::heap(snapshot) {
        builder.add_comment(&comment);
    }
    add_sites(&snapshot.sites, &symbols, allocator_frames, &mut builder);
    builder.finish()
}

/// Adds a sample for each site.
pub(super) fn add_sites(
    sites: &[Site],
    symbols: &Symbols,
    allocator_frames: AllocatorFrames,
    builder: &mut Builder<'_>,
) {
    let mut stacks = Stacks::new(symbols);
    for site in sites {
        // The process itself did not allocate what it inherited.
        let (objects, bytes) = match site.inherited {
            true => (0, 0),
            false => (site.alloc_objects, site.alloc_bytes),
        };
        let values = [objects, bytes, site.live_objects, site.live_bytes];
        let label = site.inherited.then_some(INHERITED);
        let stack = stack_of(site, &mut stacks, allocator_frames, builder);
        builder.add_sample(stack, label.as_slice(), &values);
    }
}

/// The stack of a site, innermost frame first.
fn stack_of(
    site: &Site,
    stacks: &mut Stacks<'_>,
    allocator_frames: AllocatorFrames,
    builder: &mut Builder<'_>,
) -> Vec<LocationId> {
    let mut stack = Vec::with_capacity(site.frames.len() + 1);
    let mut frames = site.frames.as_slice();
    if allocator_frames == AllocatorFrames::Exclude {
        let callers = callers(frames, stacks.symbols());
        // A stack of nothing else is still a stack.
        if let Some((first, others)) = callers.split_first() {
            frames = others;
            stack.extend(stacks.symbols().get(*first).map(|code| caller(code, builder)));
        }
    }
    stacks.extend(&mut stack, frames, builder);
    if let Some(missing) = missing_frames(&site.frames, site.end) {
        stack.push(builder.location(Frame::Synthetic(&missing)));
    }
    stack
}

/// The stack without the frames at its beginning that are the allocator's only.
fn callers<'f>(frames: &'f [u64], symbols: &Symbols) -> &'f [u64] {
    let is_own = |packed: &u64| {
        let code = symbols.get(*packed);
        code.is_none_or(|code| code.lines.iter().all(|line| is_allocator(&line.function)))
    };
    let first = frames.iter().position(|packed| !is_own(packed));
    &frames[first.unwrap_or(frames.len())..]
}

/// The place of a frame that called the allocator, without functions of the allocator that were inlined into it.
fn caller(code: &Symbolized, builder: &mut Builder<'_>) -> LocationId {
    let own = code
        .lines
        .iter()
        .take_while(|line| is_allocator(&line.function))
        .count();
    if own == 0 {
        return builder.location(Frame::Code(code));
    }
    builder.location(Frame::Code(&Symbolized {
        lines: code.lines[own..].into(),
        ..code.clone()
    }))
}
