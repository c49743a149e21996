//! What the kernel knows of the area of memory at an address (`bpf_find_vma`, Linux 5.17; programs that use it are not needed).

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, generated::bpf_find_vma},
    macros::tracepoint,
    programs::TracePointContext,
};
use memtrace_ebpf::layout::tail;

use super::{ids, maps, syscalls::RESULT};

/// An area of memory.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Area {
    /// First byte (virtual address).
    begin: u64,
    /// One past the last byte.
    end: u64,
    /// The kernel's `file` behind it; 0 if there is none.
    file: u64,
}

/// Finds out how long the mapping is that `shmat` returned.
#[tracepoint]
fn measure(ctx: TracePointContext) -> u32 {
    let (_, tid) = ids();
    if let Some(thread) = maps::THREADS.get_ptr_mut(&tid) {
        // SAFETY: the offset is that of this tracepoint's field.
        let area = area_at(unsafe { ctx.read_at(RESULT) }.unwrap_or(0));
        // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
        unsafe { (*thread).size = area.end.wrapping_sub(area.begin) };
    }
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::CALL_TAILS.tail_call(&ctx, tail::BOOK_CALL) };
    0
}

/// The area at an address of the current thread's process; an empty one if there is none, or the kernel is busy with it.
#[inline(always)]
fn area_at(address: u64) -> Area {
    let mut area = Area::default();
    // SAFETY: the task is the current one, and the context is what the callback expects.
    unsafe {
        bpf_find_vma(
            bpf_get_current_task_btf(),
            address,
            copy_area as *mut c_void,
            (&raw mut area).cast(),
            0,
        )
    };
    area
}

/// Copies what is of interest of an area.
extern "C" fn copy_area(_task: *const c_void, vma: *const c_void, area: *mut Area) -> i64 {
    let Some(offsets) = maps::OFFSETS.get(0) else {
        return 0;
    };
    let read = |offset: u32| {
        let place = vma.cast::<u8>().wrapping_add(offset as usize).cast::<u64>();
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(place) }.unwrap_or(0)
    };
    // SAFETY: the kernel passes what `area_at` gave it.
    unsafe {
        (*area).begin = read(offsets.vma_start);
        (*area).end = read(offsets.vma_end);
        (*area).file = read(offsets.vma_file);
    }
    0
}
