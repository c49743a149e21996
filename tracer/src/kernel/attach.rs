//! Where programs are attached to, and for whom.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
};

use aya::{
    Ebpf,
    programs::{
        ProbeKind, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
};

use super::{
    KernelError,
    perf::{self, Watched},
    tracefs::Tracefs,
};
use crate::probe::ReturnPoint;

/// A program at a place in a file.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    program: &'static str,
    /// Whether it runs at the return from the function at this place.
    is_return: bool,
    file: &'a File,
    /// Where in the file (bytes).
    offset: u64,
    /// What the program is told.
    cookie: u64,
}

impl<'a> Point<'a> {
    /// At the instruction at an offset (bytes) in a file; the program is told the cookie.
    pub fn at(program: &'static str, file: &'a File, offset: u64, cookie: u64) -> Self {
        Self {
            program,
            is_return: false,
            file,
            offset,
            cookie,
        }
    }

    /// At the return from a function. There is no other way to a return probe, and none to such a place in a file with Go
    /// code, see [`ReturnPoint`].
    pub fn at_return(program: &'static str, file: &'a File, place: &ReturnPoint) -> Self {
        Self {
            is_return: true,
            ..Self::at(program, file, place.point().file_offset, 0)
        }
    }
}

/// Threads of one process.
#[derive(Clone, Copy, Debug)]
pub struct Threads<'a> {
    /// The process.
    pub process: u32,
    /// The threads.
    pub ids: &'a [NonZeroU32],
}

/// The points that were attached together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Batch(usize);

/// Attaches programs, for as long as it lives.
#[derive(Debug)]
pub enum Attacher {
    /// In the address space of one thread. The kernel's `uprobe` events serve: nothing remains of them, whatever happens.
    OneProcess,
    /// In the address spaces of all processes that descend from the threads given, from their first instruction on. Only
    /// events of the trace file system can be inherited.
    Descendants(Following),
}

/// What is attached for processes and their descendants.
#[derive(Debug)]
pub struct Following {
    tracefs: Arc<Tracefs>,
    batches: HashMap<usize, Vec<Event>>,
    /// The number of the next batch.
    next: usize,
    /// Threads that remove what is not needed any more.
    removing: Vec<JoinHandle<()>>,
    /// Whether the kernel knows firm events.
    firmly: bool,
}

/// One event of the trace file system. It can have many places, but one program with one cookie.
#[derive(Debug)]
struct Event {
    name: String,
    number: u64,
    /// Carries the program. It must not be inherited: with the first child's end the kernel would take the program off
    /// all of them (`kernel/events/core.c`, `perf_event_free_bpf_prog`). It must not keep a process attached that is let go
    /// of, either, see [`idle_thread`].
    _carrier: (OwnedFd, OwnedFd),
    /// Decide in which address spaces the places are live; each with the process that it was opened for.
    filters: Vec<(u32, OwnedFd)>,
}

impl Attacher {
    /// For processes and their descendants.
    ///
    /// # Errors
    /// When there is no trace file system.
    pub fn following() -> io::Result<Self> {
        Ok(Self::Descendants(Following {
            tracefs: Arc::new(Tracefs::open()?),
            batches: HashMap::new(),
            next: 0,
            removing: Vec::new(),
            firmly: true,
        }))
    }

    /// Attaches programs in this order, for these threads.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        points: &[Point<'_>],
        threads: &Threads<'_>,
    ) -> Result<Batch, KernelError> {
        match self {
            Self::OneProcess => {
                for (point, &thread) in points
                    .iter()
                    .flat_map(|p| threads.ids.iter().map(move |t| (p, t)))
                {
                    attach_one(ebpf, point, thread)?;
                }
                Ok(Batch(0))
            }
            Self::Descendants(following) => {
                let Some(&first) = threads.ids.first() else {
                    return Err(KernelError::NoThread);
                };
                let batch = Batch(following.next);
                following.next += 1;
                let defined = following.define(ebpf, batch, points, first);
                let bound = defined.and_then(|()| following.bind(batch, threads));
                if bound.is_err() {
                    following.remove(batch);
                }
                bound.map(|()| batch)
            }
        }
    }

    /// Holds what was attached in a process for as long as the descriptors returned are open.
    ///
    /// Before Linux 6.12 what is inherited does not hold by itself, see [`Watched::Descendants`]. An event that is not
    /// inherited keeps a thread, and those that it makes, out of exchanges. None is needed where events are firm.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn anchor(&self, batches: &HashSet<Batch>, thread: NonZeroU32) -> Result<Vec<OwnedFd>, KernelError> {
        let Self::Descendants(following) = self else {
            return Ok(Vec::new());
        };
        if following.firmly {
            return Ok(Vec::new());
        }
        let events = batches.iter().filter_map(|batch| following.batches.get(&batch.0));
        let opened = events
            .flatten()
            .map(|event| perf::open(event.number, Watched::Thread(thread.get())));
        opened
            .collect::<io::Result<_>>()
            .map_err(|source| KernelError::Event {
                what: "open",
                name: "for a process",
                source,
            })
    }

    /// Makes what was attached live for more threads and their descendants.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bind(&mut self, batch: Batch, threads: &Threads<'_>) -> Result<(), KernelError> {
        match self {
            Self::OneProcess => Ok(()),
            Self::Descendants(following) => following.bind(batch, threads),
        }
    }

    /// Takes what was bound to threads of a process off them and off what descends from them. Of processes that have
    /// ended this only gives the kernel its memory back.
    pub fn unbind(&mut self, process: u32) {
        if let Self::Descendants(following) = self {
            for event in following.batches.values_mut().flatten() {
                event.filters.retain(|(owner, _)| *owner != process);
            }
        }
    }

    /// Removes what was attached, for whomever it is, while memtrace goes on: the kernel takes its time.
    pub fn remove(&mut self, batch: Batch) {
        if let Self::Descendants(following) = self {
            following.remove(batch);
        }
    }
}

impl Following {
    fn define(
        &mut self,
        ebpf: &mut Ebpf,
        batch: Batch,
        points: &[Point<'_>],
        first: NonZeroU32,
    ) -> Result<(), KernelError> {
        let mut groups: Vec<Vec<Point<'_>>> = Vec::new();
        let same = |a: &Point<'_>, b: &Point<'_>| (a.program, a.cookie) == (b.program, b.cookie);
        for point in points {
            match groups.iter_mut().find(|group| same(&group[0], point)) {
                Some(group) => group.push(*point),
                None => groups.push(vec![*point]),
            }
        }
        for (index, group) in groups.iter().enumerate() {
            let name = format!("e{}_{index}", batch.0);
            let event = self.define_event(ebpf, name, group, first)?;
            self.batches.entry(batch.0).or_default().push(event);
        }
        Ok(())
    }

    fn define_event(
        &self,
        ebpf: &mut Ebpf,
        name: String,
        places: &[Point<'_>],
        first: NonZeroU32,
    ) -> Result<Event, KernelError> {
        let Point {
            program,
            is_return,
            cookie,
            ..
        } = places[0];
        let refused = |what| {
            move |source| KernelError::Event {
                what,
                name: program,
                source,
            }
        };
        for place in places {
            let defined = self
                .tracefs
                .define(&name, &own_path(place.file), place.offset, place.is_return);
            defined.map_err(refused("define"))?;
        }
        let number = self.tracefs.event(&name).map_err(refused("find"))?;
        let carrier = idle_thread()
            .and_then(|thread| perf::open(number, Watched::Thread(thread)).ok())
            .map_or_else(|| perf::open(number, Watched::Thread(first.get())), Ok);
        let carrier = carrier.map_err(refused("open"))?;
        let fd = loaded(ebpf, program, is_return)?;
        let link = perf::link(fd, &carrier, cookie).map_err(refused("use"))?;
        Ok(Event {
            name,
            number,
            _carrier: (link, carrier),
            filters: Vec::new(),
        })
    }

    fn bind(&mut self, batch: Batch, threads: &Threads<'_>) -> Result<(), KernelError> {
        for event in self.batches.get_mut(&batch.0).into_iter().flatten() {
            for thread in threads.ids.iter().map(|thread| thread.get()) {
                let mut opened = open_for(event.number, thread, self.firmly);
                if self.firmly
                    && opened
                        .as_ref()
                        .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
                {
                    log::warn!(
                        "this kernel can take the probes off a process that forks at once (fixed in Linux 6.12)"
                    );
                    self.firmly = false;
                    opened = open_for(event.number, thread, false);
                }
                match opened {
                    Ok(filter) => event.filters.push((threads.process, filter)),
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(source) => {
                        return Err(KernelError::Event {
                            what: "open",
                            name: "for a thread",
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

impl Following {
    fn remove(&mut self, batch: Batch) {
        self.removing.retain(|thread| !thread.is_finished());
        let Some(events) = self.batches.remove(&batch.0) else {
            return;
        };
        let names: Vec<String> = events.iter().map(|event| event.name.clone()).collect();
        let tracefs = Arc::clone(&self.tracefs);
        let thread = std::thread::Builder::new().name("removing".into());
        match thread.spawn(move || remove_events(events, &tracefs)) {
            Ok(thread) => self.removing.push(thread),
            // That it did not begin has closed their descriptors.
            Err(_) => names.iter().for_each(|name| undefine(name, &self.tracefs)),
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for (_, events) in self.batches.drain() {
            remove_events(events, &self.tracefs);
        }
        for thread in self.removing.drain(..) {
            // A panic there would have ended memtrace.
            let _ended = thread.join();
        }
    }
}

fn remove_events(events: Vec<Event>, tracefs: &Tracefs) {
    for event in events {
        let name = event.name.clone();
        // The kernel keeps an event as long as it has descriptors.
        drop(event);
        undefine(&name, tracefs);
    }
}

fn undefine(name: &str, tracefs: &Tracefs) {
    if let Err(error) = tracefs.remove(name) {
        log::debug!("the event {name} stays defined: {error}");
    }
}

fn attach_one(ebpf: &mut Ebpf, point: &Point<'_>, thread: NonZeroU32) -> Result<(), KernelError> {
    let name = point.program;
    loaded(ebpf, name, point.is_return)?;
    let refused = |source| KernelError::Program {
        name,
        place: format!(" at file offset {:#x}", point.offset),
        source,
    };
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    let program: &mut UProbe = program.try_into().map_err(refused)?;
    let place = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(point.offset),
        cookie: Some(point.cookie),
    };
    program
        .attach(place, own_path(point.file), UProbeScope::OneProcess(thread))
        .map_err(refused)?;
    Ok(())
}

/// A thread without an address space: an event that watches it has breakpoints nowhere, and lives as long as it is wanted.
///
/// `kthreadd` is always process 2 (`init/main.c`, `rest_init`). Where memtrace does not see it, in a PID namespace of its own, the
/// event watches the first process, which so keeps its breakpoints until the end.
fn idle_thread() -> Option<u32> {
    const KTHREADD: u32 = 2;
    let process = procfs::process::Process::new(KTHREADD as i32).ok()?;
    let stat = process.stat().ok()?;
    let is_kernel = process.status().ok()?.vmsize.is_none();
    (is_kernel && stat.ppid == 0 && stat.comm == "kthreadd").then_some(KTHREADD)
}

fn open_for(number: u64, thread: u32, firmly: bool) -> io::Result<OwnedFd> {
    perf::open(number, Watched::Descendants { thread, firmly })
}

/// The descriptor of a program that was built to run at returns, or not to; it is loaded if it was not so far.
fn loaded<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    at_returns: bool,
) -> Result<BorrowedFd<'a>, KernelError> {
    let refused = |source| KernelError::Program {
        name,
        place: String::new(),
        source,
    };
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    let program: &mut UProbe = program.try_into().map_err(refused)?;
    // aya goes by the program when it makes a probe, and not by the place.
    if matches!(program.kind(), ProbeKind::Return) != at_returns {
        return Err(KernelError::Missing(name));
    }
    if program.fd().is_err() {
        program.load().map_err(refused)?;
    }
    Ok(program.fd().map_err(refused)?.as_fd())
}

/// A path to an open file, whatever became of its name.
fn own_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
