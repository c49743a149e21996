//! Pushes profiles to profile stores: Pyroscope and Parca.
//!
//! Each store has a queue and a task of its own, so one that hangs delays no other. What shows the state at one moment, such as
//! `inuse_space`, is sent as it is; of what counts since tracing began, such as `alloc_space`, what came since the last
//! push that the store took, since stores add up what they get. A push that is dropped or fails is counted, and takes its
//! moment with it; what it added to the counts is in the next one of its series.
//!
//! A push may arrive twice, and its counts with it, when the connection breaks after the store has taken it and before it has
//! said so: neither protocol has a means against that.

mod backoff;
mod client;
mod connection;
mod labels;
mod messages;
mod options;
mod parca;
mod pyroscope;
mod queue;
mod sender;
mod series;
mod verdict;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{runtime::Handle, sync::watch, task::JoinSet, time::timeout};

use options::{Destination, Token};
pub use options::{Protocol, PushOptions, StoreUrl, TOKEN_VARIABLE};
use queue::{Bounds, Queue};
use sender::Sender;
use series::Key;

use crate::profile::Profile;

/// How long [`Pusher::finish`] goes on with what waits.
pub const FINISH: Duration = Duration::from_secs(10);

/// What may wait for each store: enough for 50 targets with 5 profiles each for a minute and more, or for few with large ones.
const BOUNDS: Bounds = Bounds {
    entries: 1024,
    bytes: 64 << 20,
};

/// Why nothing can be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// `--push` is not as it must be. The text does not show it, since a password may be in it.
    #[error(
        "cannot use a --push: {why}; write for example pyroscope=http://localhost:4040 or parca=https://HOST:7070"
    )]
    Url {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file with the token cannot be read.
    #[error(
        "cannot read the token in {path}: {source}; write it there, or name another file with --push-token-file"
    )]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing that could be a token.
    #[error("there is no token in {place}: a token is one line of printable ASCII")]
    NoToken {
        /// The file or the variable.
        place: String,
    },
    /// The tenant cannot stand in a header.
    #[error("cannot use this --push-tenant: a tenant is printable ASCII")]
    Tenant,
    /// No certificates, so that no https URL can be trusted.
    #[error(
        "cannot trust any https URL: {why}; name a file with certificates with --push-ca-file or SSL_CERT_FILE"
    )]
    Certificates {
        /// What is missing.
        why: String,
    },
}

/// A profile to push.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The target's id, unique in this daemon.
    pub target: Arc<str>,
    /// What the stores can search for: `service_name`, `container`, `pod`, `namespace`, `node`, ...; names are made to fit
    /// what stores allow, empty values are left out. Without `service_name` the target's id stands for it.
    pub labels: Vec<(String, String)>,
    /// Which profile: `heap`, `heap-native`, `fd`, `mmap`, `growth`, `goroutine`, `threadcreate`.
    pub name: &'static str,
    /// The profile, with the counts from when tracing began: what came since the last push is worked out here.
    pub profile: Arc<Profile>,
    /// When the counts began: when tracing began. The first push of a series is of the time since then.
    pub from: SystemTime,
    /// When the profile was made.
    pub until: SystemTime,
    /// The counts are from before `from`: a Go runtime's begin with its program. Then the counts of the first offer of
    /// the series are not sent; later ones are compared with them.
    pub counts_from_before: bool,
}

impl Offer {
    fn key(&self) -> Key {
        Key {
            target: Arc::clone(&self.target),
            name: self.name,
        }
    }
}

/// What became of the offers to one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pushes that the store took.
    pub sent: u64,
    /// Offers in which nothing was to be sent: all values 0.
    pub empty: u64,
    /// Offers that the store refused, or for which the attempts are used up.
    pub failed: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Offers that made room for later ones, were too large for the queue, or were left at the end.
    pub dropped: u64,
    /// Values that were smaller than at the last push though they only count up, and were sent as 0: a process of the target
    /// ended and took its counts along.
    pub fallen: u64,
    /// Offers that wait, with the one under way.
    pub queued: u64,
    /// Bytes of their profiles, as they are encoded.
    pub queued_bytes: u64,
}

/// Pushes to all stores of the options.
#[derive(Debug)]
pub struct Pusher {
    stores: Vec<Store>,
    closing: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Store {
    name: String,
    queue: Arc<Queue>,
}

impl Pusher {
    /// Starts a task for each store on the runtime. The caller offers profiles every [`PushOptions::push_interval`] and once more
    /// before [`Pusher::finish`]. Reads the environment's [`TOKEN_VARIABLE`].
    ///
    /// # Errors
    /// Fails when an option cannot be used; see [`PushError`].
    pub fn start(options: &PushOptions, runtime: &Handle) -> Result<Self, PushError> {
        Self::start_within(options, BOUNDS, runtime)
    }

    fn start_within(options: &PushOptions, bounds: Bounds, runtime: &Handle) -> Result<Self, PushError> {
        let token = Token::find(
            options.push_token_file.as_deref(),
            std::env::var_os(TOKEN_VARIABLE),
        )?;
        let destinations: Vec<Destination> = options
            .push
            .iter()
            .map(Destination::parse)
            .collect::<Result<_, _>>()?;
        let mut clients = client::Clients::new(options)?;
        let (closing, _) = watch::channel(false);
        let mut pusher = Self {
            stores: Vec::new(),
            closing,
            tasks: Mutex::default(),
        };
        for destination in destinations {
            let name = destination.to_string();
            let queue = Arc::new(Queue::new(bounds));
            let client = clients.client(&destination)?;
            let sender = Sender::new(
                destination,
                token.clone(),
                client,
                Arc::clone(&queue),
                pusher.closing.subscribe(),
            );
            pusher.tasks().spawn_on(sender.run(), runtime);
            pusher.stores.push(Store { name, queue });
        }
        Ok(pusher)
    }

    /// Queues a profile for every store. Does not wait; what does not fit is dropped, the oldest first, and counted.
    pub fn offer(&self, offer: Offer) {
        let offer = Arc::new(offer);
        for store in &self.stores {
            store.queue.offer(Arc::clone(&offer));
        }
    }

    /// Says that a target is gone, so that nothing is kept of it once what waits is sent. It may come back.
    pub fn forget(&self, target: &str) {
        for store in &self.stores {
            store.queue.forget(target);
        }
    }

    /// What became of the offers, by store: `pyroscope=http://localhost:4040`, without user name and password.
    pub fn counters(&self) -> Vec<(String, Counters)> {
        let stores = self.stores.iter();
        stores
            .map(|store| (store.name.clone(), store.queue.counters()))
            .collect()
    }

    /// Takes no more offers, sends what waits, and after `deadline` drops and counts the rest. Gives the last counters.
    pub async fn finish(&self, deadline: Duration) -> Vec<(String, Counters)> {
        for store in &self.stores {
            store.queue.close();
        }
        self.closing.send_replace(true);
        let mut tasks = std::mem::take(&mut *self.tasks());
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if timeout(deadline, all_ended).await.is_err() {
            tasks.shutdown().await;
        }
        for store in &self.stores {
            store.queue.drop_rest();
        }
        self.counters()
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
