//! What memtrace may do, checked before anything is tried.

use std::fs;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Error;

/// Capabilities by number (`include/uapi/linux/capability.h`).
const DAC_OVERRIDE: (u8, &str) = (1, "CAP_DAC_OVERRIDE");
const DAC_READ_SEARCH: (u8, &str) = (2, "CAP_DAC_READ_SEARCH");
const SYS_PTRACE: (u8, &str) = (19, "CAP_SYS_PTRACE");
const SYS_ADMIN: (u8, &str) = (21, "CAP_SYS_ADMIN");
const PERFMON: (u8, &str) = (38, "CAP_PERFMON");
const BPF: (u8, &str) = (39, "CAP_BPF");
const CHECKPOINT_RESTORE: (u8, &str) = (40, "CAP_CHECKPOINT_RESTORE");

/// The initial PID namespace (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Checks privileges, the PID namespace and the kernel.
///
/// # Errors
/// [`Error::Privilege`], which names what is missing.
pub fn check() -> Result<(), Error> {
    let status = procfs::process::Process::myself()
        .and_then(|process| process.status())
        .map_err(|error| {
            Error::Privilege(format!(
                "cannot read /proc/self/status: {error}; is /proc mounted?"
            ))
        })?;
    let missing = missing(status.capeff);
    if !missing.is_empty() {
        let names = missing.join(", ");
        return Err(Error::Privilege(format!(
            "no privilege: {names} missing; run it as root: sudo memtrace …, and in a container with these capabilities"
        )));
    }
    check_namespace()?;
    check_kernel()
}

/// `CAP_SYS_ADMIN` includes what the finer ones allow, except for reading another process's memory, and what belongs to other
/// users: without that, all of their processes' files would be missing.
fn missing(effective: u64) -> Vec<&'static str> {
    let has = |(bit, _): (u8, &str)| effective & (1 << bit) != 0;
    let finer = if has(SYS_ADMIN) {
        &[][..]
    } else {
        &[BPF, PERFMON, CHECKPOINT_RESTORE][..]
    };
    let reading = if has(DAC_OVERRIDE) {
        &[][..]
    } else {
        &[DAC_READ_SEARCH][..]
    };
    finer
        .iter()
        .chain(&[SYS_PTRACE])
        .chain(reading)
        .copied()
        .filter(|&capability| !has(capability))
        .map(|(_, name)| name)
        .collect()
}

/// The programs see process ids of the initial namespace.
fn check_namespace() -> Result<(), Error> {
    match fs::read_link("/proc/self/ns/pid") {
        Ok(link) if link.as_os_str() == INITIAL_PID_NAMESPACE => Ok(()),
        Ok(_) => Err(Error::Privilege(
            "memtrace runs in a PID namespace of its own; run it on the host, or in a container with hostPID"
                .into(),
        )),
        Err(error) => Err(Error::Privilege(format!(
            "cannot read /proc/self/ns/pid: {error}"
        ))),
    }
}

/// Tries the newest of what every run needs of the kernel.
fn check_kernel() -> Result<(), Error> {
    match is_helper_supported(ProgramType::KProbe, BpfHelper::BPF_FUNC_get_attach_cookie) {
        Ok(false) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Err(Error::Privilege(format!(
                "this kernel ({}) is too old: its eBPF has no attach cookies (bpf_get_attach_cookie); memtrace needs \
                 Linux 5.15 or newer",
                release.trim()
            )))
        }
        Ok(true) => Ok(()),
        // Whatever keeps this from loading will keep memtrace's programs too, and is told then.
        Err(error) => {
            log::debug!("cannot find out whether eBPF has attach cookies: {error}");
            Ok(())
        }
    }
}

/// Lifts the limit on locked memory, which old kernels charge maps to, and on descriptors: following children needs one
/// for each event of each thread.
pub fn lift_limits() {
    // From Linux 5.11 on maps are charged to the memory cgroup instead.
    lift(Resource::Memlock, None);
    // The default of /proc/sys/fs/nr_open.
    lift(Resource::Nofile, Some(1 << 20));
}

/// How many descriptors this process may have.
pub(super) fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn lift(resource: Resource, value: Option<u64>) {
    let limit = Rlimit {
        current: value,
        maximum: value,
    };
    let Err(error) = setrlimit(resource, limit) else {
        return;
    };
    log::debug!("the limit {resource:?} is not lifted: {error}");
    // What takes no privilege (CAP_SYS_RESOURCE).
    let Rlimit { maximum, .. } = getrlimit(resource);
    let own = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(resource, own) {
        log::debug!("the limit {resource:?} stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing(u64::MAX), Vec::<&str>::new());
        assert_eq!(missing(1 << 21 | 1 << 19 | 1 << 1), Vec::<&str>::new());
        let exact = 1 << 39 | 1 << 38 | 1 << 40 | 1 << 19 | 1 << 2;
        assert_eq!(missing(exact), Vec::<&str>::new());
        assert_eq!(missing(exact & !(1 << 40)), ["CAP_CHECKPOINT_RESTORE"]);
        assert_eq!(missing(exact & !(1 << 2)), ["CAP_DAC_READ_SEARCH"]);
        assert_eq!(
            missing(0),
            [
                "CAP_BPF",
                "CAP_PERFMON",
                "CAP_CHECKPOINT_RESTORE",
                "CAP_SYS_PTRACE",
                "CAP_DAC_READ_SEARCH"
            ]
        );
    }
}
