//! Return probes, and which files can have them.
//!
//! A return probe replaces the return address on the stack (`arch/x86/kernel/uprobes.c`,
//! `arch_uretprobe_hijack_return_addr`). Go's runtime walks its stacks and moves them: it takes the address that it
//! finds there for damage, and ends the process. So no file with Go code gets a return probe, not even in the C code
//! that is linked into it: a [`ReturnPoint`] can be had with a [`FixedStacks`] only, and that only for other files.

use object::ReadRef;

use super::ProbePoint;
use super::image::Image;

/// The proof that a file has no Go code: what its functions return to stays where it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FixedStacks(());

impl FixedStacks {
    /// `None` for a file with Go code.
    pub fn of<'d, R: ReadRef<'d>>(image: &Image<'d, R>) -> Option<Self> {
        (!image.has_go_code()).then_some(Self(()))
    }
}

/// Where a return probe is registered: an instruction at which the stack pointer points at the return address, in a
/// file without Go code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReturnPoint {
    point: ProbePoint,
    _stacks: FixedStacks,
}

impl ReturnPoint {
    pub(super) fn new(point: ProbePoint, stacks: FixedStacks) -> Self {
        Self {
            point,
            _stacks: stacks,
        }
    }

    /// The instruction.
    pub fn point(&self) -> &ProbePoint {
        &self.point
    }
}

/// Why a function gets no return probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoReturnProbe {
    /// An exception may pass it.
    Throws,
    /// The file has Go code.
    GoFile,
}

impl std::fmt::Display for NoReturnProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Throws => "it may throw",
            Self::GoFile => "it is in a file with Go code, where no return probe is safe",
        })
    }
}
