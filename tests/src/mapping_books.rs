//! Driving `targets/mappings.c`, and comparing its books with a profile.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail, ensure};

use crate::{
    Result,
    child::{Child, PATIENCE},
    compile,
    mmap_profile::{Mappings, Part, Space},
};

/// What the functions that map are called.
const SITES: &str = "site_";

/// Which values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// All.
    All,
    /// Without the resident bytes, which a process that has ended has none of.
    Mapped,
}

/// The books at a quiet point, when they were equal to `/proc/self/maps`.
#[derive(Clone, Debug)]
pub struct Books {
    /// What each site mapped and holds, by kind.
    pub parts: BTreeMap<Part, Space>,
    /// Operations done so far.
    pub operations: u64,
}

impl Books {
    /// Everything together.
    pub fn total(&self) -> Space {
        self.parts.values().fold(Space::default(), |mut sum, space| {
            sum.add(space);
            sum
        })
    }

    /// Insists that the profile says exactly the same of every site and kind, and knows no other sites.
    pub fn assert_equal(&self, profile: &Mappings, compared: Compared) -> Result<()> {
        let profiled = profile.by_site(SITES);
        let seen = |space: Option<&Space>| {
            let mut space = space.copied().unwrap_or_default();
            if compared == Compared::Mapped {
                space.resident = 0;
            }
            space
        };
        let mut differences = Vec::new();
        let others = profiled.keys().filter(|part| !self.parts.contains_key(*part));
        for part in self.parts.keys().chain(others) {
            let (mine, theirs) = (seen(self.parts.get(part)), seen(profiled.get(part)));
            if mine != theirs {
                differences.push(format!("{part:?}:\n    books   {mine:?}\n    profile {theirs:?}"));
            }
        }
        if !differences.is_empty() {
            let (count, comments) = (differences.len(), profile.comments.join("\n  "));
            differences.truncate(10);
            bail!(
                "{count} of {} parts differ:\n  {}\ncomments:\n  {comments}",
                self.parts.len(),
                differences.join("\n  ")
            );
        }
        Ok(())
    }
}

/// A running `targets/mappings.c`.
#[derive(Debug)]
pub struct Target {
    child: Child,
}

impl Target {
    /// Starts it and waits until its threads are parked.
    pub fn start(program: &Path, threads: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(threads.to_string()).arg(compile::cache_directory()?);
        let mut child = Child::spawn(&mut command)?;
        child.stdout.expect("ready ", PATIENCE)?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Does `operations` operations and returns the books at the quiet point that follows.
    pub fn go(&mut self, operations: u64, seed: u64) -> Result<Books> {
        self.child.tell(&format!("go {operations} {seed}"))?;
        self.read_books(Duration::from_secs(240))
    }

    /// The books as they are.
    pub fn books(&mut self) -> Result<Books> {
        self.child.tell("books")?;
        self.read_books(PATIENCE)
    }

    /// Unmaps everything and returns the books.
    pub fn drain(&mut self) -> Result<Books> {
        self.child.tell("drain")?;
        self.read_books(PATIENCE)
    }

    /// Forks a child that does `operations` operations and then stays as it is; its id and its books.
    pub fn fork(&mut self, operations: u64, seed: u64) -> Result<(u32, Books)> {
        self.child.tell(&format!("fork {operations} {seed}"))?;
        let pid = self.child.stdout.expect("child ", PATIENCE)?.parse()?;
        Ok((pid, self.read_books(PATIENCE)?))
    }

    /// Ends the child.
    pub fn reap(&mut self) -> Result<()> {
        self.child.tell("reap")?;
        self.child.stdout.expect("reaped", PATIENCE).map(|_| ())
    }

    /// Has it exit with all that it maps, and insists that it does so in good order.
    pub fn exit(mut self) -> Result<()> {
        self.child.tell("exit")?;
        let status = self.child.wait(PATIENCE)?;
        ensure!(
            status.success(),
            "the target ended with {status}: {}",
            self.child.stderr.all(PATIENCE)
        );
        Ok(())
    }

    fn read_books(&mut self, patience: Duration) -> Result<Books> {
        let mut parts = BTreeMap::new();
        loop {
            let line = self.child.stdout.next(patience).inspect_err(|_| {
                eprintln!("{}", self.child.stderr.all(Duration::from_millis(100)));
            })?;
            let wrong = || format!("not a line of the books: {line:?}");
            if let Some(operations) = line.strip_prefix("end ") {
                let operations = operations.parse()?;
                return Ok(Books { parts, operations });
            }
            let (part, space) = parse(&line).with_context(wrong)?;
            parts.insert(part, space);
        }
    }
}

/// Reads `SITE KIND MAPPED LIVE RESIDENT`, perhaps with ` inherited`.
fn parse(line: &str) -> Result<(Part, Space)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (words, inherited) = match words.as_slice() {
        [words @ .., "inherited"] => (words, true),
        words => (words, false),
    };
    let [site, kind, mapped, inuse, resident] = words else {
        bail!("{} words instead of 5", words.len());
    };
    let part = Part {
        site: (*site).to_owned(),
        kind: (*kind).to_owned(),
        inherited,
    };
    let space = Space {
        mapped: mapped.parse()?,
        inuse: inuse.parse()?,
        resident: resident.parse()?,
    };
    Ok((part, space))
}
