//! The kernel's own word: probes at the planned sites of a running process fire once per call, and the
//! process goes on.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::super::{CodeReader, Plan, ProbePoint, plan};

/// Tells the child test to be the target, and by its value whether the allocator has a pvalloc.
const TARGET: &str = "MEMTRACE_TEST_ALLOCATES";
const WITH_PVALLOC: &str = "with pvalloc";
/// What the target prints, followed by its thread id, when it is ready.
const READY: &str = "target thread ";
/// Rounds that the target makes; each calls every function once.
const ROUNDS: u64 = 2_000;
const UPROBE_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";

/// `struct perf_event_attr` up to `config2` (`PERF_ATTR_SIZE_VER1`), from `linux/perf_event.h`.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    /// Bit 0: a return probe.
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    /// `uprobe_path`: address of a NUL-terminated path.
    path: u64,
    /// `probe_offset`: offset in the file.
    offset: u64,
}

/// A counter of how often one thread passes one probe.
pub(super) struct Counter(OwnedFd);

impl Counter {
    pub(super) fn attach(path: &str, point: &ProbePoint, returns: bool, thread: i32) -> io::Result<Self> {
        let kind = std::fs::read_to_string(UPROBE_TYPE)?;
        let path = CString::new(path)?;
        let attributes = PerfEventAttr {
            kind: kind.trim().parse().map_err(io::Error::other)?,
            size: u32::try_from(size_of::<PerfEventAttr>()).map_err(io::Error::other)?,
            config: returns.into(),
            path: path.as_ptr() as u64,
            offset: point.file_offset,
            ..PerfEventAttr::default()
        };
        // SAFETY: `attributes` and the path that it points to outlive the call, and `size` is the size of
        // `attributes`.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                -1,
                -1,
                0,
            )
        };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn read(self) -> u64 {
        let mut count = [0; 8];
        File::from(self.0)
            .read_exact(&mut count)
            .expect("a perf event is read eight bytes at a time");
        u64::from_le_bytes(count)
    }
}

/// The memory of a process, by the addresses of one of its files.
struct Memory {
    file: File,
    bias: u64,
}

impl CodeReader for Memory {
    fn read(&self, vaddr: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, self.bias + vaddr)
    }
}

/// A process whose one thread calls every allocation function, `ROUNDS` times for each line that it reads.
struct Target {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    thread: i32,
}

impl Target {
    fn start(preload: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test knows its executable"));
        command.args([
            "--exact",
            "--nocapture",
            &format!(
                "{}::be_the_target",
                module_path!().split_once("::").expect("in a crate").1
            ),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        match preload {
            // jemalloc has none, and its free does not know what glibc's returns.
            Some(library) => command.env("LD_PRELOAD", library).env(TARGET, "without pvalloc"),
            None => command.env(TARGET, WITH_PVALLOC),
        };
        let mut child = command.spawn().expect("the test executable runs");
        let input = child.stdin.take().expect("stdin is piped");
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let thread = loop {
            let mut line = String::new();
            assert_ne!(
                output.read_line(&mut line).expect("the target prints text"),
                0,
                "the target ended early"
            );
            if let Some((_, thread)) = line.split_once(READY) {
                break thread.trim().parse().expect("a thread id is a number");
            }
        };
        Self {
            child,
            input,
            output,
            thread,
        }
    }

    /// Lets the target make its rounds, and waits until it has.
    fn run(&mut self) {
        self.input.write_all(b"g").expect("the target reads");
        let mut answer = [0];
        self.output
            .read_exact(&mut answer)
            .expect("the target has survived its rounds");
    }

    /// The path that the target maps and the load bias, by the end of the file's name.
    fn mapping(&self, name: &str) -> Option<(String, u64)> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).ok()?;
        maps.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let (begin, _) = fields.next()?.split_once('-')?;
            let (offset, path) = (fields.nth(1)?, fields.nth(2)?);
            let first = path.ends_with(name) && offset.bytes().all(|digit| digit == b'0');
            first.then(|| Some((path.to_owned(), u64::from_str_radix(begin, 16).ok()?)))?
        })
    }

    fn finish(mut self) {
        drop(self.input);
        assert!(self.child.wait().expect("the child is ours").success());
    }
}

/// Calls every function once, and frees what it got: 6 blocks, or 7 with pvalloc.
fn round(pvalloc_too: bool) {
    let size = std::hint::black_box(100);
    // SAFETY: every block is freed once, by the allocator that made it; realloc's old block is not used
    // again.
    unsafe {
        let mut out = std::ptr::null_mut();
        assert_eq!(libc::posix_memalign(&raw mut out, 64, size), 0);
        libc::free(out);
        libc::free(libc::realloc(libc::malloc(size), 2 * size));
        libc::free(libc::reallocarray(libc::calloc(4, size), 8, size));
        libc::free(libc::memalign(64, size));
        libc::free(libc::aligned_alloc(64, 128));
        libc::free(valloc(size));
        if pvalloc_too {
            libc::free(pvalloc(size));
        }
    }
}

unsafe extern "C" {
    fn valloc(size: libc::size_t) -> *mut libc::c_void;
    fn pvalloc(size: libc::size_t) -> *mut libc::c_void;
}

/// Not a test: the target of the tests below, when they start it.
#[test]
fn be_the_target() {
    let Some(allocator) = std::env::var_os(TARGET) else {
        return;
    };
    let pvalloc_too = allocator == WITH_PVALLOC;
    // SAFETY: gettid takes nothing and cannot fail.
    println!("{READY}{}", unsafe { libc::gettid() });
    let mut byte = 0_u8;
    // Nothing but the rounds may allocate, hence no `std::io`.
    // SAFETY: `byte` is one byte, which is what is read and written.
    while unsafe { libc::read(0, (&raw mut byte).cast(), 1) } == 1 {
        (0..ROUNDS).for_each(|_| round(pvalloc_too));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::write(1, (&raw const byte).cast(), 1) }, 1);
    }
}

/// Attaches every site, lets the target run, and gives calls and returns by symbol. `None` when this
/// machine does not allow it.
fn count(target: &mut Target, path: &str, plan: &Plan) -> Option<BTreeMap<String, (u64, u64)>> {
    let mut counters = Vec::new();
    for site in &plan.sites {
        let attach = |point, returns| Counter::attach(path, point, returns, target.thread);
        let calls = match attach(&site.entry, false) {
            Ok(calls) => calls,
            Err(error) if counters.is_empty() && unsupported(&error) => {
                println!("SKIPPED: uprobes through perf_event_open: {error}");
                return None;
            }
            Err(error) => panic!("the kernel refuses {}: {error}", site.why),
        };
        let returns = site
            .returns
            .as_ref()
            .map(|returns| attach(returns.point(), true).expect("the site takes a return probe"));
        counters.push((site.symbol.clone(), calls, returns));
    }
    target.run();
    let read = |(function, calls, returns): (_, Counter, Option<Counter>)| {
        (function, (calls.read(), returns.map_or(0, Counter::read)))
    };
    Some(counters.into_iter().map(read).collect())
}

/// Not root, a container without the capability, or a kernel without uprobes.
pub(super) fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::ENOENT | libc::ENOSYS)
    )
}

/// Probes `library` in a target that has it loaded, and compares with the calls that its rounds make.
///
/// `frees` is the calls of free in one round. In a library without `memalign` of its own, that is
/// `aligned_alloc`.
fn check(library: &str, preload: Option<&str>, frees: u64) {
    let mut target = Target::start(preload);
    let Some((path, bias)) = target.mapping(library) else {
        println!("SKIPPED: the target does not load {library}");
        return target.finish();
    };
    let image = std::fs::read(&path).expect("what is mapped can be read");
    let file = File::open(format!("/proc/{}/mem", target.child.id())).expect("the child's memory is ours");
    let memory = Memory { file, bias };
    let plan = plan(image.as_slice(), &memory).expect("a mapped library is an ELF file");
    let Some(counts) = count(&mut target, &path, &plan) else {
        return target.finish();
    };
    assert!(counts.len() >= 7, "{plan:?}");
    for (symbol, &(calls, returns)) in &counts {
        let expected = ROUNDS
            * match symbol.as_str() {
                "free" => frees,
                // glibc's reallocarray calls realloc.
                "realloc" => 2,
                "aligned_alloc" if !counts.contains_key("memalign") => 2,
                "malloc" | "calloc" | "reallocarray" | "posix_memalign" | "memalign" | "aligned_alloc"
                | "valloc" | "pvalloc" => 1,
                // Not called by the target.
                _ => 0,
            };
        println!("{library}: {symbol}: {calls} calls, {returns} returns");
        assert_eq!(calls, expected, "{symbol}");
        let frees = plan
            .sites
            .iter()
            .any(|site| site.symbol == *symbol && site.shape.is_free());
        assert_eq!(returns, if frees { 0 } else { expected }, "{symbol}");
    }
    // The probes are gone; the target is as it was.
    target.run();
    target.finish();
}

#[test]
fn glibc_sites_fire_once_per_call() {
    check("libc.so.6", None, 7);
}

#[test]
fn jemalloc_sites_fire_once_per_call() {
    const JEMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    if !std::path::Path::new(JEMALLOC).exists() {
        println!("SKIPPED: no {JEMALLOC} on this machine");
        return;
    }
    check("libjemalloc.so.2", Some(JEMALLOC), 6);
}
