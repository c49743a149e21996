//! A store in this process that speaks both protocols, and fails as it is told.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prost::Message as _;
use tokio::{net::TcpListener, runtime::Handle, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    output::push::messages::{PushRequest, WriteRawRequest},
    profile::{Profile, decode_gz},
};

type Body = BoxBody<Bytes, Infallible>;

/// How a request is answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// It is stored.
    Stored,
    /// It is stored after a while.
    Slow(Duration),
    /// An HTTP status, `Retry-After` if there is one, and a body.
    Status(u16, Option<&'static str>, &'static str),
    /// A gRPC status and its message.
    Grpc(u32, &'static str),
    /// The connection ends before the answer, once some of the request has been read.
    Reset,
    /// There is no answer.
    Hang,
}

/// What was stored of one series of a request.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) profiles: Vec<Profile>,
}

struct Shared {
    answers: Box<dyn Fn(usize) -> Answer + Send + Sync>,
    requests: AtomicUsize,
    stored: Mutex<Vec<Stored>>,
}

/// A server, until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers requests by their number, which counts from 0.
    pub(super) async fn start(answers: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), None, answers).await
    }

    pub(super) async fn start_at(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        answers: impl Fn(usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answers: Box::new(answers),
            requests: AtomicUsize::new(0),
            stored: Mutex::default(),
        });
        let task = Handle::current().spawn(accept(listener, tls, Arc::clone(&shared)));
        Self {
            address,
            shared,
            task,
        }
    }

    pub(super) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub(super) fn stored(&self) -> Vec<Stored> {
        self.shared.stored.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
            let builder = auto::Builder::new(TokioExecutor::new());
            match tls {
                None => {
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                }
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            }
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let number = shared.requests.fetch_add(1, Ordering::SeqCst);
    let answer = (shared.answers)(number);
    let (parts, mut body) = request.into_parts();
    if matches!(answer, Answer::Reset) {
        let _ = body.frame().await;
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    match answer {
        Answer::Hang => std::future::pending().await,
        Answer::Status(status, retry_after, text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
            *response.status_mut() = status.try_into().unwrap();
            if let Some(seconds) = retry_after {
                let value = HeaderValue::from_static(seconds);
                response.headers_mut().insert("retry-after", value);
            }
            return Ok(response);
        }
        Answer::Grpc(code, message) => {
            let mut response = Response::new(Full::default().boxed());
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", code.into());
            headers.insert("grpc-message", HeaderValue::from_static(message));
            return Ok(response);
        }
        Answer::Slow(time) => tokio::time::sleep(time).await,
        Answer::Stored | Answer::Reset => {}
    }
    let is_grpc = parts.headers["content-type"] == "application/grpc";
    let series = match is_grpc {
        true => parca(&body),
        false => vec![pyroscope(&body)],
    };
    let stored = series.into_iter().map(|(labels, profiles)| Stored {
        path: parts.uri.path().to_owned(),
        headers: parts.headers.clone(),
        labels,
        profiles,
    });
    shared.stored.lock().unwrap().extend(stored);
    Ok(match is_grpc {
        true => grpc_done(),
        false => Response::new(Full::default().boxed()),
    })
}

/// An empty message and the status in trailers, as the gRPC protocol over HTTP/2 has it.
fn grpc_done() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let message = Full::new(Bytes::from_static(&[0; 5]));
    let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(body.boxed())
        .unwrap()
}

type Content = (BTreeMap<String, String>, Vec<Profile>);

fn pyroscope(body: &[u8]) -> Content {
    let mut request = PushRequest::decode(body).unwrap();
    assert_eq!(request.series.len(), 1);
    let series = request.series.remove(0);
    let labels = series.labels.into_iter();
    let samples = series.samples.iter();
    (
        labels.map(|label| (label.name, label.value)).collect(),
        samples
            .map(|sample| decode_gz(&sample.raw_profile).unwrap())
            .collect(),
    )
}

fn parca(body: &[u8]) -> Vec<Content> {
    let (prefix, message) = body.split_at(5);
    assert_eq!(prefix[0], 0, "not compressed");
    let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
    assert_eq!(length as usize, message.len());
    let request = WriteRawRequest::decode(message).unwrap();
    let series = request.series.into_iter().map(|series| {
        let labels = series.labels.unwrap().labels.into_iter();
        let samples = series.samples.iter();
        (
            labels.map(|label| (label.name, label.value)).collect(),
            samples
                .map(|sample| decode_gz(&sample.raw_profile).unwrap())
                .collect(),
        )
    });
    series.collect()
}
