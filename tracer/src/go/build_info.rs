//! `.go.buildinfo`: which version of Go built a program (`cmd/link/internal/ld/data.go`, `debug/buildinfo`).

use object::read::ReadRef;

use super::image::Image;
use super::{GoError, Version};

/// What the build info begins with.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The length of the magic, the pointer's size, the flags, and what versions before 1.18 had behind them.
const HEADER: usize = 32;
/// What the build info is aligned to.
const ALIGNMENT: usize = 16;
/// The flag which says that the strings follow, and not pointers to them.
const INLINE_STRINGS: u8 = 2;
/// The longest version, in bytes.
const MAX_VERSION: usize = 256;

/// The version in words, such as `go1.24.11`; `None` when the file has no build info.
///
/// # Errors
/// When the file cannot be read, or the build info is that of a Go before 1.18.
pub(super) fn version_text<'d, R: ReadRef<'d>>(image: &Image<'d, R>) -> Result<Option<String>, GoError> {
    let Some(info) = find(image)? else {
        return Ok(None);
    };
    let flags = info.get(MAGIC.len() + 1).copied().unwrap_or_default();
    if flags & INLINE_STRINGS == 0 {
        return Err(GoError::Layout(
            "this program was built by a Go before 1.18".to_owned(),
        ));
    }
    let text = info.get(HEADER..).and_then(string);
    let text =
        text.ok_or_else(|| GoError::Layout("the version in the Go build info is damaged".to_owned()))?;
    Ok(Some(text.to_owned()))
}

/// The version in numbers, of a text such as `go1.24.11`, `go1.24rc1` or `go1.24.11 X:boringcrypto`.
///
/// # Errors
/// When it is that of a development version, or is none.
pub(super) fn version(text: &str) -> Result<Version, GoError> {
    let unknown = || {
        let shown: String = text.chars().take(64).flat_map(char::escape_default).collect();
        GoError::Layout(format!("the layouts of Go version {shown:?} are not known"))
    };
    let numbers = text.strip_prefix("go").filter(|_| !text.contains("devel"));
    let (major, rest) = numbers
        .and_then(|numbers| numbers.split_once('.'))
        .ok_or_else(unknown)?;
    let digits = rest
        .find(|next: char| !next.is_ascii_digit())
        .unwrap_or(rest.len());
    Ok(Version {
        major: major.parse().map_err(|_| unknown())?,
        minor: rest[..digits].parse().map_err(|_| unknown())?,
    })
}

/// The build info, header and strings: in its section, or, as Go's own reader does it, in what is writable.
fn find<'d, R: ReadRef<'d>>(image: &Image<'d, R>) -> Result<Option<Vec<u8>>, GoError> {
    let length = HEADER + MAX_VERSION;
    if let Some(range) = image.section(b".go.buildinfo") {
        let info = image.read(range)?;
        if info.starts_with(MAGIC) {
            return Ok(Some(info));
        }
    }
    for segment in image.segments().iter().filter(|segment| segment.is_writable) {
        let bytes = image.read_segment(segment)?;
        let misaligned = (segment.range.start % ALIGNMENT as u64) as usize;
        let first = (ALIGNMENT - misaligned) % ALIGNMENT;
        let mut places = (first..bytes.len()).step_by(ALIGNMENT);
        if let Some(place) = places.find(|&place| bytes[place..].starts_with(MAGIC)) {
            let end = bytes.len().min(place + length);
            return Ok(Some(bytes[place..end].to_vec()));
        }
    }
    Ok(None)
}

/// A string behind its length, which is a varint (`encoding/binary.Uvarint`).
fn string(bytes: &[u8]) -> Option<&str> {
    let mut length = 0;
    for (index, byte) in bytes.iter().take(2).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let text = bytes.get(index + 1..)?.get(..length)?;
            return std::str::from_utf8(text).ok().filter(|_| length <= MAX_VERSION);
        }
    }
    None
}
