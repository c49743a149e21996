//! Why an image, or one function of it, cannot be probed.

use std::io;

use super::returns::NoReturnProbe;

/// Why no plan could be made for an image.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file is not a 64-bit little-endian ELF file, or its tables are broken.
    #[error("not a readable 64-bit ELF file: {0}; trace another file, or repair this one")]
    Elf(#[from] object::Error),
    /// The file holds code for another machine; `e_machine`.
    #[error("code for machine {0}, not for x86-64; memtrace plans probes for x86-64 only")]
    Machine(u16),
    /// The file is neither an executable nor a shared object; `e_type`.
    #[error("ELF type {0} is neither an executable nor a shared object, so no process maps it as code")]
    Type(u16),
}

/// Why one function is left alone. Shown as a note of the plan.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is an indirect function, whose address the loader chooses")]
    IndirectFunction,
    #[error("its symbol is local, and may name any function")]
    Local,
    #[error("its symbol has type {0}, which is not a function")]
    NotAFunction(u8),
    #[error("{0} and {1} are the same code, but take different arguments")]
    Conflict(String, String),
    #[error("neither its symbol nor .eh_frame says where it ends")]
    NoBounds,
    #[error("the unwind information that covers it begins at {fde:#x}, not at its symbol {symbol:#x}")]
    FrameElsewhere { fde: u64, symbol: u64 },
    #[error("it does not lie in one executable, unwritable segment of the file")]
    NotInCode,
    #[error("it is {0} bytes long, more than memtrace verifies")]
    TooLarge(u64),
    #[error("its code could not be read from the process: {0}")]
    Unreadable(#[source] io::Error),
    #[error(
        "at +{offset} the process has byte {live:02x} where the file has {file:02x}: the code was changed at run time"
    )]
    Modified { offset: usize, file: u8, live: u8 },
    #[error("something jumps into the middle of its first instruction")]
    EntryOverlaps,
    #[error("its code does not show where it returns")]
    NoExit,
    #[error("it returns at too many places to probe each")]
    ManyExits,
    #[error("where it returns cannot be told: the jump at {0:#x} may go anywhere")]
    UnknownJump(u64),
    #[error("it does not begin as Go functions do")]
    NoStackCheck,
    #[error("{0}, and {1}")]
    NoReturnProbe(NoReturnProbe, #[source] Box<Refusal>),
    #[error("no instruction at its beginning can carry a probe: `{instruction}` {why}")]
    NoLegalInstruction { instruction: String, why: &'static str },
}
