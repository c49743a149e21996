//! Descriptors by who opened them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use memtrace_ebpf::{
    handles::{FdKind, opener},
    layout::EndReason,
};

use super::FdStack;
use crate::snapshot::{ConnectionLoops, Holder, Maker};

/// What makes two descriptors those of one holder.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key<'a> {
    maker: Maker,
    kind: FdKind,
    frames: &'a [u64],
    end: u8,
    inherited: bool,
}

/// What is counted of a stack.
#[derive(Default)]
struct Count {
    /// Opened, and not yet counted as made by a holder.
    made: u64,
    /// Open, by holder.
    open: BTreeMap<usize, u64>,
    /// In the books, and not open.
    missed: u64,
}

/// The holders as they are found.
pub struct Holders<'a> {
    stacks: HashMap<u32, &'a FdStack>,
    counts: HashMap<u32, Count>,
    indexes: HashMap<Key<'a>, usize>,
    all: Vec<Holder>,
    /// Of each holder: the sum of the ages that are known, and how many these are.
    ages: Vec<(Duration, u32)>,
    without_stack: u64,
}

impl<'a> Holders<'a> {
    /// None so far.
    pub fn new(stacks: &'a [FdStack]) -> Self {
        let made = |stack: &FdStack| Count {
            made: if stack.own { stack.opened } else { 0 },
            ..Count::default()
        };
        Self {
            stacks: stacks.iter().map(|stack| (stack.id, stack)).collect(),
            counts: stacks.iter().map(|stack| (stack.id, made(stack))).collect(),
            indexes: HashMap::new(),
            all: Vec::new(),
            ages: Vec::new(),
            without_stack: 0,
        }
    }

    /// Counts an open descriptor; its holder's index.
    pub fn hold(&mut self, stack: u32, kind: FdKind, age: Option<Duration>) -> usize {
        let (maker, of) = self.maker(stack);
        let index = self.index(maker, kind, of);
        let holder = &mut self.all[index];
        holder.held += 1;
        holder.held_objects += 1;
        let count = self.counts.entry(stack).or_default();
        *count.open.entry(index).or_default() += 1;
        match maker {
            Maker::UntracedCall | Maker::IoUring => holder.made += 1,
            // The stack made one of its own kind, and this one turned out to be of another.
            Maker::Code if of.is_some_and(|of| of.kind != kind) && count.made > 0 => {
                count.made -= 1;
                holder.made += 1;
            }
            Maker::Code | Maker::BeforeTracing | Maker::EarlierProgram => {}
        }
        if let Some(age) = age {
            let (sum, known) = &mut self.ages[index];
            *sum += age;
            *known += 1;
        }
        if maker == Maker::UntracedCall && stack != opener::UNTRACED {
            self.without_stack += 1;
        }
        index
    }

    /// Counts goroutines that wait for a descriptor of this holder.
    pub fn add_loops(&mut self, holder: usize, loops: ConnectionLoops) {
        self.all[holder].loops.add(loops);
    }

    /// Notes that a descriptor which is in the books is not open.
    pub fn miss(&mut self, stack: u32) {
        self.counts.entry(stack).or_default().missed += 1;
    }

    /// How many descriptors name a stack that is not there.
    pub fn without_stack(&self) -> u64 {
        self.without_stack
    }

    /// The holders, with their sums.
    pub fn finish(mut self, earlier: Option<&HashMap<u32, u64>>) -> Vec<Holder> {
        // In a steady order, so that equal readings give equal profiles.
        let mut stacks: Vec<&FdStack> = self.stacks.values().copied().collect();
        stacks.sort_unstable_by_key(|stack| stack.id);
        for stack in stacks {
            let made = self.counts.get(&stack.id).map_or(0, |count| count.made);
            if made > 0 {
                let index = self.index(Maker::Code, stack.kind, Some(stack));
                self.all[index].made += made;
            }
        }
        if let Some(earlier) = earlier {
            self.compare(earlier);
        }
        for (holder, (sum, known)) in self.all.iter_mut().zip(&self.ages) {
            holder.mean_age = sum.checked_div(*known).unwrap_or_default();
        }
        self.all
    }

    /// Counts what changed since an earlier reading, of which only the sum of each stack is known. Where a stack's descriptors
    /// are of several kinds, those of then are taken to have been mixed as those of now are.
    fn compare(&mut self, earlier: &HashMap<u32, u64>) {
        for (&id, count) in &self.counts {
            let of = self.stacks.get(&id).copied();
            let then = match (earlier.get(&id), of) {
                // What is not open now, unseen, was so already.
                (Some(then), _) => then.saturating_sub(count.missed),
                (None, Some(_)) => 0,
                (None, None) => continue,
            };
            let now: u64 = count.open.values().sum();
            let mut left = then;
            for (&index, &open) in &count.open {
                let share = (u128::from(then) * u128::from(open) / u128::from(now)) as u64;
                left -= share;
                self.all[index].recent_change += open as i64 - share as i64;
            }
            let most = count
                .open
                .iter()
                .max_by_key(|&(_, open)| open)
                .map(|(&index, _)| index);
            let rest = most.or_else(|| {
                let of = of?;
                self.indexes.get(&key(Maker::Code, of.kind, Some(of))).copied()
            });
            if let Some(index) = rest {
                self.all[index].recent_change -= left as i64;
            }
        }
    }

    fn maker(&self, stack: u32) -> (Maker, Option<&'a FdStack>) {
        match stack {
            opener::BEFORE => (Maker::BeforeTracing, None),
            opener::EARLIER_PROGRAM => (Maker::EarlierProgram, None),
            opener::IO_URING => (Maker::IoUring, None),
            _ => match self.stacks.get(&stack) {
                Some(&stack) => (Maker::Code, Some(stack)),
                None => (Maker::UntracedCall, None),
            },
        }
    }

    fn index(&mut self, maker: Maker, kind: FdKind, stack: Option<&'a FdStack>) -> usize {
        *self.indexes.entry(key(maker, kind, stack)).or_insert_with(|| {
            self.all.push(Holder {
                kind: kind.name(),
                maker,
                frames: stack.map(|stack| stack.frames.clone()).unwrap_or_default(),
                end: stack.map_or(EndReason::Complete, |stack| stack.end),
                inherited: stack.is_some_and(|stack| !stack.own),
                cached: false,
                made: 0,
                held: 0,
                held_objects: 0,
                resident: 0,
                mean_age: Duration::ZERO,
                recent_change: 0,
                loops: ConnectionLoops::default(),
            });
            self.ages.push((Duration::ZERO, 0));
            self.all.len() - 1
        })
    }
}

fn key(maker: Maker, kind: FdKind, stack: Option<&FdStack>) -> Key<'_> {
    Key {
        maker,
        kind,
        frames: stack.map(|stack| stack.frames.as_slice()).unwrap_or_default(),
        end: stack.map_or(EndReason::Complete, |stack| stack.end) as u8,
        inherited: stack.is_some_and(|stack| !stack.own),
    }
}
