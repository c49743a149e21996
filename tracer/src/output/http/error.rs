//! Why the server does not start.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; choose another address with --listen")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another program answers at the socket.
    #[error("{0} is in use: another program answers there; choose another path with --listen")]
    InUse(PathBuf),
    /// There is something at the socket's path that is not a socket.
    #[error("{0} is there and is not a socket; choose another path with --listen, or remove it")]
    NotASocket(PathBuf),
    /// The socket is open to others.
    #[error(
        "{path} has mode {mode:04o}, not 0600; choose a directory without default permissions with --listen"
    )]
    OpenSocket {
        /// The socket.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The options do not go with the address.
    #[error("{0}")]
    Options(String),
    /// Profiles would cross the network in the clear.
    #[error(
        "{0} can be reached from other machines, which needs TLS: give --tls-cert and --tls-key, or listen at 127.0.0.1"
    )]
    NeedsTls(SocketAddr),
    /// A certificate or its key cannot be used.
    #[error("cannot use {path} for TLS: {why}; --tls-cert and --tls-key name PEM files that belong together")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The token cannot be used.
    #[error("cannot use the token in {from}: {why}")]
    Token {
        /// Where it comes from.
        from: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// There is no safe place for a token that is made.
    #[error("cannot keep a token in {path}: {why}; make one yourself and give it with --token-file")]
    MakeToken {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
