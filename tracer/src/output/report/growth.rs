//! The section on new memory.

use std::io::{self, Write};

use super::Report;
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
        self.notes_and_losses(
            Subject::NewMemory,
            &growths.notes,
            &growths.losses,
            &comments::truncated_growth(&growths.sites),
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
                format!("touched for the first time {bytes}{samples}")
            }
        };
        for (how, bytes) in books.by_kind() {
            total.push_str(&format!(", got {} {how}", text::bytes(bytes)));
        }
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
