//! Loopback addresses and a small HTTP client.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{Result, child::PATIENCE};

/// A loopback address whose port was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    listener.local_addr().context("asking for the port")
}

/// Waits until a server accepts connections.
pub fn await_server(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = TcpStream::connect(address) {
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("no server at {address}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Fetches a page over a connection of its own; an error unless the status is 200.
pub fn fetch(address: SocketAddr, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("setting a timeout")?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    )
    .context("sending the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading the answer")?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        bail!(
            "{path}: {}",
            String::from_utf8_lossy(&answer[..answer.len().min(200)])
        );
    }
    Ok(())
}

/// Fetches a page as HTTP/1.0 has it, without chunks, and returns its text; an error unless the status is 200.
pub fn text(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("setting a timeout")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").context("sending the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    match answer.split_once("\r\n\r\n") {
        Some((head, text)) if head.split(' ').nth(1) == Some("200") => Ok(text.to_owned()),
        _ => bail!("{path}: {}", answer.chars().take(200).collect::<String>()),
    }
}

/// Connects, has one request answered with something that ends with `answer`, and keeps the connection.
pub fn hold(address: SocketAddr, request: &str, answer: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("setting a timeout")?;
    stream
        .write_all(request.as_bytes())
        .context("sending the request")?;
    let (mut received, mut part) = (Vec::new(), [0; 4096]);
    while !received.ends_with(answer.as_bytes()) {
        let length = stream.read(&mut part).context("reading the answer")?;
        if length == 0 {
            bail!("no {answer:?} in {:?}", String::from_utf8_lossy(&received));
        }
        received.extend_from_slice(&part[..length]);
    }
    Ok(stream)
}
