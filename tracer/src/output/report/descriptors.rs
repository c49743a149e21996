//! The table of the open descriptors.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use super::Report;
use crate::{
    output::{
        fd_details::Openers,
        style::{NO_BREAK, columns, hang, keep_end, shorten, wrap},
    },
    snapshot::{FdDetail, Holdings},
    text::{self, printable},
};

/// So many descriptors are listed.
const MOST_LISTED: usize = 50;

/// The cells of a line, but the last one.
type Cells = [String; 4];

impl<W: Write> Report<'_, W> {
    /// Each descriptor: what it is, how old, who opened it, and where it leads; of many, those opened since the attach first.
    pub(super) fn descriptor_table(&mut self, holdings: &Holdings, details: &[FdDetail]) -> io::Result<()> {
        if details.is_empty() {
            return Ok(());
        }
        self.section("Open descriptors")?;
        let mut listed: Vec<&FdDetail> = details.iter().collect();
        listed.sort_by_key(|detail| detail.age.is_none());
        listed.truncate(MOST_LISTED);
        listed.sort_by_key(|detail| detail.number);
        self.table(holdings, &listed)?;
        match details.len() - listed.len() {
            0 => Ok(()),
            others => {
                let others = text::count(others as u64);
                self.paragraph(&format!("  and {others} more: fd-details.json has them all."))
            }
        }
    }

    fn table(&mut self, holdings: &Holdings, details: &[&FdDetail]) -> io::Result<()> {
        let openers = Openers::new(holdings, self.symbols);
        let cells = |detail: &&FdDetail| -> Cells {
            let opener = openers.function(detail.holder, &self.c_library);
            [
                detail.number.to_string(),
                detail.kind.to_owned(),
                detail.age.map_or_else(|| "-".to_owned(), text::duration),
                // What it leads to has most of the line.
                shorten(&opener, self.style.width * 3 / 10),
            ]
        };
        let titles = ["fd", "kind", "age", "opened by"].map(str::to_owned);
        let lines: Vec<Cells> = details.iter().map(cells).collect();
        let widths: [usize; 4] = std::array::from_fn(|column| {
            let cells = lines.iter().chain([&titles]).map(|line| columns(&line[column]));
            cells.max().unwrap_or(0)
        });
        let titles = format!("{}leads to", before_target(&titles, widths));
        writeln!(self.out, "{}", self.style.dim(titles))?;
        for (detail, line) in details.iter().zip(&lines) {
            let before = before_target(line, widths);
            let target = target(detail);
            if columns(&before) + columns(&target) <= self.style.width {
                writeln!(self.out, "{before}{target}")?;
                continue;
            }
            // What does not fit has lines of its own, below the kind.
            let indent = widths[0] + 4;
            let target = in_lines(&target, self.style.width - indent);
            let target = hang(&target, indent);
            writeln!(self.out, "{}\n{:indent$}{target}", before.trim_end(), "")?;
        }
        Ok(())
    }
}

fn before_target([number, kind, age, opener]: &Cells, widths: [usize; 4]) -> String {
    let [a, b, c, d] = widths;
    format!("  {number:>a$}  {kind:<b$}  {age:>c$}  {opener:<d$}  ")
}

/// Where a descriptor leads: `/var/log/x.log`, `10.0.0.1:80 -> 10.0.0.2:41234 (ESTABLISHED)`.
fn target(detail: &FdDetail) -> String {
    let ends = match (&detail.local, &detail.peer) {
        (None, None) if detail.target.is_empty() => Cow::Borrowed("(not known)"),
        (None, None) => Cow::Borrowed(&*detail.target),
        (Some(local), None) => Cow::Borrowed(&**local),
        (local, Some(peer)) => Cow::Owned(format!("{} -> {peer}", local.as_deref().unwrap_or(""))),
    };
    let state = detail.state.as_ref().map(|state| format!(" ({state})"));
    printable(&format!("{ends}{}", state.unwrap_or_default())).into_owned()
}

/// Breaks before what follows an address, and cuts what does not fit.
fn in_lines(target: &str, width: usize) -> String {
    let target = wrap(&target.replace(" -> ", &format!(" ->{NO_BREAK}")), width, "");
    let lines: Vec<String> = target.lines().map(|line| keep_end(line, width, "/")).collect();
    lines.join("\n")
}
