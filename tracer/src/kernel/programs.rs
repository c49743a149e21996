//! Loading and attaching.

use std::{
    fs::File,
    mem::offset_of,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray, RingBuf},
    programs::{
        RawTracePoint, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
};
use memtrace_ebpf::{
    layout::{Block, BlockKey, CallKind, Control, Notice, Stack, entry, exit, tail},
    unwind::Page,
};

use super::{
    KernelError,
    array::MappedArray,
    books::Books,
    tables::{TableRoom, Tables},
};
use crate::probe::{InnerRole, Shape, Site};

/// The programs, as `build.rs` compiled them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memtrace-programs"));

/// The kernel's own bytes for each element of a hash map, beside key and value
/// (`kernel/bpf/hashtab.c`, `struct htab_elem`: 48, and 16 for the bucket).
const HASH_OVERHEAD: u64 = 64;

/// How large the kernel's tables are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Live blocks.
    pub blocks: u32,
    /// Threads that have called the allocator.
    pub threads: u32,
    /// Distinct stacks.
    pub stacks: u32,
    /// Frames of all distinct stacks.
    pub frames: u32,
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
        let threads = u64::from(self.threads) * (320 + HASH_OVERHEAD);
        let tables =
            u64::from(self.tables.rows) * 8 + u64::from(self.tables.pages) * size_of::<Page>() as u64;
        stacks + threads + tables + u64::from(self.frames) * 8
    }
}

/// The loaded programs. Dropping it detaches and unloads everything; so does the end of memtrace, however it comes.
pub struct Programs {
    ebpf: Ebpf,
    control: MappedArray<Control>,
    books: Books,
    tables: Tables,
    notices: RingBuf<MapData>,
    _tails: ProgramArray<MapData>,
}

impl Programs {
    /// Loads the programs for one process; nothing is attached or recorded yet.
    ///
    /// # Errors
    /// When the kernel refuses: see [`KernelError::is_privilege`].
    pub fn load(limits: &Limits, process: u32) -> Result<Self, KernelError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LIVE", limits.blocks)
            .map_max_entries("THREADS", limits.threads)
            .map_max_entries("STACK_IDS", limits.stacks)
            .map_max_entries("STACKS", limits.stacks)
            .map_max_entries("FRAMES", limits.frames)
            .map_max_entries("ROWS", limits.tables.rows)
            .map_max_entries("PAGES", limits.tables.pages)
            .map_max_entries("MAPPINGS", limits.tables.prefixes)
            .load(OBJECT)?;
        let tails = fill_tails(&mut ebpf)?;
        let control = MappedArray::<Control>::take(&mut ebpf, "CONTROL")?;
        // The first stack is the one for blocks whose stack has no room.
        control.set(
            0,
            Control {
                next_stack: 1,
                process,
                anchor: process,
                stacks: u64::from(limits.stacks),
                frames: u64::from(limits.frames),
                ..Control::default()
            },
        );
        Ok(Self {
            books: Books::take(&mut ebpf)?,
            tables: Tables::take(&mut ebpf, process)?,
            notices: take_notices(&mut ebpf)?,
            control,
            ebpf,
            _tails: tails,
        })
    }

    /// What was counted.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The unwind tables.
    pub fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// The loaded object, for the log of the programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches the programs that watch the life of the process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_process_events(&mut self) -> Result<(), KernelError> {
        for (name, event) in [
            ("process_executed", "sched_process_exec"),
            ("thread_ended", "sched_process_exit"),
        ] {
            let refused = |source| KernelError::Program {
                name,
                place: format!(" at the tracepoint {event}"),
                source,
            };
            let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
            let program: &mut RawTracePoint = program.try_into().map_err(refused)?;
            program.load().map_err(refused)?;
            program.attach(event).map_err(refused)?;
        }
        Ok(())
    }

    /// Attaches the programs of one allocation function, bound to the address space of the thread `anchor`; with
    /// `floor`, programs that do nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_site(
        &mut self,
        site: &Site,
        file: &File,
        anchor: NonZeroU32,
        floor: bool,
    ) -> Result<(), KernelError> {
        if !site.inner.is_empty() {
            return self.attach_inner(site, file, anchor, floor);
        }
        for exit in &site.exits {
            let name = if floor { "floor" } else { "leave_at_exit" };
            let cookie = exit::cookie(exit.slot, exit.register, exit.condition, exit.returns);
            self.attach(name, exit.point.file_offset, Some(cookie), file, anchor)?;
        }
        let (entry, cookie) = if floor {
            ("floor", None)
        } else {
            entry_program(site)
        };
        self.attach(entry, site.entry.file_offset, cookie, file, anchor)?;
        match &site.returns {
            Some(point) => {
                let leave = if floor { "floor_return" } else { "leave" };
                self.attach(leave, point.file_offset, None, file, anchor)
            }
            None => Ok(()),
        }
    }

    /// Results first: a size that nothing follows is harmless, a result without its size is lost.
    fn attach_inner(
        &mut self,
        site: &Site,
        file: &File,
        anchor: NonZeroU32,
        floor: bool,
    ) -> Result<(), KernelError> {
        for role in [InnerRole::Result, InnerRole::Size, InnerRole::Done] {
            for inner in site.inner.iter().filter(|inner| inner.role == role) {
                let name = if floor { "floor" } else { inner_program(role) };
                let cookie = Some(u64::from(inner.slot));
                self.attach(name, inner.point.file_offset, cookie, file, anchor)?;
            }
        }
        Ok(())
    }

    /// Attaches the program that notices when the dynamic linker changed the mappings.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_linker(
        &mut self,
        file_offset: u64,
        file: &File,
        anchor: NonZeroU32,
    ) -> Result<(), KernelError> {
        self.attach("linker_changed", file_offset, None, file, anchor)
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

    /// Tells the programs where return probes return to (virtual address).
    pub fn set_trampoline(&self, address: u64) {
        let control = self.control.pointer(0);
        // SAFETY: the pointer is to a word of the mapped control block, which programs only read.
        let trampoline = unsafe { AtomicU64::from_ptr(&raw mut (*control).trampoline) };
        trampoline.store(address, Ordering::SeqCst);
    }

    /// To be called before the mappings are read: what changes from then on will be told anew.
    pub fn mappings_wanted(&self) {
        self.control_word(offset_of!(Control, stale))
            .store(0, Ordering::SeqCst);
    }

    /// Makes the programs distrust earlier walks.
    pub fn mappings_changed(&self) {
        self.control_word(offset_of!(Control, generation))
            .fetch_add(1, Ordering::SeqCst);
    }

    /// Lets the programs ask again for the mappings to be read.
    pub fn accept_wishes(&self) {
        self.control_word(offset_of!(Control, refresh_asked))
            .store(0, Ordering::SeqCst);
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

    /// The descriptor that becomes readable when there are notices.
    pub fn notices_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }

    /// The notices that came since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        while let Some(item) = self.notices.next() {
            let Some(bytes) = item.first_chunk::<4>() else {
                continue;
            };
            match u32::from_ne_bytes(*bytes) {
                value if value == Notice::MappingsChanged as u32 => notices.push(Notice::MappingsChanged),
                value if value == Notice::Executed as u32 => notices.push(Notice::Executed),
                value if value == Notice::AnchorEnded as u32 => notices.push(Notice::AnchorEnded),
                _ => {}
            }
        }
        notices
    }

    fn attach(
        &mut self,
        name: &'static str,
        file_offset: u64,
        cookie: Option<u64>,
        file: &File,
        anchor: NonZeroU32,
    ) -> Result<(), KernelError> {
        let refused = |source| KernelError::Program {
            name,
            place: format!(" at file offset {file_offset:#x}"),
            source,
        };
        let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        let program: &mut UProbe = program.try_into().map_err(refused)?;
        if program.fd().is_err() {
            program.load().map_err(refused)?;
        }
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(file_offset),
            cookie,
        };
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        program
            .attach(point, path, UProbeScope::OneProcess(anchor))
            .map_err(refused)?;
        Ok(())
    }
}

/// The program for a function's entry, and its cookie.
fn entry_program(site: &Site) -> (&'static str, Option<u64>) {
    if site.is_probed_at_exits() {
        return ("enter_described", Some(entry_cookie(site)));
    }
    let name = match (site.shape, site.moved) {
        (Shape::Free, _) => "enter_free",
        (Shape::Delete, _) => "enter_delete",
        (Shape::Malloc, None) => "enter_malloc",
        (Shape::Calloc, None) => "enter_calloc",
        (Shape::Realloc, None) => "enter_realloc",
        (Shape::ReallocArray, None) => "enter_reallocarray",
        (Shape::PosixMemalign, None) => "enter_posix_memalign",
        (Shape::Memalign, None) => "enter_memalign",
        _ => return ("enter_described", Some(entry_cookie(site))),
    };
    (name, None)
}

/// Where the arguments are, for the program that reads that from its cookie.
fn entry_cookie(site: &Site) -> u64 {
    let kind = match site.shape {
        Shape::Realloc | Shape::ReallocArray | Shape::HeapRealloc | Shape::HeapReallocArray => {
            CallKind::Realloc
        }
        Shape::Reallocf | Shape::HeapReallocf => CallKind::Reallocf,
        Shape::Xallocx => CallKind::InPlace,
        Shape::PosixMemalign => CallKind::Memalign,
        Shape::Malloc | Shape::Calloc | Shape::Memalign | Shape::HeapCalloc | Shape::Free | Shape::Delete => {
            CallKind::Block
        }
    };
    let places = site.places();
    let [size, count, pointer] =
        [places.size, places.count, places.pointer].map(|register| register.unwrap_or(entry::NONE));
    let exits = if site.is_probed_at_exits() {
        entry::EXITS
    } else {
        0
    };
    entry::cookie(kind, exits, size, count, pointer)
}

fn inner_program(role: InnerRole) -> &'static str {
    match role {
        InnerRole::Done => "inner_done",
        InnerRole::Size => "inner_size",
        InnerRole::Result => "inner_result",
    }
}

fn fill_tails(ebpf: &mut Ebpf) -> Result<ProgramArray<MapData>, KernelError> {
    let name = "walk";
    let refused = |source| KernelError::Program {
        name,
        place: String::new(),
        source,
    };
    let program: &mut UProbe = ebpf
        .program_mut(name)
        .ok_or(KernelError::Missing(name))?
        .try_into()
        .map_err(refused)?;
    program.load().map_err(refused)?;
    let fd = program
        .fd()
        .map_err(refused)?
        .try_clone()
        .map_err(|source| KernelError::Memory { name, source })?;
    let unusable = |source| KernelError::Map {
        name: "TAILS",
        source,
    };
    let map = ebpf.take_map("TAILS").ok_or(KernelError::Missing("TAILS"))?;
    let mut tails = ProgramArray::try_from(map).map_err(unusable)?;
    tails.set(tail::WALK, &fd, 0).map_err(unusable)?;
    Ok(tails)
}

fn take_notices(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, KernelError> {
    let map = ebpf.take_map("NOTICES").ok_or(KernelError::Missing("NOTICES"))?;
    RingBuf::try_from(map).map_err(|source| KernelError::Map {
        name: "NOTICES",
        source,
    })
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

    use super::OBJECT;

    /// `BPF_JMP | BPF_CALL` (`include/uapi/linux/bpf_common.h`).
    const CALL: u8 = 0x85;
    /// `BPF_FUNC_tail_call` (`include/uapi/linux/bpf.h`).
    const TAIL_CALL: u32 = 12;
    /// The register that points to a program's stack.
    const FRAME_POINTER: u8 = 10;

    /// Opcode, registers, immediate.
    type Instruction = (u8, u8, u32);

    /// Every program in the sections for uprobes, by name.
    fn uprobe_programs() -> Vec<(String, Vec<Instruction>)> {
        let object = object::File::parse(OBJECT).expect("the object was just built");
        let functions = object
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
        let in_uprobe_section = functions.filter_map(|symbol| {
            let section = object.section_by_index(symbol.section_index()?).ok()?;
            let name = section.name().ok()?;
            if !name.starts_with("uprobe") && !name.starts_with("uretprobe") {
                return None;
            }
            let begin = symbol.address() as usize;
            let code = &section.data().ok()?[begin..begin + symbol.size() as usize];
            let instructions = code
                .chunks_exact(8)
                .map(|i| (i[0], i[1], u32::from_le_bytes([i[4], i[5], i[6], i[7]])));
            Some((symbol.name().ok()?.to_owned(), instructions.collect()))
        });
        in_uprobe_section.collect()
    }

    /// Without it the kernel may give the program a private stack per CPU, which a preempted program corrupts.
    #[test]
    fn every_uprobe_program_has_a_tail_call_or_no_stack() {
        let programs = uprobe_programs();
        assert!(programs.len() >= 10, "found only {}", programs.len());
        for (name, instructions) in programs {
            let tail_call = instructions.contains(&(CALL, 0, TAIL_CALL));
            let stack = instructions
                .iter()
                .any(|&(_, registers, _)| registers & 15 == FRAME_POINTER || registers >> 4 == FRAME_POINTER);
            assert!(
                tail_call || !stack,
                "{name} uses its stack and contains no tail call"
            );
        }
    }
}
