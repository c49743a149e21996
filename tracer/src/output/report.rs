//! The report: what a tired person reads first.

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

use super::{
    frames::{Excerpt, Part, excerpts},
    places::{Books, Place, Places},
    style::{Style, columns, location, shorten, wrap},
};
use crate::{
    profile::comments::{self, Counted},
    snapshot::{Site, Snapshot},
    symbol::{Line, Symbolizer, Symbols},
    text::{self, printable},
};

/// Narrower than this (columns) the lines with the numbers do not fit.
const MIN_WIDTH: usize = 60;

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

impl ReportOptions {
    /// What suits standard output: its width and colour when it is a terminal, unless `NO_COLOR` (<https://no-color.org>)
    /// or a dumb `TERM` says otherwise.
    pub fn for_stdout(top: usize) -> Self {
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
    let live = snapshot.sites.iter().filter(|site| site.live_objects > 0);
    let symbols = symbolizer.symbolize(
        &snapshot.mappings,
        live.flat_map(|site| site.frames.iter().copied()),
    );
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
    let mut report = Report { out, snapshot, style };
    report.header()?;
    if !snapshot.coverage.allocators.is_empty() {
        report.totals()?;
        report.places(&Places::of(snapshot, symbols), options.top)?;
    }
    report.coverage()
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
        let mut limits = vec![comments::origin(&self.snapshot.origin)];
        limits.extend(self.chosen());
        let limits = wrap(&limits.join(" "), self.style.width, "");
        writeln!(self.out, "{}\n", self.style.dim(limits))
    }

    /// Which blocks are shown, one sentence each.
    fn chosen(&self) -> Vec<String> {
        let selection = &self.snapshot.selection;
        let mut sentences = Vec::new();
        if let Some(mean) = selection.sample_bytes {
            sentences.push(format!(
                "Sampled, one in {} on average: the numbers are estimates, ± is the standard error of the bytes at most.",
                text::bytes(mean.get())
            ));
        }
        if selection.min_size > 0 {
            let size = text::bytes(selection.min_size);
            sentences.push(format!("Blocks smaller than {size} are not counted."));
        }
        if !selection.min_age.is_zero() {
            let age = text::duration(selection.min_age);
            sentences.push(format!("Only blocks at least {age} old are shown as live."));
        }
        sentences
    }

    /// From how many samples a number of bytes is estimated, and how far off it may be; nothing if it is exact.
    fn samples(&self, samples: u64, bytes: u64) -> String {
        let Some(error) = self.snapshot.selection.standard_error(samples, bytes) else {
            return String::new();
        };
        let samples = match samples {
            1 => "1 sample".to_owned(),
            _ => format!("{} samples", text::count(samples)),
        };
        format!(" (±{}, {samples})", text::error_margin(error))
    }

    fn totals(&mut self) -> io::Result<()> {
        let (old, own): (Vec<_>, Vec<_>) = self.snapshot.sites.iter().partition(|site| site.inherited);
        let sum = |value: fn(&Site) -> u64| own.iter().chain(&old).map(|site| value(site)).sum::<u64>();
        let (allocated, allocated_objects) = (sum(|site| site.alloc_bytes), sum(|site| site.alloc_objects));
        let (live, live_objects) = (sum(|site| site.live_bytes), sum(|site| site.live_objects));
        if allocated_objects == 0 {
            let nothing = match self.snapshot.selection.sample_bytes {
                Some(_) => "No block was drawn in this time: what was allocated, if anything, is little.",
                None => "No allocation was seen in this time.",
            };
            return writeln!(self.out, "{nothing}");
        }
        let amount = |bytes, objects| format!("{:>10} in {}", text::bytes(bytes), text::objects(objects));
        let freed = allocated.saturating_sub(live);
        let freed_objects = allocated_objects.saturating_sub(live_objects);
        let share = text::share(freed, allocated);
        let inherited: u64 = old.iter().map(|site| site.alloc_bytes).sum();
        let inherited_objects: u64 = old.iter().map(|site| site.alloc_objects).sum();
        let own = amount(allocated - inherited, allocated_objects - inherited_objects);
        writeln!(self.out, "  allocated   {own}")?;
        if inherited_objects > 0 {
            let inherited = amount(inherited, inherited_objects);
            writeln!(
                self.out,
                "  inherited   {inherited}, from the process that forked it"
            )?;
        }
        let rest = match self.snapshot.selection.min_age.is_zero() {
            true => "freed again",
            false => "freed, young",
        };
        writeln!(self.out, "  {rest} {}, {share}", amount(freed, freed_objects))?;
        let change = self
            .snapshot
            .sites
            .iter()
            .map(|site| site.recent_change)
            .fold(0, i64::saturating_add);
        let change = match self.recent() {
            Some(recent) => format!(", {} in the last {recent}", self.change(change, live, 0)),
            None => String::new(),
        };
        writeln!(
            self.out,
            "  still live  {}{}{change}",
            self.style.bold(amount(live, live_objects)),
            self.samples(sum(|site| site.live_samples), live)
        )?;
        if self.snapshot.losses.blocks_full + self.snapshot.losses.threads_full > 0 {
            let more = "Not every block could be recorded: the real numbers are higher (see \"Lost\" below).";
            writeln!(
                self.out,
                "\n{}",
                self.style.warn(wrap(more, self.style.width, ""))
            )?;
        }
        Ok(())
    }

    /// Over which time the recent changes are, when they are known.
    fn recent(&self) -> Option<String> {
        (!self.snapshot.recent.is_zero()).then(|| text::duration(self.snapshot.recent))
    }

    /// What became of an amount lately, in at least `width` columns: tells a plateau from a leak.
    fn change(&self, change: i64, live: u64, width: usize) -> String {
        // A change by less than 1% may be noise, and with a full table nothing can be seen to grow.
        let noise = change.unsigned_abs() <= live / 100;
        let text = match (self.snapshot.losses.blocks_full, noise) {
            (1.., _) => "unknown".to_owned(),
            (0, true) => "steady".to_owned(),
            (0, false) => text::change(change),
        };
        let text = format!("{text:>width$}");
        if change > 0 && !noise {
            self.style.warn(text)
        } else {
            text
        }
    }

    fn places(&mut self, places: &Places<'_>, top: usize) -> io::Result<()> {
        let shown = places.top(top);
        if shown.is_empty() {
            return Ok(());
        }
        writeln!(self.out)?;
        self.places_heading(shown.len(), places.len())?;
        let all = places.beyond(0).live_bytes;
        let stacks: Vec<&[&Line]> = shown.iter().map(|place| &*place.lines).collect();
        for (rank, (place, excerpt)) in (1..).zip(shown.iter().zip(excerpts(&stacks))) {
            writeln!(self.out)?;
            self.place_numbers(rank, place, all)?;
            self.place_frames(place, &excerpt)?;
        }
        match places.len() - shown.len() {
            0 => Ok(()),
            others => self.others(others, &places.beyond(shown.len()), all),
        }
    }

    fn places_heading(&mut self, shown: usize, all: usize) -> io::Result<()> {
        let mut heading = match all {
            1 => "The only place in the code that holds live memory".to_owned(),
            all if all == shown => format!("The {all} places in the code that hold live memory"),
            all => {
                let all = text::count(all as u64);
                format!("The top {shown} of {all} places in the code that hold live memory")
            }
        };
        if let Some(recent) = self.recent() {
            heading.push_str(&format!(", and their change in the last {recent}"));
        }
        heading.push(':');
        writeln!(self.out, "{}", wrap(&heading, self.style.width, "  "))
    }

    fn place_numbers(&mut self, rank: usize, place: &Place<'_>, all: u64) -> io::Result<()> {
        let books = &place.books;
        let bytes = self.style.bold(format!("{:>10}", text::bytes(books.live_bytes)));
        let share = text::share(books.live_bytes, all);
        let change = match self.recent() {
            Some(_) => format!("  {}", self.change(books.recent_change, books.live_bytes, 10)),
            None => String::new(),
        };
        let objects = text::objects(books.live_objects);
        let age = text::duration(books.mean_age());
        let inherited = if place.inherited { ", inherited" } else { "" };
        let samples = self.samples(books.live_samples, books.live_bytes);
        writeln!(
            self.out,
            "{rank:>3}. {bytes}  {share:>5}{change}   {objects}{samples}, mean age {age}{inherited}"
        )
    }

    fn place_frames(&mut self, place: &Place<'_>, excerpt: &Excerpt<'_>) -> io::Result<()> {
        const INDENT: &str = "     ";
        const CALLER: &str = "       ";
        for (at, part) in excerpt.parts.iter().enumerate() {
            match part {
                Part::Frame(line) if at == 0 => self.frame(INDENT, line, true)?,
                Part::Frame(line) => self.frame(CALLER, line, false)?,
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
        match &place.missing {
            Some(missing) => writeln!(self.out, "{INDENT}{}", self.style.warn(missing)),
            None => Ok(()),
        }
    }

    fn frame(&mut self, indent: &str, line: &Line, is_first: bool) -> io::Result<()> {
        let room = self.style.width - indent.len();
        // The name comes first: the place has what the name leaves, but enough to be of use.
        let place = location(
            line,
            room.saturating_sub(columns(&line.function) + 2).max(room * 2 / 5),
        );
        let name = shorten(&line.function, room - columns(&place) - 2);
        let name = if is_first { self.style.bold(name) } else { name };
        match place.is_empty() {
            true => writeln!(self.out, "{indent}{name}"),
            false => writeln!(self.out, "{indent}{name}  {}", self.style.dim(place)),
        }
    }

    fn others(&mut self, places: usize, books: &Books, all: u64) -> io::Result<()> {
        let change = match self.recent() {
            Some(_) => format!("  {}", self.change(books.recent_change, books.live_bytes, 10)),
            None => String::new(),
        };
        let places = match places {
            1 => "1 other place".to_owned(),
            count => format!("{} other places", text::count(count as u64)),
        };
        let (bytes, share) = (text::bytes(books.live_bytes), text::share(books.live_bytes, all));
        let objects = text::objects(books.live_objects);
        writeln!(
            self.out,
            "\n     {bytes:>10}  {share:>5}{change}   {objects} in {places}"
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
        let (lost, seen): (Vec<_>, Vec<_>) = comments::counted(losses)
            .into_iter()
            .partition(|counted| counted.is_loss);
        let words = |counted: &Counted| format!("{} {}", text::count(counted.count), counted.in_short);
        let mut lost: Vec<String> = lost.iter().map(words).collect();
        for (why, blocks) in &losses.truncated {
            let blocks = text::count(*blocks);
            lost.push(format!(
                "{blocks} blocks with an incomplete stack ({})",
                comments::reason(*why)
            ));
        }
        let mut text = match lost.is_empty() {
            true => "Nothing was lost, every stack is complete.".to_owned(),
            false => format!("Lost: {}.", lost.join(", ")),
        };
        if !seen.is_empty() {
            let seen: Vec<String> = seen.iter().map(words).collect();
            text.push_str(&format!(" Also seen: {}.", seen.join(", ")));
        }
        text
    }
}

#[cfg(test)]
mod tests;
