//! One address space that is traced: from an attach, a fork or an exec until the process ends or executes a program.

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    kernel::Batch,
    snapshot::{Coverage, Origin},
    target::{Descriptor, MappingReader, Process, ProcessInfo, Resident},
};

/// What is kept of an address space.
pub struct Space {
    /// Its number in the programs' books.
    pub id: u32,
    /// Which process has it, also after that has ended.
    pub info: ProcessInfo,
    /// The process; `None` if it ended before it could be opened.
    pub process: Option<Arc<Process>>,
    /// How it came to be.
    pub origin: Origin,
    /// The set of mappings that walks use, which it may share with the process that it was forked from.
    pub layout: u32,
    /// Its executable mappings.
    pub reader: MappingReader,
    /// The address space that memtrace attached to and that this one descends from, or itself.
    pub root: u32,
    /// Its descriptor table in the programs' books.
    pub table: u32,
    /// What was open when tracing began.
    pub attached: Vec<Descriptor>,
    /// Resident bytes of its `brk` heap when tracing began.
    pub heap_resident: u64,
    /// Its resident memory then, if it is wanted and could be read.
    pub resident: Option<Resident>,
    /// What is attached to it.
    pub bound: HashSet<Batch>,
    /// Keep it attached.
    pub anchors: Vec<OwnedFd>,
    /// What is covered and what is not.
    pub coverage: Coverage,
    /// When recording began in it.
    pub started: SystemTime,
    /// The same, counted from the start of the run.
    pub since: Duration,
    /// When programs may ask for the mappings again, if they may not now.
    pub wishes_from: Option<Instant>,
    /// Where return probes return to (virtual address); 0 while it is not known.
    pub trampoline: u64,
    /// Whether its program is linked statically and has no symbols.
    pub is_stripped_static: bool,
    /// Whether the process is stopped whenever its mappings change, so that nothing is missed.
    pub is_held: bool,
}

impl Space {
    /// An address space that a process begins with.
    pub fn new(
        id: u32,
        info: ProcessInfo,
        process: Option<Arc<Process>>,
        origin: Origin,
        since: Duration,
    ) -> Self {
        Self {
            id,
            info,
            process,
            origin,
            layout: 0,
            reader: MappingReader::default(),
            root: id,
            table: id,
            attached: Vec::new(),
            heap_resident: 0,
            resident: None,
            bound: HashSet::new(),
            anchors: Vec::new(),
            coverage: Coverage::default(),
            started: SystemTime::now(),
            since,
            wishes_from: None,
            trampoline: 0,
            is_stripped_static: false,
            is_held: false,
        }
    }

    /// Says in the profile that something is not covered.
    pub fn add_note(&mut self, note: String) {
        if !self.coverage.not_covered.contains(&note) {
            self.coverage.not_covered.push(note);
        }
    }

    /// Whether its process has ended.
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.has_ended())
    }
}
