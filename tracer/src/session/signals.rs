//! The signals that a run obeys.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Error;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Stop, and write what was found: SIGINT, SIGTERM, SIGHUP.
    End,
    /// Write what was found, and go on: SIGUSR1.
    Snapshot,
}

/// The signals, caught from before anything is attached.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    snapshot: Signal,
}

impl Signals {
    /// Starts to catch them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::System {
                what: "cannot catch signals",
                source,
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
            snapshot: listen(SignalKind::user_defined1())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::End,
            _ = self.terminate.recv() => Wish::End,
            _ = self.hang_up.recv() => Wish::End,
            _ = self.snapshot.recv() => Wish::Snapshot,
        }
    }
}

/// Gives SIGINT and SIGTERM their usual meaning back: to end the process.
pub fn obey_no_more() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the default action needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
