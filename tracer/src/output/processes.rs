//! The table of the processes that were traced.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use super::{
    ReportOptions,
    style::{Style, shorten},
};
use crate::{
    snapshot::{GoHeapState, Holdings, Snapshot},
    text::{self, printable},
};

/// So many processes are shown, unless there is a wish.
const MOST: usize = 10;

/// One process in one program, as the table shows it.
#[derive(Clone, Debug)]
pub struct ProcessRow {
    /// The process id.
    pub pid: u32,
    /// The command name.
    pub name: String,
    /// What it held at the end.
    pub held: Amount,
    /// How it ended; empty if it runs on.
    pub end: &'static str,
    /// Its profile, if that could be written.
    pub profile: Option<PathBuf>,
}

/// How much a process holds of what is traced first: the heap, mappings, descriptors, or new memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes and blocks of the heap.
    Heap(u64, u64),
    /// Mapped bytes.
    Mapped(u64),
    /// Open descriptors.
    Open(u64),
    /// Bytes touched for the first time.
    Touched(u64),
}

impl Amount {
    /// What a snapshot says.
    pub fn of(snapshot: &Snapshot) -> Self {
        let held = |holdings: &Holdings| holdings.holders.iter().map(|holder| holder.held).sum();
        match (snapshot.heap, &snapshot.mmap, &snapshot.fds, &snapshot.growth) {
            (false, Some(mmap), _, _) => Self::Mapped(held(mmap)),
            (false, None, Some(fds), _) => Self::Open(held(fds)),
            (false, None, None, Some(growth)) => {
                Self::Touched(growth.sites.iter().map(|site| site.touched).sum())
            }
            _ => {
                let go = snapshot.go.as_ref().and_then(|go| go.heap.as_ref());
                let (go_bytes, go_objects) = go.map_or((0, 0), GoHeapState::live);
                let (bytes, objects) = snapshot.live();
                Self::Heap(bytes + go_bytes, objects + go_objects)
            }
        }
    }

    /// To compare processes by.
    pub fn size(self) -> u64 {
        let (Self::Heap(size, _) | Self::Mapped(size) | Self::Open(size) | Self::Touched(size)) = self;
        size
    }

    fn text(self) -> String {
        match self {
            Self::Heap(bytes, objects) => {
                format!("{:>10} in {:<15}", text::bytes(bytes), text::objects(objects))
            }
            Self::Mapped(bytes) => format!("{:>10} {:<18}", text::bytes(bytes), "mapped"),
            Self::Open(count) => format!("{:>10} {:<18}", text::count(count), "descriptors"),
            Self::Touched(bytes) => format!("{:>10} {:<18}", text::bytes(bytes), "touched"),
        }
    }
}

/// Writes the table, those that hold most first.
///
/// # Errors
/// Fails when `out` fails.
pub fn write_processes(out: &mut impl Write, rows: &[ProcessRow], options: &ReportOptions) -> io::Result<()> {
    let style = Style {
        colour: options.colour,
        width: options.width,
    };
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.held.size()));
    let shown = rows.len().min(options.top.unwrap_or(MOST).max(1));
    let title = match rows.len() {
        all if all == shown => {
            format!("{all} programs were traced, each in a process of its own or one after the other:")
        }
        all => format!(
            "{all} programs were traced, each in a process of its own or one after the other; the largest:"
        ),
    };
    writeln!(out, "{}", style.bold(title))?;
    for row in &rows[..shown] {
        let directory = row.profile.as_ref().and_then(|path| path.parent()?.file_name());
        let profile = directory.map_or_else(|| "not written".into(), |name| name.display().to_string());
        let end = if row.end.is_empty() { "runs" } else { row.end };
        let line = format!(
            "{} {:>7} {:<15} {end:<8} {profile}/",
            row.held.text(),
            row.pid,
            shorten(&printable(&row.name), 15),
        );
        writeln!(out, "{line}")?;
    }
    let others = rows.len() - shown;
    if others > 0 {
        writeln!(out, "{:>10} more", text::count(others as u64))?;
    }
    writeln!(out)
}
