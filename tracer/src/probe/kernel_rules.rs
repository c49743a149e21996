//! What the kernel does with a uprobe on a given x86-64 instruction.
//!
//! Source of the rules: `arch/x86/kernel/uprobes.c` (`uprobe_init_insn`, `branch_setup_xol_ops`,
//! `push_setup_xol_ops`), compared from Linux 5.10 to 7.x. Only what every one of those kernels emulates
//! counts as emulated; in doubt an instruction is refused.

use iced_x86::{FlowControl, Instruction};

/// How the kernel executes the instruction that the breakpoint replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Handling {
    /// In the kernel, within the one trap.
    Emulated,
    /// As a copy on a page of its own, ended by a second (debug) trap.
    SingleStepped,
    /// Not at all, or not safely; why.
    Refused(&'static str),
}

/// The part of an instruction's encoding that the kernel decides by.
struct Encoding {
    /// es, cs, ss, ds or lock: the kernel answers EOPNOTSUPP.
    refused_prefix: bool,
    /// 66, 67, f2, f3, fs or gs.
    other_prefix: bool,
    /// f2 or f3.
    repeat: bool,
    rex: Option<u8>,
    opcode: u8,
    /// The byte after an 0f opcode.
    second: Option<u8>,
    /// What follows the opcode: a ModRM byte, a displacement or an immediate.
    following: Option<u8>,
}

impl Encoding {
    /// `None` when the bytes end before the opcode.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes.iter().copied();
        let mut encoding = Self {
            refused_prefix: false,
            other_prefix: false,
            repeat: false,
            rex: None,
            opcode: 0,
            second: None,
            following: None,
        };
        encoding.opcode = loop {
            match bytes.next()? {
                0x26 | 0x2e | 0x36 | 0x3e | 0xf0 => encoding.refused_prefix = true,
                0x64..=0x67 => encoding.other_prefix = true,
                0xf2 | 0xf3 => (encoding.other_prefix, encoding.repeat) = (true, true),
                rex @ 0x40..=0x4f => encoding.rex = Some(rex),
                opcode => break opcode,
            }
        };
        if encoding.opcode == 0x0f {
            encoding.second = Some(bytes.next()?);
        }
        encoding.following = bytes.next();
        Some(encoding)
    }

    /// nop, push of a register, and the relative jumps: what `branch_xol_ops` and `push_xol_ops` take.
    fn is_emulated(&self, length: usize) -> bool {
        if self.other_prefix {
            return false;
        }
        match (self.rex, self.opcode, self.second) {
            (None, 0x50..=0x57, _) | (None, 0x90, _) => true,
            (Some(0x41), 0x50..=0x57, _) => length == 2,
            (None, 0x70..=0x7f | 0xe9 | 0xeb, _) => true,
            (None, 0x0f, Some(0x80..=0x8f)) => true,
            _ => false,
        }
    }

    /// Opcodes that the kernel refuses, or takes but cannot step out of line without harm.
    fn hazard(&self) -> Option<&'static str> {
        match (self.opcode, self.second) {
            (0xcc | 0xcd | 0xce | 0xf1, _) => Some("raises an interrupt"),
            (0x6c..=0x6f | 0xe4..=0xe7 | 0xec..=0xef | 0xf4 | 0xfa | 0xfb, _) => Some("is privileged"),
            (0xca | 0xcb | 0xcf, _) => Some("is a far return"),
            (0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f | 0x27 | 0x2f | 0x37 | 0x3f, _)
            | (0x60 | 0x61 | 0x82 | 0x9a | 0xd4 | 0xd5 | 0xd6 | 0xea, _) => {
                Some("is not valid in 64-bit code")
            }
            (0x62 | 0xc4 | 0xc5, _) => Some("has a vector encoding"),
            (0x8f, _) => Some("may have a vector encoding"),
            (0x8e, _) => Some("loads a segment register"),
            (0x9c | 0x9d, _) => Some("would see the trap flag of the single step"),
            (0xa4..=0xa7 | 0xaa..=0xaf, _) if self.repeat => Some("would trap once for each repetition"),
            // The kernel's table accepts every two-byte opcode, although its comment lists these as
            // unsupported.
            (0x0f, Some(0x05 | 0x07 | 0x34 | 0x35)) => Some("enters or leaves the kernel"),
            (0x0f, Some(0x00 | 0x01 | 0x06 | 0x08 | 0x09 | 0x0b | 0x20..=0x23 | 0x30 | 0x32 | 0x37)) => {
                Some("is privileged or undefined")
            }
            (0x0f, Some(0x78 | 0x79 | 0xae | 0xa1 | 0xa9 | 0xb2 | 0xb4 | 0xb5 | 0xb9 | 0xff)) => {
                Some("is a system instruction")
            }
            _ => None,
        }
    }
}

/// What the kernel does with a uprobe on `instruction`, whose encoding is `bytes`, at `offset` in its
/// function.
///
/// `shadow_stack` says whether the image allows a user shadow stack: neither an emulated nor a single-stepped
/// call keeps that one right.
pub(super) fn handling(instruction: &Instruction, bytes: &[u8], offset: u64, shadow_stack: bool) -> Handling {
    let Some(encoding) = Encoding::parse(bytes).filter(|_| !instruction.is_invalid()) else {
        return Handling::Refused("does not decode");
    };
    if encoding.refused_prefix {
        return Handling::Refused("has a prefix that the kernel refuses");
    }
    if let Some(hazard) = encoding.hazard() {
        return Handling::Refused(hazard);
    }
    match instruction.flow_control() {
        FlowControl::Interrupt | FlowControl::Exception | FlowControl::XbeginXabortXend => {
            return Handling::Refused("raises an exception or begins a transaction");
        }
        FlowControl::Call | FlowControl::IndirectCall => {
            return call_handling(&encoding, offset, shadow_stack);
        }
        _ => {}
    }
    let far = encoding.opcode == 0xff
        && encoding
            .following
            .is_some_and(|modrm| matches!((modrm >> 3) & 7, 3 | 5));
    if far {
        return Handling::Refused("is a far transfer");
    }
    // `xchg r8, rax` and the like: kernels before 6.18 take every 90 for a nop and would drop the exchange.
    if encoding.opcode == 0x90 && encoding.rex.is_some() {
        return Handling::Refused("is an exchange that kernels mistake for a nop");
    }
    // Newer kernels may overwrite all of a `jmp +8`, or of a nop of 5 or 10 bytes, with a call to a
    // trampoline. At a function's entry nothing lives below the stack pointer yet, so there a nop may become
    // one.
    if encoding.opcode == 0xeb && encoding.following == Some(8) {
        return Handling::Refused("may be rewritten by kernels that optimize uprobes");
    }
    let long_nop = (encoding.opcode, encoding.second) == (0x0f, Some(0x1f));
    if long_nop && offset != 0 {
        return Handling::Refused("may be rewritten by kernels that optimize uprobes");
    }
    if encoding.is_emulated(bytes.len()) {
        return Handling::Emulated;
    }
    Handling::SingleStepped
}

/// A call is taken only as the very first instruction (what `-mfentry` emits).
fn call_handling(encoding: &Encoding, offset: u64, shadow_stack: bool) -> Handling {
    if shadow_stack {
        return Handling::Refused("is a call, which a shadow stack does not forgive");
    }
    if offset != 0 {
        return Handling::Refused("is a call after the entry");
    }
    match (encoding.opcode, encoding.other_prefix || encoding.rex.is_some()) {
        (0xe8, false) => Handling::Emulated,
        (0xff, _) if encoding.following.is_some_and(|modrm| (modrm >> 3) & 7 == 2) => Handling::SingleStepped,
        _ => Handling::Refused("is an unusual call"),
    }
}
