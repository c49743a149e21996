//! Which of a stack's frames tell a reader the most.

use std::collections::HashMap;

use crate::symbol::{Line, is_allocator};

/// The most frames shown of one stack.
const MOST: usize = 6;
/// Shared frames are shown too until there are this many.
const LEAST: usize = 3;

/// A stack to choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack<'s, 'a> {
    /// The functions, innermost first; inlined calls are functions too.
    pub(super) lines: &'s [&'a Line],
    /// How many of the innermost are wrappers of the C library around system calls (`open64`), to be left out.
    pub(super) wrappers: usize,
}

impl<'a> Stack<'_, 'a> {
    /// The innermost function that is the program's own; of what a client of Go's `net/http` does, the innermost that asked
    /// for it, since a transport of the program's own is only passed through.
    pub(super) fn own(&self) -> Option<&'a Line> {
        let asked = self.lines.iter().rposition(|line| is_http_client(&line.function));
        let begin = asked.map_or(self.wrappers, |asked| asked + 1);
        self.own_from(begin).map(|at| self.lines[at])
    }

    /// The place of the innermost function that is the program's own, from this place on.
    fn own_from(&self, begin: usize) -> Option<usize> {
        let mut places = begin..self.lines.len();
        places.find(|at| !is_library(&self.lines[*at].function))
    }

    /// The innermost function that is the program's own, or else the one that says most.
    pub(super) fn first_own(&self) -> Option<&'a Line> {
        Own::of(self).frames.first().copied()
    }
}

/// The frames of a stack that are worth showing, innermost first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Excerpt<'a> {
    /// The library function that the first frame called (`std::vector<int>::push_back`, `fopen64`), if it was one.
    pub(super) via: Option<&'a str>,
    /// The frames, with the gaps between them.
    pub(super) parts: Vec<Part<'a>>,
}

/// One line of an excerpt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A frame.
    Frame(&'a Line),
    /// This many frames that are not shown.
    Gap(usize),
}

/// Chooses the frames that tell these stacks apart.
///
/// Allocators, wrappers, the standard libraries and what runs before `main` are left out. Of the rest, a stack's innermost frame is
/// always shown, then the frames at which it parts from the other stacks, then those that few of the others share.
pub(super) fn excerpts<'a>(stacks: &[Stack<'_, 'a>]) -> Vec<Excerpt<'a>> {
    let own: Vec<Own<'a>> = stacks.iter().map(Own::of).collect();
    let shared = shared_functions(&own);
    own.iter()
        .enumerate()
        .map(|(this, stack)| {
            let partings = partings(&own, this);
            Excerpt {
                via: stack.via,
                parts: with_gaps(stack, &choose(stack, &partings, &shared)),
            }
        })
        .collect()
}

/// A stack without the frames that are never of interest.
struct Own<'a> {
    via: Option<&'a str>,
    frames: Vec<&'a Line>,
}

impl<'a> Own<'a> {
    fn of(stack: &Stack<'_, 'a>) -> Self {
        let Stack { lines, wrappers } = *stack;
        let Some(first) = stack.own_from(wrappers) else {
            // Nothing but libraries: the function that called the allocator or the system is the best there is.
            let first = lines
                .iter()
                .position(|line| !is_allocator(&line.function) && !is_go_plumbing(&line.function))
                .unwrap_or(0);
            return Self {
                via: None,
                frames: lines[first..].iter().copied().take(MOST).collect(),
            };
        };
        // That something was allocated is only news where the C library was asked for something else.
        let via = (0..first)
            .rev()
            .find(|at| *at < wrappers || !is_allocator(&lines[*at].function))
            .map(|at| &*lines[at].function);
        Self {
            via,
            frames: lines[first..]
                .iter()
                .copied()
                .filter(|line| !is_library(&line.function))
                .collect(),
        }
    }
}

/// The functions that more than half of the stacks contain, when there are enough stacks to say so.
fn shared_functions<'a>(stacks: &[Own<'a>]) -> HashMap<&'a str, usize> {
    let mut containing: HashMap<&str, usize> = HashMap::new();
    for stack in stacks {
        let mut functions: Vec<&str> = stack.frames.iter().map(|line| &*line.function).collect();
        functions.sort_unstable();
        functions.dedup();
        for function in functions {
            *containing.entry(function).or_default() += 1;
        }
    }
    containing.retain(|_, count| stacks.len() >= 3 && *count * 2 > stacks.len());
    containing
}

/// The positions at which a stack parts from those that begin like it.
fn partings(stacks: &[Own<'_>], this: usize) -> Vec<usize> {
    let frames = &stacks[this].frames;
    let mut partings: Vec<usize> = stacks
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != this)
        .map(|(_, other)| {
            frames
                .iter()
                .zip(&other.frames)
                .take_while(|(mine, theirs)| mine == theirs)
                .count()
        })
        .filter(|common| (1..frames.len()).contains(common))
        .collect();
    partings.sort_unstable();
    partings.dedup();
    partings
}

fn choose(stack: &Own<'_>, partings: &[usize], shared: &HashMap<&str, usize>) -> Vec<usize> {
    if stack.frames.is_empty() {
        return Vec::new();
    }
    let mut chosen = vec![0];
    // The outermost parting tells a stack from the one that is most like it.
    chosen.extend(partings.iter().rev().take(MOST - 1));
    let rest = |is_shared: bool| {
        (1..stack.frames.len())
            .filter(move |at| shared.contains_key(&*stack.frames[*at].function) == is_shared)
    };
    for at in rest(false) {
        if chosen.len() < MOST && !chosen.contains(&at) {
            chosen.push(at);
        }
    }
    for at in rest(true) {
        if chosen.len() < LEAST && !chosen.contains(&at) {
            chosen.push(at);
        }
    }
    chosen.sort_unstable();
    chosen
}

fn with_gaps<'a>(stack: &Own<'a>, chosen: &[usize]) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut next = 0;
    for at in chosen.iter().copied() {
        push_gap(&mut parts, &stack.frames[next..at]);
        parts.push(Part::Frame(stack.frames[at]));
        next = at + 1;
    }
    push_gap(&mut parts, &stack.frames[next..]);
    parts
}

fn push_gap<'a>(parts: &mut Vec<Part<'a>>, frames: &[&'a Line]) {
    match frames {
        [] => {}
        // The frame itself takes no more room than the gap.
        [frame] => parts.push(Part::Frame(frame)),
        frames => parts.push(Part::Gap(frames.len())),
    }
}

/// Whether a function belongs to an allocator, to a standard library or to what calls `main` and threads.
fn is_library(function: &str) -> bool {
    const STARTERS: [&str; 9] = [
        "_start",
        "__libc_start_main",
        "__libc_start_main_impl",
        "__libc_start_call_main",
        "start_thread",
        "clone",
        "clone3",
        "__clone3",
        "execute_native_thread_routine",
    ];
    // C functions of Go's `runtime/cgo`.
    let is_of_cgo = ["_cgo_", "x_cgo_"]
        .iter()
        .any(|prefix| function.starts_with(prefix));
    is_allocator(function) || STARTERS.contains(&function) || is_of_cgo || is_standard_library(function)
}

fn is_standard_library(function: &str) -> bool {
    if is_go_standard_library(function) {
        return true;
    }
    const NAMESPACES: [&str; 6] = [
        "std::",
        "core::",
        "alloc::",
        "hashbrown::",
        "__gnu_cxx::",
        "__rustc::",
    ];
    let is_inside = |path: &str| NAMESPACES.iter().any(|namespace| path.starts_with(namespace));
    // Rust: `<alloc::string::String as core::clone::Clone>::clone`, and `<T as alloc::…>::to_vec` for every `T`.
    let Some(implementation) = function.strip_prefix('<') else {
        return is_inside(function);
    };
    let (of, interface) = implementation.split_once(" as ").unwrap_or((implementation, ""));
    is_inside(of) || (is_inside(interface) && matches!(of, "T" | "&T" | "[T]" | "F" | "I"))
}

/// Whether a function is one by which Go's `net/http` makes requests, with any transport.
fn is_http_client(function: &str) -> bool {
    function.starts_with("net/http.(*Client).") || function == "net/http.send"
}

/// Whether a function is in a package of Go's through which every system call goes.
fn is_go_plumbing(function: &str) -> bool {
    ["runtime/", "internal/", "syscall."]
        .iter()
        .any(|package| function.starts_with(package))
}

/// Whether a function is in a package of Go's standard library, which has a path without a dot in its first part.
fn is_go_standard_library(function: &str) -> bool {
    const PACKAGES: [&str; 47] = [
        "archive",
        "bufio",
        "bytes",
        "cmp",
        "compress",
        "container",
        "context",
        "crypto",
        "database",
        "debug",
        "embed",
        "encoding",
        "errors",
        "expvar",
        "flag",
        "fmt",
        "go",
        "hash",
        "html",
        "image",
        "index",
        "internal",
        "io",
        "iter",
        "log",
        "maps",
        "math",
        "mime",
        "net",
        "os",
        "path",
        "plugin",
        "reflect",
        "regexp",
        "runtime",
        "slices",
        "sort",
        "strconv",
        "strings",
        "sync",
        "syscall",
        "testing",
        "text",
        "time",
        "unicode",
        "unique",
        "vendor",
    ];
    let end = function.find(['/', '.']).unwrap_or(0);
    let first = &function[..end];
    // C and Rust names have neither a dot nor a slash behind a name like these.
    PACKAGES.contains(&first) && !function.contains("::")
}

#[cfg(test)]
mod tests;
