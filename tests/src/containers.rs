//! Real engines for the tests, Docker's and Podman, each with state, socket and containers of its own in a temporary directory.

use std::{
    fs,
    io::Write as _,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::{
    Result,
    child::{Child, PATIENCE},
    compile,
    serial::{self, Turn},
    skip,
};

/// How long an engine may take to end with its containers gone.
const TO_END: Duration = Duration::from_secs(20);

/// A running engine. When it is dropped, its containers are removed, and it ends.
#[derive(Debug)]
pub struct Engine {
    daemon: Child,
    /// The client's program and the arguments that say which engine.
    client: Vec<String>,
    /// What every `run` needs beside the network.
    run: Vec<String>,
    /// The environment variable that names the socket.
    variable: &'static str,
    socket: PathBuf,
    directory: TempDir,
}

/// An engine that has the image `contained`, for as long as it is a test's turn.
#[derive(Debug)]
pub struct Prepared {
    engine: Engine,
    /// Given up last.
    _turn: Turn,
}

impl Prepared {
    /// Starts an engine, one of [`Engine`]'s, and gives it the image; `None` after saying why that cannot be.
    pub fn new(start: impl FnOnce() -> Result<Option<Engine>>, libc: Libc) -> Result<Option<Self>> {
        if !skip::can_trace() {
            return Ok(None);
        }
        let turn = serial::turn()?;
        let (Some(engine), Some(root)) = (start()?, root(libc)?) else {
            return Ok(None);
        };
        engine.import(root.path(), "contained")?;
        Ok(Some(Self { engine, _turn: turn }))
    }
}

impl Deref for Prepared {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Engine {
    /// Starts Docker's engine, without networks; `None` after saying why that cannot be.
    pub fn docker() -> Result<Option<Self>> {
        let (Some(daemon), Some(client)) = (skip::installed(&["dockerd"]), skip::installed(&["docker"]))
        else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let within = |name: &str| directory.path().join(name);
        let socket = within("docker.sock");
        let address = format!("unix://{}", socket.display());
        let mut command = Command::new(daemon);
        command.args(["--iptables=false", "--bridge=none", "--host", &address]);
        command.arg("--data-root").arg(within("data"));
        command.arg("--exec-root").arg(within("exec"));
        command.arg("--pidfile").arg(within("pid"));
        Self {
            daemon: Child::spawn(&mut command)?,
            client: vec![client.display().to_string(), "--host".to_owned(), address],
            run: Vec::new(),
            variable: "DOCKER_HOST",
            socket,
            directory,
        }
        .or_skip()
    }

    /// Starts Podman's service; `None` after saying why that cannot be.
    pub fn podman() -> Result<Option<Self>> {
        let Some(program) = skip::installed(&["podman"]) else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let within = |name: &str| directory.path().join(name).display().to_string();
        let socket = directory.path().join("podman.sock");
        let mut client = vec![program.display().to_string()];
        client.extend([
            "--root".to_owned(),
            within("root"),
            "--runroot".to_owned(),
            within("run"),
        ]);
        client.extend(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"].map(str::to_owned));
        let mut command = Command::new(&client[0]);
        command
            .args(&client[1..])
            .args(["system", "service", "--time", "0"]);
        command.arg(format!("unix://{}", socket.display()));
        // Its defaults are more than a virtual machine may allow.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        Self {
            daemon: Child::spawn(&mut command)?,
            client,
            run: limits.map(str::to_owned).to_vec(),
            variable: "CONTAINER_HOST",
            socket,
            directory,
        }
        .or_skip()
    }

    /// Waits until it answers. What the machine refuses an engine is no failure of memtrace's.
    fn or_skip(mut self) -> Result<Option<Self>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !self.daemon.is_running()? {
                let said = self.daemon.stderr.all(Duration::from_secs(1));
                let last: Vec<&str> = said.lines().rev().take(3).collect();
                skip::skipped(&format!(
                    "{} does not run here: {}",
                    self.client[0],
                    last.join("; ")
                ));
                return Ok(None);
            }
            if self.socket.exists() && self.client(&["ps"]).is_ok() {
                return Ok(Some(self));
            }
            ensure!(Instant::now() < deadline, "{} does not answer", self.client[0]);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The variable and the value that lead memtrace to it.
    pub fn environment(&self) -> (&'static str, String) {
        (self.variable, format!("unix://{}", self.socket.display()))
    }

    /// The socket of the containerd that Docker's engine started.
    pub fn containerd(&self) -> PathBuf {
        self.directory.path().join("exec/containerd/containerd.sock")
    }

    /// Gives the client's output of these arguments; an error if it fails.
    pub fn client(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.client[0]);
        command.args(&self.client[1..]).args(arguments);
        succeeded(command.output(), &format!("{command:?}"))
    }

    /// Makes an image of a directory.
    pub fn import(&self, root: &Path, name: &str) -> Result<()> {
        let archive = Command::new("tar").arg("-C").arg(root).args(["-c", "."]).output();
        let archive = archive.context("running tar")?;
        let mut command = Command::new(&self.client[0]);
        command.args(&self.client[1..]).args(["import", "-", name]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut import = command.spawn().context("starting the import")?;
        let mut pipe = import.stdin.take().context("the import has no stdin")?;
        pipe.write_all(&archive.stdout)?;
        drop(pipe);
        succeeded(import.wait_with_output(), &format!("{command:?}"))?;
        Ok(())
    }

    /// Runs `/contained` of an image in a container of this name, and gives the process id of its first process.
    pub fn run(&self, name: &str, image: &str, options: &[&str]) -> Result<u32> {
        let mut arguments = vec!["run", "--detach", "--name", name];
        arguments.extend(self.run.iter().map(String::as_str));
        if !options.contains(&"--network") {
            arguments.extend(["--network", "none"]);
        }
        arguments.extend(options);
        arguments.extend([image, "/contained"]);
        self.client(&arguments)?;
        self.first_process(name)
    }

    /// The process id of a container's first process.
    pub fn first_process(&self, name: &str) -> Result<u32> {
        let pid = self.client(&["inspect", "--format", "{{.State.Pid}}", name])?;
        let pid = pid.trim().parse()?;
        ensure!(pid != 0, "{name} has ended: {}", self.client(&["logs", name])?);
        Ok(pid)
    }

    /// The whole id of a container.
    pub fn id(&self, name: &str) -> Result<String> {
        let id = self.client(&["inspect", "--format", "{{.Id}}", name])?;
        Ok(id.trim().to_owned())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What fails here leaves something behind, and there is nobody to tell but who reads the test's output.
        let cleaned = self.client(&["ps", "--all", "--quiet"]).and_then(|ids| {
            let ids: Vec<&str> = ids.split_whitespace().collect();
            match ids.is_empty() {
                true => Ok(String::new()),
                false => self.client(&[&["rm", "--force"], &ids[..]].concat()),
            }
        });
        if let Err(error) = cleaned {
            eprintln!("containers remain: {error:#}");
        }
        if let Err(error) = self
            .daemon
            .signal(libc::SIGTERM)
            .and_then(|()| self.daemon.wait(TO_END))
        {
            eprintln!("{}: {error:#}", self.client[0]);
        }
    }
}

fn succeeded(output: std::io::Result<Output>, what: &str) -> Result<String> {
    let output = output.with_context(|| format!("running {what}"))?;
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The C libraries with which images are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libc {
    /// Debian's.
    Glibc,
    /// That of musl-tools.
    Musl,
}

/// The name of the library in the image, which is that of another one on most machines.
const LIBRARY: &str = "libz.so.1";

/// Makes a root directory with `/contained` and what it needs to run: with glibc also a library that has the path of one of the
/// host's and no symbols, and a debug file of that. `None` after saying what is not installed.
pub fn root(libc: Libc) -> Result<Option<TempDir>> {
    match libc {
        Libc::Glibc => glibc_root(),
        Libc::Musl => musl_root(),
    }
}

/// Debian's folders.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LINKER: &str = "lib64/ld-linux-x86-64.so.2";

fn glibc_root() -> Result<Option<TempDir>> {
    let Some(objcopy) = skip::installed(&["objcopy"]) else {
        return Ok(None);
    };
    let directory = tempfile::tempdir()?;
    let root = directory.path();
    let library = compile::Build::c("contained_library").named(LIBRARY).flags([
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wl,--build-id",
        "-Wl,-soname,libz.so.1",
    ]);
    let library = library.path()?;
    let program = compile::Build::c("contained")
        .named("contained")
        .flags(compile::NO_FRAME_POINTERS);
    let program = program.flag("-DLIBRARY").flag(&library).path()?;
    fs::create_dir_all(root.join(LIBRARIES))?;
    fs::create_dir_all(root.join("lib64"))?;
    fs::copy(program, root.join("contained"))?;
    fs::copy(Path::new("/").join(LINKER), root.join(LINKER))?;
    let libc = Path::new(LIBRARIES).join("libc.so.6");
    fs::copy(Path::new("/").join(&libc), root.join(&libc))?;
    let debug = root.join("usr/lib/debug/.build-id").join(debug_name(&library)?);
    fs::create_dir_all(debug.parent().context("the debug file has no directory")?)?;
    let mut command = Command::new(&objcopy);
    command.arg("--only-keep-debug").arg(&library).arg(debug);
    succeeded(command.output(), "objcopy")?;
    let mut command = Command::new(&objcopy);
    command
        .arg("--strip-all")
        .arg(&library)
        .arg(root.join(LIBRARIES).join(LIBRARY));
    succeeded(command.output(), "objcopy")?;
    Ok(Some(directory))
}

/// `xx/yyyy.debug`, after the build id.
fn debug_name(library: &Path) -> Result<String> {
    use object::Object as _;
    let bytes = fs::read(library)?;
    let id = object::File::parse(&*bytes)?
        .build_id()?
        .context("no build id")?
        .to_vec();
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}/{}.debug", &hex[..2], &hex[2..]))
}

fn musl_root() -> Result<Option<TempDir>> {
    const MUSL_LINKER: &str = "lib/ld-musl-x86_64.so.1";
    if skip::installed(&["musl-gcc"]).is_none() {
        return Ok(None);
    }
    let directory = tempfile::tempdir()?;
    let root = directory.path();
    let program = compile::Build::c("contained")
        .named("contained")
        .compiler("musl-gcc");
    let program = program.flags(compile::NO_FRAME_POINTERS).path()?;
    fs::create_dir_all(root.join("lib"))?;
    fs::copy(program, root.join("contained"))?;
    fs::copy(Path::new("/").join(MUSL_LINKER), root.join(MUSL_LINKER))?;
    Ok(Some(directory))
}
