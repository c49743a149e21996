//! What a tracer waits for, and what it does then.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use aya_log::EbpfLogger;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    time::{Instant, sleep_until},
};

use super::{Error, Tracer};

/// How often room is made in the kernel's tables, if it is needed.
const TIDY_PERIOD: Duration = Duration::from_secs(1);
/// Longer than any machine runs.
pub(super) const FOREVER: Duration = Duration::from_secs(1 << 32);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Notices,
    Observation,
    Wishes,
    Ends,
    MapEvents,
    Frames,
    Tidying,
    Log,
}

/// The descriptors and times at which a tracer has something to do.
pub(super) struct Events {
    notices: AsyncFd<OwnedFd>,
    map_events: AsyncFd<OwnedFd>,
    frames: AsyncFd<OwnedFd>,
    log: EbpfLogger<&'static dyn log::Log>,
    log_ready: AsyncFd<OwnedFd>,
    start: Instant,
    next_tidying: Instant,
}

impl Events {
    /// Begins to wait for what concerns this tracer, on the event loop that runs.
    ///
    /// # Errors
    /// When a descriptor cannot be watched.
    pub fn watch(tracer: &mut Tracer) -> Result<Self, Error> {
        let log = program_log(tracer)?;
        let start = Instant::now();
        Ok(Self {
            notices: watch(tracer.notices_fd())?,
            map_events: watch(tracer.map_events_fd())?,
            frames: watch(tracer.frames_fd())?,
            log_ready: watch(log.as_fd())?,
            log,
            start: start - tracer.elapsed(),
            next_tidying: start + TIDY_PERIOD,
        })
    }

    /// Waits for what is due next; what can wait longest comes last.
    pub async fn next(&self, tracer: &Tracer) -> Due {
        let at = |instant: Option<std::time::Instant>| {
            sleep_until(instant.map_or(self.start + FOREVER, Instant::from_std))
        };
        tokio::select! {
            biased;
            ready = self.notices.readable() => acknowledge(ready, Due::Notices),
            () = sleep_until(self.start + tracer.next_observation()) => Due::Observation,
            () = at(tracer.wishes_from()) => Due::Wishes,
            () = at(tracer.ends_due()) => Due::Ends,
            ready = self.map_events.readable() => acknowledge(ready, Due::MapEvents),
            ready = self.frames.readable() => acknowledge(ready, Due::Frames),
            () = sleep_until(self.next_tidying) => Due::Tidying,
            ready = self.log_ready.readable() => acknowledge(ready, Due::Log),
        }
    }

    /// Does what is due.
    pub fn perform(&mut self, due: Due, tracer: &mut Tracer) {
        match due {
            Due::Notices => tracer.handle_notices(),
            Due::Observation => tracer.observe(),
            Due::Wishes => tracer.accept_wishes(),
            Due::Ends => tracer.find_ended(),
            Due::MapEvents => tracer.read_map_events(),
            Due::Frames => tracer.read_frames(),
            Due::Tidying => {
                tracer.tidy();
                self.next_tidying = Instant::now() + TIDY_PERIOD;
            }
            Due::Log => self.log.flush(),
        }
    }
}

/// A descriptor of its own for the event loop, which leaves the original where it is.
///
/// # Errors
/// When the kernel has no more descriptors.
pub(super) fn watch(fd: BorrowedFd<'_>) -> Result<AsyncFd<OwnedFd>, Error> {
    let refused = |source| Error::System {
        what: "cannot watch a descriptor",
        source,
    };
    let owned = fd.try_clone_to_owned().map_err(refused)?;
    // SAFETY: an `OwnedFd` always returns the descriptor that it keeps open.
    unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) }
        .map_err(|error| refused(error.into()))
}

fn acknowledge(ready: io::Result<AsyncFdReadyGuard<'_, OwnedFd>>, due: Due) -> Due {
    if let Ok(mut ready) = ready {
        ready.clear_ready();
    }
    due
}

fn program_log(tracer: &mut Tracer) -> Result<EbpfLogger<&'static dyn log::Log>, Error> {
    EbpfLogger::init(tracer.programs().ebpf()).map_err(|error| Error::System {
        what: "cannot read the programs' log",
        source: io::Error::other(error),
    })
}
