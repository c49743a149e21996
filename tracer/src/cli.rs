//! The command line.

mod recording;
mod serve;
mod values;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

pub use recording::{GoHeap, ProfileKind, Recording};
pub use serve::{ConfigError, Configuration, ServeArguments, TargetArguments};
pub(crate) use values::parse_duration;

use crate::target::containers::Wanted;

/// The ways to use it.
const USAGE: &str = "memtrace [OPTIONS] --pid PID\n       memtrace [OPTIONS] --container NAME\n       memtrace [OPTIONS] -- CMD [ARGS]...\n       memtrace serve [OPTIONS]";

/// What `--help` shows below the options.
const AFTER_HELP: &str = "\
Examples:
  sudo memtrace --pid 1234                       until Ctrl-C or until the process ends
  sudo memtrace --pid 1234 --duration 30s        for 30 seconds
  sudo memtrace --pid 1234 --sample-bytes 512k   estimates from few blocks, at the least cost
  sudo memtrace --pid 1234 --profiles fd         open files and sockets only, by who opened them
  sudo memtrace --pid 1234 --growth              who touches new memory, without probes in the allocator
  sudo memtrace --children --pid 1234            it, its children and what they execute
  sudo memtrace --container web                  the processes of a container of Docker, Podman or containerd
  sudo memtrace --container pod/default/shop     those of a pod's container
  sudo memtrace -- ./server --port 80            a program from its first instruction on
  sudo kill -USR1 $(pidof memtrace)              a snapshot now; tracing goes on
  go tool pprof -http=: DIR/heap.pb.gz           look at the profile

Exit codes: 0 done, 1 run-time failure, 2 usage, 3 no privilege or kernel feature, 4 no such process.";

/// Says which code of a running process holds its memory, descriptors and mappings.
///
/// Attaches to an unmodified Linux process, records from then on what it allocates, opens and maps, and writes what it still
/// holds at the end as pprof profiles, attributed to the code that did it.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "memtrace",
    version,
    override_usage = USAGE,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct Arguments {
    /// What to do instead of tracing one process.
    #[command(subcommand)]
    pub mode: Option<Mode>,

    /// The process to trace.
    #[arg(long, short, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..), required_unless_present_any = ["command", "container"], allow_negative_numbers = true)]
    pub pid: Option<u32>,

    /// The container to trace: a name or an id (all of it or its first 12 digits), docker://NAME, podman://NAME, cri://NAME,
    /// containerd://NAMESPACE/ID, pod/NAMESPACE/NAME/CONTAINER (CONTAINER is needed only if there are several), or labels of a
    /// pod or container, app=shop,tier=web. Implies --children.
    ///
    /// Without docker://, podman://, cri:// or containerd://, every engine is asked that answers. DOCKER_HOST, CONTAINER_HOST,
    /// CONTAINERD_ADDRESS and CONTAINER_RUNTIME_ENDPOINT say where, as for their own tools; else it is the usual sockets.
    #[arg(long, value_name = "NAME", value_parser = Wanted::parse, conflicts_with_all = ["pid", "command"])]
    pub container: Option<Wanted>,

    /// The socket of the container runtime that a kubelet uses, such as unix:///run/containerd/containerd.sock
    /// [default: CONTAINER_RUNTIME_ENDPOINT, or the usual ones].
    #[arg(long, value_name = "SOCKET", requires = "container", conflicts_with_all = ["pid", "command"])]
    pub runtime_endpoint: Option<String>,

    /// Trace the processes that it forks, too, and the programs that they execute; each gets a profile of its own.
    #[arg(long, short)]
    pub children: bool,

    /// List each open descriptor, with its path or its socket's addresses and state, in the report and in fd-details.json.
    #[arg(long)]
    pub fd_details: bool,

    /// What is recorded.
    #[command(flatten)]
    pub recording: Recording,

    /// Stop after this time: 30s, 5m, 2h, or 1m30s [default: until Ctrl-C or until the process ends].
    #[arg(long, short, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// The directory to write profiles to [default: memtrace-PID-TIME].
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// How many places each section of the report shows [default: 10, and 5 in sections beside the heap's].
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,

    /// No status line and no report: only the line that says that the probes are live, errors, and the profiles.
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print what is probed and why, and how much kernel memory is used.
    #[arg(long, short)]
    pub verbose: bool,

    /// A program to start, traced from its first instruction on: memtrace -- CMD ARGS…
    #[arg(last = true, value_name = "CMD", conflicts_with = "pid")]
    pub command: Vec<OsString>,

    /// Attach programs that do nothing: what remains is the cost of the probes alone. For benchmarks.
    #[arg(long, hide = true)]
    pub floor: bool,
}

impl Arguments {
    /// The command line of this process; ends it with a message if it is not one of ours.
    pub fn of_process() -> Self {
        let arguments = Self::parse();
        match arguments.checked() {
            Ok(arguments) => arguments,
            Err(error) => error.exit(),
        }
    }

    /// What no single option shows: wishes that cannot be granted together.
    fn checked(self) -> Result<Self, clap::Error> {
        if self.fd_details && !self.recording.wants(ProfileKind::Fd) {
            let what = "--fd-details lists descriptors, which are not traced here: add fd to --profiles (--profiles fd,...)";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, what));
        }
        Ok(self)
    }
}

/// Other ways to run.
#[derive(Clone, Debug, Subcommand)]
pub enum Mode {
    /// Trace many targets as they come and go, and serve or push their profiles.
    Serve(ServeArguments),
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::Arguments;

    #[test]
    fn one_target() {
        let parse = |words: &[&str]| Arguments::try_parse_from(["memtrace"].iter().chain(words));
        let container = parse(&["--container", "web", "--runtime-endpoint", "unix:///run/c.sock"]);
        assert!(container.is_ok_and(|arguments| arguments.container.is_some() && arguments.pid.is_none()));
        for wrong in [
            &["--container", "web", "--pid", "1"][..],
            &["--container", "web", "--", "true"],
            &["--container", "a b"],
            &["--pid", "1", "--", "true"],
            &["--pid", "1", "--runtime-endpoint", "unix:///run/c.sock"],
            &[],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn details_need_descriptors() {
        let is_fine = |options: &[&str]| {
            let words = ["memtrace", "--pid", "1"].iter().chain(options);
            let parsed = Arguments::try_parse_from(words).expect("these are options of ours");
            parsed.checked().is_ok()
        };
        assert!(is_fine(&["--fd-details"]));
        assert!(is_fine(&["--fd-details", "--profiles", "mmap,fd"]));
        assert!(!is_fine(&["--fd-details", "--profiles", "mmap"]));
        assert!(!is_fine(&["--fd-details", "--growth"]));
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
