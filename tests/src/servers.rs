//! Servers to trace: nginx, redis and PostgreSQL, on loopback, with directories of their own.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::{
    Result,
    child::{Child, PATIENCE},
    net, skip,
};

// ---------------------------------------------------------------------------------------------- nginx

/// A running nginx that serves `/page`.
#[derive(Debug)]
pub struct Nginx {
    /// Its master process.
    pub master: Child,
    /// Where it listens.
    pub address: SocketAddr,
    directory: TempDir,
}

impl Nginx {
    /// Starts the program with so many worker processes, and waits until all of them run and one serves: the master
    /// listens before it has started any.
    pub fn start(program: &Path, workers: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = net::free_address()?;
        let configuration = directory.path().join("nginx.conf");
        fs::create_dir(directory.path().join("www"))?;
        let page = "A line that compresses well.\n".repeat(400);
        fs::write(directory.path().join("www/page"), page)?;
        fs::write(
            &configuration,
            nginx_configuration(directory.path(), address, workers),
        )?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&configuration);
        let nginx = Self {
            master: Child::spawn(command.arg("-p").arg(directory.path()))?,
            address,
            directory,
        };
        net::await_server(address)?;
        net::fetch(address, "/page")?;
        let deadline = Instant::now() + PATIENCE;
        while nginx.workers()?.len() < workers {
            ensure!(
                Instant::now() < deadline,
                "nginx has only {:?} for workers",
                nginx.workers()?
            );
            sleep(Duration::from_millis(20));
        }
        Ok(nginx)
    }

    /// The ids of the workers: the master has no other children.
    pub fn workers(&self) -> Result<Vec<u32>> {
        children_of(self.master.pid())
    }

    /// Ends it, workers and all, and insists that it has nothing to complain of.
    pub fn quit(mut self) -> Result<()> {
        ensure!(self.master.is_running()?);
        // SIGTERM lets the master end its workers.
        self.master.signal(libc::SIGTERM)?;
        self.master.wait(PATIENCE)?;
        let log = fs::read_to_string(self.directory.path().join("error.log"))?;
        ensure!(!log.contains("[alert]") && !log.contains("[emerg]"), "{log}");
        Ok(())
    }
}

fn nginx_configuration(directory: &Path, address: SocketAddr, workers: usize) -> String {
    let directory = directory.display();
    format!(
        "daemon off;\nworker_processes {workers};\nuser root;\npid {directory}/pid;\nerror_log {directory}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
         access_log off; gzip on; gzip_types text/plain; gzip_min_length 100;\n\
         client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
         fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
         server {{ listen {address}; root {directory}/www; default_type text/plain; }}\n\
         }}\n"
    )
}

/// The children of a process with one thread.
fn children_of(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let children = children.split_whitespace().map(str::parse);
    children
        .collect::<Result<_, _>>()
        .with_context(|| format!("what is in {path}"))
}

// ---------------------------------------------------------------------------------------------- redis

/// Starts redis, with a library before all others if wanted. Debian's is linked with jemalloc.
pub fn start_redis(
    server: &Path,
    address: SocketAddr,
    directory: &Path,
    preload: Option<&str>,
) -> Result<Child> {
    let mut command = Command::new(server);
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
    command
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(directory);
    command.envs(preload.map(|library| ("LD_PRELOAD", library)));
    let redis = Child::spawn(&mut command)?;
    net::await_server(address)?;
    Ok(redis)
}

// ---------------------------------------------------------------------------------------------- PostgreSQL

/// Where Debian keeps the programs of each version.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";

/// The user that Debian's package makes: PostgreSQL refuses to run as root.
const POSTGRES_USER: &str = "postgres";

/// A running PostgreSQL that trusts everybody.
#[derive(Debug)]
pub struct Postgres {
    /// The process that forks a backend for each session.
    pub postmaster: Child,
    address: SocketAddr,
    programs: PathBuf,
    _directory: TempDir,
}

/// A client that is connected.
#[derive(Debug)]
pub struct PostgresSession {
    client: Child,
    /// The process that serves it.
    pub backend: u32,
}

impl Postgres {
    /// Starts it; `None`, and a word about it, if it is not installed.
    pub fn start() -> Result<Option<Self>> {
        let Some(programs) = postgres_programs() else {
            skip::skipped("PostgreSQL is not installed");
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let (user, group) = user(POSTGRES_USER)?;
        chown(directory.path(), Some(user), Some(group)).context("giving a directory away")?;
        let data = directory.path().join("data");
        let mut initdb = as_postgres(&programs, "initdb", directory.path());
        initdb
            .args(["--auth=trust", "--no-sync", "--username=postgres", "-D"])
            .arg(&data);
        let output = initdb.output().context("running initdb")?;
        if !output.status.success() {
            bail!("{initdb:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let address = net::free_address()?;
        let mut command = as_postgres(&programs, "postgres", directory.path());
        command.arg("-D").arg(&data).arg("-k").arg(directory.path());
        command.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
        let mut postmaster = Child::spawn(&mut command)?;
        wait_until_ready(&mut postmaster)?;
        Ok(Some(Self {
            postmaster,
            address,
            programs,
            _directory: directory,
        }))
    }

    /// Connects a client.
    pub fn session(&self) -> Result<PostgresSession> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"]);
        command.args(["-h", "127.0.0.1", "-p", &self.address.port().to_string()]);
        command.args(["-U", "postgres", "postgres"]);
        let mut session = PostgresSession {
            client: Child::spawn(&mut command)?,
            backend: 0,
        };
        session.backend = session.ask("select pg_backend_pid();")?.parse()?;
        Ok(session)
    }
}

impl PostgresSession {
    /// Has a query answered that has one line for an answer.
    pub fn ask(&mut self, query: &str) -> Result<String> {
        self.client.tell(query)?;
        self.client.stdout.next(PATIENCE)
    }
}

fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir(POSTGRES_VERSIONS).ok()?;
    versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .find(|programs| programs.join("postgres").is_file() && programs.join("psql").is_file())
}

fn as_postgres(programs: &Path, program: &str, directory: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={POSTGRES_USER}"))
        .arg(format!("--regid={POSTGRES_USER}"))
        .arg("--clear-groups")
        .arg(programs.join(program))
        // The directory of the test need not be open to that user.
        .current_dir(directory);
    command
}

/// The ids of a user and of the user's group.
fn user(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("reading the list of users")?;
    let fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name) && fields.len() > 3)
        .with_context(|| format!("there is no user {name}"))?;
    Ok((fields[2].parse()?, fields[3].parse()?))
}

fn wait_until_ready(postmaster: &mut Child) -> Result<()> {
    loop {
        let line = postmaster.stderr.next(PATIENCE)?;
        if line.contains("ready to accept connections") {
            return Ok(());
        }
    }
}
