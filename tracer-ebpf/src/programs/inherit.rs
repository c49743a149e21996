//! A forked process has its parent's heap: its books begin with a copy of the parent's live sums.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_NOEXIST},
    macros::tracepoint,
    programs::TracePointContext,
};
use memtrace_ebpf::handles::Class;
use memtrace_ebpf::layout::{Block, BlockKey, Counter, FREED, GONE, Stack, tail};

use super::{
    count_for, heap, ids,
    maps::{self, Fork},
    stack::{free_index, stack_key},
};

/// Stacks looked at in one program before it calls the next; the kernel allows 33 calls.
const STACKS_AT_ONCE: u32 = 2048;
/// How many generations of ancestors a block is looked for in.
const GENERATIONS: u32 = 4;
/// How many younger siblings of each are looked at.
const SIBLINGS: u32 = 16;

/// Begins to copy the parent's books for the child. The parent has just made it, and it does not run yet.
#[inline(always)]
pub fn begin<C: EbpfContext>(ctx: &C, parent: u32, child: u32) {
    // SAFETY: the pointers are to words of map's elements. Of two threads that fork at once, one child may be left out of the
    // list of siblings: what its parent frees first then looks live in the elder ones.
    unsafe {
        if let Some(ledger) = maps::LEDGERS.get_ptr_mut(&parent) {
            let elder = (*ledger).last_child;
            (*ledger).last_child = child;
            (*ledger).forks += 1;
            if let Some(own) = maps::LEDGERS.get_ptr_mut(&child) {
                (*own).parent = parent;
                (*own).nth = (*ledger).forks;
            }
            if let Some(elder) = maps::LEDGERS.get_ptr_mut(&elder) {
                (*elder).next_sibling = child;
            }
        }
    }
    let Some(control) = maps::CONTROL.get(0) else {
        return;
    };
    let used = control.next_stack.min(control.stacks) as u32;
    let fork = Fork {
        parent,
        child,
        next: 1,
        end: used,
    };
    if maps::FORKS.insert(&ids().1, &fork, BPF_ANY as u64).is_err() {
        return count_for(child, Counter::NotInherited, 1);
    }
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::FORK_TAILS.tail_call(ctx, tail::INHERIT) };
    count_for(child, Counter::NotInherited, 1);
}

/// Copies some stacks, then calls itself.
#[tracepoint]
fn inherit(ctx: TracePointContext) -> u32 {
    let (_, thread) = ids();
    let Some(fork) = maps::FORKS.get_ptr_mut(&thread) else {
        return 0;
    };
    // SAFETY: the element is this thread's.
    let fork = unsafe { &mut *fork };
    let first = fork.next;
    for i in 0..STACKS_AT_ONCE {
        let id = first.wrapping_add(i);
        if id >= fork.end {
            let _there = maps::FORKS.remove(&thread);
            return 0;
        }
        let Some(stack) = maps::STACKS.get_ptr(id) else {
            break;
        };
        // SAFETY: the pointer is to a map's element. Its sums may change, but not because of this process.
        let stack = unsafe { &*stack };
        let holds = stack.class == Class::Heap as u8 && stack.alloc_objects > stack.freed_objects;
        if stack.space == fork.parent && stack.ready != 0 && holds {
            copy_stack(id, fork.child);
        }
    }
    fork.next = first.wrapping_add(STACKS_AT_ONCE);
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::FORK_TAILS.tail_call(&ctx, tail::INHERIT) };
    count_for(fork.child, Counter::NotInherited, 1);
    0
}

/// Gives the child a stack with what lives of this one.
///
/// A function by itself, which the verifier follows once and not for each round of the loop.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn copy_stack(id: u32, child: u32) -> u32 {
    if let Some(stack) = maps::STACKS.get_ptr(id) {
        // SAFETY: the pointer is to a map's element. Its sums may change, but not because of this process.
        copy(unsafe { &*stack }, id, child);
    }
    0
}

#[inline(always)]
fn copy(stack: &Stack, id: u32, child: u32) {
    let Some(new) = free_index() else {
        return count_for(child, Counter::NotInherited, 1);
    };
    let Some(slot) = maps::STACKS.get_ptr_mut(new) else {
        return count_for(child, Counter::NotInherited, 1);
    };
    let origin = if stack.origin != 0 { stack.origin } else { id };
    let key = copy_key(child, origin);
    // SAFETY: the element was reserved for this stack.
    unsafe {
        (*slot).alloc_objects = stack.alloc_objects.wrapping_sub(stack.freed_objects);
        (*slot).alloc_bytes = stack.alloc_bytes.wrapping_sub(stack.freed_bytes);
        (*slot).born_sum = stack.born_sum;
        (*slot).live_samples = stack.live_samples;
        (*slot).key = key;
        (*slot).end = stack.end;
        (*slot).space = child;
        (*slot).origin = origin;
        (*slot).class = Class::Heap as u8;
        (*slot).kind = 0;
        (*slot).ready = 1;
    }
    let _full = maps::STACK_IDS.insert(&key, &new, BPF_NOEXIST as u64);
}

/// Books that a process freed a block that it has from an ancestor; false if it has not.
///
/// Where some blocks are left out on purpose, it may have freed that before, and have one of its own there now.
#[inline(never)]
pub fn free(space: u32, address: u64) -> bool {
    let is_selective = maps::CONTROL.get(0).is_some_and(|control| control.selective != 0);
    let mut heir = space;
    // Which of the heir's forks led to the process.
    let mut fork = u32::MAX;
    for _ in 0..GENERATIONS {
        if is_selective && find(heir | FREED, address).is_some_and(|block| block.forks < fork) {
            return false;
        }
        let Some(ledger) = maps::LEDGERS.get_ptr(&heir) else {
            return false;
        };
        // SAFETY: the pointer is to a map's element.
        let (ancestor, nth) = unsafe { ((*ledger).parent, (*ledger).nth) };
        if ancestor == 0 {
            return false;
        }
        // A younger block is the ancestor's alone.
        let found = freed_since(heir, address).or_else(|| find(ancestor, address));
        if let Some(block) = found.filter(|block| block.forks < nth) {
            return book_inherited(space, address, block, is_selective);
        }
        heir = ancestor;
        fork = nth;
    }
    false
}

/// How often the process has forked, for [`Block::forks`].
#[inline(always)]
pub fn forks(space: u32) -> u32 {
    match maps::LEDGERS.get_ptr(&space) {
        // SAFETY: the pointer is to a map's element.
        Some(ledger) => unsafe { (*ledger).forks },
        None => 0,
    }
}

/// Keeps what is known of a block that is about to be freed, for the processes that were forked before. At any moment they
/// find it here or among the live ones.
#[inline(always)]
pub fn keep_for_children(key: &BlockKey) {
    let Some(ledger) = maps::LEDGERS.get_ptr(&key.space) else {
        return;
    };
    let Some(block) = find(key.space, key.address) else {
        return;
    };
    // SAFETY: the pointer is to a map's element.
    let (last_child, forks) = unsafe { ((*ledger).last_child, (*ledger).forks) };
    if block.forks >= forks {
        return;
    }
    let gone = BlockKey {
        space: last_child | GONE,
        ..*key
    };
    // If there is one, it is the one that was there at the fork.
    let _older = maps::LIVE.insert(&gone, &block, BPF_NOEXIST as u64);
}

/// What the parent of an address space freed at this address first, since it forked that.
#[inline(always)]
fn freed_since(space: u32, address: u64) -> Option<Block> {
    let mut child = space;
    for _ in 0..SIBLINGS {
        if let Some(block) = find(child | GONE, address) {
            return Some(block);
        }
        let ledger = maps::LEDGERS.get_ptr(&child)?;
        // SAFETY: the pointer is to a map's element.
        child = unsafe { (*ledger).next_sibling };
        if child == 0 {
            break;
        }
    }
    None
}

#[inline(always)]
fn find(space: u32, address: u64) -> Option<Block> {
    let key = BlockKey {
        address,
        space,
        _pad: 0,
    };
    let block = maps::LIVE.get_ptr(&key)?;
    // SAFETY: the pointer is to a map's element.
    Some(unsafe { *block })
}

#[inline(always)]
fn book_inherited(space: u32, address: u64, block: Block, is_selective: bool) -> bool {
    let Some(copy) = maps::STACK_IDS.get_ptr(&copy_key(space, block.stack)) else {
        return false;
    };
    // SAFETY: the pointer is to a map's element.
    let stack = unsafe { *copy };
    if is_selective {
        let key = BlockKey {
            address,
            space: space | FREED,
            _pad: 0,
        };
        let freed = Block {
            forks: forks(space),
            ..block
        };
        // Of two threads, or without room, none books it twice.
        if maps::LIVE.insert(&key, &freed, BPF_NOEXIST as u64).is_err() {
            return false;
        }
    }
    heap::book_free(&Block { stack, ..block });
    true
}

/// The key of an inherited stack in [`maps::STACK_IDS`].
#[inline(always)]
fn copy_key(space: u32, origin: u32) -> u64 {
    stack_key(space, !(origin as u64))
}
