//! Where to push, as the user says it, and the secrets that go with it.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri, uri::PathAndQuery};
use percent_encoding::percent_decode_str;

use super::PushError;
use crate::cli::parse_duration;

/// The variable with the token, when there is no `--push-token-file`.
pub const TOKEN_VARIABLE: &str = "MEMTRACE_PUSH_TOKEN";

/// The longest token that is read from a file (bytes).
const MAX_TOKEN: u64 = 16 << 10;

/// Options of pushing to profile stores.
#[derive(Clone, Debug, clap::Args)]
pub struct PushOptions {
    /// Push profiles to a store: pyroscope=URL or parca=URL, such as pyroscope=http://localhost:4040; for several stores,
    /// give it several times.
    #[arg(long, value_name = "STORE=URL")]
    pub push: Vec<StoreUrl>,

    /// How often profiles are pushed: 15s, 1m. They are pushed once more at the end.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_duration)]
    pub push_interval: Duration,

    /// A file with the token that the stores want (sent as `Authorization: Bearer`); read anew for each push
    /// [default: MEMTRACE_PUSH_TOKEN of the environment].
    ///
    /// It is sent to every store whose URL has no user name and password of its own.
    #[arg(long, value_name = "FILE")]
    pub push_token_file: Option<PathBuf>,

    /// The tenant of a Pyroscope with several (sent as `X-Scope-OrgID`).
    #[arg(long, value_name = "NAME")]
    pub push_tenant: Option<String>,

    /// A file with certificates (PEM) of authorities to trust beside the system's, for https URLs.
    #[arg(long, value_name = "FILE")]
    pub push_ca_file: Option<PathBuf>,
}

/// `STORE=URL` as it was given. It may contain a password, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(String);

impl From<&str> for StoreUrl {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for StoreUrl {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StoreUrl(..)")
    }
}

/// What a store speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Pyroscope's `push.v1.PusherService/Push`.
    Pyroscope,
    /// Parca's `parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw`.
    Parca,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Pyroscope => "pyroscope",
            Self::Parca => "parca",
        }
    }
}

/// A store, and how to log in there.
#[derive(Clone)]
pub(super) struct Destination {
    pub(super) protocol: Protocol,
    /// Scheme and authority without user name and password; the path without a slash at its end.
    pub(super) base: Uri,
    /// `Authorization` from the URL's user name and password.
    basic: Option<HeaderValue>,
}

impl Destination {
    /// # Errors
    /// Fails with [`PushError::Url`] when the store is not known, or the URL is not one for it.
    pub(super) fn parse(given: &StoreUrl) -> Result<Self, PushError> {
        let wrong = |why| PushError::Url { why };
        let (store, url) = given.0.split_once('=').ok_or(wrong("it is not STORE=URL"))?;
        let protocol = match store {
            "pyroscope" => Protocol::Pyroscope,
            "parca" => Protocol::Parca,
            _ => return Err(wrong("the store is neither pyroscope nor parca")),
        };
        let uri: Uri = url.parse().map_err(|_| wrong("that is no URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("the URL does not begin with http:// or https://"));
        }
        if uri.query().is_some() {
            return Err(wrong("the URL has a query"));
        }
        let path = uri.path().trim_end_matches('/');
        if protocol == Protocol::Parca && !path.is_empty() {
            return Err(wrong("the URL has a path, which gRPC cannot have"));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let is_only_host = uri.host() == Some(host);
        if !is_only_host && uri.port_u16().is_none() {
            return Err(wrong("the URL's port is none"));
        }
        let scheme = uri.scheme_str().unwrap_or_default();
        let base = format!("{scheme}://{host}{path}");
        Ok(Self {
            protocol,
            base: base.parse().map_err(|_| wrong("that is no URL"))?,
            basic: basic(user),
        })
    }

    /// The base with this at the end of its path.
    pub(super) fn uri(&self, path: &'static str) -> Uri {
        let mut parts = self.base.clone().into_parts();
        let joined = format!("{}{path}", self.base.path().trim_end_matches('/'));
        // Both halves are paths of parsed URIs.
        parts.path_and_query = PathAndQuery::try_from(joined).ok();
        Uri::from_parts(parts).unwrap_or_else(|_| self.base.clone())
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.base.scheme_str() == Some("https")
    }

    /// The header that logs in: the URL's user name and password, or else the token.
    ///
    /// # Errors
    /// Fails with [`PushError::Token`] when the token's file cannot be read.
    pub(super) fn authorization(&self, token: &Token) -> Result<Option<HeaderValue>, PushError> {
        match &self.basic {
            Some(basic) => Ok(Some(basic.clone())),
            None => token.bearer(),
        }
    }
}

/// As it stands in logs and metrics: `pyroscope=http://localhost:4040`, without user name and password.
impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base.to_string();
        write!(
            formatter,
            "{}={}",
            self.protocol.name(),
            base.trim_end_matches('/')
        )
    }
}

/// `Authorization` for `USER:PASSWORD`, whose parts may be percent-encoded (RFC 3986, section 3.2.1; RFC 7617).
fn basic(user: &str) -> Option<HeaderValue> {
    if user.is_empty() {
        return None;
    }
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let mut plain: Vec<u8> = percent_decode_str(name).collect();
    plain.push(b':');
    plain.extend(percent_decode_str(password));
    secret("Basic", &BASE64_STANDARD.encode(plain))
}

fn secret(scheme: &str, credentials: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("{scheme} {credentials}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Where the token is.
#[derive(Clone)]
pub(super) enum Token {
    None,
    /// The environment's, which cannot change.
    Fixed(HeaderValue),
    /// Read for each push, since others may write a new one before the old one ends.
    File(PathBuf),
}

impl Token {
    /// # Errors
    /// Fails with [`PushError::Token`] or [`PushError::NoToken`] when there is none where it is said to be.
    pub(super) fn find(file: Option<&Path>, variable: Option<OsString>) -> Result<Self, PushError> {
        if let Some(file) = file {
            let token = Self::File(file.to_owned());
            token.bearer()?;
            return Ok(token);
        }
        let Some(variable) = variable.filter(|text| !text.is_empty()) else {
            return Ok(Self::None);
        };
        let text = variable.into_string().ok();
        let header = text.and_then(|text| secret("Bearer", text.trim()));
        let header = header.ok_or(PushError::NoToken {
            place: TOKEN_VARIABLE.to_owned(),
        })?;
        Ok(Self::Fixed(header))
    }

    fn bearer(&self) -> Result<Option<HeaderValue>, PushError> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(header) => Ok(Some(header.clone())),
            Self::File(path) => {
                let text = read(path).map_err(|source| PushError::Token {
                    path: path.clone(),
                    source,
                })?;
                let text = text.trim();
                let header = secret("Bearer", text).filter(|_| !text.is_empty());
                header.map(Some).ok_or_else(|| PushError::NoToken {
                    place: path.display().to_string(),
                })
            }
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TOKEN).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Destination, PushOptions, StoreUrl, Token};

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        push: PushOptions,
    }

    fn destination(text: &str) -> Destination {
        Destination::parse(&StoreUrl::from(text)).unwrap()
    }

    #[test]
    fn options_are_as_documented() {
        let words = [
            "x",
            "--push",
            "parca=http://a:7070",
            "--push",
            "pyroscope=http://b",
        ];
        let options = Arguments::try_parse_from(words).unwrap().push;
        assert_eq!(options.push.len(), 2);
        assert_eq!(options.push_interval.as_secs(), 15);
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let given = "pyroscope=https://me:p%40ss@example.com/prefix/";
        let parsed = destination(given);
        assert_eq!(parsed.to_string(), "pyroscope=https://example.com/prefix");
        let header = parsed.authorization(&Token::None).unwrap().unwrap();
        assert_eq!(header, "Basic bWU6cEBzcw==");
        assert!(!format!("{header:?}").contains("bWU6"));
        let options = Arguments::try_parse_from(["x", "--push", given]).unwrap().push;
        assert!(!format!("{options:?}").contains("p%40ss"));
        for wrong in [
            "pyroscope=ftp://u:geheim@h",
            "tempo=http://u:geheim@h",
            "parca=http://u:geheim@h/x",
            "parca=http://u:geheim@h:99999",
            "parca=http://u:geheim@h:",
            "geheim",
        ] {
            let error = Destination::parse(&StoreUrl::from(wrong)).err().unwrap();
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
    }

    #[test]
    fn paths_are_joined() {
        let uri = |text| destination(text).uri("/push.v1.PusherService/Push").to_string();
        assert_eq!(
            uri("pyroscope=http://h:4040"),
            "http://h:4040/push.v1.PusherService/Push"
        );
        assert_eq!(
            uri("pyroscope=http://h/a/"),
            "http://h/a/push.v1.PusherService/Push"
        );
    }

    #[test]
    fn tokens_come_from_a_file_or_the_environment() {
        let store = destination("parca=http://h:7070");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Token::find(Some(file.path()), None).is_err(), "an empty file");
        std::fs::write(file.path(), "first\n").unwrap();
        let token = Token::find(Some(file.path()), Some("other".into())).unwrap();
        assert_eq!(store.authorization(&token).unwrap().unwrap(), "Bearer first");
        std::fs::write(file.path(), "second\n").unwrap();
        assert_eq!(store.authorization(&token).unwrap().unwrap(), "Bearer second");
        let token = Token::find(None, Some("third".into())).unwrap();
        assert_eq!(store.authorization(&token).unwrap().unwrap(), "Bearer third");
        let token = Token::find(None, None).unwrap();
        assert!(store.authorization(&token).unwrap().is_none());
    }
}
