//! New memory, by who touched it first.

use std::collections::HashMap;

use memtrace_ebpf::{
    handles::{Class, GrowthKind, classes},
    layout::{Counter, EndReason},
};

use procfs::process::MMapPath;

use super::{Tracer, space::Space, tracer::TOUCH_DISTANCE};
use crate::{
    kernel::Programs,
    snapshot::{Growth, Growths},
};

/// Bytes in a page.
const PAGE: u64 = 4096;

impl Tracer {
    /// Tells the programs where the heap of each address space ends. To be called before anything is recorded.
    pub(super) fn note_breaks(&mut self) {
        if !self.settings.trace(classes::GROWTH) {
            return;
        }
        for space in self.spaces.values_mut() {
            note_break(&mut self.programs, space);
        }
    }

    /// The same for one that tracing begins with later.
    pub(super) fn note_break(&mut self, space: &mut Space) {
        if self.settings.trace(classes::GROWTH) {
            note_break(&mut self.programs, space);
        }
    }

    /// What an address space grew by.
    pub(super) fn growths(&self, space: &Space) -> Option<Growths> {
        if !self.settings.trace(classes::GROWTH) {
            return None;
        }
        let books = self.programs.books();
        let mut sites: HashMap<(Vec<u64>, u8), Growth> = HashMap::new();
        for stack in books.used_stacks(self.programs.stack_count(), space.id, Class::Growth) {
            let site = sites
                .entry((stack.frames.clone(), stack.end as u8))
                .or_insert_with(|| empty(stack.frames, stack.end));
            match GrowthKind::from_u8(stack.books.kind) {
                GrowthKind::Touched => {
                    site.touched += stack.books.alloc_bytes;
                    site.samples += stack.books.alloc_objects;
                }
                GrowthKind::Brk => site.brk += stack.books.alloc_bytes,
                GrowthKind::Mapped => site.mapped += stack.books.alloc_bytes,
            }
        }
        let lost = books.counters(space.id).get(Counter::TouchesLost);
        let process = space.process.as_deref().filter(|process| !process.has_ended());
        let now = process.and_then(|process| process.resident().ok());
        Some(Growths {
            sites: sites.into_values().collect(),
            sample_bytes: PAGE * u64::from(TOUCH_DISTANCE),
            resident: space.resident.zip(now),
            losses: match lost {
                0 => Vec::new(),
                lost => vec![(lost, "touched pages recorded without their stack".into())],
            },
            notes: Vec::new(),
        })
    }
}

/// Notes where the heap of an address space ends, and how much of the process is resident.
fn note_break(programs: &mut Programs, space: &mut Space) {
    let Some(process) = &space.process else { return };
    let maps = process.memory_maps().unwrap_or_default();
    if let Some(heap) = maps.iter().find(|map| map.pathname == MMapPath::Heap) {
        programs.set_break(space.id, heap.address.1);
    }
    space.resident = process.resident().ok();
}

fn empty(frames: Vec<u64>, end: EndReason) -> Growth {
    Growth {
        frames,
        end,
        touched: 0,
        brk: 0,
        mapped: 0,
        samples: 0,
    }
}
