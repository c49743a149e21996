//! The section on new memory.

use std::io::{self, Write};

use super::{Report, places::asked_for};
use crate::{
    output::places::{Entry, Places},
    profile::{comments, subject::Subject},
    snapshot::Growths,
    text,
};

impl<W: Write> Report<'_, W> {
    /// Who touched new memory first, and who asked the kernel for it.
    pub(super) fn growth(&mut self, growths: &Growths, top: usize) -> io::Result<()> {
        self.section("New memory")?;
        let entries = growths.sites.iter().map(Entry::of_growth);
        let places = Places::of(entries, self.symbols, &self.c_library);
        self.new_memory(growths, &places)?;
        self.places(Subject::NewMemory, &places, top)?;
        let mut notes = growths.notes.clone();
        if places.len() > 0 {
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
            places.len() > 0,
        )
    }

    /// The line with the totals.
    fn new_memory(&mut self, growths: &Growths, places: &Places<'_>) -> io::Result<()> {
        let books = places.beyond(0);
        let mut total = match places.len() {
            0 => "No new memory was seen in this time".to_owned(),
            _ => {
                let bytes = self.style.bold(text::bytes(books.amount));
                let samples = self.samples(self.selection(Subject::NewMemory), books.samples, books.amount);
                format!("touched {bytes} for the first time{samples}")
            }
        };
        total.push_str(&asked_for(&books));
        if let Some((before, now)) = growths.rss {
            let (before, now) = (text::bytes(before), text::bytes(now));
            total.push_str(&format!("; resident {before} when tracing began, {now} now"));
        }
        if places.len() == 0 {
            total.push('.');
        }
        self.total(&total)
    }
}
