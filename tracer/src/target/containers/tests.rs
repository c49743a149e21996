//! What is understood of what users write, which containers are meant, and engines that do not behave.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use super::{
    ContainerError, Endpoint, Endpoints, Engine, EngineError, Listed, Pod, Wanted, find, find_all, listing,
};

const ID: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90";
const OTHER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

fn wanted(text: &str) -> Wanted {
    Wanted::parse(text).expect("this is understood")
}

#[test]
fn what_users_write() {
    for text in [
        "web",
        "my_app.1-x",
        ID,
        "docker://web",
        "podman://web",
        "cri://web",
        "containerd://web",
        "containerd://k8s.io/web",
        "pod/default/shop",
        "pod/kube-system/shop-5d4f/app",
        "app=shop",
        "app.kubernetes.io/name=shop,tier=",
    ] {
        assert_eq!(wanted(text).to_string(), text);
    }
    assert_eq!(wanted("/web"), wanted("web"));
    assert_eq!(wanted("cri-o://web"), wanted("cri://web"));
    assert_eq!(wanted("app==shop"), wanted("app=shop"));
    for text in [
        "",
        "-web",
        "a b",
        "a/b",
        "../etc",
        "web\u{1b}[2J",
        "docker://",
        "docker://a/b",
        "lxc://web",
        "unix:///run/docker.sock",
        "containerd:///web",
        "pod/",
        "pod/default",
        "pod//shop",
        "pod/a/b/c/d",
        "=shop",
        "app=shop,",
        "app!=shop",
    ] {
        let parsed = Wanted::parse(text);
        assert!(parsed.is_err(), "{text:?}: {parsed:?}");
    }
}

fn listed(engine: Engine, id: &str, names: &[&str]) -> Listed {
    Listed {
        engine,
        socket: PathBuf::new(),
        id: id.to_owned(),
        space: None,
        names: names.iter().map(|&name| name.to_owned()).collect(),
        image: String::new(),
        pod: None,
        labels: BTreeMap::new(),
        pid: None,
    }
}

fn in_pod(id: &str, container: &str) -> Listed {
    let pod = Pod {
        namespace: "default".to_owned(),
        name: "shop".to_owned(),
        container: container.to_owned(),
        node: "node".to_owned(),
    };
    let labels =
        [("app", "shop"), ("tier", container)].map(|(key, value)| (key.to_owned(), value.to_owned()));
    Listed {
        pod: Some(pod),
        labels: labels.into(),
        space: Some("k8s.io".to_owned()),
        ..listed(Engine::Cri, id, &[container])
    }
}

#[test]
fn who_is_meant() {
    let all = [
        listed(Engine::Docker, ID, &["web"]),
        // Somebody's idea of a name.
        listed(Engine::Podman, "c0ffee", &[&ID[..12]]),
        in_pod(OTHER, "app"),
        in_pod("7e222f0abf56", "side"),
    ];
    let meant = |text: &str| -> Vec<usize> {
        let chosen = listing::choose(&wanted(text), &all);
        let place = |one: &&Listed| all.iter().position(|other| other.id == one.id);
        chosen.iter().filter_map(place).collect()
    };
    assert_eq!(meant("web"), [0]);
    assert_eq!(meant(ID), [0]);
    assert_eq!(meant(&ID[..13]), [0]);
    assert_eq!(
        meant(&ID[..12]),
        [1],
        "a name comes before the beginning of an id"
    );
    assert_eq!(meant(&ID[..11]), [0_usize; 0], "too short");
    assert_eq!(meant("pod/default/shop"), [2, 3]);
    assert_eq!(meant("pod/default/shop/side"), [3]);
    assert_eq!(meant("pod/other/shop"), [0_usize; 0]);
    assert_eq!(meant("app=shop"), [2, 3]);
    assert_eq!(meant("app=shop,tier=app"), [2]);
    assert_eq!(meant("app=shop,tier=none"), [0_usize; 0]);
    assert_eq!(meant(&format!("containerd://k8s.io/{OTHER}")), [2]);
    assert_eq!(meant(&format!("containerd://moby/{OTHER}")), [0_usize; 0]);
}

#[test]
fn sockets_as_the_engines_tools_find_them() {
    let endpoints = |runtime: Option<&str>, variables: &[(&str, &str)]| {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        let all =
            Endpoints::from_variables(runtime, |name| variables.get(name).map(|&value| value.to_owned()));
        let all = all
            .all
            .into_iter()
            .map(|one| (one.engine, one.socket.display().to_string()));
        all.collect::<Vec<_>>()
    };
    let has = |all: &[(Engine, String)], engine, path: &str| all.contains(&(engine, path.to_owned()));
    let usual = endpoints(None, &[("XDG_RUNTIME_DIR", "/run/user/7"), ("DOCKER_HOST", "")]);
    assert!(has(&usual, Engine::Docker, "/run/docker.sock"));
    assert!(has(&usual, Engine::Docker, "/run/user/7/docker.sock"));
    assert!(has(&usual, Engine::Podman, "/run/user/7/podman/podman.sock"));
    assert!(has(&usual, Engine::Cri, "/run/crio/crio.sock"));
    assert!(has(
        &usual,
        Engine::Containerd,
        "/run/k3s/containerd/containerd.sock"
    ));
    let given = endpoints(
        Some("unix:///run/given.sock"),
        &[
            ("DOCKER_HOST", "unix:///run/a.sock"),
            ("CONTAINER_HOST", "unix:///run/b.sock"),
            ("CONTAINERD_ADDRESS", "/run/c.sock"),
            ("CONTAINER_RUNTIME_ENDPOINT", "unix:///run/d.sock"),
        ],
    );
    let given: Vec<(Engine, &str)> = given
        .iter()
        .map(|(engine, path)| (*engine, path.as_str()))
        .collect();
    assert_eq!(
        given,
        [
            (Engine::Docker, "/run/a.sock"),
            (Engine::Podman, "/run/b.sock"),
            (Engine::Cri, "/run/given.sock"),
            (Engine::Containerd, "/run/c.sock"),
        ]
    );
}

/// What each engine is said to have answered when all four are at this socket.
async fn answers(socket: &Path) -> Vec<EngineError> {
    let engines = [Engine::Docker, Engine::Podman, Engine::Cri, Engine::Containerd];
    let all = engines.map(|engine| Endpoint::unix(engine, socket)).to_vec();
    match find_all(&wanted("web"), &Endpoints { all }).await {
        Err(ContainerError::NotFound { tried, .. }) => tried
            .into_iter()
            .map(|one| one.answer.expect_err("it did not answer"))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn engines_that_are_not_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    let missing = answers(&socket).await;
    assert!(
        missing.iter().all(|error| matches!(error, EngineError::NoSocket)),
        "{missing:?}"
    );
    drop(UnixListener::bind(&socket).expect("a socket"));
    let refused = answers(&socket).await;
    assert!(
        refused.iter().all(|error| error.to_string().contains("refused")),
        "{refused:?}"
    );
    let all = vec![Endpoint::given(Engine::Docker, "tcp://192.0.2.1:2375")];
    let error = find_all(&wanted("web"), &Endpoints { all })
        .await
        .expect_err("it is elsewhere");
    assert!(
        error
            .to_string()
            .contains("tcp://192.0.2.1:2375: not a socket of this machine"),
        "{error}"
    );
}

/// Answers every connection with this.
fn serve(socket: &Path, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) {
    let listener = UnixListener::bind(socket).expect("a socket");
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let request = read_request(&mut stream).await;
            // A connection that is only tried may be gone already.
            let _gone = stream.write_all(&answer(&request)).await;
            open.push(stream);
        }
    });
}

async fn read_request(stream: &mut UnixStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut bytes)).await;
    bytes.truncate(read.map_or(0, |count| count.unwrap_or(0)));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn engines_that_hang() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    serve(&socket, |_| Vec::new());
    let begin = Instant::now();
    let late = answers(&socket).await;
    assert!(
        late.iter().all(|error| matches!(error, EngineError::Late)),
        "{late:?}"
    );
    // All at the same time.
    assert!(
        begin.elapsed() < 2 * EngineError::PATIENCE,
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn engines_that_talk_nonsense() {
    let directory = tempfile::tempdir().expect("a directory");
    let long = "x".repeat(100_000);
    let nonsense = [
        "\u{1b}[2J\u{0}\u{1}garbage".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]]".to_owned(),
        "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
        format!("HTTP/1.1 400 No\r\nContent-Length: 100014\r\n\r\n{{\"message\":\"{long}\"}}"),
    ];
    for (index, answer) in nonsense.into_iter().enumerate() {
        let socket = directory.path().join(index.to_string());
        serve(&socket, move |_| answer.clone().into_bytes());
        for error in answers(&socket).await {
            let text = error.to_string();
            assert!(text.len() < 2000, "{index}: {} bytes", text.len());
        }
    }
}

/// An engine with containers of this name, as far as Docker's API goes.
fn docker(socket: &Path, containers: &[(&str, &str)], pid: u32) {
    let lists: Vec<String> = containers
        .iter()
        .map(|(id, name)| {
            format!(r#"{{"Id":"{id}","Names":["/{name}"],"Image":"shop:1","Labels":{{"app":"shop"}}}}"#)
        })
        .collect();
    let list = format!("[{}]", lists.join(","));
    serve(socket, move |request| {
        let body = if request.contains("/version") {
            r#"{"ApiVersion":"1.41"}"#.to_owned()
        } else if request.contains("/containers/json") {
            list.clone()
        } else {
            format!(r#"{{"State":{{"Pid":{pid}}}}}"#)
        };
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    });
}

#[tokio::test]
async fn the_same_name_in_two_engines() {
    let directory = tempfile::tempdir().expect("a directory");
    let (first, second) = (directory.path().join("docker"), directory.path().join("podman"));
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .expect("sleep");
    docker(&first, &[(ID, "web")], child.id());
    docker(&second, &[(OTHER, "web"), (ID, "web")], child.id());
    let all = vec![
        Endpoint::unix(Engine::Docker, first),
        Endpoint::unix(Engine::Podman, second),
    ];
    let endpoints = Endpoints { all };
    let results = [
        find(&wanted("web"), &endpoints).await,
        find(&wanted("podman://web"), &endpoints).await,
        find(&wanted("docker://web"), &endpoints).await,
    ];
    let several = find_all(&wanted("app=shop"), &endpoints).await;
    let named = find_all(&wanted("web"), &endpoints).await;
    child.kill().expect("it is a child");
    child.wait().expect("it is a child");
    let [both, of_podman, only] = results;
    // One that two engines tell of is one.
    let text = both.expect_err("there are two").to_string();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("docker://a1b2c3d4e5f6  web") && text.contains("podman://0f1e2d3c4b5a  web"));
    assert!(matches!(of_podman, Err(ContainerError::Ambiguous { candidates, .. }) if candidates.len() == 2));
    let only = only.expect("there is one");
    assert_eq!((only.id.as_str(), only.init), (ID, child.id()));
    assert_eq!((only.name.as_str(), only.image.as_str()), ("web", "shop:1"));
    assert_eq!(several.expect("there are two").len(), 2);
    assert!(
        matches!(named, Err(ContainerError::Ambiguous { .. })),
        "labels alone may mean several"
    );
}

#[tokio::test]
async fn a_process_that_cannot_be_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("docker");
    // More than the kernel gives (`PID_MAX_LIMIT`, `include/linux/threads.h`).
    docker(&socket, &[(ID, "web")], 1 << 22 | 1);
    let all = vec![Endpoint::unix(Engine::Docker, socket)];
    let error = find(&wanted("web"), &Endpoints { all })
        .await
        .expect_err("it is elsewhere");
    assert!(matches!(error, ContainerError::NotVisible { .. }), "{error}");
    assert!(error.to_string().contains("hostPID"), "{error}");
}
