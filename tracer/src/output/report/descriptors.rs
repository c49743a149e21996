//! The table of the open descriptors.

use std::io::{self, Write};

use super::Report;
use crate::{
    output::{
        fd_details::Openers,
        style::{columns, keep_end, shorten, wrap},
    },
    snapshot::{FdDetail, Holdings},
    text::{self, printable},
};

/// The longest that the opener's name may be (columns).
const OPENER: usize = 28;

impl<W: Write> Report<'_, W> {
    /// Each descriptor: what it is, how old, who opened it, and where it leads.
    pub(super) fn descriptor_table(&mut self, holdings: &Holdings, details: &[FdDetail]) -> io::Result<()> {
        if details.is_empty() {
            return Ok(());
        }
        let openers = Openers::new(holdings, self.symbols);
        let openers: Vec<String> = details
            .iter()
            .map(|detail| shorten(&openers.function(detail.holder, &self.c_library), OPENER))
            .collect();
        let opener_width = openers.iter().map(|opener| columns(opener)).max().unwrap_or(0);
        writeln!(self.out, "\nThe open descriptors, and who opened them:\n")?;
        for (detail, opener) in details.iter().zip(&openers) {
            let age = detail.age.map_or_else(|| "-".to_owned(), text::duration);
            let before = format!(
                "{:>6}  {:<8}  {age:>12}  {opener:<opener_width$}  ",
                detail.number, detail.kind
            );
            let indent = columns(&before);
            let target = in_columns(detail, self.style.width - indent);
            let target = target.replace('\n', &format!("\n{:indent$}", ""));
            writeln!(self.out, "{before}{target}")?;
        }
        Ok(())
    }
}

/// Where a descriptor leads, in lines of at most `width` columns, if its words fit.
fn in_columns(detail: &FdDetail, width: usize) -> String {
    match addresses(detail) {
        Some(addresses) => wrap(&printable(&addresses), width, ""),
        None => {
            let state = detail
                .state
                .as_ref()
                .map(|state| format!("({})", printable(state)));
            let target = keep_end(&printable(&detail.target), width, "/");
            let words: Vec<String> = std::iter::once(target).chain(state).collect();
            wrap(&words.join(" "), width, "")
        }
    }
}

/// `10.0.0.1:80 -> 10.0.0.2:41234 (ESTABLISHED)`, of a socket that has an address.
fn addresses(detail: &FdDetail) -> Option<String> {
    let ends = match (&detail.local, &detail.peer) {
        (None, None) => return None,
        (Some(local), None) => local.clone(),
        (local, Some(peer)) => format!("{} -> {peer}", local.as_deref().unwrap_or("")),
    };
    Some(match &detail.state {
        Some(state) => format!("{ends} ({state})"),
        None => ends,
    })
}
