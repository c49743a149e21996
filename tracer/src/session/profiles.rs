//! Which profiles a snapshot gives, and the making of each.

use crate::{
    profile::{self, AllocatorFrames, Profile},
    snapshot::Snapshot,
    symbol::Symbolizer,
};

/// The names of the profiles that a snapshot gives, without `.pb.gz`.
pub fn names_of(snapshot: &Snapshot) -> Vec<&'static str> {
    let go = snapshot.go.as_ref();
    let names = [
        go.is_some_and(|_| snapshot.heap).then_some("heap"),
        snapshot.native_heap(),
        snapshot.fds.as_ref().map(|_| "fd"),
        snapshot.mmap.as_ref().map(|_| "mmap"),
        snapshot.growth.as_ref().map(|_| "growth"),
        go.and_then(|go| go.goroutines.as_ref()).map(|_| "goroutine"),
        go.and_then(|go| go.threads.as_ref()).map(|_| "threadcreate"),
    ];
    names.into_iter().flatten().collect()
}

/// The profile of this name, if the snapshot gives it.
pub fn profile_of(
    snapshot: &Snapshot,
    name: &str,
    symbolizer: &mut Symbolizer,
    frames: AllocatorFrames,
) -> Option<Profile> {
    let go = snapshot.go.as_ref();
    if snapshot.native_heap() == Some(name) {
        return Some(profile::heap(snapshot, symbolizer, frames));
    }
    Some(match name {
        "heap" => profile::go_heap(snapshot, go.filter(|_| snapshot.heap)?, symbolizer, frames),
        "fd" => profile::fds(snapshot, snapshot.fds.as_ref()?, symbolizer),
        "mmap" => profile::mmap(snapshot, snapshot.mmap.as_ref()?, symbolizer),
        "growth" => profile::growth(snapshot, snapshot.growth.as_ref()?, symbolizer),
        "goroutine" => profile::goroutines(snapshot, go?, go?.goroutines.as_ref()?, symbolizer),
        "threadcreate" => profile::threads(snapshot, go?, go?.threads.as_ref()?, symbolizer),
        _ => return None,
    })
}
