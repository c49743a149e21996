//! Where the resident memory is.

use memtrace_ebpf::handles::MappingKind;

use super::{Account, Survey, instances::Owner};
use crate::{
    snapshot::{MemoryPart, MemorySummary},
    text,
};

/// What is known of the heap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapState {
    /// Bytes of the blocks that live, as the heap profile has them; `None` if the heap was not traced.
    pub live_bytes: Option<u64>,
    /// Of blocks whose place is known: their bytes in each of [`Survey::ranges`]; empty if no place is.
    pub placed: Vec<u64>,
    /// Resident bytes of the heap when tracing began: of `[heap]`.
    pub resident_at_attach: u64,
}

/// Resident bytes, by what they are.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    heap: u64,
    /// Bytes of the heap's memory that are mapped, resident or not.
    heap_mapped: u64,
    go_heap: u64,
    mapped: u64,
    untraced: u64,
    stacks: u64,
    files: u64,
    before: u64,
}

impl Survey {
    /// Divides the resident memory, of `rss` bytes as `/proc/PID/smaps_rollup` says, into parts that add up to it.
    pub fn summary(&self, rss: u64, heap: &HeapState, is_allocator: &dyn Fn(u32) -> bool) -> MemorySummary {
        let mut sums = self.sums(is_allocator);
        let placed = self.take_placed(&mut sums, heap, is_allocator);
        let mut notes = Vec::new();
        let mut parts = heap_parts(&mut sums, heap, placed, &mut notes);
        parts.extend([
            ("Go heap, with the stacks of goroutines", sums.go_heap),
            ("mapped since the attach", sums.mapped),
            ("mapped by calls that memtrace does not trace", sums.untraced),
            ("stacks of threads", sums.stacks),
            ("files: the program, its libraries, mapped files", sums.files),
            ("other memory from before the attach", sums.before),
        ]);
        let mut parts: Vec<MemoryPart> = parts.into_iter().map(|(what, bytes)| part(what, bytes)).collect();
        let sum: u64 = parts.iter().map(|part| part.bytes).sum();
        if sum > rss {
            take_off(&mut parts, sum - rss);
            notes.push(format!(
                "The process went on while it was read: the parts came to {} more than its resident memory, which is taken \
                 off the largest.",
                text::bytes(sum - rss)
            ));
        }
        parts.push(part("not attributed", rss.saturating_sub(sum)));
        parts.retain(|part| part.bytes > 0);
        notes.extend(self.notes());
        if self.swap > 0 {
            notes.push(format!(
                "Another {} is swapped out, and not among these numbers.",
                text::bytes(self.swap)
            ));
        }
        MemorySummary { rss, parts, notes }
    }

    fn sums(&self, is_allocator: &dyn Fn(u32) -> bool) -> Sums {
        let mut sums = Sums::default();
        for (account, balance) in &self.accounts {
            let is_heap = self.is_in_heap(account, is_allocator);
            if is_heap {
                sums.heap_mapped += balance.held;
            }
            let of_go = self.go_heap.get(account).copied().unwrap_or(0);
            if let Some(sum) = sums.of(account, is_heap) {
                *sum += balance.resident - of_go;
                sums.go_heap += of_go;
            }
        }
        sums
    }
}

impl Survey {
    /// Moves the resident bytes that the blocks can have whose place is known out of the sums; of each range no more than is in
    /// memory of it.
    fn take_placed(&self, sums: &mut Sums, heap: &HeapState, is_allocator: &dyn Fn(u32) -> bool) -> u64 {
        let mut taken = 0;
        for (area, &live) in self.areas.iter().zip(&heap.placed) {
            let bytes = live.min(area.resident);
            let is_heap = self.is_in_heap(&area.account, is_allocator);
            if let Some(sum) = sums.of(&area.account, is_heap) {
                *sum = sum.saturating_sub(bytes);
                taken += bytes;
            }
        }
        taken
    }

    fn is_in_heap(&self, account: &Account, is_allocator: &dyn Fn(u32) -> bool) -> bool {
        account.owner == Owner::Brk || self.is_heap(account, is_allocator)
    }
}

impl Sums {
    /// The sum that an account belongs to; `None` if nobody can tell.
    fn of(&mut self, account: &Account, is_heap: bool) -> Option<&mut u64> {
        Some(match (account.owner, account.kind) {
            (Owner::Unmapped, _) => return None,
            _ if is_heap => &mut self.heap,
            (Owner::FirstStack, _) | (_, MappingKind::Stack) => &mut self.stacks,
            // The vDSO is a library that the kernel brings.
            (Owner::Kernel, _) | (_, MappingKind::File) => &mut self.files,
            (Owner::Before, _) => &mut self.before,
            (Owner::Untraced, _) => &mut self.untraced,
            _ => &mut self.mapped,
        })
    }
}

/// The parts of the heap, of which `placed` bytes are taken off already. Live blocks whose place is not known, and which do not
/// fit into what is known to be the heap's, are in memory from before.
fn heap_parts(
    sums: &mut Sums,
    heap: &HeapState,
    placed: u64,
    notes: &mut Vec<String>,
) -> Vec<(&'static str, u64)> {
    let Some(live) = heap.live_bytes else {
        return vec![("heap (not traced)", sums.heap)];
    };
    let unplaced = live.saturating_sub(heap.placed.iter().sum());
    let elsewhere = unplaced.saturating_sub(sums.heap_mapped).min(sums.before);
    sums.before -= elsewhere;
    let rest = sums.heap - unplaced.min(sums.heap);
    let resident = placed + unplaced.min(sums.heap) + elsewhere;
    if resident < live {
        notes.push(format!(
            "The heap profile has {} of live blocks; at least {} of them are not in memory: never written to, swapped out, or \
             only an estimate.",
            text::bytes(live),
            text::bytes(live - resident)
        ));
    }
    let before = rest.min(heap.resident_at_attach);
    if before > 0 {
        notes.push(
            "What the heap has from before the attach may be less, and the allocator's overhead more: memtrace cannot \
             tell which blocks from before were freed."
                .to_owned(),
        );
    }
    vec![
        ("live heap blocks, at most", resident),
        ("heap from before the attach, at most", before),
        ("allocator overhead and fragmentation", rest - before),
    ]
}

fn part(what: &str, bytes: u64) -> MemoryPart {
    MemoryPart {
        what: what.to_owned(),
        bytes,
    }
}

/// Makes the parts smaller by this, the largest first.
fn take_off(parts: &mut [MemoryPart], mut excess: u64) {
    while excess > 0 {
        let Some(largest) = parts.iter_mut().max_by_key(|part| part.bytes) else {
            return;
        };
        let taken = excess.min(largest.bytes);
        if taken == 0 {
            return;
        }
        largest.bytes -= taken;
        excess -= taken;
    }
}
