//! What others are told of the targets: those that are traced, and those that are not, with the reason.

use std::{collections::BTreeSet, time::SystemTime};

use super::{
    source::Entry,
    targets::{Targets, Traced, Waiting, told},
};
use crate::{
    cli::{ProfileKind, Recording},
    output::http::{ProfileName, TargetSummary},
};

impl Targets {
    /// Tells others what there is.
    pub fn publish(&self) {
        let traced = self.traced.values().map(|traced| self.entry(traced));
        let waiting = self.waiting.values().map(|Waiting { found, why, .. }| Entry {
            summary: TargetSummary {
                id: found.id.clone(),
                title: found.title.clone(),
                pids: found.pids.clone(),
                since: SystemTime::now(),
                profiles: Vec::new(),
                notes: vec![format!("It is not traced: {why}")],
            },
            labels: found.labels.clone(),
            is_go: false,
            group: None,
            roots: Vec::new(),
            frames: found.spec.recording.allocator_frames(),
        });
        self.shared.set(traced.chain(waiting).collect());
    }

    pub(super) fn entry(&self, traced: &Traced) -> Entry {
        let found = &traced.found;
        let notes = traced
            .roots
            .values()
            .flat_map(|coverage| coverage.not_covered.iter().cloned());
        let refused = traced
            .refused
            .iter()
            .map(|(pid, why)| format!("process {pid} is not traced: {}", told(why)));
        let go = traced.go_notes.iter().cloned();
        let notes: BTreeSet<String> = notes.chain(refused).chain(go).collect();
        let recording = &found.spec.recording;
        Entry {
            summary: TargetSummary {
                id: found.id.clone(),
                title: found.title.clone(),
                pids: found.pids.clone(),
                since: traced.since,
                profiles: names(recording, traced),
                notes: notes.into_iter().collect(),
            },
            labels: found.labels.clone(),
            is_go: traced.is_go,
            group: self
                .groups
                .get(&traced.group)
                .map(|member| member.group.commands()),
            roots: traced.roots.keys().copied().collect(),
            frames: recording.allocator_frames(),
        }
    }
}

/// The profiles that can be asked for.
fn names(recording: &Recording, traced: &Traced) -> Vec<ProfileName> {
    let has_native = traced
        .roots
        .values()
        .any(|coverage| !coverage.allocators.is_empty());
    let kinds = [
        (ProfileKind::Heap, ProfileName::Heap, true),
        (
            ProfileKind::Heap,
            ProfileName::HeapNative,
            traced.is_go && has_native,
        ),
        (ProfileKind::Fd, ProfileName::Fd, true),
        (ProfileKind::Mmap, ProfileName::Mmap, true),
        (ProfileKind::Growth, ProfileName::Growth, true),
        (ProfileKind::Goroutine, ProfileName::Goroutine, traced.is_go),
        (ProfileKind::Threadcreate, ProfileName::Threadcreate, traced.is_go),
    ];
    let offered = kinds
        .into_iter()
        .filter(|(kind, _, is_there)| *is_there && recording.wants(*kind));
    offered.map(|(_, name, _)| name).collect()
}
