//! The books compared with what the kernel says is mapped.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::{
    IntervalMap, MappedBooks, Missed, Piece,
    instances::{Account, Held, Owner, Slot},
    seed::{owner, vma_kind},
};
use crate::target::{Residency, Vma};

/// What an account has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Bytes that are mapped.
    pub held: u64,
    /// How many mappings that is.
    pub objects: u64,
    /// Bytes that are in memory.
    pub resident: u64,
    /// When these were mapped, added up, of those of which that is known (`CLOCK_MONOTONIC`, nanoseconds).
    pub born_sum: u128,
    /// How many that are.
    pub timed: u64,
}

/// Everything that is mapped at one moment, by whose it is.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// By account.
    pub accounts: HashMap<Account, Balance>,
    /// What is mapped, in ascending order; none if the process could not be asked.
    pub(super) areas: Vec<Area>,
    /// Of [`Balance::resident`], the bytes that are the heap of a Go runtime.
    pub(super) go_heap: HashMap<Account, u64>,
    /// What the books alone say, for comparison with earlier ones.
    pub(super) held: Held,
    /// See [`MappedBooks`].
    pub(super) moved: HashMap<u32, [u64; 4]>,
    /// As above.
    pub(super) unbooked: HashMap<u32, u64>,
    pub(super) missed: Missed,
    /// Whether some of [`Balance::resident`] are estimates.
    pub(super) estimated: bool,
    /// Bytes that are swapped out.
    pub(super) swap: u64,
    /// Instances that were counted.
    counted: HashSet<Slot>,
}

/// Neighbouring memory of one account.
#[derive(Clone, Debug)]
pub(super) struct Area {
    /// Where it is.
    pub range: Range<u64>,
    /// Whose it is.
    pub account: Account,
    /// Bytes of it that are in memory.
    pub resident: u64,
}

/// A part of an area.
struct Part {
    range: Range<u64>,
    account: Account,
    slot: Option<Slot>,
}

impl MappedBooks {
    /// Compares the books with the areas that are mapped; without areas, when the process has ended, the books are all there is.
    ///
    /// An interval that is not mapped any more is dropped and counted as missed. What the log says of changes since
    /// [`MappedBooks::begin_reading`] counts more than the areas, so the log must have been replayed to a moment after
    /// they were read. `resident` tells how much is in memory of ranges of an area; it is asked only if an area belongs to several owners.
    pub fn survey(
        &mut self,
        vmas: Option<&[Vma]>,
        resident: &mut dyn FnMut(&Vma, &[Range<u64>]) -> Residency,
    ) -> Survey {
        self.seed(vmas.unwrap_or_default(), &[]);
        let changed = self.reading.take().map(|reading| reading.changed);
        let changed = changed.unwrap_or_default();
        let mut survey = Survey::default();
        if let Some(vmas) = vmas {
            for vma in vmas {
                self.extend_down(vma, &changed);
                let parts = self.parts(vma, &changed);
                survey.read(vma, &parts, resident);
                survey.swap += vma.swap;
                for part in &parts {
                    self.count(&mut survey, part);
                }
            }
            self.survey_rest(vmas, &changed, &mut survey);
        } else {
            for piece in self.map.iter() {
                self.count_piece(&mut survey, piece);
            }
        }
        survey.held = self.held();
        survey.moved.clone_from(&self.moved);
        survey.unbooked.clone_from(&self.unbooked);
        survey.missed = self.missed;
        survey
    }

    /// What a mapping with `MAP_GROWSDOWN` grew by when it was touched belongs to it. No call tells of it.
    fn extend_down(&mut self, vma: &Vma, changed: &IntervalMap<()>) {
        let first = self.map.overlapping(vma.begin..vma.end).next();
        let Some(first) = first.filter(|_| vma.grows_down) else {
            return;
        };
        let gap = vma.begin..first.begin;
        let is_new = changed.overlapping(gap.clone()).next().is_some();
        let Some(instance) = self
            .instances
            .get(first.value)
            .filter(|instance| instance.grows_down)
        else {
            return;
        };
        if gap.is_empty() || is_new {
            return;
        }
        let owner = instance.account.owner;
        let bytes = self.map.fill(gap, first.value);
        self.instances.change(first.value, bytes as i64, 0);
        if let Owner::Stack(stack) = owner {
            self.add_made(stack, bytes);
        }
    }

    /// Whose an area is, part by part.
    fn parts(&self, vma: &Vma, changed: &IntervalMap<()>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut next = vma.begin;
        for piece in self.map.overlapping(vma.begin..vma.end) {
            let Some(instance) = self.instances.get(piece.value) else {
                continue;
            };
            let gap = next..piece.begin;
            let part = |range| Part {
                range,
                account: instance.account,
                slot: Some(piece.value),
            };
            unowned(vma, gap, changed, &mut parts);
            parts.push(part(piece.begin..piece.end));
            next = piece.end;
        }
        unowned(vma, next..vma.end, changed, &mut parts);
        parts
    }

    /// Drops what is mapped nowhere, unless that was mapped since the areas were read.
    fn survey_rest(&mut self, vmas: &[Vma], changed: &IntervalMap<()>, survey: &mut Survey) {
        let ends = std::iter::once(0).chain(vmas.iter().map(|vma| vma.end));
        let begins = vmas.iter().map(|vma| vma.begin).chain([u64::MAX]);
        let mut gone = Vec::new();
        for (begin, end) in ends.zip(begins) {
            for piece in self.map.overlapping(begin..end.max(begin)) {
                gone.extend(changed.gaps(piece.begin..piece.end));
                for new in changed.overlapping(piece.begin..piece.end) {
                    let new = Piece {
                        begin: new.begin,
                        end: new.end,
                        value: piece.value,
                    };
                    self.count_piece(survey, new);
                }
            }
        }
        let mut removed = Vec::new();
        for range in gone {
            self.map.remove(range, &mut removed);
        }
        for piece in removed {
            self.missed.pieces += 1;
            self.missed.bytes += piece.length();
            self.instances.change(piece.value, -(piece.length() as i64), 0);
        }
    }

    fn count_piece(&self, survey: &mut Survey, piece: Piece<Slot>) {
        if let Some(instance) = self.instances.get(piece.value) {
            let part = Part {
                range: piece.begin..piece.end,
                account: instance.account,
                slot: Some(piece.value),
            };
            self.count(survey, &part);
        }
    }

    fn count(&self, survey: &mut Survey, part: &Part) {
        let balance = survey.accounts.entry(part.account).or_default();
        balance.held += part.range.end - part.range.start;
        if part.slot.is_some_and(|slot| !survey.counted.insert(slot)) {
            return;
        }
        balance.objects += 1;
        let instance = part.slot.and_then(|slot| self.instances.get(slot));
        if let Some(instance) = instance.filter(|instance| instance.born != 0) {
            balance.born_sum += u128::from(instance.born);
            balance.timed += 1;
        }
    }
}

impl Survey {
    /// The ranges that are mapped, in ascending order and disjoint: neighbours of one owner are one.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.areas.iter().map(|area| area.range.clone()).collect()
    }

    /// Counts what is in memory of an area.
    fn read(
        &mut self,
        vma: &Vma,
        parts: &[Part],
        resident: &mut dyn FnMut(&Vma, &[Range<u64>]) -> Residency,
    ) {
        // Neighbours that are counted together are read together.
        let together = parts.chunk_by(|a, b| a.account == b.account);
        let (accounts, ranges): (Vec<Account>, Vec<Range<u64>>) = together
            .filter_map(|group| {
                let (first, last) = (group.first()?, group.last()?);
                Some((first.account, first.range.start..last.range.end))
            })
            .unzip();
        let bytes = match (vma.rss, accounts.as_slice()) {
            (0, accounts) => vec![0; accounts.len()],
            (rss, [_]) => vec![rss],
            _ => {
                let residency = resident(vma, &ranges);
                self.estimated |= residency.estimated;
                residency.bytes
            }
        };
        for ((account, range), resident) in accounts.into_iter().zip(ranges).zip(bytes) {
            self.accounts.entry(account).or_default().resident += resident;
            self.areas.push(Area {
                range,
                account,
                resident,
            });
            if vma.is_go_heap {
                *self.go_heap.entry(account).or_default() += resident;
            }
        }
    }
}

/// What no interval covers of an area.
fn unowned(vma: &Vma, range: Range<u64>, changed: &IntervalMap<()>, parts: &mut Vec<Part>) {
    let part = |range: Range<u64>, owner| Part {
        range,
        account: Account::of(owner, vma_kind(vma)),
        slot: None,
    };
    if range.is_empty() {
        return;
    }
    if let Some(owner) = owner(vma) {
        parts.push(part(range, owner));
        return;
    }
    let mut next = range.start;
    for piece in changed.overlapping(range.clone()) {
        parts.extend((next < piece.begin).then(|| part(next..piece.begin, Owner::Untraced)));
        parts.push(part(piece.begin..piece.end, Owner::Unmapped));
        next = piece.end;
    }
    parts.extend((next < range.end).then(|| part(next..range.end, Owner::Untraced)));
}
