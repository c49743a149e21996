//! How many breakpoints there are in a process's libc, or in a static program: the one sign of an attached tracer that all tracers share.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

/// x86's `int3`.
const BREAKPOINT: u8 = 0xcc;

/// The code of a process's libc, or of the program when it is linked with none, to compare with what its file holds.
pub struct Code {
    memory: File,
    begin: u64,
    original: Vec<u8>,
}

impl Code {
    /// Finds the code in a running process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let program = fs::read_link(format!("/proc/{pid}/exe"))?;
        let find = |is_wanted: &dyn Fn(&str) -> bool| {
            let mut mappings = maps.lines().map(|line| line.split_whitespace().collect());
            mappings
                .find(|fields: &Vec<_>| fields.len() == 6 && fields[1].contains('x') && is_wanted(fields[5]))
        };
        let mut fields = find(&|path| path.ends_with("/libc.so.6"))
            .or_else(|| find(&|path| program == Path::new(path)))
            .with_context(|| format!("process {pid} maps neither libc.so.6 nor its program"))?
            .into_iter();
        let mut next = || fields.next().unwrap_or_default();
        let (range, _permissions, offset) = (next(), next(), next());
        let (begin, end) = range
            .split_once('-')
            .context("a range in /proc/PID/maps has a dash")?;
        let number = |text| u64::from_str_radix(text, 16).context("/proc/PID/maps is hexadecimal");
        let (begin, end, offset) = (number(begin)?, number(end)?, number(offset)?);
        // /proc/PID/maps pads addresses with zeros (8 digits at least), the names in map_files have none.
        let link = format!("/proc/{pid}/map_files/{begin:x}-{end:x}");
        let mut original = vec![0; usize::try_from(end - begin)?];
        File::open(&link)
            .and_then(|file| file.read_exact_at(&mut original, offset))
            .with_context(|| format!("cannot read {link}"))?;
        let memory = format!("/proc/{pid}/mem");
        Ok(Self {
            memory: File::open(&memory).with_context(|| format!("cannot open {memory}"))?,
            begin,
            original,
        })
    }

    /// The number of breakpoints now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn breakpoints(&self) -> Result<usize> {
        let mut now = vec![0; self.original.len()];
        self.memory
            .read_exact_at(&mut now, self.begin)
            .context("the target died")?;
        Ok(now
            .iter()
            .zip(&self.original)
            .filter(|(now, was)| **now == BREAKPOINT && now != was)
            .count())
    }
}
