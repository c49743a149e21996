//! Who may still hold blocks of an address space that forked, or that is no more.

use std::collections::{HashMap, HashSet};

use memtrace_ebpf::layout::{BlockKey, FREED, GONE};

/// The address spaces that live, and their ancestors.
#[derive(Debug)]
pub struct Heirs {
    /// Those that live or have descendants that do.
    pub needed: HashSet<u32>,
    /// Parents of these.
    with_heirs: HashSet<u32>,
    parents: HashMap<u32, u32>,
}

impl Heirs {
    /// Finds the heirs among these, which live; `parents` tells which was forked from which.
    pub fn of<'a>(parents: &HashMap<u32, u32>, living: impl Iterator<Item = &'a u32>) -> Self {
        let mut heirs = Self {
            needed: HashSet::new(),
            with_heirs: HashSet::new(),
            parents: parents.clone(),
        };
        for &space in living {
            let mut next = Some(space);
            while let Some(space) = next.filter(|&space| heirs.needed.insert(space)) {
                next = parents.get(&space).copied();
                heirs.with_heirs.extend(next);
            }
        }
        heirs
    }

    /// Whether anybody may free this block, now that these address spaces are to be forgotten. An address space that has not
    /// been heard of so far may.
    pub fn may_hold(&self, key: &BlockKey, forgotten: &HashSet<u32>) -> bool {
        let space = key.space & !(GONE | FREED);
        if key.space & GONE == 0 {
            return !forgotten.contains(&space);
        }
        let parent = self.parents.get(&space);
        parent.is_none_or(|parent| self.with_heirs.contains(parent))
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockKey, GONE, HashMap, HashSet, Heirs};

    #[test]
    fn blocks_are_kept_as_long_as_somebody_may_free_them() {
        // 1 forked 2 and 3, 3 forked 4; 5 stands alone.
        let parents = HashMap::from([(2, 1), (3, 1), (4, 3)]);
        let holds = |living: &[u32], space| {
            let key = BlockKey {
                address: 0,
                space,
                _pad: 0,
            };
            let heirs = Heirs::of(&parents, living.iter());
            let forgotten = HashSet::from_iter((1..=5).filter(|space| !heirs.needed.contains(space)));
            heirs.may_hold(&key, &forgotten)
        };
        assert!(holds(&[4], 6), "one that was not heard of so far");
        assert!(holds(&[4], 1), "the grandparent's");
        assert!(holds(&[4], 3), "the parent's");
        assert!(!holds(&[4], 2), "an uncle's");
        assert!(!holds(&[4], 5), "a stranger's");
        assert!(!holds(&[1], 2), "a child's that has ended");
        assert!(
            holds(&[3], 2 | GONE),
            "what the parent freed after it forked an elder brother"
        );
        assert!(
            !holds(&[1], 3 | GONE),
            "what the parent freed, and no child is left"
        );
    }
}
