//! The code of a Go program in a process: what its addresses stand for.

use std::sync::Arc;

use memtrace_ebpf::unwind::frame;

use crate::{
    go::{FrameSizes, GoFrame, Pclntab},
    target::Mappings,
};

/// Functions that are put on the stack where code was interrupted (`isInjectedCall` in `src/runtime/traceback.go`).
const INJECTED: [&str; 3] = ["runtime.sigpanic", "runtime.asyncPreempt", "runtime.debugCallV2"];

/// The program's code at its place in the process.
#[derive(Debug)]
pub struct Code {
    pub table: Arc<Pclntab>,
    pub bias: u64,
}

impl FrameSizes for Code {
    fn frame_size(&self, address: u64) -> Option<u32> {
        self.table.frame_size(address.wrapping_sub(self.bias))
    }

    fn entry(&self, address: u64) -> Option<u64> {
        let entry = self.table.entry(address.wrapping_sub(self.bias))?;
        Some(entry.wrapping_add(self.bias))
    }

    fn is_outermost(&self, entry: u64) -> bool {
        self.table.is_outermost(entry.wrapping_sub(self.bias))
    }

    fn is_injected(&self, entry: u64) -> bool {
        let frame = self.table.innermost(entry.wrapping_sub(self.bias));
        frame.is_some_and(|frame| INJECTED.contains(&&*frame.function))
    }
}

impl Code {
    /// Where in the file a call is that returns to this address of the process.
    fn call_before(&self, return_address: u64) -> u64 {
        return_address.wrapping_sub(1).wrapping_sub(self.bias)
    }

    /// The name of the function at a return address; empty if there is none.
    pub fn function(&self, return_address: u64) -> Arc<str> {
        self.table
            .innermost(self.call_before(return_address))
            .map_or_else(|| "".into(), |frame| frame.function)
    }

    /// Whether every call at a return address is left out by `runtime/pprof`: the end of a goroutine, or wrappers that the
    /// compiler made.
    fn is_hidden(&self, return_address: u64) -> bool {
        let frames = self.table.frames(self.call_before(return_address));
        let is_hidden = |frame: &GoFrame| frame.is_wrapper || &*frame.function == "runtime.goexit";
        !frames.is_empty() && frames.iter().all(is_hidden)
    }

    /// The return addresses of a stack in which inlined calls have entries of their own, without these: an address stands
    /// for all calls that were inlined there.
    pub fn physical(&self, logical: &[u64]) -> Vec<u64> {
        let mut physical = Vec::with_capacity(logical.len());
        let mut rest = logical.iter().copied().peekable();
        while let Some(pc) = rest.next() {
            physical.push(pc);
            for outer in self.table.frames(self.call_before(pc)).iter().skip(1) {
                if rest
                    .next_if(|next| self.function(*next) == outer.function)
                    .is_none()
                {
                    break;
                }
            }
        }
        physical
    }

    /// Packs the return addresses of a stack, leaving out what is hidden.
    pub fn pack(&self, mappings: &Mappings, stack: &[u64]) -> Vec<u64> {
        let shown = stack.iter().copied().filter(|pc| !self.is_hidden(*pc));
        shown.map(|pc| mappings.place(frame::pack(0, pc, true))).collect()
    }
}
