//! What a profile says of itself in words: when, whose, what is covered, and what was lost.

use std::borrow::Cow;

use memtrace_ebpf::layout::EndReason;

use super::{
    stacks::{reason, truncated},
    subject::Subject,
};
use crate::{
    snapshot::{
        GoHeapState, GoHeapView, GoState, Growth, Growths, Holder, Holdings, Losses, Maker, Origin,
        Selection, Snapshot,
    },
    text::{self, printable},
    time::rfc3339,
};

/// The comments of the heap profile, one a line.
pub(super) fn heap(snapshot: &Snapshot) -> Vec<String> {
    let Snapshot { coverage, losses, .. } = snapshot;
    let mut lines = head(snapshot, Subject::Heap);
    lines.extend(chosen(snapshot));
    if coverage.allocators.is_empty() {
        lines.push("covered: nothing; empty values mean that memtrace could not look".to_owned());
    }
    lines.extend(
        coverage
            .allocators
            .iter()
            .map(|allocator| format!("covered: {}", printable(allocator))),
    );
    lines.extend(
        coverage
            .not_covered
            .iter()
            .map(|what| format!("not covered: {}", printable(what))),
    );
    if snapshot.failed_calls > 0 {
        lines.push(format!(
            "{}: allocator calls that returned no memory",
            snapshot.failed_calls
        ));
    }
    let counted = counted(losses);
    for Counted {
        count, what, is_loss, ..
    } in &counted
    {
        lines.push(format!(
            "{}: {count} {what}",
            if *is_loss { "lost" } else { "seen" }
        ));
    }
    if !counted.iter().any(|counted| counted.is_loss) {
        lines.push(NOTHING_LOST.to_owned());
    }
    lines.extend(incomplete_stacks(Subject::Heap, &losses.truncated));
    lines
}

/// The comments of a profile of descriptors or mappings, one a line.
pub(super) fn holdings(snapshot: &Snapshot, subject: Subject, holdings: &Holdings) -> Vec<String> {
    let mut lines = head(snapshot, subject);
    lines.extend(subject.coverage().iter().copied().map(str::to_owned));
    lines.extend(notes_and_losses(&holdings.notes, &holdings.losses));
    lines.extend(incomplete_stacks(subject, &truncated_holders(&holdings.holders)));
    lines
}

/// The comments of the heap profile of a Go runtime, one a line.
pub(super) fn go_heap(snapshot: &Snapshot, go: &GoState) -> Vec<String> {
    let mut lines = head(snapshot, Subject::GoHeap);
    if go.heap.as_ref().is_none_or(|heap| !heap.is_from_before()) {
        lines.pop();
    }
    let Some(heap) = &go.heap else {
        lines.push("empty values mean that memtrace could not look".to_owned());
        lines.extend(notes_and_losses(&go.notes, &[]));
        return lines;
    };
    lines.push(format!("Go runtime {}; {}", printable(&go.version), view(heap)));
    lines.push(rate(heap));
    let torn = "buckets of the heap profile that changed whenever they were read".to_owned();
    let losses: Vec<_> = (heap.torn > 0).then_some((heap.torn, torn)).into_iter().collect();
    lines.extend(notes_and_losses(&go.notes, &losses));
    lines
}

/// The comments of a profile of goroutines or threads, one a line.
pub(super) fn go(snapshot: &Snapshot, go: &GoState, subject: Subject) -> Vec<String> {
    let mut lines = head(snapshot, subject);
    lines.push(format!("Go runtime {}", printable(&go.version)));
    lines.extend(subject.coverage().iter().copied().map(str::to_owned));
    lines.extend(notes_and_losses(&go.notes, &[]));
    lines
}

/// Which view of a Go heap is shown.
pub(crate) fn view(heap: &GoHeapState) -> &'static str {
    match heap.view {
        _ if heap.is_uncollected => {
            "with what is garbage, as no garbage collection was completed since it is sampled"
        }
        GoHeapView::Published => "as of its last completed garbage collection",
        GoHeapView::Now => {
            "with what has happened since its last garbage collection: allocations are ahead of frees"
        }
    }
}

/// That a Go runtime keeps no heap profile, if it keeps none.
pub(crate) fn no_heap_profile(go: &GoState) -> Option<String> {
    go.heap.as_ref().filter(|heap| heap.rate == 0).map(rate)
}

/// How a Go heap was sampled, and what to do if it was not.
pub(crate) fn rate(heap: &GoHeapState) -> String {
    let GoHeapState {
        rate,
        is_enabled_by_us,
        ..
    } = heap;
    match (rate, is_enabled_by_us) {
        (0, _) => "MemProfileRate is 0: this program keeps no heap profile (nothing in it uses one); run memtrace with \
                   --go-enable-heap[=RATE] to have it keep one while memtrace is attached"
            .to_owned(),
        (rate, true) => format!(
            "MemProfileRate was 0; memtrace set it to {rate} when it attached and sets it back at the end: what was allocated \
             before is not counted"
        ),
        (rate, false) => format!(
            "sampled by the runtime: one allocation in {rate} bytes on average (MemProfileRate); values are scaled estimates"
        ),
    }
}

/// The comments of a profile of new memory, one a line.
pub(super) fn growth(snapshot: &Snapshot, growths: &Growths) -> Vec<String> {
    let mut lines = head(snapshot, Subject::NewMemory);
    let mean = growths.sample_bytes;
    lines.push(format!(
        "sampled: one in {mean} bytes on average; touched_space is an estimate; standard error of b bytes: at most √({mean}·b)"
    ));
    let samples = growths.sites.iter().map(|site| site.samples);
    lines.push(format!("samples: {}", samples.fold(0, u64::saturating_add)));
    lines.extend(Subject::NewMemory.coverage().iter().copied().map(str::to_owned));
    if let Some((before, now)) = growths.resident {
        lines.push(format!(
            "resident memory: {} bytes when tracing began, {} bytes at the end; anonymous: {} and {} bytes",
            before.rss, now.rss, before.anonymous, now.anonymous
        ));
    }
    lines.extend(notes_and_losses(&growths.notes, &growths.losses));
    lines.extend(incomplete_stacks(
        Subject::NewMemory,
        &truncated_growth(&growths.sites),
    ));
    lines
}

const NOTHING_LOST: &str = "nothing was lost";

/// What every profile says first.
fn head(snapshot: &Snapshot, subject: Subject) -> Vec<String> {
    let process = &snapshot.process;
    vec![
        format!(
            "memtrace {}: process {} ({})",
            env!("CARGO_PKG_VERSION"),
            process.pid,
            printable(&process.name)
        ),
        format!("tracing began at {}", rfc3339(snapshot.started)),
        format!("duration {:.3} s", snapshot.duration.as_secs_f64()),
        origin(&snapshot.origin, subject),
    ]
}

fn notes_and_losses(notes: &[String], losses: &[(u64, String)]) -> Vec<String> {
    let notes = notes.iter().map(|note| format!("note: {}", printable(note)));
    let lost = losses
        .iter()
        .map(|(count, what)| format!("lost: {count} {}", printable(what)));
    let nothing = losses.is_empty().then(|| NOTHING_LOST.to_owned());
    notes.chain(lost).chain(nothing).collect()
}

fn incomplete_stacks(subject: Subject, truncated: &[(EndReason, u64)]) -> Vec<String> {
    if truncated.is_empty() {
        return vec!["every recorded stack is complete".to_owned()];
    }
    let unit = subject.unit();
    let line =
        |(why, count): &(EndReason, u64)| format!("truncated stacks: {count} {unit}: {}", reason(*why));
    truncated.iter().map(line).collect()
}

/// How many descriptors or bytes have an incomplete stack, by reason.
pub(crate) fn truncated_holders(holders: &[Holder]) -> Vec<(EndReason, u64)> {
    let code = holders.iter().filter(|holder| holder.maker == Maker::Code);
    // What is inherited was not made in this process.
    truncated(code.map(|holder| (holder.end, holder.made.max(holder.held))))
}

/// How many bytes were touched, added or mapped by code with an incomplete stack, by reason.
pub(crate) fn truncated_growth(sites: &[Growth]) -> Vec<(EndReason, u64)> {
    let bytes = |site: &Growth| site.touched.saturating_add(site.brk).saturating_add(site.mapped);
    truncated(sites.iter().map(|site| (site.end, bytes(site))))
}

/// How the process came to be traced, and what that means for the values.
pub(crate) fn origin(origin: &Origin, subject: Subject) -> String {
    match origin {
        Origin::Attached => subject.before_attach().into(),
        Origin::Started => "memtrace started it, and watched from its first instruction on.".into(),
        Origin::Spawned { parent: Some(parent) } => {
            format!("Process {parent} started it; memtrace watched from its first instruction on.")
        }
        Origin::Spawned { parent: None } => {
            "A traced process started it; memtrace watched from its first instruction on.".into()
        }
        Origin::Forked { parent } => format!(
            "Process {parent} forked it: what it has from there is marked as inherited (memory is shared until it is written)."
        ),
        Origin::Executed { before } => format!(
            "It executed this program in place of {}; memtrace watched from its first instruction on.",
            printable(before)
        ),
    }
}

/// Which blocks were recorded and are shown, one sentence each; nothing if it is all of them.
pub(crate) fn chosen(snapshot: &Snapshot) -> Vec<String> {
    let Selection {
        sample_bytes,
        min_size,
        min_age,
    } = snapshot.selection;
    let mut sentences = Vec::new();
    if let Some(mean) = sample_bytes {
        let samples = snapshot.sites.iter().map(|site| site.live_samples);
        let live = samples.fold(0, u64::saturating_add);
        sentences.push(format!(
            "sampled: one in {mean} bytes on average; objects and bytes are estimates; standard error of b bytes: at most √({mean}·b)"
        ));
        sentences.push(format!("samples that live: {live}"));
    }
    if min_size > 0 {
        sentences.push(format!("not recorded: blocks smaller than {min_size} bytes"));
    }
    if sample_bytes.is_some() || min_size > 0 {
        sentences.push("not counted: frees of blocks that are not in the books".to_owned());
    }
    if !min_age.is_zero() {
        sentences.push(format!(
            "inuse values: only of blocks at least {} s old, and of inherited ones; alloc values: of all",
            min_age.as_secs_f64()
        ));
    }
    sentences
}

/// A counter that is not 0.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) count: u64,
    /// What was counted.
    pub(crate) what: Cow<'static, str>,
    /// The same in few words.
    pub(crate) in_short: Cow<'static, str>,
    /// Whether the books are wrong by it. Frees of older blocks, for one, are as they must be.
    pub(crate) is_loss: bool,
}

/// The counters that are not 0; truncated stacks are not among them.
pub(crate) fn counted(losses: &Losses) -> Vec<Counted> {
    let Losses {
        blocks_full,
        blocks_full_bytes,
        threads_full,
        without_stack,
        unmatched_frees,
        missed_frees,
        abandoned_calls,
        unmatched_returns,
        nested_too_deep,
        unreadable_results,
        stale_mappings,
        not_inherited,
        truncated: _,
    } = losses;
    let counted = |count: &u64, what, in_short, is_loss| Counted {
        count: *count,
        what: Cow::Borrowed(what),
        in_short: Cow::Borrowed(in_short),
        is_loss,
    };
    let lost = |count, what, in_short| counted(count, what, in_short, true);
    let seen = |count, what, in_short| counted(count, what, in_short, false);
    let full = Counted {
        count: *blocks_full,
        what: format!(
            "blocks ({blocks_full_bytes} bytes) not recorded: the block table was full (--max-live raises its size)"
        )
        .into(),
        in_short: format!(
            "blocks ({}) not recorded (table full, raise --max-live)",
            text::bytes(*blocks_full_bytes)
        )
        .into(),
        is_loss: true,
    };
    let all = [
        full,
        lost(
            threads_full,
            "calls not recorded: the thread table was full",
            "calls not recorded (too many threads)",
        ),
        lost(
            without_stack,
            "blocks recorded without their stack: the stack table was full or no walk state was free",
            "blocks without a stack",
        ),
        lost(
            missed_frees,
            "blocks whose free was missed",
            "blocks whose free was missed",
        ),
        lost(
            abandoned_calls,
            "calls that never returned",
            "calls that never returned",
        ),
        lost(
            nested_too_deep,
            "calls nested deeper than the books can hold",
            "calls nested too deep",
        ),
        lost(
            unreadable_results,
            "results of posix_memalign that could not be read",
            "results of posix_memalign not readable",
        ),
        lost(
            stale_mappings,
            "blocks booked while libraries were loaded or unloaded: their stacks may name the wrong library",
            "blocks whose stack may name the wrong library (loaded or unloaded then)",
        ),
        lost(
            not_inherited,
            "stacks of inherited blocks are missing: the stack table was full, or too many are in use",
            "stacks of inherited blocks missing",
        ),
        seen(
            unmatched_frees,
            "frees of blocks that are not in the books: older than the tracing, not recorded, or kept by the allocator",
            "frees of blocks not in the books",
        ),
        seen(
            unmatched_returns,
            "returns of calls that began before the tracing",
            "returns of calls that began before the tracing",
        ),
    ];
    all.into_iter().filter(|counted| counted.count > 0).collect()
}
