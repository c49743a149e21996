//! Sockets in the file system, TLS, and what is refused at the start.

use std::{
    fs,
    io::{self, Write as _},
    net::TcpListener,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use clap::Parser as _;
use rustix::process::geteuid;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;

use super::fixture::{AGES, Answer, Running, TOKEN, ask, private_file, read_all, runtime, source};
use crate::{
    output::http::{HttpError, HttpOptions, Listen, Server},
    symbol::testing::scratch,
};

fn at_socket(path: &Path) -> HttpOptions {
    HttpOptions {
        listen: Some(Listen::Unix(path.to_owned())),
        ..HttpOptions::default()
    }
}

fn run_at_socket() -> (Running, PathBuf) {
    let scratch = scratch();
    let path = scratch.path().join("memtrace.sock");
    let server = Server::bind(&at_socket(&path)).unwrap().unwrap();
    (Running::run(server, source(&["web"]), scratch), path)
}

fn get(path: &Path, what: &str) -> Answer {
    runtime().block_on(async {
        let stream = tokio::net::UnixStream::connect(path).await.unwrap();
        ask(stream, "GET", what, "localhost", &[]).await
    })
}

#[test]
fn a_socket_is_for_its_owner() {
    let (mut server, path) = run_at_socket();
    let status = fs::symlink_metadata(&path).unwrap();
    assert!(status.file_type().is_socket());
    assert_eq!(status.mode() & 0o7777, 0o600);
    // No token, and any name: no page can reach a socket.
    assert_eq!(get(&path, "/debug/pprof/heap").status, 200);
    let page = get(&path, "/debug/pprof/");
    let command = format!("curl --unix-socket {} -o heap.pb.gz", path.display());
    assert!(page.text().contains(&command), "{}", page.text());
    server.stop();
    assert!(!path.exists(), "it is removed at the end");
}

/// Does something as another user. The system call changes this thread only, unlike the C library's function.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: libc::uid_t = 65_534;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: it takes three numbers, and changes who this thread is, which ends with `work`.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(changed, 0, "{}", io::Error::last_os_error());
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn another_user_is_refused() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let (server, path) = run_at_socket();
    let directory = server.scratch.path();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let error = as_nobody(|| UnixStream::connect(&path).unwrap_err());
    assert_eq!(
        error.kind(),
        io::ErrorKind::PermissionDenied,
        "the file is private"
    );
    // Somebody opens it up: the server still looks who comes.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let mut stream = as_nobody(|| UnixStream::connect(&path).unwrap());
    stream.set_read_timeout(Some(AGES)).unwrap();
    stream
        .write_all(b"GET /targets HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let answer = read_all(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("only root"), "{answer}");
    assert_eq!(get(&path, "/targets").status, 200);
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else() {
    let scratch = scratch();
    let path = scratch.path().join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::bind(&at_socket(&path)).unwrap().unwrap();
    // Now it answers.
    let again = Server::bind(&at_socket(&path)).unwrap_err();
    assert!(matches!(again, HttpError::InUse(_)), "{again}");
    // What another program has put there stays.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(other);
    let file = scratch.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &link] {
        let refused = Server::bind(&at_socket(path)).unwrap_err();
        assert!(matches!(refused, HttpError::NotASocket(_)), "{refused}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn addresses_are_parsed() {
    let parse = |text: &str| text.parse::<Listen>();
    assert_eq!(parse("unix:/run/a.sock"), Ok(Listen::Unix("/run/a.sock".into())));
    assert_eq!(parse("127.0.0.1:6060").unwrap().to_string(), "127.0.0.1:6060");
    assert_eq!(parse("[::1]:6060").unwrap().to_string(), "[::1]:6060");
    for wrong in [
        "",
        "6060",
        ":6060",
        "localhost",
        "127.0.0.1",
        "unix:",
        "unix:a.sock",
        "unix:@a",
        "unix:/",
        "/run/a.sock",
    ] {
        let why = parse(wrong).unwrap_err();
        assert!(why.contains("write for example"), "{why}");
    }
}

#[test]
fn options_are_parsed() {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        http: HttpOptions,
    }
    let parse = |options: &[&str]| {
        let words = ["memtrace"].iter().chain(options);
        Line::try_parse_from(words).map(|line| line.http)
    };
    let some = parse(&[
        "--listen",
        "unix:/run/a.sock",
        "--allow-host",
        "node-7.",
        "--allow-host",
        "b",
    ])
    .unwrap();
    assert_eq!(some.listen, Some(Listen::Unix("/run/a.sock".into())));
    assert_eq!(some.allow_host, ["node-7", "b"]);
    assert!(parse(&[]).unwrap().listen.is_none());
    for wrong in [
        &["--listen", "6060"][..],
        &["--tls-cert", "a"],
        &["--tls-key", "a"],
        &["--allow-host", "a:6060"],
        &["--allow-host", "http://a"],
        &["--allow-host", ""],
        &["--token", "secret"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

/// Writes a certificate for this machine and its key.
fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    private_file(&key, &made.signing_key.serialize_pem());
    (certificate, key)
}

fn run_with_tls(listen: &str) -> Running {
    Running::with(source(&["web"]), |options, directory| {
        let (certificate, key) = certificate(directory);
        options.listen = Some(listen.parse().unwrap());
        (options.tls_cert, options.tls_key) = (Some(certificate), Some(key));
    })
}

#[test]
fn tls_is_spoken() {
    let server = run_with_tls("127.0.0.1:0");
    let path = server.scratch.path().join("cert.pem");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let ask = |token: &str| {
        let bearer = format!("Bearer {token}");
        runtime().block_on(async {
            let stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            ask(
                stream,
                "GET",
                "/debug/pprof/",
                "localhost",
                &[("authorization", &bearer)],
            )
            .await
        })
    };
    let page = ask(TOKEN);
    assert!(
        page.text()
            .contains("https://memtrace:$MEMTRACE_TOKEN@localhost/targets/web/"),
        "{}",
        page.text()
    );
    assert_eq!(ask("wrong").status, 401);
    // Without TLS nothing is said.
    let plain = server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!plain.contains("HTTP"), "{plain}");
}

#[test]
fn go_tool_pprof_speaks_tls() {
    let server = run_with_tls("0.0.0.0:0");
    let port = server.address().port();
    let output = Command::new("go")
        .args(["tool", "pprof", "-symbolize=none", "-top"])
        .arg(format!(
            "https+insecure://x:{TOKEN}@127.0.0.1:{port}/debug/pprof/heap"
        ))
        .env("PPROF_TMPDIR", server.scratch.path())
        .output();
    match output {
        Ok(output) => {
            let top = String::from_utf8_lossy(&output.stdout);
            assert!(
                top.contains("inlined"),
                "{top}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Err(error) => println!("SKIPPED: go: {error}"),
    }
}

#[test]
fn what_is_unsafe_is_refused_at_the_start() {
    let scratch = scratch();
    let token = private_file(&scratch.path().join("token"), TOKEN);
    let (certificate, key) = certificate(scratch.path());
    let options = |listen: &str| HttpOptions {
        listen: Some(listen.parse().unwrap()),
        token_file: Some(token.clone()),
        ..HttpOptions::default()
    };
    let refused = |options: &HttpOptions| Server::bind(options).unwrap_err().to_string();
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:6060", "[::ffff:192.0.2.1]:6060"] {
        assert!(refused(&options(open)).contains("needs TLS"), "{open}");
    }
    assert!(Server::bind(&options("[::ffff:127.0.0.1]:0")).is_ok());
    assert!(Server::bind(&HttpOptions::default()).unwrap().is_none());
    let swapped = HttpOptions {
        tls_cert: Some(key.clone()),
        tls_key: Some(certificate.clone()),
        ..options("127.0.0.1:0")
    };
    assert!(
        refused(&swapped).contains("key.pem for TLS"),
        "{}",
        refused(&swapped)
    );
    let half = HttpOptions {
        tls_cert: Some(certificate),
        ..options("127.0.0.1:0")
    };
    assert!(refused(&half).contains("need each other"));
    let socket = HttpOptions {
        token_file: Some(token.clone()),
        ..at_socket(&scratch.path().join("a.sock"))
    };
    assert!(refused(&socket).contains("leave out"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(refused(&options(&address)).contains("choose another address"));
}
