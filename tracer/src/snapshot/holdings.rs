//! What a process holds beside the heap: descriptors, mappings, and memory that it touched first.

use std::time::Duration;

use memtrace_ebpf::layout::EndReason;

use super::ConnectionLoops;
use crate::target::Resident;

/// Who opened or mapped something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Maker {
    /// The code whose stack was recorded.
    #[default]
    Code,
    /// It was there when memtrace attached.
    BeforeTracing,
    /// The program that the process executed before this one.
    EarlierProgram,
    /// A call that is not traced, or that was lost.
    UntracedCall,
    /// An operation of an io_uring that a thread of the kernel performed: no code of the process ran then.
    IoUring,
}

impl Maker {
    /// The frame that stands for the stack; `None` if there is one.
    pub fn frame(self, made: &str) -> Option<String> {
        match self {
            Self::Code => None,
            Self::BeforeTracing => Some(format!("[{made} before tracing]")),
            Self::EarlierProgram => Some(format!("[{made} by the program before]")),
            Self::UntracedCall => Some(format!("[{made} by an untraced call]")),
            Self::IoUring => Some(format!("[{made} by io_uring]")),
        }
    }
}

/// One code path, with what of one kind it opened, mapped or touched. What is counted depends on the [`Holdings`].
#[derive(Clone, Debug, Default)]
pub struct Holder {
    /// The value of the label `kind`.
    pub kind: &'static str,
    /// Who it is.
    pub maker: Maker,
    /// The stack, innermost frame first, as packed by [`memtrace_ebpf::unwind::frame`]; empty if `maker` is not code.
    pub frames: Vec<u64>,
    /// Why the walk of this stack stopped.
    pub end: EndReason,
    /// Whether this is from before the fork that made the process.
    pub inherited: bool,
    /// Whether these are stacks of threads that ended, which the C library keeps for the next thread.
    pub cached: bool,
    /// Descriptors opened, or bytes mapped, since tracing began.
    pub made: u64,
    /// Descriptors that are open, or bytes that are mapped.
    pub held: u64,
    /// How many descriptors or mappings that is.
    pub held_objects: u64,
    /// Of mapped bytes, how many are in memory.
    pub resident: u64,
    /// Mean age of what is held; zero if it is not known.
    pub mean_age: Duration,
    /// Change of `held` over [`super::Snapshot::recent`].
    pub recent_change: i64,
    /// The goroutines that wait for those that are connections of Go's `net/http`, where that is known.
    pub loops: ConnectionLoops,
}

/// What was counted of a class of holdings.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// In no order; each combination of stack and kind once.
    pub holders: Vec<Holder>,
    /// What makes the numbers wrong, if anything does: a sentence to be read before them.
    pub warning: Option<String>,
    /// What was lost or could not be seen: how often, and what; of those that are not 0.
    pub losses: Vec<(u64, String)>,
    /// What else a reader has to know, one sentence each.
    pub notes: Vec<String>,
}

/// New memory by who touched it first: one stack.
#[derive(Clone, Debug)]
pub struct Growth {
    /// The stack, innermost frame first.
    pub frames: Vec<u64>,
    /// Why the walk of this stack stopped.
    pub end: EndReason,
    /// Bytes touched for the first time (an estimate from a sample of the page faults).
    pub touched: u64,
    /// Bytes by which `brk` moved the end of the heap up.
    pub brk: u64,
    /// Bytes mapped.
    pub mapped: u64,
    /// How many page faults were sampled.
    pub samples: u64,
}

/// All new memory.
#[derive(Clone, Debug, Default)]
pub struct Growths {
    /// In no order; each stack once.
    pub sites: Vec<Growth>,
    /// The mean distance between two samples of touched memory (bytes).
    pub sample_bytes: u64,
    /// Resident memory when tracing began and now, where it is known.
    pub resident: Option<(Resident, Resident)>,
    /// As [`Holdings::losses`].
    pub losses: Vec<(u64, String)>,
    /// As [`Holdings::notes`].
    pub notes: Vec<String>,
}

/// One open descriptor, for `--fd-details`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdDetail {
    /// Its number.
    pub number: i32,
    /// As [`Holder::kind`].
    pub kind: &'static str,
    /// Where `/proc/PID/fd/N` leads: a path, or `socket:[INODE]` and the like.
    pub target: String,
    /// A socket's own address, as its protocol writes it.
    pub local: Option<String>,
    /// The address of its peer.
    pub peer: Option<String>,
    /// Its state, such as `ESTABLISHED`.
    pub state: Option<String>,
    /// How long it has been open; `None` if it was opened before tracing, or by nobody knows whom.
    pub age: Option<Duration>,
    /// Who opened it: an index into [`Holdings::holders`].
    pub holder: usize,
}

/// Where a process's resident memory is. The parts add up to `rss`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemorySummary {
    /// Resident memory as `/proc/PID/smaps_rollup` says (bytes).
    pub rss: u64,
    /// The parts, in the order in which they are shown; none is 0.
    pub parts: Vec<MemoryPart>,
    /// What else a reader has to know, one sentence each.
    pub notes: Vec<String>,
}

/// A part of the resident memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    /// What it is, in words.
    pub what: String,
    /// Resident bytes.
    pub bytes: u64,
}
