//! Prefixes of known allocation functions. The code is what the named builds have, or, for glibc with CET,
//! the same code behind the `endbr64` that such builds put first; displacements are set to zero where they do
//! not matter.

use iced_x86::Register;

use super::super::Shape;
use super::super::code::Code;
use super::super::error::Refusal;
use super::super::prefix::{Choice, choose};
use super::super::reentry::{CodeRanges, Reentry};

/// Where the fixtures are loaded.
const BASE: u64 = 0x1000;

/// Everything beyond the fixture is a function that returns at once.
struct Elsewhere;

impl<'d> CodeRanges<'d> for Elsewhere {
    fn covering(&self, address: u64) -> Option<Code<'d>> {
        Code::new(address, &[0xc3])
    }
    fn segment(&self, _: u64) -> Option<Code<'d>> {
        None
    }
}

/// Nothing is known of what lies beyond the fixture.
struct Unknown;

impl<'d> CodeRanges<'d> for Unknown {
    fn covering(&self, _: u64) -> Option<Code<'d>> {
        None
    }
    fn segment(&self, _: u64) -> Option<Code<'d>> {
        None
    }
}

fn choose_among(function: Shape, bytes: &[u8], ranges: &dyn CodeRanges<'static>) -> Result<Choice, Refusal> {
    let bytes: &'static [u8] = bytes.to_vec().leak();
    let code = Code::new(BASE, bytes).expect("the fixture lies low");
    choose(function, code, &Reentry::find(code, &[], ranges), false)
}

fn site(function: Shape, bytes: &[u8]) -> (u32, bool) {
    let choice = choose_among(function, bytes, &Elsewhere).expect("the fixture has a site");
    (choice.offset, choice.emulated)
}

/// An emulated site at this offset.
const fn emulated(offset: u32) -> (u32, bool) {
    (offset, true)
}

/// A single-stepped site at this offset.
const fn stepped(offset: u32) -> (u32, bool) {
    (offset, false)
}

/// A fixture again, behind `endbr64`, as compilers emit it with `-fcf-protection`.
fn with_cet(bytes: &[u8]) -> Vec<u8> {
    [&[0xf3, 0x0f, 0x1e, 0xfa], bytes].concat()
}

#[rustfmt::skip]
mod glibc {
    pub const MALLOC: &[u8] = &[
        0x41, 0x54,                               // push r12
        0x55,                                     // push rbp
        0x53,                                     // push rbx
        0x48, 0x89, 0xfb,                         // mov  rbx,rdi
        0x48, 0x83, 0xec, 0x10,                   // sub  rsp,0x10
        0x80, 0x3d, 0x46, 0x1b, 0x14, 0x00, 0x00, // cmp  byte [rip+0x141b46],0
        0x0f, 0x84, 0xf8, 0x01, 0x00, 0x00,       // je   malloc+0x210
    ];
    pub const CALLOC: &[u8] = &[
        0x41, 0x55,             // push r13
        0x48, 0x89, 0xf8,       // mov  rax,rdi
        0x41, 0x54,             // push r12
        0x55,                   // push rbp
        0x53,                   // push rbx
        0x48, 0x83, 0xec, 0x18, // sub  rsp,0x18
        0x48, 0xf7, 0xe6,       // mul  rsi
    ];
    pub const REALLOC: &[u8] = &[
        0x41, 0x57,       // push r15
        0x41, 0x56,       // push r14
        0x41, 0x55,       // push r13
        0x41, 0x54,       // push r12
        0x55,             // push rbp
        0x48, 0x89, 0xf5, // mov  rbp,rsi
        0x53,             // push rbx
        0x48, 0x89, 0xfb, // mov  rbx,rdi
    ];
    pub const FREE: &[u8] = &[
        0x48, 0x85, 0xff,                         // test rdi,rdi
        0x0f, 0x84, 0xbf, 0x00, 0x00, 0x00,       // je   free+0xc8
        0x55,                                     // push rbp
        0x48, 0x8d, 0x77, 0xf0,                   // lea  rsi,[rdi-0x10]
        0x53,                                     // push rbx
    ];
    pub const POSIX_MEMALIGN: &[u8] = &[
        0x80, 0x3d, 0x01, 0x02, 0x14, 0x00, 0x00, // cmp  byte [rip+0x140201],0
        0x41, 0x54,                               // push r12
        0x49, 0x89, 0xd4,                         // mov  r12,rdx
        0x55,                                     // push rbp
        0x48, 0x89, 0xfd,                         // mov  rbp,rdi
    ];
    pub const MEMALIGN: &[u8] = &[
        0x80, 0x3d, 0x71, 0x0e, 0x14, 0x00, 0x00, // cmp  byte [rip+0x140e71],0
        0x74, 0x07,                               // je   memalign+0x10
        0xe9, 0x32, 0xf6, 0xff, 0xff,             // jmp  _mid_memalign
        0x66, 0x90,                               // xchg ax,ax
        0x48, 0x83, 0xec, 0x18,                   // sub  rsp,0x18
    ];
    pub const REALLOCARRAY: &[u8] = &[
        0x48, 0x89, 0xf0,                         // mov  rax,rsi
        0x48, 0xf7, 0xe2,                         // mul  rdx
        0x48, 0x89, 0xc6,                         // mov  rsi,rax
        0x70, 0x05,                               // jo   reallocarray+0x10
        0xe9, 0x40, 0xb8, 0xf8, 0xff,             // jmp  realloc@plt
    ];
}

#[test]
fn glibc_without_cet() {
    assert_eq!(site(Shape::Malloc, glibc::MALLOC), emulated(0));
    assert_eq!(site(Shape::Calloc, glibc::CALLOC), emulated(0));
    assert_eq!(site(Shape::Realloc, glibc::REALLOC), emulated(0));
    assert_eq!(site(Shape::Free, glibc::FREE), emulated(3));
    assert_eq!(site(Shape::PosixMemalign, glibc::POSIX_MEMALIGN), emulated(7));
    assert_eq!(site(Shape::Memalign, glibc::MEMALIGN), emulated(7));
    assert_eq!(site(Shape::ReallocArray, glibc::REALLOCARRAY), stepped(0));
}

#[test]
fn glibc_with_cet() {
    assert_eq!(site(Shape::Malloc, &with_cet(glibc::MALLOC)), emulated(4));
    assert_eq!(site(Shape::Calloc, &with_cet(glibc::CALLOC)), emulated(4));
    assert_eq!(site(Shape::Realloc, &with_cet(glibc::REALLOC)), emulated(4));
    assert_eq!(site(Shape::Free, &with_cet(glibc::FREE)), emulated(7));
    assert_eq!(
        site(Shape::PosixMemalign, &with_cet(glibc::POSIX_MEMALIGN)),
        emulated(11)
    );
    assert_eq!(site(Shape::Memalign, &with_cet(glibc::MEMALIGN)), emulated(11));
    assert_eq!(
        site(Shape::ReallocArray, &with_cet(glibc::REALLOCARRAY)),
        stepped(0)
    );
}

#[test]
fn the_reason_names_the_site_and_what_the_entry_would_have_cost() {
    let choice = choose_among(Shape::Free, glibc::FREE, &Elsewhere).expect("free has a site");
    assert_eq!(choice.instruction, "je 0x10c8");
    assert_eq!(
        choice.reason,
        "emulated; the entry `test rdi,rdi` would be single-stepped"
    );
}

#[test]
#[rustfmt::skip]
fn glibc_with_hooks() {
    // Before 2.34, malloc loads __malloc_hook and, when there is one, jumps to it: a tail call, not a jump
    // table.
    let malloc = [
        0x48, 0x8b, 0x05, 0x00, 0x00, 0x00, 0x00, // +0  mov  rax,[rip] ; &__malloc_hook
        0x48, 0x8b, 0x00,                         // +7  mov  rax,[rax]
        0x48, 0x85, 0xc0,                         // +10 test rax,rax
        0x75, 0x01,                               // +13 jne  +16
        0xc3,                                     // +15 ret
        0x48, 0x8b, 0x34, 0x24,                   // +16 mov  rsi,[rsp]
        0xff, 0xe0,                               // +20 jmp  rax
    ];
    assert_eq!(site(Shape::Malloc, &malloc), emulated(13));
    // Debian 11: the frame is given back first.
    let free = [
        0x48, 0x83, 0xec, 0x18,                   // +0  sub  rsp,0x18
        0x48, 0x8b, 0x05, 0x00, 0x00, 0x00, 0x00, // +4  mov  rax,[rip] ; &__free_hook
        0x48, 0x8b, 0x00,                         // +11 mov  rax,[rax]
        0x48, 0x85, 0xc0,                         // +14 test rax,rax
        0x0f, 0x85, 0x05, 0x00, 0x00, 0x00,       // +17 jne  +28
        0x48, 0x83, 0xc4, 0x18,                   // +23 add  rsp,0x18
        0xc3,                                     // +27 ret
        0x48, 0x8b, 0x74, 0x24, 0x18,             // +28 mov  rsi,[rsp+0x18]
        0x48, 0x83, 0xc4, 0x18,                   // +33 add  rsp,0x18
        0xff, 0xe0,                               // +37 jmp  rax
    ];
    assert_eq!(site(Shape::Free, &free), emulated(17));
}

#[test]
#[rustfmt::skip]
fn musl() {
    // malloc, realloc, free and memalign are one jump each.
    let malloc = [0xe9, 0x6b, 0x19, 0x00, 0x00];  // jmp  default_malloc
    assert_eq!(site(Shape::Malloc, &malloc), emulated(0));
    assert_eq!(site(Shape::Free, &malloc), emulated(0));
    let calloc = [
        0x41, 0x54,                               // push r12
        0x49, 0x89, 0xf4,                         // mov  r12,rsi
        0x55,                                     // push rbp
    ];
    assert_eq!(site(Shape::Calloc, &calloc), emulated(0));
    let posix_memalign = [
        0x53,                                     // push rbx
        0xb8, 0x16, 0x00, 0x00, 0x00,             // mov  eax,0x16
        0x48, 0x89, 0xfb,                         // mov  rbx,rdi
    ];
    assert_eq!(site(Shape::PosixMemalign, &posix_memalign), emulated(0));
    let reallocarray = [
        0x48, 0x89, 0xd1,                         // mov  rcx,rdx
        0x48, 0x85, 0xd2,                         // test rdx,rdx
        0x74, 0x08,                               // je   reallocarray+0x10
        0x48, 0x89, 0xf0,                         // mov  rax,rsi
        0x48, 0xf7, 0xe1,                         // mul  rcx
    ];
    assert_eq!(site(Shape::ReallocArray, &reallocarray), emulated(6));
    let valloc = [
        0x48, 0x89, 0xfe,                         // mov  rsi,rdi
        0xbf, 0x00, 0x10, 0x00, 0x00,             // mov  edi,0x1000: the size is gone from rdi
        0xe9, 0xa3, 0x49, 0xff, 0xff,             // jmp  memalign@plt
    ];
    let choice = choose_among(Shape::Malloc, &valloc, &Elsewhere).expect("the fixture has a site");
    assert_eq!((choice.offset, choice.emulated), emulated(8));
    assert_eq!(choice.arguments.size, Some(Register::RSI));
}

#[test]
#[rustfmt::skip]
fn jemalloc_with_its_inlined_fast_path() {
    let malloc = [
        0x48, 0x81, 0xff, 0x00, 0x10, 0x00, 0x00, // cmp  rdi,0x1000
        0x0f, 0x87, 0x93, 0x00, 0x00, 0x00,       // ja   malloc+0xa0
        0x48, 0x8d, 0x15, 0x5c, 0x7f, 0x2c, 0x00, // lea  rdx,[rip+0x2c7f5c]
        0x48, 0x8d, 0x47, 0x07,                   // lea  rax,[rdi+7]
    ];
    assert_eq!(site(Shape::Malloc, &malloc), emulated(7));
    let free = [
        0x48, 0x89, 0xf8,                         // +0  mov  rax,rdi
        0x48, 0x8b, 0x15, 0x0e, 0x53, 0x0a, 0x00, // +3  mov  rdx,[rip+0xa530e]
        0x48, 0x89, 0xf9,                         // +10 mov  rcx,rdi
        0x48, 0xc1, 0xe8, 0x1a,                   // +13 shr  rax,0x1a
        0x48, 0x81, 0xe1, 0x00, 0x00, 0x00, 0xc0, // +17 and  rcx,-0x40000000
        0x25, 0xf0, 0x00, 0x00, 0x00,             // +24 and  eax,0xf0
        0x64, 0x48, 0x03, 0x04, 0x25, 0, 0, 0, 0, // +29 add  rax,fs:[0]
        0x48, 0x01, 0xd0,                         // +38 add  rax,rdx
        0x48, 0x3b, 0x88, 0xb0, 0x01, 0x00, 0x00, // +41 cmp  rcx,[rax+0x1b0]
        0x0f, 0x85, 0x8a, 0x00, 0x00, 0x00,       // +48 jne  free+0xc0
    ];
    assert_eq!(site(Shape::Free, &free), emulated(48));
    // Debian 13 builds it with CET.
    assert_eq!(site(Shape::Malloc, &with_cet(&malloc)), emulated(11));
    assert_eq!(site(Shape::Free, &with_cet(&free)), emulated(52));
}

#[test]
#[rustfmt::skip]
fn a_loop_back_into_the_prefix_ends_it() {
    let free = [
        0x48, 0x89, 0xf8,       // +0 mov  rax,rdi
        0x48, 0xff, 0xc8,       // +3 dec  rax
        0x75, 0xfb,             // +6 jne  +3: executed many times per call
        0xc3,                   // +8 ret
    ];
    let choice = choose_among(Shape::Free, &free, &Elsewhere).expect("the entry is legal");
    assert_eq!((choice.offset, choice.emulated), stepped(0));
    let reason = "single-stepped, for no instruction before +3, where a jump comes back, is emulated";
    assert_eq!(choice.reason, reason);
    // A push before the loop is still executed once.
    let pushed = [
        0x53,                   // +0 push rbx
        0x48, 0xff, 0xc8,       // +1 dec  rax
        0x75, 0xfb,             // +4 jne  +1
        0xc3,                   // +6 ret
    ];
    assert_eq!(site(Shape::Free, &pushed), emulated(0));
}

#[test]
#[rustfmt::skip]
fn a_jump_from_a_split_off_part_ends_the_prefix() {
    /// `free.cold`, somewhere else: initializes, then starts over behind the entry.
    struct Cold;
    impl<'d> CodeRanges<'d> for Cold {
        fn covering(&self, address: u64) -> Option<Code<'d>> {
            assert_eq!(address, BASE + 0x100);
            Code::new(address, &[
                0x90,                         // nop
                0xe9, 0xfe, 0xfe, 0xff, 0xff, // jmp  free+4
            ])
        }
        fn segment(&self, _: u64) -> Option<Code<'d>> {
            None
        }
    }
    let free = [
        0xf3, 0x0f, 0x1e, 0xfa,             // +0  endbr64
        0x48, 0x85, 0xc0,                   // +4  test rax,rax
        0x0f, 0x84, 0xf3, 0x00, 0x00, 0x00, // +7  je   free.cold
        0xc3,                               // +13 ret
    ];
    let choice = choose_among(Shape::Free, &free, &Cold).expect("the entry is legal");
    assert_eq!((choice.offset, choice.emulated), stepped(0));
    assert_eq!(site(Shape::Free, &free), emulated(7), "without the jump back");
}

#[test]
#[rustfmt::skip]
fn a_jump_to_unknown_code_leaves_only_the_entry() {
    let choice = choose_among(Shape::Free, glibc::FREE, &Unknown).expect("the entry is legal");
    assert_eq!((choice.offset, choice.emulated), stepped(0));
    assert!(choice.reason.contains("a jump leaves to 0x10c8, in no known function"), "{}", choice.reason);
    // At the entry there is nothing to prove.
    let choice = choose_among(Shape::Malloc, glibc::MALLOC, &Unknown).expect("the entry is legal");
    assert_eq!((choice.offset, choice.emulated), emulated(0));
}

#[test]
#[rustfmt::skip]
fn code_without_bounds_is_searched_for_jumps_back() {
    /// One segment: the function, and code that nothing describes.
    struct Segment(&'static [u8]);
    impl<'d> CodeRanges<'d> for Segment {
        fn covering(&self, _: u64) -> Option<Code<'d>> {
            None
        }
        fn segment(&self, _: u64) -> Option<Code<'d>> {
            Code::new(BASE, self.0)
        }
    }
    // Debian 13's musl: no unwind information, and the work is done elsewhere.
    const MALLOC: [u8; 14] = [
        0xf3, 0x0f, 0x1e, 0xfa,       // +0  endbr64
        0xe9, 0x00, 0x00, 0x00, 0x00, // +4  jmp  +9, beyond the symbol
        0xe9, 0xf6, 0xff, 0xff, 0xff, // +9  jmp  +4
    ];
    for (segment, expected) in [(&MALLOC[..9], emulated(4)), (&MALLOC, stepped(0))] {
        let choice = choose_among(Shape::Malloc, &MALLOC[..9], &Segment(segment));
        let choice = choice.expect("the entry is legal");
        assert_eq!((choice.offset, choice.emulated), expected);
    }
}

#[test]
#[rustfmt::skip]
fn a_jump_table_leaves_only_the_entry() {
    let free = [
        0x48, 0x85, 0xff,                         // +0  test   rdi,rdi
        0x74, 0x12,                               // +3  je     +23
        0x48, 0x8d, 0x15, 0x00, 0x00, 0x00, 0x00, // +5  lea    rdx,[rip]
        0x48, 0x63, 0x04, 0x82,                   // +12 movsxd rax,[rdx+rax*4]
        0x48, 0x01, 0xd0,                         // +16 add    rax,rdx
        0x3e, 0xff, 0xe0,                         // +19 notrack jmp rax
        0x90,                                     // +22 nop
        0xc3,                                     // +23 ret
    ];
    assert_eq!(site(Shape::Free, &free), stepped(0));
    let untracked: Vec<u8> = free.iter().copied().filter(|&byte| byte != 0x3e).collect();
    assert_eq!(site(Shape::Free, &untracked), stepped(0), "a jump table without its prefix");
}

#[test]
#[rustfmt::skip]
fn the_entry_is_the_only_legal_site() {
    let malloc = [
        0x48, 0x83, 0xec, 0x18, // sub  rsp,0x18: a return probe is impossible from here on
        0x48, 0x85, 0xff,       // test rdi,rdi
        0x74, 0x01,             // je   +1
        0x90,                   // nop
        0xc3,                   // ret
    ];
    assert_eq!(site(Shape::Malloc, &malloc), stepped(0));
    // free needs no return probe.
    assert_eq!(site(Shape::Free, &malloc), emulated(7));
}

#[test]
#[rustfmt::skip]
fn a_jump_into_the_middle_of_an_instruction() {
    let free = [
        0x48, 0x85, 0xff,       // +0 test rdi,rdi
        0xf0, 0x48, 0xff, 0x07, // +3 lock inc qword [rdi]
        0x75, 0xfb,             // +7 jne  +4: around the lock prefix
        0xc3,                   // +9 ret
    ];
    assert_eq!(site(Shape::Free, &free), stepped(0));
    let into_the_entry = [
        0x48, 0x85, 0xff,       // +0 test rdi,rdi
        0x75, 0xfc,             // +3 jne  +1
        0xc3,                   // +5 ret
    ];
    let refused = choose_among(Shape::Free, &into_the_entry, &Elsewhere);
    assert!(matches!(refused, Err(Refusal::EntryOverlaps)));
}

#[test]
#[rustfmt::skip]
fn what_the_kernel_refuses_is_skipped() {
    let locked = [
        0xf0, 0x48, 0xff, 0x07, // +0 lock inc qword [rdi]
        0x48, 0x85, 0xff,       // +4 test rdi,rdi
        0xc3,                   // +7 ret
    ];
    assert_eq!(site(Shape::Free, &locked), stepped(4));
    let system_call = [
        0x0f, 0x05,             // +0 syscall
        0xc3,                   // +2 ret
    ];
    let refused = choose_among(Shape::Free, &system_call, &Elsewhere);
    assert!(matches!(refused, Err(Refusal::NoLegalInstruction { .. })));
    for (name, instruction) in [
        ("int3", &[0xcc][..]),
        ("hlt", &[0xf4]),
        ("ud2", &[0x0f, 0x0b]),
        ("rep stosq", &[0xf3, 0x48, 0xab]),
        ("pushf", &[0x9c]),
        ("xchg r8,rax", &[0x49, 0x90]),
        ("jmp +8", &[0xeb, 0x08]),
        ("xbegin", &[0xc7, 0xf8, 0, 0, 0, 0]),
        ("cs nop word [rax]", &[0x66, 0x2e, 0x0f, 0x1f, 0x00]),
        ("vzeroupper", &[0xc5, 0xf8, 0x77]),
        ("truncated push", &[0x41]),
        ("invalid", &[0x06]),
    ] {
        let refused = choose_among(Shape::Free, instruction, &Elsewhere);
        assert!(matches!(refused, Err(Refusal::NoLegalInstruction { .. })), "{name}: {refused:?}");
    }
}

#[test]
#[rustfmt::skip]
fn nops_and_calls() {
    // Single-byte nops are emulated everywhere, longer ones only by new kernels.
    assert_eq!(site(Shape::Free, &[0x90, 0xc3]), emulated(0));
    let patchable = [
        0x0f, 0x1f, 0x44, 0x00, 0x00, // +0 nop  dword [rax+rax]
        0x53,                         // +5 push rbx
        0xc3,                         // +6 ret
    ];
    assert_eq!(site(Shape::Free, &patchable), emulated(5));
    let instrumented = [
        0xe8, 0x00, 0x01, 0x00, 0x00, // +0 call __fentry__
        0xc3,                         // +5 ret
    ];
    assert_eq!(site(Shape::Malloc, &instrumented), emulated(0));
    let code = Code::new(BASE, &instrumented).expect("the fixture lies low");
    let refused = choose(Shape::Malloc, code, &Reentry::find(code, &[], &Elsewhere), true);
    assert!(matches!(refused, Err(Refusal::NoLegalInstruction { .. })), "a shadow stack forbids it");
    let later = [
        0x48, 0x89, 0xfb,             // +0 mov  rbx,rdi
        0xe8, 0x00, 0x01, 0x00, 0x00, // +3 call: no site, and rdi is lost behind it
        0x53,                         // +8 push rbx
    ];
    assert_eq!(site(Shape::Free, &later), stepped(0));
}
