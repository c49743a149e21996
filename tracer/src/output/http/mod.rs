//! Profiles over HTTP, in the scheme of Go's `net/http/pprof` (<https://pkg.go.dev/net/http/pprof>), for each target.
//!
//! [`Server`] listens and answers from a [`Source`]; who may ask is decided in one place, before any route.

mod error;
mod guard;
mod index;
mod listen;
mod metrics;
mod options;
mod reply;
mod routes;
mod server;
mod snapshots;
mod source;
mod text;
mod tls;
mod token;

pub use error::HttpError;
pub use listen::Listen;
pub use metrics::{Metrics, registry};
pub use options::HttpOptions;
pub use server::Server;
pub use source::{ProfileName, Source, SourceError, TargetSummary};

#[cfg(test)]
mod tests;
