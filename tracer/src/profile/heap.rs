//! The heap profile: what was allocated since tracing began, and what of it still lives.

use super::{
    builder::{Builder, Frame, Kind, SampleType},
    comments,
    proto::Profile,
};
use crate::{
    snapshot::{Site, Snapshot},
    symbol::{Symbolizer, Symbols, allocators},
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
    for site in &snapshot.sites {
        let values = [
            site.alloc_objects,
            site.alloc_bytes,
            site.live_objects,
            site.live_bytes,
        ];
        add_site(&mut builder, site, &symbols, &values);
    }
    builder.finish()
}

fn add_site(builder: &mut Builder<'_>, site: &Site, symbols: &Symbols, values: &[u64]) {
    let code = site
        .frames
        .iter()
        .filter_map(|frame| symbols.get(*frame))
        .map(Frame::Code);
    let last = comments::missing_frames(site);
    builder.add_sample(code.chain(last.as_deref().map(Frame::Synthetic)), values);
}
