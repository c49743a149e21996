//! The section on new memory.

use std::io::{self, Write};

use super::{Report, places::asked_for};
use crate::{
    output::frames::{Part, excerpts},
    output::places::{Books, Entry, Place, Places},
    profile::{comments, subject::Subject},
    snapshot::Growths,
    text::{self, printable},
};

/// How many places that only asked for memory are named.
const ASKERS: usize = 3;

impl<W: Write> Report<'_, W> {
    /// Who touched new memory first, and who asked the kernel for it.
    pub(super) fn growth(&mut self, growths: &Growths, top: usize) -> io::Result<()> {
        self.section("New memory")?;
        let entries = growths.sites.iter().map(Entry::of_growth);
        let mut places = Places::of(entries, self.symbols, &self.c_library);
        let seen = places.beyond(0);
        self.new_memory(&seen)?;
        self.explained(growths, &seen)?;
        let askers = places.take_askers();
        self.places(Subject::NewMemory, &places, top)?;
        self.askers(&askers)?;
        let mut notes = growths.notes.clone();
        notes.extend(unexplained(growths, &seen));
        let has_content = seen.amount > 0 || seen.objects > 0;
        if seen.samples > 0 {
            let mean = text::bytes(growths.sample_bytes);
            let sampled = format!(
                "Touched bytes are estimates, one sample in {mean} on average; ± is their standard error at most."
            );
            notes.insert(0, sampled);
        }
        self.notes_and_losses(
            Subject::NewMemory,
            &notes,
            &growths.losses,
            &comments::truncated_growth(&growths.sites),
            has_content,
        )
    }

    /// The line with the totals.
    fn new_memory(&mut self, seen: &Books) -> io::Result<()> {
        if seen.amount == 0 && seen.objects == 0 {
            return self.total("No new memory was seen in this time.");
        }
        let bytes = self.style.bold(text::bytes(seen.amount));
        let samples = self.samples(self.selection(Subject::NewMemory), seen.samples, seen.amount);
        self.total(&format!(
            "touched {bytes} for the first time{samples}{}",
            asked_for(seen)
        ))
    }

    /// The line that compares what was seen with what the kernel says.
    fn explained(&mut self, growths: &Growths, seen: &Books) -> io::Result<()> {
        let Some((before, now)) = growths.resident else {
            return Ok(());
        };
        let change = match now.anonymous.checked_sub(before.anonymous) {
            Some(rise) => {
                let explained = text::bytes(seen.amount.min(rise));
                let rise = text::bytes(rise);
                format!(
                    "anonymous memory rose by {rise}, of which page faults seen explain {explained} at most"
                )
            }
            None => {
                let fall = text::bytes(before.anonymous - now.anonymous);
                format!("anonymous memory fell by {fall}")
            }
        };
        let (before, now) = (text::bytes(before.rss), text::bytes(now.rss));
        self.total(&format!(
            "resident {before} when tracing began, {now} now; {change}"
        ))
    }

    /// Those that asked for memory, and were not seen to touch any.
    fn askers(&mut self, askers: &Places<'_>) -> io::Result<()> {
        if askers.len() == 0 {
            return Ok(());
        }
        let name = |place: Place<'_>| {
            let excerpt = excerpts(&[place.stack()]).pop();
            let first = excerpt.and_then(|excerpt| excerpt.parts.into_iter().next());
            let name = match first {
                Some(Part::Frame(line)) => printable(&line.function).into_owned(),
                _ => "code without a stack".to_owned(),
            };
            format!("{name} ({})", text::bytes(place.books.objects))
        };
        let most: Vec<String> = askers.top(ASKERS).into_iter().map(name).collect();
        let places = text::counted(askers.len() as u64, "other place", "other places");
        let which = match askers.len() > ASKERS {
            true => format!("most of all {}", most.join(", ")),
            false => most.join(", "),
        };
        let asked = asked_for(&askers.beyond(0));
        writeln!(self.out)?;
        self.paragraph(&format!("{places}{asked}, not seen to touch it: {which}."))
    }
}

/// What came by other ways than the page faults that count, if that is more than chance.
fn unexplained(growths: &Growths, seen: &Books) -> Option<String> {
    let (before, now) = growths.resident?;
    let rise = now.anonymous.saturating_sub(before.anonymous);
    let rest = rise.saturating_sub(seen.amount);
    // Twice the standard error of the samples, see `Selection::standard_error`.
    let chance = 2.0 * growths.sample_bytes as f64 * ((seen.samples + 1) as f64).sqrt();
    (rest as f64 > chance).then(|| {
        format!(
            "At least {} of anonymous memory came without a page fault that counts: in huge pages, by MAP_POPULATE or \
             MADV_POPULATE_WRITE, or in pages that were read before they were written.",
            text::bytes(rest)
        )
    })
}
