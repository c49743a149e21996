//! The values of the maps that kernel and user space share.
//!
//! Sizes are bytes, times are [`TICK_SHIFT`] ticks of `CLOCK_MONOTONIC`.

/// The most frames kept of one stack; what lies beyond ends with [`EndReason::TooDeep`].
pub const MAX_FRAMES: usize = 128;

/// `bpf_ktime_get_ns() >> TICK_SHIFT`: ticks of 16.8 ms, so that 32 bits last 2.2 years.
pub const TICK_SHIFT: u32 = 24;

/// The stack that allocations are booked on when the stack table is full.
pub const OVERFLOW_STACK: u32 = 0;

/// One live block: which one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BlockKey {
    /// Virtual address that the allocator returned.
    pub address: u64,
    /// The address space: a number that is never used twice in one run.
    pub space: u32,
    /// Padding, zero: it is part of the key.
    pub _pad: u32,
}

/// In [`BlockKey::space`]: the parent of this address space freed the block after it forked this one, and before it forked
/// the next. This one, and those that were forked before, may hold it.
pub const GONE: u32 = 1 << 31;

/// In [`BlockKey::space`], when blocks are left out on purpose: this address space freed the block, which it had inherited.
/// What it frees at this address from then on is its own.
pub const FREED: u32 = 1 << 30;

/// One live block: what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Block {
    /// The size that was asked for (bytes).
    pub size: u64,
    /// Index into the stacks.
    pub stack: u32,
    /// When it was allocated (ticks).
    pub born: u32,
    /// How often its process had forked by then ([`Ledger::forks`]).
    pub forks: u32,
    /// Padding.
    pub _pad: u32,
}

/// One distinct stack and its books. Live values are the allocated minus the freed.
///
/// When blocks are sampled, objects, bytes and births are estimates, in units of 2^−[`crate::sampling::WEIGHT_SHIFT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stack {
    /// Blocks allocated since tracing began.
    pub alloc_objects: u64,
    /// Bytes allocated since tracing began.
    pub alloc_bytes: u64,
    /// Of these blocks, how many were freed.
    pub freed_objects: u64,
    /// Of these bytes, how many were freed.
    pub freed_bytes: u64,
    /// Sum of [`Block::born`] over the live blocks.
    pub born_sum: u64,
    /// When blocks are sampled: how many samples live.
    pub live_samples: u64,
    /// What finds the stack again in the programs' table of stacks.
    pub key: u64,
    /// An [`EndReason`]: why the walk stopped.
    pub end: u8,
    /// 1 once the stack is complete.
    pub ready: u8,
    /// A [`crate::handles::Class`]: what the books are of. In those of descriptors and mappings only
    /// [`Stack::alloc_objects`] and [`Stack::alloc_bytes`] count.
    pub class: u8,
    /// What kind of it.
    pub kind: u8,
    /// Padding.
    pub _pad: [u8; 4],
    /// The address space whose books these are; 0 for [`OVERFLOW_STACK`].
    pub space: u32,
    /// The stack that these blocks were allocated at by an ancestor, and inherited from by fork; 0 if they are the
    /// process's own.
    pub origin: u32,
}

/// Why a walk stopped. Only [`EndReason::Complete`] reached the outermost frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EndReason {
    /// The walk goes on.
    Running = 0,
    /// The outermost frame was reached.
    #[default]
    Complete = 1,
    /// More than [`MAX_FRAMES`] frames.
    TooDeep = 2,
    /// The address is in no known executable mapping.
    UnknownMapping = 3,
    /// The mapping has a table, but no row covers the address.
    NoUnwindInfo = 4,
    /// The rule for the address is one that rows cannot express.
    UnsupportedRule = 5,
    /// A rule needs the frame pointer, and a callee lost it.
    LostFramePointer = 6,
    /// The next frame is not above this one: the stack is corrupt, or a rule is wrong.
    DidNotAdvance = 7,
    /// The stack could not be read.
    UnreadableStack = 8,
    /// A return probe's trampoline whose call is not known.
    UnknownTrampoline = 9,
    /// The kernel refused to go on: too many tail calls.
    OutOfSteps = 10,
}

impl EndReason {
    /// Every reason, in the order of its value.
    pub const ALL: [Self; 11] = [
        Self::Running,
        Self::Complete,
        Self::TooDeep,
        Self::UnknownMapping,
        Self::NoUnwindInfo,
        Self::UnsupportedRule,
        Self::LostFramePointer,
        Self::DidNotAdvance,
        Self::UnreadableStack,
        Self::UnknownTrampoline,
        Self::OutOfSteps,
    ];

    /// The reason with this value.
    pub const fn from_u8(value: u8) -> Option<Self> {
        if (value as usize) < Self::ALL.len() {
            Some(Self::ALL[value as usize])
        } else {
            None
        }
    }
}

/// Index into the counters: one for every way of being wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Blocks not recorded because the block table was full.
    BlocksFull = 0,
    /// Bytes of these.
    BlocksFullBytes = 1,
    /// Calls not recorded because the thread table was full.
    ThreadsFull = 2,
    /// Blocks booked on [`OVERFLOW_STACK`] because the stack table was full.
    StacksFull = 3,
    /// Blocks booked on [`OVERFLOW_STACK`] because no walk state was free.
    WalksBusy = 4,
    /// Frees of blocks that are not in the books: allocated before the attach, or by an untraced call.
    UnmatchedFrees = 5,
    /// An address was returned that the books hold as live: its free was missed.
    MissedFrees = 6,
    /// Calls that never returned: a longjmp or an exception left the allocator.
    AbandonedCalls = 7,
    /// Returns without a recorded entry, such as of calls that were under way at the attach.
    UnmatchedReturns = 8,
    /// Calls deeper nested than the books can hold.
    NestedTooDeep = 9,
    /// Calls that failed: the allocator returned no memory.
    FailedCalls = 10,
    /// `posix_memalign` succeeded, but its result could not be read.
    UnreadableResults = 11,
    /// Blocks booked while libraries came or went, before user space had read which.
    StaleMappings = 12,
    /// Processes that are not followed because the table of processes was full.
    ProcessesFull = 13,
    /// Notices that user space did not get because it was too slow.
    NoticesLost = 14,
    /// Stacks of inherited blocks that the stack table had no room for.
    NotInherited = 15,
    /// Descriptors that were opened and are not in the books because the table of descriptors was full.
    FdsFull = 16,
    /// Descriptors whose numbers the kernel wrote into the process's memory, from where they could not be read.
    FdsUnreadable = 17,
    /// Descriptors booked without a stack.
    FdsWithoutStack = 18,
    /// Calls that closed more descriptors at once than could be followed, or copied a table with more.
    FdRangesTooLarge = 19,
    /// Changes of mappings that user space did not get because it was too slow.
    MapEventsLost = 20,
    /// Mappings that were noted without a stack.
    MappingsWithoutStack = 21,
    /// Touched pages that were drawn and not recorded.
    TouchesLost = 22,
    /// Threads that got a descriptor table of their own, which is not shown.
    PrivateTables = 23,
}

/// From this index on: descriptors that an io_uring opened without a stack, by [`crate::handles::FdKind`].
pub const OPENED_BY_IO_URING: usize = 24;
/// How many counters there are.
pub const COUNTERS: usize = OPENED_BY_IO_URING + 16;
/// The address space that [`Counter::ProcessesFull`] and [`Counter::NoticesLost`] are counted for: none.
pub const NO_SPACE: u32 = 0;

const _: () = assert!(size_of::<BlockKey>() == 16);
const _: () = assert!(size_of::<Block>() == 24);
const _: () = assert!(size_of::<Stack>() == 72);

/// The switches that user space sets and the positions that the programs advance; the only element of its map.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Index of the next stack that was never used; past the end when the table is full.
    pub next_stack: u64,
    /// How many stacks fit.
    pub stacks: u64,
    /// The number of the next address space.
    pub next_space: u64,
    /// Smaller blocks are not recorded (bytes).
    pub min_size: u64,
    /// 1 while calls are recorded. 0 before every probe is in place, and from the last snapshot on.
    pub enabled: u32,
    /// 1 if the children of traced processes are traced, too, and what they execute.
    pub follow: u32,
    /// Raised whenever mappings change: earlier walks are not to be trusted.
    pub generation: u32,
    /// The thread that the probes are bound to: the kernel removes them when it ends, see [`NoticeKind::AnchorEnded`].
    pub anchor: u32,
    /// Not 0 while any address space is in [`Wish::Stale`].
    pub stale: u32,
    /// The process that is stopped whenever its dynamic linker changed the mappings, or 0: memtrace started it, and lets it
    /// go on.
    pub hold: u32,
    /// 1 if blocks are drawn as [`crate::sampling`] says, 0 if every block is recorded.
    pub sampled: u32,
    /// 1 if blocks are left out on purpose: a free of a block that is not in the books then says nothing.
    pub selective: u32,
    /// What is traced: bits of [`crate::handles::classes`].
    pub classes: u32,
    /// Of the pages that are touched one in this many is recorded: a power of two.
    pub touch_distance: u32,
    /// Not 0 once a thread has a descriptor table of its own.
    pub private_tables: u32,
    /// Padding.
    pub _pad: u32,
}

/// Room for the frames of some 40,000 stacks that user space has not read so far (bytes).
pub const FRAMES_BYTES: u32 = 8 << 20;

/// What goes to user space of each new stack, before its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FramesHeader {
    /// Index of the stack.
    pub stack: u32,
    /// How many frames follow.
    pub len: u32,
}

/// What is known of a process (by its thread group id in the initial PID namespace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Member {
    /// Its address space; [`NO_SPACE`] of one that is not traced, and only shares its descriptors.
    pub space: u32,
    /// 1 if the address space is that of the process that made this one (`vfork`, `CLONE_VM`), until it executes a program.
    pub borrowed: u32,
    /// Its descriptor table.
    pub table: u32,
    /// The address space whose books its stacks are in, and whose mappings they are unwound with.
    pub stacks: u32,
}

/// What user space knows of an address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Space {
    /// Where return probes return to (virtual address); 0 while it is not known.
    pub trampoline: u64,
    /// Names the set of executable mappings: that of the parent from a fork until something changes.
    pub layout: u32,
    /// Padding.
    pub _pad: u32,
}

/// What the programs count for an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ledger {
    /// By [`Counter`].
    pub counters: [u64; COUNTERS],
    /// The address space that it was forked from; 0 if none.
    pub parent: u32,
    /// Which of its parent's forks made it, counted from 1.
    pub nth: u32,
    /// How often it forked processes that are followed.
    pub forks: u32,
    /// The address space that its parent forked next; 0 if none so far.
    pub next_sibling: u32,
    /// The address space that it forked last; 0 if none.
    pub last_child: u32,
    /// Padding.
    pub _pad: u32,
}

/// What is asked of user space for an address space, until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Wish {
    /// The dynamic linker changed the mappings: what is booked until they are read may name the wrong library.
    Stale = 1,
    /// A stack led to an unknown mapping.
    Refresh = 2,
}

/// The key of a [`Wish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WishKey {
    /// The address space.
    pub space: u32,
    /// A [`Wish`].
    pub wish: u32,
}

/// What a program tells user space through the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Notice {
    /// `CLOCK_BOOTTIME` (nanoseconds), as the start times in `/proc/PID/stat` are counted.
    pub time: u64,
    /// A [`NoticeKind`].
    pub kind: u32,
    /// Which process it is about (thread group id in the initial PID namespace).
    pub process: u32,
    /// Its address space.
    pub space: u32,
    /// [`NoticeKind::Forked`], [`NoticeKind::Executed`]: the address space that it was made from or had before.
    pub earlier: u32,
    /// [`NoticeKind::Forked`]: the process that forked it. Else the process itself.
    pub by: u32,
    /// Its descriptor table.
    pub table: u32,
    /// The name of the thread that the notice is from, ended by a zero.
    pub name: [u8; 16],
}

/// What a [`Notice`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NoticeKind {
    /// The executable mappings changed, or a stack led to an unknown one.
    MappingsChanged = 1,
    /// The process executed another program. Unless children are followed, it is not recorded any more.
    Executed = 2,
    /// The thread that the probes are bound to ended. The kernel compares address spaces by this thread's
    /// (`kernel/trace/trace_uprobe.c`, `__uprobe_perf_filter`), and has none to compare any more.
    AnchorEnded = 3,
    /// A process that is followed made this one.
    Forked = 4,
    /// The first thread of a process ended, and likely the process.
    Ended = 5,
}

impl NoticeKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::MappingsChanged,
        Self::Executed,
        Self::AnchorEnded,
        Self::Forked,
        Self::Ended,
    ];
}

/// What a call of an allocating function returns, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CallKind {
    /// The block, or null.
    Block = 0,
    /// The block, or null if the old one stays.
    Realloc = 1,
    /// The block, or null if there is none and the old one is freed.
    Reallocf = 2,
    /// An error code; the block is stored through a pointer.
    Memalign = 3,
    /// The size that the block has now; it stays where it is.
    InPlace = 4,
}

/// What the cookie of a probe at an allocating function says, when its arguments are not where they usually are.
///
/// From the lowest byte on: a [`CallKind`] and perhaps [`entry::EXITS`], then the registers that hold the size, the number of elements, and the old
/// block or the place of the result; by their number in an instruction's encoding.
pub mod entry {
    use super::CallKind;

    /// In place of a register: there is no such argument.
    pub const NONE: u8 = 0xff;

    /// With the kind: the call's return is seen by probes where it returns, not by a return probe.
    pub const EXITS: u8 = 0x80;

    /// The cookie; `exits` is 0 or [`EXITS`].
    pub const fn cookie(kind: CallKind, exits: u8, size: u8, count: u8, pointer: u8) -> u64 {
        u32::from_le_bytes([kind as u8 | exits, size, count, pointer]) as u64
    }

    /// A byte of the cookie: 0 the kind, 1 the size, 2 the number of elements, 3 the pointer.
    #[inline(always)]
    pub const fn part(cookie: u64, index: u32) -> u32 {
        (cookie >> (8 * index)) as u32 & 0xff
    }
}

/// What the cookie of a probe says that is where a function returns.
pub mod exit {
    /// The bits that hold the distance from the stack pointer to the slot of the return address (bytes).
    pub const SLOT: u64 = 0xffff;
    /// Behind them, four bits: the register that holds the result, by its number in an instruction's encoding.
    pub const REGISTER_SHIFT: u32 = 16;
    /// Four bits: a condition as encoded in a conditional jump.
    pub const CONDITION_SHIFT: u32 = 20;
    /// Set if the function returns from here only under this condition.
    pub const CONDITIONAL: u64 = 1 << 24;
    /// Set if the instruction is the return itself.
    pub const RETURNS: u64 = 1 << 25;

    /// The cookie.
    pub const fn cookie(slot: u16, register: u8, condition: Option<u8>, returns: bool) -> u64 {
        let condition = match condition {
            Some(condition) => (condition as u64 & 15) << CONDITION_SHIFT | CONDITIONAL,
            None => 0,
        };
        let returns = if returns { RETURNS } else { 0 };
        slot as u64 | (register as u64 & 15) << REGISTER_SHIFT | condition | returns
    }

    /// Whether a conditional jump with this condition is taken when these are the processor's flags (Intel's manual,
    /// volume 1, appendix B).
    #[inline(always)]
    pub const fn is_taken(condition: u32, flags: u64) -> bool {
        let carry = flags & 1 != 0;
        let parity = flags & 1 << 2 != 0;
        let zero = flags & 1 << 6 != 0;
        let sign = flags & 1 << 7 != 0;
        let overflow = flags & 1 << 11 != 0;
        let holds = match condition >> 1 {
            0 => overflow,
            1 => carry,
            2 => zero,
            3 => carry || zero,
            4 => sign,
            5 => parity,
            6 => sign != overflow,
            _ => zero || sign != overflow,
        };
        holds != (condition & 1 != 0)
    }
}

/// What the cookie of a probe inside `malloc` says.
pub mod inner {
    /// The bits that hold the distance from the stack pointer to the slot of the return address (bytes).
    pub const SLOT: u64 = 0xffff;
}

/// Where user space puts the programs in the arrays that tail calls go through: [`WALK`](tail::WALK) in that of the
/// uprobes and in that of the raw tracepoints, [`INHERIT`](tail::INHERIT) in that of the tracepoints.
pub mod tail {
    /// Walks on.
    pub const WALK: u32 = 0;
    /// Never filled: a call that goes nowhere.
    pub const NOWHERE: u32 = 1;
    /// Copies the parent's books for its child.
    pub const INHERIT: u32 = 0;
    /// Books what a system call did, once its stack is known.
    pub const BOOK_CALL: u32 = 2;
    /// Books a touched page, once its stack is known.
    pub const BOOK_TOUCH: u32 = 3;
    /// Books what an io_uring did, once its stack is known.
    pub const BOOK_REQUEST: u32 = 4;
    /// As [`BOOK_CALL`], of `clone`.
    pub const BOOK_CLONE: u32 = 5;
    /// Asks how long a mapping is of which the call does not tell, then goes to [`BOOK_CALL`].
    pub const MEASURE: u32 = 6;
    /// Notes who asked for a connection, once its stack is known.
    pub const BOOK_DIAL: u32 = 7;
    /// How many places there are.
    pub const COUNT: u32 = 8;
}
