//! Driving `targets/served.c`.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, ensure};

use crate::{Result, child::Child, compile, driven::Driven, profile::Heap};

/// What each block has (bytes).
pub const BLOCK: i64 = 1000;
/// What each area has (bytes).
pub const AREA: i64 = 64 << 10;
/// What each child keeps (blocks).
pub const OF_CHILD: i64 = 3;

/// The program, under a name that the command lines of one test have, and no others.
pub fn program(name: &str) -> Result<String> {
    let build = compile::Build::c("served").named(name);
    let path = build.flags(compile::NO_FRAME_POINTERS).path()?;
    Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
}

/// A running target.
#[derive(Debug)]
pub struct Served(Driven);

impl Served {
    /// Starts it and waits until it takes commands.
    pub fn start(program: &str) -> Result<Self> {
        Ok(Self(Driven::start(&mut Command::new(program))?))
    }

    /// Starts it in a cgroup, from its first instruction on.
    pub fn start_in(program: &str, cgroup: &Path) -> Result<Self> {
        let mut command = Command::new("/bin/sh");
        let script = format!("echo $$ > {}/cgroup.procs && exec {program}", cgroup.display());
        Ok(Self(Driven::start(command.args(["-c", &script]))?))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// What the daemon calls it, if it is a target of its own.
    pub fn id(&self) -> String {
        format!("pid-{}", self.pid())
    }

    /// Gives a command and waits until it is done; the ids of the children that it made.
    pub fn go(&mut self, command: &str) -> Result<Vec<u32>> {
        self.0.tell(command)?;
        let answer = self.0.expect("done")?;
        answer.split_whitespace().map(|word| Ok(word.parse()?)).collect()
    }

    /// Asks it to exit, and insists that it does so in good order.
    pub fn exit(self) -> Result<()> {
        self.0.exit()
    }
}

/// A target that works for so long, and then ends.
pub fn busy(program: &str, time: Duration) -> Result<Child> {
    Child::spawn(Command::new(program).arg(time.as_millis().to_string()))
}

/// Insists on so many blocks, allocated and held in a function, without what children have from their parents.
pub fn check(heap: &Heap, function: &str, allocated: i64, held: i64) -> Result<()> {
    let sites = heap.by_function_and_origin("served_", false);
    let values = sites.get(function).copied().unwrap_or_default();
    ensure!(
        (values.alloc_objects, values.inuse_objects) == (allocated, held)
            && (values.alloc_bytes, values.inuse_bytes) == (allocated * BLOCK, held * BLOCK),
        "{function}: not {allocated} allocated and {held} held: {sites:?}\n{}",
        heap.comments.join("\n")
    );
    Ok(())
}
