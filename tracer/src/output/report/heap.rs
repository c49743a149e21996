//! The section on the heap.

use std::io::{self, Write};

use super::Report;
use crate::{
    output::{
        c_library::CLibrary,
        places::{Entry, Places},
        style::wrap,
    },
    profile::{
        comments::{self, Counted},
        stacks::reason,
        subject::Subject,
    },
    snapshot::Site,
    text::{self, printable},
};

impl<W: Write> Report<'_, W> {
    /// The totals, the places, and what was covered and lost.
    pub(super) fn heap(&mut self, top: usize) -> io::Result<()> {
        self.has_section = true;
        if !self.snapshot.coverage.allocators.is_empty() {
            self.totals()?;
            let live = self.snapshot.sites.iter().filter(|site| site.live_objects > 0);
            let places = Places::of(live.map(Entry::of_site), self.symbols, &CLibrary::default());
            self.places(Subject::Heap, &places, top)?;
        }
        self.coverage()
    }

    /// Which blocks are shown, one sentence each.
    pub(super) fn chosen_blocks(&self) -> Vec<String> {
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
        let change = match self.recent(Subject::Heap) {
            Some(recent) => format!(
                ", {} in the last {recent}",
                self.change(Subject::Heap, change, live, 0)
            ),
            None => String::new(),
        };
        writeln!(
            self.out,
            "  still live  {}{}{change}",
            self.style.bold(amount(live, live_objects)),
            self.samples(self.snapshot.selection, sum(|site| site.live_samples), live)
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

    fn coverage(&mut self) -> io::Result<()> {
        let snapshot = self.snapshot;
        let coverage = &snapshot.coverage;
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

    fn losses(&mut self) -> String {
        let snapshot = self.snapshot;
        let losses = &snapshot.losses;
        let (lost, seen): (Vec<_>, Vec<_>) = comments::counted(losses)
            .into_iter()
            .partition(|counted| counted.is_loss);
        let words = |counted: &Counted| text::number_of(counted.count, &counted.in_short);
        let mut lost: Vec<String> = lost.iter().map(words).collect();
        for (why, blocks) in &losses.truncated {
            let blocks = text::counted(*blocks, "block", "blocks");
            lost.push(format!("{blocks} with an incomplete stack ({})", reason(*why)));
        }
        let mut text = Vec::new();
        match lost.is_empty() {
            true => text.extend(self.nothing_lost()),
            false => text.push(format!("Lost: {}.", lost.join(", "))),
        }
        if !seen.is_empty() {
            let seen: Vec<String> = seen.iter().map(words).collect();
            text.push(format!("Also seen: {}.", seen.join(", ")));
        }
        text.join(" ")
    }
}
