//! The profile of new memory: who touched it first, and who asked the kernel for it.

use super::{
    builder::{Builder, Kind, SampleType},
    comments,
    proto::Profile,
    stacks::{Stacks, missing_frames},
};
use crate::{
    snapshot::{Growths, Snapshot},
    symbol::Symbolizer,
};

/// New memory: bytes touched for the first time, bytes that `brk` added, and bytes mapped.
pub const GROWTH: Kind = Kind {
    sample_types: &[
        SampleType {
            name: "touched_space",
            unit: "bytes",
        },
        SampleType {
            name: "brk_space",
            unit: "bytes",
        },
        SampleType {
            name: "mmap_space",
            unit: "bytes",
        },
    ],
    default: "touched_space",
    period_type: SampleType {
        name: "space",
        unit: "bytes",
    },
    period: 1,
};

/// The profile of a snapshot's new memory; its period is the mean distance between two samples.
pub fn growth(snapshot: &Snapshot, growths: &Growths, symbolizer: &mut Symbolizer) -> Profile {
    let frames = growths.sites.iter().flat_map(|site| &site.frames);
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames.copied());
    let kind = Kind {
        period: i64::try_from(growths.sample_bytes).unwrap_or(i64::MAX),
        ..GROWTH
    };
    let mut builder = Builder::new(&kind, &snapshot.process, &snapshot.mappings);
    builder.set_time(snapshot.started, snapshot.duration);
    for comment in comments::growth(snapshot, growths) {
        builder.add_comment(&comment);
    }
    let mut stacks = Stacks::new(&symbols);
    for site in &growths.sites {
        let outer = missing_frames(&site.frames, site.end);
        let stack = stacks.with_ends(&[], &site.frames, outer.as_deref(), &mut builder);
        builder.add_sample(stack, &[], &[site.touched, site.brk, site.mapped]);
    }
    builder.finish()
}
