//! Driving `targets/stacks.cpp`, and judging the stacks that a profile has of it.

use std::{path::Path, process::Command};

use anyhow::{Context, bail, ensure};

use crate::{
    Result,
    child::{Child, PATIENCE},
    compile::{Build, NO_FRAME_POINTERS},
    gdb::{self, GdbFrame},
    profile::{Frame, Heap, Stack},
};

/// The target with its library and its plugin, built in one way.
#[derive(Debug)]
pub struct Stacks {
    child: Child,
}

impl Stacks {
    /// Builds all three with `flags`, the program also with `program_flags`, and starts it.
    pub fn start(name: &str, flags: &[&str], program_flags: &[&str]) -> Result<Self> {
        let shared = |source: &str| {
            Build::c(source)
                .named(&format!("{name}_{source}.so"))
                .flags(NO_FRAME_POINTERS)
        };
        let shared = |source: &str| shared(source).flags(["-shared", "-fPIC"]).flags(flags).path();
        let (library, plugin) = (shared("stacks_library")?, shared("stacks_plugin")?);
        let program = Build::cpp("stacks")
            .named(name)
            .flags(NO_FRAME_POINTERS)
            .flags(flags)
            .flags(program_flags)
            .flag(&library)
            .path()?;
        let mut child = Child::spawn(Command::new(program).arg(plugin))?;
        child.stdout.expect("ready ", PATIENCE)?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Runs a scenario `count` times; returns how many blocks it made.
    pub fn run(&mut self, scenario: &str, count: u32) -> Result<i64> {
        self.child.tell(&format!("run {scenario} {count}"))?;
        self.done(scenario)
    }

    /// Runs a scenario once, and returns gdb's backtraces of the moment right after its `nth` block was made.
    pub fn hold(&mut self, scenario: &str, nth: u32, gdb: &Path) -> Result<Vec<Vec<GdbFrame>>> {
        self.child.tell(&format!("hold {scenario} {nth}"))?;
        self.child.stdout.expect("holding", PATIENCE)?;
        let stacks = gdb::backtraces(gdb, self.pid())?;
        self.child.tell("")?;
        self.done(scenario)?;
        Ok(stacks)
    }

    /// Asks it to exit, and insists that it does so in good order.
    pub fn exit(mut self) -> Result<()> {
        self.child.tell("exit")?;
        let status = self.child.wait(PATIENCE)?;
        ensure!(status.success(), "the target ended with {status}");
        Ok(())
    }

    fn done(&mut self, scenario: &str) -> Result<i64> {
        match self.child.stdout.expect(&format!("done {scenario} "), PATIENCE) {
            Ok(blocks) => Ok(blocks.parse()?),
            Err(error) => Err(error.context(self.child.stderr.all(std::time::Duration::from_millis(100)))),
        }
    }
}

/// What the stacks of a scenario must look like.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in the target.
    pub name: &'static str,
    /// How often to run it.
    pub count: u32,
    /// The function that allocates.
    pub leaf: &'static str,
    /// The functions of the target that follow the leaf, innermost first; only the last ones if `any_before`.
    pub callers: Vec<String>,
    /// Whether other functions may come between the leaf and `callers`: those that a signal interrupted.
    pub any_before: bool,
    /// Which blocks to compare with gdb.
    pub samples: &'static [u32],
}

/// A file of the target's own sources.
fn is_own(file: &str) -> bool {
    file.rsplit('/')
        .next()
        .is_some_and(|file| file.starts_with("stacks"))
}

impl Scenario {
    /// Insists that the profile has each of the `blocks` that the scenario made under exactly the stack it should have.
    pub fn check(&self, heap: &Heap, blocks: i64) -> Result<()> {
        let found: i64 = self.stacks(heap).map(|stack| stack.values.inuse_objects).sum();
        if found != blocks {
            let near: Vec<String> = heap
                .stacks
                .iter()
                .filter(|stack| stack.contains(self.leaf) && stack.values.inuse_objects > 0)
                .filter(|stack| {
                    stack
                        .frames
                        .iter()
                        .any(|frame| self.callers.first() == Some(&frame.function))
                })
                .take(4)
                .map(|stack| format!("{} × {}", stack.values.inuse_objects, stack.functions().join(" ")))
                .collect();
            bail!(
                "{}: {found} of {blocks} blocks have a right and complete stack; others:\n{}",
                self.name,
                near.join("\n")
            );
        }
        Ok(())
    }

    /// The stacks of this scenario that are right and complete.
    pub fn stacks<'a>(&'a self, heap: &'a Heap) -> impl Iterator<Item = &'a Stack> {
        heap.stacks
            .iter()
            .filter(|stack| stack.values.inuse_objects > 0 && self.is_right(stack))
    }

    /// Whether a stack is exactly what this scenario's must be, from the leaf to the root.
    pub fn is_right(&self, stack: &Stack) -> bool {
        let own: Vec<&str> = stack
            .frames
            .iter()
            .filter(|frame| self.is_own(frame))
            .map(|frame| frame.function.as_str())
            .collect();
        let Some((leaf, callers)) = own.split_first() else {
            return false;
        };
        let Some(others) = callers.len().checked_sub(self.callers.len()) else {
            return false;
        };
        same(leaf, self.leaf)
            && (self.any_before || others == 0)
            && callers[others..]
                .iter()
                .zip(&self.callers)
                .all(|(name, expected)| same(name, expected))
            && ends_at_the_root(stack)
    }

    /// A frame of the target's own code. A landing pad may have no line, and so no file.
    fn is_own(&self, frame: &Frame) -> bool {
        is_own(&frame.file) || self.callers.iter().any(|caller| same(&frame.function, caller))
    }

    /// Insists that the profile has one of gdb's stacks, frame by frame.
    pub fn check_against(&self, heap: &Heap, backtraces: &[Vec<GdbFrame>]) -> Result<()> {
        let is_leaf =
            |frame: &GdbFrame| matches!(frame, GdbFrame::Function { name, .. } if same(self.leaf, name));
        let mut cut = backtraces
            .iter()
            .filter_map(|stack| Some(&stack[stack.iter().position(is_leaf)? + 1..]));
        let expected = cut
            .next()
            .with_context(|| format!("{}: gdb does not see {}", self.name, self.leaf))?;
        let differences: Vec<String> = self
            .stacks(heap)
            .filter_map(|stack| difference(&stack.frames, self.leaf, expected))
            .collect();
        let candidates = self.stacks(heap).count();
        if differences.len() == candidates {
            bail!(
                "{}: none of {candidates} stacks equals gdb's:\n{expected:#x?}\n{}",
                self.name,
                differences.join("\n")
            );
        }
        Ok(())
    }
}

/// Whether the outermost frame is where a thread starts: nothing was cut off.
pub fn ends_at_the_root(stack: &Stack) -> bool {
    let roots = [
        "_start",
        "clone3",
        "__clone3",
        "__GI___clone3",
        "clone",
        "__clone",
        "__GI___clone",
    ];
    stack
        .frames
        .last()
        .is_some_and(|frame| roots.contains(&frame.function.as_str()))
}

/// Whether a function's full name is this name with perhaps arguments.
fn same(function: &str, name: &str) -> bool {
    function
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('('))
}

/// Where our frames after the leaf first differ from gdb's; `None` when they are equal. What both say of code outside
/// the target's own sources depends on the symbols at hand, so there the addresses decide.
fn difference(ours: &[Frame], leaf: &str, gdb: &[GdbFrame]) -> Option<String> {
    let leaf = ours.iter().rposition(|frame| same(&frame.function, leaf))?;
    let mut ours = groups(&ours[leaf + 1..]).into_iter();
    let mut interrupted = false;
    let mut gdb = gdb.iter().peekable();
    while let Some(frame) = gdb.next() {
        let Some((address, functions)) = ours.next() else {
            return Some(format!("ours ends before {frame:x?}"));
        };
        let GdbFrame::Function {
            address: expected,
            name,
            file,
        } = frame
        else {
            interrupted = true;
            continue;
        };
        // The caller's address is its return address minus 1; the interrupted instruction's is its own.
        if address + u64::from(!interrupted) != *expected {
            return Some(format!("{address:#x} {functions:?} against {frame:x?}"));
        }
        interrupted = false;
        let mut names = vec![(name, file)];
        while let Some(GdbFrame::Function { name, file, .. }) =
            gdb.next_if(|next| matches!(next, GdbFrame::Function { address, .. } if address == expected))
        {
            names.push((name, file));
        }
        let own = names.iter().all(|(_, file)| file.as_deref().is_some_and(is_own));
        let equal = functions.len() == names.len()
            && functions
                .iter()
                .zip(&names)
                .all(|(ours, (name, _))| same(ours, name));
        if own && !equal {
            return Some(format!("{functions:?} against {names:?} at {address:#x}"));
        }
    }
    ours.next()
        .map(|(address, functions)| format!("ours goes on with {address:#x} {functions:?}"))
}

/// Frames by address: a function and what is inlined in it are one group. A recursive call is a group of its own only
/// if its address differs, on gdb's side too.
fn groups(frames: &[Frame]) -> Vec<(u64, Vec<&str>)> {
    let mut groups: Vec<(u64, Vec<&str>)> = Vec::new();
    for frame in frames {
        match groups.last_mut() {
            Some((address, functions)) if *address == frame.address => functions.push(&frame.function),
            _ => groups.push((frame.address, vec![&frame.function])),
        }
    }
    groups
}
