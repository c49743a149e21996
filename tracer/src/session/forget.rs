//! Long runs: what is kept for processes that have ended makes room, while others go on.

use std::collections::HashSet;

use super::{Tracer, files::FileId, space::Space};
use crate::kernel::Batch;

/// How many lengths of shared memory are kept. They can be asked for again.
const SEGMENTS: usize = 1024;

impl Tracer {
    /// Forgets what nobody needs any more beside the books; to be called now and then.
    pub(super) fn forget_the_past(&mut self) {
        if self.settings.children {
            self.forget_files();
        }
        self.forget_mapped();
        if self.segments.len() > SEGMENTS {
            self.segments.clear();
        }
    }

    /// Address spaces of which something is to be told.
    fn all_spaces(&self) -> impl Iterator<Item = &Space> {
        let ending = self.ending.iter().map(|(space, _)| space);
        self.spaces.values().chain(ending)
    }

    fn forget_files(&mut self) {
        self.files.give_back_tables(self.programs.tables());
        if !self.files.are_many() {
            return;
        }
        let mut mapped: HashSet<FileId> = HashSet::new();
        let mut bound: HashSet<Batch> = HashSet::new();
        for space in self.all_spaces() {
            // Frames may be in what was unmapped.
            mapped.extend(space.reader.mappings().all.iter().map(|mapping| mapping.file_id));
            bound.extend(&space.bound);
        }
        for batch in self.files.forget_unused(&mapped, &bound) {
            self.programs.remove(batch);
        }
    }

    /// Forgets mappings of address spaces that are not known: the programs log some changes of a process that is let go of, and
    /// of one whose beginning was lost. Of one that has just begun the log may tell first, so it is given the time until the next
    /// call.
    fn forget_mapped(&mut self) {
        let known: HashSet<u32> = self.all_spaces().map(|space| space.id).collect();
        let is_known = |id: &&u32| known.contains(id) || self.dead.contains(id);
        let unknown: HashSet<u32> = self.mapped.keys().filter(|id| !is_known(id)).copied().collect();
        self.mapped
            .retain(|id, _| !(unknown.contains(id) && self.unknown.contains(id)));
        self.unknown = unknown;
    }
}
