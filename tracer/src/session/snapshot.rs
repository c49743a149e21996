//! From the kernel's books to a snapshot.

use std::time::Duration;

use memtrace_ebpf::handles::Class;
use memtrace_ebpf::layout::{Counter, EndReason, OVERFLOW_STACK, TICK_SHIFT};

use super::history::Reading;
use crate::{
    kernel::{Books, Counters, KernelError, Live, RawStack},
    snapshot::{Losses, Site},
};

/// The sums that the status line shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Bytes that live now.
    pub live_bytes: u64,
    /// Blocks that live now.
    pub live_objects: u64,
    /// Descriptors that the processes have open, if they are traced and the kernel counts them.
    pub open_fds: Option<u64>,
    /// Bytes that were mapped while tracing and still are, if mappings are traced.
    pub mapped_bytes: Option<u64>,
    /// Events that could not be recorded.
    pub not_recorded: u64,
}

/// The live bytes of every stack, by index.
pub fn live_bytes(books: &Books, count: usize) -> Vec<u64> {
    (0..count)
        .map_while(|id| books.stack(id))
        .map(|stack| match stack.class == Class::Heap as u8 {
            true => books.whole(Live::of(&stack).bytes),
            false => 0,
        })
        .collect()
}

/// The sums over all stacks, and what these address spaces lost.
pub fn totals(books: &Books, count: usize, spaces: impl Iterator<Item = u32>) -> Totals {
    let counters = spaces.map(|space| books.counters(space));
    let not_recorded = counters
        .map(|counters| books.whole(counters.get(Counter::BlocksFull)) + counters.get(Counter::ThreadsFull))
        .sum();
    let mut totals = Totals {
        not_recorded,
        ..Totals::default()
    };
    let stacks = (0..count).map_while(|id| books.stack(id));
    for stack in stacks.filter(|stack| stack.class == Class::Heap as u8) {
        let live = Live::of(&stack);
        totals.live_objects += books.whole(live.objects);
        totals.live_bytes += books.whole(live.bytes);
    }
    totals
}

/// The live blocks that are at least this old, by the index of their stack.
///
/// # Errors
/// When the kernel does not let them be read.
pub fn old_blocks(books: &Books, min_age: Duration) -> Result<Vec<Live>, KernelError> {
    let now = now_ticks();
    let ticks = min_age.as_nanos() >> TICK_SHIFT;
    books.live_blocks(|_, block| {
        // The kernel's clock may be ahead by a tick, and both wrap.
        let age = (now as u32).wrapping_sub(block.born) as i32;
        u128::from(age.max(0).unsigned_abs()) >= ticks
    })
}

/// Sites of an address space, losses, and failed calls. With `chosen`, only these blocks are live, and those that it
/// inherited.
pub fn read(
    books: &Books,
    count: usize,
    space: u32,
    earlier: Option<&Reading>,
    chosen: Option<&[Live]>,
) -> (Vec<Site>, Losses, u64) {
    let stacks = books.used_stacks(count, space, Class::Heap);
    let counters = books.counters(space);
    let losses = losses(books, &counters, &stacks);
    let now = now_ticks();
    let sites = stacks
        .into_iter()
        .map(|stack| {
            let live = match chosen {
                Some(chosen) if stack.books.origin == 0 => {
                    chosen.get(stack.id as usize).copied().unwrap_or_default()
                }
                _ => Live::of(&stack.books),
            };
            site(books, stack, &live, now, earlier)
        })
        .collect();
    (sites, losses, counters.get(Counter::FailedCalls))
}

fn site(books: &Books, stack: RawStack, live: &Live, now: u64, earlier: Option<&Reading>) -> Site {
    // The sum wraps, and so does the product: their difference is the sum of the ages all the same.
    let ages = live.objects.wrapping_mul(now).wrapping_sub(live.born_sum) as i64;
    let mean_ticks = ages.max(0) as u64 / live.objects.max(1);
    let before = earlier.map_or(0, |reading| {
        reading.live_bytes.get(stack.id as usize).copied().unwrap_or(0)
    });
    let live_bytes = books.whole(live.bytes);
    Site {
        inherited: stack.books.origin != 0,
        frames: stack.frames,
        end: stack.end,
        alloc_objects: books.whole(stack.books.alloc_objects),
        alloc_bytes: books.whole(stack.books.alloc_bytes),
        live_objects: books.whole(live.objects),
        live_bytes,
        live_samples: live.samples,
        mean_age: Duration::from_nanos(mean_ticks << TICK_SHIFT),
        recent_change: live_bytes as i64 - before as i64,
    }
}

fn losses(books: &Books, counters: &Counters, stacks: &[RawStack]) -> Losses {
    let without_stack = stacks.iter().find(|stack| stack.id == OVERFLOW_STACK);
    Losses {
        blocks_full: books.whole(counters.get(Counter::BlocksFull)),
        blocks_full_bytes: books.whole(counters.get(Counter::BlocksFullBytes)),
        threads_full: counters.get(Counter::ThreadsFull),
        without_stack: without_stack.map_or(0, |stack| books.whole(stack.books.alloc_objects)),
        unmatched_frees: counters.get(Counter::UnmatchedFrees),
        missed_frees: counters.get(Counter::MissedFrees),
        abandoned_calls: counters.get(Counter::AbandonedCalls),
        unmatched_returns: counters.get(Counter::UnmatchedReturns),
        nested_too_deep: counters.get(Counter::NestedTooDeep),
        unreadable_results: counters.get(Counter::UnreadableResults),
        stale_mappings: counters.get(Counter::StaleMappings),
        not_inherited: counters.get(Counter::NotInherited),
        truncated: truncated(books, stacks),
    }
}

fn truncated(books: &Books, stacks: &[RawStack]) -> Vec<(EndReason, u64)> {
    let incomplete = |reason: &EndReason| !matches!(reason, EndReason::Complete | EndReason::Running);
    EndReason::ALL
        .into_iter()
        .filter(incomplete)
        .map(|reason| {
            let blocks = stacks
                .iter()
                .filter(|stack| stack.end == reason)
                .map(|s| s.books.alloc_objects)
                .sum();
            (reason, books.whole(blocks))
        })
        .filter(|&(_, blocks)| blocks > 0)
        .collect()
}

/// The clock that blocks are stamped with.
fn now_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    // Blocks keep the lower 32 bits.
    let nanoseconds = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    u64::from((nanoseconds >> TICK_SHIFT) as u32)
}
