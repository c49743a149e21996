//! Where the runtime's structures have their fields, for each version of Go on amd64.
//!
//! The offsets come from the DWARF of built programs, which the tests compare them with; the structures are declared in
//! `src/runtime/runtime2.go` (`g`, `gobuf`, `m`) and `src/runtime/mprof.go` (`bucket`, `memRecord`).

use super::{Version, wait_reasons};

/// Offsets in bytes of one version's structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The version.
    pub version: Version,
    /// `g`: a goroutine.
    pub g: GLayout,
    /// `m`: a thread.
    pub m: MLayout,
    /// `bucket` and `memRecord`: the heap profile.
    pub bucket: BucketLayout,
    /// The texts of `g.waitreason`, by number (`waitReasonStrings`).
    pub wait_reasons: &'static [&'static str],
    /// The most frames, inlined calls included, that `runtime/pprof` shows of a stack: `maxStack` up to 1.22, the default of
    /// `debug.profstackdepth` since (`mprof.go`, `runtime1.go`).
    pub profile_depth: usize,
}

/// Fields of `g` (`runtime2.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GLayout {
    /// `stack.lo`, a word: the lowest address of the stack.
    pub stack_lo: u64,
    /// `stack.hi`, a word: the end of the stack.
    pub stack_hi: u64,
    /// `m`, a pointer: the thread it runs on.
    pub m: u64,
    /// `sched.sp`, a word.
    pub sched_sp: u64,
    /// `sched.pc`, a word.
    pub sched_pc: u64,
    /// `sched.g`, a pointer to the goroutine itself.
    pub sched_g: u64,
    /// `sched.bp`, a word.
    pub sched_bp: u64,
    /// `syscallsp`, a word: not 0 in a system call.
    pub syscall_sp: u64,
    /// `syscallpc`, a word.
    pub syscall_pc: u64,
    /// `syscallbp`, a word; from 1.23 on.
    pub syscall_bp: Option<u64>,
    /// `atomicstatus`, 4 bytes.
    pub status: u64,
    /// `goid`, a word.
    pub goid: u64,
    /// `waitsince`, a word.
    pub wait_since: u64,
    /// `waitreason`, a byte.
    pub wait_reason: u64,
    /// `lockedm`, a pointer to an `m`.
    pub locked_m: u64,
    /// `parentGoid`, a word; from 1.21 on.
    pub parent_goid: Option<u64>,
    /// `gopc`, a word.
    pub gopc: u64,
    /// `startpc`, a word.
    pub startpc: u64,
}

/// Fields of `m` (`runtime2.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MLayout {
    /// `g0`, a pointer: the goroutine with the scheduler's stack, whose `m` points back.
    pub g0: u64,
    /// `id`, a word: 0 for the first thread, which stays on the list.
    pub id: u64,
    /// `procid`, a word: the kernel's id of the thread.
    pub procid: u64,
    /// `curg`, a pointer to a `g`.
    pub curg: u64,
    /// `incgo`, a byte: whether it executes a cgo call.
    pub incgo: u64,
    /// `alllink`, a pointer to the next `m`.
    pub alllink: u64,
    /// `lockedg`, a pointer to a `g`.
    pub lockedg: u64,
    /// `createstack`, 32 words.
    pub createstack: u64,
}

/// Fields of `bucket`, and of the `memRecord` behind its stack (`mprof.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketLayout {
    /// `allnext`, a pointer to the next older bucket.
    pub allnext: u64,
    /// `typ`, a word: 1 (`memProfile`) for the heap profile.
    pub typ: u64,
    /// `hash`, a word.
    pub hash: u64,
    /// `size`, a word: the size of each block.
    pub size: u64,
    /// `nstk`, a word: the number of return addresses.
    pub nstk: u64,
    /// The size of `bucket`, behind which the return addresses are, and behind those the record.
    pub stack: u64,
    /// The size of `memRecordCycle`, four of which (`active` and `future`) make a record: 32 with `alloc_bytes` and `free_bytes`, 16
    /// without (from 1.27 on, where bytes are counts times `size`).
    pub cycle_size: u64,
    /// The most return addresses a bucket can have (`maxStack`; `maxProfStackDepth` from 1.23 on).
    pub max_depth: u64,
}

impl Layout {
    /// The layout of this version; `None` if it is not known.
    pub fn of(version: Version) -> Option<&'static Self> {
        ALL.iter().find(|layout| layout.version == version)
    }
}

/// The versions that are known, oldest first.
pub(super) static ALL: [Layout; 8] = [
    Layout {
        version: go(19),
        g: GLayout {
            locked_m: 232,
            parent_goid: None,
            gopc: 296,
            startpc: 312,
            ..G_1_21
        },
        m: M_1_21,
        bucket: BUCKET_1_19,
        wait_reasons: wait_reasons::GO_1_19,
        profile_depth: 32,
    },
    Layout {
        version: go(21),
        g: G_1_21,
        m: M_1_21,
        bucket: BUCKET_1_19,
        wait_reasons: wait_reasons::GO_1_23,
        profile_depth: 32,
    },
    Layout {
        version: go(22),
        g: G_1_21,
        m: M_1_22,
        bucket: BUCKET_1_19,
        wait_reasons: wait_reasons::GO_1_23,
        profile_depth: 32,
    },
    Layout {
        version: go(23),
        g: G_1_23,
        m: M_1_22,
        bucket: BUCKET_1_23,
        wait_reasons: wait_reasons::GO_1_23,
        profile_depth: 128,
    },
    Layout {
        version: go(24),
        g: G_1_23,
        m: MLayout {
            alllink: 352,
            lockedg: 368,
            createstack: 376,
            ..M_1_21
        },
        bucket: BUCKET_1_23,
        wait_reasons: wait_reasons::GO_1_24,
        profile_depth: 128,
    },
    Layout {
        version: go(25),
        g: G_1_25,
        m: MLayout {
            id: 224,
            incgo: 272,
            alllink: 344,
            lockedg: 360,
            createstack: 368,
            ..M_1_26
        },
        bucket: BUCKET_1_23,
        wait_reasons: wait_reasons::GO_1_25,
        profile_depth: 128,
    },
    Layout {
        version: go(26),
        g: G_1_26,
        m: M_1_26,
        bucket: BUCKET_1_23,
        wait_reasons: wait_reasons::GO_1_26,
        profile_depth: 128,
    },
    Layout {
        version: go(27),
        g: G_1_26,
        m: M_1_26,
        bucket: BucketLayout {
            cycle_size: 16,
            ..BUCKET_1_23
        },
        wait_reasons: wait_reasons::GO_1_26,
        profile_depth: 128,
    },
];

const fn go(minor: u32) -> Version {
    Version { major: 1, minor }
}

const G_1_21: GLayout = GLayout {
    stack_lo: 0,
    stack_hi: 8,
    m: 48,
    sched_sp: 56,
    sched_pc: 64,
    sched_g: 72,
    sched_bp: 104,
    syscall_sp: 112,
    syscall_pc: 120,
    syscall_bp: None,
    status: 144,
    goid: 152,
    wait_since: 168,
    wait_reason: 176,
    locked_m: 208,
    parent_goid: Some(272),
    gopc: 280,
    startpc: 296,
};

const G_1_23: GLayout = GLayout {
    syscall_bp: Some(128),
    status: 152,
    goid: 160,
    wait_since: 176,
    wait_reason: 184,
    locked_m: 216,
    parent_goid: Some(280),
    gopc: 288,
    startpc: 304,
    ..G_1_21
};

/// `gobuf` has lost `ret`, and with it 8 bytes.
const G_1_25: GLayout = GLayout {
    sched_bp: 96,
    syscall_sp: 104,
    syscall_pc: 112,
    syscall_bp: Some(120),
    ..G_1_21
};

const G_1_26: GLayout = GLayout {
    parent_goid: Some(280),
    gopc: 288,
    startpc: 304,
    ..G_1_25
};

const M_1_21: MLayout = MLayout {
    g0: 0,
    id: 232,
    procid: 72,
    curg: 192,
    incgo: 280,
    alllink: 336,
    lockedg: 352,
    createstack: 360,
};

const M_1_22: MLayout = MLayout {
    alllink: 328,
    lockedg: 344,
    createstack: 352,
    ..M_1_21
};

const M_1_26: MLayout = MLayout {
    g0: 0,
    id: 232,
    procid: 64,
    curg: 184,
    incgo: 280,
    alllink: 352,
    lockedg: 384,
    createstack: 392,
};

const BUCKET_1_19: BucketLayout = BucketLayout {
    allnext: 8,
    typ: 16,
    hash: 24,
    size: 32,
    nstk: 40,
    stack: 48,
    cycle_size: 32,
    max_depth: 32,
};

const BUCKET_1_23: BucketLayout = BucketLayout {
    max_depth: 1024,
    ..BUCKET_1_19
};
