//! gRPC on a socket of this machine: one question, one answer.

use std::{path::Path, str::FromStr as _};

use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Request,
    client::Grpc,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::EngineError;

/// The longest answer (bytes): what containerd's server sends at most (`defaults.DefaultMaxSendMsgSize`).
const LONGEST: usize = 16 << 20;

/// A connection.
pub(super) struct Connection(Grpc<Channel>);

impl Connection {
    /// Connects to a socket.
    pub(super) async fn open(socket: &Path) -> Result<Self, EngineError> {
        let path = socket.to_str();
        let path = path.ok_or_else(|| EngineError::Refused("its path is not UTF-8".to_owned()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{path}"));
        let endpoint = endpoint.map_err(|error| EngineError::refused(&error))?;
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| EngineError::refused(&error))?;
        Ok(Self(Grpc::new(channel).max_decoding_message_size(LONGEST)))
    }

    /// Calls a method by its path, `/PACKAGE.SERVICE/METHOD`; `space` is containerd's namespace, which it takes from the header
    /// `containerd-namespace` (`pkg/namespaces/grpc.go`).
    pub(super) async fn ask<Q, A>(
        &mut self,
        method: &'static str,
        space: Option<&str>,
        question: Q,
    ) -> Result<A, EngineError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let ready = self.0.ready().await;
        ready.map_err(|error| EngineError::refused(&error))?;
        let mut request = Request::new(question);
        if let Some(space) = space {
            let value = AsciiMetadataValue::from_str(space);
            let value = value.map_err(|error| EngineError::refused(&error))?;
            request.metadata_mut().insert("containerd-namespace", value);
        }
        let codec = ProstCodec::<Q, A>::default();
        let answer = self
            .0
            .unary(request, PathAndQuery::from_static(method), codec)
            .await;
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            // Its source is a connection's error, its text without that has no headers.
            Err(status) => Err(EngineError::refused(&status)),
        }
    }
}
