//! The report: what a tired person reads first.

mod descriptors;
mod golang;
mod growing;
mod growth;
mod heap;
mod holdings;
mod memory;
mod places;

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

use super::{
    c_library::CLibrary,
    style::{Style, hang, wrap, wrap_list},
};
use crate::{
    profile::{comments, subject::Subject},
    snapshot::Snapshot,
    symbol::{Symbolizer, Symbols},
    text::{self, printable},
};

/// Narrower than this (columns) the lines with the numbers do not fit.
const MIN_WIDTH: usize = 60;
/// So many places are shown, unless there is a wish.
const MOST_PLACES: usize = 10;
/// So many are shown of each section but the heap's, unless it is the only one or there is a wish.
const MOST_BESIDE_OTHERS: usize = 5;

/// How a report looks.
#[derive(Clone, Copy, Debug)]
pub struct ReportOptions {
    /// How many places are shown in each section; `None`: as many as suit, fewer in sections beside others.
    pub top: Option<usize>,
    /// How many columns a line may have.
    pub width: usize,
    /// Whether to use colour.
    pub colour: bool,
}

impl ReportOptions {
    /// What suits standard output: its width and colour when it is a terminal, unless `NO_COLOR` (<https://no-color.org>)
    /// or a dumb `TERM` says otherwise.
    pub fn for_stdout(top: Option<usize>) -> Self {
        let stdout = io::stdout();
        let plain = Self {
            top,
            ..Self::default()
        };
        if !stdout.is_terminal() {
            return plain;
        }
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let width = tcgetwinsize(stdout)
            .map(|size| usize::from(size.ws_col))
            .unwrap_or(0);
        Self {
            width: if width == 0 { plain.width } else { width },
            colour: !is_set("NO_COLOR") && !is_dumb,
            ..plain
        }
    }
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self {
            top: None,
            width: 100,
            colour: false,
        }
    }
}

/// Writes the report on a snapshot: a section for each thing that was traced.
///
/// # Errors
///
/// Fails when `out` fails.
pub fn write_report(
    out: &mut impl Write,
    snapshot: &Snapshot,
    symbolizer: &mut Symbolizer,
    options: &ReportOptions,
) -> io::Result<()> {
    let live = snapshot.sites.iter().filter(|site| site.live_objects > 0);
    let live = live.flat_map(|site| &site.frames);
    let holdings = snapshot.fds.iter().chain(&snapshot.mmap);
    let held = holdings
        .flat_map(|holdings| &holdings.holders)
        .flat_map(|holder| &holder.frames);
    let growth = snapshot.growth.iter().flat_map(|growths| &growths.sites);
    let grown = growth.flat_map(|site| &site.frames);
    let go = snapshot.go.iter();
    let go = go.flat_map(|go| {
        let sites = go.heap.iter().flat_map(|heap| &heap.sites);
        let goroutines = go.goroutines.iter().flatten();
        let threads = go.threads.iter().flatten();
        sites
            .flat_map(|site| &site.frames)
            .chain(goroutines.flat_map(|group| &group.frames))
            .chain(threads.flat_map(|group| &group.frames))
    });
    let frames = live.chain(held).chain(grown).chain(go).copied();
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames);
    write_symbolized(out, snapshot, &symbols, options)
}

fn write_symbolized(
    out: &mut impl Write,
    snapshot: &Snapshot,
    symbols: &Symbols,
    options: &ReportOptions,
) -> io::Result<()> {
    let style = Style {
        colour: options.colour,
        width: options.width.max(MIN_WIDTH),
    };
    let Snapshot {
        fds, mmap, growth, ..
    } = snapshot;
    let sections = [snapshot.heap, fds.is_some(), mmap.is_some(), growth.is_some()];
    let most = options.top.unwrap_or(MOST_PLACES);
    let is_alone = sections.into_iter().filter(|traced| *traced).count() <= 1;
    let top = if is_alone {
        most
    } else {
        options.top.unwrap_or(MOST_BESIDE_OTHERS)
    };
    let mut report = Report {
        out,
        snapshot,
        symbols,
        c_library: CLibrary::of(&snapshot.mappings),
        style,
        has_section: false,
        has_praised: false,
    };
    report.header()?;
    report.growing()?;
    if let Some(go) = &snapshot.go {
        report.go_heap(go, most)?;
    }
    match snapshot.native_heap() {
        Some("heap") => report.heap(most)?,
        Some(_) => {
            report.section("Heap of C code")?;
            report.heap(top)?;
        }
        None => {}
    }
    if let Some(goroutines) = snapshot.go.as_ref().and_then(|go| go.goroutines.as_ref()) {
        report.goroutines(goroutines, top)?;
    }
    if let Some(threads) = snapshot.go.as_ref().and_then(|go| go.threads.as_ref()) {
        report.threads(threads, top)?;
    }
    if let Some(fds) = fds {
        report.descriptors(fds, top)?;
    }
    if let Some(mmap) = mmap {
        report.mappings(mmap, top)?;
    }
    if let Some(growth) = growth {
        report.growth(growth, top)?;
    }
    if let Some(memory) = &snapshot.memory {
        report.memory(memory)?;
    }
    match (fds, &snapshot.fd_details) {
        (Some(fds), Some(details)) => report.descriptor_table(fds, details),
        _ => Ok(()),
    }
}

struct Report<'a, W> {
    out: &'a mut W,
    snapshot: &'a Snapshot,
    symbols: &'a Symbols,
    c_library: CLibrary,
    style: Style,
    /// Whether a section has been written.
    has_section: bool,
    /// Whether a section has said that nothing was lost.
    has_praised: bool,
}

impl<W: Write> Report<'_, W> {
    fn header(&mut self) -> io::Result<()> {
        let process = &self.snapshot.process;
        let of = if self.snapshot.heap { "Heap of " } else { "" };
        let title = format!("{of}{} (pid {})", printable(&process.name), process.pid);
        let since = text::duration(self.snapshot.duration);
        writeln!(self.out, "{}, traced for {since}", self.style.bold(title))?;
        let limits = self.limits();
        if limits.is_empty() {
            return writeln!(self.out);
        }
        let limits = wrap(&limits.join(" "), self.style.width, "");
        writeln!(self.out, "{}\n", self.style.dim(limits))
    }

    /// What the numbers are of, one sentence each.
    fn limits(&self) -> Vec<String> {
        let origin = |subject| comments::origin(&self.snapshot.origin, subject);
        let go = self.snapshot.go.as_ref();
        if let Some(heap) = go.and_then(|go| go.heap.as_ref()) {
            let from_before = heap.is_from_before().then(|| origin(Subject::GoHeap));
            return from_before.into_iter().collect();
        }
        if self.snapshot.heap {
            let mut limits = vec![origin(Subject::Heap)];
            limits.extend(self.chosen_blocks());
            return limits;
        }
        let traced = [
            (self.snapshot.fds.is_some(), Subject::Descriptors),
            (self.snapshot.mmap.is_some(), Subject::Mappings),
            (self.snapshot.growth.is_some(), Subject::NewMemory),
        ];
        let traced = traced.into_iter().filter(|(is_traced, _)| *is_traced);
        let mut limits: Vec<String> = traced.map(|(_, subject)| origin(subject)).collect();
        limits.dedup();
        limits
    }

    /// Begins a section other than the heap's.
    fn section(&mut self, title: &str) -> io::Result<()> {
        if self.has_section {
            writeln!(self.out)?;
        }
        self.has_section = true;
        writeln!(self.out, "{}", self.style.bold(title))
    }

    /// Writes a line in which the words that do not fit go below.
    fn paragraph(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", wrap(text, self.style.width, "  "))
    }

    /// Writes the line with a section's totals.
    fn total(&mut self, text: &str) -> io::Result<()> {
        let wrapped = wrap_list(text, self.style.width - 2, "  ");
        writeln!(self.out, "  {}", hang(&wrapped, 2))
    }

    /// What a section says that lost nothing, once in a report: sections that are silent lost nothing either.
    fn nothing_lost(&mut self) -> Option<String> {
        let is_first = !std::mem::replace(&mut self.has_praised, true);
        is_first.then(|| "Nothing was lost, every stack is complete.".to_owned())
    }

    /// Over which time the recent changes are, when they are known.
    fn recent(&self, subject: Subject) -> Option<String> {
        let go = self.snapshot.go.as_ref();
        let recent = match subject {
            Subject::GoHeap | Subject::Goroutines | Subject::Threads => go?.recent,
            Subject::Heap | Subject::Descriptors | Subject::Mappings | Subject::NewMemory => {
                self.snapshot.recent
            }
        };
        (!recent.is_zero()).then(|| text::duration(recent))
    }
}

#[cfg(test)]
mod tests;
