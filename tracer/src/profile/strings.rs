//! The string table of a profile that is being made.

use std::{collections::HashMap, sync::Arc};

/// Where each string is in the table.
#[derive(Debug, Default)]
pub(super) struct Strings(HashMap<Arc<str>, i64>);

impl Strings {
    /// The index of a string in the table, where it is added if it is new.
    pub(super) fn index(&mut self, table: &mut Vec<String>, text: &str) -> i64 {
        if let Some(index) = self.0.get(text) {
            return *index;
        }
        let index = table.len() as i64;
        table.push(text.to_owned());
        self.0.insert(text.into(), index);
        index
    }
}
