//! The sections on a Go runtime, and the lines that name what grows in it.

use std::io::{self, Write};

use super::{
    Report,
    places::{all_kinds, amount},
};
use crate::{
    output::{
        c_library::CLibrary,
        places::{Entry, Places},
        style::wrap,
    },
    profile::{comments, subject::Subject},
    snapshot::{GoHeapState, GoState, GoroutineGroup, ThreadGroup},
    text::{self, printable},
};

impl<W: Write> Report<'_, W> {
    /// A line for each section of which something grows, with the place that grows most.
    pub(super) fn growing(&mut self, go: &GoState) -> io::Result<()> {
        let Some(recent) = self.recent() else {
            return Ok(());
        };
        let fds = self.snapshot.fds.iter().flat_map(|fds| &fds.holders);
        let fds = fds.map(|holder| Entry::of_holder(holder, Subject::Descriptors));
        let sites = go.heap.iter().flat_map(|heap| &heap.sites);
        let sections = [
            (
                Subject::GoHeap,
                "heap",
                self.grower(sites.map(Entry::of_site), Subject::GoHeap),
            ),
            (
                Subject::Goroutines,
                "goroutines",
                self.grower(
                    shown(go.goroutines.iter().flatten()).map(Entry::of_goroutines),
                    Subject::Goroutines,
                ),
            ),
            (
                Subject::Threads,
                "threads",
                self.grower(
                    go.threads.iter().flatten().map(Entry::of_threads),
                    Subject::Threads,
                ),
            ),
            (
                Subject::Descriptors,
                "descriptors",
                self.grower(fds, Subject::Descriptors),
            ),
        ];
        let mut any = false;
        for (subject, what, grower) in sections {
            let Some(Grower {
                function,
                change,
                held,
            }) = grower
            else {
                continue;
            };
            any = true;
            let held = amount(subject, held);
            let line =
                format!("Growing: {what} {change} in the last {recent} at {function}, which holds {held}");
            writeln!(
                self.out,
                "{}",
                self.style.warn(wrap(&printable(&line), self.style.width, "  "))
            )?;
        }
        if any { writeln!(self.out) } else { Ok(()) }
    }

    /// Who of these grew most, if that is more than noise.
    fn grower<'e>(&self, entries: impl Iterator<Item = Entry<'e>>, subject: Subject) -> Option<Grower> {
        let places = Places::of(entries, self.symbols, &self.c_library);
        let all = places.beyond(0).amount;
        let places = places.top(usize::MAX);
        let most = places.iter().max_by_key(|place| place.books.recent_change)?;
        let change = most.books.recent_change;
        if change <= 0 || change.unsigned_abs() <= all / 100 {
            return None;
        }
        let function = most.stack().first_own().map(|line| line.function.to_string());
        Some(Grower {
            function: function.or_else(|| most.inner.first().cloned())?,
            change: match subject {
                Subject::GoHeap => text::change(change),
                _ => text::count_change(change),
            },
            held: most.books.amount,
        })
    }

    /// The heap as the runtime samples it.
    pub(super) fn go_heap(&mut self, go: &GoState, top: usize) -> io::Result<()> {
        self.has_section |= go.heap.is_some() || !go.notes.is_empty();
        let Some(heap) = &go.heap else {
            return self.notes(go);
        };
        if heap.rate == 0 || heap.is_enabled_by_us {
            let rate = format!("{}.", comments::rate(heap));
            writeln!(self.out, "{}", self.style.warn(wrap(&rate, self.style.width, "")))?;
        }
        if heap.rate > 0 {
            self.go_totals(heap)?;
            let live = heap.sites.iter().filter(|site| site.live_objects > 0);
            let places = Places::of(live.map(Entry::of_site), self.symbols, &CLibrary::default());
            self.places(Subject::GoHeap, &places, top)?;
        }
        self.notes(go)
    }

    fn go_totals(&mut self, heap: &GoHeapState) -> io::Result<()> {
        let sum = |value: fn(&crate::snapshot::Site) -> u64| heap.sites.iter().map(value).sum::<u64>();
        let (live, objects) = (sum(|site| site.live_bytes), sum(|site| site.live_objects));
        let change = heap.sites.iter().map(|site| site.recent_change).sum();
        let mut total = format!(
            "live {} in {}",
            self.style.bold(text::bytes(live)),
            text::objects(objects)
        );
        if let Some(recent) = self.recent() {
            let change = self.change(Subject::GoHeap, change, live, 0);
            total.push_str(&format!(" ({change} in the last {recent})"));
        }
        let allocated = text::bytes(sum(|site| site.alloc_bytes));
        total.push_str(&format!(
            ", allocated {allocated} since the program began; {}, estimated from one sample in {}",
            comments::view(heap),
            text::bytes(heap.rate)
        ));
        self.total(&total)
    }

    fn notes(&mut self, go: &GoState) -> io::Result<()> {
        for note in &go.notes {
            writeln!(
                self.out,
                "{}",
                self.style.warn(wrap(&printable(note), self.style.width, ""))
            )?;
        }
        Ok(())
    }

    /// The goroutines by what they do.
    pub(super) fn goroutines(&mut self, groups: &[GoroutineGroup], top: usize) -> io::Result<()> {
        self.section("Goroutines")?;
        let entries = shown(groups.iter()).map(Entry::of_goroutines);
        let places = Places::of(entries, self.symbols, &CLibrary::default());
        let books = places.beyond(0);
        let mut total = format!("{} goroutines", self.style.bold(text::count(books.amount)));
        if let Some(recent) = self.recent() {
            let change = self.change(Subject::Goroutines, books.recent_change, books.amount, 0);
            let persistent = shown(groups.iter()).map(|group| group.persistent).sum();
            total.push_str(&format!(
                " ({change} in the last {recent}; {} were there before)",
                text::count(persistent)
            ));
        }
        total.push_str(&format!("; {}", all_kinds(Subject::Goroutines, &books.by_kind())));
        self.total(&total)?;
        self.places(Subject::Goroutines, &places, top)
    }

    /// The threads by what holds them.
    pub(super) fn threads(&mut self, groups: &[ThreadGroup], top: usize) -> io::Result<()> {
        self.section("Threads")?;
        let entries = groups.iter().map(Entry::of_threads);
        let places = Places::of(entries, self.symbols, &CLibrary::default());
        let books = places.beyond(0);
        let mut total = format!("{} threads", self.style.bold(text::count(books.amount)));
        if let Some(recent) = self.recent() {
            let change = self.change(Subject::Threads, books.recent_change, books.amount, 0);
            total.push_str(&format!(" ({change} in the last {recent})"));
        }
        total.push_str(&format!("; {}", all_kinds(Subject::Threads, &books.by_kind())));
        self.total(&total)?;
        let held = groups.iter().filter(|group| group.hold != "idle");
        let held = Places::of(held.map(Entry::of_threads), self.symbols, &CLibrary::default());
        self.places(Subject::Threads, &held, top)
    }
}

/// A place that grows.
struct Grower {
    function: String,
    change: String,
    held: u64,
}

/// The goroutines that are the program's own.
fn shown<'g>(groups: impl Iterator<Item = &'g GoroutineGroup>) -> impl Iterator<Item = &'g GoroutineGroup> {
    groups.filter(|group| !group.is_system)
}
