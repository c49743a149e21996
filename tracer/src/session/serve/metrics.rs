//! What `/metrics` says of the targets and of pushing, read when it is asked for.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::source::Shared;
use crate::output::{
    http,
    push::{Counters, Pusher},
};

/// The metrics of the daemon; all names begin with `memtrace_`.
pub fn registry(shared: &Arc<Shared>, pusher: &Arc<Pusher>) -> Registry {
    let mut registry = http::registry();
    registry.register_collector(Box::new(Daemon {
        shared: Arc::clone(shared),
        pusher: Arc::clone(pusher),
    }));
    registry
}

struct Daemon {
    shared: Arc<Shared>,
    pusher: Arc<Pusher>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Daemon")
    }
}

/// A number of a store, with what it is called and what it means.
type PushMetric = (&'static str, &'static str, fn(&Counters) -> u64);

/// What is counted of each store.
const PUSHED: [PushMetric; 4] = [
    ("push_sent", "Profiles that a store took", |counters| {
        counters.sent
    }),
    (
        "push_failed",
        "Profiles that a store refused, or that could not be sent",
        |counters| counters.failed,
    ),
    ("push_retried", "Attempts after the first", |counters| {
        counters.retried
    }),
    (
        "push_dropped",
        "Profiles for which there was no room",
        |counters| counters.dropped,
    ),
];

impl Collector for Daemon {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let entries = self.shared.entries();
        let traced = entries.iter().filter(|entry| entry.group.is_some()).count();
        let processes: usize = entries.iter().map(|entry| entry.roots.len()).sum();
        let gauges = [
            ("targets", "Targets that are traced", traced),
            (
                "targets_waiting",
                "Targets that are not traced, for want of room or because it is not possible",
                entries.len() - traced,
            ),
            (
                "processes",
                "Processes that memtrace attached to, without what descends from them",
                processes,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let stores = self.pusher.counters();
        if stores.is_empty() {
            return Ok(());
        }
        for (name, help, value) in PUSHED {
            let kind = ConstCounter::new(0_u64).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (store, counters) in &stores {
                let labels = [("store", store.as_str())];
                ConstCounter::new(value(counters)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let queued = ConstGauge::new(0_i64).metric_type();
        let mut metric =
            encoder.encode_descriptor("push_queued", "Profiles that wait for a store", None, queued)?;
        for (store, counters) in &stores {
            let labels = [("store", store.as_str())];
            let value = i64::try_from(counters.queued).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
