//! Driving `targets/descriptors.c`, and comparing its books with a profile.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::{
    Result, compile,
    driven::{self, Driven},
    fd_profile::{BEFORE_TRACING, Counts, EARLIER_PROGRAM, Fds, IO_URING, UNTRACED_CALL},
};

/// What the functions that open something are called.
const SITES: &str = "site_";

/// The site that hands operations to an io_uring. What it opens itself, and what a thread of the kernel opens for it,
/// depends on what is in the kernel's caches.
const RING_SITE: &str = "site_ring_enter_0";

/// Counts by site and kind.
type BySite = BTreeMap<(String, String), Counts>;

/// The books of a target at a quiet point.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// By site and kind. In place of a site there may be one of the words that `targets/descriptors.c` explains.
    pub sites: BySite,
    /// The same of what is from before the fork.
    pub inherited: BySite,
    /// Operations done so far.
    pub operations: u64,
}

/// A running target.
#[derive(Debug)]
pub struct Descriptors {
    driven: Driven,
    /// The process that obeys: the program itself, or its youngest child.
    pid: u32,
    /// Calls that this machine does not grant, with the number of the error.
    pub refused: Vec<String>,
    _directory: TempDir,
}

impl Descriptors {
    /// Starts it and waits until its threads are parked.
    pub fn start(program: &Path, threads: u32, slots: u32) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("descriptors-")
            .tempdir_in(compile::cache_directory()?)
            .context("creating a directory for files")?;
        let mut command = Command::new(program);
        command.arg(threads.to_string()).arg(slots.to_string());
        let driven = Driven::spawn(command.arg(directory.path()))?;
        let mut target = Self {
            pid: driven.pid(),
            driven,
            refused: Vec::new(),
            _directory: directory,
        };
        target.await_ready()?;
        Ok(target)
    }

    fn await_ready(&mut self) -> Result<()> {
        loop {
            let line = self.driven.line()?;
            match line.split_once(' ') {
                Some(("refused", call)) => self.refused.push(call.to_owned()),
                Some(("ready", _)) => return Ok(()),
                _ => bail!("not a line of the start: {line:?}"),
            }
        }
    }

    /// The id of the process that obeys.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the machine grants this call: all sites of it.
    pub fn grants(&self, call: &str) -> bool {
        !self.refused.iter().any(|refused| refused.starts_with(call))
    }

    /// Gives a command that is answered with the books at the quiet point that follows.
    pub fn tell(&mut self, command: &str) -> Result<Books> {
        self.begin(command)?;
        self.books()
    }

    /// Gives the command, and does not wait for the books.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        self.driven.tell(command)
    }

    /// Waits for the books that a command is answered with.
    pub fn books(&mut self) -> Result<Books> {
        let mut books = Books::default();
        let operations = self.driven.read_books(|line| books.read(line))?;
        books.operations = operations.parse()?;
        Ok(books)
    }

    /// Does `operations` operations.
    pub fn go(&mut self, operations: u64, seed: u64) -> Result<Books> {
        self.tell(&format!("go {operations} {seed}"))
    }

    /// Goes on in a child.
    pub fn fork(&mut self) -> Result<()> {
        self.driven.tell("fork")?;
        self.pid = self.driven.expect("forked ")?.parse()?;
        Ok(())
    }

    /// Ends the child that obeys; its parent goes on.
    pub fn join(&mut self, parent: u32) -> Result<()> {
        self.driven.tell("exit")?;
        let joined: u32 = self.driven.expect("joined ")?.parse()?;
        ensure!(
            joined == self.pid,
            "process {joined} ended instead of {}",
            self.pid
        );
        self.pid = parent;
        Ok(())
    }

    /// Executes the program anew.
    pub fn exec(&mut self) -> Result<()> {
        self.driven.tell("exec")?;
        self.refused.clear();
        self.await_ready()
    }

    /// Asks it to exit, and insists that it does so in good order.
    pub fn exit(self) -> Result<()> {
        self.driven.exit()
    }
}

impl Books {
    /// Takes in a line.
    fn read(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let (counts, site, kind, opened, open) = match words[..] {
            ["inherited", site, kind, open] => (&mut self.inherited, site, kind, "0", open),
            [site, kind, opened, open] => (&mut self.sites, site, kind, opened, open),
            _ => bail!("{} words instead of 4", words.len()),
        };
        let (opened, open) = (opened.parse()?, open.parse()?);
        counts.insert((site.to_owned(), kind.to_owned()), Counts { opened, open });
        Ok(())
    }

    /// How many descriptors are open.
    pub fn open(&self) -> i64 {
        let all = self.sites.values().chain(self.inherited.values());
        all.map(|counts| counts.open).sum()
    }

    /// What was opened, of each kind, by whom one of the words stands for; inherited descriptors with the others.
    pub fn by(&self, word: &str) -> BTreeMap<String, Counts> {
        let mut sums: BTreeMap<_, Counts> = BTreeMap::new();
        for ((_, kind), counts) in self
            .sites
            .iter()
            .chain(&self.inherited)
            .filter(|((site, _), _)| site == word)
        {
            sums.entry(kind.clone()).or_default().add(*counts);
        }
        sums
    }

    /// Insists that the profile says exactly the same of every site and kind, knows no other sites, and that what no site
    /// opened is where it belongs.
    pub fn assert_equal(&self, fds: &Fds) -> Result<()> {
        let mut differences = Vec::new();
        for (mine, inherited) in [(&self.sites, false), (&self.inherited, true)] {
            let theirs = fds.by_site(SITES, inherited);
            differences.append(&mut driven::differences(&of_sites(mine), &of_sites(&theirs)));
        }
        differences.append(&mut self.differences_of_others(fds));
        if self.open() != fds.open() {
            differences.push(format!("books {} open, profile {}", self.open(), fds.open()));
        }
        driven::check(differences, &fds.comments)
            .with_context(|| format!("after {} operations", self.operations))
    }

    fn differences_of_others(&self, fds: &Fds) -> Vec<String> {
        let mut differences = Vec::new();
        // What was open before the attach was not opened since: only how many are left can be compared.
        let open = |counts: &Counts| Counts {
            opened: 0,
            open: counts.open,
        };
        for (word, frame) in [
            ("before", BEFORE_TRACING),
            ("untraced", UNTRACED_CALL),
            ("earlier", EARLIER_PROGRAM),
        ] {
            let of_kind = |(kind, counts): (String, Counts)| ((frame.to_owned(), kind), open(&counts));
            let mine: BySite = self.by(word).into_iter().map(of_kind).collect();
            let theirs: BySite = fds.by_kind_through(frame).into_iter().map(of_kind).collect();
            differences.append(&mut driven::differences(&mine, &theirs));
        }
        let named = |(kind, counts): (String, Counts)| ((RING_SITE.to_owned(), kind), counts);
        let mut mine: BySite = self.by(RING_SITE).into_iter().map(named).collect();
        let mut theirs: BySite = fds.by_kind_through(RING_SITE).into_iter().map(named).collect();
        for (key, counts) in self.by("io_uring").into_iter().map(named) {
            mine.entry(key).or_default().add(counts);
        }
        for (key, counts) in fds.by_kind_through(IO_URING).into_iter().map(named) {
            theirs.entry(key).or_default().add(counts);
        }
        differences.append(&mut driven::differences(&mine, &theirs));
        differences
    }
}

/// Without what other words than the names of sites stand for, and without the site of the io_uring.
fn of_sites(counts: &BySite) -> BySite {
    counts
        .iter()
        .filter(|((site, _), _)| site.starts_with(SITES) && site != RING_SITE)
        .map(|(key, counts)| (key.clone(), *counts))
        .collect()
}
