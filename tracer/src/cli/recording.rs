//! What is recorded of a process: the options that a single run and the daemon's targets have in common.

use std::{num::NonZeroU64, time::Duration};

use clap::{ArgAction, Args, ValueEnum};
use memtrace_ebpf::handles::classes;

use super::values::{parse_distance, parse_duration, parse_prefix, parse_rate, parse_size};
use crate::{
    profile::AllocatorFrames,
    snapshot::{GoHeapView, GoWishes, Selection},
};

/// What is recorded, and how much of it.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// What to trace, separated by commas: heap, fd (descriptors: files, sockets, ...), mmap, growth, and of Go programs
    /// goroutine and threadcreate [default: all but growth].
    ///
    /// heap needs probes in the allocator; fd, mmap and growth do not, but every process on the machine pays some
    /// 50 nanoseconds for each system call while they are traced. Of a Go program, heap, goroutine and threadcreate are
    /// read from its runtime, without probes, and what is from before the attach is in them.
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub profiles: Option<Vec<ProfileKind>>,

    /// Who touches new memory, from a sample of the page faults, and who moves the heap's end and maps: only that, or with
    /// --profiles LIST beside what LIST names. Alone it is for programs that allocate too fast for more.
    #[arg(long)]
    pub growth: bool,

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
impl Recording {
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
        let is_growth = kind == ProfileKind::Growth;
        match &self.profiles {
            Some(profiles) => profiles.contains(&kind) || self.growth && is_growth,
            None => self.growth == is_growth,
        }
    }

    /// What is traced, as the programs are told: bits of [`memtrace_ebpf::handles::classes`].
    pub fn classes(&self) -> u32 {
        let all = [
            (ProfileKind::Heap, classes::HEAP),
            (ProfileKind::Fd, classes::FD),
            (ProfileKind::Mmap, classes::MAPPING),
            (ProfileKind::Growth, classes::GROWTH),
        ];
        let wanted = all.into_iter().filter(|&(kind, _)| self.wants(kind));
        wanted.map(|(_, class)| class).sum()
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{AllocatorFrames, ProfileKind, Recording};

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        recording: Recording,
    }

    fn parse(options: &[&str]) -> Recording {
        let words = ["memtrace"].iter().chain(options);
        let parsed = Options::try_parse_from(words).expect("these are options of ours");
        parsed.recording
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
            let recording = parse(options);
            let all = [
                ProfileKind::Heap,
                ProfileKind::Fd,
                ProfileKind::Mmap,
                ProfileKind::Growth,
            ];
            all.map(|kind| recording.wants(kind))
        };
        assert_eq!(wants(&[]), [true, true, true, false]);
        assert_eq!(wants(&["--growth"]), [false, false, false, true]);
        assert_eq!(wants(&["--profiles", "fd,growth"]), [false, true, false, true]);
        assert_eq!(
            wants(&["--growth", "--profiles", "heap"]),
            [true, false, false, true]
        );
        assert!(
            parse(&[]).wants(ProfileKind::Goroutine) && !parse(&["--growth"]).wants(ProfileKind::Goroutine)
        );
        assert!(Options::try_parse_from(["memtrace", "--profiles", "heaps"]).is_err());
    }
}
