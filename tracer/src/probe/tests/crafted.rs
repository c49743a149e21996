//! Plans for small ELF files that are written here: symbols, bounds, live memory, and rubbish.

use std::io;

use super::super::{CodeReader, Plan, PlanError, Shape, plan};
use super::elf::{Elf, FUNCTION, INDIRECT, LOCAL_FUNCTION, Symbol, VARIABLE, vaddr};
use super::{Changed, Unchanged};

#[rustfmt::skip]
const FREE: [u8; 8] = [
    0x48, 0x85, 0xff, // +0 test rdi,rdi
    0x74, 0x02,       // +3 je   +7
    0x53,             // +5 push rbx
    0x5b,             // +6 pop  rbx
    0xc3,             // +7 ret
];

fn free() -> Elf {
    Elf::with_function("free", &FREE)
}

fn plan_of(elf: &Elf) -> Plan {
    let image = elf.build();
    plan(image.as_slice(), &Unchanged(&image)).expect("the file is sound")
}

/// That nothing is probed, and that a note says why.
fn assert_refused(elf: &Elf, why: &str) {
    let plan = plan_of(elf);
    assert!(plan.sites.is_empty(), "{:?}", plan.sites);
    assert!(
        plan.notes.iter().any(|note| note.contains(why)),
        "{:?}",
        plan.notes
    );
}

#[test]
fn a_site_has_its_file_offset_and_address() {
    let plan = plan_of(&free());
    let [site] = plan.sites.as_slice() else {
        panic!("{plan:?}")
    };
    assert_eq!(site.shape, Shape::Free);
    assert_eq!((site.entry.vaddr, site.entry.file_offset), (vaddr(3), 0x203));
    assert_eq!((site.entry.function_offset, site.entry.emulated), (3, true));
    assert_eq!(site.returns, None);
    assert_eq!(
        site.why,
        "free+3 `je short 0x400207`: emulated; the entry `test rdi,rdi` would be single-stepped"
    );
}

#[test]
fn a_symbol_whose_frame_begins_elsewhere_is_refused() {
    let mut elf = free();
    elf.code.insert(0, 0x90);
    elf.symbols[0].at = 1;
    elf.frames = vec![(0, 9)];
    assert_refused(
        &elf,
        "free is not probed: the unwind information that covers it begins at 0x400200",
    );
}

#[test]
fn bounds_come_from_the_symbol_or_the_frame() {
    let mut elf = free();
    elf.symbols[0].size = 0;
    assert_eq!(plan_of(&elf).sites.len(), 1, "the frame alone");
    elf.frames.clear();
    assert_refused(&elf, "neither its symbol nor .eh_frame says where it ends");
    elf.symbols[0].size = 8;
    let plan = plan_of(&elf);
    assert!(
        plan.sites[0]
            .why
            .ends_with("(bounds from the symbol table alone)"),
        "{:?}",
        plan.sites
    );
}

#[test]
fn indirect_local_and_data_symbols_are_refused() {
    for (info, why) in [
        (INDIRECT, "it is an indirect function"),
        (LOCAL_FUNCTION, "its symbol is local"),
        (VARIABLE, "its symbol has type 1"),
    ] {
        let mut elf = free();
        elf.symbols[0].info = info;
        assert_refused(&elf, why);
    }
}

#[test]
fn an_import_is_no_definition() {
    let mut elf = free();
    elf.symbols[0].section = 0;
    let plan = plan_of(&elf);
    assert!(plan.sites.is_empty() && plan.notes.is_empty(), "{plan:?}");
}

#[test]
fn aliases_are_one_site() {
    let mut elf = free();
    let alias = Symbol {
        name: "cfree",
        ..elf.symbols[0].clone()
    };
    elf.symbols.insert(0, alias);
    let plan = plan_of(&elf);
    assert_eq!(
        plan.sites
            .iter()
            .map(|site| site.symbol.as_str())
            .collect::<Vec<_>>(),
        ["free"]
    );
    // The same code as both free and malloc: an accident that nothing can be read from.
    elf.symbols[0].name = "malloc";
    assert_refused(&elf, "are the same code, but take different arguments");
}

#[test]
fn a_symbol_within_the_prefix_is_an_entry_of_its_own() {
    let mut elf = free();
    elf.symbols.push(Symbol {
        name: "free_nonnull",
        at: 3,
        size: 5,
        info: FUNCTION,
        section: 1,
    });
    let plan = plan_of(&elf);
    assert_eq!(
        (plan.sites[0].entry.function_offset, plan.sites[0].entry.emulated),
        (0, false)
    );
}

#[test]
fn a_missing_counterpart_is_noted() {
    let plan = plan_of(&Elf::with_function("malloc", &FREE));
    assert_eq!(plan.sites.len(), 1);
    assert!(
        plan.notes[0].contains("malloc is probed but no free"),
        "{:?}",
        plan.notes
    );
    assert!(plan_of(&free()).notes[0].contains("free is probed but no malloc"));
    // A lone wrapper, such as libbsd's reallocarray, frees nothing by itself.
    assert!(
        plan_of(&Elf::with_function("reallocarray", &FREE))
            .notes
            .is_empty()
    );
}

#[test]
fn writable_code_is_refused() {
    let mut elf = free();
    elf.flags = 7;
    assert_refused(&elf, "one executable, unwritable segment");
}

#[test]
fn code_that_was_changed_at_run_time_is_refused() {
    let image = free().build();
    let patched = [(vaddr(5), 0x55)];
    let changed = plan(image.as_slice(), &Changed(&image, &patched)).expect("the file is sound");
    assert!(changed.sites.is_empty());
    assert!(
        changed.notes[0].contains("at +5 the process has byte 55 where the file has 53"),
        "{:?}",
        changed.notes
    );
    // A breakpoint in the middle of an instruction is no uprobe.
    let odd = plan(image.as_slice(), &Changed(&image, &[(vaddr(4), 0xcc)])).expect("the file is sound");
    assert!(odd.sites.is_empty());
}

#[test]
fn another_tracers_uprobe_is_no_obstacle() {
    let image = free().build();
    for offset in [0, 3] {
        let traced =
            plan(image.as_slice(), &Changed(&image, &[(vaddr(offset), 0xcc)])).expect("the file is sound");
        let undisturbed = plan_of(&free());
        assert_eq!(traced.sites[0].entry, undisturbed.sites[0].entry);
        assert_eq!(traced.notes, undisturbed.notes);
        let remark = format!("+{offset} already carries a breakpoint, such as another tracer's uprobe");
        assert!(traced.sites[0].why.contains(&remark), "{}", traced.sites[0].why);
    }
}

#[test]
fn memory_that_cannot_be_read_is_a_refusal() {
    struct Gone;
    impl CodeReader for Gone {
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::NotFound.into())
        }
    }
    let plan = plan(free().build().as_slice(), &Gone).expect("the file is sound");
    assert!(plan.sites.is_empty());
    assert!(
        plan.notes[0].contains("could not be read from the process"),
        "{:?}",
        plan.notes
    );
}

#[test]
fn other_files_are_errors() {
    let mut image = free().build();
    assert!(matches!(
        plan(&image[..40], &Unchanged(&image)),
        Err(PlanError::Elf(_))
    ));
    image[18] = 183;
    assert!(matches!(
        plan(image.as_slice(), &Unchanged(&image)),
        Err(PlanError::Machine(183))
    ));
    image[18] = 62;
    image[16] = 4;
    assert!(matches!(
        plan(image.as_slice(), &Unchanged(&image)),
        Err(PlanError::Type(4))
    ));
}

#[test]
fn damaged_files_do_not_make_it_panic() {
    let sound = free().build();
    for index in 0..sound.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut image = sound.clone();
            image[index] = value;
            if let Ok(plan) = plan(image.as_slice(), &Unchanged(&image)) {
                assert!(plan.sites.len() <= 2);
            }
        }
    }
    for length in 0..sound.len() {
        _ = plan(&sound[..length], &Unchanged(&sound[..length]));
    }
}
