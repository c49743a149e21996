use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{net::UnixListener, process::CommandExt as _},
    },
    process::{Child, Command},
};

use super::{SocketDetails, unix};
use crate::target::Process;

/// The number of the first descriptor that the program has.
const FIRST: i32 = 300;

/// A program that has these descriptors open, too, from [`FIRST`] on.
fn spawn(descriptors: Vec<RawFd>) -> Child {
    let mut command = Command::new("sleep");
    command.arg("1000");
    let hand_over = move || {
        for (number, &descriptor) in (FIRST..).zip(&descriptors) {
            // SAFETY: takes numbers; what it closes is the child's.
            if unsafe { libc::dup2(descriptor, number) } != number {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(hand_over) };
    command.spawn().unwrap()
}

fn details(local: &str, peer: Option<&str>, state: &'static str) -> Option<SocketDetails> {
    Some(SocketDetails {
        local: Some(local.to_owned()),
        peer: peer.map(str::to_owned),
        state: Some(state),
    })
}

#[test]
fn sockets_have_addresses_and_states() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let server_v6 = TcpListener::bind("[::1]:0").unwrap();
    let idle = UdpSocket::bind("127.0.0.1:0").unwrap();
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect(idle.local_addr().unwrap()).unwrap();
    let local = UnixListener::bind(&path).unwrap();
    let mut child = spawn(vec![
        server.as_raw_fd(),
        client.as_raw_fd(),
        server_v6.as_raw_fd(),
        idle.as_raw_fd(),
        connected.as_raw_fd(),
        local.as_raw_fd(),
    ]);
    let process = Process::open(child.id()).unwrap();
    let descriptors = process.descriptors().unwrap();
    let found = process.socket_details(&descriptors);
    child.kill().unwrap();
    child.wait().unwrap();

    let of = |offset| {
        let number = FIRST + offset;
        let descriptor = descriptors.iter().find(|found| found.number == number);
        found.get(&descriptor?.inode?).cloned()
    };
    let address = |local: std::io::Result<std::net::SocketAddr>| local.unwrap().to_string();
    let listening = address(server.local_addr());
    assert_eq!(of(0), details(&listening, None, "LISTEN"));
    let own = address(client.local_addr());
    assert_eq!(of(1), details(&own, Some(&listening), "ESTABLISHED"));
    assert_eq!(of(2), details(&address(server_v6.local_addr()), None, "LISTEN"));
    let waiting = address(idle.local_addr());
    assert_eq!(of(3), details(&waiting, None, "UNCONNECTED"));
    let own = address(connected.local_addr());
    assert_eq!(of(4), details(&own, Some(&waiting), "ESTABLISHED"));
    assert_eq!(of(5), details(path.to_str().unwrap(), None, "LISTEN"));
}

/// Anyone may bind a socket to a name with a line break in it.
#[test]
fn what_is_no_line_is_left_out() {
    assert_eq!(unix("name"), None);
    assert_eq!(unix(""), None);
    let line = "0000000000000000: 00000002 00000000 00000000 0002 01 7";
    let expected = SocketDetails {
        state: Some("UNCONNECTED"),
        ..SocketDetails::default()
    };
    assert_eq!(unix(line), Some((7, expected)));
}
