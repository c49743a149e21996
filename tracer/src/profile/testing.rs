//! Snapshots built by hand.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use memtrace_ebpf::layout::EndReason;

use crate::{
    snapshot::{ConnectionLoops, Coverage, Holder, Losses, Maker, Origin, Selection, Site, Snapshot},
    target::{Mappings, ProcessInfo},
};

/// A site with these frames; `live` and `allocated` are objects and bytes.
pub(crate) fn site(frames: &[u64], end: EndReason, live: (u64, u64), allocated: (u64, u64)) -> Site {
    Site {
        inherited: false,
        frames: frames.to_vec(),
        end,
        alloc_objects: allocated.0,
        alloc_bytes: allocated.1,
        live_objects: live.0,
        live_bytes: live.1,
        mean_age: Duration::from_secs(4),
        recent_change: 0,
        live_samples: 0,
    }
}

/// A holder of this kind with these frames, whose `held` are as many objects.
pub(crate) fn holder(kind: &'static str, frames: &[u64], made: u64, held: u64) -> Holder {
    Holder {
        kind,
        maker: Maker::Code,
        frames: frames.to_vec(),
        end: EndReason::Complete,
        inherited: false,
        cached: false,
        made,
        held,
        held_objects: held,
        resident: 0,
        mean_age: Duration::from_secs(4),
        recent_change: 0,
        loops: ConnectionLoops::default(),
    }
}

/// A holder that is not code.
pub(crate) fn nobody(kind: &'static str, maker: Maker, held: u64) -> Holder {
    Holder {
        maker,
        mean_age: Duration::ZERO,
        ..holder(kind, &[], 0, held)
    }
}

/// A snapshot of these sites, 30 seconds after tracing began.
pub(crate) fn snapshot(sites: Vec<Site>, mappings: Mappings, executable: PathBuf) -> Snapshot {
    Snapshot {
        go: None,
        space: 1,
        origin: Origin::Attached,
        process: ProcessInfo {
            pid: 4711,
            name: "server".to_owned(),
            executable,
        },
        started: UNIX_EPOCH + Duration::from_secs(1_795_368_817),
        duration: Duration::from_secs(30),
        recent: Duration::ZERO,
        sites,
        selection: Selection::default(),
        losses: Losses::default(),
        coverage: Coverage {
            allocators: vec!["libc.so.6: malloc, calloc, realloc, free".to_owned()],
            not_covered: Vec::new(),
        },
        failed_calls: 0,
        mappings: Arc::new(mappings),
        heap: true,
        fds: None,
        fd_details: None,
        mmap: None,
        growth: None,
        memory: None,
    }
}
