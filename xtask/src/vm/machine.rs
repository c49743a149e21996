//! One run of qemu: a kernel, the archive, and what its tests said.

use std::{
    fs::OpenOptions,
    path::Path,
    process::Command,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use clap::ValueEnum;

use super::{console::Console, kernels::Image, qemu::Qemu, verdict::Verdict};

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// The processor, through /dev/kvm.
    Kvm,
    /// qemu itself: works everywhere.
    Tcg,
}

/// A machine to be booted.
pub struct Machine<'a> {
    /// What runs it.
    pub qemu: &'a Qemu,
    /// What it is called here.
    pub name: &'a str,
    /// Its kernel.
    pub image: &'a Image,
    /// Its file system.
    pub initramfs: &'a Path,
    /// How long its tests may take.
    pub limit: Duration,
}

/// How long a kernel may take until its first process says so. It takes 3 s when emulated.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// The same with KVM, which does not even begin on some machines that have the device.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(10);
/// The kernel's words: the console is the serial line, and a panic ends the machine.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";

impl Accel {
    /// KVM if this process may use it.
    pub fn best() -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if device.is_ok() { Self::Kvm } else { Self::Tcg }
    }

    /// As qemu calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn processor(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }

    fn boot_limit(self) -> Duration {
        match self {
            Self::Kvm => KVM_BOOT_LIMIT,
            Self::Tcg => BOOT_LIMIT,
        }
    }
}

/// Why a machine did not come to the end of its tests.
#[derive(Debug)]
pub struct Stopped {
    /// Whether its first process ran.
    pub came_up: bool,
    /// In words, with its last lines.
    pub why: String,
}

impl Machine<'_> {
    /// Boots it, prints what it says, and tells how its tests went.
    ///
    /// # Errors
    /// When it does not come up, ends early or takes too long.
    pub fn run(&self, accel: Accel) -> Result<Verdict, Stopped> {
        let mut console = Console::start(&mut self.command(accel)).map_err(|error| Stopped {
            came_up: false,
            why: format!("{error:#}"),
        })?;
        let mut start = Instant::now();
        let mut verdict = Verdict::default();
        loop {
            let came_up = verdict.release.is_some();
            let limit = if came_up { self.limit } else { accel.boot_limit() };
            match console.next(limit.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    println!("{}| {line}", self.name);
                    verdict.read(&line);
                    if !came_up && verdict.release.is_some() {
                        start = Instant::now();
                    }
                }
                Err(RecvTimeoutError::Disconnected) if verdict.done => return Ok(verdict),
                Err(cause) => {
                    let what = how_it_stopped(cause, &verdict, limit);
                    let (release, last) = (&self.image.release, console.last_lines());
                    return Err(Stopped {
                        came_up,
                        why: format!(
                            "Linux {release} ({}) {what}; its last lines:\n{last}",
                            accel.name()
                        ),
                    });
                }
            }
        }
    }

    fn command(&self, accel: Accel) -> Command {
        let mut command = self.qemu.command();
        command
            .args(["-accel", accel.name(), "-cpu", accel.processor()])
            .args(["-m", "2G", "-smp", "2"])
            // Nothing but a serial line.
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(&self.image.vmlinuz)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", COMMAND_LINE]);
        command
    }
}

fn how_it_stopped(cause: RecvTimeoutError, verdict: &Verdict, limit: Duration) -> String {
    let seconds = limit.as_secs();
    match (cause, verdict.running()) {
        (RecvTimeoutError::Disconnected, Some(test)) => format!("ended in the test {test}"),
        (RecvTimeoutError::Disconnected, None) => "ended outside its tests".to_owned(),
        (RecvTimeoutError::Timeout, Some(test)) => {
            format!("was in the test {test} when its {seconds} s were over (--limit gives it more)")
        }
        (RecvTimeoutError::Timeout, None) => format!("was outside its tests when its {seconds} s were over"),
    }
}
