//! The sections on descriptors and mappings.

use std::io::{self, Write};

use memtrace_ebpf::layout::EndReason;

use super::{
    Report,
    places::{all_kinds, amount},
};
use crate::{
    output::{
        places::{Entry, Places},
        style::{hang, wrap},
    },
    profile::{comments, stacks::reason, subject::Subject},
    snapshot::{Holder, Holdings},
    text::{self, printable},
};

impl<W: Write> Report<'_, W> {
    /// Who opened what is open.
    pub(super) fn descriptors(&mut self, holdings: &Holdings, top: usize) -> io::Result<()> {
        self.section("Descriptors")?;
        let nothing = "No descriptor is open, and none was opened in this time.";
        self.holdings(Subject::Descriptors, holdings, nothing, top)?;
        self.end_of_holdings(Subject::Descriptors, holdings)
    }

    /// Who mapped what is mapped.
    pub(super) fn mappings(&mut self, holdings: &Holdings, top: usize) -> io::Result<()> {
        self.section("Mappings")?;
        let nothing = "Nothing is mapped, and nothing was mapped in this time.";
        self.holdings(Subject::Mappings, holdings, nothing, top)?;
        self.end_of_holdings(Subject::Mappings, holdings)
    }

    fn holdings(
        &mut self,
        subject: Subject,
        holdings: &Holdings,
        nothing: &str,
        top: usize,
    ) -> io::Result<()> {
        if let Some(warning) = &holdings.warning {
            let warning = wrap(&printable(warning), self.style.width - 2, "");
            writeln!(self.out, "  {}", self.style.warn(hang(&warning, 2)))?;
        }
        let holders = &holdings.holders;
        if is_empty(holders) {
            return self.total(nothing);
        }
        let held = holders.iter().filter(|holder| holder.held > 0);
        let entries = held.map(|holder| Entry::of_holder(holder, subject));
        let places = Places::of(entries, self.symbols, &self.c_library);
        self.held(subject, holders, &places)?;
        self.places(subject, &places, top)
    }

    /// The line with the totals.
    fn held(&mut self, subject: Subject, holders: &[Holder], places: &Places<'_>) -> io::Result<()> {
        let sum = |inherited, value: fn(&Holder) -> u64| -> u64 {
            let of = holders.iter().filter(|holder| holder.inherited == inherited);
            of.map(value).sum()
        };
        let (verb, still, of) = match subject {
            Subject::Descriptors => ("opened", "still open", "of them"),
            _ => ("mapped", "still mapped", "of it"),
        };
        let mut total = format!("{verb} {}", amount(subject, sum(false, |holder| holder.made)));
        let books = places.beyond(0);
        let open = self.style.bold(amount(subject, books.amount));
        total.push_str(&format!(", {still} {open}"));
        if let Some(recent) = self.recent(subject) {
            let change = self.change(subject, books.recent_change, books.amount, 0);
            total.push_str(&format!(" ({change} in the last {recent})"));
        }
        let inherited = sum(true, |holder| holder.held);
        if inherited > 0 {
            total.push_str(&format!(", {} {of} inherited", amount(subject, inherited)));
        }
        if subject == Subject::Mappings {
            total.push_str(&format!(", {} {of} resident", text::bytes(books.resident)));
        }
        if books.amount > 0 {
            total.push_str(&format!("; {}", all_kinds(subject, &books.by_kind())));
        }
        self.total(&total)
    }

    fn end_of_holdings(&mut self, subject: Subject, holdings: &Holdings) -> io::Result<()> {
        self.notes_and_losses(
            subject,
            &holdings.notes,
            &holdings.losses,
            &comments::truncated_holders(&holdings.holders),
            !is_empty(&holdings.holders),
        )
    }

    /// What else there is to know, and what was lost; that nothing was is only said if `has_content`.
    pub(super) fn notes_and_losses(
        &mut self,
        subject: Subject,
        notes: &[String],
        losses: &[(u64, String)],
        truncated: &[(EndReason, u64)],
        has_content: bool,
    ) -> io::Result<()> {
        let lost = losses.iter().map(|(count, what)| text::number_of(*count, what));
        let incomplete = truncated.iter().map(|(why, value)| {
            let of = match subject {
                Subject::Descriptors => text::counted(*value, "descriptor", "descriptors"),
                _ => text::bytes(*value),
            };
            format!("{of} with an incomplete stack ({})", reason(*why))
        });
        let lost: Vec<String> = lost.chain(incomplete).collect();
        let lost = match lost.is_empty() {
            true if has_content => self.nothing_lost(),
            true => None,
            false => Some(format!("Lost: {}.", lost.join(", "))),
        };
        let text: Vec<String> = notes.iter().cloned().chain(lost).collect();
        if text.is_empty() {
            return Ok(());
        }
        writeln!(self.out)?;
        self.paragraph(&printable(&text.join(" ")))
    }
}

fn is_empty(holders: &[Holder]) -> bool {
    holders.iter().all(|holder| holder.made == 0 && holder.held == 0)
}
