//! Attaching to what the kernel does by itself: processes, system calls, page faults, an io_uring.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::programs::{RawTracePoint, TracePoint};
use memtrace_ebpf::calls;

use super::Programs;
use crate::kernel::{
    KernelError,
    perf::{self, Watched},
    tracefs::Tracefs,
};

impl Programs {
    /// Attaches the programs that watch the life of processes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_process_events(&mut self) -> Result<(), KernelError> {
        self.attach_to_tracepoints(&[
            ("process_executed", "sched_process_exec"),
            ("thread_ended", "sched_process_exit"),
        ])
    }

    /// Attaches the programs that watch the system calls that the wanted classes of holdings need. What takes away goes
    /// first, so that nothing that is undone is missed.
    ///
    /// # Errors
    /// When the kernel refuses, or has no tracepoints for system calls (`CONFIG_FTRACE_SYSCALLS`).
    pub fn attach_calls(&mut self) -> Result<(), KernelError> {
        let classes = self.control.get(0).map_or(0, |control| control.classes);
        let wanted = || {
            calls::CALLS
                .iter()
                .filter(|(_, action)| calls::class_of(*action) & classes != 0)
        };
        let entered = wanted().filter(|(_, action)| calls::takes(*action));
        let left = wanted().filter(|(_, action)| calls::returns(*action));
        let entered = entered.map(|(name, action)| ("call_entered", format!("sys_enter_{name}"), *action));
        let left = left.map(|(name, action)| ("call_left", format!("sys_exit_{name}"), *action));
        let refused = |source| KernelError::Event {
            what: "find",
            name: "of system calls",
            source,
        };
        let tracefs = Tracefs::open().map_err(refused)?;
        for (program, event, action) in entered.chain(left) {
            // A call that this kernel does not have.
            let Ok(number) = tracefs.tracepoint("syscalls", &event) else {
                continue;
            };
            let attached = self.attach_to_event(program, number, action.into())?;
            self.calls.push(attached);
        }
        if self.calls.is_empty() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(refused(source));
        }
        Ok(())
    }

    /// Has a program called at an event, by its number, on all processors; it is until the link and the event are closed.
    fn attach_to_event(
        &mut self,
        name: &'static str,
        number: u64,
        cookie: u64,
    ) -> Result<(OwnedFd, OwnedFd), KernelError> {
        let refused = |source| KernelError::Program {
            name,
            place: String::new(),
            source,
        };
        let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        let program: &mut TracePoint = program.try_into().map_err(refused)?;
        if program.fd().is_err() {
            program.load().map_err(refused)?;
        }
        let fd = program.fd().map_err(refused)?.as_fd();
        let opened = perf::open(number, Watched::All);
        let attached = opened.and_then(|event| Ok((perf::link(fd, &event, cookie)?, event)));
        attached.map_err(|source| KernelError::Event {
            what: "use",
            name,
            source,
        })
    }

    /// Attaches the programs that watch page faults.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_faults(&mut self) -> Result<(), KernelError> {
        self.attach_to_tracepoints(&[
            ("touched", "page_fault_user"),
            ("touched_in_kernel", "page_fault_kernel"),
        ])
    }

    /// Attaches the program that watches what an io_uring does; false if this kernel does not tell.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_requests(&mut self) -> Result<bool, KernelError> {
        match self.requests {
            Some(program) => self.attach_to_tracepoints(&[(program, "io_uring_complete")])?,
            None => return Ok(false),
        }
        Ok(true)
    }

    fn attach_to_tracepoints(&mut self, programs: &[(&'static str, &str)]) -> Result<(), KernelError> {
        for &(name, event) in programs {
            let refused = |source| KernelError::Program {
                name,
                place: format!(" at the tracepoint {event}"),
                source,
            };
            let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
            let program: &mut RawTracePoint = program.try_into().map_err(refused)?;
            program.load().map_err(refused)?;
            program.attach(event).map_err(refused)?;
        }
        Ok(())
    }

    /// Attaches the program that watches for new processes.
    ///
    /// # Errors
    /// When the kernel refuses, or has no trace file system.
    pub fn attach_forks(&mut self) -> Result<(), KernelError> {
        let name = "process_forked";
        let number = Tracefs::open().and_then(|tracefs| tracefs.tracepoint("task", "task_newtask"));
        let number = number.map_err(|source| KernelError::Event {
            what: "use",
            name,
            source,
        })?;
        self.forks = Some(self.attach_to_event(name, number, 0)?);
        Ok(())
    }
}
