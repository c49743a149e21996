//! The daemon: targets that come and go, each traced while it is there. See `docs/0008-daemon.md`.

mod discovery;
mod group;
mod labels;
mod listing;
mod metrics;
mod naming;
mod notes;
mod source;
mod targets;

use std::{
    ffi::OsString,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sd_notify::NotifyState;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};

use self::{
    discovery::Discovery,
    group::{Event, GroupId},
    naming::{Naming, Profiles},
    source::{Entry, Shared},
    targets::{Budget, Ending, Targets},
};
use super::{Error, REMOVED_SOON, REMOVING, privilege, signals::Caught};
use crate::{
    cli::{Configuration, ServeArguments},
    output::{
        http::{self, Server, SourceError},
        push::{self, Counters, Offer, Pusher},
    },
    target::containers::Endpoints,
    text::printable,
};

/// How often targets are looked for.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How long what is attached may take to be let go at the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many arenas glibc's allocator may have (`M_ARENA_MAX`, mallopt(3)): for each thread that always runs, and for those that come
/// and go together. By default it is eight for each processor, and each stays as large as it once was.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 4;

/// Tells the person who watches, unless only errors are wanted.
fn say(text: &str) {
    if log::log_enabled!(log::Level::Warn) {
        super::say(text);
    }
}

/// Runs the daemon until it is told to stop. `words` are those of the command line behind `serve`.
///
/// # Errors
/// When the configuration cannot be used, a privilege is missing, or the address cannot be listened on. What goes wrong with a
/// target later is told, and stops nobody else.
pub fn serve(arguments: &ServeArguments, words: &[OsString]) -> Result<(), Error> {
    #[cfg(target_env = "gnu")]
    share_arenas();
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

/// To be called before there are threads.
#[cfg(target_env = "gnu")]
fn share_arenas() {
    // SAFETY: a number for the allocator. Should it refuse, all is as by default.
    let _refused = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

fn read(arguments: &ServeArguments, words: &[OsString]) -> Result<Configuration, Error> {
    let read = arguments.configuration(words);
    read.map_err(|error| Error::Usage(error.to_string()))
}

/// Everything that runs, from the first look to the last push.
struct Daemon {
    discovery: Discovery,
    targets: Targets,
    events: mpsc::UnboundedReceiver<(GroupId, Event)>,
    shared: Arc<Shared>,
    pusher: Arc<Pusher>,
}

impl Daemon {
    async fn run(
        arguments: &ServeArguments,
        words: &[OsString],
        configuration: Configuration,
    ) -> Result<(), Error> {
        let options = configuration.options.clone();
        let server = Server::bind(&options.http).map_err(|error| Error::Usage(error.to_string()))?;
        let pusher = Pusher::start(&options.push, &Handle::current());
        let pusher = Arc::new(pusher.map_err(|error| Error::Usage(error.to_string()))?);
        let naming = Naming::start(!options.push.push.is_empty())?;
        let shared = Arc::new(Shared::new(naming.jobs()));
        let (sender, events) = mpsc::unbounded_channel();
        let mut daemon = Self {
            discovery: discovery_of(&configuration)?,
            targets: Targets::new(budget_of(&options), sender, naming.jobs(), Arc::clone(&shared)),
            events,
            shared,
            pusher,
        };
        let mut signals = Signals::listen()?;
        let (stop, stopped) = watch::channel(false);
        let serving = server.map(|server| daemon.serve(server, stopped.clone()));
        let pushing = daemon.push(&options, stopped);
        if serving.is_none() && pushing.is_none() {
            log::warn!("profiles go nowhere: name an address with --listen, or a store with --push");
        }
        notify(&[NotifyState::Ready]);
        daemon.follow(&mut signals, arguments, words).await;
        notify(&[NotifyState::Stopping]);
        // Nobody reads it any more when there is no server.
        let _nobody_waits = stop.send(true);
        let deadline = Instant::now() + PATIENCE;
        daemon.end_targets(deadline).await;
        // Both tasks end by themselves when they are told; a panic would have ended memtrace.
        if let Some(pushing) = pushing {
            let _ended = timeout_at(deadline, pushing).await;
        }
        // The kernel takes seconds to remove probes: what waits for a store is sent meanwhile.
        let pusher = Arc::clone(&daemon.pusher);
        let (pushed, ()) = tokio::join!(pusher.finish(push::FINISH), daemon.let_go(deadline));
        if let Some(serving) = serving {
            let _ended = serving.await;
        }
        drop(daemon);
        naming.join();
        say_what_was_pushed(&pushed);
        Ok(())
    }

    /// Answers over HTTP, until it is told to stop.
    fn serve(&self, server: Server, mut stopped: watch::Receiver<bool>) -> JoinHandle<()> {
        say(&server.announcement());
        let metrics = metrics::registry(&self.shared, &self.pusher);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let stop = async move {
                // The sender lives until then.
                let _told = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = server.run(shared, http::Metrics::new(metrics), stop).await {
                log::error!("no profiles over HTTP: {error}");
            }
        })
    }

    /// Offers the profiles of every target to the stores now and then, until it is told to stop.
    fn push(&self, options: &ServeArguments, mut stopped: watch::Receiver<bool>) -> Option<JoinHandle<()>> {
        if options.push.push.is_empty() {
            return None;
        }
        let (shared, pusher) = (Arc::clone(&self.shared), Arc::clone(&self.pusher));
        let mut times = interval(options.push.push_interval);
        times.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Some(tokio::spawn(async move {
            // The first tick is at once.
            times.tick().await;
            loop {
                let goes_on = tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => false,
                    _ = times.tick() => true,
                };
                if !goes_on {
                    return;
                }
                offer_all(&shared, &pusher).await;
            }
        }))
    }

    /// Looks for targets and takes note of what the groups tell, until it is told to stop.
    async fn follow(&mut self, signals: &mut Signals, arguments: &ServeArguments, words: &[OsString]) {
        let mut looks = interval(LOOK_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wish = tokio::select! {
                wish = signals.next() => Some(wish),
                Some((group, event)) = self.events.recv() => {
                    self.note(group, event);
                    None
                }
                // An engine that hangs must not keep the daemon from ending.
                _ = looks.tick() => tokio::select! {
                    wish = signals.next() => Some(wish),
                    found = self.discovery.look() => {
                        self.targets.reconcile(found);
                        None
                    }
                },
            };
            match wish {
                Some(Wish::End) => return,
                Some(Wish::Reload) => self.reload(arguments, words),
                None => {}
            }
        }
    }

    /// Reads the configuration again; what cannot be used changes nothing.
    fn reload(&mut self, arguments: &ServeArguments, words: &[OsString]) {
        notify(&reloading());
        let read = read(arguments, words).and_then(|new| Ok((discovery_of(&new)?, new)));
        match read {
            Ok((discovery, new)) => {
                self.discovery = discovery;
                self.targets.set_budget(budget_of(&new.options));
                say("the configuration was read again; addresses and stores stay as they are");
            }
            Err(error) => log::error!("the configuration stays as it was: {error}"),
        }
        notify(&[NotifyState::Ready]);
    }

    fn note(&mut self, group: GroupId, event: Event) {
        let mut ended = self.targets.note(group, event);
        while let Ok((group, event)) = self.events.try_recv() {
            ended.extend(self.targets.note(group, event));
        }
        // Before their last words are pushed: after those nothing else may be.
        self.targets.publish();
        for ending in ended {
            let pusher = Arc::clone(&self.pusher);
            tokio::spawn(push_last(ending, pusher));
        }
    }

    /// Ends all targets, and queues their last words for the stores.
    async fn end_targets(&mut self, deadline: Instant) {
        self.targets.end_all();
        let mut last = JoinSet::new();
        while self.targets.has_traced() && self.targets.has_groups() {
            let Ok(Some((group, event))) = timeout_at(deadline, self.events.recv()).await else {
                break;
            };
            let ended = self.targets.note(group, event);
            self.targets.publish();
            for ending in ended {
                last.spawn(push_last(ending, Arc::clone(&self.pusher)));
            }
        }
        while let Ok(Some(_)) = timeout_at(deadline, last.join_next()).await {}
    }

    /// Waits until nothing is attached any more, and says so if that takes long.
    async fn let_go(&mut self, deadline: Instant) {
        let mut letting_go = pin!(self.groups_end(deadline));
        if timeout(REMOVED_SOON, &mut letting_go).await.is_err() {
            say(REMOVING);
            letting_go.await;
        }
    }

    async fn groups_end(&mut self, deadline: Instant) {
        while self.targets.has_groups() {
            let Ok(Some((group, event))) = timeout_at(deadline, self.events.recv()).await else {
                log::warn!("what is attached could not be let go in {} s", PATIENCE.as_secs());
                return;
            };
            // All targets have ended: their groups only tell that they are over.
            self.targets.note(group, event);
        }
    }
}

fn discovery_of(configuration: &Configuration) -> Result<Discovery, Error> {
    let endpoints = Endpoints::from_environment(configuration.options.runtime_endpoint.as_deref());
    if configuration.targets.is_empty() {
        let text = "nothing to trace: name targets with --pid, --container, --cgroup, --command, or in a file with --config";
        return Err(Error::Usage(text.into()));
    }
    Discovery::new(configuration.targets.clone(), endpoints).map_err(Error::Usage)
}

fn budget_of(options: &ServeArguments) -> Budget {
    Budget {
        targets: options.max_targets,
        memory: options.max_memory,
    }
}

/// `Type=notify-reload` wants the time with it (`sd_notify(3)`, RELOADING=1); without a clock there is none.
fn reloading() -> Vec<NotifyState<'static>> {
    let time = NotifyState::monotonic_usec_now();
    std::iter::once(NotifyState::Reloading).chain(time).collect()
}

/// Tells systemd, if it started memtrace.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        log::debug!("systemd is not told: {error}");
    }
}

async fn offer_all(shared: &Shared, pusher: &Pusher) {
    for entry in &*shared.entries() {
        let until = SystemTime::now();
        match shared.profiles(entry, None).await {
            // After its last words nothing may come: it would be kept for ever, see `Pusher::forget`.
            Ok(profiles) if shared.has(&entry.summary.id) => offer(entry, profiles, until, pusher),
            // Its last words come by themselves.
            Ok(_) | Err(SourceError::Gone) => {}
            Err(error) => log::warn!("{} is not pushed: {error}", printable(&entry.summary.title)),
        }
    }
}

async fn push_last(ending: Ending, pusher: Arc<Pusher>) {
    let until = SystemTime::now();
    if let Ok(profiles) = ending.profiles.await {
        offer(&ending.entry, profiles, until, &pusher);
    }
    pusher.forget(&ending.entry.summary.id);
}

fn offer(entry: &Entry, profiles: Profiles, until: SystemTime, pusher: &Pusher) {
    let target: Arc<str> = entry.summary.id.as_str().into();
    let labels: Vec<(String, String)> = entry.labels.clone().into_iter().collect();
    for (name, profile) in profiles {
        pusher.offer(Offer {
            target: Arc::clone(&target),
            labels: labels.clone(),
            name,
            profile,
            from: entry.summary.since,
            until,
            counts_from_before: entry.is_go && name == "heap",
        });
    }
}

fn say_what_was_pushed(counters: &[(String, Counters)]) {
    for (store, counters) in counters {
        say(&format!(
            "pushed to {store}: {} profiles, {} failed, {} dropped",
            counters.sent, counters.failed, counters.dropped
        ));
    }
}

/// The signals that the daemon obeys.
struct Signals {
    ends: Caught,
    hang_up: Caught,
}

/// What a signal asks for.
enum Wish {
    End,
    Reload,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        Ok(Self {
            ends: Caught::ends()?,
            hang_up: Caught::one(libc::SIGHUP)?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            () = self.ends.next() => Wish::End,
            () = self.hang_up.next() => Wish::Reload,
        }
    }
}
