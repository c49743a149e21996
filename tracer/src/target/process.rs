//! A process and its identity.

/// What is known of the target, kept after it is gone.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// The process id, in memtrace's PID namespace.
    pub pid: u32,
    /// The command name (`/proc/PID/comm`).
    pub name: String,
    /// The path of the executable, in the target's view.
    pub executable: std::path::PathBuf,
}

/// A living process.
#[derive(Debug)]
pub struct Process {}
