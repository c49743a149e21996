//! Descriptors: what was open at the attach, and who holds what at a snapshot.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use memtrace_ebpf::{
    handles::{Class, FdKind, classes},
    layout::Counter,
};

use super::{
    Tracer,
    descriptors::{Context, Doubts, FdStack, Reading, Record, reconcile},
    space::Space,
};
use crate::{
    kernel::{Counters, KernelError, OpenByStack, RawStack},
    snapshot::{FdDetail, GoState, Holder, Holdings, Maker},
    target::{Descriptor, Process},
    text,
};

/// A reading that cannot be explained is repeated after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The books before and after what `/proc` shows, see [`Reading`].
struct Readings {
    before: Vec<Record>,
    listing: Option<Vec<Descriptor>>,
    after: Vec<Record>,
}

impl Readings {
    fn view(&self) -> Reading<'_> {
        Reading {
            before: &self.before,
            listing: self.listing.as_deref(),
            after: &self.after,
        }
    }
}

impl Tracer {
    /// Notes what a process had open when tracing began. Recording has begun: what is opened or closed meanwhile is known.
    pub(super) fn note_open_descriptors(&mut self, space: &mut Space) {
        let Some(process) = space.process.clone() else {
            return;
        };
        match process.descriptors() {
            Ok(listing) => {
                let numbers: Vec<(i32, FdKind)> =
                    listing.iter().map(|found| (found.number, found.kind)).collect();
                if let Err(error) = self.programs.descriptors().seed(space.table, &numbers) {
                    log::warn!("descriptors from before the attach are not told from others: {error}");
                }
                space.attached = listing;
            }
            Err(error) => log::debug!("{error}"),
        }
    }

    /// How many descriptors each stack has open, by table. Each is asked for alone: while the kernel reads a whole table,
    /// programs at system calls are skipped (`kernel/trace/bpf_trace.c`, `bpf_prog_active`).
    pub(super) fn open_by_stack(&self) -> OpenByStack {
        let mut open = OpenByStack::new();
        if !self.settings.trace(classes::FD) {
            return open;
        }
        for space in self.spaces.values() {
            let table = self.fd_table_of(space);
            let counts = open.entry(table).or_default();
            // Processes that share it have counted it.
            if counts.is_empty() {
                for found in self.programs.descriptors_ref().of(table).unwrap_or_default() {
                    *counts.entry(found.fd.stack).or_default() += 1;
                }
            }
        }
        open
    }

    /// Who holds which descriptors; with what the Go runtime says, if there is one.
    pub(super) fn fd_holdings(
        &self,
        space: &Space,
        go: Option<&GoState>,
    ) -> (Option<Holdings>, Option<Vec<FdDetail>>) {
        if !self.settings.trace(classes::FD) {
            return (None, None);
        }
        match self.read_holdings(space, go) {
            Ok((holdings, details)) => (Some(holdings), details),
            Err(error) => {
                let note = format!("descriptors, since the books cannot be read: {error}");
                let holdings = Holdings {
                    losses: vec![(1, note)],
                    ..Holdings::default()
                };
                (Some(holdings), None)
            }
        }
    }

    fn read_holdings(
        &self,
        space: &Space,
        go: Option<&GoState>,
    ) -> Result<(Holdings, Option<Vec<FdDetail>>), KernelError> {
        let mut readings = self.read_descriptors(space)?;
        let mut doubts: Option<Doubts> = None;
        let first = readings.view().doubts();
        if !first.is_empty() && readings.listing.is_some() {
            std::thread::sleep(LOOK_AGAIN);
            readings = self.read_descriptors(space)?;
            doubts = Some(first);
        }
        let stacks = self.fd_stacks(space, &readings.after);
        let sockets = match (&space.process, &readings.listing) {
            _ if !self.settings.fd_details => None,
            (Some(process), Some(listing)) => Some(process.socket_details(listing)),
            _ => Some(HashMap::new()),
        };
        let table = self.fd_table_of(space);
        let context = Context {
            stacks: &stacks,
            attached: &space.attached,
            earlier: self
                .earlier(space)
                .and_then(|reading| reading.open_fds.get(&table)),
            loops: go.map(|go| &go.loops),
            now: now(),
            confirmed: doubts.as_ref(),
        };
        let (mut holdings, details) = reconcile(&readings.view(), &context, sockets.as_ref());
        let counters = self.programs.books().counters(space.id);
        holdings.losses.extend(losses(&counters));
        add_opened_by_io_uring(&mut holdings, &counters);
        if self.settings.fd_details && readings.listing.is_none() {
            let note = "The process had ended when its descriptors were looked up: of those that it opened while it was traced, where they led \
                        is not known.";
            holdings.notes.push(note.into());
        }
        if !self.sees_io_uring {
            let note = "This kernel does not tell what an io_uring opens and closes.";
            holdings.notes.push(note.into());
        }
        holdings.notes.extend(self.dial_notes(space));
        let private = counters.get(Counter::PrivateTables);
        if private > 0 {
            holdings.notes.push(format!(
                "{}, which is not shown.",
                text::counted(
                    private,
                    "thread got a descriptor table of its own",
                    "threads got a descriptor table of their own"
                )
            ));
        }
        if table != space.table {
            holdings.notes.push(
                "The first thread left the descriptor table that it shared (unshare, close_range): its own is shown, the one \
                 that the other threads go on with is not."
                    .to_owned(),
            );
        }
        Ok((holdings, details))
    }

    /// Why it is not told for whom Go's `net/http` connects, of each file of which it should be.
    fn dial_notes(&self, space: &Space) -> BTreeSet<String> {
        let known = space.reader.live().filter_map(|mapping| self.files.get(mapping));
        let notes = known.filter_map(|file| file.dial_note.as_ref());
        notes.map(|note| format!("Not covered: {note}.")).collect()
    }

    /// The descriptor table of a process's first thread.
    fn fd_table_of(&self, space: &Space) -> u32 {
        let private = self.programs.descriptors_ref().private_table(space.info.pid);
        private.unwrap_or(space.table)
    }

    fn read_descriptors(&self, space: &Space) -> Result<Readings, KernelError> {
        let books = self.programs.descriptors_ref();
        let table = self.fd_table_of(space);
        let records = || -> Result<Vec<Record>, KernelError> {
            let open = books.of(table)?;
            let record = |open: &crate::kernel::OpenFd| Record {
                number: open.number,
                stack: open.fd.stack,
                kind: FdKind::from_u8(open.fd.kind as u8),
                opened: open.fd.opened,
                dialer: open.fd.dialer,
            };
            Ok(open.iter().map(record).collect())
        };
        let before = records()?;
        let listing = space.process.as_deref().and_then(listing);
        // Of a process that has ended the books are the last word.
        let after = if listing.is_some() {
            records()?
        } else {
            before.clone()
        };
        Ok(Readings {
            before,
            listing,
            after,
        })
    }

    /// The stacks of the address space that opened something, and those of its ancestors that opened what it still holds.
    fn fd_stacks(&self, space: &Space, records: &[Record]) -> Vec<FdStack> {
        let books = self.programs.books();
        let own = books.used_stacks(self.programs.stack_count(), space.id, Class::Fd);
        let mut stacks: Vec<FdStack> = own.into_iter().map(|stack| fd_stack(stack, true)).collect();
        let known: std::collections::HashSet<u32> = stacks.iter().map(|stack| stack.id).collect();
        let mut others: Vec<u32> = records.iter().map(|record| record.stack).collect();
        others.sort_unstable();
        others.dedup();
        let others = others.into_iter().filter(|id| !known.contains(id));
        stacks.extend(others.filter_map(|id| Some(fd_stack(books.stack_with_frames(id)?, false))));
        stacks
    }
}

fn listing(process: &Process) -> Option<Vec<Descriptor>> {
    if process.has_ended() {
        return None;
    }
    let listing = process.descriptors();
    listing.inspect_err(|error| log::debug!("{error}")).ok()
}

fn fd_stack(stack: RawStack, own: bool) -> FdStack {
    FdStack {
        id: stack.id,
        kind: FdKind::from_u8(stack.books.kind),
        opened: stack.books.alloc_objects,
        frames: stack.frames,
        end: stack.end,
        own,
    }
}

/// Those without a stack have no books but these counters.
fn add_opened_by_io_uring(holdings: &mut Holdings, counters: &Counters) {
    for kind in FdKind::ALL {
        let made = counters.opened_by_io_uring(kind);
        let is_it = |holder: &&mut Holder| holder.maker == Maker::IoUring && holder.kind == kind.name();
        match holdings.holders.iter_mut().find(is_it) {
            Some(holder) => holder.made = made,
            None if made > 0 => holdings.holders.push(Holder {
                kind: kind.name(),
                maker: Maker::IoUring,
                made,
                ..Holder::default()
            }),
            None => {}
        }
    }
}

fn losses(counters: &Counters) -> Vec<(u64, String)> {
    let all = [
        (
            Counter::FdsFull,
            "descriptors not recorded: the table of descriptors was full",
        ),
        (
            Counter::FdsUnreadable,
            "descriptors not recorded: their numbers could not be read",
        ),
        (
            Counter::FdsWithoutStack,
            "descriptors recorded without their stack",
        ),
        (
            Counter::FdRangesTooLarge,
            "calls that closed, copied or received more descriptors at once than are followed",
        ),
        (
            Counter::ThreadsFull,
            "calls not recorded: the thread table was full",
        ),
    ];
    let all = all.map(|(counter, what)| (counters.get(counter), what.to_owned()));
    all.into_iter().filter(|&(count, _)| count > 0).collect()
}

/// The clock by which the programs note openings (`CLOCK_MONOTONIC`, nanoseconds).
pub(super) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
