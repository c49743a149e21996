//! A child process that stops where its stack is to be walked.

use std::{
    fs::{self, File},
    io,
    os::unix::{fs::FileExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use libc::{c_int, c_long, c_void, pid_t};

/// The registers that a walk starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub pc: u64,
    pub sp: u64,
    pub fp: u64,
}

/// An executable mapping, as in `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedCode {
    pub begin: u64,
    pub end: u64,
    /// Offset of `begin` in the file (bytes).
    pub offset: u64,
    /// The file's path, or `[vdso]`.
    pub name: String,
}

/// A child process under `ptrace`, killed when dropped. Only the thread that started it can use it.
pub struct Debuggee {
    child: Child,
    memory: File,
    /// The thread that stopped last.
    thread: pid_t,
}

impl Debuggee {
    /// Starts `program` and stops it before its first instruction.
    pub fn start(program: &Path, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null());
        // SAFETY: `ptrace` is a system call, which may be made between fork and exec.
        unsafe { command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0).map(|_| ())) };
        let child = command.spawn()?;
        let thread = child.id() as pid_t;
        let memory = File::open(format!("/proc/{thread}/mem"))?;
        let mut debuggee = Self {
            child,
            memory,
            thread,
        };
        debuggee.wait()?;
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE;
        ptrace(libc::PTRACE_SETOPTIONS, thread, options as usize)?;
        Ok(debuggee)
    }

    /// Runs on to the next breakpoint instruction in any thread.
    pub fn run_to_breakpoint(&mut self) -> io::Result<Registers> {
        self.resume(libc::PTRACE_CONT, 0)?;
        loop {
            let status = self.wait()?;
            let is_event = status >> 16 != 0;
            let signal = libc::WSTOPSIG(status);
            if signal == libc::SIGTRAP && !is_event {
                return self.registers();
            }
            // A new thread begins with a SIGSTOP; the program's own signals are to reach it.
            let signal = if is_event || signal == libc::SIGSTOP {
                0
            } else {
                signal
            };
            self.resume(libc::PTRACE_CONT, signal)?;
        }
    }

    /// Executes one instruction.
    pub fn step(&mut self) -> io::Result<Registers> {
        self.resume(libc::PTRACE_SINGLESTEP, 0)?;
        self.wait()?;
        self.registers()
    }

    /// The executable mappings.
    pub fn code(&self) -> io::Result<Vec<MappedCode>> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let parse = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            let (begin, end) = fields.next()?.split_once('-')?;
            fields.next().filter(|permissions| permissions.contains('x'))?;
            Some(MappedCode {
                begin: u64::from_str_radix(begin, 16).ok()?,
                end: u64::from_str_radix(end, 16).ok()?,
                offset: u64::from_str_radix(fields.next()?, 16).ok()?,
                name: fields.nth(2)?.to_owned(),
            })
        };
        Ok(maps
            .lines()
            .filter_map(parse)
            .filter(|code| code.name != "[vsyscall]")
            .collect())
    }

    /// Fills `buffer` from the process's memory.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(buffer, address)
    }

    /// Eight bytes of the process's memory.
    pub fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn registers(&self) -> io::Result<Registers> {
        // SAFETY: the all-zero pattern is a value of this struct of integers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, self.thread, &raw mut registers as usize)?;
        Ok(Registers {
            pc: registers.rip,
            sp: registers.rsp,
            fp: registers.rbp,
        })
    }

    fn resume(&self, request: u32, signal: c_int) -> io::Result<()> {
        ptrace(request, self.thread, signal as usize).map(|_| ())
    }

    /// Waits for a stop of any thread of this process.
    fn wait(&mut self) -> io::Result<c_int> {
        let (thread, status) = wait_for_any()?;
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other(format!(
                "thread {thread} ended early, status {status:#x}"
            )));
        }
        self.thread = thread;
        Ok(status)
    }
}

impl Drop for Debuggee {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _killed = self.child.kill();
        // Each of its threads is a child to wait for, until there is none.
        while wait_for_any().is_ok() {}
    }
}

/// Waits for any child of this thread; other tests' children belong to other threads of this process.
fn wait_for_any() -> io::Result<(pid_t, c_int)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) } {
        -1 => Err(io::Error::last_os_error()),
        thread => Ok((thread, status)),
    }
}

/// A `ptrace` request whose address argument is unused.
fn ptrace(request: u32, thread: pid_t, data: usize) -> io::Result<c_long> {
    // SAFETY: `data` is a number, or for PTRACE_GETREGS the address of a `user_regs_struct` that outlives the call.
    match unsafe {
        libc::ptrace(
            request,
            thread,
            std::ptr::null_mut::<c_void>(),
            data as *mut c_void,
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
