//! A real Kubernetes: pods are found through the node's container runtime, and memtrace runs as the DaemonSet of `deploy/`, with
//! the capabilities that it names and no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use memtrace_tests::{
    Result,
    child::PATIENCE,
    compile,
    containers::{Engine, Libc, root},
    kubernetes::Node,
    net,
    profile::Heap,
    serial, skip,
    tracer::Memtrace,
};
use tempfile::TempDir;

/// Long enough for many of the blocks that the target keeps, one every 5 ms.
const A_WHILE: Duration = Duration::from_millis(700);

/// What the manifest names, and the bits of `/proc/PID/status` (`include/uapi/linux/capability.h`).
const CAPABILITIES: [(&str, u32); 5] = [
    ("DAC_READ_SEARCH", 2),
    ("SYS_PTRACE", 19),
    ("PERFMON", 38),
    ("BPF", 39),
    ("CHECKPOINT_RESTORE", 40),
];

/// A pod that leaks, as a user that is not root; `ARGUMENTS` say in which function.
const LEAK: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: leak
  labels: {app: leak, memtrace: "on"}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  tolerations: [{operator: Exists}]
  securityContext: {runAsUser: 1234, runAsGroup: 1234}
  containers:
    - name: app
      image: contained:latest
      imagePullPolicy: Never
      command: ["/contained"]
      args: [ARGUMENTS]
"#;

/// One node for all: it takes most of the time.
#[test]
fn pods_of_a_node() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let (Some(program), Some(root)) = (static_program(), root(Libc::Musl)?) else {
        return Ok(());
    };
    let (Some(docker), Some(node)) = (Engine::docker()?, Node::up()?) else {
        return Ok(());
    };
    docker.import(root.path(), "contained:latest")?;
    node.import(&docker, "contained:latest")?;
    node.apply(&LEAK.replace("ARGUMENTS", ""))?;
    node.await_pod("default", "app=leak")?;
    found_through_the_runtime(&node)?;
    build_image(&docker, &program)?;
    node.import(&docker, "memtrace:latest")?;
    let daemon = Daemon::start(&node)?;
    let first = ["contained_child", "contained_first"];
    daemon.await_functions(&first, &node)?;
    check_capabilities()?;
    node.kubectl(&["delete", "pod", "leak", "--now"])?;
    node.apply(&LEAK.replace("ARGUMENTS", "exec"))?;
    node.await_pod("default", "app=leak")?;
    daemon.await_functions(&["contained_exec"], &node)
}

/// memtrace on the node, not in a pod.
fn found_through_the_runtime(node: &Node) -> Result<()> {
    let nowhere = || "unix:///nonexistent/engine.sock".to_owned();
    let variables = [
        ("DOCKER_HOST", nowhere()),
        ("CONTAINER_HOST", nowhere()),
        ("CONTAINERD_ADDRESS", nowhere()),
        (
            "CONTAINER_RUNTIME_ENDPOINT",
            format!("unix://{}", node.socket().display()),
        ),
    ];
    for name in ["pod/default/leak/app", "app=leak"] {
        let memtrace = Memtrace::attach_container(name, &variables, &[])?;
        std::thread::sleep(A_WHILE);
        let (heap, outcome) = memtrace.stop()?;
        ensure!(
            functions(&heap) == ["contained_first"],
            "{name}: {}",
            outcome.stdout
        );
        let others = outcome.other_heaps()?;
        ensure!(others.len() == 1 && functions(&others[0]) == ["contained_child"]);
    }
    Ok(())
}

/// memtrace as the DaemonSet of the repository, and how it is reached.
struct Daemon {
    address: std::net::SocketAddr,
    directory: TempDir,
}

impl Daemon {
    fn start(node: &Node) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let token = "a-token-for-the-tests";
        fs::write(
            directory.path().join("header"),
            format!("Authorization: Bearer {token}"),
        )?;
        let address = net::free_address()?;
        node.kubectl(&["create", "namespace", "memtrace"])?;
        let literal = format!("--from-literal=token={token}");
        node.kubectl(&[
            "create",
            "secret",
            "generic",
            "memtrace-token",
            "--namespace",
            "memtrace",
            &literal,
        ])?;
        node.apply(&manifest(node, &address.to_string())?)?;
        node.await_pod("memtrace", "app.kubernetes.io/name=memtrace")?;
        Ok(Self { address, directory })
    }

    /// Waits until the pod's profile holds blocks in these functions, and in no others of the target's.
    fn await_functions(&self, wanted: &[&str], node: &Node) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.heap().map(|heap| functions(&heap));
            if seen.as_ref().is_ok_and(|functions| functions == wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{wanted:?} wanted, but: {seen:?}\n{}", node.pod_logs());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn heap(&self) -> Result<Heap> {
        let file = self.directory.path().join("heap.pb.gz");
        let path = "targets/pod-default-leak-app/debug/pprof/heap";
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "20"]);
        curl.arg("--header")
            .arg(format!("@{}", self.directory.path().join("header").display()));
        curl.arg("--output")
            .arg(&file)
            .arg(format!("http://{}/{path}", self.address));
        let output = curl.output().context("running curl")?;
        ensure!(
            output.status.success(),
            "{} {}",
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(&file).unwrap_or_default()
        );
        Heap::read(&file)
    }
}

/// The manifest of the repository, with what is different on this node: where the image and the runtime's socket are, that there
/// is no network of pods, and that every block is recorded.
fn manifest(node: &Node, address: &str) -> Result<String> {
    let mut text = fs::read_to_string(repository().join("deploy/daemonset.yaml"))?;
    let state = node.state().display().to_string();
    let changes = [
        (
            "imagePullPolicy: IfNotPresent",
            "imagePullPolicy: Never".to_owned(),
        ),
        (
            "      hostPID: true\n",
            "      hostPID: true\n      hostNetwork: true\n".to_owned(),
        ),
        (
            "            path: /run/containerd\n",
            format!("            path: {state}\n"),
        ),
        ("\"127.0.0.1:6060\"", format!("{address:?}")),
        ("    sample-bytes = \"512k\"\n", String::new()),
    ];
    for (from, to) in changes {
        ensure!(
            text.matches(from).count() == 1,
            "the manifest does not say {from:?} once"
        );
        text = text.replace(from, &to);
    }
    Ok(text)
}

/// memtrace runs with what the manifest asks for, no more, and the manifest asks for what is written here.
fn check_capabilities() -> Result<()> {
    let text = fs::read_to_string(repository().join("deploy/daemonset.yaml"))?;
    let after = text
        .split_once("add:\n")
        .context("the manifest adds no capabilities")?
        .1;
    let lines = after.lines().map(str::trim);
    let listed = lines.take_while(|line| line.starts_with(['-', '#']));
    let listed: BTreeSet<&str> = listed.filter_map(|line| line.strip_prefix("- ")).collect();
    ensure!(
        listed == CAPABILITIES.iter().map(|(name, _)| *name).collect(),
        "{listed:?}"
    );
    let wanted = CAPABILITIES.iter().fold(0, |all, (_, bit)| all | 1_u64 << bit);
    let statuses = daemon_statuses()?;
    ensure!(statuses.len() == 1, "{} daemons", statuses.len());
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let has = u64::from_str_radix(statuses[0].get(set).context("no such line")?, 16)?;
        ensure!(has == wanted, "{set} is {has:#x}, not {wanted:#x}");
    }
    ensure!(statuses[0]["NoNewPrivs"] == "1");
    Ok(())
}

/// `/proc/PID/status` of the processes that were started as the manifest says.
fn daemon_statuses() -> Result<Vec<BTreeMap<String, String>>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.starts_with(b"/memtrace\0serve\0--config\0/etc/memtrace/") {
            let status = fs::read_to_string(entry.path().join("status"))?;
            let lines = status.lines().filter_map(|line| line.split_once(":\t"));
            found.push(
                lines
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            );
        }
    }
    Ok(found)
}

/// The image of the repository's Dockerfile.
fn build_image(docker: &Engine, program: &Path) -> Result<()> {
    let context = tempfile::tempdir()?;
    fs::copy(program, context.path().join("memtrace"))?;
    let recipe = repository().join("deploy/Dockerfile");
    let (recipe, context) = (recipe.display().to_string(), context.path().display().to_string());
    docker.client(&["build", "--tag", "memtrace:latest", "--file", &recipe, &context])?;
    let version = docker.client(&["run", "--rm", "--network", "none", "memtrace:latest", "--version"])?;
    ensure!(version.starts_with("memtrace "), "{version}");
    Ok(())
}

/// The functions of the target that keep blocks, in alphabetical order.
fn functions(heap: &Heap) -> Vec<String> {
    let kept = heap.by_function("contained_").into_iter();
    kept.filter(|(_, values)| values.inuse_objects > 0)
        .map(|(name, _)| name)
        .collect()
}

/// What `cargo xtask dist` made.
fn static_program() -> Option<PathBuf> {
    let program = env::var_os("MEMTRACE_STATIC_BIN").map(PathBuf::from);
    let program =
        program.or_else(|| Some(compile::profile_directory().ok()?.parent()?.join("dist/memtrace")));
    let program = program.filter(|program| program.exists());
    if program.is_none() {
        skip::skipped("there is no static memtrace: run `cargo xtask dist`");
    }
    program
}

fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}
