//! The event loop.

use std::{io, os::fd::BorrowedFd, time::Duration};

use aya_log::EbpfLogger;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{Error, Settings, Tracer, privilege};
use crate::{cli::Arguments, target::Process};

/// Why tracing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Asked,
    TimeUp,
    TargetEnded,
    TargetExecuted,
}

/// Traces as the command line says, and writes what was found.
///
/// # Errors
/// See [`Error`].
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    privilege::check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::System { what: "start the event loop", source })?;
    runtime.block_on(trace(arguments))
}

async fn trace(arguments: &Arguments) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let process = Process::open(arguments.pid)?;
    let settings = Settings { max_live: arguments.max_live, floor: arguments.floor };
    let mut tracer = Tracer::attach(process, &settings)?;
    eprintln!("memtrace: tracing {} ({}): {:?}", arguments.pid, tracer.process().info().name, tracer.coverage());
    let end = follow(&mut tracer, &mut signals, arguments).await?;
    tracer.stop();
    let snapshot = tracer.snapshot();
    println!("{end:?} {:#?} failed {} sites {}", snapshot.losses, snapshot.failed_calls, snapshot.sites.len());
    let mut sites = snapshot.sites.clone();
    sites.sort_by_key(|site| std::cmp::Reverse(site.live_bytes));
    for site in sites.iter().take(arguments.top) {
        println!("{} {} {} {} {:?} {:?} {}", site.alloc_objects, site.alloc_bytes, site.live_objects, site.live_bytes, site.mean_age, site.end, site.frames.len());
    }
    println!("{:?}", tracer.programs().books());
    Ok(())
}

async fn follow(tracer: &mut Tracer, signals: &mut Signals, arguments: &Arguments) -> Result<End, Error> {
    let process_end = watch(tracer.process().pidfd())?;
    let notices = watch(tracer.notices_fd())?;
    let mut log = program_log(tracer)?;
    let start = Instant::now();
    loop {
        let until = arguments.duration.unwrap_or(Duration::from_secs(1 << 32));
        tokio::select! {
            _ = signals.interrupt.recv() => return Ok(End::Asked),
            _ = signals.terminate.recv() => return Ok(End::Asked),
            _ = sleep_until(start + until) => return Ok(End::TimeUp),
            _ = process_end.readable() => return Ok(End::TargetEnded),
            _ = sleep_until(start + tracer.next_observation()) => tracer.observe(),
            ready = notices.readable() => {
                if let Ok(mut ready) = ready { ready.clear_ready(); }
                if tracer.handle_notices() {
                    return Ok(End::TargetExecuted);
                }
            }
            ready = log.readable_mut() => {
                if let Ok(mut ready) = ready { ready.get_inner_mut().flush(); ready.clear_ready(); }
            }
        }
    }
}

/// A descriptor of its own for the event loop, which leaves the original where it is.
fn watch(fd: BorrowedFd<'_>) -> Result<AsyncFd<std::os::fd::OwnedFd>, Error> {
    let watched = fd.try_clone_to_owned().and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE));
    watched.map_err(|source| Error::System { what: "watch a descriptor", source })
}

fn program_log(tracer: &mut Tracer) -> Result<AsyncFd<EbpfLogger<&'static dyn log::Log>>, Error> {
    let logger = EbpfLogger::init(tracer.programs().ebpf()).map_err(io::Error::other);
    let logger = logger.and_then(|logger| AsyncFd::with_interest(logger, Interest::READABLE));
    logger.map_err(|source| Error::System { what: "read the programs' log", source })
}

/// The signals that end a run or ask for a snapshot; caught before anything is attached.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    snapshot: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|source| Error::System { what: "catch signals", source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            snapshot: listen(SignalKind::user_defined1())?,
        })
    }
}
