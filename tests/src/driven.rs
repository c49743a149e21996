//! Targets that are driven by lines, which say at quiet points what they did; and comparing that with a profile.

use std::{collections::BTreeMap, fmt::Debug, process::Command, time::Duration};

use anyhow::{Context, bail, ensure};

use crate::{
    Result,
    child::{Child, PATIENCE},
};

/// How long a target may work on one command.
const WORK: Duration = Duration::from_secs(240);

/// A running target: a line on its stdin is a command, and it answers on its stdout.
#[derive(Debug)]
pub struct Driven {
    child: Child,
}

impl Driven {
    /// Starts it, and does not wait for anything.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child = Child::spawn(command)?;
        Ok(Self { child })
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut target = Self::spawn(command)?;
        target.expect("ready ")?;
        Ok(target)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Gives a command.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.child.tell(command)
    }

    /// Waits for a line that begins like this, and returns its rest.
    pub fn expect(&mut self, prefix: &str) -> Result<String> {
        self.child.stdout.expect(prefix, PATIENCE)
    }

    /// The next line. If none comes, what the target had to complain of is printed.
    pub fn line(&mut self) -> Result<String> {
        self.child.stdout.next(WORK).inspect_err(|_| {
            eprintln!("{}", self.child.stderr.all(Duration::from_millis(100)));
        })
    }

    /// Has each line of the books read, and returns what follows the `end` of the last one.
    pub fn read_books(&mut self, mut read: impl FnMut(&str) -> Result<()>) -> Result<String> {
        loop {
            let line = self.line()?;
            match line.strip_prefix("end") {
                Some(rest) if rest.is_empty() || rest.starts_with(' ') => return Ok(rest.trim().to_owned()),
                _ => read(&line).with_context(|| format!("not a line of the books: {line:?}"))?,
            }
        }
    }

    /// Asks it to exit, and insists that it does so in good order.
    pub fn exit(mut self) -> Result<()> {
        self.tell("exit")?;
        let status = self.child.wait(PATIENCE)?;
        ensure!(
            status.success(),
            "the target ended with {status}: {}",
            self.child.stderr.all(PATIENCE)
        );
        Ok(())
    }
}

/// Where the books and a profile differ. What is in only one of them counts as nothing in the other.
pub fn differences<K: Debug + Ord, V: Copy + Debug + Default + PartialEq>(
    books: &BTreeMap<K, V>,
    profile: &BTreeMap<K, V>,
) -> Vec<String> {
    let unknown = profile.keys().filter(|key| !books.contains_key(*key));
    let mut differences = Vec::new();
    for key in books.keys().chain(unknown) {
        let of = |values: &BTreeMap<K, V>| values.get(key).copied().unwrap_or_default();
        let (mine, theirs) = (of(books), of(profile));
        if mine != theirs {
            differences.push(format!("{key:?}:\n    books   {mine:?}\n    profile {theirs:?}"));
        }
    }
    differences
}

/// Insists that there are no differences; otherwise says what they are, and what the profile's comments are.
pub fn check(mut differences: Vec<String>, comments: &[String]) -> Result<()> {
    if differences.is_empty() {
        return Ok(());
    }
    let count = differences.len();
    differences.truncate(20);
    bail!(
        "{count} differences:\n  {}\ncomments:\n  {}",
        differences.join("\n  "),
        comments.join("\n  ")
    );
}
