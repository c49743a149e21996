//! The signals that a run obeys.

use std::{future::poll_fn, task::Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Error;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Stop, and write what was found: SIGINT, SIGTERM, SIGHUP, and whatever else would end memtrace.
    End,
    /// Write what was found, and go on: SIGUSR1.
    Snapshot,
}

/// The signals that end a process that does not catch them, and can be caught: what memtrace changed in a target is then
/// undone, whichever it is. Those of faults are left out.
const ENDS: [i32; 14] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGSYS,
];

/// Some signals, caught.
pub struct Caught(Vec<Signal>);

impl Caught {
    /// Starts to catch what ends a process, SIGHUP not among it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn ends() -> Result<Self, Error> {
        ENDS.into_iter().map(catch).collect::<Result<_, _>>().map(Self)
    }

    /// Starts to catch one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn one(number: i32) -> Result<Self, Error> {
        Ok(Self(vec![catch(number)?]))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        poll_fn(|context| {
            match self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(context).is_ready())
            {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

fn catch(number: i32) -> Result<Signal, Error> {
    signal(SignalKind::from_raw(number)).map_err(|source| Error::System {
        what: "cannot catch signals",
        source,
    })
}

/// The signals, caught from before anything is attached.
pub struct Signals {
    ends: Caught,
    hang_up: Caught,
    snapshot: Caught,
}

impl Signals {
    /// Starts to catch them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self, Error> {
        Ok(Self {
            ends: Caught::ends()?,
            hang_up: Caught::one(libc::SIGHUP)?,
            snapshot: Caught::one(libc::SIGUSR1)?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            () = self.ends.next() => Wish::End,
            () = self.hang_up.next() => Wish::End,
            () = self.snapshot.next() => Wish::Snapshot,
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
    let mut signals = ENDS.to_vec();
    signals.push(libc::SIGHUP);
    signals.retain(is_ignored);
    signals
}

/// Gives SIGINT, SIGTERM and SIGQUIT their usual meaning back: to end the process.
pub fn obey_no_more() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT] {
        // SAFETY: the default action needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
