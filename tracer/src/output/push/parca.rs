//! Parca: gRPC, `parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw`.
//!
//! Parca tells profile types with a duration from those without (`…:delta`), and shows the former per second. So the state at one moment and
//! what an interval added are two profiles of one series.
//!
//! It reads the string labels of samples, but stores only those of series (`WriteRawRequestToArrowRecord` in
//! `pkg/normalizer/normalizer.go`). So there is a series for each set of string labels.

use std::{error::Error as _, time::Duration};

use http::{HeaderValue, Uri, header::AUTHORIZATION, uri::PathAndQuery};
use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue};
use tonic_prost::ProstCodec;

use super::{
    client::Http2,
    connection,
    labels::with_samples,
    messages::{Label, LabelSet, ParcaSeries, RawSample, WriteRawRequest, WriteRawResponse},
    options::Destination,
    pyroscope::{causes, shown},
    verdict::{LOGIN, NO_PARCA, TOO_LARGE, Verdict},
};
use crate::profile::{Profile, encode_gz, is_cumulative, select, split};

/// The most series that one profile becomes; `docs/push.md` says what then is told apart.
const MOST_SERIES: usize = 200;

const PATH: &str = "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw";

/// A client of one Parca.
pub(super) struct Parca {
    client: Http2,
    origin: Uri,
}

impl Parca {
    pub(super) fn new(client: Http2, destination: &Destination) -> Self {
        Self {
            client,
            origin: destination.base.clone(),
        }
    }

    /// Pushes a request that [`message`] made.
    pub(super) async fn push(&self, message: WriteRawRequest, login: Option<&HeaderValue>) -> Verdict {
        let mut grpc = Grpc::with_origin(self.client.clone(), self.origin.clone());
        let mut request = Request::new(message);
        if let Some(login) = login {
            let login = login.to_str().ok().and_then(|login| login.parse().ok());
            if let Some(mut login) = login {
                MetadataValue::set_sensitive(&mut login, true);
                request.metadata_mut().insert(AUTHORIZATION.as_str(), login);
            }
        }
        if let Err(error) = grpc.ready().await {
            return Verdict::Later {
                why: causes(&error),
                after: None,
            };
        }
        let codec: ProstCodec<WriteRawRequest, WriteRawResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static(PATH);
        match grpc.unary(request, path, codec).await {
            Ok(_) => Verdict::Taken,
            Err(status) => match connection::behind(&status) {
                Some(error) => Verdict::Later {
                    why: connection::in_words(error, &self.origin),
                    after: None,
                },
                None => of_status(&status),
            },
        }
    }
}

/// The request of an interval's profile: a series for each set of string labels of its samples, with the state at one moment,
/// which has no duration, and what the interval added, each only if it has samples.
pub(super) fn message(labels: &[Label], profile: &Profile) -> WriteRawRequest {
    let parts = split(profile, MOST_SERIES, |of_samples| {
        with_samples(labels, of_samples)
    });
    let series = parts.into_iter().map(|(labels, part)| {
        let mut state = select(&part, |name| !is_cumulative(name));
        state.duration_nanos = 0;
        let added = select(&part, is_cumulative);
        let profiles = [state, added].into_iter();
        let samples = profiles
            .filter(|profile| !profile.sample.is_empty())
            .map(|profile| RawSample {
                raw_profile: encode_gz(&profile),
            });
        ParcaSeries {
            labels: Some(LabelSet { labels }),
            samples: samples.collect(),
        }
    });
    WriteRawRequest {
        series: series.collect(),
    }
}

/// The verdict of a gRPC status that is no success (<https://grpc.io/docs/guides/status-codes/>).
fn of_status(status: &Status) -> Verdict {
    let mut why = format!("gRPC status {:?}: {}", status.code(), shown(status.message()));
    if let Some(source) = status.source() {
        why = format!("{why}: {}", causes(source));
    }
    match status.code() {
        // grpc-go gives this code for a message over its limit, too: "received message larger than max".
        Code::ResourceExhausted if status.message().contains("larger than max") => Verdict::Refused {
            why,
            advice: Some(TOO_LARGE),
        },
        Code::Unavailable
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Cancelled => Verdict::Later {
            why,
            after: asked(status),
        },
        Code::Unknown | Code::Internal => Verdict::Trouble { why },
        Code::Unauthenticated | Code::PermissionDenied => Verdict::Refused {
            why,
            advice: Some(LOGIN),
        },
        Code::Unimplemented => Verdict::Refused {
            why,
            advice: Some(NO_PARCA),
        },
        _ => Verdict::Refused { why, advice: None },
    }
}

/// The milliseconds of `grpc-retry-pushback-ms` (gRPC proposal A6).
fn asked(status: &Status) -> Option<Duration> {
    let value = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?;
    value.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::{TOO_LARGE, Verdict, of_status};

    #[test]
    fn a_busy_store_is_told_from_a_message_that_is_too_large() {
        let busy = of_status(&Status::new(Code::ResourceExhausted, "slow down"));
        assert!(matches!(busy, Verdict::Later { .. }));
        let large = Status::new(
            Code::ResourceExhausted,
            "grpc: received message larger than max (9 vs. 8)",
        );
        let Verdict::Refused { advice, .. } = of_status(&large) else {
            panic!();
        };
        assert_eq!(advice, Some(TOO_LARGE));
    }

    #[test]
    fn a_store_can_say_when_to_come_back() {
        let mut status = Status::new(Code::Unavailable, "later");
        let metadata = status.metadata_mut();
        metadata.insert("grpc-retry-pushback-ms", "1500".parse().unwrap());
        let Verdict::Later { after, .. } = of_status(&status) else {
            panic!();
        };
        assert_eq!(after.unwrap().as_millis(), 1500);
    }
}
