//! Backtraces by gdb, to compare stacks with.

use std::{fs::File, os::unix::fs::FileExt, path::Path, process::Command};

use anyhow::{Context, bail};

use crate::Result;

/// Commands before the backtrace: every address, nothing of the arguments, and frames beyond `main`.
const SETTINGS: [&str; 6] = [
    "set print frame-info location-and-address",
    "set print frame-arguments none",
    "set print entry-values no",
    "set backtrace past-main on",
    "set debuginfod enabled off",
    "set width 0",
];

/// One frame of a backtrace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GdbFrame {
    /// Where the kernel called a signal handler.
    SignalHandler,
    /// A function; an inlined one has the address of the function it is inlined in.
    Function {
        /// The address to return to; in the frame that a signal interrupted, the next instruction.
        address: u64,
        /// The name without arguments.
        name: String,
        /// The path of the source file, if known.
        file: Option<String>,
    },
}

/// The stacks of all threads, each innermost frame first: the frames that are really there.
pub fn backtraces(gdb: &Path, pid: u32) -> Result<Vec<Vec<GdbFrame>>> {
    let mut command = Command::new(gdb);
    command.args(["-batch", "-nx", "-p"]).arg(pid.to_string());
    for setting in SETTINGS {
        command.args(["-ex", setting]);
    }
    let output = command
        .args(["-ex", "thread apply all backtrace"])
        .output()
        .context("running gdb")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut stacks: Vec<Vec<GdbFrame>> = Vec::new();
    for line in text.lines() {
        if line.starts_with("Thread ") {
            stacks.push(Vec::new());
        } else if let (Some(frame), Some(stack)) = (line.strip_prefix('#'), stacks.last_mut()) {
            stack.push(parse(frame).with_context(|| format!("not a frame: {line:?}"))?);
        }
    }
    if stacks.is_empty() {
        bail!(
            "gdb shows no threads:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let memory =
        File::open(format!("/proc/{pid}/mem")).with_context(|| format!("opening the memory of {pid}"))?;
    Ok(stacks
        .into_iter()
        .map(|stack| without_tail_calls(stack, &memory))
        .collect())
}

/// Takes out the frames that gdb makes up for tail calls: debugging information tells it of a function that is not on
/// the stack any more. The instruction before such a frame's address is a jump instead of a call.
fn without_tail_calls(stack: Vec<GdbFrame>, memory: &File) -> Vec<GdbFrame> {
    let is_tail_call = |frame: &GdbFrame| match frame {
        GdbFrame::SignalHandler => false,
        GdbFrame::Function { address, .. } => {
            let mut before = [0; 5];
            let read = memory.read_exact_at(&mut before, address - 5);
            // `jmp rel32`, `jmp rel8`
            read.is_ok() && (before[0] == 0xe9 || before[3] == 0xeb)
        }
    };
    let mut after_call = false;
    let mut kept = Vec::new();
    for frame in stack {
        // The innermost frame and one that a signal interrupted may be at any instruction.
        if !(after_call && is_tail_call(&frame)) {
            after_call = frame != GdbFrame::SignalHandler;
            kept.push(frame);
        }
    }
    kept
}

/// Parses `2  0x000055… in name (arguments) at FILE:LINE`, or `… from LIBRARY` without debugging information.
fn parse(frame: &str) -> Option<GdbFrame> {
    let (_, frame) = frame.split_once(' ')?;
    if frame.trim() == "<signal handler called>" {
        return Some(GdbFrame::SignalHandler);
    }
    let (address, frame) = frame.trim_start().strip_prefix("0x")?.split_once(" in ")?;
    let (name, rest) = frame.split_once(" (")?;
    let file = rest
        .rsplit_once(") at ")
        .and_then(|(_, place)| place.rsplit_once(':'))
        .map(|(file, _)| file.to_owned());
    Some(GdbFrame::Function {
        address: u64::from_str_radix(address, 16).ok()?,
        name: name.to_owned(),
        file,
    })
}

#[cfg(test)]
mod tests {
    use super::{GdbFrame, parse};

    #[test]
    fn frames_are_parsed() {
        let function = |address, name: &str, file: Option<&str>| {
            Some(GdbFrame::Function {
                address,
                name: name.to_owned(),
                file: file.map(str::to_owned),
            })
        };
        assert_eq!(parse("5  <signal handler called>"), Some(GdbFrame::SignalHandler));
        assert_eq!(
            parse("3  0x0000556edc91d32f in realigned_64 (length=...) at /src/stacks.cpp:195"),
            function(0x556e_dc91_d32f, "realigned_64", Some("/src/stacks.cpp"))
        );
        assert_eq!(
            parse("1  0x00007f in operator new(unsigned long) () from /lib/libstdc++.so.6"),
            function(0x7f, "operator new(unsigned long)", None)
        );
        assert_eq!(
            parse("10 0x0000556edc91c421 in _start ()"),
            function(0x556e_dc91_c421, "_start", None)
        );
    }
}
