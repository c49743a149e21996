//! Disjoint ranges of addresses, each with a value.

use std::{collections::BTreeMap, ops::Range};

/// A range with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<V> {
    /// First byte.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
    /// The value.
    pub value: V,
}

impl<V> Piece<V> {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.end - self.begin
    }
}

/// A map from ranges to values, in which the newest wins: what is put over others cuts them.
#[derive(Clone, Debug)]
pub struct IntervalMap<V> {
    /// By first byte: one past the last byte, and the value.
    pieces: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        Self {
            pieces: BTreeMap::new(),
        }
    }
}

impl<V: Copy> IntervalMap<V> {
    /// Gives a range a value. What it had before goes to `removed`.
    pub fn insert(&mut self, range: Range<u64>, value: V, removed: &mut Vec<Piece<V>>) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone(), removed);
        self.pieces.insert(range.start, (range.end, value));
    }

    /// Takes what a range has, and appends it to `removed`, in no order.
    pub fn remove(&mut self, range: Range<u64>, removed: &mut Vec<Piece<V>>) {
        if range.is_empty() {
            return;
        }
        // From the back, so that each step looks at the last piece that begins in the range or before.
        while let Some((&begin, entry)) = self.pieces.range_mut(..range.end).next_back() {
            let (end, value) = *entry;
            if end <= range.start {
                return;
            }
            let cut = Piece {
                begin: begin.max(range.start),
                end: end.min(range.end),
                value,
            };
            removed.push(cut);
            if begin < range.start {
                entry.0 = range.start;
            } else {
                self.pieces.remove(&begin);
            }
            if end > range.end {
                self.pieces.insert(range.end, (end, value));
            }
            if begin <= range.start {
                return;
            }
        }
    }

    /// Gives a value to what has none of a range; tells how many bytes that was.
    pub fn fill(&mut self, range: Range<u64>, value: V) -> u64 {
        let gaps = self.gaps(range);
        for gap in &gaps {
            self.pieces.insert(gap.start, (gap.end, value));
        }
        gaps.iter().map(|gap| gap.end - gap.start).sum()
    }

    /// What has no value of a range, in ascending order.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut next = range.start;
        for piece in self.overlapping(range.clone()) {
            gaps.push(next..piece.begin);
            next = piece.end;
        }
        gaps.push(next..range.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    /// The piece that this address is in.
    pub fn get(&self, address: u64) -> Option<Piece<V>> {
        let (&begin, &(end, value)) = self.pieces.range(..=address).next_back()?;
        (address < end).then_some(Piece { begin, end, value })
    }

    /// What a range has, in ascending order, cut to the range.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = Piece<V>> {
        let first = self.get(range.start).map_or(range.start, |piece| piece.begin);
        let pieces = self.pieces.range(first..range.end.max(first));
        let cut = move |(&begin, &(end, value)): (&u64, &(u64, V))| Piece {
            begin: begin.max(range.start),
            end: end.min(range.end),
            value,
        };
        pieces.map(cut).filter(|piece| piece.begin < piece.end)
    }

    /// All pieces, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Piece<V>> {
        self.pieces
            .iter()
            .map(|(&begin, &(end, value))| Piece { begin, end, value })
    }
}

#[cfg(test)]
mod tests {
    use super::{IntervalMap, Piece};

    fn map(pieces: &[(u64, u64, char)]) -> IntervalMap<char> {
        let mut map = IntervalMap::default();
        for &(begin, end, value) in pieces {
            map.insert(begin..end, value, &mut Vec::new());
        }
        map
    }

    fn pieces(found: impl IntoIterator<Item = Piece<char>>) -> Vec<(u64, u64, char)> {
        let mut pieces: Vec<_> = found
            .into_iter()
            .map(|piece| (piece.begin, piece.end, piece.value))
            .collect();
        pieces.sort_unstable();
        pieces
    }

    #[test]
    fn the_newest_wins() {
        let mut map = map(&[(0, 10, 'a'), (10, 20, 'b'), (30, 40, 'c')]);
        let mut removed = Vec::new();
        map.insert(5..35, 'd', &mut removed);
        assert_eq!(pieces(removed), [(5, 10, 'a'), (10, 20, 'b'), (30, 35, 'c')]);
        assert_eq!(pieces(map.iter()), [(0, 5, 'a'), (5, 35, 'd'), (35, 40, 'c')]);
        map.insert(7..9, 'e', &mut Vec::new());
        assert_eq!(
            pieces(map.iter()),
            [(0, 5, 'a'), (5, 7, 'd'), (7, 9, 'e'), (9, 35, 'd'), (35, 40, 'c')]
        );
        map.insert(50..50, 'f', &mut Vec::new());
        assert_eq!(map.get(50), None);
    }

    #[test]
    fn what_is_removed_is_told() {
        let mut map = map(&[(0, 10, 'a'), (10, 20, 'b')]);
        let mut removed = Vec::new();
        map.remove(3..4, &mut removed);
        map.remove(20..90, &mut removed);
        assert_eq!(pieces(removed.clone()), [(3, 4, 'a')]);
        map.remove(0..20, &mut removed);
        assert_eq!(
            pieces(removed),
            [(0, 3, 'a'), (3, 4, 'a'), (4, 10, 'a'), (10, 20, 'b')]
        );
        assert_eq!(map.iter().count(), 0);
    }

    #[test]
    fn only_gaps_are_filled() {
        let mut map = map(&[(10, 20, 'a'), (30, 40, 'b')]);
        assert_eq!(map.gaps(0..50), [0..10, 20..30, 40..50]);
        assert_eq!(map.gaps(12..15), []);
        assert_eq!(map.fill(15..35, 'c'), 10);
        assert_eq!(pieces(map.iter()), [(10, 20, 'a'), (20, 30, 'c'), (30, 40, 'b')]);
        assert_eq!(map.fill(15..35, 'd'), 0);
    }

    #[test]
    fn pieces_are_found_by_address() {
        let map = map(&[(10, 20, 'a'), (20, 30, 'b')]);
        let at = |address| map.get(address).map(|piece| piece.value);
        assert_eq!(
            [9, 10, 19, 20, 30].map(at),
            [None, Some('a'), Some('a'), Some('b'), None]
        );
        assert_eq!(pieces(map.overlapping(15..25)), [(15, 20, 'a'), (20, 25, 'b')]);
        assert_eq!(pieces(map.overlapping(30..90)), []);
        assert_eq!(pieces(map.overlapping(5..11)), [(10, 11, 'a')]);
        assert_eq!(pieces(map.overlapping(12..12)), []);
    }
}
