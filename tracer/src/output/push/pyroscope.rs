//! Pyroscope: `push.v1.PusherService/Push`, in Connect's unary protocol.
//!
//! This and not the older `/ingest`: that one makes an application name and a label set of a string, and wants a table of the
//! sample types it does not know, in which each gets a new name. Here the labels are labels, the profile is stored as it is, every
//! sample type under its own name and unit, and Pyroscope's documentation calls the interface stable. Grafana
//! Alloy takes it, too. Connect (<https://connectrpc.com/docs/protocol#unary-request>) needs no more than a POST, which
//! every proxy passes on; gRPC would need HTTP/2 all the way.

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use prost::Message as _;

use super::{
    client::Http1,
    connection,
    messages::{Label, PushRequest, PyroscopeSeries, RawSample},
    options::Destination,
    verdict::{Verdict, of_status},
};
use crate::text::printable;

const PATH: &str = "/push.v1.PusherService/Push";

/// What memtrace calls itself.
pub(super) const AGENT: &str = concat!("memtrace/", env!("CARGO_PKG_VERSION"));

/// The most of an answer that is read (bytes).
const MAX_ANSWER: usize = 16 << 10;
/// The most of a store's words that are shown (characters).
const MAX_WORDS: usize = 300;

/// A client of one Pyroscope.
pub(super) struct Pyroscope {
    client: Http1,
    uri: Uri,
    tenant: Option<HeaderValue>,
}

impl Pyroscope {
    pub(super) fn new(client: Http1, destination: &Destination, tenant: Option<HeaderValue>) -> Self {
        Self {
            client,
            uri: destination.uri(PATH),
            tenant,
        }
    }

    /// Pushes a request that [`encode`] made.
    pub(super) async fn push(&self, body: Bytes, login: Option<&HeaderValue>) -> Verdict {
        let request = match self.request(body, login) {
            Ok(request) => request,
            Err(error) => {
                return Verdict::Refused {
                    why: error.to_string(),
                    advice: None,
                };
            }
        };
        match self.client.request(request).await {
            Ok(answer) if answer.status().is_success() => {
                // The connection can be used again once the answer is read.
                let _ = words(answer).await;
                Verdict::Taken
            }
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers().clone());
                refused(status, &headers, &words(answer).await)
            }
            Err(error) => Verdict::Later {
                why: connection::in_words(&error, &self.uri),
                after: None,
            },
        }
    }

    fn request(&self, body: Bytes, login: Option<&HeaderValue>) -> http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(CONTENT_TYPE, "application/proto")
            .header(USER_AGENT, AGENT)
            .header("connect-protocol-version", "1");
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login);
        }
        if let Some(tenant) = &self.tenant {
            // The header of Grafana's databases for the tenant.
            request = request.header("x-scope-orgid", tenant);
        }
        request.body(Full::new(body))
    }
}

/// The body of a request: one series with one profile.
pub(super) fn encode(labels: Vec<Label>, raw_profile: Vec<u8>) -> Bytes {
    let samples = vec![RawSample { raw_profile }];
    let series = vec![PyroscopeSeries { labels, samples }];
    PushRequest { series }.encode_to_vec().into()
}

fn refused(status: StatusCode, headers: &HeaderMap, answer: &[u8]) -> Verdict {
    // The error of the protocol is an object with `code` and `message`; a proxy's is anything.
    let parsed: Option<serde_json::Value> = serde_json::from_slice(answer).ok();
    let message = parsed.as_ref().and_then(|error| error.get("message")?.as_str());
    of_status(status, headers, &shown(message.unwrap_or_default()))
}

async fn words(answer: Response<Incoming>) -> Bytes {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    body.map(|body| body.to_bytes()).unwrap_or_default()
}

/// What a store said, short and safe to print.
pub(super) fn shown(said: &str) -> String {
    let short: String = said.trim().chars().take(MAX_WORDS).collect();
    printable(&short).into_owned()
}

/// An error with its causes.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    shown(&text)
}
