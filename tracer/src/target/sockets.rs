//! The addresses and states of sockets, as `/proc/PID/net` says.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use memtrace_ebpf::handles::FdKind;
use procfs::{
    FromBufRead as _, FromBufReadSI as _, current_system_info,
    net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState, UnixNetEntries, UnixState},
};

use super::{Descriptor, Process, process::read_lossy};

/// The flag of a Unix socket that listens (`include/linux/net.h`, `__SO_ACCEPTCON`), as `unix_seq_show` prints it
/// (`net/unix/af_unix.c`).
const ACCEPTS: &str = "00010000";

/// What is known of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketDetails {
    /// Its own address: `ADDRESS:PORT`; of a Unix socket the path, or the abstract name behind an `@`, up to the first
    /// blank.
    pub local: Option<String>,
    /// The address of its peer. Of Unix sockets the kernel's tables do not tell it.
    pub peer: Option<String>,
    /// Its state, such as `ESTABLISHED`.
    pub state: Option<&'static str>,
}

/// A kind of socket, with the tables that list its sockets and how to read a line of them.
type Tables = (
    FdKind,
    &'static [&'static str],
    fn(&str) -> Option<(u64, SocketDetails)>,
);

const TABLES: [Tables; 3] = [
    (FdKind::Tcp, &["tcp", "tcp6"], tcp),
    (FdKind::Udp, &["udp", "udp6", "udplite", "udplite6"], udp),
    (FdKind::Unix, &["unix"], unix),
];

impl Process {
    /// What the tables of the process's network namespace know of the sockets among these descriptors, by inode number.
    ///
    /// Those that have no address yet, and those of other namespaces, are missing. A table is only read if one of the
    /// descriptors may be in it; one that cannot be read is taken for empty.
    pub fn socket_details(&self, descriptors: &[Descriptor]) -> HashMap<u64, SocketDetails> {
        let mut found = HashMap::new();
        for (kind, tables, parse) in TABLES {
            let sockets = descriptors.iter().filter(|descriptor| descriptor.kind == kind);
            let wanted: HashSet<u64> = sockets.filter_map(|socket| socket.inode).collect();
            if wanted.is_empty() {
                continue;
            }
            for table in tables {
                let text = read_lossy(&format!("/proc/{}/net/{table}", self.anchor())).unwrap_or_default();
                let entries = text.lines().skip(1).filter_map(parse);
                found.extend(entries.filter(|(inode, _)| wanted.contains(inode)));
            }
        }
        found
    }
}

/// A line behind a heading, as the parsers expect it. Each is parsed on its own: a line that is not understood, such as
/// half a name with a line break in it, must not hide the others.
fn headed(line: &str) -> String {
    format!("\n{line}")
}

fn tcp(line: &str) -> Option<(u64, SocketDetails)> {
    let entries = TcpNetEntries::from_buf_read(headed(line).as_bytes(), current_system_info());
    let entry = entries.ok()?.0.pop()?;
    let details = SocketDetails {
        local: Some(entry.local_address.to_string()),
        peer: peer(entry.remote_address),
        state: Some(tcp_state(&entry.state)),
    };
    Some((entry.inode, details))
}

fn udp(line: &str) -> Option<(u64, SocketDetails)> {
    let entries = UdpNetEntries::from_buf_read(headed(line).as_bytes(), current_system_info());
    let entry = entries.ok()?.0.pop()?;
    let state = match entry.state {
        UdpState::Established => "ESTABLISHED",
        UdpState::Close => "UNCONNECTED",
    };
    let details = SocketDetails {
        local: Some(entry.local_address.to_string()),
        peer: peer(entry.remote_address),
        state: Some(state),
    };
    Some((entry.inode, details))
}

fn unix(line: &str) -> Option<(u64, SocketDetails)> {
    let entry = UnixNetEntries::from_buf_read(headed(line).as_bytes())
        .ok()?
        .0
        .pop()?;
    // The parser leaves the flags out.
    let accepts = line.split_whitespace().nth(3) == Some(ACCEPTS);
    let state = match entry.state {
        UnixState::UNCONNECTED if accepts => "LISTEN",
        UnixState::UNCONNECTED => "UNCONNECTED",
        UnixState::CONNECTING => "CONNECTING",
        UnixState::CONNECTED => "CONNECTED",
        UnixState::DISCONNECTING => "DISCONNECTING",
    };
    let details = SocketDetails {
        local: entry.path.map(|path| path.to_string_lossy().into_owned()),
        peer: None,
        state: Some(state),
    };
    Some((entry.inode, details))
}

/// A socket without a peer has zeros for one.
fn peer(address: SocketAddr) -> Option<String> {
    let is_none = address.ip().is_unspecified() && address.port() == 0;
    (!is_none).then(|| address.to_string())
}

/// The names of `include/net/tcp_states.h`.
fn tcp_state(state: &TcpState) -> &'static str {
    match state {
        TcpState::Established => "ESTABLISHED",
        TcpState::SynSent => "SYN_SENT",
        TcpState::SynRecv => "SYN_RECV",
        TcpState::FinWait1 => "FIN_WAIT1",
        TcpState::FinWait2 => "FIN_WAIT2",
        TcpState::TimeWait => "TIME_WAIT",
        TcpState::Close => "CLOSE",
        TcpState::CloseWait => "CLOSE_WAIT",
        TcpState::LastAck => "LAST_ACK",
        TcpState::Listen => "LISTEN",
        TcpState::Closing => "CLOSING",
        TcpState::NewSynRecv => "NEW_SYN_RECV",
    }
}

#[cfg(test)]
mod tests;
