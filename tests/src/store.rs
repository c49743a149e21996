//! A profile store in this process that takes what is pushed in Pyroscope's protocol.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, bail};
use memtrace::profile::{Profile, decode_gz};
use prost::Message;

use crate::Result;

/// `push.v1.PushRequest` (`api/push/v1/push.proto` of Pyroscope).
#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

/// `push.v1.RawProfileSeries`.
#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

/// `types.v1.LabelPair`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// `push.v1.RawSample`.
#[derive(Clone, PartialEq, Eq, Message)]
struct RawSample {
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
}

/// One profile that was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Of its series.
    pub labels: BTreeMap<String, String>,
    /// What came.
    pub profile: Arc<Profile>,
}

impl Pushed {
    /// The sum of a sample type over the stacks that go through a function; `None` if it has no such type.
    pub fn sum(&self, sample_type: &str, function: &str) -> Option<i64> {
        let profile = &self.profile;
        let text = |index: i64| {
            profile
                .string_table
                .get(index as usize)
                .map_or("", String::as_str)
        };
        let index = profile
            .sample_type
            .iter()
            .position(|kind| text(kind.r#type) == sample_type)?;
        let functions: Vec<u64> = profile
            .function
            .iter()
            .filter(|f| text(f.name) == function)
            .map(|f| f.id)
            .collect();
        let locations: Vec<u64> = profile
            .location
            .iter()
            .filter(|location| {
                location
                    .line
                    .iter()
                    .any(|line| functions.contains(&line.function_id))
            })
            .map(|location| location.id)
            .collect();
        let through = profile
            .sample
            .iter()
            .filter(|sample| sample.location_id.iter().any(|id| locations.contains(id)));
        Some(through.filter_map(|sample| sample.value.get(index)).sum())
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// What is done with each profile.
type Take = dyn Fn(Pushed) + Send + Sync;

/// A server, for as long as the test runs.
#[derive(Debug)]
pub struct Store {
    address: SocketAddr,
    pushed: Arc<Mutex<Vec<Pushed>>>,
}

impl Store {
    /// Begins to listen, and keeps everything.
    pub fn start() -> Result<Self> {
        let pushed = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&pushed);
        let keep = move |one| all.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        let address = Self::listen(keep)?;
        Ok(Self { address, pushed })
    }

    /// Begins to listen, and keeps nothing; `take` gets what comes. Gives what `--push` takes.
    pub fn taking(take: impl Fn(Pushed) + Send + Sync + 'static) -> Result<String> {
        let address = Self::listen(take)?;
        Ok(format!("pyroscope=http://{address}"))
    }

    fn listen(take: impl Fn(Pushed) + Send + Sync + 'static) -> Result<SocketAddr> {
        let take: Arc<Take> = Arc::new(take);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let address = listener.local_addr()?;
        // The threads end with the test program.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let take = Arc::clone(&take);
                std::thread::spawn(move || {
                    if let Err(error) = serve(&stream, &*take) {
                        eprintln!("store: {error:#}");
                    }
                });
            }
        });
        Ok(address)
    }

    /// What `--push` takes.
    pub fn option(&self) -> String {
        format!("pyroscope=http://{}", self.address)
    }

    /// What was pushed so far.
    pub fn pushed(&self) -> Vec<Pushed> {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes requests until the client leaves.
fn serve(stream: &TcpStream, take: &Take) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse::<usize>()?);
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length.context("a request without its length")?];
        reader.read_exact(&mut body)?;
        pushed(&body)?.into_iter().for_each(take);
        let mut writer = stream;
        writer
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn pushed(body: &[u8]) -> Result<Vec<Pushed>> {
    let request = PushRequest::decode(body)?;
    let mut pushed = Vec::new();
    for series in request.series {
        let labels: BTreeMap<_, _> = series
            .labels
            .into_iter()
            .map(|label| (label.name, label.value))
            .collect();
        for sample in series.samples {
            let profile = Arc::new(decode_gz(&sample.raw_profile)?);
            let labels = labels.clone();
            pushed.push(Pushed { labels, profile });
        }
    }
    if pushed.is_empty() {
        bail!("an empty push");
    }
    Ok(pushed)
}
