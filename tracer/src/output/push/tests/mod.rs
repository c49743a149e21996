//! Pushes to a store in this process, with and without faults.

mod faults;
mod fields;
mod kinds;
mod server;
mod words;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::runtime::Handle;

use super::{Bounds, Counters, Offer, PushOptions, Pusher, StoreUrl};
use crate::profile::{
    Profile,
    proto::{Function, Line, Location, Sample, ValueType},
};
use server::Server;

/// When the books of the tests began.
const BEGAN: Duration = Duration::from_secs(1_795_000_000);
const PLENTY: Bounds = Bounds {
    entries: 100,
    bytes: 1 << 20,
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + BEGAN + Duration::from_secs(seconds)
}

/// A heap profile made so many seconds after the books began, with `alloc_space` and `inuse_space` of each of some functions.
fn heap(seconds: u64, values: &[(&str, i64, i64)]) -> Profile {
    let mut profile = Profile {
        string_table: ["", "alloc_space", "inuse_space", "bytes"]
            .map(str::to_owned)
            .to_vec(),
        sample_type: [1, 2].map(|r#type| ValueType { r#type, unit: 3 }).to_vec(),
        period_type: Some(ValueType { r#type: 2, unit: 3 }),
        period: 1,
        time_nanos: BEGAN.as_nanos() as i64,
        duration_nanos: seconds as i64 * 1_000_000_000,
        ..Profile::default()
    };
    for (index, (function, alloc, inuse)) in values.iter().enumerate() {
        let id = index as u64 + 1;
        let name = profile.string_table.len() as i64;
        profile.string_table.push((*function).to_owned());
        profile.function.push(Function {
            id,
            name,
            system_name: name,
            ..Function::default()
        });
        let line = vec![Line {
            function_id: id,
            ..Line::default()
        }];
        profile.location.push(Location {
            id,
            line,
            ..Location::default()
        });
        profile.sample.push(Sample {
            location_id: vec![id],
            value: vec![*alloc, *inuse],
            label: Vec::new(),
        });
    }
    profile
}

fn offer(seconds: u64, values: &[(&str, i64, i64)]) -> Offer {
    Offer {
        target: "docker-web".into(),
        labels: vec![
            ("service_name".to_owned(), "shop".to_owned()),
            ("container".to_owned(), "web".to_owned()),
            ("node".to_owned(), "n1".to_owned()),
        ],
        name: "heap",
        profile: Arc::new(heap(seconds, values)),
        from: at(0),
        until: at(seconds),
        counts_from_before: false,
    }
}

fn options(stores: &[String]) -> PushOptions {
    PushOptions {
        push: stores
            .iter()
            .map(|store| StoreUrl::from(store.as_str()))
            .collect(),
        push_interval: Duration::from_secs(15),
        push_token_file: None,
        push_tenant: None,
        push_ca_file: None,
    }
}

fn start(stores: &[String], bounds: Bounds) -> Pusher {
    Pusher::start_within(&options(stores), bounds, &Handle::current()).unwrap()
}

/// The URL of a server for one of the two protocols.
fn url(protocol: &str, server: &Server) -> String {
    format!("{protocol}=http://{}", server.address)
}

/// Both protocols, each with a pusher to a store that answers so.
const PROTOCOLS: [&str; 2] = ["pyroscope", "parca"];

fn counters(pusher: &Pusher) -> Counters {
    pusher.counters().remove(0).1
}

/// Waits until the counters are as wished.
async fn until(pusher: &Pusher, what: impl Fn(&Counters) -> bool) -> Counters {
    for _ in 0..1500 {
        let counters = counters(pusher);
        if what(&counters) {
            return counters;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 15 s: {:?}", pusher.counters());
}

/// What was stored of each sample type by function: added up if it counts, or else the last.
fn books(server: &Server) -> BTreeMap<(String, String), i64> {
    let mut books = BTreeMap::new();
    for profile in server.stored().iter().flat_map(|stored| &stored.profiles) {
        for sample in &profile.sample {
            let function = profile.location[sample.location_id[0] as usize - 1].line[0].function_id;
            let function = profile.function[function as usize - 1].name;
            for (sample_type, value) in profile.sample_type.iter().zip(&sample.value) {
                let text = |index: i64| profile.string_table[index as usize].clone();
                let name = text(sample_type.r#type);
                let is_count = name == "alloc_space";
                let book = books.entry((text(function), name)).or_insert(0);
                *book = if is_count { *book + value } else { *value };
            }
        }
    }
    books
}

/// The books as [`books`] gives them.
fn expected(values: &[(&str, i64, i64)]) -> BTreeMap<(String, String), i64> {
    let both = values.iter().flat_map(|(function, alloc, inuse)| {
        let name = |of: &str| (function.to_string(), of.to_owned());
        [(name("alloc_space"), *alloc), (name("inuse_space"), *inuse)]
    });
    both.collect()
}
