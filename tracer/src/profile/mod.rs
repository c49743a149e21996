//! Profiles in pprof's format, as every pprof viewer expects them.
//!
//! [`heap()`], [`fds`], [`mmap`] and [`growth()`] make the profiles of a snapshot; [`Builder`] makes profiles of any [`Kind`]; [`encode_gz`] writes the file. [`delta()`], [`merge()`], [`select()`] and [`split()`] make
//! profiles of profiles.

mod builder;
pub(crate) mod comments;
mod delta;
mod file_relative;
mod golang;
mod growth;
mod heap;
mod holdings;
mod join;
mod merge;
pub mod proto;
mod select;
mod split;
pub(crate) mod stacks;
mod strings;
pub(crate) mod subject;

use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use prost::Message;

pub use builder::{Builder, Frame, Kind, LocationId, SampleType};
pub use delta::delta;
pub use file_relative::make_file_relative;
pub use golang::{CREATED_BY, GOROUTINES, HOLD, THREADS, WAIT, go_heap, goroutines, threads};
pub use growth::{GROWTH, growth};
pub use heap::{AllocatorFrames, HEAP, INHERITED, heap};
pub use holdings::{FDS, FDS_INHERITED, KIND, MMAP, MMAP_INHERITED, fds, mmap};
pub use join::ended_nanos;
pub use merge::merge;
pub use proto::Profile;
pub use select::{is_cumulative, select, type_names};
pub use split::split;

/// The bytes of a `.pb.gz` file.
pub fn encode_gz(profile: &Profile) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let bytes = profile.encode_to_vec();
    let written = encoder.write_all(&bytes).and_then(|()| encoder.finish());
    written.expect("writing to a vector cannot fail")
}

/// Reads a `.pb.gz` file back.
///
/// # Errors
///
/// Fails with [`io::ErrorKind::InvalidData`] when the bytes are no gzip or no profile.
pub fn decode_gz(bytes: &[u8]) -> io::Result<Profile> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain)?;
    Profile::decode(&*plain).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
