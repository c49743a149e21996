//! What the end-to-end tests share: building target programs, starting them and memtrace, reading profiles.
//!
//! The tests in `tests/tests/` run the `memtrace` binary on real processes, as a user would: they see its command
//! line, its output, its exit code and the profiles it writes, and nothing of its inside. A test that needs root or a
//! program that is not installed prints `SKIPPED: reason` and passes; see [`skip`].

pub mod bpf_maps;
pub mod cgroup;
pub mod child;
pub mod compile;
pub mod containers;
pub mod daemon;
pub mod descriptors;
pub mod driven;
pub mod family;
pub mod fd_profile;
pub mod footprint;
pub mod gdb;
pub mod go_build;
pub mod go_profile;
pub mod go_runs;
pub mod go_text;
pub mod ground;
pub mod kernel;
pub mod kubernetes;
pub mod mapping_books;
pub mod mmap_profile;
pub mod net;
pub mod profile;
pub mod serial;
pub mod served;
pub mod servers;
pub mod skip;
pub mod stacks;
pub mod store;
pub mod tracer;

/// What went wrong in the harness or with a process: each test returns it, so that its context is printed.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;
