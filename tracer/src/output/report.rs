//! The report: what a tired person reads first.

use std::{
    collections::HashMap,
    io::{self, Write},
    time::Duration,
};

use super::{
    frames::{Excerpt, Part, excerpts},
    style::{Style, columns, location, shorten, wrap},
};
use crate::{
    profile::comments,
    snapshot::{Site, Snapshot},
    symbol::{Line, Symbolizer, Symbols},
    text::{self, printable},
};

/// How a report looks.
#[derive(Clone, Copy, Debug)]
pub struct ReportOptions {
    /// How many sites are shown.
    pub top: usize,
    /// How many columns a line may have.
    pub width: usize,
    /// Whether to use colour.
    pub colour: bool,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self {
            top: 10,
            width: 100,
            colour: false,
        }
    }
}

/// Writes the report on a snapshot.
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
    let style = Style {
        colour: options.colour,
        width: options.width.max(40),
    };
    let mut report = Report { out, snapshot, style };
    report.header()?;
    if !snapshot.coverage.allocators.is_empty() {
        let live = snapshot.sites.iter().filter(|site| site.live_objects > 0);
        let symbols = symbolizer.symbolize(
            &snapshot.mappings,
            live.flat_map(|site| site.frames.iter().copied()),
        );
        report.totals()?;
        report.sites(&merge(snapshot, &symbols), options.top)?;
    }
    report.coverage()
}

/// A stack as the reader sees it: inlined calls are frames too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Stack {
    names: Vec<Line>,
    /// What stands for the frames that are missing.
    missing: Option<String>,
}

/// The books of the sites that have the same stack once it is symbolized.
#[derive(Debug, Default)]
struct Books {
    live_bytes: u64,
    live_objects: u64,
    recent_change: i64,
    /// Sum of the blocks' ages (seconds).
    ages: f64,
}

impl Books {
    fn add(&mut self, site: &Site) {
        self.live_bytes += site.live_bytes;
        self.live_objects += site.live_objects;
        self.recent_change = self.recent_change.saturating_add(site.recent_change);
        self.ages += site.mean_age.as_secs_f64() * site.live_objects as f64;
    }

    fn mean_age(&self) -> Duration {
        Duration::try_from_secs_f64(self.ages / self.live_objects.max(1) as f64).unwrap_or_default()
    }
}

/// The live sites, most bytes first.
fn merge(snapshot: &Snapshot, symbols: &Symbols) -> Vec<(Stack, Books)> {
    let mut merged: HashMap<Stack, Books> = HashMap::new();
    for site in snapshot.sites.iter().filter(|site| site.live_objects > 0) {
        let frames = site.frames.iter().filter_map(|frame| symbols.get(*frame));
        let names = frames.flat_map(|frame| frame.lines.iter().cloned()).collect();
        let stack = Stack {
            names,
            missing: comments::missing_frames(site),
        };
        merged.entry(stack).or_default().add(site);
    }
    let mut sites: Vec<_> = merged.into_iter().collect();
    sites.sort_by(|(stack_a, a), (stack_b, b)| {
        let most = (b.live_bytes, b.live_objects).cmp(&(a.live_bytes, a.live_objects));
        most.then_with(|| stack_a.cmp(stack_b))
    });
    sites
}

struct Report<'a, W> {
    out: &'a mut W,
    snapshot: &'a Snapshot,
    style: Style,
}

impl<W: Write> Report<'_, W> {
    fn header(&mut self) -> io::Result<()> {
        let process = &self.snapshot.process;
        let title = format!("Heap of {} (pid {})", printable(&process.name), process.pid);
        let since = text::duration(self.snapshot.duration);
        writeln!(self.out, "{}, traced for {since}", self.style.bold(title))?;
        writeln!(self.out)
    }

    fn totals(&mut self) -> io::Result<()> {
        let sum = |value: fn(&Site) -> u64| self.snapshot.sites.iter().map(value).sum::<u64>();
        let (allocated, allocated_objects) = (sum(|site| site.alloc_bytes), sum(|site| site.alloc_objects));
        let (live, live_objects) = (sum(|site| site.live_bytes), sum(|site| site.live_objects));
        if allocated_objects == 0 {
            return writeln!(self.out, "No allocation was seen in this time.");
        }
        writeln!(
            self.out,
            "  allocated   {:>10} in {} objects since tracing began",
            text::bytes(allocated),
            text::count(allocated_objects)
        )?;
        writeln!(
            self.out,
            "  freed again {:>10} in {} objects ({})",
            text::bytes(allocated.saturating_sub(live)),
            text::count(allocated_objects.saturating_sub(live_objects)),
            text::share(allocated.saturating_sub(live), allocated)
        )?;
        let still_live = format!(
            "{:>10} in {} objects",
            text::bytes(live),
            text::count(live_objects)
        );
        let recent = self
            .snapshot
            .sites
            .iter()
            .map(|site| site.recent_change)
            .fold(0, i64::saturating_add);
        let recent = self
            .recent(recent, live)
            .map(|recent| format!("; {recent}"))
            .unwrap_or_default();
        writeln!(self.out, "  still live  {}{recent}", self.style.bold(still_live))
    }

    /// What became of an amount lately: tells a plateau from a leak.
    fn recent(&self, change: i64, live: u64) -> Option<String> {
        if self.snapshot.recent.is_zero() {
            return None;
        }
        let during = text::duration(self.snapshot.recent);
        // Less than 1% is noise.
        if change.unsigned_abs() <= live / 100 {
            return Some(format!("steady in the last {during}"));
        }
        let text = format!("{} in the last {during}", text::change(change));
        Some(if change > 0 { self.style.warn(text) } else { text })
    }

    fn sites(&mut self, sites: &[(Stack, Books)], top: usize) -> io::Result<()> {
        let shown = &sites[..sites.len().min(top)];
        if shown.is_empty() {
            return Ok(());
        }
        let all: u64 = sites.iter().map(|(_, books)| books.live_bytes).sum();
        writeln!(self.out)?;
        match sites.len() {
            count if count > shown.len() => writeln!(
                self.out,
                "The {} of {} places in the code that hold the most live memory:",
                shown.len(),
                text::count(count as u64)
            )?,
            _ => writeln!(self.out, "The places in the code that hold the live memory:")?,
        }
        let stacks: Vec<&[Line]> = shown.iter().map(|(stack, _)| &*stack.names).collect();
        for (at, ((stack, books), excerpt)) in shown.iter().zip(excerpts(&stacks)).enumerate() {
            writeln!(self.out)?;
            self.site_numbers(at + 1, books, all)?;
            self.site_frames(stack, &excerpt)?;
        }
        self.rest(&sites[shown.len()..], all)
    }

    fn site_numbers(&mut self, rank: usize, books: &Books, all: u64) -> io::Result<()> {
        let bytes = format!("{:>10}", text::bytes(books.live_bytes));
        let share = text::share(books.live_bytes, all);
        let objects = match books.live_objects {
            1 => "1 object".to_owned(),
            count => format!("{} objects", text::count(count)),
        };
        let age = text::duration(books.mean_age());
        let recent = self.recent(books.recent_change, books.live_bytes);
        let recent = recent.map(|recent| format!(", {recent}")).unwrap_or_default();
        let bytes = self.style.bold(bytes);
        writeln!(
            self.out,
            "{rank:>3}. {bytes}  {share:>5}  {objects}, mean age {age}{recent}"
        )
    }

    fn site_frames(&mut self, stack: &Stack, excerpt: &Excerpt<'_>) -> io::Result<()> {
        const INDENT: &str = "     ";
        const CALLER: &str = "       ";
        for (at, part) in excerpt.parts.iter().enumerate() {
            match part {
                Part::Frame(line) if at == 0 => self.frame(INDENT, line, true)?,
                Part::Frame(line) => self.frame(CALLER, line, false)?,
                Part::Gap(1) => writeln!(self.out, "{CALLER}{}", self.style.dim("… 1 frame"))?,
                Part::Gap(count) => writeln!(
                    self.out,
                    "{CALLER}{}",
                    self.style.dim(format!("… {count} frames"))
                )?,
            }
            if let (0, Some(via)) = (at, excerpt.via) {
                let via = shorten(via, self.style.width - CALLER.len() - 4);
                writeln!(self.out, "{CALLER}{}", self.style.dim(format!("via {via}")))?;
            }
        }
        match &stack.missing {
            Some(missing) => writeln!(self.out, "{INDENT}{}", self.style.warn(missing)),
            None => Ok(()),
        }
    }

    fn frame(&mut self, indent: &str, line: &Line, is_first: bool) -> io::Result<()> {
        let room = self.style.width - indent.len();
        let place = location(line, room / 2);
        let name = shorten(&line.function, room - columns(&place) - 2);
        let name = if is_first { self.style.bold(name) } else { name };
        match place.is_empty() {
            true => writeln!(self.out, "{indent}{name}"),
            false => writeln!(self.out, "{indent}{name}  {}", self.style.dim(place)),
        }
    }

    fn rest(&mut self, rest: &[(Stack, Books)], all: u64) -> io::Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        let bytes: u64 = rest.iter().map(|(_, books)| books.live_bytes).sum();
        let objects: u64 = rest.iter().map(|(_, books)| books.live_objects).sum();
        writeln!(
            self.out,
            "\n     {:>10}  {:>5}  {} objects in {} other places",
            text::bytes(bytes),
            text::share(bytes, all),
            text::count(objects),
            text::count(rest.len() as u64)
        )
    }

    fn coverage(&mut self) -> io::Result<()> {
        let coverage = &self.snapshot.coverage;
        if coverage.allocators.is_empty() {
            let sorry = "memtrace could not look: it covers no allocator of this process, so nothing can be said of its heap.";
            writeln!(self.out, "{}", self.style.warn(wrap(sorry, self.style.width, "")))?;
        }
        let mut text = Vec::new();
        if !coverage.allocators.is_empty() {
            text.push(format!("Covered: {}.", coverage.allocators.join("; ")));
        }
        if !coverage.not_covered.is_empty() {
            text.push(format!("Not covered: {}.", coverage.not_covered.join("; ")));
        }
        if !coverage.allocators.is_empty() {
            text.push(self.losses());
        }
        let text = wrap(&printable(&text.join(" ")), self.style.width, "  ");
        writeln!(self.out, "\n{text}")
    }

    fn losses(&self) -> String {
        let losses = &self.snapshot.losses;
        let mut lost: Vec<String> = (comments::losses(losses).into_iter())
            .map(|(count, what)| format!("{} {what}", text::count(count)))
            .collect();
        for (why, blocks) in &losses.truncated {
            lost.push(format!(
                "{} blocks with a truncated stack: {}",
                text::count(*blocks),
                comments::reason(*why)
            ));
        }
        match lost.is_empty() {
            true => "Nothing was lost, every stack is complete.".to_owned(),
            false => format!("Lost: {}.", lost.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests;
