//! The functions of `net/http` that tell for whom it connects (`src/net/http/transport.go`).

use std::ops::Range;

use memtrace_ebpf::handles::goroutine;

use super::{GoBinary, layout::Layout};

/// Runs in the goroutine that asks for a connection: `(*Transport, *wantConn)`.
const QUEUE: &str = "net/http.(*Transport).queueForDial";
/// Runs in the goroutine that dials it: `(*Transport, *wantConn)`.
const DIAL: &str = "net/http.(*Transport).dialConnFor";

/// The functions (virtual addresses in the file).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialFunctions {
    /// `(*Transport).queueForDial`.
    pub queue: Range<u64>,
    /// `(*Transport).dialConnFor`.
    pub dial: Range<u64>,
    /// Where `g` has its fields: [`memtrace_ebpf::handles::goroutine`].
    pub fields: u64,
}

impl GoBinary {
    /// The functions that dial for `net/http`; `None` if the program has no `net/http`.
    ///
    /// # Errors
    /// Why they are not known, in words.
    pub fn dial_functions(&self) -> Result<Option<DialFunctions>, String> {
        let table = self.table();
        let Some(queue) = table.find(QUEUE) else {
            return Ok(None);
        };
        let dial = table.find(DIAL);
        let layout = Layout::of(self.version());
        let fields = layout.and_then(fields);
        Ok(Some(DialFunctions {
            queue,
            dial: dial.ok_or_else(|| format!("{DIAL} was not found"))?,
            fields: fields.ok_or_else(|| format!("the layout of {} is not known", self.version_text()))?,
        }))
    }
}

fn fields(layout: &Layout) -> Option<u64> {
    let offset = |offset: u64| u16::try_from(offset).ok();
    Some(goroutine::cookie(
        offset(layout.g.sched_g)?,
        offset(layout.g.goid)?,
        offset(layout.g.parent_goid.unwrap_or(0))?,
    ))
}
