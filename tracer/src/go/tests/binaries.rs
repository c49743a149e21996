//! Programs are opened once.

use std::fs::File;
use std::sync::Arc;

use super::super::GoBinaries;
use super::fixtures;

#[test]
fn a_program_is_opened_once() {
    let Some(fixture) = fixtures::all().first() else {
        return;
    };
    let binaries = GoBinaries::default();
    let open = |binaries: &GoBinaries| {
        let file = File::open(&fixture.path).expect("it was built");
        let binary = binaries.open(&file).expect("it is Go's");
        binary.expect("its version is known")
    };
    let first = open(&binaries);
    assert!(Arc::ptr_eq(&first, &open(&binaries.clone())));
    assert!(!Arc::ptr_eq(&first, &open(&GoBinaries::default())));
}

#[test]
fn what_go_did_not_build_is_none() {
    let itself = std::env::current_exe().expect("it has a name");
    let file = File::open(itself).expect("it is there");
    assert!(GoBinaries::default().open(&file).is_none());
}
