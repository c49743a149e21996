//! The runtime's threads, from `runtime.allm`.

use std::collections::HashSet;

use super::{
    GoError, GoThread, Memory, ThreadHold, Variables, Version,
    layout::{Layout, MLayout},
    memory::{read_u32, read_u64},
};

/// The most threads read: the runtime itself stops at 10,000 unless told otherwise (`sched.maxmcount`).
const MAX_THREADS: usize = 100_000;

/// How often the list is read when a thread ends meanwhile.
const ATTEMPTS: usize = 4;

/// `PID_MAX_LIMIT` (`include/linux/threads.h`).
const MAX_THREAD_ID: u64 = 4 << 20;

/// The length of `m.createstack`.
const CREATE_DEPTH: usize = 32;

/// `_Grunning` and `_Gsyscall` (`runtime2.go`).
const RUNNING: u32 = 2;
const SYSCALL: u32 = 3;

/// `_Gscan` (`runtime2.go`): the garbage collector looks at the stack.
const SCAN: u32 = 0x1000;

/// An `m`, as far as it is read.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// Where it is (virtual address).
    pub address: u64,
    /// The kernel's id of the thread; 0 while it is being made.
    pub id: u32,
    curg: u64,
    lockedg: u64,
    is_in_c: bool,
    created_by: Vec<u64>,
}

/// Reads the threads, newest first. Ids are those of the target's own PID namespace. Threads that only C code made are there
/// if they have called Go; those that C code had made and has ended may be there with their last id.
///
/// # Errors
/// [`GoError::Layout`] when `allm` is not known, or when what is there contradicts the layout; [`GoError::Memory`].
pub fn read_threads(
    memory: &dyn Memory,
    layout: &Layout,
    variables: &Variables,
) -> Result<Vec<GoThread>, GoError> {
    let allm = variables.allm;
    let allm = allm.ok_or_else(|| GoError::Layout("runtime.allm was not found".to_owned()))?;
    let machines = read_machines(memory, layout, allm)?;
    let threads = machines
        .into_iter()
        .map(|machine| describe(memory, layout, machine));
    Ok(threads.collect())
}

/// Reads every `m`.
pub(super) fn read_machines(
    memory: &dyn Memory,
    layout: &Layout,
    allm: u64,
) -> Result<Vec<Machine>, GoError> {
    for _ in 1..ATTEMPTS {
        if let Ok(machines) = walk(memory, layout, allm) {
            return Ok(machines);
        }
    }
    walk(memory, layout, allm)
}

fn walk(memory: &dyn Memory, layout: &Layout, allm: u64) -> Result<Vec<Machine>, GoError> {
    let mut machines = Vec::new();
    let mut seen = HashSet::new();
    let mut is_first_last = false;
    let mut address = read_u64(memory, allm)?;
    while address != 0 {
        if seen.len() >= MAX_THREADS || !seen.insert(address) {
            return Err(contradiction(layout));
        }
        let mut head = vec![0; layout.m.createstack as usize + CREATE_DEPTH * 8];
        memory
            .read(address, &mut head)
            .map_err(|source| GoError::Memory { address, source })?;
        let g0 = word(&head, layout.m.g0);
        // Every `m` has a `g0`, which points back.
        let owner = g0.checked_add(layout.g.m).map(|back| read_u64(memory, back));
        let id = word(&head, layout.m.procid);
        if g0 == 0 || !matches!(owner, Some(Ok(owner)) if owner == address) || id > MAX_THREAD_ID {
            return Err(contradiction(layout));
        }
        machines.push(parse(&layout.m, address, id as u32, &head));
        is_first_last = word(&head, layout.m.id) == 0 && id != 0;
        address = word(&head, layout.m.alllink);
    }
    // The first thread is at the end, and is never taken off the list (`mexit` in `src/runtime/proc.go`).
    if !is_first_last {
        return Err(contradiction(layout));
    }
    Ok(machines)
}

fn parse(layout: &MLayout, address: u64, id: u32, head: &[u8]) -> Machine {
    let created_by = (0..CREATE_DEPTH as u64).map(|frame| word(head, layout.createstack + frame * 8));
    Machine {
        address,
        id,
        curg: word(head, layout.curg),
        lockedg: word(head, layout.lockedg),
        is_in_c: head.get(layout.incgo as usize).is_some_and(|&byte| byte != 0),
        created_by: created_by.take_while(|&frame| frame != 0).collect(),
    }
}

/// Says what holds a thread. A goroutine that ends meanwhile leaves its thread idle.
fn describe(memory: &dyn Memory, layout: &Layout, machine: Machine) -> GoThread {
    let status = || {
        let address = machine.curg.checked_add(layout.g.status)?;
        read_u32(memory, address).ok().map(|status| status & !SCAN)
    };
    let hold = if machine.lockedg != 0 {
        ThreadHold::Locked
    } else if machine.is_in_c {
        ThreadHold::Cgo
    } else {
        match (machine.curg != 0).then(status).flatten() {
            Some(SYSCALL) => ThreadHold::Syscall,
            Some(RUNNING) => ThreadHold::Running,
            _ => ThreadHold::Idle,
        }
    };
    let g = match hold {
        ThreadHold::Locked => machine.lockedg,
        ThreadHold::Idle => 0,
        _ => machine.curg,
    };
    let goid = (g != 0).then(|| g.checked_add(layout.g.goid)).flatten();
    GoThread {
        id: machine.id,
        hold,
        goroutine: goid.and_then(|goid| read_u64(memory, goid).ok()).unwrap_or(0),
        created_by: machine.created_by,
    }
}

fn word(bytes: &[u8], offset: u64) -> u64 {
    let word = bytes.get(offset as usize..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u64::from_ne_bytes(*word))
}

fn contradiction(layout: &Layout) -> GoError {
    let Version { major, minor } = layout.version;
    GoError::Layout(format!(
        "the threads do not look like those of Go {major}.{minor}"
    ))
}
