//! Answers, with the headers that `net/http/pprof` gives them.

use axum::{
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse as _, Response},
};

/// By which `go tool pprof` knows an error whose text it shows.
const FROM_PPROF: HeaderName = HeaderName::from_static("x-go-pprof");

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// An error, in words.
pub(super) fn error(status: StatusCode, why: &str) -> Response {
    (status, [(CONTENT_TYPE, TEXT)], format!("{why}\n")).into_response()
}

/// Text for people.
pub(super) fn text(body: String) -> Response {
    ([(CONTENT_TYPE, TEXT)], body).into_response()
}

/// A page without scripts, pictures or anything from elsewhere.
pub(super) fn html(body: String) -> Response {
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    ([(CONTENT_TYPE, HTML), (CONTENT_SECURITY_POLICY, policy)], body).into_response()
}

/// JSON.
pub(super) fn json(body: &serde_json::Value) -> Response {
    ([(CONTENT_TYPE, JSON)], format!("{body:#}\n")).into_response()
}

/// Metrics as OpenMetrics writes them.
pub(super) fn metrics(body: String) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], body).into_response()
}

/// The bytes of a `.pb.gz` file, to be saved under this name.
pub(super) fn profile(name: &'static str, is_delta: bool, bytes: Vec<u8>) -> Response {
    let suffix = if is_delta { "-delta" } else { "" };
    let mut response = ([(CONTENT_TYPE, BYTES)], bytes).into_response();
    // Names of profiles are letters and hyphens.
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}{suffix}\"")) {
        response.headers_mut().insert(CONTENT_DISPOSITION, value);
    }
    response
}

/// The headers that every answer has, and every error.
pub(super) fn complete(response: &mut Response) {
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let headers = response.headers_mut();
    if is_error {
        headers.insert(FROM_PPROF, HeaderValue::from_static("1"));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}
