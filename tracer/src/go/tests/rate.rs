//! The heap profile of a target that the linker switched it off for.

use std::{fs::File, sync::Arc};

use super::target::{Target, for_each};
use crate::{
    go::{EnabledRate, RateError, read_heap},
    target::Process,
};

fn rate(target: &mut Target) -> u64 {
    target.ask("allocate").trim().parse().expect("a rate")
}

fn address(target: &Target) -> u64 {
    target.variables.mem_profile_rate.expect("a variable")
}

/// Sets the rate of a process that executes what it executes.
fn enable(process: Arc<Process>, address: u64, rate: u64) -> Result<EnabledRate, RateError> {
    let program = File::open(format!("/proc/{}/exe", process.pid())).map_err(|_| RateError::Ended)?;
    EnabledRate::enable(process, &program, address, rate)
}

#[test]
fn another_program_is_left_alone() {
    for_each("unprofiled", &[26], |target| {
        let own = File::open("/proc/self/exe").expect("a program");
        let enabled = EnabledRate::enable(Arc::clone(&target.process), &own, address(target), 65536);
        assert!(matches!(enabled, Err(RateError::Ended)), "{enabled:?}");
        assert_eq!(rate(target), 0);
    });
}

#[test]
fn it_is_on_until_it_is_dropped() {
    for_each("unprofiled", &[], |target| {
        assert_eq!(rate(target), 0, "{:?}", target.version);
        let process = Arc::clone(&target.process);
        let enabled = enable(process, address(target), 65536).expect("a rate of 0");
        assert_eq!(enabled.rate(), 65536);
        assert_eq!(rate(target), 65536);
        let heap = read_heap(&*target.process, target.layout, &target.variables).expect("readable");
        assert_eq!(heap.rate, 65536);
        // 10 MB in blocks of 10 kB: some 150 samples.
        let sampled: u64 = heap.buckets.iter().map(|bucket| bucket.now.allocs).sum();
        assert!(sampled > 50, "{:?}: {sampled}", target.version);
        drop(enabled);
        assert_eq!(rate(target), 0);
    });
}

#[test]
fn a_rate_that_is_not_zero_is_left_alone() {
    for_each("target", &[19, 26], |target| {
        let enabled = enable(Arc::clone(&target.process), address(target), 65536);
        assert!(matches!(enabled, Err(RateError::Present(524_288))), "{enabled:?}");
    });
}

#[test]
fn what_the_target_set_itself_is_kept() {
    for_each("unprofiled", &[26], |target| {
        let (process, address) = (Arc::clone(&target.process), address(target));
        let mut enabled = enable(Arc::clone(&process), address, 4096).expect("a rate of 0");
        let other = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/mem", process.pid()));
        let other = other.expect("the target is ours");
        std::os::unix::fs::FileExt::write_all_at(&other, &8192_u64.to_le_bytes(), address).expect("writable");
        enabled.restore().expect("nothing to restore");
        assert_eq!(rate(target), 8192);
    });
}

#[test]
fn rates_that_could_tear_are_refused() {
    for_each("unprofiled", &[26], |target| {
        for rate in [0, 1, 255, 65537, 100_000, 524_287, 1 << 40] {
            let enabled = enable(Arc::clone(&target.process), address(target), rate);
            assert!(matches!(enabled, Err(RateError::Unfit(_))), "{rate}: {enabled:?}");
        }
    });
}

#[test]
fn a_target_that_has_ended_is_left_alone() {
    for_each("unprofiled", &[26], |target| {
        let address = address(target);
        let enabled = enable(Arc::clone(&target.process), address, 65536);
        let mut enabled = enabled.expect("a rate of 0");
        target.end();
        enabled.restore().expect("nothing to restore");
        let again = enable(Arc::clone(&target.process), address, 65536);
        assert!(again.is_err());
    });
}
