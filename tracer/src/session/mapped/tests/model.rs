//! Random events, against a model that keeps an entry for each page.

use std::collections::HashMap;

use memtrace_ebpf::handles::{MapEvent, MapEventKind, MappingKind};

use super::{
    super::{MappedBooks, Owner},
    PAGE, area, ended, event, mapped, owners, started, undone,
};
use crate::target::Vma;

/// Pages of the address space.
const PAGES: u64 = 48;

/// A generator of numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What one call mapped.
#[derive(Clone)]
struct Made {
    owner: Owner,
    kind: MappingKind,
    user: u32,
    cached: bool,
}

/// An address space, page by page.
#[derive(Clone, Default)]
struct Model {
    made: Vec<Made>,
    pages: Vec<Option<usize>>,
    leaving: HashMap<u32, Vec<(usize, usize)>>,
    users: HashMap<u32, usize>,
}

impl Model {
    fn new() -> Self {
        Self {
            pages: vec![None; PAGES as usize],
            ..Self::default()
        }
    }

    fn apply(&mut self, event: &MapEvent) {
        let first = (event.begin / PAGE) as usize;
        let range = first..first + (event.length / PAGE) as usize;
        let leaving = self.leaving.remove(&event.thread).unwrap_or_default();
        match event.kind {
            kind if kind == MapEventKind::Mapped as u32 => {
                self.made.push(Made {
                    owner: Owner::Stack(event.stack),
                    kind: MappingKind::from_u8(event.mapping),
                    user: 0,
                    cached: false,
                });
                self.pages[range].fill(Some(self.made.len() - 1));
            }
            kind if kind == MapEventKind::Unmapping as u32 => {
                let taken = range.filter_map(|page| Some((page, self.pages[page].take()?)));
                let taken = taken.collect();
                self.leaving.insert(event.thread, taken);
            }
            kind if kind == MapEventKind::Undone as u32 => {
                for (page, made) in leaving {
                    self.pages[page].get_or_insert(made);
                }
            }
            kind if kind == MapEventKind::ThreadStarted as u32 => self.start(event, first),
            _ => {
                if let Some(made) = self.users.remove(&event.thread)
                    && self.made[made].user == event.thread
                {
                    self.made[made].user = 0;
                    self.made[made].cached = true;
                }
            }
        }
    }

    fn start(&mut self, event: &MapEvent, pointer: usize) {
        let made = pointer.checked_sub(1).and_then(|page| self.pages[page]);
        let made = made.filter(|&made| self.made[made].kind == MappingKind::Stack);
        if let Some(index) = made {
            let made = &mut self.made[index];
            (made.owner, made.user, made.cached) = (Owner::Stack(event.stack), event.thread, false);
            self.users.insert(event.thread, index);
        }
    }

    fn fork(&self, thread: u32) -> Self {
        let mut child = self.clone();
        for made in &mut child.made {
            made.cached |= made.user != 0 && made.user != thread;
            made.user = 0;
        }
        child.leaving.clear();
        child.users.clear();
        child
    }

    /// The books must say the same.
    fn check(&self, books: &MappedBooks) {
        let mut held: HashMap<u32, u64> = HashMap::new();
        for (page, made) in (0..).zip(&self.pages) {
            let piece = books.map.get(page * PAGE);
            let found = piece.and_then(|piece| books.instances.get(piece.value));
            let found = found.map(|found| (found.account.owner, found.account.kind, found.account.cached));
            let made = made.map(|made| &self.made[made]);
            assert_eq!(
                found,
                made.map(|made| (made.owner, made.kind, made.cached)),
                "page {page}"
            );
            if let Some(Made {
                owner: Owner::Stack(stack),
                ..
            }) = made
            {
                *held.entry(*stack).or_default() += PAGE;
            }
        }
        let mut found = books.held_by_stack();
        found.retain(|_, bytes| *bytes > 0);
        assert_eq!(found, held);
    }
}

/// A random event; each has a stack of its own.
fn random_event(random: &mut Random, stack: u32, kinds: u64) -> MapEvent {
    let first = random.below(PAGES);
    let last = first + 1 + random.below((PAGES - first).min(12));
    let thread = 1 + random.below(5) as u32;
    let mapping = [MappingKind::Stack, MappingKind::Shared][random.below(2) as usize];
    let event = match random.below(kinds) {
        0..=3 => mapped(stack, mapping, first..last),
        4..=6 => event(MapEventKind::Unmapping, first..last),
        7..=8 => undone(thread),
        9..=10 => started(thread, stack, first),
        _ => ended(thread),
    };
    MapEvent {
        thread,
        stack,
        ..event
    }
}

#[test]
fn books_are_right_for_every_page() {
    for seed in 1..40 {
        let mut random = Random::new(seed);
        let (mut model, mut books) = (Model::new(), super::books(&[], &[]));
        let mut others = Vec::new();
        let mut time = 0;
        for stack in 0..400 {
            // Ends are not remembered for threads that begin so much later.
            time += 2_000_000_000;
            let event = MapEvent {
                time,
                ..random_event(&mut random, stack, 13)
            };
            model.apply(&event);
            books.apply(&event);
            model.check(&books);
            if random.below(60) == 0 {
                let thread = 1 + random.below(5) as u32;
                let forked = (model.fork(thread), books.fork(thread));
                forked.0.check(&forked.1);
                if random.below(2) == 0 {
                    others.push((model, books));
                    (model, books) = forked;
                } else {
                    others.push(forked);
                }
            }
        }
        for (model, books) in others {
            model.check(&books);
        }
        books.apply(&event(MapEventKind::Unmapping, 0..PAGES));
        for thread in 1..6 {
            books.apply(&undone(100));
            books.apply(&ended(thread));
        }
        assert_eq!(books.instances.iter().count(), 0, "nothing is left over");
    }
}

/// The areas of a model.
fn areas(model: &Model) -> Vec<Vma> {
    let pages = (0..).zip(&model.pages);
    pages
        .filter(|(_, made)| made.is_some())
        .map(|(page, _)| area(page..page + 1))
        .collect()
}

/// Wherever the areas are read in a row of events, and handed over, the end is the same.
#[test]
fn the_moment_of_the_reading_does_not_matter() {
    for seed in 1..200 {
        let mut random = Random::new(seed);
        let mut model = Model::new();
        for _ in 0..10 {
            model.apply(&random_event(&mut random, 0, 7));
        }
        for made in &mut model.made {
            (made.owner, made.kind) = (Owner::Before, MappingKind::Anon);
        }
        model.leaving.clear();
        let events: Vec<MapEvent> = (1..30).map(|stack| random_event(&mut random, stack, 7)).collect();
        let (read_at, handed_at) = (random.below(30) as usize, random.below(30) as usize);
        let mut books = MappedBooks::new();
        let mut states = Vec::new();
        for event in &events {
            states.push(areas(&model));
            model.apply(event);
        }
        states.push(areas(&model));
        let read = &states[read_at];
        for (index, event) in events.iter().enumerate() {
            if index == handed_at {
                books.seed(read, &[]);
            }
            books.apply(event);
        }
        books.seed(read, &[]);
        model.check(&books);
        assert!(owners(&books).is_sorted_by_key(|(range, _)| range.start));
    }
}
