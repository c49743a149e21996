//! A running test program, and what it says of itself.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::go::Memory;

/// A frame as the program itself sees it.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Return address.
    pub pc: u64,
    pub function: String,
    pub file: String,
    pub line: u32,
}

/// A test program that waits.
pub(super) struct Running {
    child: Child,
    memory: File,
    /// Where `main.main` is.
    pub main: u64,
    pub stacks: Vec<Vec<Said>>,
}

impl Running {
    /// Starts the program, and waits until it has said everything.
    pub fn start(path: &Path) -> Self {
        let mut child = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let output = child.stdout.take().expect("it is piped");
        let mut running = Self {
            memory: File::open(format!("/proc/{}/mem", child.id())).expect("its memory can be read"),
            child,
            main: 0,
            stacks: Vec::new(),
        };
        let mut stack = Vec::new();
        for line in BufReader::new(output).lines() {
            let line = line.expect("it is text");
            match *line.split('\t').collect::<Vec<_>>() {
                ["main", entry] => running.main = number(entry),
                ["frame", pc, function, file, line] => stack.push(Said {
                    pc: number(pc),
                    function: function.to_owned(),
                    file: file.to_owned(),
                    line: u32::try_from(number(line)).expect("it is a line"),
                }),
                ["end"] => running.stacks.push(std::mem::take(&mut stack)),
                ["ready"] => return running,
                _ => panic!("{line}"),
            }
        }
        panic!("the program ended");
    }
}

impl Memory for Running {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(buffer, address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("the program ends");
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("it is a number")
}
