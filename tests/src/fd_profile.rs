//! Reading profiles of descriptors.

use std::{collections::BTreeMap, path::Path};

use crate::{
    Result,
    profile::{self, Frame, Sample, Samples},
};

/// The two values of a sample.
const SAMPLE_TYPES: [(&str, &str); 2] = [("open_fds", "count"), ("inuse_fds", "count")];

/// The label of descriptors from before the fork that made the process, and its value.
const INHERITED: (&str, &str) = ("fd", "inherited");

/// The frame of descriptors that were open when memtrace attached.
pub const BEFORE_TRACING: &str = "[opened before tracing]";
/// The frame of descriptors that a call opened which is not traced.
pub const UNTRACED_CALL: &str = "[opened by an untraced call]";
/// The frame of descriptors that the program left open which executed this one.
pub const EARLIER_PROGRAM: &str = "[opened by the program before]";
/// The frame of descriptors that a thread of the kernel opened for an io_uring.
pub const IO_URING: &str = "[opened by io_uring]";

/// How many descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Opened since the attach.
    pub opened: i64,
    /// Open now.
    pub open: i64,
}

impl Counts {
    /// Adds others to these.
    pub fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.open += other.open;
    }
}

/// One sample: a stack, innermost frame first, and what of one kind was opened there.
#[derive(Clone, Debug)]
pub struct FdStack {
    /// Innermost frame first.
    pub frames: Vec<Frame>,
    /// The value of the label `kind`.
    pub kind: String,
    /// Whether this is from before the fork that made the process.
    pub inherited: bool,
    /// How many.
    pub counts: Counts,
}

impl FdStack {
    fn new(sample: Sample) -> Result<Self> {
        let [opened, open] = sample.values()?;
        let (kind, inherited) = sample.kind(INHERITED)?;
        Ok(Self {
            frames: sample.frames,
            kind,
            inherited,
            counts: Counts { opened, open },
        })
    }

    /// Whether a function of this name is in the stack.
    pub fn contains(&self, function: &str) -> bool {
        profile::contains(&self.frames, function)
    }
}

/// A decoded profile of descriptors.
#[derive(Clone, Debug)]
pub struct Fds {
    /// All samples.
    pub stacks: Vec<FdStack>,
    /// The comments: coverage and losses.
    pub comments: Vec<String>,
}

impl Fds {
    /// Reads and checks a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let profile = Samples::read(path, &SAMPLE_TYPES)?;
        profile.check_default("inuse_fds")?;
        let stacks = profile
            .samples
            .into_iter()
            .map(FdStack::new)
            .collect::<Result<_>>()?;
        Ok(Self {
            stacks,
            comments: profile.comments,
        })
    }

    /// What each function whose name begins with `prefix` opened, by its name and the kind: the innermost such function of
    /// a stack has it. Of inherited descriptors only, or of others only.
    pub fn by_site(&self, prefix: &str, inherited: bool) -> BTreeMap<(String, String), Counts> {
        let mut sums: BTreeMap<_, Counts> = BTreeMap::new();
        for stack in self.stacks.iter().filter(|stack| stack.inherited == inherited) {
            if let Some(function) = profile::innermost(&stack.frames, prefix) {
                let key = (function.to_owned(), stack.kind.clone());
                sums.entry(key).or_default().add(stack.counts);
            }
        }
        sums
    }

    /// What of each kind is in stacks that go through a function.
    pub fn by_kind_through(&self, function: &str) -> BTreeMap<String, Counts> {
        let mut sums: BTreeMap<_, Counts> = BTreeMap::new();
        for stack in self.stacks.iter().filter(|stack| stack.contains(function)) {
            sums.entry(stack.kind.clone()).or_default().add(stack.counts);
        }
        sums
    }

    /// Descriptors of a kind that are open, in stacks that go through a function.
    pub fn open_through(&self, function: &str, kind: &str) -> i64 {
        self.by_kind_through(function)
            .get(kind)
            .map_or(0, |counts| counts.open)
    }

    /// How many descriptors are open.
    pub fn open(&self) -> i64 {
        self.stacks.iter().map(|stack| stack.counts.open).sum()
    }

    /// The stacks and comments, for messages of failed tests.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for stack in &self.stacks {
            let functions: Vec<&str> = stack.frames.iter().map(|frame| frame.function.as_str()).collect();
            text += &format!(
                "{} of {} {} open: {}\n",
                stack.counts.open,
                stack.counts.opened,
                stack.kind,
                functions.join(" < ")
            );
        }
        text + &self.comments.join("\n")
    }
}
