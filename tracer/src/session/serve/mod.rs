//! The daemon: targets that come and go, each traced while it is there. See `docs/0008-daemon.md`.

mod discovery;
mod group;
mod labels;
mod naming;
mod source;
mod targets;

use std::{ffi::OsString, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use self::{discovery::Discovery, naming::Naming, source::Shared, targets::Targets};
use super::{Error, privilege, say};
use crate::{
    cli::{Configuration, ServeArguments},
    output::{
        http::{self, Server},
        push::Pusher,
    },
    target::containers::Endpoints,
};

/// How often targets are looked for.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How long what is attached may take to be let go at the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the daemon until it is told to stop. `words` are those of the command line behind `serve`.
///
/// # Errors
/// When the configuration cannot be used, a privilege is missing, or the address cannot be listened on. What goes wrong with a
/// target later is told, and stops nobody else.
pub fn serve(arguments: &ServeArguments, words: &[OsString]) -> Result<(), Error> {
    let configuration = read(arguments, words)?;
    privilege::check()?;
    privilege::lift_limits();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| Error::System {
        what: "cannot start the event loop",
        source,
    })?;
    runtime.block_on(Daemon::run(arguments, words, configuration))
}

fn read(arguments: &ServeArguments, words: &[OsString]) -> Result<Configuration, Error> {
    let read = arguments.configuration(words);
    read.map_err(|error| Error::Usage(error.to_string()))
}
