//! Each open descriptor: who opened it, and the file that lists them.

use serde_json::{Value, json};

use super::{c_library::CLibrary, frames::Stack};
use crate::{
    profile::{
        stacks::{innermost_frames, missing_of},
        subject::Subject,
    },
    snapshot::{FdDetail, Holder, Holdings, Snapshot},
    symbol::{Line, Symbolized, Symbolizer, Symbols},
    time::rfc3339,
};

/// The open descriptors of a snapshot as JSON: an object with the process's `pid` and `name`, the `time` of the snapshot (RFC
/// 3339), and `fds`, an array with an object for each descriptor:
///
/// | key | value |
/// | --- | --- |
/// | `fd` | its number |
/// | `kind` | as the label of the profile: `file`, `tcp`, … |
/// | `target` | where `/proc/PID/fd/N` leads |
/// | `local`, `peer`, `state` | a socket's addresses and its state, or null |
/// | `age_seconds` | since when it is open, or null if that is not known |
/// | `opened_by` | the functions of the stack that opened it, innermost first, or what stands for it: `[opened before tracing]` |
///
/// Strings are as the target chose them: they are escaped as JSON wants it, not for terminals.
pub fn fd_details_json(snapshot: &Snapshot, symbolizer: &mut Symbolizer) -> Vec<u8> {
    let none = Holdings::default();
    let holdings = snapshot.fds.as_ref().unwrap_or(&none);
    let details = snapshot.fd_details.as_deref().unwrap_or_default();
    let holders = details
        .iter()
        .filter_map(|detail| holdings.holders.get(detail.holder));
    let frames = holders.flat_map(|holder| &holder.frames);
    let symbols = symbolizer.symbolize(&snapshot.mappings, frames.copied());
    json(snapshot, holdings, details, &symbols)
}

fn json(snapshot: &Snapshot, holdings: &Holdings, details: &[FdDetail], symbols: &Symbols) -> Vec<u8> {
    let openers = Openers::new(holdings, symbols);
    let fd = |detail: &FdDetail| {
        json!({
            "fd": detail.number,
            "kind": detail.kind,
            "target": detail.target,
            "local": detail.local,
            "peer": detail.peer,
            "state": detail.state,
            "age_seconds": detail.age.map(|age| age.as_secs_f64()),
            "opened_by": openers.functions(detail.holder),
        })
    };
    let all = json!({
        "pid": snapshot.process.pid,
        "name": snapshot.process.name,
        "time": rfc3339(snapshot.started + snapshot.duration),
        "fds": details.iter().map(fd).collect::<Vec<Value>>(),
    });
    format!("{all:#}\n").into_bytes()
}

/// Who opened the descriptors.
pub(super) struct Openers<'a> {
    holders: &'a [Holder],
    symbols: &'a Symbols,
}

impl<'a> Openers<'a> {
    pub(super) fn new(holdings: &'a Holdings, symbols: &'a Symbols) -> Self {
        Self {
            holders: &holdings.holders,
            symbols,
        }
    }

    /// The functions of a holder's stack, innermost first, with what stands for those that are missing.
    fn functions(&self, holder: usize) -> Vec<String> {
        let Some(holder) = self.holders.get(holder) else {
            return Vec::new();
        };
        let inner = innermost_frames(holder, Subject::Descriptors.made());
        let lines = self.code(holder).flat_map(|code| &*code.lines);
        let functions = lines.map(|line| line.function.to_string());
        inner
            .into_iter()
            .chain(functions)
            .chain(missing_of(holder))
            .collect()
    }

    /// The one function that says most: the innermost of the program's own, or what stands for it.
    pub(super) fn function(&self, holder: usize, c_library: &CLibrary) -> String {
        let own = self
            .holders
            .get(holder)
            .and_then(|holder| self.own(holder, c_library));
        let stands = || self.functions(holder).into_iter().next().unwrap_or_default();
        own.map_or_else(stands, |line| line.function.to_string())
    }

    fn own(&self, holder: &Holder, c_library: &CLibrary) -> Option<&'a Line> {
        let wrappers = self.code(holder).take_while(|code| c_library.holds(code));
        let wrappers = wrappers.map(|code| code.lines.len()).sum();
        let lines: Vec<&Line> = self.code(holder).flat_map(|code| &*code.lines).collect();
        let stack = Stack {
            lines: &lines,
            wrappers,
        };
        stack.first_own()
    }

    fn code(&self, holder: &Holder) -> impl Iterator<Item = &'a Symbolized> {
        let symbols = self.symbols;
        let frames = holder.frames.iter();
        frames.filter_map(move |frame| symbols.get(*frame))
    }
}

#[cfg(test)]
mod tests;
