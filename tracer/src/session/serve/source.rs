//! What the server and push see of the targets.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, mpsc},
    time::Duration,
};

use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    time::timeout,
};

use super::{
    group::Command,
    naming::{Job, Profiles},
};
use crate::{
    output::http::{ProfileName, Source, SourceError, TargetSummary},
    profile::{AllocatorFrames, Profile},
};

/// How long profiles may take to be made. Whoever asks for one holds a slot of the server's, or the pusher, meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// A target as others see it.
#[derive(Clone)]
pub struct Entry {
    /// For the index.
    pub summary: TargetSummary,
    /// For stores.
    pub labels: BTreeMap<String, String>,
    /// Whether a Go runtime is read, whose counts begin with its program.
    pub is_go: bool,
    /// Its group; `None` if it is not traced.
    pub group: Option<UnboundedSender<Command>>,
    /// What was attached to of it.
    pub roots: Vec<u32>,
    /// How stacks are shown.
    pub frames: AllocatorFrames,
}

/// The list of targets, written by the daemon and read by whoever asks.
pub struct Shared {
    entries: RwLock<Arc<[Entry]>>,
    naming: mpsc::Sender<Job>,
}

impl Shared {
    /// A list without targets; profiles are made by the thread that receives these jobs.
    pub fn new(naming: mpsc::Sender<Job>) -> Self {
        Self {
            entries: RwLock::new(Arc::default()),
            naming,
        }
    }

    /// Replaces the list.
    pub fn set(&self, entries: Vec<Entry>) {
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = entries.into();
    }

    /// The list now.
    pub fn entries(&self) -> Arc<[Entry]> {
        Arc::clone(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a target of this id is there now.
    pub fn has(&self, target: &str) -> bool {
        self.entries().iter().any(|entry| entry.summary.id == target)
    }

    /// The profiles of a target now, or the one of this name.
    ///
    /// # Errors
    /// [`SourceError::Gone`] if it has ended, [`SourceError::Busy`] if it takes too long.
    pub async fn profiles(&self, entry: &Entry, only: Option<&'static str>) -> Result<Profiles, SourceError> {
        match timeout(PATIENCE, self.made(entry, only)).await {
            Ok(made) => made.ok_or(SourceError::Gone),
            Err(_) => Err(SourceError::Busy(format!(
                "the profile was not made within {} s",
                PATIENCE.as_secs()
            ))),
        }
    }

    async fn made(&self, entry: &Entry, only: Option<&'static str>) -> Option<Profiles> {
        let (answer, snapshots) = oneshot::channel();
        let group = entry.group.as_ref()?;
        group.send(Command::Snapshot(entry.roots.clone(), answer)).ok()?;
        let snapshots = snapshots.await.ok()?;
        let (answer, made) = oneshot::channel();
        let job = Job::Now {
            target: entry.summary.id.clone(),
            snapshots,
            only,
            frames: entry.frames,
            answer,
        };
        self.naming.send(job).ok()?;
        made.await.ok()
    }
}

impl Source for Shared {
    fn targets(&self) -> Vec<TargetSummary> {
        self.entries().iter().map(|entry| entry.summary.clone()).collect()
    }

    async fn profile(&self, target: &str, name: ProfileName) -> Result<Arc<Profile>, SourceError> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.summary.id == target);
        let entry = entry.ok_or(SourceError::Gone)?;
        if entry.group.is_none() {
            return Err(SourceError::NotAvailable(entry.summary.notes.join("; ")));
        }
        if entry.roots.is_empty() {
            return Err(SourceError::Busy("memtrace is just attaching".into()));
        }
        let only = name.as_str();
        let mut made = self.profiles(entry, Some(only)).await?;
        made.remove(only).ok_or_else(|| {
            SourceError::NotAvailable(format!("{only} is not recorded, or its processes have ended"))
        })
    }
}
