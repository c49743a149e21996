//! Whose functions a file's names are.

use super::super::{Plan, Shape, plan_with_prefixes};
use super::Unchanged;
use super::elf::{Elf, LOCAL_FUNCTION};

/// push rbx; pop rbx; ret
const CODE: &[u8] = &[0x53, 0x5b, 0xc3];

fn plan_for(elf: &Elf, prefixes: &[&str]) -> Plan {
    let image = elf.build();
    let prefixes: Vec<String> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
    plan_with_prefixes(image.as_slice(), &Unchanged(&image), &prefixes).expect("the file is sound")
}

/// The plan for a file that defines these names.
fn named(names: &[&'static str], prefixes: &[&str]) -> Plan {
    let functions: Vec<_> = names.iter().map(|&name| (name, CODE)).collect();
    plan_for(&Elf::with_functions(&functions), prefixes)
}

fn symbols(plan: &Plan) -> Vec<&str> {
    plan.sites.iter().map(|site| site.symbol.as_str()).collect()
}

#[test]
fn a_known_prefix_counts_when_blocks_begin_and_end_behind_it() {
    assert_eq!(
        symbols(&named(&["je_malloc", "je_free"], &[])),
        ["je_malloc", "je_free"]
    );
    assert!(named(&["je_malloc", "je_calloc"], &[]).sites.is_empty());
    assert!(named(&["je_free"], &[]).sites.is_empty());
    let mimalloc = named(&["mi_malloc_aligned", "mi_free"], &[]);
    assert_eq!(symbols(&mimalloc), ["mi_malloc_aligned", "mi_free"]);
    assert!(named(&["x_malloc", "x_free"], &[]).sites.is_empty());
}

#[test]
fn a_prefix_that_the_user_names_needs_no_pair() {
    assert_eq!(
        symbols(&named(&["x_malloc", "x_free", "y_malloc"], &["x_"])),
        ["x_malloc", "x_free"]
    );
    assert_eq!(symbols(&named(&["x_calloc"], &["x_"])), ["x_calloc"]);
}

#[test]
fn whoever_has_a_mallocx_is_jemalloc() {
    let plan = named(&["duck_mallocx", "duck_sdallocx", "duck_malloc"], &[]);
    assert_eq!(symbols(&plan), ["duck_mallocx", "duck_malloc", "duck_sdallocx"]);
    assert_eq!(plan.functions(), "duck_malloc, duck_mallocx family");
    assert!(named(&["duck_mallocx", "duck_malloc"], &[]).sites.is_empty());
}

#[test]
fn operators_count_beside_an_allocator() {
    assert!(
        named(&["_Znwm", "_ZdlPv"], &[]).sites.is_empty(),
        "they call malloc, where it is seen"
    );
    let plan = named(&["_Znwm", "_ZdlPvmSt11align_val_t", "malloc", "free"], &[]);
    assert_eq!(plan.functions(), "malloc family, operator new/delete");
    assert_eq!(plan.sites.len(), 4);
}

#[test]
fn a_local_symbol_is_believed_when_nothing_else_can_have_the_name() {
    let mut elf = Elf::with_functions(&[("_rjem_malloc", CODE), ("_rjem_sdallocx", CODE), ("free", CODE)]);
    for symbol in &mut elf.symbols {
        symbol.info = LOCAL_FUNCTION;
    }
    let plan = plan_for(&elf, &[]);
    assert_eq!(symbols(&plan), ["_rjem_malloc", "_rjem_sdallocx"]);
    assert!(
        plan.notes[0].starts_with("free is not probed: its symbol is local"),
        "{:?}",
        plan.notes
    );
    // Two of them: nobody knows which is the allocator's.
    let second = elf.symbols[0].clone();
    elf.symbols.push(super::elf::Symbol { at: 6, ..second });
    assert!(!symbols(&plan_for(&elf, &[])).contains(&"_rjem_malloc"));
}

#[test]
fn names_say_what_the_function_does() {
    for (name, shape) in [
        ("mi_heap_calloc", Shape::HeapCalloc),
        ("mi_heap_malloc", Shape::Memalign),
        ("mi_theap_realloc", Shape::HeapRealloc),
        ("mi_reallocf", Shape::Reallocf),
        ("mi_new_n", Shape::Calloc),
        ("mi_calloc_aligned", Shape::Calloc),
    ] {
        let plan = named(&["mi_malloc", "mi_free", name], &[]);
        let site = plan.sites.iter().find(|site| site.symbol == name);
        assert_eq!(
            site.map(|site| site.shape),
            Some(shape),
            "{name}: {:?}",
            plan.notes
        );
    }
}

#[test]
fn what_is_refused_for_one_reason_is_one_note() {
    let mut elf = Elf::with_functions(&[("malloc", CODE), ("free", CODE)]);
    elf.flags = 7;
    let plan = plan_for(&elf, &[]);
    assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
    assert!(
        plan.notes[0].starts_with("malloc, free are not probed: "),
        "{:?}",
        plan.notes
    );
}
