//! Every map. Sizes marked "at load" are set by user space.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, ProgramArray, Queue, RingBuf},
};
use memtrace_ebpf::{
    handles::{Fd, FdKey, MAP_EVENT_BYTES, Offsets, Table},
    layout::{Block, BlockKey, Control, FRAMES_BYTES, Ledger, Member, Space, Stack, WishKey, tail},
    sampling::{CLASSES, SizeClass},
    unwind::{Mapping, Page, Row},
    walk::Walk,
};

/// `BPF_F_MMAPABLE`: user space reads and writes the elements in place (`include/uapi/linux/bpf.h`).
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: required of tries; elsewhere elements take memory only while they are there.
const NO_PREALLOC: u32 = 1;

/// How many calls into the allocator a thread can be in at once.
pub const MAX_NESTED: usize = 4;
/// How many walks are remembered; a power of two.
pub const WALK_COUNT: u32 = 1024;
/// How many words of the stack are compared in one copy.
pub const COPY_WORDS: usize = 256;

/// A call into the allocator that has not returned.
#[repr(C)]
pub struct Call {
    /// `sp` at the entry: the slot of the return address.
    pub sp: u64,
    /// The return address, which the return probe replaces on the stack.
    pub return_address: u64,
    /// The size asked for (bytes).
    pub size: u64,
    /// `posix_memalign`: where the result goes. `realloc`: the old block.
    pub pointer: u64,
    /// `realloc`: the old block's entry; stack `NO_BLOCK` if it had none.
    pub old: Block,
    /// A [`memtrace_ebpf::layout::CallKind`].
    pub kind: u32,
    /// 1 if the return is seen by probes where the function returns. Its return address is left alone, so that an
    /// exception can pass.
    pub has_exits: u32,
}

/// What is kept of a thread between two programs.
#[repr(C)]
pub struct Thread {
    /// The calls under way, outermost first.
    pub calls: [Call; MAX_NESTED],
    /// How many of `calls` are under way.
    pub depth: u32,
    /// The walk under way.
    pub walk: u32,
    /// The block to be booked when the walk is done (virtual address).
    pub address: u64,
    /// Its size (bytes).
    pub size: u64,
    /// The slot of the return address of a `malloc` that passed its inner size site, and has no result so far.
    pub inner_slot: u64,
    /// The size that it was asked for (bytes).
    pub inner_size: u64,
    /// What was last freed by a function that may call another which frees (virtual address).
    pub freed: u64,
    /// The address space of the walk under way.
    pub space: u32,
    /// Its set of mappings.
    pub layout: u32,
    /// In the kernel: which program books what the walk is for, by its place in [`CALL_TAILS`] or [`KERNEL_TAILS`].
    pub next: u32,
    /// 1 while it is in a call that gives it a descriptor table of its own, which it shared before.
    pub unshares: u32,
}

/// The books of a forking process that are to be copied.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Fork {
    /// Its address space.
    pub parent: u32,
    /// The child's.
    pub child: u32,
    /// The next stack to look at.
    pub next: u32,
    /// One past the last.
    pub end: u32,
}

/// What [`DIALS`] knows something of.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct DialKey {
    /// As `what` says.
    pub who: u64,
    /// The address space.
    pub space: u32,
    /// [`DialKey::WANTED`] or [`DialKey::DIALER`].
    pub what: u32,
}

impl DialKey {
    /// `who` is the address of a `wantConn`: a connection that is asked for.
    pub const WANTED: u32 = 0;
    /// `who` is the id of a goroutine that dials.
    pub const DIALER: u32 = 1;
}

/// Who asked for a connection.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Dial {
    /// Index into the stacks.
    pub stack: u32,
    /// The generation of the mappings then. When stacks are used again, it changes.
    pub generation: u32,
}

/// The stack as it was when a walk was compared.
#[repr(C)]
pub struct StackCopy {
    pub words: [u64; COPY_WORDS],
}

/// The set of mappings and an address, in the byte order that a trie compares.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AddressKey {
    pub layout: u32,
    pub high: u32,
    pub low: u32,
}

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
#[map]
pub static TAILS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
#[map]
pub static FORK_TAILS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
/// Of programs at system calls.
#[map]
pub static CALL_TAILS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
/// Of programs at raw tracepoints.
#[map]
pub static KERNEL_TAILS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
/// Of programs in Go's `net/http`.
#[map]
pub static DIAL_TAILS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
#[map]
pub static NOTICES: RingBuf = RingBuf::with_byte_size(1 << 19, 0);

/// The processes that are traced, by thread group id; at load.
#[map]
pub static PROCESSES: HashMap<u32, Member> = HashMap::with_max_entries(1, 0);
/// Their address spaces; at load.
#[map]
pub static SPACES: HashMap<u32, Space> = HashMap::with_max_entries(1, 0);
/// What is counted for each, and where it was forked from; at load.
#[map]
pub static LEDGERS: HashMap<u32, Ledger> = HashMap::with_max_entries(1, 0);
/// What a new one starts from: too large for a program's stack.
#[map]
pub static EMPTY_LEDGER: Array<Ledger> = Array::with_max_entries(1, 0);
/// Forks under way, by the thread that forks.
#[map]
pub static FORKS: HashMap<u32, Fork> = HashMap::with_max_entries(1024, 0);
/// What is asked of user space; at load.
#[map]
pub static WISHES: HashMap<WishKey, u32> = HashMap::with_max_entries(1, 0);

/// How blocks of each size class are drawn.
#[map]
pub static SIZE_CLASSES: Array<SizeClass> = Array::with_max_entries(CLASSES as u32, MMAPABLE);
/// Live blocks; at load.
#[map]
pub static LIVE: HashMap<BlockKey, Block> = HashMap::with_max_entries(1, 0);
/// Threads that called the allocator; at load.
#[map]
pub static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(1, 0);

/// What a new thread starts from: too large for a program's stack.
#[map]
pub static EMPTY_THREAD: Array<Thread> = Array::with_max_entries(1, 0);

/// Stacks by the hash of their frames; at load.
#[map]
pub static STACK_IDS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
/// Stacks by index; at load.
#[map]
pub static STACKS: Array<Stack> = Array::with_max_entries(1, MMAPABLE);
/// Stacks that can be used again; at load.
#[map]
pub static FREE_STACKS: Queue<u32> = Queue::with_max_entries(1, 0);
/// The frames of new stacks, on their way to user space.
#[map]
pub static FRAMES: RingBuf = RingBuf::with_byte_size(FRAMES_BYTES, 0);

#[map]
pub static WALKS: Array<Walk> = Array::with_max_entries(WALK_COUNT, 0);
#[map]
pub static COPIES: Array<StackCopy> = Array::with_max_entries(WALK_COUNT, 0);

/// Open descriptors; at load. No uprobe program, which could be interrupted anywhere, allocates here.
#[map]
pub static FDS: HashMap<FdKey, Fd> = HashMap::with_max_entries(1, NO_PREALLOC);
/// Descriptor tables; at load.
#[map]
pub static TABLES: HashMap<u32, Table> = HashMap::with_max_entries(1, 0);
/// Threads that have a descriptor table of their own: which.
#[map]
pub static PRIVATE_TABLES: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);
/// Where the kernel keeps what is read of it.
#[map]
pub static OFFSETS: Array<Offsets> = Array::with_max_entries(1, 0);
/// Changes of mappings, on their way to user space.
#[map]
pub static MAP_EVENTS: RingBuf = RingBuf::with_byte_size(MAP_EVENT_BYTES, 0);
/// Where the heap of each address space ended at the last `brk`; at load.
#[map]
pub static BREAKS: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Who asked for connections that are not dialed so far, and for those that are being dialed. What is asked for need not be dialed:
/// the oldest makes room. The socket of who was forgotten keeps its own stack.
#[map]
pub static DIALS: LruHashMap<DialKey, Dial> = LruHashMap::with_max_entries(16 << 10, 0);
/// The cookies of the probes in `net/http` ([`memtrace_ebpf::handles::goroutine`]), by address space, once one was met.
#[map]
pub static GOROUTINES: LruHashMap<u32, u64> = LruHashMap::with_max_entries(1024, 0);

/// Executable mappings; at load.
#[map]
pub static MAPPINGS: LpmTrie<AddressKey, Mapping> = LpmTrie::with_max_entries(1, NO_PREALLOC);
/// Pages of all files' tables; at load.
#[map]
pub static PAGES: Array<Page> = Array::with_max_entries(1, MMAPABLE);
/// Rows of all files' tables; at load.
#[map]
pub static ROWS: Array<Row> = Array::with_max_entries(1, MMAPABLE);
