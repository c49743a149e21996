//! What goes wrong with a connection, as people read it.

use std::{error::Error, iter::successors};

use http::Uri;
use hyper_util::client::legacy;

use super::pyroscope::{causes, shown};

/// Why a request got no answer, which is not the store's word.
pub(super) fn in_words(error: &legacy::Error, store: &Uri) -> String {
    let place = store
        .authority()
        .map_or("the store", |authority| authority.as_str());
    if error.is_connect() {
        // What the layers between say is that they could not connect.
        let innermost = chain(error).last().map(ToString::to_string);
        return format!(
            "cannot connect to {place}: {}",
            shown(&innermost.unwrap_or_default())
        );
    }
    let why = error.source().map(causes).unwrap_or_default();
    match speaks_otherwise(error) {
        true => format!("what listens at {place} speaks no gRPC, so it may be no Parca ({why})"),
        false => format!("the connection to {place} broke: {why}"),
    }
}

/// The error of the client that a status was made of, if it was: tonic mostly calls that `Unknown`.
pub(super) fn behind(status: &tonic::Status) -> Option<&legacy::Error> {
    chain(status).find_map(|cause| cause.downcast_ref())
}

/// Whether what came is no HTTP/2 (RFC 9113): it is this side's library that complains.
fn speaks_otherwise(error: &legacy::Error) -> bool {
    let mut causes = chain(error).filter_map(|cause| cause.downcast_ref::<h2::Error>());
    causes.any(|error| error.is_go_away() && error.is_library())
}

/// The causes of an error, from the outermost on.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    successors(error.source(), |&cause| cause.source())
}
