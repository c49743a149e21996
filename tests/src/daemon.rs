//! Running `memtrace serve`, and asking it over HTTP.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Result,
    child::{Child, PATIENCE},
    fd_profile::Fds,
    mmap_profile::Mappings,
    net,
    profile::Heap,
    tracer,
};

/// The token of every daemon of the tests.
const TOKEN: &str = "token-of-the-tests-1234";
/// How long the daemon may take to end.
pub const TO_END: Duration = Duration::from_secs(10);

/// A daemon that answers. It is killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

/// A target as `GET /targets` lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What it is called in addresses.
    pub id: String,
    /// What people know it by.
    pub title: String,
    /// Its processes.
    pub pids: Vec<u32>,
    /// The profiles that can be asked for; none if it is not traced.
    pub profiles: Vec<String>,
    /// What is not covered, or why it is not traced.
    pub notes: Vec<String>,
}

impl Listed {
    /// Reads an entry of the list.
    fn parse(value: &Value) -> Result<Self> {
        let texts = |name: &str| -> Result<Vec<String>> {
            let values = value[name].as_array().context("not a list")?;
            let texts = values.iter().filter_map(Value::as_str);
            Ok(texts.map(str::to_owned).collect())
        };
        let text = |name: &str| -> Result<String> { Ok(value[name].as_str().context("no text")?.to_owned()) };
        let pids = value["pids"].as_array().context("no pids")?.iter();
        Ok(Self {
            id: text("id")?,
            title: text("title")?,
            pids: pids.filter_map(Value::as_u64).map(|pid| pid as u32).collect(),
            profiles: texts("profiles")?,
            notes: texts("notes")?,
        })
    }

    /// Whether any of its notes contains this.
    pub fn has_note(&self, part: &str) -> bool {
        self.notes.iter().any(|note| note.contains(part))
    }
}

/// What a daemon that has ended left.
#[derive(Debug)]
pub struct Ended {
    /// Its messages.
    pub stderr: String,
    /// How long it took to end.
    pub took: Duration,
}

impl Daemon {
    /// Starts it with these arguments, and waits until it answers.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_with(arguments, &[])
    }

    /// As [`Self::start`], with environment variables.
    pub fn start_with(arguments: &[&str], variables: &[(&str, String)]) -> Result<Self> {
        let address = net::free_address()?;
        let mut command = tracer::command()?;
        command
            .args(["serve", "--listen", &address.to_string()])
            .args(arguments)
            .env("MEMTRACE_TOKEN", TOKEN)
            .env_remove("NOTIFY_SOCKET")
            .envs(variables.iter().cloned());
        let mut child = Child::spawn(&mut command)?;
        let directory = tempfile::tempdir()?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if !child.is_running()? || Instant::now() > deadline {
                bail!("no daemon: {}", child.stderr.all(Duration::from_secs(1)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            child,
            address,
            directory,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        self.child.signal(signal)
    }

    /// Waits for a message that begins like this, and gives its rest.
    pub fn expect(&mut self, message: &str) -> Result<String> {
        self.child.stderr.expect(message, PATIENCE)
    }

    /// What it listens at, with user and token, for `go tool pprof`.
    pub fn url(&self, path: &str) -> String {
        format!("http://tests:{TOKEN}@{}{path}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The status and the body of a page.
    pub fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        get(self.address, path)
    }

    /// All targets.
    pub fn targets(&self) -> Result<Vec<Listed>> {
        let (status, body) = self.get("/targets")?;
        ensure!(status == 200, "/targets: {status}");
        let json: Value = serde_json::from_slice(&body)?;
        let targets = json["targets"].as_array().context("no targets")?;
        targets.iter().map(Listed::parse).collect()
    }

    /// Waits until the list is as wished, and gives it.
    pub fn await_targets(&self, what: &str, is_so: impl Fn(&[Listed]) -> bool) -> Result<Vec<Listed>> {
        self.await_within(PATIENCE, what, is_so)
    }

    /// The same, with another patience.
    pub fn await_within(
        &self,
        patience: Duration,
        what: &str,
        is_so: impl Fn(&[Listed]) -> bool,
    ) -> Result<Vec<Listed>> {
        let deadline = Instant::now() + patience;
        loop {
            let targets = self.targets()?;
            if is_so(&targets) {
                return Ok(targets);
            }
            ensure!(Instant::now() < deadline, "not {what}: {targets:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a target of this id is traced.
    pub fn await_traced(&self, id: &str) -> Result<Listed> {
        let is_it = |target: &Listed| target.id == id;
        let ready = |targets: &[Listed]| {
            targets.iter().any(is_it) && matches!(self.profile(id, "heap"), Ok((200, _)))
        };
        let targets = self.await_targets(&format!("traced: {id}"), ready)?;
        targets.into_iter().find(is_it).context("a target is gone")
    }

    /// The status and the content of a target's profile. `name` may have a query.
    pub fn profile(&self, id: &str, name: &str) -> Result<(u16, Vec<u8>)> {
        self.get(&format!("/targets/{id}/debug/pprof/{name}"))
    }

    /// A target's heap.
    pub fn heap(&self, id: &str) -> Result<Heap> {
        Heap::read(&self.fetch(id, "heap")?)
    }

    /// A target's descriptors.
    pub fn fds(&self, id: &str) -> Result<Fds> {
        Fds::read(&self.fetch(id, "fd")?)
    }

    /// A target's mappings.
    pub fn mappings(&self, id: &str) -> Result<Mappings> {
        Mappings::read(&self.fetch(id, "mmap")?)
    }

    /// Puts a profile into a file, which lives as long as this does.
    pub fn fetch(&self, id: &str, name: &str) -> Result<PathBuf> {
        let (status, body) = self.profile(id, name)?;
        let said = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        ensure!(status == 200, "{name} of {id}: {status}: {}", said());
        let path = self.directory.path().join("profile.pb.gz");
        std::fs::write(&path, &body)?;
        Ok(path)
    }

    /// A directory that lives as long as this.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// A number that `/metrics` tells.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, body) = self.get("/metrics")?;
        let text = String::from_utf8(body)?;
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split(' ').nth(1));
        Ok(found.with_context(|| format!("no {name} in {text}"))?.parse()?)
    }

    /// Waits until `/metrics` tells this number.
    pub fn await_metric(&self, name: &str, value: f64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.metric(name)?;
            if (now - value).abs() < 0.5 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} is {now}, not {value}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a target's heap is as wished.
    pub fn await_heap(&self, id: &str, check: impl Fn(&Heap) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match self.heap(id).and_then(|heap| check(&heap)) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Tells it to end, and insists that it does in good order and in time.
    pub fn stop(self) -> Result<Ended> {
        self.stop_within(TO_END)
    }

    /// The same, with another time.
    pub fn stop_within(mut self, patience: Duration) -> Result<Ended> {
        let begin = Instant::now();
        self.signal(libc::SIGTERM)?;
        let status = self.child.wait(patience);
        let took = begin.elapsed();
        let stderr = self.child.stderr.all(Duration::from_secs(2));
        let status = status.with_context(|| format!("it does not end:\n{stderr}"))?;
        ensure!(status.success(), "{status}:\n{stderr}");
        Ok(Ended { stderr, took })
    }

    /// Kills it, as an operator may who has no time.
    pub fn kill(mut self) -> Result<()> {
        self.signal(libc::SIGKILL)?;
        self.child.wait(PATIENCE)?;
        Ok(())
    }
}

/// The status and the body of a page of the daemon at an address.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // As HTTP/1.0 has it, without chunks.
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading the answer")?;
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n");
    let end = end.with_context(|| format!("{path}: no head"))?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, answer[end + 4..].to_vec()))
}
