//! The table of the processes that were traced.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use super::{
    ReportOptions,
    style::{Style, shorten},
};
use crate::text::{self, printable};

/// One process in one program, as the table shows it.
#[derive(Clone, Debug)]
pub struct ProcessRow {
    /// The process id.
    pub pid: u32,
    /// The command name.
    pub name: String,
    /// Bytes that lived at the end.
    pub live_bytes: u64,
    /// Blocks that lived at the end.
    pub live_objects: u64,
    /// How it ended; empty if it runs on.
    pub end: &'static str,
    /// Its profile, if that could be written.
    pub profile: Option<PathBuf>,
}

/// Writes the table, those that hold most first.
///
/// # Errors
/// Fails when `out` fails.
pub fn write_processes(out: &mut impl Write, rows: &[ProcessRow], options: &ReportOptions) -> io::Result<()> {
    let style = Style {
        colour: options.colour,
        width: options.width,
    };
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.live_bytes));
    let shown = rows.len().min(options.top.max(1));
    let title = match rows.len() {
        all if all == shown => {
            format!("{all} heaps were traced, one for each process and program that it executed:")
        }
        all => format!(
            "{all} heaps were traced, one for each process and program that it executed; the largest:"
        ),
    };
    writeln!(out, "{}", style.bold(title))?;
    for row in &rows[..shown] {
        let directory = row.profile.as_ref().and_then(|path| path.parent()?.file_name());
        let profile = directory.map_or_else(|| "not written".into(), |name| name.display().to_string());
        let end = if row.end.is_empty() { "runs" } else { row.end };
        let line = format!(
            "{:>10} in {:<15} {:>7} {:<15} {end:<8} {profile}/",
            text::bytes(row.live_bytes),
            text::objects(row.live_objects),
            row.pid,
            shorten(&printable(&row.name), 15),
        );
        writeln!(out, "{line}")?;
    }
    let others = &rows[shown..];
    if !others.is_empty() {
        let bytes = others.iter().map(|row| row.live_bytes).sum();
        writeln!(
            out,
            "{:>10} in {} more",
            text::bytes(bytes),
            text::count(others.len() as u64)
        )?;
    }
    writeln!(out)
}
