//! The section that says where the resident memory is.

use std::io::{self, Write};

use super::Report;
use crate::{
    output::style::{hang, wrap},
    snapshot::MemorySummary,
    text::{self, printable},
};

impl<W: Write> Report<'_, W> {
    /// The parts, and what they add up to.
    pub(super) fn memory(&mut self, memory: &MemorySummary) -> io::Result<()> {
        self.section("Memory")?;
        if memory.rss == 0 && memory.parts.is_empty() {
            self.total("Nothing is resident.")?;
        } else {
            for part in &memory.parts {
                let bytes = format!("{:>10}", text::bytes(part.bytes));
                self.part(&bytes, text::share(part.bytes, memory.rss), &part.what)?;
            }
            let bytes = self.style.bold(format!("{:>10}", text::bytes(memory.rss)));
            let total = "resident in all, as /proc/PID/smaps_rollup says";
            self.part(&bytes, text::share(memory.rss, memory.rss), total)?;
        }
        if memory.notes.is_empty() {
            return Ok(());
        }
        writeln!(self.out)?;
        self.paragraph(&printable(&memory.notes.join(" ")))
    }

    fn part(&mut self, bytes: &str, share: String, what: &str) -> io::Result<()> {
        const BEFORE: usize = 22;
        let what = hang(&wrap(&printable(what), self.style.width - BEFORE, ""), BEFORE);
        writeln!(self.out, "  {bytes}  {share:>5}   {what}")
    }
}
