//! The profiles of a Go runtime, as `runtime/pprof` would write them.

use super::{
    builder::{Builder, Kind, SampleType},
    comments,
    heap::{AllocatorFrames, HEAP, add_sites},
    proto::Profile,
    stacks::Stacks,
    subject::Subject,
};
use crate::{
    snapshot::{GoState, GoroutineGroup, Snapshot, ThreadGroup},
    symbol::Symbolizer,
};

/// Goroutines: how many do the same.
pub const GOROUTINES: Kind = Kind {
    sample_types: &[GOROUTINE],
    default: GOROUTINE.name,
    period_type: GOROUTINE,
    period: 1,
};

/// Threads: how many are held by the same.
pub const THREADS: Kind = Kind {
    sample_types: &[THREAD],
    default: THREAD.name,
    period_type: THREAD,
    period: 1,
};

const GOROUTINE: SampleType = SampleType {
    name: "goroutine",
    unit: "count",
};

const THREAD: SampleType = SampleType {
    name: "threadcreate",
    unit: "count",
};

/// The key of the label with the function that made a goroutine.
pub const CREATED_BY: &str = "created_by";
/// The key of the label that says why a goroutine waits, or else what it does.
pub const WAIT: &str = "wait";
/// The key of the label that says what holds a thread.
pub const HOLD: &str = "hold";

/// The heap profile that the runtime keeps; without samples if it keeps none, or if it could not be read.
pub fn go_heap(
    snapshot: &Snapshot,
    go: &GoState,
    symbolizer: &mut Symbolizer,
    allocator_frames: AllocatorFrames,
) -> Profile {
    let sites = go.heap.as_ref().map_or(&[][..], |heap| &heap.sites);
    let rate = go.heap.as_ref().map_or(0, |heap| heap.rate);
    let kind = Kind {
        period: i64::try_from(rate).unwrap_or(i64::MAX),
        ..HEAP
    };
    let frames = sites.iter().flat_map(|site| site.frames.iter().copied());
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames);
    let mut builder = begin(&kind, snapshot, comments::go_heap(snapshot, go));
    add_sites(sites, &symbols, allocator_frames, &mut builder);
    builder.finish()
}

/// The goroutines but those of the runtime itself.
pub fn goroutines(
    snapshot: &Snapshot,
    go: &GoState,
    groups: &[GoroutineGroup],
    symbolizer: &mut Symbolizer,
) -> Profile {
    let groups = || groups.iter().filter(|group| !group.is_system);
    let frames = groups().flat_map(|group| group.frames.iter().copied());
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames);
    let comments = comments::go(snapshot, go, Subject::Goroutines);
    let mut builder = begin(&GOROUTINES, snapshot, comments);
    let mut stacks = Stacks::new(&symbols);
    for group in groups() {
        let inner = group.innermost_frame();
        let stack = stacks.with_ends(inner.as_slice(), &group.frames, None, &mut builder);
        let mut labels = vec![(WAIT, group.wait)];
        if !group.created_by.is_empty() {
            labels.push((CREATED_BY, &group.created_by));
        }
        builder.add_sample(stack, &labels, &[group.count]);
    }
    builder.finish()
}

/// The threads.
pub fn threads(
    snapshot: &Snapshot,
    go: &GoState,
    groups: &[ThreadGroup],
    symbolizer: &mut Symbolizer,
) -> Profile {
    let frames = groups.iter().flat_map(|group| group.frames.iter().copied());
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames);
    let mut builder = begin(&THREADS, snapshot, comments::go(snapshot, go, Subject::Threads));
    let mut stacks = Stacks::new(&symbols);
    for group in groups {
        let inner = group.innermost_frame();
        let stack = stacks.with_ends(inner.as_slice(), &group.frames, None, &mut builder);
        builder.add_sample(stack, &[(HOLD, group.hold)], &[group.count]);
    }
    builder.finish()
}

fn begin<'s>(kind: &Kind, snapshot: &'s Snapshot, comments: Vec<String>) -> Builder<'s> {
    let mut builder = Builder::new(kind, &snapshot.process, &snapshot.mappings);
    builder.set_time(snapshot.started, snapshot.duration);
    for comment in comments {
        builder.add_comment(&comment);
    }
    builder
}
