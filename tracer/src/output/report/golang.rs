//! The sections on a Go runtime.

use std::io::{self, Write};

use super::{Report, places::all_kinds};
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
        let (live, objects) = heap.live();
        let change = heap.sites.iter().map(|site| site.recent_change).sum();
        let mut total = format!(
            "live {} in {}",
            self.style.bold(text::bytes(live)),
            text::objects(objects)
        );
        if let Some(recent) = self.recent(Subject::GoHeap) {
            let change = self.change(Subject::GoHeap, change, live, 0);
            total.push_str(&format!(" ({change} in the last {recent})"));
        }
        let allocated = text::bytes(heap.allocated());
        let began = match heap.is_enabled_by_us {
            true => "memtrace enabled the profile",
            false => "the program began",
        };
        total.push_str(&format!(
            ", allocated {allocated} since {began}; {}, estimated from one sample in {}",
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
        let mut total = self.number_of(books.amount, "goroutine");
        if let Some(recent) = self.recent(Subject::Goroutines) {
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

    /// How many of something there are, in the line of totals.
    fn number_of(&self, count: u64, one: &str) -> String {
        let plural = if count == 1 { "" } else { "s" };
        format!("{} {one}{plural}", self.style.bold(text::count(count)))
    }

    /// The threads by what holds them.
    pub(super) fn threads(&mut self, groups: &[ThreadGroup], top: usize) -> io::Result<()> {
        self.section("Threads")?;
        let entries = groups.iter().map(Entry::of_threads);
        let places = Places::of(entries, self.symbols, &CLibrary::default());
        let books = places.beyond(0);
        let mut total = self.number_of(books.amount, "thread");
        if let Some(recent) = self.recent(Subject::Threads) {
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

/// The goroutines that are the program's own.
pub(super) fn shown<'g>(
    groups: impl Iterator<Item = &'g GoroutineGroup>,
) -> impl Iterator<Item = &'g GoroutineGroup> {
    groups.filter(|group| !group.is_system)
}
