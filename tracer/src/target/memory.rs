//! The memory of a process as the kernel describes it: its areas, and where its threads' stacks are.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    num::NonZeroU32,
};

use procfs::{
    FromBufRead as _,
    process::{MMPermissions, MemoryMap, MemoryMaps, SmapsRollup, VmFlags},
};

use super::{
    Process, TargetError,
    process::{lost, read_lossy},
};

/// The lines of an entry of `/proc/PID/smaps` that are read (`fs/proc/task_mmu.c`, `__show_smap` and
/// `show_smap_vma_flags`). There are some twenty more, and a process can have 65,530 entries.
const NEEDED: [&str; 3] = ["Rss:", "Swap:", "VmFlags:"];

/// A virtual memory area: an entry of `/proc/PID/smaps`.
///
/// The kernel splits areas where the protection differs, and joins neighbours that do not differ: an area is not what one
/// call mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vma {
    /// First byte (virtual address).
    pub begin: u64,
    /// One past the last byte (virtual address).
    pub end: u64,
    /// As /proc shows it: a path in the target's view, which may end in ` (deleted)`, a name such as `[heap]`, or empty.
    /// Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Whether there is a file behind it, which may be one of nothing but memory (its inode is not 0).
    pub file: bool,
    /// Whether writes go to what is behind it (`MAP_SHARED`).
    pub shared: bool,
    /// Whether it can be read, written or executed at all.
    pub accessible: bool,
    /// Resident bytes; those of huge pages from hugetlbfs are not among them.
    pub rss: u64,
    /// Bytes that are swapped out.
    pub swap: u64,
    /// Whether it grows downwards (`MAP_GROWSDOWN`, `[stack]`).
    pub grows_down: bool,
    /// Whether the kernel must not make huge pages of it: `MADV_NOHUGEPAGE`, or `MAP_STACK` since Linux 6.7.
    pub no_huge_pages: bool,
    /// Whether it is the one that `brk` moves the end of.
    pub is_heap: bool,
    /// Whether it is the first thread's stack.
    pub is_stack: bool,
    /// Whether it is the heap of a Go runtime. /proc does not say: `false` until whoever knows the runtime says it.
    pub is_go_heap: bool,
}

impl Vma {
    fn new(map: &MemoryMap, path: String) -> Self {
        let field = |name: &str| map.extension.map.get(name).copied().unwrap_or(0);
        let flags = map.extension.vm_flags;
        let access = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::EXECUTE;
        let file = map.inode != 0;
        Self {
            begin: map.address.0,
            end: map.address.1,
            file,
            shared: map.perms.contains(MMPermissions::SHARED),
            accessible: map.perms.intersects(access),
            rss: field("Rss"),
            swap: field("Swap"),
            grows_down: flags.contains(VmFlags::GD),
            no_huge_pages: flags.contains(VmFlags::NH),
            is_heap: !file && path == "[heap]",
            is_stack: !file && path == "[stack]",
            is_go_heap: false,
            path,
        }
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.end - self.begin
    }
}

/// Resident memory of a process (bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All of it.
    pub rss: u64,
    /// Of it, what belongs to no file and is not shared memory.
    pub anonymous: u64,
}

impl Process {
    /// `/proc/PID/smaps`: every area of the address space, in ascending order. It is read piece by piece while the process
    /// goes on.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn vmas(&self) -> Result<Vec<Vma>, TargetError> {
        let pid = self.pid();
        let file = File::open(format!("/proc/{}/smaps", self.anchor())).map_err(|error| lost(pid, error))?;
        let vmas = read_vmas(BufReader::with_capacity(1 << 16, file)).map_err(|error| lost(pid, error))?;
        if vmas.is_empty() {
            return Err(TargetError::Ended { pid });
        }
        Ok(vmas)
    }

    /// Resident memory as `/proc/PID/smaps_rollup` says, which counts page by page. The `VmRSS` of other files is an
    /// approximation.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn resident(&self) -> Result<Resident, TargetError> {
        let pid = self.pid();
        let path = format!("/proc/{}/smaps_rollup", self.anchor());
        let text = read_lossy(&path).map_err(|error| lost(pid, error))?;
        let rollup = SmapsRollup::from_buf_read(text.as_bytes());
        let maps = rollup.map_err(|error| lost(pid, io::Error::other(error)))?;
        let whole = maps.memory_map_rollup.0.first();
        let field = |name: &str| whole.and_then(|map| map.extension.map.get(name)).copied();
        let resident = field("Rss").zip(field("Anonymous"));
        let (rss, anonymous) = resident.ok_or(TargetError::Ended { pid })?;
        Ok(Resident { rss, anonymous })
    }

    /// The threads that wait in the kernel, and their stack pointers (`/proc/PID/task/TID/syscall`). The kernel does not
    /// tell those of threads that run.
    pub fn stack_pointers(&self) -> Vec<(NonZeroU32, u64)> {
        let pid = self.pid();
        let pointer = |thread: NonZeroU32| {
            let text = read_lossy(&format!("/proc/{pid}/task/{thread}/syscall")).ok()?;
            Some((thread, stack_pointer(&text)?))
        };
        self.threads().into_iter().filter_map(pointer).collect()
    }
}

/// Reads smaps one entry after the other, so that the text of many areas never is in memory at once.
fn read_vmas(mut reader: impl BufRead) -> io::Result<Vec<Vma>> {
    let mut vmas = Vec::new();
    let (mut entry, mut path) = (String::new(), String::new());
    let mut line = Vec::new();
    loop {
        line.clear();
        let is_end = reader.read_until(b'\n', &mut line)? == 0;
        // Only the first line of an entry begins with an address.
        if !is_end && line.first().is_some_and(u8::is_ascii_uppercase) {
            if NEEDED.iter().any(|name| line.starts_with(name.as_bytes())) {
                entry.push_str(&String::from_utf8_lossy(&line));
            }
            continue;
        }
        if !entry.is_empty() {
            let maps = MemoryMaps::from_buf_read(entry.as_bytes()).map_err(io::Error::other)?;
            vmas.extend(maps.iter().map(|map| Vma::new(map, std::mem::take(&mut path))));
            entry.clear();
        }
        if is_end {
            return Ok(vmas);
        }
        let text = String::from_utf8_lossy(&line);
        let (fields, name) = split_path(&text);
        // Paths are the target's choice, and procfs panics at some that begin like those of System V shared memory.
        entry.push_str(fields);
        entry.push_str(" \n");
        path.push_str(name);
    }
}

/// The five fields of an entry's first line, and the path behind them (`fs/proc/task_mmu.c`, `show_map_vma`).
fn split_path(line: &str) -> (&str, &str) {
    let line = line.trim_end_matches('\n');
    match line.match_indices(' ').nth(4) {
        Some((at, _)) => (&line[..at], line[at..].trim_start_matches(' ')),
        None => (line, ""),
    }
}

/// The stack pointer in the text of `/proc/PID/task/TID/syscall`: the last field but one (`fs/proc/base.c`,
/// `proc_pid_syscall`), whether the thread waits in a system call or for a page. procfs knows the first of these only.
fn stack_pointer(text: &str) -> Option<u64> {
    let pointer = text.split_ascii_whitespace().rev().nth(1)?.strip_prefix("0x")?;
    // A thread of the kernel's that works for the process has none.
    u64::from_str_radix(pointer, 16)
        .ok()
        .filter(|&pointer| pointer != 0)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use super::{Process, Vma, read_vmas, split_path, stack_pointer};

    /// A child process that waits, killed when dropped.
    pub struct Sleeper(Child);

    impl Sleeper {
        /// Starts it, and waits until it waits.
        pub fn start() -> (Self, Process) {
            let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn();
            let sleeper = Self(child.expect("sleep is everywhere"));
            for _ in 0..1000 {
                std::thread::sleep(Duration::from_millis(2));
                let process = Process::open(sleeper.0.id()).expect("a child");
                let begun = process.info().executable.ends_with("sleep")
                    && std::fs::read_to_string(format!("/proc/{}/syscall", process.pid()))
                        .is_ok_and(|text| text.starts_with("230 ") || text.starts_with("35 "));
                if begun {
                    return (sleeper, process);
                }
            }
            panic!("sleep does not sleep");
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ended = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    /// The areas of this process.
    pub fn own_vmas() -> Vec<Vma> {
        let text = std::fs::read("/proc/self/smaps").expect("smaps");
        read_vmas(text.as_slice()).expect("areas")
    }

    #[test]
    fn areas_add_up_to_the_rollup() {
        let (_sleeper, process) = Sleeper::start();
        let vmas = process.vmas().expect("areas");
        let resident = process.resident().expect("a rollup");
        assert_eq!(vmas.iter().map(|vma| vma.rss).sum::<u64>(), resident.rss);
        assert!((1..resident.rss).contains(&resident.anonymous), "{resident:?}");
        assert!(vmas.is_sorted_by(|a, b| a.end <= b.begin));
        let of = |name: &str| vmas.iter().filter(|vma| vma.path == name).count();
        assert_eq!((of("[heap]"), of("[stack]"), of("[vdso]")), (1, 1, 1));
        let stack = vmas.iter().find(|vma| vma.is_stack).expect("a stack");
        assert!(stack.grows_down && !stack.file && stack.accessible);
        assert!(vmas.iter().any(|vma| vma.file && vma.path.ends_with("/sleep")));
        let pointers = process.stack_pointers();
        assert_eq!(pointers.len(), 1);
        assert!((stack.begin..stack.end).contains(&pointers[0].1));
    }

    #[test]
    fn every_name_is_read() {
        let smaps = b"5000-7000 rw-s 00000000 00:01 12   /memfd:a b\xff (deleted)\n\
            Size:                  8 kB\n\
            Rss:                   4 kB\n\
            Swap:                  8 kB\n\
            VmFlags: rd wr sh nh sd \n\
            7000-8000 ---p 00000000 00:00 0 \n\
            Rss:                   0 kB\n\
            VmFlags: mr mw me gd sd \n\
            8000-9000 r--p 00000000 08:01 7                          /SYSV\xff\xff\xff\xff\n\
            9000-a000 rw-p 00000000 00:00 0                          [heap]\n";
        let vmas = read_vmas(smaps.as_slice()).expect("areas");
        let paths: Vec<&str> = vmas.iter().map(|vma| vma.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/memfd:a b\u{fffd} (deleted)",
                "",
                "/SYSV\u{fffd}\u{fffd}\u{fffd}\u{fffd}",
                "[heap]"
            ]
        );
        let shared = &vmas[0];
        assert!(shared.file && shared.shared && shared.no_huge_pages && shared.accessible);
        assert_eq!((shared.rss, shared.swap, shared.length()), (4096, 8192, 0x2000));
        assert!(vmas[1].grows_down && !vmas[1].accessible && !vmas[1].shared);
        assert!(vmas[3].is_heap);
        assert_eq!(split_path("short"), ("short", ""));
    }

    #[test]
    fn the_stack_pointer_is_the_last_field_but_one() {
        let waiting = "202 0x7f 0x80 0x0 0x0 0x0 0x1 0x7ffd1230 0x7f0045\n";
        assert_eq!(stack_pointer(waiting), Some(0x7ffd_1230));
        assert_eq!(stack_pointer("-1 0x7ffd1230 0x7f0045\n"), Some(0x7ffd_1230));
        assert_eq!(stack_pointer("-1 0x0 0x0\n"), None);
        assert_eq!(stack_pointer("running\n"), None);
        assert_eq!(stack_pointer(""), None);
    }
}
