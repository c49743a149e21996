//! Reading the profiles of Go programs into what can be compared with the programs' own texts (see [`crate::go_text`]).

use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::{Context, ensure};

use crate::{
    Result,
    go_text::without_types,
    profile::{self, Frame, SAMPLE_TYPES, Sample, Samples, Values},
};

/// A stack as both sides tell it, innermost frame first: each frame `function file:line`.
///
/// The runtime's own frames at the beginning are left out, unless there are no others, and so is `runtime.goexit`: the text
/// of `runtime/pprof` hides them (pprof.go, `printStackRecord`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(Vec<String>);

impl Site {
    /// Of functions, files and lines, innermost first.
    pub fn new<'a>(frames: Vec<(&'a str, &'a str, i64)>) -> Self {
        let frames: Vec<_> = frames
            .into_iter()
            .filter(|(function, ..)| *function != "runtime.goexit")
            .collect();
        let first = frames.iter().position(|(function, ..)| !is_of_runtime(function));
        let shown = &frames[first.unwrap_or(0)..];
        let show =
            |(function, file, line): &(&str, &str, i64)| format!("{} {file}:{line}", without_types(function));
        Self(shown.iter().map(show).collect())
    }

    fn of(frames: &[Frame]) -> Self {
        let frames = frames.iter();
        Self::new(
            frames
                .map(|frame| (frame.function.as_str(), frame.file.as_str(), frame.line))
                .collect(),
        )
    }

    /// How many frames it has.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// So many of its frames, from the innermost on.
    pub fn innermost(&self, most: usize) -> Self {
        Self(self.0.iter().take(most).cloned().collect())
    }

    /// Whether a function of this name is in the stack.
    pub fn contains(&self, function: &str) -> bool {
        self.0
            .iter()
            .any(|frame| frame.split(' ').next() == Some(function))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" < "))
    }
}

fn is_of_runtime(function: &str) -> bool {
    function.starts_with("runtime.") || function.starts_with("internal/runtime/")
}

/// A decoded heap profile of a Go program.
#[derive(Clone, Debug)]
pub struct GoHeap {
    /// The values by site.
    pub sites: BTreeMap<Site, Values>,
    /// `runtime.MemProfileRate` (bytes).
    pub rate: i64,
    /// The comments.
    pub comments: Vec<String>,
}

impl GoHeap {
    /// Reads and checks a profile of memtrace's: its types, and that nobody holds more than was allocated.
    pub fn read(path: &Path) -> Result<Self> {
        Samples::read(path, &SAMPLE_TYPES)?.check_default("inuse_space")?;
        Self::read_any(path)
    }

    /// As [`Self::read`], of the program's own, which has no default.
    pub fn read_any(path: &Path) -> Result<Self> {
        let profile = Samples::read(path, &SAMPLE_TYPES)?;
        let (name, unit) = &profile.period_type;
        ensure!(
            (name.as_str(), unit.as_str()) == ("space", "bytes"),
            "the period is {name} in {unit}"
        );
        let mut sites: BTreeMap<Site, Values> = BTreeMap::new();
        for sample in &profile.samples {
            let values = values_of(sample)?;
            ensure!(
                sample.frames.iter().all(|frame| !frame.function.is_empty()),
                "a frame without a name: {:?}",
                sample.frames
            );
            sites.entry(Site::of(&sample.frames)).or_default().add(&values);
        }
        Ok(Self {
            sites,
            rate: profile.period,
            comments: profile.comments,
        })
    }

    /// Of all stacks through a function.
    pub fn through(&self, function: &str) -> Values {
        let mut sum = Values::default();
        for (site, values) in &self.sites {
            if site.contains(function) {
                sum.add(values);
            }
        }
        sum
    }
}

fn values_of(sample: &Sample) -> Result<Values> {
    let [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes] = sample.values()?;
    let values = Values {
        alloc_objects,
        alloc_bytes,
        inuse_objects,
        inuse_bytes,
    };
    let is_possible =
        (0..=alloc_objects).contains(&inuse_objects) && (0..=alloc_bytes).contains(&inuse_bytes);
    ensure!(
        is_possible,
        "impossible values: {values:?} in {:?}",
        sample.frames
    );
    Ok(values)
}

/// What goroutines are told apart by, besides their stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitKey {
    /// The innermost function of the program's own package.
    pub function: String,
    /// Why it waits, or its state.
    pub wait: String,
    /// The function that made the goroutine; empty for the first.
    pub created_by: String,
}

/// A decoded profile of goroutines.
#[derive(Clone, Debug)]
pub struct Goroutines {
    groups: Vec<(Vec<Frame>, WaitKey, i64)>,
    /// The comments.
    pub comments: Vec<String>,
}

impl Goroutines {
    /// Reads and checks a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let profile = Samples::read(path, &[("goroutine", "count")])?;
        let mut groups = Vec::new();
        for sample in profile.samples {
            let [count] = sample.values()?;
            ensure!(count > 0, "{count} goroutines in {:?}", sample.frames);
            let label = |name: &str| label(&sample, name).unwrap_or_default();
            let key = WaitKey {
                function: without_types(profile::innermost(&sample.frames, "main.").unwrap_or_default()),
                wait: label("wait"),
                created_by: without_types(&label("created_by")),
            };
            groups.push((sample.frames, key, count));
        }
        Ok(Self {
            groups,
            comments: profile.comments,
        })
    }

    /// How many by site.
    pub fn sites(&self) -> BTreeMap<Site, i64> {
        let mut counts = BTreeMap::new();
        for (frames, _, count) in &self.groups {
            *counts.entry(Site::of(frames)).or_default() += count;
        }
        counts
    }

    /// How many by what they wait for.
    pub fn waits(&self) -> BTreeMap<WaitKey, i64> {
        let mut counts = BTreeMap::new();
        for (_, key, count) in &self.groups {
            *counts.entry(key.clone()).or_default() += count;
        }
        counts
    }

    /// How many have a function in their stack.
    pub fn through(&self, function: &str) -> i64 {
        let groups = self.groups.iter();
        groups
            .filter(|(frames, ..)| profile::contains(frames, function))
            .map(|(_, _, count)| count)
            .sum()
    }

    /// How many there are.
    pub fn total(&self) -> i64 {
        self.groups.iter().map(|(_, _, count)| count).sum()
    }
}

/// How many threads each thing holds, from a profile of threads.
pub fn read_threads(path: &Path) -> Result<BTreeMap<String, i64>> {
    let profile = Samples::read(path, &[("threadcreate", "count")])?;
    let mut counts = BTreeMap::new();
    for sample in &profile.samples {
        let [count] = sample.values()?;
        let hold = label(sample, "hold").context("a thread without the label hold")?;
        ensure!(
            ["locked", "syscall", "cgo", "running", "idle"].contains(&hold.as_str()),
            "an unknown hold: {hold:?}"
        );
        *counts.entry(hold).or_default() += count;
    }
    Ok(counts)
}

fn label(sample: &Sample, name: &str) -> Option<String> {
    let mut labels = sample.labels.iter();
    labels
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.clone())
}
