//! Where the server listens.

use std::{
    fmt, io,
    net::{self, SocketAddr},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use super::error::HttpError;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 256;

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address of this machine, and a port; 0 stands for any that is free.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    /// Parses `unix:/run/memtrace.sock`, `127.0.0.1:6060`, `[::1]:6060`.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix("unix:") else {
            let address = text.parse().map(Self::Tcp);
            return address.map_err(|_| {
                format!(
                    "`{text}` is not an address to listen at; write for example unix:/run/memtrace.sock, \
                     127.0.0.1:6060, or [::1]:6060"
                )
            });
        };
        let path = Path::new(path);
        match path.file_name() {
            Some(_) if path.is_absolute() => Ok(Self::Unix(path.to_owned())),
            // Which includes the abstract ones, unix:@NAME, that anybody can connect to.
            _ => Err(format!(
                "`{text}` does not name a file from the root on; write for example unix:/run/memtrace.sock"
            )),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A socket in the file system, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that a socket that another program has put there since stays.
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = identity(&self.path).is_ok_and(|identity| identity == self.identity);
        if is_ours {
            // If it stays, the next start finds that nobody answers, and removes it.
            let _stays = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at an address of this machine.
pub(super) fn listen_tcp(address: SocketAddr) -> Result<net::TcpListener, HttpError> {
    let listening = net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listening.map_err(|source| HttpError::Listen {
        address: address.to_string(),
        source,
    })
}

/// Listens at a socket that only its owner may connect to. A socket at which nobody answers is removed first.
pub(super) fn listen_unix(path: &Path) -> Result<(UnixListener, SocketFile), HttpError> {
    remove_stale(path)?;
    let failed = |source: io::Error| HttpError::Listen {
        address: Listen::Unix(path.to_owned()).to_string(),
        source,
    };
    let listener = bind_private(path).map_err(failed)?;
    let status = std::fs::symlink_metadata(path).map_err(failed)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (status.dev(), status.ino()),
    };
    // An access list that files inherit from their directory could have given more.
    match status.mode() & 0o7777 {
        0o600 => Ok((listener, file)),
        mode => Err(HttpError::OpenSocket {
            path: path.to_owned(),
            mode,
        }),
    }
}

/// The file gets the permissions that the socket has before it is bound, less the umask (net/unix/af_unix.c,
/// `unix_bind_bsd`), so that there is no moment at which others could connect.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn remove_stale(path: &Path) -> Result<(), HttpError> {
    let failed = |source: io::Error| HttpError::Listen {
        address: Listen::Unix(path.to_owned()).to_string(),
        source,
    };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(status) => status.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(HttpError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Ok(_) => Err(HttpError::InUse(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let status = std::fs::symlink_metadata(path)?;
    Ok((status.dev(), status.ino()))
}
