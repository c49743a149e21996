//! Files with Go code have no return probes.

use super::super::{Plan, plan};
use super::Unchanged;
use super::elf::Elf;

/// push rbx; pop rbx; ret
const CODE: &[u8] = &[0x53, 0x5b, 0xc3];
/// jmp [rax*8+table], in the form of a jump table; ret
const ANYWHERE: &[u8] = &[0xff, 0x24, 0xc5, 0, 0, 0, 0, 0xc3];

/// `malloc`, `realloc` with this code and `free`, in a section of this name.
fn plan_of(section: &'static str, realloc: &[u8]) -> Plan {
    let mut elf = Elf::with_functions(&[("malloc", CODE), ("realloc", realloc), ("free", CODE)]);
    elf.section = section;
    let image = elf.build();
    plan(image.as_slice(), &Unchanged(&image)).expect("the file is sound")
}

fn return_probes(plan: &Plan) -> Vec<&str> {
    let sites = plan.sites.iter().filter(|site| site.returns.is_some());
    sites.map(|site| site.symbol.as_str()).collect()
}

#[test]
fn a_file_without_go_code_has_return_probes() {
    for section in ["", ".text.hot", ".go"] {
        let plan = plan_of(section, CODE);
        assert_eq!(return_probes(&plan), ["malloc", "realloc"], "{section}");
        assert!(plan.sites.iter().all(|site| site.exits.is_empty()));
    }
}

#[test]
fn in_a_file_with_go_code_functions_are_probed_where_they_return() {
    for section in [
        ".go.buildinfo",
        ".gopclntab",
        ".data.rel.ro.gopclntab",
        ".note.go.buildid",
    ] {
        let plan = plan_of(section, CODE);
        assert_eq!(return_probes(&plan), Vec::<&str>::new(), "{section}");
        for name in ["malloc", "realloc"] {
            let site = plan.sites.iter().find(|site| site.symbol == name);
            let site = site.unwrap_or_else(|| panic!("{section}: {:?}", plan.notes));
            assert_eq!(site.exits.len(), 1, "{section}: {}", site.why);
            assert!(
                site.why.contains("it is in a file with Go code"),
                "{section}: {}",
                site.why
            );
        }
        assert!(plan.probes("free"), "{section}");
    }
}

#[test]
fn what_would_need_a_return_probe_there_is_left_alone() {
    let plan = plan_of(".gopclntab", ANYWHERE);
    assert!(plan.probes("malloc") && plan.probes("free"));
    assert!(!plan.probes("realloc"));
    assert_eq!(
        plan.notes,
        [
            "realloc is not probed: it is in a file with Go code, where no return probe is safe, and where it returns \
             cannot be told: the jump at 0x400203 may go anywhere"
        ]
    );
    // Without Go code it has one.
    assert_eq!(return_probes(&plan_of("", ANYWHERE)), ["malloc", "realloc"]);
}
