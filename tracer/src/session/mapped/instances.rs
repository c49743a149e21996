//! What was mapped by one call, however many pieces are left of it.

use std::collections::HashMap;

use memtrace_ebpf::handles::{MapEvent, MappingKind};

/// Which [`Instance`].
pub(super) type Slot = u32;

/// Whose memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The code with this stack, an index into the stacks.
    Stack(u32),
    /// It was mapped when tracing began.
    Before,
    /// It was mapped by a call that is not in the log.
    Untraced,
    /// The part of the heap that `brk` made.
    Brk,
    /// The stack of the first thread.
    FirstStack,
    /// Pages that the kernel gives every process, such as the vDSO.
    Kernel,
    /// It was unmapped while it was looked at.
    Unmapped,
}

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    /// Whose it is.
    pub owner: Owner,
    /// What is mapped.
    pub kind: MappingKind,
    /// Whether these are stacks of threads that ended.
    pub cached: bool,
    /// Whether it is from before the fork that made the process.
    pub inherited: bool,
    /// Whether an allocator mapped it: it is part of the heap.
    pub in_allocator: bool,
}

impl Account {
    /// What the kernel and the C library make of themselves.
    pub(super) fn of(owner: Owner, kind: MappingKind) -> Self {
        Self {
            owner,
            kind,
            cached: false,
            inherited: false,
            in_allocator: false,
        }
    }
}

/// Bytes by whose they are.
pub type Held = HashMap<Account, u64>;

/// What one call mapped, or one area that was there before.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// Whose it is.
    pub account: Account,
    /// When it was mapped (`CLOCK_MONOTONIC`, nanoseconds), or its thread was made; 0 if it was there before.
    pub born: u64,
    /// Whether it was mapped with `MAP_GROWSDOWN`.
    pub grows_down: bool,
    /// The thread whose stack it is; 0 if none.
    pub user: u32,
    /// Bytes that are mapped.
    pub held: u64,
    /// Bytes that are being unmapped, and come back if that fails.
    pub leaving: u64,
}

impl Instance {
    /// What an event says.
    pub fn mapped(event: &MapEvent) -> Self {
        let mut account = Account::of(Owner::Stack(event.stack), MappingKind::from_u8(event.mapping));
        account.in_allocator = event.in_allocator != 0;
        Self {
            account,
            born: event.time,
            grows_down: event.flags & libc::MAP_GROWSDOWN as u32 != 0,
            user: 0,
            held: 0,
            leaving: 0,
        }
    }

    /// What was there before.
    pub fn before(kind: MappingKind) -> Self {
        Self {
            account: Account::of(Owner::Before, kind),
            born: 0,
            grows_down: false,
            user: 0,
            held: 0,
            leaving: 0,
        }
    }
}

/// All instances that have bytes. Their places are used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Instances {
    all: Vec<Option<Instance>>,
    free: Vec<Slot>,
}

impl Instances {
    /// Adds one.
    pub fn add(&mut self, instance: Instance) -> Slot {
        if let Some(slot) = self.free.pop() {
            self.all[slot as usize] = Some(instance);
            return slot;
        }
        self.all.push(Some(instance));
        (self.all.len() - 1) as Slot
    }

    /// The instance at a slot that is in use.
    pub fn get(&self, slot: Slot) -> Option<&Instance> {
        self.all.get(slot as usize)?.as_ref()
    }

    /// As [`Instances::get`].
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Instance> {
        self.all.get_mut(slot as usize)?.as_mut()
    }

    /// Changes the bytes of an instance, and forgets it when none are left.
    pub fn change(&mut self, slot: Slot, held: i64, leaving: i64) {
        let Some(instance) = self.get_mut(slot) else {
            return;
        };
        instance.held = instance.held.saturating_add_signed(held);
        instance.leaving = instance.leaving.saturating_add_signed(leaving);
        if instance.held == 0 && instance.leaving == 0 {
            self.all[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// Those in use.
    pub fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.all.iter().flatten()
    }

    /// As [`Instances::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.all.iter_mut().flatten()
    }
}
