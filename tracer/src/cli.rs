//! The command line.

use std::{ffi::OsString, num::NonZeroU64, path::PathBuf, time::Duration};

use clap::{ArgAction, Parser, ValueEnum};

use crate::{
    profile::AllocatorFrames,
    snapshot::{GoHeapView, GoWishes, Selection},
    target::containers::Wanted,
};

/// The ways to use it.
const USAGE: &str = "memtrace [OPTIONS] --pid PID\n       memtrace [OPTIONS] --container NAME\n       memtrace [OPTIONS] -- CMD [ARGS]...";

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
#[command(name = "memtrace", version, override_usage = USAGE, after_help = AFTER_HELP)]
pub struct Arguments {
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

    /// What to trace, separated by commas: heap, fd (descriptors: files, sockets, ...), mmap, growth, and of Go programs
    /// goroutine and threadcreate.
    ///
    /// heap needs probes in the allocator; fd, mmap and growth do not, but every process on the machine pays some
    /// 50 nanoseconds for each system call while they are traced. Of a Go program, heap, goroutine and threadcreate are
    /// read from its runtime, without probes, and what is from before the attach is in them.
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        default_value = "heap,fd,mmap,goroutine,threadcreate"
    )]
    pub profiles: Vec<ProfileKind>,

    /// Only who touches new memory, from a sample of the page faults, and who moves the heap's end and maps: as
    /// --profiles growth. For programs that allocate too fast for more.
    #[arg(long, conflicts_with = "profiles")]
    pub growth: bool,

    /// List each open descriptor, with its path or its socket's addresses and state, in the report and in fd-details.json.
    #[arg(long)]
    pub fd_details: bool,

    /// Which view of a Go program's heap: published, as of its last garbage collection, which is what its own profile
    /// would show; or now, in which allocations are ahead of frees.
    #[arg(long, value_name = "VIEW", value_enum, default_value = "published")]
    pub go_heap: GoHeap,

    /// Have a Go program that keeps no heap profile (its MemProfileRate is 0) keep one from now on, of one allocation in
    /// RATE bytes on average: 4k, 64k, 512k. Written into the program's memory, and set to 0 again at the end.
    #[arg(
        long,
        value_name = "RATE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "64k",
        value_parser = parse_rate
    )]
    pub go_enable_heap: Option<u64>,

    /// Stop after this time: 30s, 5m, 2h, or 1m30s [default: until Ctrl-C or until the process ends].
    #[arg(long, short, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// The directory to write profiles to [default: memtrace-PID-TIME].
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// How many places each section of the report shows [default: 10, and 5 in sections beside the heap's].
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,

    /// Record one block in SIZE bytes on average, not every block: 512k, 1M. All numbers become estimates.
    ///
    /// Every byte allocated has the same chance, whatever the order of calls and the thread: large blocks are always
    /// recorded, small ones rarely, and each stands for as many of its size as were not. The estimates have no bias.
    #[arg(long, value_name = "SIZE", value_parser = parse_distance)]
    pub sample_bytes: Option<NonZeroU64>,

    /// Do not record blocks smaller than this: 64, 4k, 1M.
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = parse_size)]
    pub min_size: u64,

    /// Show as live only blocks that are at least this old: 30s, 5m, 1h30m.
    ///
    /// What was allocated in all (`alloc_space`, `alloc_objects`) is not filtered.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub older_than: Option<Duration>,

    /// Leave allocator functions out of profiles: a stack begins with who called `operator new`, not with it.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        default_value_t = true,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub exclude_allocator_frames: bool,

    /// How many live blocks can be recorded at once; what does not fit is counted. 104 bytes of kernel memory each
    /// [default: 1048576; when sampling, enough for 32 GiB of live memory].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub max_live: Option<u32>,

    /// A private allocator's functions are malloc, calloc, realloc, free and so on with this before their names; for several
    /// allocators, give it several times.
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub allocator_prefix: Vec<String>,

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

/// What can be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileKind {
    /// Blocks of allocators: heap.pb.gz.
    Heap,
    /// Descriptors: fd.pb.gz.
    Fd,
    /// Mappings: mmap.pb.gz.
    Mmap,
    /// New memory: growth.pb.gz.
    Growth,
    /// Goroutines: goroutine.pb.gz.
    Goroutine,
    /// Threads of a Go program: threadcreate.pb.gz.
    Threadcreate,
}

/// Which view of a Go heap is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GoHeap {
    /// As of the last garbage collection.
    Published,
    /// With what has happened since.
    Now,
}

/// Room for so many live blocks, unless there is a wish.
const MAX_LIVE: u32 = 1 << 20;
/// When blocks are sampled: room for so many at least.
const MIN_LIVE_SAMPLED: u32 = 16 << 10;
/// When blocks are sampled: for how much live memory there is room (bytes). A small table stays in the caches.
const LIVE_BYTES_SAMPLED: u64 = 32 << 30;
/// The largest mean distance between samples (bytes): then the smallest block still has a chance in 32 bits.
const MAX_DISTANCE: u64 = 1 << 30;

impl Arguments {
    /// How many live blocks can be recorded at once.
    pub fn max_live(&self) -> u32 {
        let sampled = |mean: NonZeroU64| {
            let blocks = LIVE_BYTES_SAMPLED / mean;
            u32::try_from(blocks).map_or(MAX_LIVE, |blocks| blocks.clamp(MIN_LIVE_SAMPLED, MAX_LIVE))
        };
        self.max_live
            .unwrap_or_else(|| self.sample_bytes.map_or(MAX_LIVE, sampled))
    }

    /// Whether this is traced.
    pub fn wants(&self, kind: ProfileKind) -> bool {
        match self.growth {
            true => kind == ProfileKind::Growth,
            false => self.profiles.contains(&kind),
        }
    }

    /// Which blocks are recorded and shown.
    pub fn selection(&self) -> Selection {
        Selection {
            sample_bytes: self.sample_bytes,
            min_size: self.min_size,
            min_age: self.older_than.unwrap_or_default(),
        }
    }

    /// What is wanted of Go runtimes.
    pub fn go_wishes(&self) -> GoWishes {
        GoWishes {
            heap: self.wants(ProfileKind::Heap),
            goroutines: self.wants(ProfileKind::Goroutine),
            threads: self.wants(ProfileKind::Threadcreate),
            view: match self.go_heap {
                GoHeap::Published => GoHeapView::Published,
                GoHeap::Now => GoHeapView::Now,
            },
            enable: self.go_enable_heap,
        }
    }

    /// Whether the allocator's functions are in the profiles.
    pub fn allocator_frames(&self) -> AllocatorFrames {
        match self.exclude_allocator_frames {
            true => AllocatorFrames::Exclude,
            false => AllocatorFrames::Keep,
        }
    }
}

/// Parses `4096`, `512k`, `512KiB`, `1M`, `2g`, each unit being 1024 times the one before it.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write for example 4096, 512k, or 1M");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Parses the mean distance between two samples.
fn parse_distance(text: &str) -> Result<NonZeroU64, String> {
    let size = parse_size(text)?;
    NonZeroU64::new(size)
        .filter(|size| size.get() <= MAX_DISTANCE)
        .ok_or_else(|| format!("`{text}` is not between 1 byte and 1G"))
}

/// Parses a rate that can be set with one byte, so that the target never sees half of it.
fn parse_rate(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 4 << 10;
    let rate = parse_size(text)?;
    let is_one_byte = rate.to_ne_bytes().iter().filter(|byte| **byte != 0).count() == 1;
    match rate {
        LEAST..=MAX_DISTANCE if is_one_byte => Ok(rate),
        _ => Err(format!(
            "`{text}` cannot be set at once; write for example 4k, 64k, or 512k"
        )),
    }
}

/// Accepts what a C name can begin with.
fn parse_prefix(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || c == '.';
    let begins_well = text.starts_with(|c: char| !c.is_ascii_digit());
    if begins_well && text.chars().all(is_name) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` cannot begin a function's name; write for example my_"
        ))
    }
}

/// Parses `90`, `90s`, `1m30s`, `2h`, `500ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write for example 30s, 5m, or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "" if next.is_empty() && digits == text.len() => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = next;
    }
    if total.is_zero() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{
        AllocatorFrames, Arguments, Duration, ProfileKind, parse_distance, parse_duration, parse_size,
    };

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512k"), Ok(512 << 10));
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        assert_eq!(parse_size("3g"), Ok(3 << 30));
        for wrong in ["", "k", "1x", "-1", "1.5M", "1k2", "99999999999g"] {
            assert!(parse_size(wrong).is_err(), "{wrong}: {:?}", parse_size(wrong));
        }
        assert!(parse_distance("1").is_ok() && parse_distance("1g").is_ok());
        assert!(parse_distance("0").is_err() && parse_distance("1025M").is_err());
    }

    fn parse(options: &[&str]) -> Arguments {
        let words = ["memtrace", "--pid", "1"].iter().chain(options);
        Arguments::try_parse_from(words).expect("these are options of ours")
    }

    #[test]
    fn a_sampled_heap_needs_less_room() {
        assert_eq!(parse(&[]).max_live(), 1 << 20);
        assert_eq!(parse(&["--sample-bytes", "512k"]).max_live(), 64 << 10);
        assert_eq!(parse(&["--sample-bytes", "1"]).max_live(), 1 << 20);
        assert_eq!(parse(&["--sample-bytes", "1g"]).max_live(), 16 << 10);
        assert_eq!(parse(&["--sample-bytes", "1g", "--max-live", "5"]).max_live(), 5);
    }

    #[test]
    fn allocator_frames_are_excluded_unless_told() {
        let frames = |options| parse(options).allocator_frames();
        assert_eq!(frames(&[]), AllocatorFrames::Exclude);
        assert_eq!(frames(&["--exclude-allocator-frames"]), AllocatorFrames::Exclude);
        assert_eq!(
            frames(&["--exclude-allocator-frames", "false"]),
            AllocatorFrames::Keep
        );
        assert_eq!(
            frames(&["--exclude-allocator-frames=true"]),
            AllocatorFrames::Exclude
        );
    }

    #[test]
    fn what_is_traced() {
        let wants = |options: &[&str]| {
            let arguments = parse(options);
            let all = [
                ProfileKind::Heap,
                ProfileKind::Fd,
                ProfileKind::Mmap,
                ProfileKind::Growth,
            ];
            all.map(|kind| arguments.wants(kind))
        };
        assert_eq!(wants(&[]), [true, true, true, false]);
        assert_eq!(wants(&["--growth"]), [false, false, false, true]);
        assert_eq!(wants(&["--profiles", "fd,growth"]), [false, true, false, true]);
        let both = ["memtrace", "--pid", "1", "--growth", "--profiles", "heap"];
        assert!(Arguments::try_parse_from(both).is_err());
        assert!(Arguments::try_parse_from(["memtrace", "--pid", "1", "--profiles", "heaps"]).is_err());
    }

    #[test]
    fn durations() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(seconds("30s"), Ok(30_000));
        assert_eq!(seconds("30"), Ok(30_000));
        assert_eq!(seconds("1m30s"), Ok(90_000));
        assert_eq!(seconds("500ms"), Ok(500));
        assert_eq!(seconds("2h"), Ok(7_200_000));
        for wrong in [
            "",
            "s",
            "0",
            "0s",
            "5x",
            "1m30",
            "-3s",
            "99999999999999999999s",
            "99999999999999999h",
        ] {
            assert!(
                parse_duration(wrong).is_err(),
                "{wrong}: {:?}",
                parse_duration(wrong)
            );
        }
        assert_eq!(parse_duration("1s").ok(), Some(Duration::from_secs(1)));
    }

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
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
