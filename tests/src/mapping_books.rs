//! Driving `targets/mappings.c`, and comparing its books with a profile.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::bail;

use crate::{
    Result, compile,
    driven::{self, Driven},
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
        let mut profiled = profile.by_site(SITES);
        let mut mine = self.parts.clone();
        if compared == Compared::Mapped {
            for space in profiled.values_mut().chain(mine.values_mut()) {
                space.resident = 0;
            }
        }
        driven::check(driven::differences(&mine, &profiled), &profile.comments)
    }
}

/// A running `targets/mappings.c`.
#[derive(Debug)]
pub struct Target {
    driven: Driven,
}

impl Target {
    /// Starts it and waits until its threads are parked.
    pub fn start(program: &Path, threads: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(threads.to_string()).arg(compile::cache_directory()?);
        Ok(Self {
            driven: Driven::start(&mut command)?,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.driven.pid()
    }

    /// Does `operations` operations and returns the books at the quiet point that follows.
    pub fn go(&mut self, operations: u64, seed: u64) -> Result<Books> {
        self.driven.tell(&format!("go {operations} {seed}"))?;
        self.read_books()
    }

    /// The books as they are.
    pub fn books(&mut self) -> Result<Books> {
        self.driven.tell("books")?;
        self.read_books()
    }

    /// Unmaps everything and returns the books.
    pub fn drain(&mut self) -> Result<Books> {
        self.driven.tell("drain")?;
        self.read_books()
    }

    /// Forks a child that does `operations` operations and then stays as it is; its id and its books.
    pub fn fork(&mut self, operations: u64, seed: u64) -> Result<(u32, Books)> {
        self.driven.tell(&format!("fork {operations} {seed}"))?;
        let pid = self.driven.expect("child ")?.parse()?;
        Ok((pid, self.read_books()?))
    }

    /// Ends the child.
    pub fn reap(&mut self) -> Result<()> {
        self.driven.tell("reap")?;
        self.driven.expect("reaped").map(|_| ())
    }

    /// Has it exit with all that it maps, and insists that it does so in good order.
    pub fn exit(self) -> Result<()> {
        self.driven.exit()
    }

    fn read_books(&mut self) -> Result<Books> {
        let mut parts = BTreeMap::new();
        let operations = self.driven.read_books(|line| {
            let (part, space) = parse(line)?;
            parts.insert(part, space);
            Ok(())
        })?;
        Ok(Books {
            parts,
            operations: operations.parse()?,
        })
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
