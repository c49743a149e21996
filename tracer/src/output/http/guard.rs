//! Who may ask, and what: looked at before any route.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Extension, Request, State},
    http::{
        HeaderMap, Method, StatusCode, Uri,
        header::{
            ALLOW, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING,
            WWW_AUTHENTICATE,
        },
        uri::Authority,
    },
    middleware::Next,
    response::Response,
};
use rustix::process::geteuid;

use super::{reply, token::Token};

/// The route that says nothing but that the server lives, and that anybody may ask for.
pub(super) const HEALTH: &str = "/healthz";

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    /// Connected through a socket in the file system; the user, if the system said.
    Unix(Option<u32>),
    /// Connected to this address of ours.
    Tcp(SocketAddr),
}

/// What a request must show.
#[derive(Debug)]
pub(super) struct Guard {
    /// On TCP.
    token: Option<Token>,
    /// Names by which this machine may be called, beside localhost and its address.
    hosts: Vec<String>,
}

/// Why a request is refused.
struct Refusal {
    status: StatusCode,
    why: &'static str,
}

impl Guard {
    pub(super) fn new(token: Option<Token>, hosts: &[String]) -> Self {
        Self {
            token,
            hosts: hosts.to_owned(),
        }
    }

    fn check(&self, peer: Peer, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        match peer {
            Peer::Unix(uid) => check_user(uid),
            Peer::Tcp(local) => {
                self.check_host(local.ip(), uri, headers)?;
                self.check_token(headers)
            }
        }
    }

    /// A page of an attacker's can have its own name lead to this machine (DNS rebinding), and the browser then lets it read
    /// the answers. It cannot choose the `Host` header, which names it. The port does not matter: it may be a tunnel's.
    fn check_host(&self, local: IpAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut named = headers.get_all(HOST).iter();
        let authority = match (named.next(), named.next()) {
            (Some(only), None) => Authority::try_from(only.as_bytes()).ok(),
            _ => None,
        };
        let authority = authority.ok_or(Refusal {
            status: StatusCode::BAD_REQUEST,
            why: "a request needs one Host header",
        })?;
        let is_ours = |authority: &Authority| self.is_own_name(local, authority.host());
        if is_ours(&authority) && uri.authority().is_none_or(is_ours) {
            return Ok(());
        }
        Err(Refusal {
            status: StatusCode::MISDIRECTED_REQUEST,
            why: "this server does not answer to the name in the Host header; use localhost or its address, or start it with --allow-host NAME",
        })
    }

    fn is_own_name(&self, local: IpAddr, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(host).parse::<IpAddr>() {
            let address = address.to_canonical();
            return address == local.to_canonical() || address.is_loopback();
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let mut names = self.hosts.iter().map(String::as_str).chain(["localhost"]);
        names.any(|name| name.eq_ignore_ascii_case(host))
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let shown = headers.get(AUTHORIZATION);
        let why = match shown {
            Some(shown) if token.is_shown_by(shown.as_bytes()) => return Ok(()),
            Some(_) => "wrong token",
            None => {
                "this server needs its token: as `Authorization: Bearer TOKEN`, or as the password of any user, http://x:TOKEN@ADDRESS/"
            }
        };
        Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            why,
        })
    }
}

fn check_user(uid: Option<u32>) -> Result<(), Refusal> {
    let allowed = [0, geteuid().as_raw()];
    match uid {
        Some(uid) if allowed.contains(&uid) => Ok(()),
        _ => Err(Refusal {
            status: StatusCode::FORBIDDEN,
            why: "only root and the user that memtrace runs as may connect to this socket",
        }),
    }
}

/// Lets a request through to its route, or answers it.
pub(super) async fn admit(
    State(guard): State<Arc<Guard>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() != HEALTH
        && let Err(refusal) = guard.check(peer, request.uri(), request.headers())
    {
        return refuse(refusal);
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = reply::error(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered");
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return close(response);
    }
    if has_body(request.headers()) {
        return close(reply::error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "no request here has a body",
        ));
    }
    next.run(request).await
}

fn refuse(refusal: Refusal) -> Response {
    let mut response = reply::error(refusal.status, refusal.why);
    if refusal.status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"memtrace\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    close(response)
}

/// Who is refused does not keep one of the connections.
fn close(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn has_body(headers: &HeaderMap) -> bool {
    let is_empty = |length: &HeaderValue| length.as_bytes() == b"0";
    headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| !is_empty(length))
}
