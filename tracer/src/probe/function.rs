//! The allocation functions, their C prototypes and the registers that carry what memtrace needs of them.

use std::fmt;

/// A function that allocates or frees heap memory.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum AllocFunction {
    /// `void *malloc(size_t size)`
    Malloc,
    /// `void *calloc(size_t count, size_t size)`
    Calloc,
    /// `void *realloc(void *old, size_t size)`
    Realloc,
    /// `void *reallocarray(void *old, size_t count, size_t size)`
    ReallocArray,
    /// `void free(void *address)`, and glibc's old `cfree`
    Free,
    /// `int posix_memalign(void **out, size_t alignment, size_t size)`
    PosixMemalign,
    /// `void *aligned_alloc(size_t alignment, size_t size)`
    AlignedAlloc,
    /// `void *memalign(size_t alignment, size_t size)`
    Memalign,
    /// `void *valloc(size_t size)`
    Valloc,
    /// `void *pvalloc(size_t size)`, which rounds the size up to whole pages
    Pvalloc,
}

/// An argument register of the System V x86-64 calling convention.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ArgumentRegister {
    /// The first integer argument.
    Rdi,
    /// The second integer argument.
    Rsi,
    /// The third integer argument.
    Rdx,
}

/// What decides whether two functions can share a probe: where the arguments are and what comes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    /// `size` in rdi, the block returned.
    Size,
    /// `count` in rdi, `size` in rsi, the block returned.
    CountSize,
    /// `old` in rdi, `size` in rsi, the block returned.
    OldSize,
    /// `old` in rdi, `count` in rsi, `size` in rdx, the block returned.
    OldCountSize,
    /// `size` in rsi, the block returned.
    AlignmentSize,
    /// `out` in rdi, `size` in rdx, an error number returned and the block stored at `out`.
    OutAlignmentSize,
    /// `address` in rdi, nothing returned.
    Address,
}

impl AllocFunction {
    /// Every function, in the order in which sites are planned.
    pub const ALL: [Self; 10] = [
        Self::Malloc,
        Self::Calloc,
        Self::Realloc,
        Self::ReallocArray,
        Self::Free,
        Self::PosixMemalign,
        Self::AlignedAlloc,
        Self::Memalign,
        Self::Valloc,
        Self::Pvalloc,
    ];

    /// The symbols that name this function, the display name first.
    pub const fn symbols(self) -> &'static [&'static str] {
        match self {
            Self::Malloc => &["malloc"],
            Self::Calloc => &["calloc"],
            Self::Realloc => &["realloc"],
            Self::ReallocArray => &["reallocarray"],
            Self::Free => &["free", "cfree"],
            Self::PosixMemalign => &["posix_memalign"],
            Self::AlignedAlloc => &["aligned_alloc"],
            Self::Memalign => &["memalign"],
            Self::Valloc => &["valloc"],
            Self::Pvalloc => &["pvalloc"],
        }
    }

    /// The function that a symbol names; a version (`malloc@@GLIBC_2.2.5`) is ignored.
    pub fn from_symbol(symbol: &[u8]) -> Option<Self> {
        let base = symbol.split(|&byte| byte == b'@').next()?;
        Self::ALL
            .into_iter()
            .find(|function| function.symbols().iter().any(|name| name.as_bytes() == base))
    }

    /// The function's name in C.
    pub const fn name(self) -> &'static str {
        self.symbols()[0]
    }

    /// Whether the function ends a block's life instead of beginning one.
    pub const fn is_free(self) -> bool {
        matches!(self, Self::Free)
    }

    /// The registers that hold, at the function's entry, the arguments memtrace reads.
    ///
    /// An alignment is never read: it says nothing about how much memory is held.
    pub const fn arguments(self) -> &'static [ArgumentRegister] {
        use ArgumentRegister::{Rdi, Rdx, Rsi};
        match self.shape() {
            Shape::Size | Shape::Address => &[Rdi],
            Shape::CountSize | Shape::OldSize => &[Rdi, Rsi],
            Shape::OldCountSize => &[Rdi, Rsi, Rdx],
            Shape::AlignmentSize => &[Rsi],
            Shape::OutAlignmentSize => &[Rdi, Rdx],
        }
    }

    /// Whether one probe can serve both functions when they are the same code.
    pub fn same_shape(self, other: Self) -> bool {
        self.shape() == other.shape()
    }

    const fn shape(self) -> Shape {
        match self {
            Self::Malloc | Self::Valloc | Self::Pvalloc => Shape::Size,
            Self::Calloc => Shape::CountSize,
            Self::Realloc => Shape::OldSize,
            Self::ReallocArray => Shape::OldCountSize,
            Self::Free => Shape::Address,
            Self::PosixMemalign => Shape::OutAlignmentSize,
            Self::AlignedAlloc | Self::Memalign => Shape::AlignmentSize,
        }
    }
}

impl fmt::Display for AllocFunction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl ArgumentRegister {
    /// The register as the decoder names it.
    pub(super) const fn decoded(self) -> iced_x86::Register {
        match self {
            Self::Rdi => iced_x86::Register::RDI,
            Self::Rsi => iced_x86::Register::RSI,
            Self::Rdx => iced_x86::Register::RDX,
        }
    }
}

impl fmt::Display for ArgumentRegister {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Rdi => "rdi",
            Self::Rsi => "rsi",
            Self::Rdx => "rdx",
        })
    }
}
