//! The processes of `targets/family.c`: their own books, and what the profiles say of each.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

use crate::{
    Result,
    profile::{Heap, Values},
};

/// What the functions that allocate are called.
const SITES: &str = "family_site_";

/// The books of one process.
#[derive(Clone, Debug)]
pub struct Relative {
    /// Its process id.
    pub pid: u32,
    /// Who forked it; 0 if it executed the program.
    pub parent: u32,
    /// By site: its own, and inherited blocks and bytes that live.
    sites: BTreeMap<String, (Values, i64, i64)>,
}

impl Relative {
    /// Reads a line of the program's output.
    pub fn parse(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        ensure!(words.next() == Some("books"), "not a line of books: {line:?}");
        let mut number = || -> Result<u32> { Ok(words.next().context("a line ends early")?.parse()?) };
        let (pid, parent) = (number()?, number()?);
        let words: Vec<&str> = words.collect();
        let mut sites = BTreeMap::new();
        for site in words.chunks_exact(7) {
            let numbers: Vec<i64> = site[1..]
                .iter()
                .map(|word| word.parse())
                .collect::<Result<_, _>>()?;
            let own = Values {
                alloc_objects: numbers[0],
                alloc_bytes: numbers[1],
                inuse_objects: numbers[2],
                inuse_bytes: numbers[3],
            };
            sites.insert(site[0].to_owned(), (own, numbers[4], numbers[5]));
        }
        ensure!(!sites.is_empty(), "no sites in {line:?}");
        Ok(Self { pid, parent, sites })
    }

    /// Insists that the profile is as near to it as samples that are `distance` bytes apart must be.
    pub fn assert_near(&self, heap: &Heap, distance: f64) -> Result<()> {
        let sum = |inherited| {
            let sites = heap.by_function_and_origin(SITES, inherited);
            sites.values().map(|site| site.inuse_bytes).sum::<i64>()
        };
        let own = self.sites.values().map(|(own, ..)| own.inuse_bytes).sum::<i64>();
        let inherited = self.sites.values().map(|(.., bytes)| bytes).sum::<i64>();
        for (what, truth, estimate) in [("own", own, sum(false)), ("inherited", inherited, sum(true))] {
            // n samples of b bytes stand for N bytes each at least, and are off by N each at most.
            let error = distance * (truth as f64 / distance).sqrt().max(1.0);
            ensure!(
                ((estimate - truth) as f64).abs() <= 6.0 * error,
                "process {} (from {}), {what}: {estimate} instead of {truth} bytes, more than 6 times {error:.0} off\n{}",
                self.pid,
                self.parent,
                heap.comments.join("\n")
            );
        }
        Ok(())
    }

    /// Insists that the profile says exactly the same.
    pub fn assert_equal(&self, heap: &Heap) -> Result<()> {
        let (own, inherited) = (
            heap.by_function_and_origin(SITES, false),
            heap.by_function_and_origin(SITES, true),
        );
        for (name, (mine, objects, bytes)) in &self.sites {
            let of = |values: &BTreeMap<String, Values>| values.get(name).copied().unwrap_or_default();
            let theirs = (of(&own), of(&inherited));
            let expected = Values {
                inuse_objects: *objects,
                inuse_bytes: *bytes,
                ..Values::default()
            };
            if (*mine, expected) != theirs {
                bail!(
                    "process {} (from {}), {name}: books {mine:?} and inherited {expected:?},\n profile {theirs:?}\n{}",
                    self.pid,
                    self.parent,
                    heap.comments.join("\n")
                );
            }
        }
        Ok(())
    }
}

/// The profile that a run wrote of a process: the last, if it executed several programs.
pub fn profile_of(output: &Path, pid: u32) -> Result<PathBuf> {
    file_of(output, pid, "heap.pb.gz")
}

/// The same of any profile, by the file's name.
pub fn file_of(output: &Path, pid: u32, name: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(output)? {
        let entry = entry?;
        let directory = entry.file_name().to_string_lossy().into_owned();
        if directory.split('-').next() == Some(&pid.to_string()) {
            found.push(entry.path().join(name));
        }
    }
    found.sort();
    found
        .pop()
        .with_context(|| format!("no profile of process {pid}"))
}
