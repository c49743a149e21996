//! The arrays of programs that others go on in.

use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramError, ProgramFd, RawTracePoint, TracePoint, UProbe},
};
use memtrace_ebpf::layout::tail;

use crate::kernel::KernelError;

/// Puts programs into an array for tail calls.
pub(super) fn fill_tails<P>(
    ebpf: &mut Ebpf,
    array: &'static str,
    programs: &[(u32, &'static str)],
) -> Result<ProgramArray<MapData>, KernelError>
where
    P: Loadable,
    for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let unusable = |source| KernelError::Map { name: array, source };
    let map = ebpf.take_map(array).ok_or(KernelError::Missing(array))?;
    let mut tails = ProgramArray::try_from(map).map_err(unusable)?;
    for &(index, name) in programs {
        let fd = load_tail::<P>(ebpf, name)?;
        tails.set(index, &fd, 0).map_err(unusable)?;
    }
    Ok(tails)
}

/// Those for threads that are in the kernel by a system call.
pub(super) fn fill_call_tails(ebpf: &mut Ebpf) -> Result<ProgramArray<MapData>, KernelError> {
    let name = "CALL_TAILS";
    let always = [
        (tail::WALK, "walk_in_call"),
        (tail::BOOK_CALL, "book_call"),
        (tail::BOOK_CLONE, "book_call"),
    ];
    let mut tails = fill_tails::<TracePoint>(ebpf, name, &always)?;
    // Linux before 5.17 does not have the helper: the next program does without.
    let measure = load_tail::<TracePoint>(ebpf, "measure").or_else(|error| {
        log::info!("{error}");
        load_tail::<TracePoint>(ebpf, "book_call")
    })?;
    let set = tails.set(tail::MEASURE, &measure, 0);
    set.map_err(|source| KernelError::Map { name, source })?;
    Ok(tails)
}

fn load_tail<P>(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, KernelError>
where
    P: Loadable,
    for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let refused = |source| KernelError::Program {
        name,
        place: String::new(),
        source,
    };
    let program: &mut P = ebpf
        .program_mut(name)
        .ok_or(KernelError::Missing(name))?
        .try_into()
        .map_err(refused)?;
    if program.program_fd().is_err() {
        program.load_program().map_err(refused)?;
    }
    let fd = program.program_fd().map_err(refused)?;
    fd.try_clone()
        .map_err(|source| KernelError::Memory { name, source })
}

/// The programs that tail calls go to.
pub(super) trait Loadable {
    fn load_program(&mut self) -> Result<(), ProgramError>;
    fn program_fd(&self) -> Result<&ProgramFd, ProgramError>;
}

impl Loadable for UProbe {
    fn load_program(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn program_fd(&self) -> Result<&ProgramFd, ProgramError> {
        self.fd()
    }
}

impl Loadable for TracePoint {
    fn load_program(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn program_fd(&self) -> Result<&ProgramFd, ProgramError> {
        self.fd()
    }
}

impl Loadable for RawTracePoint {
    fn load_program(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn program_fd(&self) -> Result<&ProgramFd, ProgramError> {
        self.fd()
    }
}
