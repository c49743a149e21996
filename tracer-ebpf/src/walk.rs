//! The stack walker: from one set of registers outwards, one frame a step.
//!
//! The walker runs in the kernel over maps ([`Tables`]) and the target's memory ([`Memory`]), and natively in unit
//! tests over recorded ones. It reads a saved frame pointer only when a rule needs it, and notes every stack slot
//! that decided where it went. A later call that finds the same values in the same slots has the same stack
//! ([`Walk::still_holds`]): that costs one copy of the stack instead of a walk.

use crate::{
    bound::masked,
    layout::{EndReason, FramesHeader, MAX_FRAMES},
    unwind::{CfaKind, FpKind, Mapping, NO_TABLE, PAGE_SHIFT, Page, Row, frame},
};

/// The most slots that a walk notes; a stack that needs more cannot be recognized again.
pub const MAX_CHECKS: usize = 128;

/// Offset of `rbp` in the `ucontext` that a signal trampoline finds at `sp`
/// (`arch/x86/include/uapi/asm/ucontext.h`, `sigcontext.h`: 40 bytes before the registers r8…r15, rdi, rsi, rbp).
const UCONTEXT_FP: u64 = 120;
/// Offset of `rsp` there.
const UCONTEXT_SP: u64 = 160;
/// Offset of `rip` there.
const UCONTEXT_PC: u64 = 168;

/// Halvings that reduce the rows of one page (65,536 at most) to one.
const SEARCH_STEPS: u32 = 17;

/// The memory of the thread whose stack is walked.
pub trait Memory {
    /// The eight bytes at this virtual address, if they can be read.
    fn read_u64(&self, address: u64) -> Option<u64>;

    /// The return address that a return probe replaced in the stack slot at this virtual address.
    fn replaced_return_address(&self, slot: u64) -> Option<u64>;
}

/// The unwind tables of the address space.
pub trait Tables {
    /// The executable mapping that holds this process address.
    fn mapping(&self, address: u64) -> Option<Mapping>;
    /// The page at this index of all pages.
    fn page(&self, index: u32) -> Option<Page>;
    /// The row at this index of all rows.
    fn row(&self, index: u32) -> Option<Row>;
}

/// Where the frame pointer of the current frame is.
#[repr(u8)]
enum FpState {
    /// In [`Walk::fp`], as the register held it at the start.
    Initial = 0,
    /// In [`Walk::fp`], read and noted.
    Known = 1,
    /// In the stack slot at [`Walk::fp`], not read so far.
    InSlot = 2,
    /// Nowhere.
    Lost = 3,
}

/// One walk: where it began, how far it is, what it found and what it depends on.
///
/// Lives in a map, not on the stack: a program that walks can be preempted, and continues in another program.
#[repr(C)]
pub struct Walk {
    /// 1 while a thread uses this walk.
    pub locked: u64,
    /// `pc` at the start (virtual address): half of what identifies a walk.
    pub start_pc: u64,
    /// `sp` at the start (virtual address): the other half.
    pub start_sp: u64,
    /// `fp` at the start; part of the identity when [`Walk::needs_fp`].
    pub start_fp: u64,
    /// The thread that walked.
    pub thread: u32,
    /// The generation of the mappings when it walked.
    pub generation: u32,
    /// The address space: the ids of threads come back in other processes.
    pub space: u64,
    /// `pc` of the current frame.
    pub pc: u64,
    /// `sp` of the current frame.
    pub sp: u64,
    /// `fp` of the current frame or the slot that holds it, see [`FpState`].
    fp: u64,
    /// The mapping that the last frame was in: the next is likely there too.
    mapping: Mapping,
    /// Hash of the frames.
    pub hash: u64,
    /// Index of the stack that this walk found.
    pub stack: u32,
    /// How many of `frames` are filled.
    pub frames_len: u32,
    /// How many of `check_values` and `check_offsets` are filled.
    pub checks_len: u32,
    /// Bytes above `start_sp` that hold all noted slots.
    pub span: u32,
    /// A [`FpState`].
    fp_state: u8,
    /// 1 if the walk depends on `start_fp`.
    pub needs_fp: u8,
    /// 1 if the walk is finished and can be recognized again.
    pub repeatable: u8,
    /// 1 if `pc` is a return address.
    is_return: u8,
    /// 1 if the innermost frame is not to be stored.
    skip: u8,
    /// An [`EndReason`]: why it stopped, once it has.
    pub end: u8,
    /// Padding.
    _pad: [u8; 2],
    /// For the copy of the frames that goes to user space; they follow.
    pub header: FramesHeader,
    /// What it found, innermost first, packed by [`frame::pack`].
    pub frames: [u64; MAX_FRAMES],
    /// The values of the slots that decided where the walk went.
    pub check_values: [u64; MAX_CHECKS],
    /// Where these slots are (bytes above `start_sp`).
    pub check_offsets: [u32; MAX_CHECKS],
}

impl Walk {
    /// An unused walk.
    pub const fn new() -> Self {
        Self {
            locked: 0,
            start_pc: 0,
            start_sp: 0,
            start_fp: 0,
            thread: 0,
            generation: 0,
            space: 0,
            pc: 0,
            sp: 0,
            fp: 0,
            mapping: Mapping {
                begin: 0,
                end: 0,
                bias: 0,
                page_base: 0,
                page_count: 0,
                id: 0,
                _pad: 0,
                page_first: 0,
            },
            hash: 0,
            stack: 0,
            frames_len: 0,
            checks_len: 0,
            span: 0,
            fp_state: 0,
            needs_fp: 0,
            repeatable: 0,
            is_return: 0,
            skip: 0,
            end: 0,
            _pad: [0; 2],
            header: FramesHeader { stack: 0, len: 0 },
            frames: [0; MAX_FRAMES],
            check_values: [0; MAX_CHECKS],
            check_offsets: [0; MAX_CHECKS],
        }
    }

    /// Starts anew. `pc` is a return address if `is_return`, else the address of an instruction not yet executed;
    /// with `skip`, the frames begin with the caller of this code.
    #[inline(always)]
    pub fn begin(&mut self, pc: u64, sp: u64, fp: u64, is_return: bool, skip: bool) {
        self.start_pc = pc;
        self.start_sp = sp;
        self.start_fp = fp;
        self.pc = pc;
        self.sp = sp;
        self.fp = fp;
        self.mapping.begin = 0;
        self.mapping.end = 0;
        self.hash = 0;
        self.frames_len = 0;
        self.checks_len = 0;
        self.span = 0;
        self.fp_state = FpState::Initial as u8;
        self.needs_fp = 0;
        self.repeatable = 1;
        self.is_return = is_return as u8;
        self.skip = skip as u8;
    }

    /// Whether the noted slots still hold the noted values; `read` gets a slot's offset from `start_sp` in bytes.
    ///
    /// The caller has compared `start_pc`, `start_sp`, and `start_fp` if [`Walk::needs_fp`].
    #[inline(always)]
    pub fn still_holds(&self, read: impl Fn(u32) -> Option<u64>) -> bool {
        let checks = self.checks_len;
        for i in 0..MAX_CHECKS {
            if i as u32 >= checks {
                return true;
            }
            if read(self.check_offsets[i]) != Some(self.check_values[i]) {
                return false;
            }
        }
        true
    }

    /// Stores the current frame and moves on to its caller; [`EndReason::Running`]: call it again.
    #[inline(always)]
    pub fn step(&mut self, memory: &impl Memory, tables: &impl Tables) -> EndReason {
        if !self.enter_mapping(memory, tables) {
            self.push_frame(0);
            return EndReason::UnknownMapping;
        }
        if self.frames_len >= MAX_FRAMES as u32 {
            return EndReason::TooDeep;
        }
        self.push_frame(self.mapping.id);
        match self.find_row(tables) {
            Some(row) => self.apply(row, memory),
            None => EndReason::NoUnwindInfo,
        }
    }

    /// Stores a caller that was found in another way than by unwinding, with the return address `pc`.
    #[inline(always)]
    pub fn note_caller(&mut self, pc: u64) {
        self.skip = 0;
        self.pc = pc;
        self.is_return = 1;
        // Nothing was noted that tells this stack from others.
        self.repeatable = 0;
        self.push_frame(0);
    }

    /// Leaves the first frame as that of a function that keeps nothing on the stack, so that its return address is there;
    /// false if no code is at that address. For functions without a row that are known to be like that.
    #[inline(always)]
    pub fn leave_leaf(&mut self, memory: &impl Memory, tables: &impl Tables) -> bool {
        let Some(return_address) = self.read_noted(self.sp, memory) else {
            return false;
        };
        let Some(mapping) = tables.mapping(return_address.wrapping_sub(1)) else {
            return false;
        };
        self.mapping = mapping;
        self.sp = self.sp.wrapping_add(8);
        self.pc = return_address;
        self.is_return = 1;
        true
    }

    #[inline(always)]
    fn lookup_pc(&self) -> u64 {
        self.pc.wrapping_sub(self.is_return as u64)
    }

    #[inline(always)]
    fn push_frame(&mut self, mapping: u16) {
        if self.skip != 0 {
            self.skip = 0;
            return;
        }
        let packed = frame::pack(mapping, self.pc, self.is_return != 0);
        self.frames[masked::<MAX_FRAMES>(self.frames_len as usize)] = packed;
        self.frames_len += 1;
        let mixed = (self.hash ^ packed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = mixed ^ (mixed >> 32);
    }

    /// Makes `mapping` the one that holds the current `pc`.
    #[inline(always)]
    fn enter_mapping(&mut self, memory: &impl Memory, tables: &impl Tables) -> bool {
        let pc = self.lookup_pc();
        if pc >= self.mapping.begin && pc < self.mapping.end {
            return true;
        }
        if let Some(mapping) = tables.mapping(pc) {
            self.mapping = mapping;
            return true;
        }
        // A return probe's trampoline is in no table. The slot was the word below the caller's CFA.
        let slot = self.sp.wrapping_sub(8);
        let Some(original) = memory.replaced_return_address(slot) else {
            return false;
        };
        // The slot looks the same whichever call it hides.
        self.repeatable = 0;
        self.pc = original;
        let Some(mapping) = tables.mapping(self.lookup_pc()) else {
            return false;
        };
        self.mapping = mapping;
        true
    }

    #[inline(always)]
    fn find_row(&self, tables: &impl Tables) -> Option<Row> {
        if self.mapping.page_base == NO_TABLE {
            return Some(Row::of_kind(0, CfaKind::FramePointer));
        }
        let address = self.lookup_pc().wrapping_sub(self.mapping.bias);
        let index = (address >> PAGE_SHIFT).wrapping_sub(self.mapping.page_first as u64);
        if index >= self.mapping.page_count as u64 {
            return None;
        }
        let page = tables.page(self.mapping.page_base.wrapping_add(index as u32))?;
        if page.count == 0 {
            return None;
        }
        let target = address as u16;
        let mut first = page.start;
        let mut count = page.count;
        for _ in 0..SEARCH_STEPS {
            if count <= 1 {
                break;
            }
            let half = count / 2;
            let middle = first + half;
            if tables.row(middle)?.pc_low <= target {
                first = middle;
                count -= half;
            } else {
                count = half;
            }
        }
        tables.row(first)
    }

    #[inline(always)]
    fn apply(&mut self, row: Row, memory: &impl Memory) -> EndReason {
        let kind = row.cfa_kind;
        let words = row.cfa_offset as u64 * 8;
        let cfa = if kind == CfaKind::Sp as u8 {
            self.sp.wrapping_add(words)
        } else if kind == CfaKind::Fp as u8
            || kind == CfaKind::DerefFp as u8
            || kind == CfaKind::FramePointer as u8
        {
            let reason = self.load_fp(memory);
            if reason as u8 != EndReason::Running as u8 {
                return reason;
            }
            if kind == CfaKind::Fp as u8 {
                self.fp.wrapping_add(words)
            } else if kind == CfaKind::FramePointer as u8 {
                if self.fp == 0 {
                    return EndReason::Complete;
                }
                self.fp.wrapping_add(16)
            } else {
                let slot = self.fp.wrapping_add((row.cfa_offset as i16 as i64 * 8) as u64);
                match self.read_noted(slot, memory) {
                    Some(value) => value,
                    None => return EndReason::UnreadableStack,
                }
            }
        } else if kind == CfaKind::DerefSp as u8 {
            match self.read_noted(self.sp.wrapping_add(words), memory) {
                Some(value) => value.wrapping_add(8),
                None => return EndReason::UnreadableStack,
            }
        } else if kind == CfaKind::Plt as u8 {
            let pushed = (self.lookup_pc() & 15) >= row.cfa_offset as u64;
            self.sp.wrapping_add(if pushed { 16 } else { 8 })
        } else if kind == CfaKind::Signal as u8 {
            return self.leave_signal(memory);
        } else if kind == CfaKind::End as u8 {
            return EndReason::Complete;
        } else if kind == CfaKind::NoInfo as u8 {
            return EndReason::NoUnwindInfo;
        } else {
            return EndReason::UnsupportedRule;
        };
        self.return_to(cfa, row, memory)
    }

    /// Moves to the caller, whose `sp` is `cfa`.
    #[inline(always)]
    fn return_to(&mut self, cfa: u64, row: Row, memory: &impl Memory) -> EndReason {
        if cfa <= self.sp {
            return EndReason::DidNotAdvance;
        }
        let fp_kind = if row.cfa_kind == CfaKind::FramePointer as u8 {
            FpKind::AtCfa as u8
        } else {
            row.fp_kind
        };
        let fp_words = if row.cfa_kind == CfaKind::FramePointer as u8 {
            -2
        } else {
            row.fp_offset as i64
        };
        if fp_kind == FpKind::AtCfa as u8 {
            self.fp = cfa.wrapping_add((fp_words * 8) as u64);
            self.fp_state = FpState::InSlot as u8;
        } else if fp_kind == FpKind::AtFp as u8 {
            let reason = self.load_fp(memory);
            if reason as u8 != EndReason::Running as u8 {
                return reason;
            }
            self.fp = self.fp.wrapping_add((fp_words * 8) as u64);
            self.fp_state = FpState::InSlot as u8;
        } else if fp_kind == FpKind::Undefined as u8 {
            self.fp_state = FpState::Lost as u8;
        }
        let Some(return_address) = self.read_noted(cfa.wrapping_sub(8), memory) else {
            return EndReason::UnreadableStack;
        };
        self.sp = cfa;
        self.pc = return_address;
        self.is_return = 1;
        if return_address == 0 {
            EndReason::Complete
        } else {
            EndReason::Running
        }
    }

    /// Moves to the frame that a signal interrupted.
    #[inline(always)]
    fn leave_signal(&mut self, memory: &impl Memory) -> EndReason {
        let sp = memory.read_u64(self.sp.wrapping_add(UCONTEXT_SP));
        let pc = memory.read_u64(self.sp.wrapping_add(UCONTEXT_PC));
        let (Some(sp), Some(pc)) = (sp, pc) else {
            return EndReason::UnreadableStack;
        };
        self.fp = self.sp.wrapping_add(UCONTEXT_FP);
        self.fp_state = FpState::InSlot as u8;
        self.sp = sp;
        self.pc = pc;
        self.is_return = 0;
        // The interrupted registers are not noted, so this stack is not to be recognized by its slots.
        self.repeatable = 0;
        EndReason::Running
    }

    /// Makes `fp` hold the frame pointer's value.
    #[inline(always)]
    fn load_fp(&mut self, memory: &impl Memory) -> EndReason {
        if self.fp_state == FpState::InSlot as u8 {
            let Some(value) = self.read_noted(self.fp, memory) else {
                return EndReason::UnreadableStack;
            };
            self.fp = value;
            self.fp_state = FpState::Known as u8;
        } else if self.fp_state == FpState::Initial as u8 {
            self.needs_fp = 1;
        } else if self.fp_state == FpState::Lost as u8 {
            return EndReason::LostFramePointer;
        }
        EndReason::Running
    }

    /// Reads a slot that decides where the walk goes.
    #[inline(always)]
    fn read_noted(&mut self, slot: u64, memory: &impl Memory) -> Option<u64> {
        let value = memory.read_u64(slot)?;
        let offset = slot.wrapping_sub(self.start_sp);
        if self.checks_len >= MAX_CHECKS as u32 || offset >= 1 << 31 {
            self.repeatable = 0;
        } else {
            let index = masked::<MAX_CHECKS>(self.checks_len as usize);
            self.check_values[index] = value;
            self.check_offsets[index] = offset as u32;
            self.checks_len += 1;
            let end = offset as u32 + 8;
            if end > self.span {
                self.span = end;
            }
        }
        Some(value)
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}
