//! Accepts connections, and drops those that are slow.

use std::{
    io,
    net::{self, SocketAddr},
    os::unix,
    path::Path,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use super::{
    error::HttpError,
    guard::{Guard, Peer},
    listen::{Listen, SocketFile, listen_tcp, listen_unix},
    metrics::Metrics,
    options::HttpOptions,
    routes::{App, Place, router},
    snapshots::Snapshots,
    source::Source,
    tls,
    token::{Token, TokenFile},
};

/// How many connections are open at once; others wait to be accepted.
const CONNECTIONS: usize = 256;
/// The time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The time for the head of a request, from the end of the answer before it.
const HEAD: Duration = Duration::from_secs(10);
/// The largest head of a request (bytes).
const HEAD_SIZE: usize = 16 << 10;
/// For how long a client may take nothing of an answer.
const STALL: Duration = Duration::from_secs(30);
/// The time for answers under way when the server stops.
const LAST_ANSWERS: Duration = Duration::from_millis(800);
/// The pause when no connection can be accepted, such as for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A server that listens; clients wait until it is run.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    guard: Guard,
    tls: Option<Arc<ServerConfig>>,
    token_file: Option<TokenFile>,
}

#[derive(Debug)]
enum Socket {
    Unix(unix::net::UnixListener, SocketFile),
    Tcp(net::TcpListener, SocketAddr),
}

impl Server {
    /// Listens where the options say; `None` when they do not.
    ///
    /// # Errors
    ///
    /// As [`HttpError`] says. Nothing is left behind then.
    pub fn bind(options: &HttpOptions) -> Result<Option<Self>, HttpError> {
        match &options.listen {
            None => Ok(None),
            Some(Listen::Unix(path)) => Self::bind_unix(path, options).map(Some),
            Some(Listen::Tcp(address)) => Self::bind_tcp(*address, options).map(Some),
        }
    }

    /// What it listens at and, when a token was made, the name of the file that holds it: one line for people.
    pub fn announcement(&self) -> String {
        let place = match &self.socket {
            Socket::Unix(_, file) => format!("unix:{}", file.path().display()),
            Socket::Tcp(_, address) if self.tls.is_some() => format!("https://{address}/"),
            Socket::Tcp(_, address) => format!("http://{address}/"),
        };
        match &self.token_file {
            Some(file) => format!("profiles at {place}, the token is in {}", file.path().display()),
            None => format!("profiles at {place}"),
        }
    }

    /// The address and port, unless it listens at a socket in the file system.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Unix(..) => None,
            Socket::Tcp(_, address) => Some(*address),
        }
    }

    /// The file with the token that was made.
    pub fn token_file(&self) -> Option<&Path> {
        self.token_file.as_ref().map(TokenFile::path)
    }

    /// Answers until `stop` is ready, and within a second after that: what waits is told so, and what does not end is
    /// dropped.
    ///
    /// # Errors
    ///
    /// Fails when the runtime cannot watch the socket.
    pub async fn run<S: Source>(
        self,
        source: Arc<S>,
        metrics: Metrics,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (stopping, stopped) = watch::channel(false);
        let place = match &self.socket {
            Socket::Unix(_, file) => Place::Socket(file.path().display().to_string()),
            Socket::Tcp(..) => Place::Network {
                tls: self.tls.is_some(),
            },
        };
        let app = App {
            snapshots: Snapshots::new(source, metrics.clone(), stopped),
            metrics: metrics.clone(),
            place,
        };
        let graceful = GracefulShutdown::new();
        let mut connections = Connections {
            router: router(Arc::new(app), Arc::new(self.guard)),
            tls: self.tls.map(TlsAcceptor::from),
            metrics,
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            tasks: JoinSet::new(),
        };
        // The file goes when this ends.
        let _until_here = self.token_file;
        let (listener, _socket_file) = Listener::new(self.socket)?;
        tokio::select! {
            () = stop => {}
            () = connections.accept(&listener, &graceful) => {}
        }
        drop(listener);
        // Nobody waits when nothing is open.
        let _nobody_waits = stopping.send(true);
        let _some_remain = timeout(LAST_ANSWERS, graceful.shutdown()).await;
        connections.tasks.shutdown().await;
        Ok(())
    }

    fn bind_unix(path: &Path, options: &HttpOptions) -> Result<Self, HttpError> {
        if options.tls_cert.is_some() || options.token_file.is_some() {
            return Err(HttpError::Options(
                "a unix socket needs neither token nor TLS, the system says who connects: leave out --token-file and --tls-cert".to_owned(),
            ));
        }
        let (listener, file) = listen_unix(path)?;
        Ok(Self {
            socket: Socket::Unix(listener, file),
            guard: Guard::new(None, &options.allow_host),
            tls: None,
            token_file: None,
        })
    }

    fn bind_tcp(address: SocketAddr, options: &HttpOptions) -> Result<Self, HttpError> {
        let tls = match (&options.tls_cert, &options.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::config(certificate, key)?),
            (None, None) => None,
            _ => {
                return Err(HttpError::Options(
                    "--tls-cert and --tls-key need each other: give both".to_owned(),
                ));
            }
        };
        if tls.is_none() && !address.ip().to_canonical().is_loopback() {
            return Err(HttpError::NeedsTls(address));
        }
        let listener = listen_tcp(address)?;
        let address = listener.local_addr().map_err(|source| HttpError::Listen {
            address: address.to_string(),
            source,
        })?;
        let (token, token_file) = Token::find(options.token_file.as_deref(), address.port())?;
        Ok(Self {
            socket: Socket::Tcp(listener, address),
            guard: Guard::new(Some(token), &options.allow_host),
            tls,
            token_file,
        })
    }
}

/// A socket that the runtime watches.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A connection that was accepted.
enum Accepted {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Listener {
    fn new(socket: Socket) -> io::Result<(Self, Option<SocketFile>)> {
        Ok(match socket {
            Socket::Unix(listener, file) => (Self::Unix(UnixListener::from_std(listener)?), Some(file)),
            Socket::Tcp(listener, _) => (Self::Tcp(TcpListener::from_std(listener)?), None),
        })
    }

    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().map(|peer| peer.uid());
                Ok((Accepted::Unix(stream), Peer::Unix(uid.ok())))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let local = stream.local_addr()?;
                Ok((Accepted::Tcp(stream), Peer::Tcp(local)))
            }
        }
    }
}

/// The connections that are open.
struct Connections {
    router: Router,
    tls: Option<TlsAcceptor>,
    metrics: Metrics,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Connections {
    /// Accepts connections for ever.
    async fn accept(&mut self, listener: &Listener, graceful: &GracefulShutdown) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, peer)) => self.serve(stream, peer, room, graceful.watcher()),
                Err(error) => {
                    log::warn!("http: cannot accept a connection: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn serve(&mut self, stream: Accepted, peer: Peer, room: OwnedSemaphorePermit, watcher: Watcher) {
        let (router, tls) = (self.router.clone(), self.tls.clone());
        let counted = self.metrics.connected();
        self.tasks.spawn(async move {
            let _until_closed = (room, counted);
            match (stream, tls) {
                (Accepted::Unix(stream), _) => serve(patient(stream, STALL), peer, router, watcher).await,
                (Accepted::Tcp(stream), None) => serve(patient(stream, STALL), peer, router, watcher).await,
                (Accepted::Tcp(stream), Some(tls)) => {
                    let greeted = timeout(HANDSHAKE, tls.accept(patient(stream, STALL))).await;
                    // Who speaks no TLS gets the alert that rustls sends, and nothing else.
                    if let Ok(Ok(stream)) = greeted {
                        serve(stream, peer, router, watcher).await;
                    }
                }
            }
        });
    }
}

/// A stream that fails when the other end takes nothing for this time.
pub(super) fn patient<I: AsyncRead + AsyncWrite>(stream: I, stall: Duration) -> Pin<Box<TimeoutStream<I>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(stall));
    Box::pin(stream)
}

/// Answers the requests of a connection.
async fn serve<I>(stream: I, peer: Peer, router: Router, watcher: Watcher)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        routes.call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    // What a client does wrong is between it and the protocol: hyper answers, or closes the connection.
    let _closed = watcher.watch(connection).await;
}
