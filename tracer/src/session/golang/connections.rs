//! The goroutines by which `net/http` reads and writes a client's connection (`src/net/http/transport.go`).

use std::collections::HashMap;

use super::code::Code;
use crate::{
    go::{GoStatus, Goroutine, Goroutines},
    snapshot::ConnectionLoops,
};

const READ_LOOP: &str = "net/http.(*persistConn).readLoop";
const WRITE_LOOP: &str = "net/http.(*persistConn).writeLoop";

/// Which of the two a goroutine is.
#[derive(Clone, Copy)]
enum Loop {
    Read,
    Write,
}

/// Those that wait, by the id of the goroutine that dialed the connection: it starts both.
pub(super) fn loops(goroutines: &Goroutines, code: &Code) -> HashMap<u64, ConnectionLoops> {
    let mut loops: HashMap<u64, ConnectionLoops> = HashMap::new();
    // All that begin in one function are the same.
    let mut known: HashMap<u64, Option<Loop>> = HashMap::new();
    let waiting = goroutines.all.iter().filter(|goroutine| {
        goroutine.status == GoStatus::Waiting && goroutine.parent != 0 && !goroutine.stack.is_empty()
    });
    for goroutine in waiting {
        let which = known
            .entry(goroutine.start)
            .or_insert_with(|| which(goroutine, code));
        match which {
            Some(Loop::Read) => loops.entry(goroutine.parent).or_default().readers += 1,
            Some(Loop::Write) => loops.entry(goroutine.parent).or_default().writers += 1,
            None => {}
        }
    }
    loops
}

/// A goroutine may begin in a function that the compiler made, which calls the loop.
fn which(goroutine: &Goroutine, code: &Code) -> Option<Loop> {
    goroutine.stack.iter().find_map(|pc| match &*code.function(*pc) {
        READ_LOOP => Some(Loop::Read),
        WRITE_LOOP => Some(Loop::Write),
        _ => None,
    })
}
