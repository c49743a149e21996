//! Snapshots and their symbols from words.

use std::sync::Arc;

use memtrace_ebpf::{layout::EndReason, unwind::frame};

use crate::{
    profile::testing::{site, snapshot},
    snapshot::{Site, Snapshot},
    symbol::{Line, Symbolized, Symbols},
    target::{Backing, Mapping, Mappings},
};

/// The mapping of the C library.
const LIBC: u16 = 1;

/// What runs before `main`.
pub(super) const START: [&str; 4] = [
    "main at src/main.c:61",
    "__libc_start_call_main at libc-start.c:58",
    "__libc_start_main_impl at libc-start.c:360",
    "_start",
];

/// Makes sites and their symbols from words, each frame a `function at file:line`, of the C library `libc!function`.
#[derive(Default)]
pub(super) struct Words {
    pub(super) sites: Vec<Site>,
    pub(super) symbols: Vec<(u64, Symbolized)>,
}

impl Words {
    pub(super) fn site(&mut self, live: (u64, u64), stack: &[&str]) -> &mut Site {
        let frames = self.frames(stack);
        self.sites
            .push(site(&frames, EndReason::Complete, live, (live.0 * 2, live.1 * 2)));
        self.sites.last_mut().unwrap()
    }

    /// The frames of a stack, innermost first.
    pub(super) fn frames(&mut self, stack: &[&str]) -> Vec<u64> {
        stack.iter().map(|frame| self.frame(frame)).collect()
    }

    fn frame(&mut self, words: &str) -> u64 {
        let address = self.symbols.len() as u64 + 1;
        let packed = frame::pack(0, address, true);
        let (mapping, words) = words
            .strip_prefix("libc!")
            .map_or((0, words), |words| (LIBC, words));
        // Inlined calls are separated by ` < `.
        let lines = words.split(" < ").map(|words| {
            let (function, place) = words.rsplit_once(" at ").unwrap_or((words, ""));
            let (file, line) = place.rsplit_once(':').unwrap_or((place, "0"));
            Line {
                function: function.into(),
                system_name: None,
                file: (!file.is_empty()).then(|| file.into()),
                line: line.parse().unwrap(),
                column: 0,
            }
        });
        let symbolized = Symbolized {
            address,
            mapping: Some(mapping),
            lines: lines.collect(),
            named: true,
        };
        self.symbols.push((packed, symbolized));
        packed
    }

    pub(super) fn symbols(&self) -> Symbols {
        Symbols::from_parts(self.symbols.iter().cloned())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        snapshot(self.sites.clone(), mappings(), "/app/server".into())
    }
}

fn mappings() -> Mappings {
    let libc = Mapping {
        id: LIBC,
        begin: 0x1000,
        end: 0x2000,
        file_offset: 0,
        bias: 0,
        path: "/lib/x86_64-linux-gnu/libc.so.6".into(),
        build_id: None,
        file_id: (0, 0),
        backing: Backing::Anonymous,
        root: None,
    };
    Mappings {
        all: vec![Arc::new(libc)],
    }
}
