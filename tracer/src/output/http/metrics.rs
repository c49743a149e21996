//! `/metrics`: what Prometheus reads.

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// A registry whose names all begin with `memtrace_`.
pub fn registry() -> Registry {
    Registry::with_prefix("memtrace")
}

/// What `/metrics` shows: the daemon's metrics, and the server's own.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Answer, Counter>,
    connections: Gauge,
    snapshots: Gauge,
    waiting: Gauge,
}

/// How a request was answered.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Answer {
    /// The status code.
    code: u32,
}

impl Metrics {
    /// Adds the server's metrics to those of the daemon.
    pub fn new(mut registry: Registry) -> Self {
        let requests = Family::<Answer, Counter>::default();
        let (connections, snapshots, waiting) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register(
            "http_requests",
            "Requests that were answered, by status",
            requests.clone(),
        );
        registry.register("http_connections", "Open connections", connections.clone());
        registry.register(
            "http_snapshots",
            "Snapshots being taken for requests",
            snapshots.clone(),
        );
        registry.register(
            "http_deltas",
            "Requests that wait for their second snapshot",
            waiting.clone(),
        );
        Self {
            registry: Arc::new(registry),
            requests,
            connections,
            snapshots,
            waiting,
        }
    }

    /// The text of all metrics.
    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts an answer.
    pub(super) fn answered(&self, code: u16) {
        self.requests.get_or_create(&Answer { code: code.into() }).inc();
    }

    /// Counts a connection while the result lives.
    pub(super) fn connected(&self) -> Present {
        Present::new(&self.connections)
    }

    /// Counts a snapshot while the result lives.
    pub(super) fn taking(&self) -> Present {
        Present::new(&self.snapshots)
    }

    /// Counts a request that waits for its second snapshot while the result lives.
    pub(super) fn waiting(&self) -> Present {
        Present::new(&self.waiting)
    }
}

/// One thing that a gauge counts.
#[derive(Debug)]
pub(super) struct Present(Gauge);

impl Present {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}
