//! What an allocation function does, and the registers that carry what memtrace needs of a call.

/// An argument register of the System V x86-64 calling convention.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ArgumentRegister {
    /// The first integer argument.
    Rdi,
    /// The second integer argument.
    Rsi,
    /// The third integer argument.
    Rdx,
    /// The fourth integer argument.
    Rcx,
}

/// What a function does with memory, and where its arguments are; named after the best known function of its kind.
///
/// An alignment or flags are never read: they say nothing about how much memory is held.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Shape {
    /// `void *malloc(size_t size, …)`
    Malloc,
    /// `void *calloc(size_t count, size_t size, …)`
    Calloc,
    /// `void *realloc(void *old, size_t size, …)`: when it fails, the old block stays.
    Realloc,
    /// `void *reallocarray(void *old, size_t count, size_t size)`
    ReallocArray,
    /// `void *reallocf(void *old, size_t size)`: when it fails, the old block is freed.
    Reallocf,
    /// `size_t xallocx(void *block, size_t size, size_t extra, int flags)`: the block stays where it is; it has the new
    /// size if at least `size` is returned.
    Xallocx,
    /// `void *memalign(size_t alignment, size_t size)`, `void *mi_heap_malloc(mi_heap_t *heap, size_t size, …)`
    Memalign,
    /// `int posix_memalign(void **out, size_t alignment, size_t size)`: the block is stored at `out`.
    PosixMemalign,
    /// `void *mi_heap_calloc(mi_heap_t *heap, size_t count, size_t size)`
    HeapCalloc,
    /// `void *mi_heap_realloc(mi_heap_t *heap, void *old, size_t size)`
    HeapRealloc,
    /// `void *mi_heap_recalloc(mi_heap_t *heap, void *old, size_t count, size_t size)`
    HeapReallocArray,
    /// `void *mi_heap_reallocf(mi_heap_t *heap, void *old, size_t size)`
    HeapReallocf,
    /// `void free(void *block)`
    Free,
    /// `void operator delete(void *block, …)`: frees, and may do so by calling `free`.
    Delete,
}

/// Where the arguments of a call are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Arguments<R> {
    /// The size, or that of one element.
    pub size: Option<R>,
    /// The number of elements.
    pub count: Option<R>,
    /// The block, or where the result is stored.
    pub pointer: Option<R>,
}

impl<R: Copy> Arguments<R> {
    /// All that there are.
    pub fn iter(self) -> impl Iterator<Item = R> {
        [self.size, self.count, self.pointer].into_iter().flatten()
    }

    /// The same arguments, each elsewhere.
    pub fn map<S>(self, place: impl Fn(R) -> S) -> Arguments<S> {
        Arguments {
            size: self.size.map(&place),
            count: self.count.map(&place),
            pointer: self.pointer.map(&place),
        }
    }

    /// The same arguments, each elsewhere; `None` when one is nowhere.
    pub fn try_map<S>(self, mut place: impl FnMut(R) -> Option<S>) -> Option<Arguments<S>> {
        let mut each = |argument: Option<R>| match argument {
            Some(argument) => place(argument).map(Some),
            None => Some(None),
        };
        Some(Arguments {
            size: each(self.size)?,
            count: each(self.count)?,
            pointer: each(self.pointer)?,
        })
    }
}

impl Shape {
    /// Whether the function only ends a block's life.
    pub const fn is_free(self) -> bool {
        matches!(self, Self::Free | Self::Delete)
    }

    /// The registers that hold, at the function's entry, the arguments that memtrace reads.
    pub const fn arguments(self) -> Arguments<ArgumentRegister> {
        use ArgumentRegister::{Rcx, Rdi, Rdx, Rsi};
        let (size, count, pointer) = match self {
            Self::Malloc => (Some(Rdi), None, None),
            Self::Calloc => (Some(Rsi), Some(Rdi), None),
            Self::Realloc | Self::Reallocf | Self::Xallocx => (Some(Rsi), None, Some(Rdi)),
            Self::ReallocArray => (Some(Rdx), Some(Rsi), Some(Rdi)),
            Self::Memalign => (Some(Rsi), None, None),
            Self::PosixMemalign => (Some(Rdx), None, Some(Rdi)),
            Self::HeapCalloc => (Some(Rdx), Some(Rsi), None),
            Self::HeapRealloc | Self::HeapReallocf => (Some(Rdx), None, Some(Rsi)),
            Self::HeapReallocArray => (Some(Rcx), Some(Rdx), Some(Rsi)),
            Self::Free | Self::Delete => (None, None, Some(Rdi)),
        };
        Arguments { size, count, pointer }
    }

    /// Whether one probe serves both when they are the same code.
    pub fn agrees_with(self, other: Self) -> bool {
        self == other || self.is_free() && other.is_free()
    }

    /// Whether a call of `inner` does all that a call of `self` does, when it gets the same arguments.
    pub fn is_served_by(self, inner: Self) -> bool {
        self.effect() == inner.effect()
    }

    /// What is left of the shape when the places of the arguments do not count.
    const fn effect(self) -> Self {
        match self {
            Self::Memalign => Self::Malloc,
            Self::HeapCalloc => Self::Calloc,
            Self::HeapRealloc => Self::Realloc,
            Self::HeapReallocArray => Self::ReallocArray,
            Self::HeapReallocf => Self::Reallocf,
            Self::Delete => Self::Free,
            other => other,
        }
    }
}

impl ArgumentRegister {
    /// The register's number in an instruction's encoding.
    pub const fn number(self) -> u8 {
        match self {
            Self::Rcx => 1,
            Self::Rdx => 2,
            Self::Rsi => 6,
            Self::Rdi => 7,
        }
    }

    /// The register as the decoder names it.
    pub(super) const fn decoded(self) -> iced_x86::Register {
        match self {
            Self::Rdi => iced_x86::Register::RDI,
            Self::Rsi => iced_x86::Register::RSI,
            Self::Rdx => iced_x86::Register::RDX,
            Self::Rcx => iced_x86::Register::RCX,
        }
    }
}
