//! The places in the code that hold most, as every section shows them.

use std::{
    io::{self, Write},
    num::NonZeroU64,
};

use super::Report;
use crate::{
    output::{
        frames::{Excerpt, Part, Stack, excerpts},
        places::{Books, Place, Places},
        style::{columns, hang, location, shorten, wrap_list},
    },
    profile::subject::Subject,
    snapshot::{ConnectionLoops, Selection},
    symbol::Line,
    text,
};

const INDENT: &str = "     ";
const CALLER: &str = "       ";

impl<W: Write> Report<'_, W> {
    /// The first `top` places, and what the others hold together.
    pub(super) fn places(&mut self, subject: Subject, places: &Places<'_>, top: usize) -> io::Result<()> {
        let shown = places.top(top);
        if shown.is_empty() {
            return Ok(());
        }
        writeln!(self.out)?;
        self.places_heading(subject, shown.len(), places.len())?;
        let all = places.beyond(0).amount;
        let stacks: Vec<Stack<'_, '_>> = shown.iter().map(Place::stack).collect();
        for (rank, (place, excerpt)) in (1..).zip(shown.iter().zip(excerpts(&stacks))) {
            writeln!(self.out)?;
            self.place_numbers(subject, rank, place, all)?;
            self.place_frames(place, &excerpt)?;
        }
        match places.len() - shown.len() {
            0 => Ok(()),
            others => self.others(subject, others, &places.beyond(shown.len()), all),
        }
    }

    fn places_heading(&mut self, subject: Subject, shown: usize, all: usize) -> io::Result<()> {
        let (holds, hold) = match subject {
            Subject::Heap | Subject::GoHeap => ("holds live memory", "hold live memory"),
            Subject::Descriptors => ("holds open descriptors", "hold open descriptors"),
            Subject::Mappings => ("holds mappings", "hold mappings"),
            Subject::NewMemory => ("took new memory", "took new memory"),
            Subject::Goroutines => ("keeps goroutines", "keep goroutines"),
            Subject::Threads => ("holds threads", "hold threads"),
        };
        let mut heading = match all {
            1 => format!("The only place in the code that {holds}"),
            all if all == shown => format!("The {all} places in the code that {hold}"),
            all => {
                let all = text::count(all as u64);
                format!("The top {shown} of {all} places in the code that {hold}")
            }
        };
        if let Some(recent) = self.recent(subject).filter(|_| has_change(subject)) {
            let whose = if all == 1 { "its" } else { "their" };
            heading.push_str(&format!(", and {whose} change in the last {recent}"));
        }
        heading.push(':');
        self.paragraph(&heading)
    }

    fn place_numbers(
        &mut self,
        subject: Subject,
        rank: usize,
        place: &Place<'_>,
        all: u64,
    ) -> io::Result<()> {
        let books = &place.books;
        let mut detail = self.contents(subject, books);
        if let Some(age) = books.mean_age() {
            detail.push_str(&format!(", mean age {}", text::duration(age)));
        }
        if place.inherited {
            detail.push_str(", inherited");
        }
        detail.push_str(&waiting(books.loops));
        let amount = format!("{:>10}", amount(subject, books.amount));
        let amount = self.style.bold(amount);
        self.numbers(subject, &format!("{rank:>3}. {amount}"), books, all, &detail)
    }

    /// Writes a line that begins with an amount; words that do not fit go below the others.
    fn numbers(
        &mut self,
        subject: Subject,
        amount: &str,
        books: &Books,
        all: u64,
        detail: &str,
    ) -> io::Result<()> {
        let share = text::share(books.amount, all);
        let change = match self.recent(subject).filter(|_| has_change(subject)) {
            Some(_) => format!(
                "  {}",
                self.change(subject, books.recent_change, books.amount, 10)
            ),
            None => String::new(),
        };
        let before = if change.is_empty() { 25 } else { 37 };
        let detail = match subject {
            // Its line is as long as it is, whatever the width.
            Subject::Heap | Subject::GoHeap => detail.to_owned(),
            _ => hang(&wrap_list(detail, self.style.width - before, ""), before),
        };
        writeln!(self.out, "{amount}  {share:>5}{change}   {detail}")
    }

    /// What an amount consists of.
    fn contents(&self, subject: Subject, books: &Books) -> String {
        let samples = self.samples(self.selection(subject), books.samples, books.amount);
        match subject {
            Subject::Heap => format!("{}{samples}", text::objects(books.objects)),
            Subject::GoHeap => {
                let samples = text::counted(books.samples, "sample", "samples");
                format!("{}, {samples}", text::objects(books.objects))
            }
            Subject::Descriptors | Subject::Goroutines | Subject::Threads => self.kinds(subject, books),
            Subject::Mappings => {
                let mappings = text::counted(books.objects, "mapping", "mappings");
                let resident = text::bytes(books.resident);
                let kinds = self.kinds(subject, books);
                format!("{kinds}, {mappings}, {resident} resident")
            }
            Subject::NewMemory => format!("touched{samples}{}", asked_for(books)),
        }
    }

    /// `tcp`, or `20 tcp, 3 unix`.
    pub(super) fn kinds(&self, subject: Subject, books: &Books) -> String {
        match &*books.by_kind() {
            [(kind, _)] => (*kind).to_owned(),
            kinds => all_kinds(subject, kinds),
        }
    }

    fn place_frames(&mut self, place: &Place<'_>, excerpt: &Excerpt<'_>) -> io::Result<()> {
        for inner in &place.inner {
            let is_all = place.lines.is_empty();
            let inner = if is_all {
                self.style.bold(inner)
            } else {
                inner.clone()
            };
            writeln!(self.out, "{INDENT}{inner}")?;
        }
        for (at, part) in excerpt.parts.iter().enumerate() {
            match part {
                Part::Frame(line) if at == 0 => self.frame(INDENT, line, true)?,
                Part::Frame(line) => self.frame(CALLER, line, false)?,
                Part::Gap(count) => writeln!(
                    self.out,
                    "{CALLER}{}",
                    self.style.dim(format!("… {count} frames"))
                )?,
            }
            if let (0, Some(via)) = (at, excerpt.via) {
                let via = shorten(via, self.style.width - CALLER.len() - 4);
                writeln!(self.out, "{CALLER}{}", self.style.dim(format!("via {via}")))?;
            }
        }
        match &place.missing {
            Some(missing) => writeln!(self.out, "{INDENT}{}", self.style.warn(missing)),
            None => Ok(()),
        }
    }

    fn frame(&mut self, indent: &str, line: &Line, is_first: bool) -> io::Result<()> {
        let room = self.style.width - indent.len();
        // The name comes first: the place has what the name leaves, but enough to be of use.
        let place = location(
            line,
            room.saturating_sub(columns(&line.function) + 2).max(room * 2 / 5),
        );
        let name = shorten(&line.function, room - columns(&place) - 2);
        let name = if is_first { self.style.bold(name) } else { name };
        match place.is_empty() {
            true => writeln!(self.out, "{indent}{name}"),
            false => writeln!(self.out, "{indent}{name}  {}", self.style.dim(place)),
        }
    }

    fn others(&mut self, subject: Subject, places: usize, books: &Books, all: u64) -> io::Result<()> {
        let places = text::counted(places as u64, "other place", "other places");
        let contents = match subject {
            Subject::Heap | Subject::GoHeap => text::objects(books.objects),
            _ => self.contents(subject, books),
        };
        let amount = format!("{INDENT}{:>10}", amount(subject, books.amount));
        writeln!(self.out)?;
        self.numbers(subject, &amount, books, all, &format!("{contents} in {places}"))
    }

    /// From how many samples a number of bytes is estimated, and how far off it may be; nothing if it is exact.
    pub(super) fn samples(&self, selection: Selection, samples: u64, bytes: u64) -> String {
        let Some(error) = selection.standard_error(samples, bytes) else {
            return String::new();
        };
        let samples = text::counted(samples, "sample", "samples");
        format!(" (±{}, {samples})", text::error_margin(error))
    }

    /// How what a section shows was sampled.
    pub(super) fn selection(&self, subject: Subject) -> Selection {
        let growth = self.snapshot.growth.as_ref();
        match subject {
            Subject::Heap => self.snapshot.selection,
            Subject::Descriptors
            | Subject::Mappings
            | Subject::GoHeap
            | Subject::Goroutines
            | Subject::Threads => Selection::default(),
            Subject::NewMemory => Selection {
                sample_bytes: growth.and_then(|growth| NonZeroU64::new(growth.sample_bytes)),
                ..Selection::default()
            },
        }
    }

    /// What became of an amount lately, in at least `width` columns: tells a plateau from a leak.
    pub(super) fn change(&self, subject: Subject, change: i64, live: u64, width: usize) -> String {
        // A change by less than 1% may be noise, and with a full table nothing can be seen to grow.
        let noise = change.unsigned_abs() <= live / 100;
        let is_full = subject == Subject::Heap && self.snapshot.losses.blocks_full > 0;
        let text = match (is_full, noise) {
            (true, _) => "unknown".to_owned(),
            (false, true) => "steady".to_owned(),
            (false, false) => self::change(subject, change),
        };
        let text = format!("{text:>width$}");
        if change > 0 && !noise {
            self.style.warn(text)
        } else {
            text
        }
    }
}

/// An amount of what a section shows.
pub(super) fn amount(subject: Subject, value: u64) -> String {
    match is_counted(subject) {
        true => text::count(value),
        false => text::bytes(value),
    }
}

/// A change of what a section shows.
pub(super) fn change(subject: Subject, value: i64) -> String {
    match is_counted(subject) {
        true => text::count_change(value),
        false => text::change(value),
    }
}

/// Whether amounts are numbers of things, rather than bytes.
fn is_counted(subject: Subject) -> bool {
    matches!(
        subject,
        Subject::Descriptors | Subject::Goroutines | Subject::Threads
    )
}

/// `, 37 readLoop and 37 writeLoop goroutines wait`; nothing if none does.
pub(super) fn waiting(loops: ConnectionLoops) -> String {
    if loops.is_empty() {
        return String::new();
    }
    let [readers, writers] = [loops.readers, loops.writers].map(text::count);
    format!(", {readers} readLoop and {writers} writeLoop goroutines wait")
}

/// `20 tcp, 3 unix`.
pub(super) fn all_kinds(subject: Subject, kinds: &[(&str, u64)]) -> String {
    let kind = |(kind, value): &(&str, u64)| format!("{} {kind}", amount(subject, *value));
    kinds.iter().map(kind).collect::<Vec<_>>().join(", ")
}

/// `, asked for 64.0 MiB by mmap, 1.0 MiB by brk`, of new memory; nothing if the kernel was not asked.
pub(super) fn asked_for(books: &Books) -> String {
    match &*books.by_kind() {
        [] => String::new(),
        asked => format!(", asked for {}", all_kinds(Subject::NewMemory, asked)),
    }
}

/// Of new memory there is nothing that could change: what was touched stays so.
fn has_change(subject: Subject) -> bool {
    subject != Subject::NewMemory
}
