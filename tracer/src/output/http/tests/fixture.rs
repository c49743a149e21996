//! A source of known profiles, a server in a thread, and a client.

use std::{
    fs,
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{HeaderMap, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::{
    output::http::{HttpOptions, Metrics, ProfileName, Server, Source, SourceError, TargetSummary, registry},
    profile::{Builder, FDS, Frame, GOROUTINES, HEAP, Profile, WAIT},
    symbol::{Line, Symbolized, testing::scratch},
    target::{Mappings, ProcessInfo},
};

/// Longer than anything takes that ends at all.
pub(super) const AGES: Duration = Duration::from_secs(60);
/// The token of the servers here.
pub(super) const TOKEN: &str = "0123456789abcdef-a-token";
/// How many bytes of the one block more live in each snapshot than in the one before.
pub(super) const STEP: u64 = 4096;

/// A source whose heap grows with each snapshot.
#[derive(Default)]
pub(super) struct Fixture {
    pub(super) targets: Mutex<Vec<TargetSummary>>,
    /// How long a snapshot takes.
    pub(super) delay: Duration,
    pub(super) taken: AtomicU64,
    pub(super) now: AtomicUsize,
    /// The most snapshots that were taken at once.
    pub(super) most: AtomicUsize,
    pub(super) error: Option<SourceError>,
}

impl Source for Fixture {
    fn targets(&self) -> Vec<TargetSummary> {
        self.targets.lock().unwrap().clone()
    }

    async fn profile(&self, _target: &str, name: ProfileName) -> Result<Arc<Profile>, SourceError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(self.delay).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let count = self.taken.fetch_add(1, Ordering::SeqCst) + 1;
        match (&self.error, name) {
            (Some(error), _) => Err(error.clone()),
            (None, ProfileName::Goroutine) => Ok(Arc::new(goroutines())),
            (None, ProfileName::Fd) => Ok(Arc::new(descriptors())),
            (None, ProfileName::Heap) => Ok(Arc::new(heap(count))),
            (None, other) => Err(SourceError::NotAvailable(other.as_str().to_owned())),
        }
    }
}

/// A source with these targets.
pub(super) fn source(ids: &[&str]) -> Fixture {
    Fixture {
        targets: Mutex::new(ids.iter().map(|id| target(id)).collect()),
        ..Fixture::default()
    }
}

pub(super) fn target(id: &str) -> TargetSummary {
    TargetSummary {
        id: id.to_owned(),
        title: format!("<{id}> & co"),
        pids: vec![4711, 4712],
        since: UNIX_EPOCH + Duration::from_secs(1_795_368_817),
        profiles: vec![
            ProfileName::Heap,
            ProfileName::Fd,
            ProfileName::Goroutine,
            ProfileName::Mmap,
        ],
        notes: vec!["not covered: <a library>".to_owned()],
    }
}

/// `main` holds what `step` says, `leak` holds it for `main`.
fn heap(step: u64) -> Profile {
    let mappings = Mappings { all: Vec::new() };
    let mut builder = Builder::new(&HEAP, &process(), &mappings);
    builder.set_time(UNIX_EPOCH + Duration::from_secs(1), Duration::from_secs(step));
    builder.add_comment("covered: libc.so.6: malloc family");
    let leak = builder.location(Frame::Code(&code(0x1010, &["inlined", "leak"])));
    let main = builder.location(Frame::Code(&code(0x1020, &["main"])));
    builder.add_sample(
        [leak, main],
        &[],
        &[10 * step, 2 * STEP * step, step, STEP * step],
    );
    builder.add_sample([main], &[("heap", "inherited")], &[7, 700, 7, 700]);
    builder.finish()
}

fn goroutines() -> Profile {
    let mappings = Mappings { all: Vec::new() };
    let mut builder = Builder::new(&GOROUTINES, &process(), &mappings);
    let hang = builder.location(Frame::Code(&code(0x2010, &["main.hang"])));
    let other = builder.location(Frame::Code(&code(0x2020, &["main.main"])));
    builder.add_sample([other], &[], &[1]);
    builder.add_sample([hang], &[(WAIT, "chan receive")], &[519]);
    builder.finish()
}

fn descriptors() -> Profile {
    let mappings = Mappings { all: Vec::new() };
    let mut builder = Builder::new(&FDS, &process(), &mappings);
    let open = builder.location(Frame::Code(&code(0x3010, &["open_log"])));
    builder.add_sample([open], &[("kind", "file")], &[100, 3]);
    builder.finish()
}

fn process() -> ProcessInfo {
    ProcessInfo {
        pid: 4711,
        name: "server".to_owned(),
        executable: PathBuf::from("/usr/bin/server"),
    }
}

fn code(address: u64, functions: &[&str]) -> Symbolized {
    let line = |function: &&str| Line {
        function: (*function).into(),
        system_name: None,
        file: Some("/src/main.c".into()),
        line: 42,
        column: 0,
    };
    Symbolized {
        address,
        mapping: None,
        lines: functions.iter().map(line).collect(),
        named: true,
    }
}

/// A server in a thread of its own, until it is dropped.
pub(super) struct Running {
    pub(super) source: Arc<Fixture>,
    pub(super) address: Option<SocketAddr>,
    pub(super) scratch: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    /// At a free port, with [`TOKEN`].
    pub(super) fn at_port(source: Fixture) -> Self {
        Self::with(source, |_, _| {})
    }

    /// At a free port, with [`TOKEN`], and options that this changes; it gets a directory for files.
    pub(super) fn with(source: Fixture, change: impl FnOnce(&mut HttpOptions, &Path)) -> Self {
        let scratch = scratch();
        let mut options = HttpOptions {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            token_file: Some(private_file(&scratch.path().join("token"), TOKEN)),
            ..HttpOptions::default()
        };
        change(&mut options, scratch.path());
        let server = Server::bind(&options).unwrap().unwrap();
        Self::run(server, source, scratch)
    }

    pub(super) fn run(server: Server, source: Fixture, scratch: TempDir) -> Self {
        let source = Arc::new(source);
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let of_thread = Arc::clone(&source);
        let thread = thread::spawn(move || {
            runtime().block_on(async move {
                let stopped = async move {
                    // It is also stopped when nobody holds the other end.
                    let _ = stopped.await;
                };
                server
                    .run(of_thread, Metrics::new(registry()), stopped)
                    .await
                    .unwrap();
            });
        });
        Self {
            source,
            address,
            scratch,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// What a client gets that shows the token.
    pub(super) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[("authorization", &format!("Bearer {TOKEN}"))])
    }

    /// What a client gets with these headers.
    pub(super) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let address = self.address();
        runtime().block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            ask(stream, method, path, &address.to_string(), headers).await
        })
    }

    /// What the server sends to a client that sends these bytes, until it closes the connection.
    pub(super) fn raw(&self, sent: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have closed it already.
        let _ = stream.write_all(sent);
        read_all(&mut stream)
    }

    /// As [`Running::raw`], of a client that then says that it sends no more.
    pub(super) fn raw_and_end(&self, sent: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(sent);
        let _ = stream.shutdown(Shutdown::Write);
        read_all(&mut stream)
    }

    /// Asks for something, and does not read the answer.
    pub(super) fn begin(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(AGES)).unwrap();
        stream
    }

    /// Stops it, and says how long that took.
    pub(super) fn stop(&mut self) -> Duration {
        let began = Instant::now();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        began.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a server answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends a request over a connection of its own.
pub(super) async fn ask<I>(
    stream: I,
    method: &str,
    path: &str,
    host: &str,
    headers: &[(&str, &str)],
) -> Answer
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", host);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let answer = tokio::time::timeout(AGES, sender.send_request(request));
    let (parts, body) = answer.await.unwrap().unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    drop(sender);
    let _ = connection.await;
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// What comes until the other end closes.
pub(super) fn read_all(stream: &mut impl io::Read) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        // It closes without reading what was sent.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it stays open: {error}"),
    }
    String::from_utf8(all).unwrap()
}

/// A file that only its owner can read.
pub(super) fn private_file(path: &Path, content: &str) -> PathBuf {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

/// Waits until something is so.
pub(super) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < AGES, "{what} takes for ever");
        thread::sleep(Duration::from_millis(5));
    }
}
