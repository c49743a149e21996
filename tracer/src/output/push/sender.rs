//! The task of one store: takes offers from its queue, one after the other, and pushes them.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    backoff,
    client::AnyClient,
    labels::labels,
    messages::WriteRawRequest,
    options::{Destination, Protocol, Token},
    parca, pyroscope,
    queue::{End, Queue, Turn},
    series::Interval,
    verdict::Verdict,
};
use crate::profile::encode_gz;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How many attempts a push gets from a store that fails at it.
const ATTEMPTS: u32 = 5;
/// How long a push is kept for a store that is away. Its counts are in the next; Pyroscope takes nothing older than an
/// hour (`validation.reject-older-than`).
const KEPT: Duration = Duration::from_secs(600);
/// The longest wait between attempts when memtrace ends.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What goes over the wire.
#[derive(Clone)]
enum Payload {
    Pyroscope(Bytes),
    Parca(WriteRawRequest),
    /// All values are 0.
    Nothing,
}

pub(super) struct Sender {
    destination: Destination,
    token: Token,
    client: AnyClient,
    queue: Arc<Queue>,
    closing: watch::Receiver<bool>,
    troubles: Troubles,
}

impl Sender {
    pub(super) fn new(
        destination: Destination,
        token: Token,
        client: AnyClient,
        queue: Arc<Queue>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let troubles = Troubles::new(destination.to_string());
        Self {
            destination,
            token,
            client,
            queue,
            closing,
            troubles,
        }
    }

    /// Until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        while let Some(turn) = self.queue.next().await {
            let protocol = self.destination.protocol;
            // A large profile takes long to subtract and compress; the runtime has others to serve meanwhile.
            let prepared = spawn_blocking(move || prepare(&turn, protocol)).await;
            let end = match prepared {
                Ok((Payload::Nothing, fallen)) => End::Empty { fallen },
                Ok((payload, fallen)) => match self.deliver(&payload).await {
                    true => End::Sent { fallen },
                    false => End::Failed,
                },
                Err(_) => End::Dropped,
            };
            self.queue.settle(end);
        }
    }

    /// Whether the store took it.
    async fn deliver(&mut self, payload: &Payload) -> bool {
        let began = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (why, after, may_go_on) = match self.attempt(payload).await {
                Verdict::Taken => {
                    self.troubles.over();
                    return true;
                }
                Verdict::Refused { why, advice } => {
                    self.troubles.refused(&why, advice);
                    return false;
                }
                Verdict::Later { why, after } => (why, after, began.elapsed() < KEPT),
                Verdict::Trouble { why } => (why, None, attempts < ATTEMPTS),
            };
            self.troubles.failed(&why);
            if !may_go_on {
                return false;
            }
            self.pause(backoff::wait(attempts, after)).await;
            self.queue.count_retry();
        }
    }

    async fn attempt(&self, payload: &Payload) -> Verdict {
        let login = match self.destination.authorization(&self.token) {
            Ok(login) => login,
            Err(error) => {
                return Verdict::Later {
                    why: error.to_string(),
                    after: None,
                };
            }
        };
        let login = login.as_ref();
        let pushed = async {
            match (&self.client, payload) {
                (AnyClient::Pyroscope(client), Payload::Pyroscope(body)) => {
                    client.push(body.clone(), login).await
                }
                (AnyClient::Parca(client), Payload::Parca(message)) => {
                    client.push(message.clone(), login).await
                }
                _ => Verdict::Taken,
            }
        };
        let late = |_| Verdict::Later {
            why: format!("no answer within {} s", ATTEMPT.as_secs()),
            after: None,
        };
        timeout(ATTEMPT, pushed).await.unwrap_or_else(late)
    }

    /// Waits; when memtrace ends, no longer than it takes to try once more.
    async fn pause(&mut self, wait: Duration) {
        if *self.closing.borrow() {
            sleep(wait.min(LAST_WAIT)).await;
            return;
        }
        tokio::select! {
            () = sleep(wait) => {}
            _ = self.closing.changed() => {}
        }
    }
}

/// What is sent of an offer, and how many of its values had fallen.
fn prepare(turn: &Turn, protocol: Protocol) -> (Payload, u64) {
    let interval = Interval::new(&turn.offer, turn.base.as_ref());
    let labels = labels(&turn.offer);
    let payload = match protocol {
        _ if interval.profile.sample.is_empty() => Payload::Nothing,
        Protocol::Pyroscope => Payload::Pyroscope(pyroscope::encode(labels, encode_gz(&interval.profile))),
        Protocol::Parca => Payload::Parca(parca::message(&labels, &interval.profile)),
    };
    (payload, interval.fallen)
}

/// What has been said of a store's troubles, so that it is said once.
struct Troubles {
    store: String,
    is_failing: bool,
    refusals: HashSet<String>,
}

/// How many kinds of refusal are said.
const MAX_REFUSALS: usize = 20;

impl Troubles {
    fn new(store: String) -> Self {
        Self {
            store,
            is_failing: false,
            refusals: HashSet::new(),
        }
    }

    fn failed(&mut self, why: &str) {
        if !self.is_failing {
            log::warn!(
                "cannot push to {}: {why}; memtrace tries again, and says when it works",
                self.store
            );
        }
        self.is_failing = true;
    }

    fn over(&mut self) {
        if self.is_failing {
            log::warn!("pushing to {} works again", self.store);
        }
        self.is_failing = false;
    }

    /// Says what the store refused, once for each thing that it says; its words, without numbers, tell them apart.
    fn refused(&mut self, why: &str, advice: Option<&str>) {
        let kind = why.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.refusals.len() >= MAX_REFUSALS || !self.refusals.insert(kind) {
            return;
        }
        let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
        log::warn!(
            "{} refuses what memtrace pushes: {why}{advice}; it is counted, and said only once",
            self.store
        );
    }
}
