//! Driving `targets/ground_truth.c`, and comparing its books with a profile.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, bail};

use crate::{
    Result,
    driven::{self, Driven},
    profile::{Heap, Values},
};

/// The books of a target at a quiet point: what each of its sites allocated and holds.
#[derive(Clone, Debug)]
pub struct Books {
    /// By the name of the site's function.
    pub sites: BTreeMap<String, Values>,
    /// Operations done so far.
    pub operations: u64,
}

/// A running ground-truth target.
#[derive(Debug)]
pub struct GroundTruth {
    driven: Driven,
}

impl GroundTruth {
    /// Starts it and waits until its threads are parked.
    pub fn start(program: &Path, threads: u32, slots: u32) -> Result<Self> {
        Self::start_preloaded(program, None, threads, slots)
    }

    /// As [`Self::start`], with a library before all others.
    pub fn start_preloaded(program: &Path, library: Option<&Path>, threads: u32, slots: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(threads.to_string()).arg(slots.to_string());
        command.envs(library.map(|library| ("LD_PRELOAD", library)));
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
        self.books()
    }

    /// Starts to work without end.
    pub fn start_load(&mut self, seed: u64) -> Result<()> {
        self.driven.tell(&format!("start {seed}"))?;
        self.driven.expect("started")?;
        Ok(())
    }

    /// Operations done so far.
    pub fn count(&mut self) -> Result<u64> {
        self.driven.tell("count")?;
        Ok(self.driven.expect("count ")?.parse()?)
    }

    /// Ends the load and returns the books.
    pub fn stop_load(&mut self) -> Result<Books> {
        self.driven.tell("stop")?;
        self.books()
    }

    /// Frees everything and returns the books.
    pub fn drain(&mut self) -> Result<Books> {
        self.driven.tell("drain")?;
        self.books()
    }

    /// Asks it to exit, and insists that it does so in good order.
    pub fn exit(self) -> Result<()> {
        self.driven.exit()
    }

    fn books(&mut self) -> Result<Books> {
        let mut sites = BTreeMap::new();
        let operations = self.driven.read_books(|line| {
            let (name, numbers) = line.split_once(' ').context("a single word")?;
            sites.insert(name.to_owned(), values(numbers)?);
            Ok(())
        })?;
        Ok(Books {
            sites,
            operations: operations.parse()?,
        })
    }
}

fn values(numbers: &str) -> Result<Values> {
    let numbers: Vec<i64> = numbers.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes] = numbers[..] else {
        bail!("a site's books have {} numbers instead of 4", numbers.len());
    };
    Ok(Values {
        alloc_objects,
        alloc_bytes,
        inuse_objects,
        inuse_bytes,
    })
}

impl Books {
    /// Insists that the profile says exactly the same of every site, and knows no other sites.
    pub fn assert_equal(&self, heap: &Heap) -> Result<()> {
        let differences = driven::differences(&self.sites, &heap.by_function("site_"));
        driven::check(differences, &heap.comments)
    }
}
