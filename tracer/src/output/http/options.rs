//! The options of the server.

use std::path::PathBuf;

use clap::Args;

use super::listen::Listen;

/// Where to listen, and who may ask.
#[derive(Args, Clone, Debug, Default)]
pub struct HttpOptions {
    /// Offer the profiles over HTTP here: unix:/run/memtrace.sock, for root and the user that memtrace runs as, or an
    /// address such as 127.0.0.1:6060, for who has the token. Other addresses than the loopback's need TLS.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<Listen>,

    /// The file with the token, at least 16 letters and digits, readable by its owner only [default: MEMTRACE_TOKEN in the
    /// environment, or else one is made, and the file that holds it named on stderr].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Speak TLS with this chain of certificates (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Also answer requests that call this machine by NAME, beside localhost and the address; for several names, give it
    /// several times.
    #[arg(long, value_name = "NAME", value_parser = parse_host)]
    pub allow_host: Vec<String>,
}

/// Accepts what can stand before the port in a `Host` header and is a name.
fn parse_host(text: &str) -> Result<String, String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.chars().all(is_part) {
        Ok(text.trim_end_matches('.').to_owned())
    } else {
        Err(format!(
            "`{text}` is not a name; write for example node-7.example, without a port"
        ))
    }
}
