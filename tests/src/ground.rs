//! Driving `targets/ground_truth.c`, and comparing its books with a profile.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail};

use crate::{
    Result,
    child::{Child, PATIENCE},
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
    child: Child,
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
        self.books(Duration::from_secs(240))
    }

    /// Starts to work without end.
    pub fn start_load(&mut self, seed: u64) -> Result<()> {
        self.child.tell(&format!("start {seed}"))?;
        self.child.stdout.expect("started", PATIENCE)?;
        Ok(())
    }

    /// Operations done so far.
    pub fn count(&mut self) -> Result<u64> {
        self.child.tell("count")?;
        Ok(self.child.stdout.expect("count ", PATIENCE)?.parse()?)
    }

    /// Ends the load and returns the books.
    pub fn stop_load(&mut self) -> Result<Books> {
        self.child.tell("stop")?;
        self.books(PATIENCE)
    }

    /// Frees everything and returns the books.
    pub fn drain(&mut self) -> Result<Books> {
        self.child.tell("drain")?;
        self.books(PATIENCE)
    }

    /// Asks it to exit, and insists that it does so in good order.
    pub fn exit(mut self) -> Result<()> {
        self.child.tell("exit")?;
        let status = self.child.wait(PATIENCE)?;
        if !status.success() {
            bail!(
                "the target ended with {status}: {}",
                self.child.stderr.all(PATIENCE)
            );
        }
        Ok(())
    }

    fn books(&mut self, patience: Duration) -> Result<Books> {
        let mut sites = BTreeMap::new();
        loop {
            let line = self.child.stdout.next(patience).inspect_err(|_| {
                eprintln!("{}", self.child.stderr.all(Duration::from_millis(100)));
            })?;
            let (name, numbers) = line
                .split_once(' ')
                .with_context(|| format!("not a line of the books: {line:?}"))?;
            if name == "end" {
                return Ok(Books {
                    sites,
                    operations: numbers.parse()?,
                });
            }
            sites.insert(name.to_owned(), values(numbers)?);
        }
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
        let profiled = heap.by_function("site_");
        let mut differences = Vec::new();
        for name in self
            .sites
            .keys()
            .chain(profiled.keys().filter(|name| !self.sites.contains_key(*name)))
        {
            let (mine, theirs) = (
                self.sites.get(name).copied().unwrap_or_default(),
                profiled.get(name).copied(),
            );
            if mine != theirs.unwrap_or_default() {
                differences.push(format!("{name}: books {mine:?}, profile {theirs:?}"));
            }
        }
        if !differences.is_empty() {
            let (count, comments) = (differences.len(), heap.comments.join("\n  "));
            differences.truncate(10);
            bail!(
                "{count} sites differ:\n  {}\ncomments:\n  {comments}",
                differences.join("\n  ")
            );
        }
        Ok(())
    }
}
