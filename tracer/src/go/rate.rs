//! Switching the heap profile on for a while, for a target whose linker switched it off.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use crate::target::{FileVersion, Process};

/// The rates that may be written: below, the target would sample nearly every allocation.
const RATES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

/// Why the heap profile was not switched on.
#[derive(Debug, thiserror::Error)]
pub enum RateError {
    /// It is on, or the address is not that of the rate.
    #[error("the heap profile is on already, at one sample in {0} bytes")]
    Present(u64),
    /// A rate that cannot be written at once.
    #[error(
        "{0} is no rate that can be set: it must be 4096 to 1073741824, in one byte, such as 65536 or 524288"
    )]
    Unfit(u64),
    /// The target has ended, or executes another program.
    #[error("the target has ended")]
    Ended,
    /// The kernel refused.
    #[error("the sampling rate at {address:#x} cannot be set: {source}")]
    Memory {
        /// Where it is (virtual address).
        address: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A heap profile that is on until this is dropped.
#[derive(Debug)]
pub struct EnabledRate {
    process: Arc<Process>,
    /// `/proc/PID/mem`, which is the memory of the program that was executing when it was opened: after an `execve`, it says
    /// that there is none, so that nothing is ever written into another program.
    memory: File,
    address: u64,
    rate: u64,
    is_restored: bool,
}

/// Whether this is the file that a process executes.
fn is_executed(process: &Process, program: &File) -> bool {
    let executed = File::open(format!("/proc/{}/exe", process.anchor()));
    let executed = executed.and_then(|file| FileVersion::of(&file));
    match (executed, FileVersion::of(program)) {
        (Ok(executed), Ok(program)) => executed == program,
        _ => false,
    }
}

impl EnabledRate {
    /// Sets `runtime.MemProfileRate` at this address (virtual), if it is 0: one sample in so many bytes. A rate has only one byte
    /// that is not 0, so that the target never sees half of it. If the process executes another file than `program` by now,
    /// nothing is written.
    ///
    /// # Errors
    /// [`RateError`].
    pub fn enable(process: Arc<Process>, program: &File, address: u64, rate: u64) -> Result<Self, RateError> {
        if !RATES.contains(&rate) || changing_byte(rate).is_none() || !address.is_multiple_of(8) {
            return Err(RateError::Unfit(rate));
        }
        let path = format!("/proc/{}/mem", process.anchor());
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| RateError::Memory { address, source })?;
        // The id was not used again before the file was opened.
        if process.has_ended() || !is_executed(&process, program) {
            return Err(RateError::Ended);
        }
        let mut enabled = Self {
            process,
            memory,
            address,
            rate,
            is_restored: true,
        };
        match enabled.read()? {
            0 => {}
            present => return Err(RateError::Present(present)),
        }
        enabled.write(true)?;
        enabled.is_restored = false;
        match enabled.read()? {
            read if read == rate => Ok(enabled),
            other => Err(RateError::Present(other)),
        }
    }

    /// The rate that was set, in bytes.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Sets the rate to 0 again, unless the target has changed it or has ended. Dropping does the same without a word.
    ///
    /// # Errors
    /// [`RateError::Memory`].
    pub fn restore(&mut self) -> Result<(), RateError> {
        if std::mem::replace(&mut self.is_restored, true) || self.process.has_ended() {
            return Ok(());
        }
        match self.read() {
            Ok(present) if present == self.rate => self.write(false),
            Ok(_) | Err(RateError::Ended) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&self) -> Result<u64, RateError> {
        let mut bytes = [0; 8];
        let read = self.memory.read_at(&mut bytes, self.address);
        match read.map_err(|source| self.refused(source))? {
            8 => Ok(u64::from_le_bytes(bytes)),
            _ => Err(RateError::Ended),
        }
    }

    /// Writes the one byte in which the rate differs from 0.
    fn write(&self, is_on: bool) -> Result<(), RateError> {
        let (index, byte) = changing_byte(self.rate).ok_or(RateError::Unfit(self.rate))?;
        let byte = if is_on { byte } else { 0 };
        let written = self.memory.write_at(&[byte], self.address + index);
        match written.map_err(|source| self.refused(source))? {
            1 => Ok(()),
            _ => Err(RateError::Ended),
        }
    }

    fn refused(&self, source: io::Error) -> RateError {
        RateError::Memory {
            address: self.address,
            source,
        }
    }
}

impl Drop for EnabledRate {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            log::warn!("{error}");
        }
    }
}

/// Which byte of the rate is not 0, and which it is; `None` unless it is a single one.
fn changing_byte(rate: u64) -> Option<(u64, u8)> {
    let bytes = rate.to_le_bytes();
    let mut changing = (0..).zip(bytes).filter(|&(_, byte)| byte != 0);
    let first = changing.next()?;
    changing.next().is_none().then_some(first)
}
