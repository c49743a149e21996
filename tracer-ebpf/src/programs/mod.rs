//! The programs.
use aya_ebpf::{
    macros::{map, uprobe},
    maps::{Array, ProgramArray},
    programs::ProbeContext,
};
use core::arch::asm;
#[map]
static A: Array<u64> = Array::with_max_entries(16, 1024);
#[map]
static P: ProgramArray = ProgramArray::with_max_entries(4, 0);

#[inline(always)]
unsafe fn fetch_add(p: *mut u64, mut v: u64) -> u64 {
    unsafe { asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) p, inout(reg) v) };
    v
}
#[inline(always)]
unsafe fn cas(p: *mut u64, old: u64, new: u64) -> u64 {
    let mut r = old;
    unsafe { asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) p, in(reg) new, inout("r0") r) };
    r
}

#[uprobe]
fn probe(ctx: ProbeContext) -> u32 {
    if let Some(p) = A.get_ptr_mut(0) {
        let id = unsafe { fetch_add(p, 1) };
        if unsafe { cas(p, 0, 1) } == 0 {
            unsafe { fetch_add(p, id) };
        }
    }
    unsafe { P.tail_call(&ctx, 0) };
    0
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
