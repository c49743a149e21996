//! What is said when a store cannot be spoken to.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    PROTOCOLS, heap, options,
    server::{Answer, Server},
};
use crate::output::push::{
    client::{AnyClient, Clients},
    messages::Label,
    options::Destination,
    parca, pyroscope,
    verdict::Verdict,
};

/// Why one push to the store comes to nothing.
async fn why(store: &str) -> String {
    let options = options(&[store.to_owned()]);
    let destination = Destination::parse(&options.push[0]).unwrap();
    let client = Clients::new(&options).unwrap().client(&destination).unwrap();
    let label = Label {
        name: "__name__".to_owned(),
        value: "memory".to_owned(),
    };
    let verdict = match client {
        AnyClient::Parca(client) => {
            let message = parca::message(&[label], &heap(15, &[("a", 1, 1)]));
            client.push(message, None).await
        }
        AnyClient::Pyroscope(client) => {
            let body = pyroscope::encode(vec![label], Vec::new());
            client.push(body, None).await
        }
    };
    match verdict {
        Verdict::Later { why, .. } | Verdict::Trouble { why } => why,
        Verdict::Refused { why, advice } => format!("{why}; {}", advice.unwrap_or_default()),
        Verdict::Taken => panic!("taken"),
    }
}

#[tokio::test]
async fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for protocol in PROTOCOLS {
        assert_eq!(
            why(&format!("{protocol}=http://{address}")).await,
            format!("cannot connect to {address}: Connection refused (os error 111)")
        );
    }
}

#[tokio::test]
async fn somebody_else_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await;
        let answer = b"HTTP/1.0 505 Invalid HTTP version (2.0)\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let _ = stream.read(&mut request).await;
    });
    let why = why(&format!("parca=http://{address}")).await;
    let expected = format!("what listens at {address} speaks no gRPC, so it may be no Parca (");
    assert!(why.starts_with(&expected), "{why}");
    answering.abort();
}

#[tokio::test]
async fn another_service_answers() {
    let server = Server::start(|_| Answer::Grpc(12, "unknown service")).await;
    let why = why(&format!("parca=http://{}", server.address)).await;
    let expected = "gRPC status Unimplemented: unknown service; it may be no Parca";
    assert!(why.starts_with(expected), "{why}");
}

#[tokio::test]
async fn the_connection_breaks() {
    let server = Server::start(|_| Answer::Reset).await;
    for protocol in PROTOCOLS {
        let why = why(&format!("{protocol}=http://{}", server.address)).await;
        let expected = format!("the connection to {} broke: ", server.address);
        assert!(why.starts_with(&expected), "{why}");
    }
}
