//! Who opened what is open: what the programs booked, held against what `/proc` shows.
//!
//! Neither is always right alone. The books miss what calls that are not traced opened and closed, and do not always know
//! what a descriptor is; `/proc` does not know who opened it. And while both are read one after the other, the process
//! goes on to open and close. So the books are read before and after `/proc`, and a difference counts only if the process
//! cannot have made it meanwhile:
//!
//! | books before | `/proc` | books after | verdict |
//! | --- | --- | --- | --- |
//! | a record | open | the same | open; `/proc` says what it is |
//! | a record | none | the same | its closing was missed |
//! | none, or another | open or none | a record | opened meanwhile; what it is the books say |
//! | a record | open or none | none | closed meanwhile |
//! | none | open | none | opened by a call that is not traced |
//!
//! One that is opened and closed within the reading, or caught between the kernel's table and the books, can still look as
//! in the last line or the second. [`Reading::doubts`] has these: what a second reading confirms is no such moment.

mod holders;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use holders::Holders;
use memtrace_ebpf::{
    handles::{FdKind, opener},
    layout::EndReason,
};

use crate::{
    snapshot::{ConnectionLoops, FdDetail, Holdings},
    target::{Descriptor, SocketDetails},
};

/// One open descriptor as the programs booked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub number: i32,
    /// The stack that opened it, an index into the stacks, or one of [`opener`]'s.
    pub stack: u32,
    /// What it is, as far as the call that opened it tells.
    pub kind: FdKind,
    /// When it was opened (`CLOCK_MONOTONIC`, nanoseconds); 0 if that is not known.
    pub opened: u64,
    /// As [`memtrace_ebpf::handles::Fd::dialer`].
    pub dialer: u64,
}

impl Record {
    /// Whether both are of the same opening; its kind may have become known since.
    fn is_same(&self, other: &Self) -> bool {
        (self.stack, self.opened) == (other.stack, other.opened)
    }
}

/// A stack that opened descriptors.
#[derive(Clone, Debug)]
pub struct FdStack {
    /// Its index into the stacks.
    pub id: u32,
    /// The kind that its calls told.
    pub kind: FdKind,
    /// The frames, innermost first, as packed by [`memtrace_ebpf::unwind::frame`].
    pub frames: Vec<u64>,
    /// Why the walk stopped.
    pub end: EndReason,
    /// How many descriptors it opened since tracing began.
    pub opened: u64,
    /// Whether it is one of this address space, and not of an ancestor from which descriptors were inherited.
    pub own: bool,
}

/// One reading of a descriptor table.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The books before `listing` was read; each number once, in no order.
    pub before: &'a [Record],
    /// What `/proc` shows; `None` if the process has ended: then `after` is the truth.
    pub listing: Option<&'a [Descriptor]>,
    /// The books after `listing` was read.
    pub after: &'a [Record],
}

/// Everything else that bears on who opened what.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The stacks that records may name, read after the records.
    pub stacks: &'a [FdStack],
    /// What [`Process::descriptors`] said when tracing began.
    ///
    /// [`Process::descriptors`]: crate::target::Process::descriptors
    pub attached: &'a [Descriptor],
    /// How many descriptors of each stack were open at the reading to which
    /// [`Holder::recent_change`](crate::snapshot::Holder::recent_change) refers, if there is one. A stack that is missing
    /// had none open; for one of [`opener`]'s that is missing, no change is told.
    pub earlier: Option<&'a HashMap<u32, u64>>,
    /// The goroutines that wait for connections of Go's `net/http`, by [`Record::dialer`]; `None` if they are not known.
    pub loops: Option<&'a HashMap<u64, ConnectionLoops>>,
    /// `CLOCK_MONOTONIC` (nanoseconds).
    pub now: u64,
    /// The doubts of a reading some milliseconds before this one. With them, only doubts of both readings count; without,
    /// every doubt does.
    pub confirmed: Option<&'a Doubts>,
}

/// What a reading cannot explain: numbers that look as if a call had been missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// With what `/proc` shows for it; `None` if that is nothing.
    numbers: HashSet<(i32, Option<String>)>,
}

impl Doubts {
    /// Whether everything is explained, and a second reading is not needed.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    fn contains(&self, number: i32, descriptor: Option<&Descriptor>) -> bool {
        let target = descriptor.map(|descriptor| descriptor.target.clone());
        self.numbers.contains(&(number, target))
    }
}

/// What becomes of a number.
#[derive(Clone, Copy, Debug)]
enum Verdict<'a> {
    /// It is open; `steady` if both readings of the books have the same record.
    Open {
        record: &'a Record,
        descriptor: Option<&'a Descriptor>,
        steady: bool,
    },
    /// It is open, and not in the books.
    Untraced(&'a Descriptor),
    /// It is in the books, and not open.
    Missed(&'a Record),
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, Default)]
struct Row<'a> {
    before: Option<&'a Record>,
    descriptor: Option<&'a Descriptor>,
    after: Option<&'a Record>,
}

impl<'a> Row<'a> {
    /// The table in the description of this module; `None` if it is closed.
    fn verdict(self, is_listed: bool) -> Option<Verdict<'a>> {
        let Some(record) = self.after else {
            let unknown = self.descriptor.filter(|_| self.before.is_none());
            return unknown.map(Verdict::Untraced);
        };
        let steady = self.before.is_some_and(|before| before.is_same(record));
        Some(if is_listed && steady && self.descriptor.is_none() {
            Verdict::Missed(record)
        } else {
            Verdict::Open {
                record,
                descriptor: self.descriptor,
                steady,
            }
        })
    }
}

impl<'a> Reading<'a> {
    /// What this reading cannot explain. If there is anything, the whole reading should be repeated after some
    /// milliseconds, with these as [`Context::confirmed`].
    pub fn doubts(&self) -> Doubts {
        let doubt = |(number, verdict): (i32, Verdict)| match verdict {
            Verdict::Open { .. } => None,
            Verdict::Untraced(descriptor) => Some((number, Some(descriptor.target.clone()))),
            Verdict::Missed(_) => Some((number, None)),
        };
        Doubts {
            numbers: self.verdicts().filter_map(doubt).collect(),
        }
    }

    /// In the order of the numbers.
    fn verdicts(&self) -> impl Iterator<Item = (i32, Verdict<'a>)> {
        let mut rows: BTreeMap<i32, Row> = BTreeMap::new();
        for record in self.before {
            rows.entry(record.number).or_default().before = Some(record);
        }
        for descriptor in self.listing.unwrap_or_default() {
            rows.entry(descriptor.number).or_default().descriptor = Some(descriptor);
        }
        for record in self.after {
            rows.entry(record.number).or_default().after = Some(record);
        }
        let is_listed = self.listing.is_some();
        let verdict = move |(number, row): (i32, Row<'a>)| Some((number, row.verdict(is_listed)?));
        rows.into_iter().filter_map(verdict)
    }
}

/// A descriptor that is open, and who opened it.
struct Open<'a> {
    number: i32,
    /// As [`Record::stack`].
    stack: u32,
    kind: FdKind,
    descriptor: Option<&'a Descriptor>,
    age: Option<Duration>,
    /// As [`Record::dialer`].
    dialer: u64,
}

/// Says who opened what is open.
///
/// A holder's `made` is what its stack opened in this address space since tracing began. Of those without a stack it is
/// what is known of: what an untraced call or an io_uring opened and is still open; 0 for what was there before, or is from
/// the program before.
///
/// With `sockets`, of [`Process::socket_details`], also lists each descriptor. What is not in the reading's listing, of a
/// process that has ended or because it was opened while that was read, has an empty
/// [`target`](FdDetail::target).
///
/// [`Process::socket_details`]: crate::target::Process::socket_details
pub fn reconcile(
    reading: &Reading,
    context: &Context,
    sockets: Option<&HashMap<u64, SocketDetails>>,
) -> (Holdings, Option<Vec<FdDetail>>) {
    let attached = context.attached.iter();
    let attached: HashMap<i32, &Descriptor> = attached.map(|found| (found.number, found)).collect();
    let mut holders = Holders::new(context.stacks);
    let mut details = Vec::new();
    let mut loops = context.loops.cloned().unwrap_or_default();
    let mut missed = 0;
    for (number, verdict) in reading.verdicts() {
        let open = match verdict {
            Verdict::Open {
                record,
                descriptor,
                steady,
            } => opened(record, descriptor, steady, &attached, context.now),
            Verdict::Untraced(descriptor) if context.confirms(number, Some(descriptor)) => Open {
                number,
                stack: opener::UNTRACED,
                kind: descriptor.kind,
                descriptor: Some(descriptor),
                age: None,
                dialer: 0,
            },
            Verdict::Missed(record) if context.confirms(number, None) => {
                missed += 1;
                holders.miss(record.stack);
                continue;
            }
            Verdict::Untraced(_) | Verdict::Missed(_) => continue,
        };
        let holder = holders.hold(open.stack, open.kind, open.age);
        // A goroutine that dials may try several addresses at once.
        if let Some(loops) = loops.remove(&open.dialer) {
            holders.add_loops(holder, loops);
        }
        if let Some(sockets) = sockets {
            details.push(detail(&open, holder, sockets));
        }
    }
    let losses = [
        (missed, "descriptors whose closing was missed"),
        (holders.without_stack(), "descriptors whose stack was lost"),
    ];
    let losses = losses.into_iter().filter(|&(count, _)| count > 0);
    let holdings = Holdings {
        losses: losses.map(|(count, what)| (count, what.to_owned())).collect(),
        holders: holders.finish(context.earlier),
        warning: None,
        notes: Vec::new(),
    };
    (holdings, sockets.map(|_| details))
}

impl Context<'_> {
    fn confirms(&self, number: i32, descriptor: Option<&Descriptor>) -> bool {
        self.confirmed
            .is_none_or(|doubts| doubts.contains(number, descriptor))
    }
}

/// One that is in the books.
fn opened<'a>(
    record: &Record,
    descriptor: Option<&'a Descriptor>,
    steady: bool,
    attached: &HashMap<i32, &'a Descriptor>,
    now: u64,
) -> Open<'a> {
    // Only then the descriptor in /proc is surely the one in the books.
    let shown = descriptor.filter(|_| steady);
    let was_there = |shown: &Descriptor| {
        // One that was not listed then was opened before the books were, all the same.
        attached
            .get(&record.number)
            .is_none_or(|then| then.is_same_file(shown))
    };
    let stack = match record.stack {
        opener::BEFORE if !shown.is_none_or(was_there) => opener::UNTRACED,
        stack => stack,
    };
    let age = match stack {
        opener::BEFORE | opener::UNTRACED => None,
        _ => (record.opened != 0).then(|| Duration::from_nanos(now.saturating_sub(record.opened))),
    };
    // Of a process that has ended, the attach is the last that is known of where it led.
    let then = (stack == opener::BEFORE).then(|| attached.get(&record.number).copied());
    Open {
        number: record.number,
        stack,
        kind: shown.map_or(record.kind, |shown| shown.kind),
        descriptor: descriptor.or(then.flatten()),
        age,
        dialer: record.dialer,
    }
}

fn detail(open: &Open, holder: usize, sockets: &HashMap<u64, SocketDetails>) -> FdDetail {
    let inode = open.descriptor.and_then(|descriptor| descriptor.inode);
    let socket = inode
        .and_then(|inode| sockets.get(&inode))
        .cloned()
        .unwrap_or_default();
    FdDetail {
        number: open.number,
        kind: open.kind.name(),
        target: open
            .descriptor
            .map(|descriptor| descriptor.target.clone())
            .unwrap_or_default(),
        local: socket.local,
        peer: socket.peer,
        state: socket.state.map(str::to_owned),
        age: open.age,
        holder,
    }
}
