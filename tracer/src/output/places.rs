//! Places in the code: the sites of a snapshot that look the same once they are symbolized.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{c_library::CLibrary, frames::Stack};
use crate::{
    profile::{
        stacks::{innermost_frames, missing_frames, missing_of},
        subject::Subject,
    },
    snapshot::{ConnectionLoops, GoroutineGroup, Growth, Holder, Site, ThreadGroup},
    symbol::{FrameMap, Line, Symbols},
};

/// One code path of a snapshot and what it holds: what places are made of.
#[derive(Debug)]
pub(super) struct Entry<'e> {
    frames: &'e [u64],
    inner: Vec<String>,
    missing: Option<String>,
    inherited: bool,
    books: Books,
}

impl<'e> Entry<'e> {
    /// Blocks.
    pub(super) fn of_site(site: &'e Site) -> Self {
        Self {
            frames: &site.frames,
            inner: Vec::new(),
            missing: missing_frames(&site.frames, site.end),
            inherited: site.inherited,
            books: Books::of_site(site),
        }
    }

    /// Descriptors or mappings.
    pub(super) fn of_holder(holder: &'e Holder, subject: Subject) -> Self {
        Self {
            frames: &holder.frames,
            inner: innermost_frames(holder, subject.made()),
            missing: missing_of(holder),
            inherited: holder.inherited,
            books: Books::of_holder(holder),
        }
    }

    /// Goroutines.
    pub(super) fn of_goroutines(group: &'e GoroutineGroup) -> Self {
        Self {
            frames: &group.frames,
            inner: group.innermost_frame().into_iter().collect(),
            missing: None,
            inherited: false,
            books: Books::of_count(group.wait, group.count, group.recent_change),
        }
    }

    /// Threads of a Go runtime.
    pub(super) fn of_threads(group: &'e ThreadGroup) -> Self {
        Self {
            frames: &group.frames,
            inner: group.innermost_frame().into_iter().collect(),
            missing: None,
            inherited: false,
            books: Books::of_count(group.hold, group.count, group.recent_change),
        }
    }

    /// New memory.
    pub(super) fn of_growth(site: &'e Growth) -> Self {
        Self {
            frames: &site.frames,
            inner: Vec::new(),
            missing: missing_frames(&site.frames, site.end),
            inherited: false,
            books: Books::of_growth(site),
        }
    }
}

/// Places, those that hold most first.
#[derive(Debug)]
pub(super) struct Places<'a> {
    places: Vec<(Key, Books)>,
    /// What the numbers in a [`Key`] stand for.
    looks: Vec<Look<'a>>,
}

/// A stack by the look of its frames: as numbers, since a process may have a million frames, but few thousand that differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    frames: Vec<u32>,
    inner: Vec<String>,
    missing: Option<String>,
    inherited: bool,
}

/// One place.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// What stands before the functions for what is not code.
    pub(super) inner: Vec<String>,
    /// The functions, innermost first; inlined calls are functions too.
    pub(super) lines: Vec<&'a Line>,
    /// As [`Stack::wrappers`].
    wrappers: usize,
    /// What stands for the frames that are missing.
    pub(super) missing: Option<String>,
    /// Whether this is from before the fork that made the process.
    pub(super) inherited: bool,
    /// What it holds.
    pub(super) books: Books,
}

impl<'a> Place<'a> {
    /// Its functions, to choose from.
    pub(super) fn stack(&self) -> Stack<'_, 'a> {
        Stack {
            lines: &self.lines,
            wrappers: self.wrappers,
        }
    }
}

/// The books of one or several code paths.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    /// What the place is ranked by: bytes, or descriptors.
    pub(super) amount: u64,
    /// How many blocks, descriptors or mappings that is.
    pub(super) objects: u64,
    /// Of mapped bytes: how many are in memory.
    pub(super) resident: u64,
    /// Of descriptors and mappings the amounts by kind, of new memory what the kernel was asked for, by how.
    pub(super) kinds: BTreeMap<&'static str, u64>,
    /// By how much the amount changed of late.
    pub(super) recent_change: i64,
    /// When not everything is recorded: how many samples were.
    pub(super) samples: u64,
    /// Goroutines that wait for descriptors which are connections of Go's `net/http`.
    pub(super) loops: ConnectionLoops,
    /// Sum of the ages (seconds) of those whose age is known.
    ages: f64,
    /// How many these are.
    aged: u64,
}

impl Books {
    fn of_count(kind: &'static str, count: u64, recent_change: i64) -> Self {
        Self {
            amount: count,
            objects: count,
            kinds: BTreeMap::from([(kind, count)]),
            recent_change,
            ..Self::default()
        }
    }

    fn of_site(site: &Site) -> Self {
        // What a Go runtime samples has no age.
        let aged = match site.mean_age.is_zero() {
            true => 0,
            false => site.live_objects,
        };
        Self {
            amount: site.live_bytes,
            objects: site.live_objects,
            recent_change: site.recent_change,
            samples: site.live_samples,
            ages: site.mean_age.as_secs_f64() * site.live_objects as f64,
            aged,
            ..Self::default()
        }
    }

    fn of_holder(holder: &Holder) -> Self {
        let aged = match holder.mean_age.is_zero() {
            true => 0,
            false => holder.held_objects,
        };
        Self {
            amount: holder.held,
            objects: holder.held_objects,
            resident: holder.resident,
            kinds: BTreeMap::from([(holder.kind, holder.held)]),
            recent_change: holder.recent_change,
            loops: holder.loops,
            ages: holder.mean_age.as_secs_f64() * aged as f64,
            aged,
            ..Self::default()
        }
    }

    fn of_growth(site: &Growth) -> Self {
        let asked = [("by brk", site.brk), ("by mmap", site.mapped)];
        Self {
            amount: site.touched,
            objects: site.brk.saturating_add(site.mapped),
            kinds: asked.into_iter().filter(|(_, bytes)| *bytes > 0).collect(),
            samples: site.samples,
            ..Self::default()
        }
    }

    /// Adds what others hold.
    pub(super) fn add(&mut self, other: &Self) {
        self.amount += other.amount;
        self.objects += other.objects;
        self.resident += other.resident;
        for (kind, amount) in &other.kinds {
            *self.kinds.entry(kind).or_default() += amount;
        }
        self.recent_change = self.recent_change.saturating_add(other.recent_change);
        self.samples += other.samples;
        self.loops.add(other.loops);
        self.ages += other.ages;
        self.aged += other.aged;
    }

    /// Mean age of what is held, as far as it is known.
    pub(super) fn mean_age(&self) -> Option<Duration> {
        let mean = || Duration::try_from_secs_f64(self.ages / self.aged as f64).unwrap_or_default();
        (self.aged > 0).then(mean)
    }

    /// The amounts by kind, the largest first.
    pub(super) fn by_kind(&self) -> Vec<(&'static str, u64)> {
        let mut kinds: Vec<_> = self.kinds.iter().map(|(kind, amount)| (*kind, *amount)).collect();
        kinds.sort_by_key(|(_, amount)| std::cmp::Reverse(*amount));
        kinds
    }
}

impl<'a> Places<'a> {
    /// Merges what looks the same and holds something.
    pub(super) fn of<'e>(
        entries: impl Iterator<Item = Entry<'e>>,
        symbols: &'a Symbols,
        wrappers: &CLibrary,
    ) -> Self {
        let mut looks = Looks::default();
        let mut merged: HashMap<Key, Books> = HashMap::new();
        for entry in entries.filter(|entry| entry.books.amount > 0 || entry.books.objects > 0) {
            let frames = entry.frames.iter();
            let key = Key {
                frames: frames
                    .filter_map(|frame| looks.number(*frame, symbols, wrappers))
                    .collect(),
                inner: entry.inner,
                missing: entry.missing,
                inherited: entry.inherited,
            };
            merged.entry(key).or_default().add(&entry.books);
        }
        let looks = looks.looks;
        let mut places: Vec<_> = merged.into_iter().collect();
        places.sort_by(|(key_a, a), (key_b, b)| {
            let most = (b.amount, b.objects).cmp(&(a.amount, a.objects));
            most.then_with(|| by_name(&looks, key_a, key_b))
        });
        Self { places, looks }
    }

    /// Takes out the places of new memory that asked the kernel for some and were not seen to touch any, those that asked for
    /// most first. What was asked for by a function that also touched, in the same call of it, is added to what it touched.
    pub(super) fn take_askers(&mut self) -> Self {
        let (mut touching, askers): (Vec<_>, Vec<_>) = std::mem::take(&mut self.places)
            .into_iter()
            .partition(|(_, books)| books.amount > 0);
        let mut by_call: HashMap<Call<'_>, usize> = HashMap::new();
        for (index, (key, _)) in touching.iter().enumerate() {
            if let Some(call) = call_of(&self.looks, key) {
                by_call.entry(call).or_insert(index);
            }
        }
        let places: Vec<usize> = askers
            .iter()
            .map(|(key, _)| call_of(&self.looks, key).and_then(|call| by_call.get(&call).copied()))
            .map(|place| place.unwrap_or(usize::MAX))
            .collect();
        let mut others = Vec::new();
        for ((key, books), place) in askers.into_iter().zip(places) {
            match touching.get_mut(place) {
                Some((_, touched)) => touched.add(&books),
                None => others.push((key, books)),
            }
        }
        self.places = touching;
        Self {
            places: others,
            looks: self.looks.clone(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The first of them.
    pub(super) fn top(&self, count: usize) -> Vec<Place<'a>> {
        let place = |(key, books): &(Key, Books)| {
            let looks = || key.frames.iter().map(|number| &self.looks[*number as usize]);
            let wrappers = looks().take_while(|look| look.is_wrapper);
            Place {
                inner: key.inner.clone(),
                lines: looks().flat_map(|look| look.lines).collect(),
                wrappers: wrappers.map(|look| look.lines.len()).sum(),
                missing: key.missing.clone(),
                inherited: key.inherited,
                books: books.clone(),
            }
        };
        self.places.iter().take(count).map(place).collect()
    }

    /// The books of all but the first.
    pub(super) fn beyond(&self, count: usize) -> Books {
        let mut sum = Books::default();
        self.places
            .iter()
            .skip(count)
            .for_each(|(_, books)| sum.add(books));
        sum
    }
}

/// A stable order of places that hold the same.
fn by_name(looks: &[Look<'_>], a: &Key, b: &Key) -> Ordering {
    let look = |number: &u32| looks[*number as usize].lines;
    let frames = a.frames.iter().map(look).cmp(b.frames.iter().map(look));
    let a = (&a.inner, &a.missing, a.inherited);
    frames.then_with(|| a.cmp(&(&b.inner, &b.missing, b.inherited)))
}

/// A call of a function, whatever it was doing: its names, those of what is inlined first, and the frames of its callers.
type Call<'k> = (Vec<&'k str>, &'k [u32]);

/// The call that went through the C library's wrappers, if any, to the kernel.
fn call_of<'k>(looks: &[Look<'k>], key: &'k Key) -> Option<Call<'k>> {
    let wrappers = key.frames.iter();
    let wrappers = wrappers.take_while(|number| looks[**number as usize].is_wrapper);
    let (first, callers) = key.frames.get(wrappers.count()..)?.split_first()?;
    let lines = looks[*first as usize].lines.iter();
    Some((lines.map(|line| &*line.function).collect(), callers))
}

/// How a frame looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Look<'a> {
    lines: &'a [Line],
    /// Whether it is code of the C library.
    is_wrapper: bool,
}

/// Numbers frames that look the same alike.
#[derive(Default)]
struct Looks<'a> {
    by_frame: FrameMap<u32>,
    by_look: HashMap<Look<'a>, u32>,
    looks: Vec<Look<'a>>,
}

impl<'a> Looks<'a> {
    fn number(&mut self, frame: u64, symbols: &'a Symbols, wrappers: &CLibrary) -> Option<u32> {
        if let Some(number) = self.by_frame.get(&frame) {
            return Some(*number);
        }
        let code = symbols.get(frame)?;
        let look = Look {
            lines: &code.lines,
            is_wrapper: wrappers.holds(code),
        };
        let number = *self.by_look.entry(look).or_insert_with(|| {
            self.looks.push(look);
            self.looks.len() as u32 - 1
        });
        self.by_frame.insert(frame, number);
        Some(number)
    }
}
