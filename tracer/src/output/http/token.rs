//! The token that a client must show.

use std::{
    env,
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::{
    fs::OFlags,
    process::geteuid,
    rand::{GetRandomFlags, getrandom},
};
use subtle::ConstantTimeEq as _;

use super::error::HttpError;
use crate::output::{OutputDir, OutputError};

/// The variable that may hold the token.
pub(super) const VARIABLE: &str = "MEMTRACE_TOKEN";
/// Shorter ones could be guessed (bytes).
const MIN_LENGTH: usize = 16;
/// No token is longer (bytes).
const MAX_LENGTH: usize = 4096;
/// How many bytes of the system's randomness are in a token that is made.
const RANDOM_LENGTH: usize = 32;

/// A secret that is compared, and never shown.
pub(super) struct Token(Vec<u8>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The file of a token that was made, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct TokenFile(PathBuf);

impl TokenFile {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // If it stays, the next start at the same port writes another over it.
        let _stays = std::fs::remove_file(&self.0);
    }
}

impl Token {
    /// The token from a file, or else from the environment, or else a new one in a file of its own.
    pub(super) fn find(file: Option<&Path>, port: u16) -> Result<(Self, Option<TokenFile>), HttpError> {
        if let Some(path) = file {
            return Ok((Self::read(path)?, None));
        }
        if let Some(value) = env::var_os(VARIABLE) {
            let from = format!("the environment's {VARIABLE}");
            return Ok((Self::check(value.as_bytes(), &from)?, None));
        }
        let directory = default_directory()?;
        let (token, file) = Self::make(&directory, port)?;
        Ok((token, Some(file)))
    }

    /// Whether an `Authorization` header (RFC 9110, section 11.6.2) shows the token: as a bearer (RFC 6750), or as the
    /// password of any user (RFC 7617).
    pub(super) fn is_shown_by(&self, header: &[u8]) -> bool {
        let Some(space) = header.iter().position(|byte| *byte == b' ') else {
            return false;
        };
        let (scheme, shown) = (&header[..space], header[space..].trim_ascii());
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return self.equals(shown);
        }
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return false;
        }
        let Ok(pair) = STANDARD.decode(shown) else {
            return false;
        };
        let colon = pair.iter().position(|byte| *byte == b':');
        colon.is_some_and(|colon| self.equals(&pair[colon + 1..]))
    }

    /// Takes as long whatever is wrong, unless the length is.
    fn equals(&self, shown: &[u8]) -> bool {
        self.0.ct_eq(shown).into()
    }

    fn read(path: &Path) -> Result<Self, HttpError> {
        let from = path.display().to_string();
        let wrong = |why: String| HttpError::Token {
            from: from.clone(),
            why,
        };
        let unreadable = |error: io::Error| wrong(format!("{error}; give a readable file with --token-file"));
        // A secret of a cluster is a symbolic link, and a pipe would be waited for.
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(unreadable)?;
        check_private(&file).map_err(unreadable)?.map_err(wrong)?;
        let mut content = Vec::new();
        file.take(MAX_LENGTH as u64 + 2)
            .read_to_end(&mut content)
            .map_err(unreadable)?;
        Self::check(content.trim_ascii_end(), &from)
    }

    fn check(token: &[u8], from: &str) -> Result<Self, HttpError> {
        let wrong = |why: String| HttpError::Token {
            from: from.to_owned(),
            why,
        };
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(wrong(
                "it has characters that cannot be sent; use letters and digits, without spaces".to_owned(),
            ));
        }
        match token.len() {
            MIN_LENGTH..=MAX_LENGTH => Ok(Self(token.to_owned())),
            length => Err(wrong(format!(
                "it has {length} characters; use {MIN_LENGTH} to {MAX_LENGTH}, for example from `openssl rand -hex 32`"
            ))),
        }
    }

    fn make(directory: &Path, port: u16) -> Result<(Self, TokenFile), HttpError> {
        let failed = |why: String| HttpError::MakeToken {
            path: directory.to_owned(),
            why,
        };
        let mut random = [0; RANDOM_LENGTH];
        // From the pool that is never empty once the system has started: as many bytes as are wanted (getrandom(2)).
        let length = getrandom(&mut random, GetRandomFlags::empty())
            .map_err(|errno| failed(format!("no random numbers ({errno})")))?;
        if length != RANDOM_LENGTH {
            return Err(failed("not enough random numbers".to_owned()));
        }
        let mut token = String::with_capacity(2 * RANDOM_LENGTH);
        for byte in random {
            write!(token, "{byte:02x}").map_err(|error| failed(error.to_string()))?;
        }
        let written = OutputDir::create(directory)
            .and_then(|directory| directory.write(&format!("token-{port}"), format!("{token}\n").as_bytes()));
        let path = written.map_err(|error| {
            failed(match error {
                OutputError::Unsafe { why, .. } => why,
                OutputError::Directory { source, .. } | OutputError::File { source, .. } => {
                    source.to_string()
                }
            })
        })?;
        Ok((Self(token.into_bytes()), TokenFile(path)))
    }
}

/// Whether only its owner, who is root or this user, can read the file; otherwise why not.
fn check_private(file: &File) -> io::Result<Result<(), String>> {
    let status = file.metadata()?;
    let mode = status.mode() & 0o7777;
    let own = [0, geteuid().as_raw()].contains(&status.uid());
    Ok(if !status.is_file() {
        Err("it is not a file".to_owned())
    } else if !own {
        Err(format!(
            "it belongs to another user (uid {}), who could change it; chown it to root",
            status.uid()
        ))
    } else if mode & 0o077 != 0 {
        Err(format!("others can read it (mode {mode:04o}); chmod 600 it"))
    } else {
        Ok(())
    })
}

/// Where a token that is made is kept.
fn default_directory() -> Result<PathBuf, HttpError> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/run/memtrace"));
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let directory = runtime.filter(|path| path.is_absolute());
    let directory = directory.map(|path| path.join("memtrace"));
    directory.ok_or_else(|| HttpError::MakeToken {
        path: PathBuf::from("$XDG_RUNTIME_DIR"),
        why: "it is not set".to_owned(),
    })
}

#[cfg(test)]
mod tests;
