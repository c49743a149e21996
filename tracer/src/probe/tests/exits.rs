//! Where functions return that may throw.

use memtrace_ebpf::layout::exit::is_taken;

use super::super::{ExitPoint, Plan, plan};
use super::Unchanged;
use super::elf::Elf;

/// push rbx; pop rbx; ret
const CODE: &[u8] = &[0x53, 0x5b, 0xc3];
/// Where the operator begins, behind `malloc` and `free`.
const OPERATOR: u32 = 6;

/// `malloc`, `free`, and this operator new.
fn plan_of(operator: &[u8]) -> Plan {
    let image = Elf::with_functions(&[("malloc", CODE), ("free", CODE), ("_Znwm", operator)]).build();
    plan(image.as_slice(), &Unchanged(&image)).expect("the file is sound")
}

/// Offset in the operator, distance of the slot, register, condition, and whether it is the `ret`.
type Exit = (u32, u16, u8, Option<u8>, bool);

fn exits(operator: &[u8]) -> Vec<Exit> {
    let plan = plan_of(operator);
    let site = plan.sites.iter().find(|site| site.symbol == "_Znwm");
    let site = site.unwrap_or_else(|| panic!("{:?}", plan.notes));
    assert!(site.is_probed_at_exits());
    let exit = |exit: &ExitPoint| {
        let offset =
            u32::try_from(exit.point.vaddr - super::elf::vaddr(OPERATOR.into())).expect("a small offset");
        (offset, exit.slot, exit.register, exit.condition, exit.returns)
    };
    let mut exits: Vec<_> = site.exits.iter().map(exit).collect();
    exits.sort_unstable();
    exits
}

const RAX: u8 = 0;
const R9: u8 = 9;
/// je and jne.
const EQUAL: Option<u8> = Some(4);
const NOT_EQUAL: Option<u8> = Some(5);

#[test]
#[rustfmt::skip]
fn the_jumps_before_a_return_are_probed_instead_of_it() {
    // As mimalloc's: a fast way, and a slow one that comes back.
    let operator = [
        0x53,                         // +0  push rbx
        0x48, 0x83, 0xec, 0x08,       // +1  sub  rsp,8
        0x48, 0x8b, 0x02,             // +5  mov  rax,[rdx]
        0x48, 0x85, 0xc0,             // +8  test rax,rax
        0x74, 0x06,                   // +11 je   +19
        0x48, 0x83, 0xc4, 0x08,       // +13 add  rsp,8
        0x5b,                         // +17 pop  rbx
        0xc3,                         // +18 ret
        0xe8, 0, 0, 0, 0,             // +19 call somewhere
        0x48, 0x85, 0xc0,             // +24 test rax,rax
        0x75, 0xf0,                   // +27 jne  +13
        0x0f, 0x0b,                   // +29 ud2: throws
    ];
    assert_eq!(exits(&operator), [(11, 16, RAX, NOT_EQUAL, false), (27, 16, RAX, NOT_EQUAL, false)]);
}

#[test]
#[rustfmt::skip]
fn the_result_may_wait_in_another_register() {
    // As tcmalloc's.
    let operator = [
        0x4c, 0x8b, 0x08,             // +0  mov  r9,[rax]
        0x4d, 0x85, 0xc9,             // +3  test r9,r9
        0x75, 0x02,                   // +6  jne  +10
        0x0f, 0x0b,                   // +8  ud2
        0x48, 0x89, 0x10,             // +10 mov  [rax],rdx
        0x4c, 0x89, 0xc8,             // +13 mov  rax,r9
        0xc3,                         // +16 ret
    ];
    assert_eq!(exits(&operator), [(6, 0, R9, NOT_EQUAL, false)]);
}

#[test]
#[rustfmt::skip]
fn a_return_that_has_no_such_jump_is_probed_itself() {
    // The result comes from a call right before.
    let after_call = [
        0x53,                         // +0  push rbx
        0xe8, 0, 0, 0, 0,             // +1  call somewhere
        0x5b,                         // +6  pop  rbx
        0xc3,                         // +7  ret
    ];
    assert_eq!(exits(&after_call), [(7, 0, RAX, None, true)]);
    // One way has a jump, the other has not: the second je falls to code that computes the result.
    let mixed = [
        0x48, 0x85, 0xc0,             // +0  test rax,rax
        0x74, 0x03,                   // +3  je   +8
        0x48, 0xff, 0xc0,             // +5  inc  rax
        0xc3,                         // +8  ret
    ];
    assert_eq!(exits(&mixed), [(8, 0, RAX, None, true)]);
    // The stack pointer comes from somewhere else.
    let leave = [
        0x74, 0x00,                   // +0  je   +2
        0xc9,                         // +2  leave
        0xc3,                         // +3  ret
    ];
    assert_eq!(exits(&leave), [(3, 0, RAX, None, true)]);
}

#[test]
#[rustfmt::skip]
fn both_ways_of_a_jump_may_lead_to_returns() {
    let operator = [
        0x48, 0x85, 0xc0,             // +0  test rax,rax
        0x74, 0x01,                   // +3  je   +6
        0xc3,                         // +5  ret
        0x4c, 0x89, 0xc8,             // +6  mov  rax,r9
        0xc3,                         // +9  ret
    ];
    assert_eq!(exits(&operator), [(3, 0, RAX, NOT_EQUAL, false), (3, 0, R9, EQUAL, false)]);
}

#[test]
#[rustfmt::skip]
fn returns_of_functions_that_it_jumps_to_count() {
    // jmp malloc+0 is forwarding; so jump into a function that is not planned.
    let image = Elf::with_functions(&[
        ("malloc", CODE),
        ("free", CODE),
        ("_Znwm", &[0x48, 0xff, 0xc7, 0xeb, 0x00]), // inc rdi; jmp helper
        ("helper", &[0x53, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3]), // push rbx; call; pop rbx; ret
    ])
    .build();
    let plan = plan(image.as_slice(), &Unchanged(&image)).expect("the file is sound");
    let site = plan.sites.iter().find(|site| site.symbol == "_Znwm").expect("it is probed");
    assert_eq!(site.exits.len(), 1);
    assert_eq!(site.exits[0].point.vaddr, super::elf::vaddr(u64::from(OPERATOR) + 5 + 7));
}

#[test]
fn a_jump_that_may_go_anywhere_is_a_refusal() {
    // jmp [rax*8+table], in the form of a jump table.
    let plan = plan_of(&[0xff, 0x24, 0xc5, 0, 0, 0, 0, 0xc3]);
    assert!(!plan.probes("_Znwm"));
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("_Znwm is not probed: it may throw")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn damaged_code_does_not_make_it_panic() {
    let operator = [
        0x53, 0x48, 0x85, 0xc0, 0x74, 0x02, 0x5b, 0xc3, 0xe8, 0, 0, 0, 0, 0x75, 0xf7, 0x0f, 0x0b,
    ];
    let functions: [(&str, &[u8]); 4] = [
        ("malloc", CODE),
        ("free", CODE),
        ("_Znwm", &operator),
        ("cfree", &[0xeb, 0xe8]),
    ];
    let sound = Elf::with_functions(&functions).build();
    for index in 0..sound.len() {
        for value in [0, 1, 0x7f, 0xe9, 0xff] {
            let mut image = sound.clone();
            image[index] = value;
            if let Ok(plan) = plan(image.as_slice(), &Unchanged(&image)) {
                assert!(plan.sites.len() <= 4);
            }
        }
    }
}

/// The processor's own flags after `cmp left, right`.
fn flags(left: i64, right: i64) -> u64 {
    let flags;
    // SAFETY: the word that is pushed is popped again, and the compiler knows that the stack is used.
    unsafe {
        std::arch::asm!("cmp {0}, {1}", "pushfq", "pop {2}", in(reg) left, in(reg) right, out(reg) flags);
    }
    flags
}

#[test]
fn conditions_are_those_of_the_processor() {
    let values = [0, 1, -1, 5, i64::MAX, i64::MIN];
    for (left, right) in values.iter().flat_map(|&left| values.map(|right| (left, right))) {
        let flags = flags(left, right);
        let (above, below) = ((left as u64) > right as u64, (left as u64) < right as u64);
        for (condition, holds) in [
            (0x2, below),
            (0x3, !below),
            (0x4, left == right),
            (0x5, left != right),
            (0x6, !above),
            (0x7, above),
            (0x8, left.wrapping_sub(right) < 0),
            (0x9, left.wrapping_sub(right) >= 0),
            (0x0, left.checked_sub(right).is_none()),
            (0x1, left.checked_sub(right).is_some()),
            (
                0xa,
                left.wrapping_sub(right).to_le_bytes()[0].count_ones() % 2 == 0,
            ),
            (
                0xb,
                left.wrapping_sub(right).to_le_bytes()[0].count_ones() % 2 == 1,
            ),
            (0xc, left < right),
            (0xd, left >= right),
            (0xe, left <= right),
            (0xf, left > right),
        ] {
            assert_eq!(
                is_taken(condition, flags),
                holds,
                "{left} {right}: {condition:#x}"
            );
        }
    }
}
