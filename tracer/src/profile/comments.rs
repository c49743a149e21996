//! What a profile says of itself in words: when, whose, what is covered, and what was lost.

use std::borrow::Cow;

use memtrace_ebpf::layout::EndReason;

use crate::{
    snapshot::{Losses, Origin, Selection, Site, Snapshot},
    text::{self, printable},
    time::rfc3339,
};

/// The comments of a snapshot's profiles, one a line.
pub(super) fn of(snapshot: &Snapshot) -> Vec<String> {
    let Snapshot {
        process,
        coverage,
        losses,
        ..
    } = snapshot;
    let mut lines = vec![
        format!(
            "memtrace {}: process {} ({})",
            env!("CARGO_PKG_VERSION"),
            process.pid,
            printable(&process.name)
        ),
        format!("tracing began at {}", rfc3339(snapshot.started)),
        format!("duration {:.3} s", snapshot.duration.as_secs_f64()),
        origin(&snapshot.origin),
    ];
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
        lines.push("nothing was lost".to_owned());
    }
    if losses.truncated.is_empty() {
        lines.push("every recorded stack is complete".to_owned());
    }
    lines.extend(
        losses
            .truncated
            .iter()
            .map(|(why, blocks)| format!("truncated stacks: {blocks} blocks: {}", reason(*why))),
    );
    lines
}

/// How the process came to be traced, and what that means for the values.
pub(crate) fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Attached => "Memory allocated before memtrace attached is not counted.".into(),
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
        lost(missed_frees, "blocks whose free was missed", "missed frees"),
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

/// The frame that stands for what is missing of a site's stack; `None` when it is complete.
pub(crate) fn missing_frames(site: &Site) -> Option<String> {
    match site.end {
        _ if site.frames.is_empty() => Some("[stack not recorded]".to_owned()),
        EndReason::Complete => None,
        why => Some(format!("[stack truncated: {}]", reason(why))),
    }
}

/// Why a stack is not complete, in words.
pub(crate) fn reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Running => "the walk did not finish",
        EndReason::Complete => "complete",
        EndReason::TooDeep => "too deep",
        EndReason::UnknownMapping => "unknown mapping",
        EndReason::NoUnwindInfo => "no unwind info",
        EndReason::UnsupportedRule => "unsupported unwind rule",
        EndReason::LostFramePointer => "frame pointer lost",
        EndReason::DidNotAdvance => "stack did not advance",
        EndReason::UnreadableStack => "stack not readable",
        EndReason::UnknownTrampoline => "unknown return trampoline",
        EndReason::OutOfSteps => "out of steps",
    }
}
