//! The kernel's trace file system: the numbers of tracepoints, and uprobes as events that a child can inherit.

use std::{
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Where it is mounted, if it is (`Documentation/trace/ftrace.rst`).
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Where uprobes are defined (`Documentation/trace/uprobetracer.rst`).
const DEFINITIONS: &str = "uprobe_events";
/// What the groups of memtrace's events begin with; the process id of the memtrace that made them and a number follow.
const GROUP: &str = "memtrace_";
/// The number of the next group.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Once in the life of this process: a later time would take events from its other tracers.
static TIDIED: Once = Once::new();

/// The trace file system, mounted for this process alone if it is not mounted anyway.
#[derive(Debug)]
pub struct Tracefs {
    directory: OwnedFd,
    group: String,
}

impl Tracefs {
    /// Finds or mounts it.
    ///
    /// # Errors
    /// When the kernel has none or refuses.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let is_mounted = |directory: &OwnedFd| {
            openat(
                directory,
                DEFINITIONS,
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .is_ok()
        };
        let mounted = MOUNTED
            .iter()
            .filter_map(|path| openat(CWD, *path, flags, Mode::empty()).ok())
            .find(is_mounted);
        let directory = match mounted {
            Some(directory) => directory,
            None => {
                let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
                fsconfig_create(context.as_fd())?;
                fsmount(
                    context.as_fd(),
                    FsMountFlags::FSMOUNT_CLOEXEC,
                    MountAttrFlags::empty(),
                )?
            }
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tracefs = Self {
            directory,
            group: format!("{GROUP}{}_{number}", std::process::id()),
        };
        TIDIED.call_once(|| tracefs.remove_leftovers());
        Ok(tracefs)
    }

    /// The number of a tracepoint, which `perf_event_open` takes.
    ///
    /// # Errors
    /// When there is no such tracepoint.
    pub fn tracepoint(&self, group: &str, name: &str) -> io::Result<u64> {
        let text = self.read(&format!("events/{group}/{name}/id"))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// Defines the uprobe event `name`, or gives it one more place: `file` is a path, `offset` in bytes from its begin.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn define(&self, name: &str, file: &str, offset: u64, is_return: bool) -> io::Result<()> {
        let kind = if is_return { 'r' } else { 'p' };
        self.write(&format!("{kind}:{}/{name} {file}:{offset:#x}", self.group))
    }

    /// The number of an event that was defined.
    ///
    /// # Errors
    /// When it was not.
    pub fn event(&self, name: &str) -> io::Result<u64> {
        self.tracepoint(&self.group, name)
    }

    /// Removes an event that was defined; all its descriptors must be closed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.write(&format!("-:{}/{name}", self.group))
    }

    /// Removes the events of a memtrace that was killed. They watched nothing any more.
    fn remove_leftovers(&self) {
        let Ok(definitions) = self.read(DEFINITIONS) else {
            return;
        };
        let events = definitions.lines().filter_map(|line| {
            let event = line.split_whitespace().next()?.split_once(':')?.1;
            let group = event.split_once('/')?.0.strip_prefix(GROUP)?;
            let maker: u32 = group.split('_').next()?.parse().ok()?;
            let lives = std::path::Path::new(&format!("/proc/{maker}")).exists();
            (!lives || maker == std::process::id()).then_some(event)
        });
        for event in events {
            // One line for each place of an event; the first removes them all.
            let _removed_before = self.write(&format!("-:{event}"));
        }
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let file = openat(
            &self.directory,
            path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = String::new();
        std::fs::File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, command: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        let file = openat(&self.directory, DEFINITIONS, flags, Mode::empty())?;
        // One command is one call.
        std::fs::File::from(file).write_all(command.as_bytes())
    }
}
