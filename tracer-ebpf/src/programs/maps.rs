//! Every map. Sizes marked "at load" are set by user space.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, ProgramArray, RingBuf},
};
use memtrace_ebpf::{
    layout::{Block, BlockKey, COUNTERS as COUNTER_COUNT, Control, Stack, tail},
    unwind::{Mapping, Page, Row},
    walk::Walk,
};

/// `BPF_F_MMAPABLE`: user space reads and writes the elements in place (`include/uapi/linux/bpf.h`).
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: required of tries.
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
}

/// The stack as it was when a walk was compared.
#[repr(C)]
pub struct StackCopy {
    pub words: [u64; COPY_WORDS],
}

/// The address space and an address in it, in the byte order that a trie compares.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AddressKey {
    pub space: u32,
    pub high: u32,
    pub low: u32,
}

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(COUNTER_COUNT as u32, MMAPABLE);
#[map]
pub static TAILS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
#[map]
pub static NOTICES: RingBuf = RingBuf::with_byte_size(4096, 0);

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
/// The frames of all stacks; at load.
#[map]
pub static FRAMES: Array<u64> = Array::with_max_entries(1, MMAPABLE);

#[map]
pub static WALKS: Array<Walk> = Array::with_max_entries(WALK_COUNT, 0);
#[map]
pub static COPIES: Array<StackCopy> = Array::with_max_entries(WALK_COUNT, 0);

/// Executable mappings; at load.
#[map]
pub static MAPPINGS: LpmTrie<AddressKey, Mapping> = LpmTrie::with_max_entries(1, NO_PREALLOC);
/// Pages of all files' tables; at load.
#[map]
pub static PAGES: Array<Page> = Array::with_max_entries(1, MMAPABLE);
/// Rows of all files' tables; at load.
#[map]
pub static ROWS: Array<Row> = Array::with_max_entries(1, MMAPABLE);
