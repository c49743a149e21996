//! The functions of allocators themselves: of no interest to who asks for the memory's owner.

/// Names, without the prefixes that allocators put before them.
const NAMES: [&str; 22] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "aligned_alloc",
    "memalign",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "mallocx",
    "rallocx",
    "int_malloc",
    "int_memalign",
    "int_realloc",
    "mid_memalign",
    "operator new",
    "operator new[]",
    "rust_alloc",
    "rust_alloc_zeroed",
    "rust_realloc",
    "rdl_alloc",
    "rdl_realloc",
];

/// Prefixes of glibc, jemalloc (in Rust and elsewhere), tcmalloc and mimalloc; underscores before them do not count.
const PREFIXES: [&str; 6] = ["libc_", "rjem_", "je_", "tc_", "mi_", "rustc::__"];

/// Packages of the Go runtime, which `runtime/pprof` leaves out at the innermost end of a stack.
const GO_RUNTIME: [&str; 2] = ["runtime.", "internal/runtime/"];

/// Whether a function, by its readable name, is an allocator's own.
pub(crate) fn is_allocator(function: &str) -> bool {
    if GO_RUNTIME.iter().any(|package| function.starts_with(package)) {
        return true;
    }
    let name = function.trim_start_matches('_');
    let name = PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::{NAMES, PREFIXES, is_allocator};

    #[test]
    fn names_are_known_with_every_prefix_and_only_whole() {
        for name in NAMES {
            assert!(is_allocator(name) && is_allocator(&format!("__{name}")));
            assert!(
                PREFIXES
                    .iter()
                    .all(|prefix| is_allocator(&format!("_{prefix}{name}"))),
                "{name}"
            );
            assert!(!is_allocator(&format!("x{name}")) && !is_allocator(&format!("{name}_all")));
        }
    }
}
