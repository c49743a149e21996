//! Whose stack a mapping is.

use std::collections::HashMap;

use memtrace_ebpf::handles::{MapEvent, MappingKind};

use super::{
    MappedBooks,
    instances::{Owner, Slot},
};

/// The end of a thread may be logged before its beginning, which the thread that made it tells. An id is not used again so
/// soon (nanoseconds).
const LATE: u64 = 1_000_000_000;
/// How many ends are remembered before old ones are forgotten.
const ENDS: usize = 1024;
/// How far below the end of a mapping that was not asked for as a stack a thread's first stack pointer may be: musl puts its
/// thread-local memory there. It tells a stack from an arena that happens to hold one, such as those of Go's runtime.
const TOP: u64 = 64 << 10;

/// The threads whose stacks are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Threads {
    stacks: HashMap<u32, Slot>,
    /// When threads ended that have not been heard of.
    ended: HashMap<u32, u64>,
}

impl Threads {
    /// Notes the stack of a thread.
    pub fn runs_on(&mut self, thread: u32, slot: Slot) {
        self.stacks.insert(thread, slot);
    }

    fn remember_end(&mut self, thread: u32, time: u64) {
        if self.ended.len() >= ENDS {
            self.ended.retain(|_, ended| ended.abs_diff(time) < LATE);
        }
        self.ended.insert(thread, time);
    }

    fn has_ended(&mut self, thread: u32, time: u64) -> bool {
        let ended = self.ended.remove(&thread);
        ended.is_some_and(|ended| ended.abs_diff(time) < LATE)
    }
}

impl MappedBooks {
    /// The mapping that the thread begins to run on belongs to the code that made the thread, all of it: the C library maps
    /// the guard with the stack, and keeps both for other threads.
    pub(super) fn thread_started(&mut self, event: &MapEvent) {
        self.settle(event.thread);
        let has_ended = self.threads.has_ended(event.thread, event.time);
        let Some(piece) = event.begin.checked_sub(1).and_then(|top| self.map.get(top)) else {
            return;
        };
        let Some(instance) = self.instances.get_mut(piece.value) else {
            return;
        };
        let account = &mut instance.account;
        let is_stack = match account.kind {
            MappingKind::Stack => true,
            MappingKind::Anon => piece.end - event.begin <= TOP,
            MappingKind::File | MappingKind::Shared => false,
        };
        // A stack in a block of the heap is the heap's.
        if !is_stack || account.in_allocator {
            return;
        }
        account.owner = Owner::Stack(event.stack);
        account.kind = MappingKind::Stack;
        account.inherited = false;
        account.cached = has_ended;
        instance.born = event.time;
        instance.user = if has_ended { 0 } else { event.thread };
        if !has_ended {
            self.threads.runs_on(event.thread, piece.value);
        }
    }

    /// A stack that is still mapped is kept for the next thread.
    pub(super) fn thread_ended(&mut self, event: &MapEvent) {
        self.settle(event.thread);
        let Some(slot) = self.threads.stacks.remove(&event.thread) else {
            self.threads.remember_end(event.thread, event.time);
            return;
        };
        // The next thread may be on it by now.
        if let Some(instance) = self.instances.get_mut(slot)
            && instance.user == event.thread
        {
            instance.user = 0;
            instance.account.cached = true;
        }
    }
}
