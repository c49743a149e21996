//! Places in the code: the sites of a snapshot that look the same once they are symbolized.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use crate::{
    profile::comments,
    snapshot::{Site, Snapshot},
    symbol::{FrameMap, Line, Symbols},
};

/// The places that hold live memory, most bytes first.
#[derive(Debug)]
pub(super) struct Places<'a> {
    places: Vec<(Key, Books)>,
    /// What the numbers in a [`Key`] stand for.
    lines: Vec<&'a [Line]>,
}

/// A stack by the look of its frames: as numbers, since a process may have a million frames, but few thousand that differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    frames: Vec<u32>,
    missing: Option<String>,
    inherited: bool,
}

/// One place.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The functions, innermost first; inlined calls are functions too.
    pub(super) lines: Vec<&'a Line>,
    /// What stands for the frames that are missing.
    pub(super) missing: Option<String>,
    /// Whether this is from before the fork that made the process.
    pub(super) inherited: bool,
    /// What it holds.
    pub(super) books: Books,
}

/// The books of one or several sites.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Books {
    pub(super) live_bytes: u64,
    pub(super) live_objects: u64,
    pub(super) recent_change: i64,
    /// When blocks are sampled: how many were.
    pub(super) live_samples: u64,
    /// Sum of the blocks' ages (seconds).
    ages: f64,
}

impl Books {
    fn of(site: &Site) -> Self {
        Self {
            live_bytes: site.live_bytes,
            live_objects: site.live_objects,
            recent_change: site.recent_change,
            live_samples: site.live_samples,
            ages: site.mean_age.as_secs_f64() * site.live_objects as f64,
        }
    }

    fn add(&mut self, other: &Self) {
        self.live_bytes += other.live_bytes;
        self.live_objects += other.live_objects;
        self.recent_change = self.recent_change.saturating_add(other.recent_change);
        self.live_samples += other.live_samples;
        self.ages += other.ages;
    }

    /// Mean age of the live blocks.
    pub(super) fn mean_age(&self) -> Duration {
        Duration::try_from_secs_f64(self.ages / self.live_objects.max(1) as f64).unwrap_or_default()
    }
}

impl<'a> Places<'a> {
    /// Merges the live sites of a snapshot.
    pub(super) fn of(snapshot: &Snapshot, symbols: &'a Symbols) -> Self {
        let mut looks = Looks::default();
        let mut merged: HashMap<Key, Books> = HashMap::new();
        for site in snapshot.sites.iter().filter(|site| site.live_objects > 0) {
            let frames = site
                .frames
                .iter()
                .filter_map(|frame| looks.number(*frame, symbols))
                .collect();
            let key = Key {
                frames,
                missing: comments::missing_frames(site),
                inherited: site.inherited,
            };
            merged.entry(key).or_default().add(&Books::of(site));
        }
        let lines = looks.lines;
        let mut places: Vec<_> = merged.into_iter().collect();
        places.sort_by(|(key_a, a), (key_b, b)| {
            let most = (b.live_bytes, b.live_objects).cmp(&(a.live_bytes, a.live_objects));
            most.then_with(|| by_name(&lines, key_a, key_b))
        });
        Self { places, lines }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The first of them.
    pub(super) fn top(&self, count: usize) -> Vec<Place<'a>> {
        let place = |(key, books): &(Key, Books)| Place {
            lines: key
                .frames
                .iter()
                .flat_map(|number| self.lines[*number as usize])
                .collect(),
            missing: key.missing.clone(),
            inherited: key.inherited,
            books: *books,
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
fn by_name(lines: &[&[Line]], a: &Key, b: &Key) -> Ordering {
    let look = |number: &u32| lines[*number as usize];
    let frames = a.frames.iter().map(look).cmp(b.frames.iter().map(look));
    let a = (&a.missing, a.inherited);
    frames.then_with(|| a.cmp(&(&b.missing, b.inherited)))
}

/// Numbers frames that look the same alike.
#[derive(Default)]
struct Looks<'a> {
    by_frame: FrameMap<u32>,
    by_look: HashMap<&'a [Line], u32>,
    lines: Vec<&'a [Line]>,
}

impl<'a> Looks<'a> {
    fn number(&mut self, frame: u64, symbols: &'a Symbols) -> Option<u32> {
        if let Some(number) = self.by_frame.get(&frame) {
            return Some(*number);
        }
        let look = &*symbols.get(frame)?.lines;
        let number = *self.by_look.entry(look).or_insert_with(|| {
            self.lines.push(look);
            self.lines.len() as u32 - 1
        });
        self.by_frame.insert(frame, number);
        Some(number)
    }
}
