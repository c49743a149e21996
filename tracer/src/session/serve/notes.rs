//! What is said of what memtrace does not see of a target: who only pushes looks at no list of notes.

use std::collections::BTreeSet;

use super::say;
use crate::text::printable;

/// How many notes on a target are said.
const MOST: usize = 20;

/// What was said of a target, so that each thing is said once.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<String>);

impl Told {
    /// Says what of a target's code is not covered.
    pub fn not_covered(&mut self, title: &str, note: &str) {
        if self.is_new(note) {
            say(&format!("{}: not covered: {}", printable(title), printable(note)));
        }
    }

    /// Says what a target's Go runtime does not show. Notes that differ in a time or an amount say the same.
    pub fn not_shown(&mut self, title: &str, note: &str) {
        if self.is_new(words(note)) {
            say(&format!("{}: {}", printable(title), printable(note)));
        }
    }

    fn is_new(&mut self, kind: &str) -> bool {
        self.0.len() < MOST && self.0.insert(kind.to_owned())
    }
}

/// The words of a note that no number is before, or else those behind its first number.
fn words(note: &str) -> &str {
    let mut parts = note.split(|c: char| c.is_ascii_digit());
    parts.find(|part| !part.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{MOST, Told, words};

    #[test]
    fn amounts_make_no_new_note() {
        assert_eq!(words("none in the last 5.2 s; 3 MiB more"), "none in the last ");
        assert_eq!(words("17 goroutines changed"), " goroutines changed");
        assert_eq!(words("12"), "");
    }

    #[test]
    fn each_thing_is_said_once_and_not_too_many() {
        let mut told = Told::default();
        assert!(told.is_new("a"));
        assert!(!told.is_new("a"));
        let said = (0..100).filter(|number| told.is_new(&number.to_string()));
        assert_eq!(said.count(), MOST - 1);
    }
}
