//! The goroutines, from `runtime.allgs`.

use std::collections::HashMap;

use super::{
    FrameSizes, GoError, GoStatus, Goroutine, Goroutines, Memory, Piece, Variables, Version,
    layout::{GLayout, Layout},
    memory::{read_u64, read_words},
    stack::{Registers, Stack, Unwinder, Window},
    threads::read_machines,
};
use crate::symbol::WordHashing;

/// The most goroutines read.
const MAX_GOROUTINES: u64 = 10_000_000;

/// How many goroutines are read at once.
const BATCH: usize = 256;

/// How often a goroutine that changes is read.
const ATTEMPTS: usize = 4;

/// How much of a stack is read at first: most goroutines that wait use less.
const FIRST_PIECE: u64 = 4 << 10;

/// The largest stack (`maxstacksize`, 1 GB, rounded up; `src/runtime/proc.go`).
const MAX_STACK: u64 = 1 << 30;

/// `_Gscan` (`runtime2.go`): the garbage collector looks at the stack.
const SCAN: u32 = 0x1000;

/// States (`runtime2.go`). A goroutine that leaked (from Go 1.26 on) waits for what cannot come.
mod state {
    pub const IDLE: u32 = 0;
    pub const RUNNABLE: u32 = 1;
    pub const RUNNING: u32 = 2;
    pub const SYSCALL: u32 = 3;
    pub const WAITING: u32 = 4;
    pub const DEAD: u32 = 6;
    pub const PREEMPTED: u32 = 9;
    pub const LEAKED: u32 = 10;
    pub const DEAD_EXTRA: u32 = 11;
}

/// Reads the goroutines, in the order of `allgs`. Stacks end with the outermost function, such as `runtime.goexit`, and have 256
/// frames at most, which is more than `runtime/pprof` shows. Every address is to be looked up one byte before it, as return
/// addresses are: where an instruction was interrupted, or is yet to be executed, one is added to its address.
///
/// # Errors
/// [`GoError::Layout`] when `allgs` is not known, or when what is there contradicts the layout; [`GoError::Memory`].
pub fn read_goroutines(
    memory: &dyn Memory,
    layout: &Layout,
    variables: &Variables,
    sizes: &dyn FrameSizes,
) -> Result<Goroutines, GoError> {
    let allgs = variables.allgs;
    let allgs = allgs.ok_or_else(|| GoError::Layout("runtime.allgs was not found".to_owned()))?;
    let mut reader = Reader {
        memory,
        layout,
        unwinder: Unwinder::new(sizes),
        threads: HashMap::new(),
        found: Goroutines::default(),
        confirmed: 0,
    };
    if let Some(allm) = variables.allm {
        let machines = read_machines(memory, layout, allm)?;
        reader.threads = machines.iter().map(|m| (m.address, m.id)).collect();
    }
    for batch in read_pointers(memory, allgs)?.chunks(BATCH) {
        let mut left = batch.to_vec();
        for _ in 0..ATTEMPTS {
            left = reader.read_batch(&left);
        }
        reader.found.torn += left.len() as u64;
    }
    let Reader { found, confirmed, .. } = reader;
    if confirmed == 0 || found.torn > confirmed {
        let Version { major, minor } = layout.version;
        return Err(GoError::Layout(format!(
            "the goroutines do not look like those of Go {major}.{minor}: {confirmed} pass, {} do not",
            found.torn
        )));
    }
    Ok(found)
}

/// Goroutines that do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoroutineGroup {
    /// One of them, whose status, reason, stack and origin are those of all.
    pub example: Goroutine,
    /// Their ids, ascending.
    pub ids: Vec<u64>,
}

/// Groups goroutines with the same status, wait reason, stack, function and origin; the largest group first.
pub fn group(goroutines: &[Goroutine]) -> Vec<GoroutineGroup> {
    let mut groups = HashMap::<_, GoroutineGroup, WordHashing>::default();
    for goroutine in goroutines {
        let key = (
            goroutine.status,
            goroutine.wait_reason,
            goroutine.start,
            goroutine.created_at,
            &goroutine.stack,
        );
        let group = groups.entry(key).or_insert_with(|| GoroutineGroup {
            example: goroutine.clone(),
            ids: Vec::new(),
        });
        group.ids.push(goroutine.id);
    }
    let mut groups: Vec<GoroutineGroup> = groups.into_values().collect();
    for group in &mut groups {
        group.ids.sort_unstable();
    }
    groups.sort_by(|a, b| (b.ids.len(), &a.ids).cmp(&(a.ids.len(), &b.ids)));
    groups
}

/// The pointers in `allgs`.
fn read_pointers(memory: &dyn Memory, allgs: u64) -> Result<Vec<u64>, GoError> {
    for _ in 0..ATTEMPTS {
        let slice = read_words(memory, allgs, 3)?;
        let [array, length, capacity] = slice[..] else {
            break;
        };
        if length == 0 || length > capacity || length > MAX_GOROUTINES {
            break;
        }
        let pointers = read_words(memory, array, length as usize);
        // The array moves when it grows.
        if read_u64(memory, allgs)? == array {
            return pointers;
        }
    }
    Err(GoError::Layout(
        "runtime.allgs is no list of goroutines".to_owned(),
    ))
}

/// What is read of a `g`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct G {
    status: u32,
    goid: u64,
    stack_lo: u64,
    stack_hi: u64,
    sched_sp: u64,
    sched_pc: u64,
    sched_bp: u64,
    sched_g: u64,
    syscall_sp: u64,
    syscall_pc: u64,
    syscall_bp: Option<u64>,
    wait_since: u64,
    wait_reason: u8,
    m: u64,
    locked_m: u64,
    parent_goid: u64,
    gopc: u64,
    startpc: u64,
}

impl G {
    fn parse(layout: &GLayout, bytes: &[u8]) -> Self {
        let word = |offset: u64| {
            let word = bytes.get(offset as usize..).and_then(|rest| rest.first_chunk());
            word.map_or(0, |word| u64::from_ne_bytes(*word))
        };
        Self {
            status: word(layout.status) as u32 & !SCAN,
            goid: word(layout.goid),
            stack_lo: word(layout.stack_lo),
            stack_hi: word(layout.stack_hi),
            sched_sp: word(layout.sched_sp),
            sched_pc: word(layout.sched_pc),
            sched_bp: word(layout.sched_bp),
            sched_g: word(layout.sched_g),
            syscall_sp: word(layout.syscall_sp),
            syscall_pc: word(layout.syscall_pc),
            syscall_bp: layout.syscall_bp.map(word),
            wait_since: word(layout.wait_since),
            wait_reason: word(layout.wait_reason) as u8,
            m: word(layout.m),
            locked_m: word(layout.locked_m),
            parent_goid: layout.parent_goid.map_or(0, word),
            gopc: word(layout.gopc),
            startpc: word(layout.startpc),
        }
    }

    fn is_left_out(&self) -> bool {
        matches!(self.status, state::IDLE | state::DEAD | state::DEAD_EXTRA)
    }

    fn is_waiting(&self) -> bool {
        matches!(self.status, state::WAITING | state::LEAKED)
    }

    /// Where its stack is walked from; `None` when it runs.
    fn registers(&self) -> Option<Registers> {
        if self.status == state::RUNNING {
            return None;
        }
        // In a system call, `sched` may be that of the scheduler's own way in (`gentraceback`, `unwinder.initAt`).
        Some(if self.syscall_sp != 0 {
            Registers {
                sp: self.syscall_sp,
                pc: self.syscall_pc,
                bp: self.syscall_bp,
            }
        } else {
            Registers {
                sp: self.sched_sp,
                pc: self.sched_pc,
                bp: Some(self.sched_bp),
            }
        })
    }

    /// Whether this can be a goroutine at that address.
    fn is_plausible(&self, address: u64) -> bool {
        let size = self.stack_hi.wrapping_sub(self.stack_lo);
        let is_known = matches!(
            self.status,
            state::RUNNABLE
                | state::RUNNING
                | state::SYSCALL
                | state::WAITING
                | state::PREEMPTED
                | state::LEAKED
        );
        let is_on_stack = |sp: u64| sp >= self.stack_lo && sp < self.stack_hi && sp.is_multiple_of(8);
        is_known
            && self.sched_g == address
            && self.goid != 0
            && size.is_power_of_two()
            && size <= MAX_STACK
            && self.registers().is_none_or(|registers| is_on_stack(registers.sp))
            // Only what has entered a system call, and not yet left it, has a stack pointer of then.
            && !(self.is_waiting() && self.syscall_sp != 0)
    }
}

/// Reads goroutines batch by batch.
struct Reader<'a> {
    memory: &'a dyn Memory,
    layout: &'a Layout,
    unwinder: Unwinder<'a>,
    /// The kernel's ids of threads, by the address of their `m`.
    threads: HashMap<u64, u32>,
    found: Goroutines,
    /// Goroutines of which the function was known, and is one.
    confirmed: u64,
}

impl Reader<'_> {
    /// Reads these goroutines, and gives those that changed meanwhile, or that cannot be goroutines.
    fn read_batch(&mut self, pointers: &[u64]) -> Vec<u64> {
        let mut left = Vec::new();
        let mut live = Vec::new();
        for (&address, g) in pointers.iter().zip(self.read_heads(pointers)) {
            match g {
                Some(g) if g.is_left_out() => {}
                Some(g) if self.is_goroutine(address, &g) => live.push((address, g)),
                _ => left.push(address),
            }
        }
        let stacks = self.read_stacks(&live);
        let addresses: Vec<u64> = live.iter().map(|&(address, _)| address).collect();
        let again = self.read_heads(&addresses);
        for (((address, g), bytes), again) in live.into_iter().zip(stacks).zip(again) {
            let stack = self.walk(&g, bytes);
            if again == Some(g) && !stack.is_torn {
                self.add(&g, stack);
            } else {
                left.push(address);
            }
        }
        left
    }

    fn read_heads(&self, pointers: &[u64]) -> Vec<Option<G>> {
        let length = self.layout.g.startpc as usize + 8;
        let mut bytes = vec![0; length * pointers.len()];
        let buffers = bytes.chunks_exact_mut(length);
        let mut pieces: Vec<Piece<'_>> = pointers.iter().zip(buffers).map(piece).collect();
        self.memory.read_many(&mut pieces);
        let parse = |piece: &Piece<'_>| piece.is_read.then(|| G::parse(&self.layout.g, piece.buffer));
        pieces.iter().map(parse).collect()
    }

    /// The innermost part of each stack; empty where there is none.
    fn read_stacks(&self, live: &[(u64, G)]) -> Vec<Vec<u8>> {
        let begin = |g: &G| g.registers().map_or(g.stack_hi, |registers| registers.sp);
        let length = |g: &G| g.stack_hi.saturating_sub(begin(g)).min(FIRST_PIECE) as usize;
        let mut stacks: Vec<Vec<u8>> = live.iter().map(|(_, g)| vec![0; length(g)]).collect();
        let begins: Vec<u64> = live.iter().map(|(_, g)| begin(g)).collect();
        let buffers = stacks.iter_mut().map(Vec::as_mut_slice);
        let mut pieces: Vec<Piece<'_>> = begins.iter().zip(buffers).map(piece).collect();
        self.memory.read_many(&mut pieces);
        let is_read: Vec<bool> = pieces.iter().map(|piece| piece.is_read).collect();
        for (stack, _) in stacks.iter_mut().zip(is_read).filter(|(_, is_read)| !is_read) {
            stack.clear();
        }
        stacks
    }

    /// Whether it is a goroutine, as far as its fields and the code they point to tell.
    fn is_goroutine(&mut self, address: u64, g: &G) -> bool {
        if !g.is_plausible(address) {
            return false;
        }
        let has_code = self.unwinder.place(g.sched_pc).entry.is_some();
        let mut is_entry = |pc: u64| pc == 0 || self.unwinder.place(pc).entry == Some(pc);
        !has_code || (is_entry(g.startpc) && (g.gopc == 0 || self.unwinder.place(g.gopc).entry.is_some()))
    }

    fn walk(&mut self, g: &G, bytes: Vec<u8>) -> Stack {
        match g.registers() {
            Some(registers) => {
                let mut window = Window::new(self.memory, registers.sp, bytes, g.stack_hi);
                self.unwinder.walk(registers, &mut window)
            }
            None => Stack::default(),
        }
    }

    fn add(&mut self, g: &G, stack: Stack) {
        // Threads that C code made have goroutines that nothing started.
        self.confirmed += u64::from(g.startpc != 0);
        let wait_reasons = self.layout.wait_reasons;
        let wait_reason = wait_reasons.get(usize::from(g.wait_reason)).copied();
        let thread = match g.status {
            state::RUNNING | state::SYSCALL => g.m,
            _ => g.locked_m,
        };
        let thread = self.thread_id(thread);
        self.found.all.push(Goroutine {
            id: g.goid,
            status: match g.status {
                state::RUNNABLE => GoStatus::Runnable,
                state::RUNNING => GoStatus::Running,
                state::SYSCALL => GoStatus::Syscall,
                state::WAITING => GoStatus::Waiting,
                other => GoStatus::Other(other),
            },
            wait_reason: wait_reason.filter(|_| g.is_waiting()).unwrap_or(""),
            wait_since: if g.is_waiting() { g.wait_since } else { 0 },
            parent: g.parent_goid,
            created_at: g.gopc,
            start: g.startpc,
            stack: stack.frames,
            is_complete: stack.is_complete,
            is_locked: g.locked_m != 0,
            thread,
        });
    }

    fn thread_id(&mut self, m: u64) -> u32 {
        let (memory, procid) = (self.memory, self.layout.m.procid);
        if m == 0 {
            return 0;
        }
        *self.threads.entry(m).or_insert_with(|| {
            let id = m
                .checked_add(procid)
                .and_then(|procid| read_u64(memory, procid).ok());
            id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0)
        })
    }
}

fn piece<'b>((&address, buffer): (&u64, &'b mut [u8])) -> Piece<'b> {
    Piece {
        address,
        buffer,
        is_read: false,
    }
}
