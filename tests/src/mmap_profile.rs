//! Reading the profiles of mappings and of new memory.

use std::{collections::BTreeMap, path::Path};

use anyhow::ensure;

use crate::{
    Result,
    profile::{self, Frame, Sample, Samples},
};

/// The innermost frame of a stack that the C library keeps for its next thread.
pub const CACHED_STACK: &str = "[cached thread stack]";
/// What stands for the stack of what was there when memtrace attached.
pub const BEFORE_TRACING: &str = "[mapped before tracing]";
/// What stands for the stack of what a call mapped that is not traced.
pub const UNTRACED_CALL: &str = "[mapped by an untraced call]";

/// The label of what a process has from before the fork that made it, and its value.
const INHERITED: (&str, &str) = ("mmap", "inherited");
const KINDS: [&str; 4] = ["anon", "file", "shared", "stack"];

/// The values of a sample of mappings.
const MAPPING_TYPES: [(&str, &str); 3] = [
    ("mmap_space", "bytes"),
    ("inuse_space", "bytes"),
    ("resident_space", "bytes"),
];
/// The values of a sample of new memory.
const GROWTH_TYPES: [(&str, &str); 3] = [
    ("touched_space", "bytes"),
    ("brk_space", "bytes"),
    ("mmap_space", "bytes"),
];

/// What a site mapped and holds (bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Mapped since the attach.
    pub mapped: i64,
    /// Mapped now.
    pub inuse: i64,
    /// Of that, in memory.
    pub resident: i64,
}

impl Space {
    /// Adds another stack's values to these.
    pub fn add(&mut self, other: &Self) {
        self.mapped += other.mapped;
        self.inuse += other.inuse;
        self.resident += other.resident;
    }
}

/// What is counted apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The function that mapped.
    pub site: String,
    /// `anon`, `file`, `shared` or `stack`; `cached` for stacks of threads that ended.
    pub kind: String,
    /// Whether it is from before the fork that made the process.
    pub inherited: bool,
}

/// One sample of a profile of mappings.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Innermost frame first.
    pub frames: Vec<Frame>,
    /// The label `kind`.
    pub kind: String,
    /// Whether it is from before the fork that made the process.
    pub inherited: bool,
    /// What this stack mapped and holds.
    pub space: Space,
}

impl Holder {
    fn new(sample: Sample) -> Result<Self> {
        let [mapped, inuse, resident] = sample.values()?;
        let (kind, inherited) = sample.kind(INHERITED)?;
        ensure!(KINDS.contains(&kind.as_str()), "an unknown kind: {kind:?}");
        Ok(Self {
            frames: sample.frames,
            kind,
            inherited,
            space: Space {
                mapped,
                inuse,
                resident,
            },
        })
    }

    /// Whether it is the stack of a thread that ended.
    pub fn is_cached(&self) -> bool {
        self.frames
            .first()
            .is_some_and(|frame| frame.function == CACHED_STACK)
    }
}

/// A decoded profile of mappings.
#[derive(Clone, Debug)]
pub struct Mappings {
    /// All samples.
    pub holders: Vec<Holder>,
    /// The comments: coverage and losses.
    pub comments: Vec<String>,
}

impl Mappings {
    /// Reads and checks a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let profile = Samples::read(path, &MAPPING_TYPES)?;
        profile.check_default("inuse_space")?;
        let holders = profile.samples.into_iter().map(Holder::new);
        Ok(Self {
            holders: holders.collect::<Result<_>>()?,
            comments: profile.comments,
        })
    }

    /// What each function whose name begins with `prefix` mapped, by kind: the innermost such function of a stack has it.
    /// Parts of which all is 0 are left out.
    ///
    /// What was mapped for stacks counts as `stack`, whether or not they are cached now.
    pub fn by_site(&self, prefix: &str) -> BTreeMap<Part, Space> {
        let mut parts: BTreeMap<Part, Space> = BTreeMap::new();
        for holder in &self.holders {
            let Some(site) = profile::innermost(&holder.frames, prefix) else {
                continue;
            };
            let part = |kind: &str| Part {
                site: site.to_owned(),
                kind: kind.to_owned(),
                inherited: holder.inherited,
            };
            let Space {
                mapped,
                inuse,
                resident,
            } = holder.space;
            let held = if holder.is_cached() {
                "cached"
            } else {
                &holder.kind
            };
            parts.entry(part(&holder.kind)).or_default().mapped += mapped;
            let space = parts.entry(part(held)).or_default();
            space.inuse += inuse;
            space.resident += resident;
        }
        parts.retain(|_, space| *space != Space::default());
        parts
    }

    /// Everything with this frame.
    pub fn under(&self, frame: &str) -> Space {
        let mut sum = Space::default();
        for holder in &self.holders {
            if profile::contains(&holder.frames, frame) {
                sum.add(&holder.space);
            }
        }
        sum
    }
}

/// New memory of a site (bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewMemory {
    /// Touched for the first time: an estimate.
    pub touched: i64,
    /// By which `brk` moved the end of the heap up.
    pub brk: i64,
    /// By which `mmap` and `mremap` made or enlarged mappings.
    pub mapped: i64,
}

/// A decoded profile of new memory.
#[derive(Clone, Debug)]
pub struct Growth {
    /// The innermost frame first, and what the stack added.
    pub stacks: Vec<(Vec<Frame>, NewMemory)>,
    /// The mean distance between two samples of touched memory (bytes).
    pub period: i64,
    /// The comments: coverage and losses.
    pub comments: Vec<String>,
}

impl Growth {
    /// Reads and checks a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let profile = Samples::read(path, &GROWTH_TYPES)?;
        profile.check_default("touched_space")?;
        let mut stacks = Vec::new();
        for sample in profile.samples {
            let [touched, brk, mapped] = sample.values()?;
            stacks.push((sample.frames, NewMemory { touched, brk, mapped }));
        }
        Ok(Self {
            stacks,
            period: profile.period,
            comments: profile.comments,
        })
    }

    /// What each function whose name begins with `prefix` added: the innermost such function of a stack has it.
    pub fn by_site(&self, prefix: &str) -> BTreeMap<String, NewMemory> {
        let mut sites: BTreeMap<String, NewMemory> = BTreeMap::new();
        for (frames, new) in &self.stacks {
            if let Some(site) = profile::innermost(frames, prefix) {
                let site = sites.entry(site.to_owned()).or_default();
                site.touched += new.touched;
                site.brk += new.brk;
                site.mapped += new.mapped;
            }
        }
        sites
    }
}
