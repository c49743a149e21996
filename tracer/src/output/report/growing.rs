//! The lines that name what grows: a leak may be far from what holds most.

use std::{
    collections::HashMap,
    io::{self, Write},
    time::Duration,
};

use super::{
    Report,
    golang::shown,
    places::{amount, change, waiting},
};
use crate::{
    output::{
        places::{Books, Entry, Place, Places},
        style::wrap,
    },
    profile::subject::Subject,
    text::{self, printable},
};

/// Of what is counted, fewer may come and go by chance.
const LEAST_COUNT: u64 = 3;
/// The same of bytes.
const LEAST_BYTES: u64 = 1024;
/// Of samples, what is so many times their standard error is no chance.
const ERRORS: f64 = 3.0;
/// So many functions of a section are named.
const MOST_FUNCTIONS: usize = 3;
/// By less a section may grow by chance of which no function stands out: things or bytes, and of all that it shows.
const LEAST_OF_MANY: i64 = 10;
const SHARE_OF_MANY: f64 = 0.05;
/// There is nothing to compare with before.
const SHORTEST: Duration = Duration::from_secs(2);

/// What grows.
struct Grower {
    line: String,
    /// Whether the function that it names is the program's own.
    is_own: bool,
    /// By which part of all that the section shows it grew.
    share: f64,
}

/// All that one function holds, by whatever stack.
#[derive(Default)]
struct Holding {
    books: Books,
    is_own: bool,
}

impl<W: Write> Report<'_, W> {
    /// A line for each section of which something grows, with the function that grows most. Those that name the program's own
    /// code come first (a leaked HTTP body is two goroutines of `net/http`, and a socket of who made the request), then those
    /// that make most of a difference.
    pub(super) fn growing(&mut self) -> io::Result<()> {
        if self.snapshot.recent.is_zero() && self.snapshot.duration < SHORTEST {
            let short = format!("What grows can be told from {} on.", text::duration(SHORTEST));
            return writeln!(self.out, "{}\n", self.style.dim(short));
        }
        let mut growers = self.growers();
        growers.sort_by(|a, b| b.is_own.cmp(&a.is_own).then(b.share.total_cmp(&a.share)));
        for grower in &growers {
            let line = wrap(&printable(&grower.line), self.style.width, "  ");
            writeln!(self.out, "{}", self.style.warn(line))?;
        }
        match growers.is_empty() {
            true => Ok(()),
            false => writeln!(self.out),
        }
    }

    fn growers(&self) -> Vec<Grower> {
        let snapshot = self.snapshot;
        let mut growers = Vec::new();
        if let Some(go) = &snapshot.go {
            // What is garbage cannot be told from what is not before it is collected.
            let heap = go.heap.iter().filter(|heap| !heap.is_uncollected);
            let sites = heap.flat_map(|heap| &heap.sites).map(Entry::of_site);
            let goroutines = shown(go.goroutines.iter().flatten()).map(Entry::of_goroutines);
            let threads = go.threads.iter().flatten().map(Entry::of_threads);
            growers.extend(self.growers_of(Subject::GoHeap, "heap", sites));
            growers.extend(self.growers_of(Subject::Goroutines, "goroutines", goroutines));
            growers.extend(self.growers_of(Subject::Threads, "threads", threads));
        }
        // With a full table nothing can be seen to grow.
        if let Some(native) = snapshot
            .native_heap()
            .filter(|_| snapshot.losses.blocks_full == 0)
        {
            let what = if native == "heap" {
                "heap"
            } else {
                "heap of C code"
            };
            let sites = snapshot.sites.iter().map(Entry::of_site);
            growers.extend(self.growers_of(Subject::Heap, what, sites));
        }
        let sections = [
            (Subject::Descriptors, "descriptors", &snapshot.fds),
            (Subject::Mappings, "mappings", &snapshot.mmap),
        ];
        for (subject, what, holdings) in sections {
            let holders = holdings.iter().flat_map(|holdings| &holdings.holders);
            let entries = holders.map(|holder| Entry::of_holder(holder, subject));
            growers.extend(self.growers_of(subject, what, entries));
        }
        growers
    }

    /// The functions of which a section grew most, if that is more than noise: of the program's own those that grew half as
    /// much as the first or more, and the first of others if that grew more. If it is many that grew, the section itself.
    fn growers_of<'e>(
        &self,
        subject: Subject,
        what: &str,
        entries: impl Iterator<Item = Entry<'e>>,
    ) -> Vec<Grower> {
        let Some(recent) = self.recent(subject) else {
            return Vec::new();
        };
        let places = Places::of(entries, self.symbols, &self.c_library);
        let (count, all) = (places.len() as u64, places.beyond(0));
        let mut growing: Vec<(String, Holding)> = holdings(subject, places.top(usize::MAX))
            .into_iter()
            .filter(|(_, holding)| self.grows(subject, &holding.books, &all))
            .collect();
        growing.sort_by(|(a, one), (b, other)| {
            let (one, other) = (one.books.recent_change, other.books.recent_change);
            other.cmp(&one).then_with(|| a.cmp(b))
        });
        let own = growing.iter().filter(|(_, holding)| holding.is_own);
        let most_own = own
            .clone()
            .next()
            .map_or(0, |(_, holding)| holding.books.recent_change);
        let own = own.filter(|(_, holding)| holding.books.recent_change >= most_own / 2);
        let other = growing.first().filter(|(_, holding)| !holding.is_own);
        let share = |change: i64| change as f64 / all.amount.max(1) as f64;
        let line = |(function, holding): &(String, Holding)| {
            let change = change(subject, holding.books.recent_change);
            let held = amount(subject, holding.books.amount);
            let waiting = waiting(holding.books.loops);
            Grower {
                line: format!(
                    "Growing: {what} {change} in the last {recent} at {function}, which holds {held}{waiting}"
                ),
                is_own: holding.is_own,
                share: share(holding.books.recent_change),
            }
        };
        let mut lines: Vec<Grower> = own.take(MOST_FUNCTIONS).chain(other).map(line).collect();
        let is_much = all.recent_change >= LEAST_OF_MANY && share(all.recent_change) > SHARE_OF_MANY;
        if lines.is_empty() && is_much && subject != Subject::Mappings && self.grows(subject, &all, &all) {
            let (change, places) = (
                change(subject, all.recent_change),
                text::counted(count, "place", "places"),
            );
            lines.push(Grower {
                line: format!("Growing: {what} {change} in the last {recent}, spread over {places}"),
                is_own: false,
                share: share(all.recent_change),
            });
        }
        lines
    }

    /// Whether something grew by more than may be chance, among all of a section.
    fn grows(&self, subject: Subject, books: &Books, all: &Books) -> bool {
        let Ok(change) = u64::try_from(books.recent_change) else {
            return false;
        };
        let least = match subject {
            Subject::Descriptors => LEAST_COUNT,
            // They go from place to place: where they are more than before, they are fewer elsewhere.
            Subject::Goroutines | Subject::Threads if all.recent_change < books.recent_change / 2 => {
                return false;
            }
            Subject::Goroutines | Subject::Threads => LEAST_COUNT,
            _ => LEAST_BYTES.max((ERRORS * self.error_of_one(subject, books)) as u64),
        };
        change >= least && change > all.amount / 100
    }

    /// The standard error of what one sample stands for (bytes); 0 if nothing is sampled. A block of s bytes, drawn with
    /// p = 1 − e^(−s/N), stands for s/p bytes, see [`crate::snapshot::Selection::standard_error`].
    fn error_of_one(&self, subject: Subject, books: &Books) -> f64 {
        let heap = self.snapshot.go.as_ref().and_then(|go| go.heap.as_ref());
        let distance = match subject {
            Subject::GoHeap => heap.map_or(0, |heap| heap.rate),
            Subject::Heap => self
                .snapshot
                .selection
                .sample_bytes
                .map_or(0, |bytes| bytes.get()),
            _ => 0,
        };
        if distance == 0 || books.objects == 0 {
            return 0.0;
        }
        let size = books.amount as f64 / books.objects as f64;
        let drawn = -(-size / distance as f64).exp_m1();
        size * (1.0 - drawn).sqrt() / drawn
    }
}

/// What each function holds by which places go, if they can be said to leak: Go's runtime maps its heap where a goroutine
/// happens to need it.
fn holdings(subject: Subject, places: Vec<Place<'_>>) -> HashMap<String, Holding> {
    let mut holdings: HashMap<String, Holding> = HashMap::new();
    let is_of_runtime = |place: &Place<'_>| {
        let is_runtime = |function: &str| {
            function.starts_with("runtime.sys") || ["runtime.clone", "x_cgo_mmap"].contains(&function)
        };
        subject == Subject::Mappings && place.lines.iter().any(|line| is_runtime(&line.function))
    };
    for place in places.into_iter().filter(|place| !is_of_runtime(place)) {
        let stack = place.stack();
        let own = stack.own();
        let function = own
            .or_else(|| stack.first_own())
            .map(|line| line.function.to_string());
        let Some(function) = function.or_else(|| place.inner.first().cloned()) else {
            continue;
        };
        let holding = holdings.entry(function).or_default();
        holding.books.add(&place.books);
        holding.is_own |= own.is_some();
    }
    holdings
}
