//! The stacks of a snapshot, as stacks of a profile, and the frames that stand for what is not code.

use memtrace_ebpf::layout::EndReason;

use super::builder::{Builder, Frame, LocationId};
use crate::{
    snapshot::{Holder, Maker},
    symbol::{FrameMap, Symbols},
};

/// Makes the stacks of a profile; each frame is looked up once.
pub(super) struct Stacks<'a> {
    locations: FrameMap<LocationId>,
    symbols: &'a Symbols,
}

impl<'a> Stacks<'a> {
    pub(super) fn new(symbols: &'a Symbols) -> Self {
        Self {
            locations: FrameMap::default(),
            symbols,
        }
    }

    /// What is known of the frames.
    pub(super) fn symbols(&self) -> &'a Symbols {
        self.symbols
    }

    /// Adds these frames to a stack.
    pub(super) fn extend(&mut self, stack: &mut Vec<LocationId>, frames: &[u64], builder: &mut Builder<'_>) {
        for packed in frames {
            if let Some(known) = self.locations.get(packed) {
                stack.push(*known);
            } else if let Some(code) = self.symbols.get(*packed) {
                let location = builder.location(Frame::Code(code));
                self.locations.insert(*packed, location);
                stack.push(location);
            }
        }
    }

    /// A whole stack: the frames, between those that stand for what is not code.
    pub(super) fn with_ends(
        &mut self,
        inner: &[String],
        frames: &[u64],
        outer: Option<&str>,
        builder: &mut Builder<'_>,
    ) -> Vec<LocationId> {
        let synthetic = |name: &String, builder: &mut Builder<'_>| builder.location(Frame::Synthetic(name));
        let mut stack: Vec<LocationId> = inner.iter().map(|name| synthetic(name, builder)).collect();
        self.extend(&mut stack, frames, builder);
        stack.extend(outer.map(|name| builder.location(Frame::Synthetic(name))));
        stack
    }
}

/// The frames at the innermost end of a holder's stack that stand for what is not code; `made` is `opened` or `mapped`.
pub(crate) fn innermost_frames(holder: &Holder, made: &str) -> Vec<String> {
    let cached = holder.cached.then(|| "[cached thread stack]".to_owned());
    cached.into_iter().chain(holder.maker.frame(made)).collect()
}

/// The frame that stands for what is missing of a stack; `None` when it is complete.
pub(crate) fn missing_frames(frames: &[u64], end: EndReason) -> Option<String> {
    match end {
        _ if frames.is_empty() => Some("[stack not recorded]".to_owned()),
        EndReason::Complete => None,
        why => Some(format!("[stack truncated: {}]", reason(why))),
    }
}

/// As [`missing_frames`], of a holder: one that is not code has no stack that something could be missing of.
pub(crate) fn missing_of(holder: &Holder) -> Option<String> {
    match holder.maker {
        Maker::Code => missing_frames(&holder.frames, holder.end),
        _ => None,
    }
}

/// How much has an incomplete stack, by reason, of what was counted by its stacks' ends.
pub(crate) fn truncated(counted: impl Iterator<Item = (EndReason, u64)>) -> Vec<(EndReason, u64)> {
    let counted: Vec<(EndReason, u64)> = counted.collect();
    let incomplete = |reason: &EndReason| !matches!(reason, EndReason::Complete | EndReason::Running);
    let sum = |reason| {
        let of = counted.iter().filter(|(end, _)| *end == reason);
        of.map(|(_, count)| *count).sum()
    };
    EndReason::ALL
        .into_iter()
        .filter(incomplete)
        .map(|reason| (reason, sum(reason)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Why a stack is not complete, in words.
pub(crate) fn reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Running => "the walk did not finish",
        EndReason::Complete => "complete",
        EndReason::TooDeep => "too deep",
        EndReason::UnknownMapping => "unknown mapping",
        EndReason::NoUnwindInfo => "no unwind info",
        EndReason::UnsupportedRule => "unsupported unwind rule",
        EndReason::LostFramePointer => "frame pointer lost",
        EndReason::DidNotAdvance => "stack did not advance",
        EndReason::UnreadableStack => "stack not readable",
        EndReason::UnknownTrampoline => "unknown return trampoline",
        EndReason::OutOfSteps => "out of steps",
    }
}
