//! The lines that name what grows: a leak may be far from what holds most.

use std::io::{self, Write};

use super::{
    Report,
    golang::shown,
    places::{amount, change, waiting},
};
use crate::{
    output::{
        places::{Entry, Place, Places},
        style::wrap,
    },
    profile::subject::Subject,
    text::printable,
};

/// Of what is counted, fewer may come and go by chance; so many samples of a heap, too.
const LEAST_COUNT: u64 = 3;
/// The same of bytes.
const LEAST_BYTES: u64 = 1024;

/// A place that grows.
struct Grower {
    line: String,
    /// Whether the function that it names is the program's own.
    is_own: bool,
    /// By which part of all that the section shows it grew.
    share: f64,
}

impl<W: Write> Report<'_, W> {
    /// A line for each section of which something grows, with the place that grows most. Those that name the program's own
    /// code come first (a leaked HTTP body is two goroutines of `net/http`, and a socket of who made the request), then those
    /// that make most of a difference.
    pub(super) fn growing(&mut self) -> io::Result<()> {
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
            let sites = go.heap.iter().flat_map(|heap| &heap.sites).map(Entry::of_site);
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

    /// What grew most of a section, if that is more than noise: of what the program's own code holds, or else at all; both,
    /// if something else grew more.
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
        let all = places.beyond(0).amount;
        let places = places.top(usize::MAX);
        let growing = places.iter().filter(|place| grows(subject, place, all));
        let mut growing: Vec<&Place<'_>> = growing.collect();
        growing.sort_by_key(|place| std::cmp::Reverse(place.books.recent_change));
        let own = growing.iter().position(|place| place.stack().own().is_some());
        let most = (!growing.is_empty()).then_some(0);
        let chosen = own.into_iter().chain(most.filter(|_| own != most));
        let chosen = chosen.filter_map(|at| {
            let place = growing[at];
            let stack = place.stack();
            let function = stack.own().or_else(|| stack.first_own());
            let function = function.map(|line| line.function.to_string());
            let function = function.or_else(|| place.inner.first().cloned())?;
            let change = change(subject, place.books.recent_change);
            let held = amount(subject, place.books.amount);
            let waiting = waiting(place.books.loops);
            Some(Grower {
                line: format!(
                    "Growing: {what} {change} in the last {recent} at {function}, which holds {held}{waiting}"
                ),
                is_own: own == Some(at),
                share: place.books.recent_change as f64 / all.max(1) as f64,
            })
        });
        chosen.collect()
    }
}

/// Whether a place grew by more than may be chance, among all of a section.
fn grows(subject: Subject, place: &Place<'_>, all: u64) -> bool {
    let books = &place.books;
    let Ok(change) = u64::try_from(books.recent_change) else {
        return false;
    };
    let least = match subject {
        Subject::Goroutines | Subject::Threads | Subject::Descriptors => LEAST_COUNT,
        _ if books.samples > 0 => LEAST_COUNT * books.amount / books.samples,
        _ => LEAST_BYTES,
    };
    change >= least && change > all / 100
}
