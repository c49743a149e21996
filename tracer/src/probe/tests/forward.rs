//! Functions that leave their work to others.

use super::super::{Plan, plan};
use super::Unchanged;
use super::elf::Elf;

/// push rbx; pop rbx; ret
const CODE: &[u8] = &[0x53, 0x5b, 0xc3];

fn plan_of(functions: &[(&'static str, &[u8])]) -> Plan {
    let image = Elf::with_functions(functions).build();
    plan(image.as_slice(), &Unchanged(&image)).expect("the file is sound")
}

fn symbols(plan: &Plan) -> Vec<&str> {
    plan.sites.iter().map(|site| site.symbol.as_str()).collect()
}

/// `malloc` and `free`, three bytes each, then this function.
fn beside(name: &'static str, code: &[u8]) -> Plan {
    plan_of(&[("malloc", CODE), ("free", CODE), (name, code)])
}

#[test]
fn a_jump_to_a_probed_function_needs_no_probe() {
    // jmp free (at 3, from 6)
    let plan = beside("cfree", &[0xeb, 0xfb]);
    assert_eq!(symbols(&plan), ["malloc", "free"]);
    let free = &plan.sites[1];
    assert_eq!(free.serves, ["cfree"]);
    assert!(free.why.ends_with("sees also the calls of cfree"), "{}", free.why);
    assert!(plan.probes("cfree"));
}

#[test]
#[rustfmt::skip]
fn arguments_may_move_to_where_they_belong() {
    // memalign(alignment, size) calls malloc(size): mov rdi,rsi; jmp malloc.
    let plan = beside("memalign", &[0x48, 0x89, 0xf7, 0xeb, 0xf5]);
    assert_eq!(symbols(&plan), ["malloc", "free"]);
    // valloc(size) that rounds up: lea rdi,[rdi+0xfff]; jmp malloc.
    let plan = beside("valloc", &[0x48, 0x8d, 0xbf, 0xff, 0x0f, 0, 0, 0xeb, 0xf1]);
    assert_eq!(symbols(&plan), ["malloc", "valloc", "free"], "its size is not malloc's");
    // memalign(alignment, size) that forgets the size: jmp malloc.
    let plan = beside("memalign", &[0xeb, 0xf8]);
    assert_eq!(symbols(&plan), ["malloc", "memalign", "free"]);
    // calloc that only allocates: another function's work.
    let plan = beside("calloc", &[0xeb, 0xf8]);
    assert_eq!(symbols(&plan), ["malloc", "calloc", "free"]);
}

#[test]
#[rustfmt::skip]
fn an_operator_that_calls_malloc_first_needs_no_probe() {
    // At 6, as libstdc++ has it.
    let operator = [
        0x53,                         // +0  push rbx
        0xe8, 0xf4, 0xff, 0xff, 0xff, // +1  call malloc
        0x48, 0x85, 0xc0,             // +6  test rax,rax
        0x74, 0xf6,                   // +9  je   +1
        0x5b,                         // +11 pop  rbx
        0xc3,                         // +12 ret
    ];
    assert_eq!(symbols(&beside("_Znwm", &operator)), ["malloc", "free"]);
    // A way around malloc, such as a pool of its own.
    let operator = [
        0x48, 0x85, 0xff,             // +0  test rdi,rdi
        0x74, 0x06,                   // +3  je   +11
        0xe8, 0xf0, 0xff, 0xff, 0xff, // +5  call malloc
        0xc3,                         // +10 ret
        0x48, 0x89, 0xf8,             // +11 mov  rax,rdi
        0xc3,                         // +14 ret
    ];
    assert_eq!(symbols(&beside("_Znwm", &operator)), ["malloc", "_Znwm", "free"]);
}

#[test]
fn functions_that_jump_to_each_other_are_both_probed() {
    // At 6 and 8: each jumps to the other.
    let plan = plan_of(&[
        ("malloc", CODE),
        ("free", CODE),
        ("cfree", &[0xeb, 0x00]),
        ("free_sized", &[0xeb, 0xfc]),
    ]);
    assert_eq!(symbols(&plan), ["malloc", "free", "cfree", "free_sized"]);
}
