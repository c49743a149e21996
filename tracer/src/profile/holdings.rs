//! The profiles of descriptors and mappings: what was opened or mapped since tracing began, and what of it still is.

use super::{
    builder::{Builder, Kind, SampleType},
    comments,
    proto::Profile,
    stacks::{Stacks, innermost_frames, missing_of},
    subject::Subject,
};
use crate::{
    snapshot::{Holder, Holdings, Snapshot},
    symbol::Symbolizer,
};

/// Descriptors: how many were opened, and how many are open.
pub const FDS: Kind = Kind {
    sample_types: &[
        SampleType {
            name: "open_fds",
            unit: "count",
        },
        SampleType {
            name: "inuse_fds",
            unit: "count",
        },
    ],
    default: "inuse_fds",
    period_type: SampleType {
        name: "fds",
        unit: "count",
    },
    period: 1,
};

/// Mappings: how many bytes were mapped, how many are, and how many of these are in memory.
pub const MMAP: Kind = Kind {
    sample_types: &[
        SampleType {
            name: "mmap_space",
            unit: "bytes",
        },
        SampleType {
            name: "inuse_space",
            unit: "bytes",
        },
        SampleType {
            name: "resident_space",
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

/// The key of the label that says what was opened or mapped, as [`Holder::kind`].
pub const KIND: &str = "kind";
/// The label of descriptors from before the fork that made the process: key and value.
pub const FDS_INHERITED: (&str, &str) = ("fd", "inherited");
/// The label of mappings from before the fork that made the process: key and value.
pub const MMAP_INHERITED: (&str, &str) = ("mmap", "inherited");

/// The profile of a snapshot's descriptors.
pub fn fds(snapshot: &Snapshot, holdings: &Holdings, symbolizer: &mut Symbolizer) -> Profile {
    let class = Class {
        kind: &FDS,
        subject: Subject::Descriptors,
        inherited: FDS_INHERITED,
        values: |holder| vec![made(holder), holder.held],
    };
    profile(&class, snapshot, holdings, symbolizer)
}

/// The profile of a snapshot's mappings.
pub fn mmap(snapshot: &Snapshot, holdings: &Holdings, symbolizer: &mut Symbolizer) -> Profile {
    let class = Class {
        kind: &MMAP,
        subject: Subject::Mappings,
        inherited: MMAP_INHERITED,
        values: |holder| vec![made(holder), holder.held, holder.resident],
    };
    profile(&class, snapshot, holdings, symbolizer)
}

/// In what the two profiles differ.
struct Class {
    kind: &'static Kind,
    subject: Subject,
    inherited: (&'static str, &'static str),
    values: fn(&Holder) -> Vec<u64>,
}

fn profile(class: &Class, snapshot: &Snapshot, holdings: &Holdings, symbolizer: &mut Symbolizer) -> Profile {
    let Class {
        kind,
        subject,
        inherited,
        values,
    } = class;
    let frames = holdings.holders.iter().flat_map(|holder| &holder.frames);
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames.copied());
    let mut builder = Builder::new(kind, &snapshot.process, &snapshot.mappings);
    builder.set_time(snapshot.started, snapshot.duration);
    for comment in comments::holdings(snapshot, *subject, holdings) {
        builder.add_comment(&comment);
    }
    let mut stacks = Stacks::new(&symbols);
    for holder in &holdings.holders {
        let inner = innermost_frames(holder, subject.made());
        let outer = missing_of(holder);
        let stack = stacks.with_ends(&inner, &holder.frames, outer.as_deref(), &mut builder);
        let mut labels = vec![(KIND, holder.kind)];
        labels.extend(holder.inherited.then_some(*inherited));
        builder.add_sample(stack, &labels, &values(holder));
    }
    builder.finish()
}

/// How much a holder made; the process itself did not make what it inherited.
fn made(holder: &Holder) -> u64 {
    match holder.inherited {
        true => 0,
        false => holder.made,
    }
}
