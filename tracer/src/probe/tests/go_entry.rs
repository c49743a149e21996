//! Where functions of Go programs carry a probe: prologues that Go's compilers made, and what looks like one.

use super::super::{ProbePoint, after_stack_check};
use super::elf::{Elf, vaddr};
use super::{Changed, Unchanged};

#[rustfmt::skip]
const LARGE: [u8; 22] = [
    0x4c, 0x8d, 0x64, 0x24, 0xc8,       // +0  lea r12,[rsp-38h]
    0x4d, 0x3b, 0x66, 0x10,             // +5  cmp r12,[r14+10h]
    0x0f, 0x86, 0x04, 0x00, 0x00, 0x00, // +9  jbe +19
    0x55,                               // +15 push rbp
    0x48, 0x89, 0xe5,                   // +16 mov rbp,rsp
    0x90,                               // +19 nop
    0xeb, 0xea,                         // +20 jmp +0
];

#[rustfmt::skip]
const SMALL: [u8; 12] = [
    0x49, 0x3b, 0x66, 0x10, // +0  cmp rsp,[r14+10h]
    0x76, 0x04,             // +4  jbe +10
    0x55,                   // +6  push rbp
    0x48, 0x89, 0xe5,       // +7  mov rbp,rsp
    0xeb, 0xf4,             // +10 jmp +0
];

#[rustfmt::skip]
const GO_1_19: [u8; 18] = [
    0x4c, 0x8d, 0x64, 0x24, 0xc8, // +0  lea r12,[rsp-38h]
    0x4d, 0x3b, 0x66, 0x10,       // +5  cmp r12,[r14+10h]
    0x76, 0x05,                   // +9  jbe +16
    0x48, 0x83, 0xec, 0x40,       // +11 sub rsp,40h
    0xc3,                         // +15 ret
    0xeb, 0xee,                   // +16 jmp +0
];

#[rustfmt::skip]
const HUGE: [u8; 26] = [
    0x49, 0x89, 0xe4,                         // +0  mov r12,rsp
    0x49, 0x81, 0xec, 0x00, 0x20, 0x00, 0x00, // +3  sub r12,2000h
    0x72, 0x0a,                               // +10 jb  +22
    0x4d, 0x3b, 0x66, 0x10,                   // +12 cmp r12,[r14+10h]
    0x76, 0x04,                               // +16 jbe +22
    0x55,                                     // +18 push rbp
    0x48, 0x89, 0xe5,                         // +19 mov rbp,rsp
    0x0f, 0x1f, 0x00,                         // +22 nop [rax]
    0x90,                                     // +25 nop
];

fn place(code: &[u8]) -> Result<ProbePoint, String> {
    let image = Elf::with_function("f", code).build();
    let range = vaddr(0)..vaddr(code.len() as u64);
    after_stack_check(image.as_slice(), range, &Unchanged(&image))
}

#[test]
fn the_place_is_behind_the_check_of_the_stack() {
    for (code, offset, instruction) in [
        (LARGE.as_slice(), 15, "push rbp"),
        (&SMALL, 6, "push rbp"),
        (&HUGE, 18, "push rbp"),
        // Before 1.21 the frame is made without a push.
        (&GO_1_19, 9, "jbe short 0x400210"),
    ] {
        let point = place(code).expect("a prologue of Go's");
        assert_eq!(
            (point.function_offset, &*point.instruction),
            (offset, instruction)
        );
        assert_eq!(point.vaddr, vaddr(offset.into()));
        assert!(point.emulated);
    }
}

#[test]
fn what_does_not_begin_so_is_left_alone() {
    let mut overwritten = LARGE;
    overwritten[0..3].copy_from_slice(&[0x48, 0x8d, 0x5c]);
    let mut backwards = SMALL;
    backwards[5] = 0xfa;
    let mut moved = LARGE;
    // Something else before the jump: `mov rax,rsp`.
    moved[5..9].copy_from_slice(&[0x48, 0x89, 0xe0, 0x90]);
    for code in [
        // `lea rbx,[rsp-38h]` loses an argument.
        overwritten.as_slice(),
        &backwards,
        &moved,
        // No check.
        &LARGE[15..],
        // Only the beginning of an instruction.
        &LARGE[..7],
    ] {
        assert!(place(code).is_err(), "{:?}", place(code));
    }
}

#[test]
fn code_that_is_not_that_of_the_file_is_left_alone() {
    let image = Elf::with_function("f", &LARGE).build();
    let range = vaddr(0)..vaddr(LARGE.len() as u64);
    let changed = Changed(&image, &[(vaddr(16), 0x90)]);
    let refused = after_stack_check(image.as_slice(), range.clone(), &changed);
    assert!(refused.is_err_and(|why| why.contains("changed at run time")));
    // Another tracer's breakpoint does no harm.
    let probed = Changed(&image, &[(vaddr(15), 0xcc)]);
    assert!(after_stack_check(image.as_slice(), range, &probed).is_ok());
}

#[test]
fn bounds_that_are_not_in_the_code_are_refused() {
    let image = Elf::with_function("f", &LARGE).build();
    for range in [0..8, vaddr(0)..u64::MAX, vaddr(4)..vaddr(0), vaddr(0)..vaddr(0)] {
        let refused = after_stack_check(image.as_slice(), range.clone(), &Unchanged(&image));
        assert!(refused.is_err(), "{range:x?}");
    }
}
