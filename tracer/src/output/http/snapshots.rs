//! Takes profiles for requests: few at once, and one or two for a request.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    metrics::Metrics,
    source::{ProfileName, Source, SourceError},
};
use crate::profile::{Profile, delta};

/// How many snapshots may be taken at once.
const AT_ONCE: usize = 4;
/// How many requests may wait for their second snapshot: each holds its first one in memory.
const WAITING: usize = 32;
/// For how long a second snapshot waits for its turn. To be refused after having waited would be a pity.
const TURN: Duration = Duration::from_secs(30);

/// Takes the profiles that requests ask for.
pub(super) struct Snapshots<S> {
    source: Arc<S>,
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
    metrics: Metrics,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Others ask, too.
    #[error("too many profiles are asked for at once; try again")]
    Busy,
    /// The server stops.
    #[error("memtrace stops")]
    Stopping,
    /// The source has none.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl<S: Source> Snapshots<S> {
    /// `stop` becomes true when the server stops.
    pub(super) fn new(source: Arc<S>, metrics: Metrics, stop: watch::Receiver<bool>) -> Self {
        Self {
            source,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            stop,
            metrics,
        }
    }

    /// Who has the profiles.
    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// A profile now, as `render` makes it.
    pub(super) async fn now<T: Send + 'static>(
        &self,
        target: &str,
        name: ProfileName,
        render: impl FnOnce(&Profile) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let slot = take_one(&self.slots)?;
        let take = self.take(target, name, slot, move |profile| render(&profile));
        self.unless_stopped(take).await?
    }

    /// What has changed in the time from now on, as `render` makes it.
    pub(super) async fn over<T: Send + 'static>(
        &self,
        time: Duration,
        target: &str,
        name: ProfileName,
        render: impl FnOnce(&Profile) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let _waits = take_one(&self.waiting)?;
        let _counted = self.metrics.waiting();
        let slot = take_one(&self.slots)?;
        let take = self.take(target, name, slot, |profile| profile);
        let earlier = self.unless_stopped(take).await??;
        self.unless_stopped(sleep(time)).await?;
        let turn = timeout(TURN, Arc::clone(&self.slots).acquire_owned());
        let slot = self.unless_stopped(turn).await?.map_err(|_| Failure::Busy)?;
        let slot = slot.map_err(|_| Failure::Stopping)?;
        let take = self.take(target, name, slot, move |later| {
            render(&delta(&later, &earlier, |_| true))
        });
        self.unless_stopped(take).await?
    }

    /// The slot is held until the work is done, also when the client has left meanwhile.
    async fn take<T: Send + 'static>(
        &self,
        target: &str,
        name: ProfileName,
        slot: OwnedSemaphorePermit,
        work: impl FnOnce(Arc<Profile>) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let source = Arc::clone(&self.source);
        let target = target.to_owned();
        let counted = self.metrics.taking();
        let task = tokio::spawn(async move {
            let _until_done = (slot, counted);
            let profile = source.profile(&target, name).await?;
            spawn_blocking(move || work(profile))
                .await
                .map_err(|_| Failure::Stopping)
        });
        task.await.map_err(|_| Failure::Stopping)?
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let mut stop = self.stop.clone();
        tokio::select! {
            result = work => Ok(result),
            // It fails when the server is gone, which has stopped, then.
            _ = stop.wait_for(|stops| *stops) => Err(Failure::Stopping),
        }
    }
}

fn take_one(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
    Arc::clone(of).try_acquire_owned().map_err(|_| Failure::Busy)
}
