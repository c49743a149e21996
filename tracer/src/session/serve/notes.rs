//! What is said of what memtrace does not see of a target: who only pushes looks at no list of notes.

use std::collections::BTreeSet;

use super::say;
use crate::text::printable;

/// How many notes on a target are said.
const MOST: usize = 20;

/// What was said of a target.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<String>);

impl Told {
    /// Says a note on the target of this title, unless it was said before, or so many others were.
    pub fn say_once(&mut self, title: &str, note: &str) {
        if self.is_new(note) {
            say(&format!("{}: {}", printable(title), printable(note)));
        }
    }

    fn is_new(&mut self, note: &str) -> bool {
        self.0.len() < MOST && self.0.insert(note.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Told};

    #[test]
    fn each_note_is_said_once_and_not_too_many() {
        let mut told = Told::default();
        assert!(told.is_new("a"));
        assert!(!told.is_new("a"));
        let said = (0..100).filter(|number| told.is_new(&number.to_string()));
        assert_eq!(said.count(), MOST - 1);
    }
}
