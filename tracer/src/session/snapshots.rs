//! What the processes hold at one moment, compared with an earlier one.

use std::time::Duration;

use memtrace_ebpf::{
    handles::classes,
    layout::{Counter, NO_SPACE},
};

use super::{Tracer, golang::Before, history::Reading, snapshot, space::Space};
use crate::{
    kernel::{KernelError, Live},
    snapshot::{GoState, Snapshot},
    text,
};

impl Tracer {
    /// Reads the books of every address space.
    pub fn snapshots(&mut self) -> Vec<Snapshot> {
        self.snapshots_of(|_| true)
    }

    /// Reads the books of the address spaces that descend from some that memtrace attached to, see [`Tracer::add`].
    pub fn snapshots_of(&mut self, is_wanted: impl Fn(u32) -> bool) -> Vec<Snapshot> {
        self.read_map_events();
        self.programs.books_mut().read_frames();
        let old_blocks = self.old_blocks();
        let spaces = std::mem::take(&mut self.spaces);
        let wanted = spaces.values().filter(|space| is_wanted(space.root));
        let snapshots = wanted.map(|space| self.snapshot(space, &old_blocks)).collect();
        self.spaces = spaces;
        snapshots
    }

    /// The live blocks by stack, if only those of some age are wanted.
    pub(super) fn old_blocks(&self) -> Result<Option<Vec<Live>>, KernelError> {
        let min_age = self.settings.selection.min_age;
        if min_age.is_zero() {
            return Ok(None);
        }
        snapshot::old_blocks(self.programs.books(), min_age).map(Some)
    }

    pub(super) fn snapshot(
        &mut self,
        space: &Space,
        old_blocks: &Result<Option<Vec<Live>>, KernelError>,
    ) -> Snapshot {
        let elapsed = self.elapsed();
        self.moment = Some(elapsed);
        let mut selection = self.settings.selection;
        let mut coverage = self.coverage_of(space);
        let old_blocks = old_blocks.as_ref().unwrap_or_else(|error| {
            selection.min_age = Duration::ZERO;
            coverage.not_covered.push(format!(
                "blocks by their age, so younger ones are shown, too: {error}"
            ));
            &None
        });
        // Earlier readings are of blocks of every age.
        let earlier = self.history.half_way(elapsed).filter(|_| old_blocks.is_none());
        let books = self.programs.books();
        let count = self.programs.stack_count();
        let (mut sites, losses, failed_calls) =
            snapshot::read(books, count, space.id, earlier, old_blocks.as_deref());
        let recent = earlier
            .filter(|reading| reading.at >= space.since)
            .map_or(Duration::ZERO, |reading| elapsed.saturating_sub(reading.at));
        let mappings = space.reader.mappings();
        for frame in sites.iter_mut().flat_map(|site| site.frames.iter_mut()) {
            *frame = mappings.place(*frame);
        }
        let common = books.counters(NO_SPACE);
        let not_followed = common.get(Counter::ProcessesFull);
        if not_followed > 0 {
            coverage.not_covered.push(format!(
                "{not_followed} processes are not traced: the table of processes was full"
            ));
        }
        let unheard = common.get(Counter::NoticesLost);
        if unheard > 0 {
            coverage.not_covered.push(format!(
                "{unheard} forks, execs or changes of mappings went unnoticed: they came too fast"
            ));
        }
        let is_past = self.dead.contains(&space.id) || space.has_ended();
        if !is_past {
            self.runtimes.discover(space, &self.settings.go);
        }
        let go = self.go_state(space, is_past);
        let (fds, fd_details) = self.fd_holdings(space, go.as_ref());
        let heap = self.settings.trace(classes::HEAP);
        // What a sample stands for is an estimate, and what is too young or too small was not asked for: blocks all the same.
        let live = heap.then(|| sites.iter().map(|site| site.live_bytes).sum());
        let maps = self.map_report(space, live);
        let (mmap, memory) = maps.map_or((None, None), |maps| (Some(maps.holdings), maps.memory));
        self.moment = None;
        Snapshot {
            space: space.id,
            process: space.info.clone(),
            origin: space.origin.clone(),
            started: space.started,
            duration: elapsed.saturating_sub(space.since),
            recent,
            sites,
            selection,
            losses,
            coverage,
            failed_calls,
            mappings,
            heap,
            fds,
            fd_details,
            mmap,
            growth: self.growths(space),
            memory,
            go,
        }
    }

    /// What the Go runtime of an address space knows; of one that is no more, what it knew at the last reading.
    fn go_state(&self, space: &Space, is_past: bool) -> Option<GoState> {
        if !is_past {
            return self.runtimes.state(space, &self.settings.go, self.before(space));
        }
        let last = self.history.last()?;
        let mut state = last.go.get(&space.id)?.state.clone();
        let before = text::duration(self.elapsed().saturating_sub(last.at));
        let end = match space.has_ended() {
            true => "has ended",
            false => "executed another program",
        };
        let note = format!("The process {end}: its Go runtime was read {before} before this profile.");
        state.notes.push(note);
        Some(state)
    }

    /// The earlier reading that changes of late refer to.
    pub(super) fn earlier(&self, space: &Space) -> Option<&Reading> {
        let reading = self.history.half_way(self.moment());
        reading.filter(|reading| reading.at >= space.since)
    }

    /// Now; while a snapshot or a reading is made, when it began: all of it is compared with the same earlier reading.
    fn moment(&self) -> Duration {
        self.moment.unwrap_or_else(|| self.elapsed())
    }

    /// The earlier readings of Go runtimes, in the same way.
    pub(super) fn before(&self, space: &Space) -> Option<Before<'_>> {
        let reading = self.earlier(space)?;
        Some(Before {
            readings: &reading.go,
            ago: self.moment().saturating_sub(reading.at),
        })
    }
}
