//! The heap profile: what was allocated since tracing began, and what of it still lives.

use super::{
    builder::{Builder, Frame, Kind, LocationId, SampleType},
    comments,
    proto::Profile,
};
use crate::{
    snapshot::{Site, Snapshot},
    symbol::{FrameMap, Symbolizer, Symbols, allocators},
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

/// The heap profile of a snapshot.
pub fn heap(snapshot: &Snapshot, symbolizer: &mut Symbolizer) -> Profile {
    let frames = snapshot.sites.iter().flat_map(|site| site.frames.iter().copied());
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames);
    let mut builder = Builder::new(&HEAP, &snapshot.process, &snapshot.mappings);
    builder.set_time(snapshot.started, snapshot.duration);
    // Otherwise every block would count as `malloc`'s own.
    builder.set_drop_frames(&allocators());
    for comment in comments::of(snapshot) {
        builder.add_comment(&comment);
    }
    let mut locations = FrameMap::default();
    for site in &snapshot.sites {
        // The process itself did not allocate what it inherited.
        let (objects, bytes) = match site.inherited {
            true => (0, 0),
            false => (site.alloc_objects, site.alloc_bytes),
        };
        let values = [objects, bytes, site.live_objects, site.live_bytes];
        let label = site.inherited.then_some(INHERITED);
        let stack = stack(&mut builder, &mut locations, site, &symbols);
        builder.add_sample(stack, label, &values);
    }
    builder.finish()
}

fn stack(
    builder: &mut Builder<'_>,
    locations: &mut FrameMap<LocationId>,
    site: &Site,
    symbols: &Symbols,
) -> Vec<LocationId> {
    let mut stack = Vec::with_capacity(site.frames.len() + 1);
    for packed in &site.frames {
        if let Some(known) = locations.get(packed) {
            stack.push(*known);
        } else if let Some(code) = symbols.get(*packed) {
            let location = builder.location(Frame::Code(code));
            locations.insert(*packed, location);
            stack.push(location);
        }
    }
    if let Some(missing) = comments::missing_frames(site) {
        stack.push(builder.location(Frame::Synthetic(&missing)));
    }
    stack
}
