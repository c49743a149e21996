//! The loaded programs, their maps, and what they are attached to.

mod events;
mod tails;

use std::{
    collections::HashSet,
    fs::File,
    mem::offset_of,
    num::{NonZeroU32, NonZeroU64},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, ProgramArray, RingBuf},
    programs::{RawTracePoint, TracePoint, UProbe},
};
use memtrace_ebpf::{
    handles::{MAP_EVENT_BYTES, classes},
    layout::{Block, BlockKey, Control, FRAMES_BYTES, NO_SPACE, Notice, NoticeKind, Stack, Wish, tail},
    unwind::Page,
};

use tails::{fill_call_tails, fill_tails};

use super::{
    KernelError,
    array::MappedArray,
    attach::{Attacher, Batch, Point, Threads},
    books::Books,
    descriptors::Descriptors,
    map_events::MapEvents,
    offsets,
    points::{dial_points, points},
    sampling::SizeClasses,
    spaces::Spaces,
    tables::{TableRoom, Tables},
};
use crate::probe::{DialSites, Site};

/// The programs, as `build.rs` compiled them.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memtrace-programs"));

/// The kernel's own bytes for each element of a hash map, beside key and value
/// (`kernel/bpf/hashtab.c`, `struct htab_elem`: 48, and 16 for the bucket).
const HASH_OVERHEAD: u64 = 64;

/// The number of the first address space; 0 is none.
pub const FIRST_SPACE: u32 = 1;

/// How large the kernel's tables are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Live blocks.
    pub blocks: u32,
    /// Threads that have called the allocator.
    pub threads: u32,
    /// Processes that are traced at once.
    pub processes: u32,
    /// Distinct stacks.
    pub stacks: u32,
    /// Open descriptors.
    pub fds: u32,
    /// Room for unwind tables.
    pub tables: TableRoom,
}

impl Limits {
    /// The kernel memory that the block table takes (bytes).
    pub fn block_bytes(&self) -> u64 {
        let entry = (size_of::<BlockKey>() + size_of::<Block>()) as u64 + HASH_OVERHEAD;
        u64::from(self.blocks) * entry
    }

    /// The kernel memory that the other tables take (bytes).
    pub fn other_bytes(&self) -> u64 {
        let stacks = u64::from(self.stacks) * (size_of::<Stack>() as u64 + HASH_OVERHEAD + 16);
        let threads = u64::from(self.threads) * (328 + HASH_OVERHEAD);
        // Elements are allocated when they are needed; the buckets are not.
        let fds = u64::from(self.fds) * 16;
        let events = u64::from(FRAMES_BYTES) + u64::from(MAP_EVENT_BYTES);
        let tables =
            u64::from(self.tables.rows) * 8 + u64::from(self.tables.pages) * size_of::<Page>() as u64;
        stacks + threads + tables + fds + events
    }
}

/// The loaded programs. Dropping it detaches and unloads everything; so does the end of memtrace, however it comes.
pub struct Programs {
    /// Before the programs: it goes first.
    attacher: Attacher,
    forks: Option<(OwnedFd, OwnedFd)>,
    /// Keep the programs at system calls: links and events.
    calls: Vec<(OwnedFd, OwnedFd)>,
    ebpf: Ebpf,
    control: MappedArray<Control>,
    books: Books,
    tables: Tables,
    spaces: Spaces,
    descriptors: Descriptors,
    map_events: MapEvents,
    breaks: HashMap<MapData, u32, u64>,
    /// The program that sees what an io_uring has done.
    requests: Option<&'static str>,
    notices: RingBuf<MapData>,
    _tails: Vec<ProgramArray<MapData>>,
}

impl Programs {
    /// Loads the programs that these classes of holdings need (bits of [`memtrace_ebpf::handles::classes`]); nothing is
    /// attached or recorded yet. With `follow`, for processes and their descendants.
    ///
    /// # Errors
    /// When the kernel refuses: see [`KernelError::is_privilege`].
    pub fn load(limits: &Limits, follow: bool, classes: u32) -> Result<Self, KernelError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LIVE", limits.blocks)
            .map_max_entries("THREADS", limits.threads)
            .map_max_entries("STACK_IDS", limits.stacks)
            .map_max_entries("STACKS", limits.stacks)
            .map_max_entries("FREE_STACKS", limits.stacks)
            .map_max_entries("ROWS", limits.tables.rows)
            .map_max_entries("PAGES", limits.tables.pages)
            .map_max_entries("MAPPINGS", limits.tables.prefixes)
            .map_max_entries("PROCESSES", limits.processes)
            .map_max_entries("SPACES", limits.processes)
            .map_max_entries("LEDGERS", limits.processes + 1)
            .map_max_entries("WISHES", 2 * limits.processes)
            .map_max_entries("FDS", limits.fds)
            .map_max_entries("TABLES", 2 * limits.processes)
            .map_max_entries("BREAKS", limits.processes)
            .load(OBJECT)?;
        let requests = offsets::provide(&mut ebpf)?;
        let mut tails = vec![fill_tails::<UProbe>(&mut ebpf, "TAILS", &[(tail::WALK, "walk")])?];
        if follow {
            let inherit = [(tail::INHERIT, "inherit")];
            tails.push(fill_tails::<TracePoint>(&mut ebpf, "FORK_TAILS", &inherit)?);
        }
        if classes & !classes::HEAP != 0 {
            tails.push(fill_call_tails(&mut ebpf)?);
            let in_kernel = [
                (tail::WALK, "walk_in_kernel"),
                (tail::BOOK_TOUCH, "book_touch"),
                (tail::BOOK_REQUEST, "book_request"),
            ];
            tails.push(fill_tails::<RawTracePoint>(
                &mut ebpf,
                "KERNEL_TAILS",
                &in_kernel,
            )?);
        }
        if classes & classes::FD != 0 {
            let in_dial = [(tail::WALK, "walk_in_dial"), (tail::BOOK_DIAL, "book_dial")];
            tails.push(fill_tails::<UProbe>(&mut ebpf, "DIAL_TAILS", &in_dial)?);
        }
        let attacher = if follow {
            Attacher::following().map_err(|source| KernelError::Event {
                what: "define",
                name: "of children",
                source,
            })?
        } else {
            Attacher::OneProcess
        };
        let control = MappedArray::<Control>::take(&mut ebpf, "CONTROL")?;
        // The first stack is the one for blocks whose stack has no room.
        control.set(
            0,
            Control {
                next_stack: 1,
                next_space: u64::from(FIRST_SPACE) + 1,
                follow: u32::from(follow),
                stacks: u64::from(limits.stacks),
                classes,
                touch_distance: 1,
                ..Control::default()
            },
        );
        let mut books = Books::take(&mut ebpf)?;
        books.open(NO_SPACE)?;
        Ok(Self {
            books,
            tables: Tables::take(&mut ebpf)?,
            spaces: Spaces::take(&mut ebpf)?,
            descriptors: Descriptors::take(&mut ebpf)?,
            map_events: MapEvents::take(&mut ebpf)?,
            breaks: super::spaces::take(&mut ebpf, "BREAKS")?,
            requests,
            notices: take_notices(&mut ebpf)?,
            control,
            attacher,
            ebpf,
            forks: None,
            calls: Vec::new(),
            _tails: tails,
        })
    }

    /// Has only some blocks recorded: one for every `sample_bytes` bytes on average, and none smaller than `min_size`
    /// (bytes). To be called before anything is recorded.
    ///
    /// # Errors
    /// When a map cannot be filled.
    pub fn choose_blocks(
        &mut self,
        sample_bytes: Option<NonZeroU64>,
        min_size: u64,
    ) -> Result<(), KernelError> {
        if let Some(mean) = sample_bytes {
            self.books.set_classes(SizeClasses::fill(&mut self.ebpf, mean)?);
        }
        let mut control = self.control.get(0).unwrap_or_default();
        control.min_size = min_size;
        control.sampled = u32::from(sample_bytes.is_some());
        control.selective = u32::from(sample_bytes.is_some() || min_size > 0);
        self.control.set(0, control);
        Ok(())
    }

    /// Has one page in so many recorded when it is touched: a power of two.
    pub fn sample_touches(&mut self, distance: u32) {
        self.control_word(offset_of!(Control, touch_distance))
            .store(distance, Ordering::SeqCst);
    }

    /// Says where the heap of an address space ends (virtual address).
    pub fn set_break(&mut self, space: u32, end: u64) {
        if let Err(error) = self.breaks.insert(space, end, 0) {
            log::debug!("the heap of address space {space} is not known: {error}");
        }
    }

    /// Forgets the end of the heap of an address space that is no more.
    pub fn forget_break(&mut self, space: u32) {
        let _not_known = self.breaks.remove(&space);
    }

    /// The books of descriptors.
    pub fn descriptors(&mut self) -> &mut Descriptors {
        &mut self.descriptors
    }

    /// The same, to read.
    pub fn descriptors_ref(&self) -> &Descriptors {
        &self.descriptors
    }

    /// The log of changes of mappings.
    pub fn map_events(&mut self) -> &mut MapEvents {
        &mut self.map_events
    }

    /// What was counted.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The same, to read new frames and to make room.
    pub fn books_mut(&mut self) -> &mut Books {
        &mut self.books
    }

    /// Begins to trace a process, in an address space of its own with this set of mappings.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_process(&mut self, process: u32, space: u32, layout: u32) -> Result<(), KernelError> {
        self.books.open(space)?;
        self.spaces.add(process, space, layout)
    }

    /// The number of an address space that the programs have not given to any.
    pub fn new_space(&self) -> u32 {
        let control = self.control.pointer(0);
        // SAFETY: the pointer is to a word of the mapped control block, which programs change atomically.
        let next = unsafe { AtomicU64::from_ptr(&raw mut (*control).next_space) };
        next.fetch_add(1, Ordering::SeqCst) as u32
    }

    /// The unwind tables.
    pub fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// Which processes are traced.
    pub fn spaces(&mut self) -> &mut Spaces {
        &mut self.spaces
    }

    /// The loaded object, for the log of the programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches the programs of these allocation functions in this order, of functions of `net/http`, and of the dynamic
    /// linker's hook, for these threads; with `floor`, programs that do nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_sites(
        &mut self,
        sites: &[(Site, Arc<File>)],
        dials: &[(DialSites, Arc<File>)],
        linker: Option<&(u64, Arc<File>)>,
        floor: bool,
        threads: &Threads<'_>,
    ) -> Result<Batch, KernelError> {
        let mut points: Vec<_> = sites
            .iter()
            .flat_map(|(site, file)| points(site, file, floor))
            .collect();
        // The floor is that of the allocator's probes.
        let dials = dials.iter().filter(|_| !floor);
        points.extend(dials.flat_map(|(sites, file)| dial_points(sites, file)));
        points.extend(linker.map(|(offset, file)| Point::at("linker_changed", file, *offset, 0)));
        self.attacher.attach(&mut self.ebpf, &points, threads)
    }

    /// Holds what was attached in a process, until the descriptors are closed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn anchor(&self, batches: &HashSet<Batch>, thread: NonZeroU32) -> Result<Vec<OwnedFd>, KernelError> {
        self.attacher.anchor(batches, thread)
    }

    /// Makes what was attached live for more threads, if that is needed for each process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bind(&mut self, batch: Batch, threads: &Threads<'_>) -> Result<(), KernelError> {
        self.attacher.bind(batch, threads)
    }

    /// Takes what was bound to the threads of a process off them, see [`Attacher::unbind`].
    pub fn unbind(&mut self, process: u32) {
        self.attacher.unbind(process);
    }

    /// Removes what was attached together, if it is for processes and their descendants: nobody needs it any more.
    pub fn remove(&mut self, batch: Batch) {
        self.attacher.remove(batch);
    }

    /// Starts or stops recording, for all probes at once.
    pub fn record(&self, on: bool) {
        self.control_word(offset_of!(Control, enabled))
            .store(u32::from(on), Ordering::SeqCst);
    }

    /// Tells the programs which thread the probes are bound to.
    pub fn set_anchor(&self, thread: NonZeroU32) {
        self.control_word(offset_of!(Control, anchor))
            .store(thread.get(), Ordering::SeqCst);
    }

    /// Which process is stopped whenever its dynamic linker changed the mappings; 0: none.
    pub fn hold(&self, process: u32) {
        self.control_word(offset_of!(Control, hold))
            .store(process, Ordering::SeqCst);
    }

    /// To be called before the mappings of an address space are read: what changes from then on will be told anew.
    pub fn mappings_wanted(&mut self, space: u32) {
        // First the switch, then the wish: a program that comes in between sets both.
        self.control_word(offset_of!(Control, stale))
            .store(0, Ordering::SeqCst);
        self.spaces.grant(space, Wish::Stale);
        if self.spaces.any(Wish::Stale) {
            self.control_word(offset_of!(Control, stale))
                .store(1, Ordering::SeqCst);
        }
    }

    /// Makes the programs distrust earlier walks.
    pub fn mappings_changed(&self) {
        self.control_word(offset_of!(Control, generation))
            .fetch_add(1, Ordering::SeqCst);
    }

    /// The 32-bit word of the control block at this offset (bytes).
    fn control_word(&self, offset: usize) -> &AtomicU32 {
        let word = self
            .control
            .pointer(0)
            .cast::<u8>()
            .wrapping_add(offset)
            .cast::<u32>();
        // SAFETY: the offset is that of an aligned word of the control block, which lives as long as `self`.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// How many stacks there are (the one without frames included).
    pub fn stack_count(&self) -> usize {
        let next = self.control.get(0).map_or(0, |control| control.next_stack);
        usize::try_from(next)
            .unwrap_or(usize::MAX)
            .min(self.books.stack_room())
    }

    /// The descriptor that becomes readable when mappings changed.
    pub fn map_events_fd(&self) -> BorrowedFd<'_> {
        self.map_events.fd()
    }

    /// The descriptor that becomes readable when there are notices.
    pub fn notices_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }

    /// The notices that came since the last call.
    pub fn take_notices(&mut self) -> Vec<(NoticeKind, Notice)> {
        let mut notices = Vec::new();
        while let Some(item) = self.notices.next() {
            if item.len() < size_of::<Notice>() {
                continue;
            }
            // SAFETY: there are as many bytes, and any value of each is a value of the fields.
            let notice: Notice = unsafe { item.as_ptr().cast::<Notice>().read_unaligned() };
            let kind = NoticeKind::ALL
                .into_iter()
                .find(|&kind| kind as u32 == notice.kind);
            notices.extend(kind.map(|kind| (kind, notice)));
        }
        notices
    }
}

fn take_notices(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, KernelError> {
    let map = ebpf.take_map("NOTICES").ok_or(KernelError::Missing("NOTICES"))?;
    RingBuf::try_from(map).map_err(|source| KernelError::Map {
        name: "NOTICES",
        source,
    })
}
