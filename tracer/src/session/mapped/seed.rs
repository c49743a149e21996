//! What was mapped before tracing began.

use std::num::NonZeroU32;

use memtrace_ebpf::handles::MappingKind;

use super::{
    MappedBooks, Waiting,
    instances::{Instance, Owner},
};
use crate::target::Vma;

/// The longest area without access that is taken for the guard of the stack above it (bytes).
const LONGEST_GUARD: u64 = 1 << 20;

/// Files that are nothing but memory, by how the kernel names them: `mm/memfd.c`, tmpfs for POSIX shared memory, `ipc/shm.c`,
/// `mm/shmem.c` (shared memory without a file), `fs/aio.c`, `fs/anon_inodes.c`.
const MEMORY_FILES: [&str; 6] = [
    "/memfd:",
    "/dev/shm/",
    "/SYSV",
    "/dev/zero (deleted)",
    "/[aio]",
    "anon_inode:",
];
/// As above, of memory from hugetlbfs without a file: `fs/hugetlbfs/inode.c`.
const HUGE_MEMORY: &str = "/anon_hugepage";

impl MappedBooks {
    /// Tells what is mapped when tracing begins, and the stack pointers of threads, where they are known. Whatever was logged
    /// by then is replayed on top.
    ///
    /// Of each range, the last change that was logged counts, whether it came before the areas were read, while, or
    /// after: if it came before, the areas show its result, and it says whose that is; an unmapping whose range is mapped
    /// in the areas was followed by a mapping, which is logged, too, or is by an untraced call. So the time of
    /// the reading does not matter, as long as it is after the programs began to log. A second call does nothing.
    pub fn seed(&mut self, vmas: &[Vma], stack_pointers: &[(NonZeroU32, u64)]) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let mut pointers = stack_pointers.to_vec();
        pointers.sort_unstable_by_key(|&(_, pointer)| pointer);
        for (index, vma) in vmas.iter().enumerate() {
            let is_adjacent = |next: &&Vma| next.begin == vma.end && is_plain(next);
            let is_taken = is_guard(vma) && vmas.get(index + 1).filter(is_adjacent).is_some();
            if owner(vma).is_none() && !is_taken {
                let below = index.checked_sub(1).and_then(|below| vmas.get(below));
                self.seed_area(vma, below, &pointers);
            }
        }
        for waiting in waiting {
            match waiting {
                Waiting::Event(event) => self.replay(&event),
                Waiting::Fork(thread) => self.forked(thread),
            }
        }
    }

    /// An area, and the guard below it: they were one mapping before they were protected differently.
    fn seed_area(&mut self, vma: &Vma, below: Option<&Vma>, pointers: &[(NonZeroU32, u64)]) {
        let guard = below.filter(|below| is_guard(below) && below.end == vma.begin && is_plain(vma));
        let begin = guard.map_or(vma.begin, |guard| guard.begin);
        let mut instance = Instance::before(vma_kind(vma));
        instance.grows_down = vma.grows_down;
        // An arena that holds a stack among other things has no guard just below.
        let is_like_stack = is_plain(vma) && (guard.is_some() || vma.no_huge_pages || vma.grows_down);
        let first = pointers.partition_point(|&(_, pointer)| pointer < vma.begin);
        let user = pointers
            .get(first)
            .filter(|&&(_, pointer)| is_like_stack && pointer < vma.end);
        if let Some(&(thread, _)) = user {
            instance.account.kind = MappingKind::Stack;
            instance.user = thread.get();
        }
        let slot = self.put(begin..vma.end, instance);
        if let Some(&(thread, _)) = user {
            self.threads.runs_on(thread.get(), slot);
        }
    }
}

/// Whose an area is that no call mapped.
pub(super) fn owner(vma: &Vma) -> Option<Owner> {
    match vma.path.as_str() {
        _ if vma.is_heap => Some(Owner::Brk),
        _ if vma.is_stack => Some(Owner::FirstStack),
        _ if vma.file => None,
        "[vdso]" | "[vsyscall]" | "[uprobes]" => Some(Owner::Kernel),
        path if path.starts_with("[vvar") => Some(Owner::Kernel),
        _ => None,
    }
}

/// What is mapped in an area.
pub(super) fn vma_kind(vma: &Vma) -> MappingKind {
    let is_memory = MEMORY_FILES.iter().any(|name| vma.path.starts_with(name));
    match vma.file {
        true if vma.path.starts_with(HUGE_MEMORY) && !vma.shared => MappingKind::Anon,
        true if is_memory || vma.path.starts_with(HUGE_MEMORY) => MappingKind::Shared,
        true => MappingKind::File,
        false if vma.grows_down => MappingKind::Stack,
        false if vma.shared => MappingKind::Shared,
        false => MappingKind::Anon,
    }
}

/// Whether it is private memory without a file, as a stack is.
fn is_plain(vma: &Vma) -> bool {
    !vma.file && !vma.shared && vma.accessible && owner(vma).is_none()
}

fn is_guard(vma: &Vma) -> bool {
    !vma.file && !vma.shared && !vma.accessible && vma.length() <= LONGEST_GUARD
}
