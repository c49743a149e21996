//! A running qemu, read line by line.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::process;

/// Lines shown of a console that ended badly.
const LAST_LINES: usize = 40;

/// A running qemu; killed when dropped.
pub struct Console {
    qemu: Child,
    lines: Receiver<String>,
    last: VecDeque<String>,
}

impl Console {
    /// Starts qemu, whose standard output is the machine's serial line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        println!("+ {}", process::line(command));
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let qemu = command.spawn().context("cannot start qemu")?;
        // The pipe ends when nobody can write to it, and the command's own ends are held by `command`.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for bytes in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more after a time limit.
                let _ = sender.send(String::from_utf8_lossy(&bytes).trim_end().to_owned());
            }
        });
        Ok(Self {
            qemu,
            lines,
            last: VecDeque::new(),
        })
    }

    /// The next line.
    ///
    /// # Errors
    /// When none comes in time, or qemu has ended.
    pub fn next(&mut self, patience: Duration) -> Result<String, RecvTimeoutError> {
        let line = self.lines.recv_timeout(patience)?;
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.clone());
        Ok(line)
    }

    /// The lines that came last.
    pub fn last_lines(&self) -> String {
        if self.last.is_empty() {
            return "(none)".to_owned();
        }
        Vec::from_iter(self.last.iter().map(String::as_str)).join("\n")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only when it has already ended and been waited for.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
