//! HTTP clients: HTTP/1.1 for Pyroscope, HTTP/2 for Parca's gRPC, both over TLS for https URLs.

use std::{fmt::Display, path::Path, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::{
    PushError, PushOptions,
    options::{Destination, Protocol},
    parca::Parca,
    pyroscope::Pyroscope,
};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection without requests is kept.
const IDLE: Duration = Duration::from_secs(30);
/// How often the other end of an HTTP/2 connection is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A client of HTTP/1.1.
pub(super) type Http1 = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;
/// A client of HTTP/2 with tonic's bodies.
pub(super) type Http2 = Client<HttpsConnector<HttpConnector>, tonic::body::Body>;

/// What speaks to one store.
pub(super) enum AnyClient {
    Pyroscope(Pyroscope),
    Parca(Parca),
}

/// Makes clients, all with the same certificates.
pub(super) struct Clients<'a> {
    options: &'a PushOptions,
    tenant: Option<http::HeaderValue>,
    /// Read when the first https URL needs them: without one, no certificates are needed.
    trusted: Option<Arc<ClientConfig>>,
}

impl<'a> Clients<'a> {
    pub(super) fn new(options: &'a PushOptions) -> Result<Self, PushError> {
        let tenant = options.push_tenant.as_deref().map(http::HeaderValue::try_from);
        Ok(Self {
            options,
            tenant: tenant.transpose().map_err(|_| PushError::Tenant)?,
            trusted: None,
        })
    }

    /// # Errors
    /// Fails with [`PushError::Certificates`] when the URL is https and no certificate is to be had.
    pub(super) fn client(&mut self, destination: &Destination) -> Result<AnyClient, PushError> {
        let config = self.config(destination.is_encrypted())?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT));
        http.set_keepalive(Some(IDLE));
        http.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http();
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        Ok(match destination.protocol {
            Protocol::Pyroscope => {
                let client = builder.build(https.enable_http1().wrap_connector(http));
                AnyClient::Pyroscope(Pyroscope::new(client, destination, self.tenant.clone()))
            }
            Protocol::Parca => {
                builder
                    .timer(TokioTimer::new())
                    .http2_only(true)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .http2_keep_alive_timeout(KEEP_ALIVE);
                let client = builder.build(https.enable_http2().wrap_connector(http));
                AnyClient::Parca(Parca::new(client, destination))
            }
        })
    }

    fn config(&mut self, is_encrypted: bool) -> Result<ClientConfig, PushError> {
        if !is_encrypted {
            return config(RootCertStore::empty());
        }
        if let Some(trusted) = &self.trusted {
            return Ok(ClientConfig::clone(trusted));
        }
        let trusted = config(roots(self.options.push_ca_file.as_deref())?)?;
        self.trusted = Some(Arc::new(trusted.clone()));
        Ok(trusted)
    }
}

fn config(roots: RootCertStore) -> Result<ClientConfig, PushError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The system's certificates, or those of `SSL_CERT_FILE`, and the file's.
fn roots(file: Option<&Path>) -> Result<RootCertStore, PushError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        log::warn!("some certificates of the system cannot be read: {error}");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(file) = file {
        let in_file = |error: &dyn Display| PushError::Certificates {
            why: format!("{}: {error}", file.display()),
        };
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| in_file(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| in_file(&error))?;
            roots.add(certificate).map_err(|error| in_file(&error))?;
        }
    }
    match roots.is_empty() {
        true => Err(unusable("the system has no certificates")),
        false => Ok(roots),
    }
}

fn unusable(why: impl Display) -> PushError {
    PushError::Certificates { why: why.to_string() }
}
