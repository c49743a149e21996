//! Which parts of a table are free.

use std::{collections::BTreeMap, ops::Range};

/// The free ranges of a table: begin to length.
#[derive(Debug)]
pub(super) struct Ranges {
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    /// A table of this length, all of it free.
    pub(super) fn new(len: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, len)]),
        }
    }

    /// Takes the first range that is long enough.
    pub(super) fn take(&mut self, len: u32) -> Option<Range<u32>> {
        if len == 0 {
            return Some(0..0);
        }
        let (&begin, &room) = self.free.iter().find(|&(_, &room)| room >= len)?;
        self.free.remove(&begin);
        if room > len {
            self.free.insert(begin + len, room - len);
        }
        Some(begin..begin + len)
    }

    /// Gives a range back.
    pub(super) fn give_back(&mut self, range: Range<u32>) {
        let Range { mut start, mut end } = range;
        if start == end {
            return;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        if let Some((&before, &len)) = self
            .free
            .range(..start)
            .next_back()
            .filter(|&(&b, &len)| b + len == start)
        {
            self.free.remove(&before);
            start -= len;
        }
        self.free.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    #[test]
    fn what_is_given_back_is_used_again() {
        let mut ranges = Ranges::new(100);
        let taken: Vec<_> = (0..10).filter_map(|_| ranges.take(10)).collect();
        assert_eq!((taken.len(), ranges.take(1)), (10, None));
        ranges.give_back(taken[3].clone());
        ranges.give_back(taken[5].clone());
        assert_eq!(ranges.take(11), None, "two holes are not one");
        ranges.give_back(taken[4].clone());
        assert_eq!(ranges.take(30), Some(30..60), "three neighbours are");
        ranges.give_back(30..60);
        for range in taken.into_iter().enumerate().filter(|(i, _)| !(3..6).contains(i)) {
            ranges.give_back(range.1);
        }
        assert_eq!(ranges.take(100), Some(0..100));
    }
}
