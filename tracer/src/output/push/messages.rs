//! The messages of the two protocols, as far as a client that pushes needs them.

use prost::Message;

/// `push.v1.PushRequest` of Pyroscope (`api/push/v1/push.proto`), the request of `PusherService/Push`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PushRequest {
    /// `repeated RawProfileSeries series = 1`.
    #[prost(message, repeated, tag = "1")]
    pub(super) series: Vec<PyroscopeSeries>,
}

/// `push.v1.RawProfileSeries` of Pyroscope.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PyroscopeSeries {
    /// `repeated types.v1.LabelPair labels = 1`.
    #[prost(message, repeated, tag = "1")]
    pub(super) labels: Vec<Label>,
    /// `repeated RawSample samples = 2`.
    #[prost(message, repeated, tag = "2")]
    pub(super) samples: Vec<RawSample>,
}

/// A label: `types.v1.LabelPair` of Pyroscope (`api/types/v1/types.proto`) and
/// `parca.profilestore.v1alpha1.Label` of Parca have the same fields.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub(super) struct Label {
    /// `string name = 1`.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// `string value = 2`.
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// A profile: `push.v1.RawSample` of Pyroscope, whose `ID` (2) only names it in the store's logs and is left empty, and
/// `parca.profilestore.v1alpha1.RawSample` of Parca, whose `executable_info` (2) is for stacks without names.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RawSample {
    /// `bytes raw_profile = 1`: a pprof profile, compressed with gzip.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) raw_profile: Vec<u8>,
}

/// `parca.profilestore.v1alpha1.WriteRawRequest` of Parca (`proto/parca/profilestore/v1alpha1/profilestore.proto`).
/// `tenant` (1) is deprecated. `normalized` (3) is left false: addresses are the process's.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteRawRequest {
    /// `repeated RawProfileSeries series = 2`.
    #[prost(message, repeated, tag = "2")]
    pub(super) series: Vec<ParcaSeries>,
}

/// `parca.profilestore.v1alpha1.RawProfileSeries` of Parca.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ParcaSeries {
    /// `LabelSet labels = 1`.
    #[prost(message, optional, tag = "1")]
    pub(super) labels: Option<LabelSet>,
    /// `repeated RawSample samples = 2`.
    #[prost(message, repeated, tag = "2")]
    pub(super) samples: Vec<RawSample>,
}

/// `parca.profilestore.v1alpha1.LabelSet` of Parca.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LabelSet {
    /// `repeated Label labels = 1`.
    #[prost(message, repeated, tag = "1")]
    pub(super) labels: Vec<Label>,
}

/// `parca.profilestore.v1alpha1.WriteRawResponse` of Parca, which is empty.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct WriteRawResponse {}
