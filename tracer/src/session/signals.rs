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

/// Those of the signals that end a run which memtrace was started to ignore, as by `nohup`. To be asked before
/// [`Signals::listen`].
pub fn ignored() -> Vec<i32> {
    let is_ignored = |signal: &i32| {
        // SAFETY: all zeros is a value of this plain struct, and the call only fills it.
        let action = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, std::ptr::null(), &mut action);
            action
        };
        action.sa_sigaction == libc::SIG_IGN
    };
    let mut signals = vec![libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    signals.retain(is_ignored);
    signals
}

/// Gives SIGINT and SIGTERM their usual meaning back: to end the process.
pub fn obey_no_more() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the default action needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
