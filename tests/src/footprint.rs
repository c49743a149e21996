//! What memtrace takes from the machine while it runs.

use std::{collections::BTreeSet, fs};

use anyhow::Context;

use crate::Result;

/// What a process takes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    /// Memory that is its own (bytes): `RssAnon`.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Memory of its eBPF maps, each counted once (bytes).
    pub maps: u64,
}

impl Footprint {
    /// Of a process now.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            Ok(value.with_context(|| format!("no {name}"))?.parse()?)
        };
        let mut footprint = Self {
            memory: field("RssAnon:")? << 10,
            threads: field("Threads:")?,
            ..Self::default()
        };
        let mut known = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            footprint.descriptors += 1;
            // What was closed meanwhile has no text.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let number = |name: &str| -> Option<u64> {
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse().ok()
            };
            if let (Some(id), Some(bytes)) = (number("map_id:"), number("memlock:"))
                && known.insert(id)
            {
                footprint.maps += bytes;
            }
        }
        Ok(footprint)
    }
}

/// The middle one of some values.
pub fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
