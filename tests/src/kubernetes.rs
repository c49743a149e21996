//! A real Kubernetes node with a control plane for the tests (`tests/kubernetes/node`), and images for it.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::{Result, containers::Engine, skip};

/// How long a pod may take to be as it should, on a machine that is busy.
const FOR_A_POD: Duration = Duration::from_secs(120);
/// How many ports the node needs.
const PORTS: usize = 7;

/// A node that runs. When it is dropped, everything of it ends.
#[derive(Debug)]
pub struct Node {
    directory: TempDir,
    ports: String,
}

impl Node {
    /// Starts it, after building it the first time, which takes minutes; `None` after saying why that cannot be.
    pub fn up() -> Result<Option<Self>> {
        for program in ["containerd", "runc", "etcd", "openssl", "gcc", "curl", "go"] {
            if skip::installed(&[program]).is_none() {
                return Ok(None);
            }
        }
        let node = Self {
            directory: tempfile::tempdir()?,
            ports: free_ports()?,
        };
        let output = node
            .script(&["up", "--control-plane"])
            .output()
            .context("starting the node")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!("{said}{}", tail(&node.state(), "*.log"));
            let last = said.lines().last().unwrap_or("it says nothing");
            skip::skipped(&format!("no Kubernetes node runs here: {last}"));
            return Ok(None);
        }
        Ok(Some(node))
    }

    /// The directory of the socket of its containerd, which the kubelet uses through CRI.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The socket of its containerd.
    pub fn socket(&self) -> PathBuf {
        self.state().join("containerd.sock")
    }

    /// Gives it an image of Docker's.
    pub fn import(&self, docker: &Engine, image: &str) -> Result<()> {
        let archive = self.directory.path().join("image.tar");
        let archive = archive.to_str().context("a path that is not UTF-8")?;
        docker.client(&["save", "--output", archive, image])?;
        told(self.script(&["import", archive]).output(), "import")?;
        Ok(())
    }

    /// Gives what kubectl prints with these arguments; an error if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.script(&["kubectl"]).args(arguments).output();
        told(output, &format!("kubectl {arguments:?}"))
    }

    /// Has the cluster what a manifest says.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.directory.path().join("manifest.yaml");
        std::fs::write(&path, manifest)?;
        let path = path.to_str().context("a path that is not UTF-8")?;
        self.kubectl(&["apply", "--filename", path])?;
        Ok(())
    }

    /// Waits until a pod's containers run; the error says what became of them.
    pub fn await_pod(&self, namespace: &str, selector: &str) -> Result<()> {
        let pods = ["--namespace", namespace, "--selector", selector];
        let state = "jsonpath={.items[*].status.containerStatuses[*].state}";
        let deadline = Instant::now() + FOR_A_POD;
        loop {
            let states = self.kubectl(&[&["get", "pods", "--output", state], &pods[..]].concat())?;
            if states.contains("running") {
                return Ok(());
            }
            if Instant::now() > deadline {
                let description = self.kubectl(&[&["describe", "pods"], &pods[..]].concat())?;
                let logs = self.kubectl(&[&["logs", "--tail=50"], &pods[..]].concat());
                bail!(
                    "the pod does not run:\n{description}\n{}",
                    logs.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the pods said last. `kubectl logs` wants an address of the node, which a loopback one is not.
    pub fn pod_logs(&self) -> String {
        tail(&self.state(), "pod-logs/*/*/*.log")
    }

    /// The script with its arguments, and what tells it where and how to run.
    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/node"));
        command
            .args(arguments)
            .env("MEMTRACE_NODE_STATE", self.state())
            .env("MEMTRACE_NODE_PORTS", &self.ports);
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What fails here leaves something behind, and there is nobody to tell but who reads the test's output.
        if let Err(error) = told(self.script(&["down"]).output(), "node down") {
            eprintln!("the node remains: {error:#}");
        }
    }
}

/// The last lines of files of a directory.
fn tail(directory: &Path, files: &str) -> String {
    let mut command = Command::new("sh");
    command
        .current_dir(directory)
        .args(["-c", &format!("tail -n 20 {files}")]);
    let said = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).into_owned()
}

/// Ports that were free a moment ago, all different.
fn free_ports() -> Result<String> {
    let listeners: Vec<TcpListener> = (0..PORTS)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<_>>()?;
    let ports = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port().to_string()));
    Ok(ports.collect::<Result<Vec<_>>>()?.join(" "))
}

fn told(output: std::io::Result<Output>, what: &str) -> Result<String> {
    let output = output.with_context(|| format!("running {what}"))?;
    ensure!(
        output.status.success(),
        "{what}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
