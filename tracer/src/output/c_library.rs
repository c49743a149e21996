//! Which frames are the C library's: whoever asks who opened a file is not told `open64`.

use std::collections::HashSet;

use crate::{symbol::Symbolized, target::Mappings};

/// The mappings of the C library and its loader.
#[derive(Debug, Default)]
pub(super) struct CLibrary(HashSet<u16>);

impl CLibrary {
    /// Finds them by the names of their files.
    pub(super) fn of(mappings: &Mappings) -> Self {
        let is_its = |name: &str| is_c_library(name.strip_suffix(" (deleted)").unwrap_or(name));
        let all = mappings.all.iter();
        Self(
            all.filter(|mapping| is_its(&mapping.file_name()))
                .map(|mapping| mapping.id)
                .collect(),
        )
    }

    /// Whether the frame is in one of them.
    pub(super) fn holds(&self, code: &Symbolized) -> bool {
        code.mapping.is_some_and(|id| self.0.contains(&id))
    }
}

/// Names of glibc (before 2.34 with a version in them, `libpthread` apart) and musl.
fn is_c_library(file_name: &str) -> bool {
    const WITH_VERSION: [&str; 3] = ["libc-2.", "libpthread-2.", "ld-2."];
    const STEMS: [&str; 5] = ["libc.so", "libpthread.so", "ld-linux", "ld-musl-", "libc.musl-"];
    let is_object = file_name.ends_with(".so") || file_name.contains(".so.");
    let begins = |stems: &[&str]| stems.iter().any(|stem| file_name.starts_with(stem));
    is_object && (begins(&WITH_VERSION) || begins(&STEMS))
}

#[cfg(test)]
mod tests {
    use super::is_c_library;

    #[test]
    fn c_libraries_are_known_by_their_files() {
        for name in [
            "libc.so.6",
            "libc-2.31.so",
            "libpthread-2.31.so",
            "libpthread.so.0",
            "ld-linux-x86-64.so.2",
            "ld-2.31.so",
            "ld-musl-x86_64.so.1",
            "libc.musl-x86_64.so.1",
            "libc.so",
        ] {
            assert!(is_c_library(name), "{name}");
        }
        for name in [
            "libcurl.so.4",
            "libc-client.so.2007",
            "libc++.so.1",
            "ld",
            "libc.sock",
            "",
        ] {
            assert!(!is_c_library(name), "{name}");
        }
    }
}
