//! What an answer of a store means for the push.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The store has it.
    Taken,
    /// The store cannot be reached or is too busy, whatever is pushed: wait, longer if it asks for it.
    Later { why: String, after: Option<Duration> },
    /// The store failed, perhaps at this very push: try a few times.
    Trouble { why: String },
    /// The store will never take this.
    Refused {
        why: String,
        advice: Option<&'static str>,
    },
}

/// What to do when a push is larger than the store allows.
pub(super) const TOO_LARGE: &str = "raise the store's limit (Pyroscope: validation.max-profile-size-bytes; a proxy: its largest body), or record less with --sample-bytes or --profiles";
/// What to do when the store wants somebody else.
pub(super) const LOGIN: &str = "check --push-token-file, or user name and password in the URL";
/// What to do when a server has no `WriteRaw`.
pub(super) const NO_PARCA: &str = "it may be no Parca, or one that is too old: check the URL";

/// The verdict of an HTTP status that is no success (RFC 9110, section 15, and RFC 6585).
pub(super) fn of_status(status: StatusCode, headers: &HeaderMap, said: &str) -> Verdict {
    let why = match said.is_empty() {
        true => format!("HTTP status {status}"),
        false => format!("HTTP status {status}: {said}"),
    };
    let refused = |advice| Verdict::Refused {
        why: why.clone(),
        advice,
    };
    match status {
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Verdict::Later {
            why,
            after: retry_after(headers),
        },
        StatusCode::PAYLOAD_TOO_LARGE => refused(Some(TOO_LARGE)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => refused(Some(LOGIN)),
        StatusCode::NOT_IMPLEMENTED => refused(None),
        _ if status.is_server_error() => Verdict::Trouble { why },
        _ if status.is_redirection() => refused(Some("give --push the URL that the store sends to")),
        _ if said.contains("size exceeds") || said.contains("exceeds the size limit") => {
            refused(Some(TOO_LARGE))
        }
        _ => refused(None),
    }
}

/// The seconds of `Retry-After` (RFC 9110, section 10.2.3). Its other form, a date, needs clocks that agree, and is not
/// heeded.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::{LOGIN, TOO_LARGE, Verdict, of_status};

    fn verdict(status: u16) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("7"));
        of_status(StatusCode::from_u16(status).unwrap(), &headers, "")
    }

    #[test]
    fn what_is_tried_again() {
        for status in [408, 429, 502, 503, 504] {
            let Verdict::Later { after, .. } = verdict(status) else {
                panic!("{status}");
            };
            assert_eq!(after, Some(Duration::from_secs(7)));
        }
        for status in [500, 507, 520] {
            assert!(matches!(verdict(status), Verdict::Trouble { .. }), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 405, 413, 415, 422, 501] {
            assert!(matches!(verdict(status), Verdict::Refused { .. }), "{status}");
        }
    }

    #[test]
    fn advice_fits() {
        let advice = |status, said: &str| match of_status(status, &HeaderMap::new(), said) {
            Verdict::Refused { advice, .. } => advice,
            other => panic!("{other:?}"),
        };
        assert_eq!(advice(StatusCode::PAYLOAD_TOO_LARGE, ""), Some(TOO_LARGE));
        assert_eq!(advice(StatusCode::UNAUTHORIZED, ""), Some(LOGIN));
        let said = "uncompressed profile payload size exceeds limit of 4.2 MB";
        assert_eq!(advice(StatusCode::BAD_REQUEST, said), Some(TOO_LARGE));
        assert_eq!(advice(StatusCode::BAD_REQUEST, "no"), None);
    }
}
