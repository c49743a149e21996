//! Walking a goroutine's stack.

use super::Memory;
use crate::symbol::FrameMap;

/// The most frames of a stack, more than `runtime/pprof` shows (`debug.profstackdepth`).
const MAX_FRAMES: usize = 256;

/// How much of a deep stack is read at once.
const WINDOW: u64 = 64 << 10;

/// What the compiler noted of its code. Addresses are virtual ones in the process.
pub trait FrameSizes {
    /// Bytes between the stack pointer at this instruction and the return address; `None` outside Go code.
    fn frame_size(&self, address: u64) -> Option<u32>;

    /// Where the function begins that this instruction is in; `None` outside Go code.
    fn entry(&self, address: u64) -> Option<u64>;

    /// Whether nothing called the function that begins here, such as `runtime.goexit` and `runtime.mstart`
    /// (`abi.FuncFlagTopFrame`).
    fn is_outermost(&self, entry: u64) -> bool;

    /// Whether the function that begins here is never called, but put on the stack where code was interrupted:
    /// `runtime.sigpanic`, `runtime.asyncPreempt`, `runtime.debugCallV2` (`isInjectedCall` in `src/runtime/traceback.go`).
    fn is_injected(&self, entry: u64) -> bool {
        let _ = entry;
        false
    }
}

/// Where a stack is walked from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub sp: u64,
    pub pc: u64,
    /// The frame pointer, if it was saved.
    pub bp: Option<u64>,
}

/// A walked stack.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stack {
    /// Return addresses, innermost first; of an instruction that was interrupted, or not yet executed, one byte behind where
    /// it begins, so that looking up the byte before finds it (`tracebackPCs` in `src/runtime/traceback.go`).
    pub frames: Vec<u64>,
    /// Whether the outermost function was reached.
    pub is_complete: bool,
    /// Whether a return address was not in Go code: the stack changed while it was read.
    pub is_torn: bool,
}

/// A copy of a part of a stack that is read on as it is needed.
pub(super) struct Window<'m> {
    memory: &'m dyn Memory,
    begin: u64,
    bytes: Vec<u8>,
    /// The end of the stack.
    end: u64,
}

impl<'m> Window<'m> {
    /// A window that begins with what has been read from this address.
    pub(super) fn new(memory: &'m dyn Memory, begin: u64, bytes: Vec<u8>, end: u64) -> Self {
        Self {
            memory,
            begin,
            bytes,
            end,
        }
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        if let Some(word) = self.copied(address) {
            return Some(word);
        }
        let length = self.end.checked_sub(address)?.min(WINDOW);
        if length < 8 {
            return None;
        }
        self.bytes.resize(length as usize, 0);
        self.begin = address;
        self.memory.read(address, &mut self.bytes).ok()?;
        self.copied(address)
    }

    fn copied(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.begin)?).ok()?;
        let word = self.bytes.get(offset..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*word))
    }
}

/// Walks stacks and remembers what it looked up: thousands of goroutines wait at the same few places.
pub(super) struct Unwinder<'s> {
    sizes: &'s dyn FrameSizes,
    places: FrameMap<Place>,
}

/// What is known of an instruction.
#[derive(Clone, Copy)]
pub(super) struct Place {
    size: Option<u64>,
    pub entry: Option<u64>,
    is_outermost: bool,
    is_injected: bool,
}

impl<'s> Unwinder<'s> {
    pub(super) fn new(sizes: &'s dyn FrameSizes) -> Self {
        Self {
            sizes,
            places: FrameMap::default(),
        }
    }

    /// What is known of the instruction at this address.
    pub(super) fn place(&mut self, address: u64) -> Place {
        let sizes = self.sizes;
        *self.places.entry(address).or_insert_with(|| {
            let entry = sizes.entry(address);
            Place {
                size: sizes.frame_size(address).map(u64::from),
                entry,
                is_outermost: entry.is_some_and(|entry| sizes.is_outermost(entry)),
                is_injected: entry.is_some_and(|entry| sizes.is_injected(entry)),
            }
        })
    }

    /// Walks a stack by the sizes of the frames or, where a size is not known, by frame pointers. The latter would miss the
    /// caller of a function that was interrupted before it saved the frame pointer.
    pub(super) fn walk(&mut self, registers: Registers, window: &mut Window<'_>) -> Stack {
        let mut stack = Stack::default();
        let Registers {
            mut sp,
            mut pc,
            mut bp,
        } = registers;
        let mut is_interrupted = false;
        while pc != 0 && stack.frames.len() < MAX_FRAMES {
            let place = self.place(pc);
            let is_next = is_interrupted || place.entry == Some(pc);
            stack.frames.push(if is_next { pc + 1 } else { pc });
            is_interrupted = place.is_injected;
            if place.is_outermost {
                stack.is_complete = true;
                break;
            }
            let next = match place.size {
                Some(size) => step(window, sp, size, bp),
                // The first function of a goroutine has saved 0.
                None if bp == Some(0) => {
                    stack.is_complete = true;
                    break;
                }
                None => bp.filter(|&bp| bp >= sp).and_then(|bp| follow(window, bp)),
            };
            let Some(next) = next else { break };
            if place.size.is_some() && next.pc != 0 && self.place(next.pc).entry.is_none() {
                stack.is_torn = true;
                break;
            }
            Registers { sp, pc, bp } = next;
        }
        stack
    }
}

/// The caller of a frame of this size.
fn step(window: &mut Window<'_>, sp: u64, size: u64, bp: Option<u64>) -> Option<Registers> {
    let slot = sp.checked_add(size)?;
    // A function with a frame saves the frame pointer just below the return address (`resolveInternal` in `traceback.go`).
    let bp = if size >= 8 { window.word(slot - 8) } else { bp };
    Some(Registers {
        sp: slot + 8,
        pc: window.word(slot)?,
        bp,
    })
}

/// The caller of the frame that this frame pointer points to.
fn follow(window: &mut Window<'_>, bp: u64) -> Option<Registers> {
    Some(Registers {
        bp: window.word(bp),
        pc: window.word(bp.checked_add(8)?)?,
        sp: bp.checked_add(16)?,
    })
}
