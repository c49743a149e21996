//! What memtrace has in the kernel and in the target, and whether any of it is left.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::Result;

/// The eBPF objects that a process holds, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl BpfObjects {
    /// What `pid` holds now, as `/proc/PID/fdinfo` says.
    pub fn held_by(pid: u32) -> Result<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}/fdinfo"));
        let mut objects = Self::default();
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            // A descriptor that was closed meanwhile has no file any more.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            // A link's file names the program too.
            objects.programs.extend(number(&text, "prog_id:"));
            objects.links.extend(number(&text, "link_id:"));
        }
        Ok(objects)
    }

    /// Waits until bpftool shows none of these: the kernel frees them a little after their last user is gone.
    pub fn await_gone(&self, bpftool: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let programs = left(&self.programs, &shown(bpftool, "prog")?);
            let links = left(&self.links, &shown(bpftool, "link")?);
            if programs.is_empty() && links.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("still in the kernel: programs {programs:?}, links {links:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The number after a field's name in a file of `/proc/PID/fdinfo`.
pub(crate) fn number(text: &str, field: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|value| value.trim().parse().ok())
}

fn left(ids: &BTreeSet<u32>, present: &BTreeSet<u32>) -> Vec<u32> {
    ids.intersection(present).copied().collect()
}

/// The ids that `bpftool KIND show` lists; each object's text begins with `ID: `.
fn shown(bpftool: &Path, kind: &str) -> Result<BTreeSet<u32>> {
    let output = Command::new(bpftool)
        .args([kind, "show"])
        .output()
        .context("running bpftool")?;
    if !output.status.success() {
        bail!("bpftool {kind} show: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':')?.0.parse().ok())
        .collect())
}

/// How many uprobes and how many return probes a process holds; `None` on a kernel that does not say
/// (`bpf_perf_link_show_fdinfo` in `kernel/bpf/syscall.c`).
pub fn probes_held_by(pid: u32) -> Result<Option<(usize, usize)>> {
    let directory = PathBuf::from(format!("/proc/{pid}/fdinfo"));
    let mut kinds = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let kind = text.lines().find_map(|line| line.strip_prefix("event_type:"));
        kinds.extend(kind.map(|kind| kind.trim().to_owned()));
    }
    let of = |kind: &str| kinds.iter().filter(|held| *held == kind).count();
    Ok((!kinds.is_empty()).then(|| (of("uprobe"), of("uretprobe"))))
}

/// The bytes of `pid`'s code that differ from the files it was mapped from: where breakpoints are. x86-64 code has no
/// relocations, so without probes there is no difference.
pub fn patched_addresses(pid: u32) -> Result<Vec<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("reading the maps of {pid}"))?;
    let mut memory =
        fs::File::open(format!("/proc/{pid}/mem")).with_context(|| format!("opening the memory of {pid}"))?;
    let mut patched = Vec::new();
    for mapping in maps.lines().filter_map(CodeMapping::parse) {
        let mut file = fs::File::open(format!("/proc/{pid}/root{}", mapping.path))?;
        let on_disk = bytes_at(&mut file, mapping.offset, mapping.length)?;
        let in_memory = bytes_at(&mut memory, mapping.begin, mapping.length)?;
        let differing = on_disk
            .iter()
            .zip(&in_memory)
            .zip(mapping.begin..)
            .filter(|((disk, live), _)| disk != live);
        patched.extend(differing.map(|(_, address)| address));
    }
    Ok(patched)
}

/// Waits until no code of `pid` is patched any more.
pub fn await_unpatched(pid: u32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let patched = patched_addresses(pid)?;
        if patched.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("process {pid} still has breakpoints at {patched:x?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct CodeMapping<'a> {
    begin: u64,
    length: u64,
    offset: u64,
    path: &'a str,
}

impl<'a> CodeMapping<'a> {
    /// Parses `BEGIN-END r-xp OFFSET DEVICE INODE PATH`; `None` for what is not code from a file.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let path = fields.nth(2).filter(|path| path.starts_with('/') && executable)?;
        let begin = u64::from_str_radix(begin, 16).ok()?;
        let length = u64::from_str_radix(end, 16).ok()? - begin;
        Some(Self {
            begin,
            length,
            offset,
            path,
        })
    }
}

/// Up to `length` bytes: a file may end before its last mapped page does.
fn bytes_at(file: &mut fs::File, position: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(position)).context("seeking")?;
    file.take(length)
        .read_to_end(&mut bytes)
        .context("reading code")?;
    Ok(bytes)
}

/// The uprobes that are defined in the trace file system; empty if that is not mounted.
pub fn uprobe_events() -> Result<String> {
    match fs::read_to_string("/sys/kernel/tracing/uprobe_events") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => Ok(other?),
    }
}
