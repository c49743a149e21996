//! The tables agree with the DWARF of built programs and with the runtime's own texts.

use super::{
    debug_info::fields,
    target::{TOOLCHAINS, built},
};
use crate::go::{Layout, Version};

#[test]
fn every_offset_is_that_of_the_debug_information() {
    for (minor, toolchain) in TOOLCHAINS {
        let Some(path) = built("target", minor, toolchain) else {
            println!("SKIPPED: Go 1.{minor} is not here");
            continue;
        };
        let layout = Layout::of(Version { major: 1, minor }).expect("a known version");
        let fields = fields(
            &path,
            &[
                "runtime.g",
                "runtime.gobuf",
                "runtime.stack",
                "runtime.m",
                "runtime.bucket",
                "runtime.memRecordCycle",
            ],
        );
        let at = |name: &str| fields.get(&format!("runtime.{name}")).copied();
        let within = |outer: &str, inner: &str| Some(at(outer)? + at(inner)?);
        let (g, m, bucket) = (layout.g, layout.m, layout.bucket);
        let expected = [
            (g.stack_lo, within("g.stack", "stack.lo")),
            (g.stack_hi, within("g.stack", "stack.hi")),
            (g.m, at("g.m")),
            (g.sched_sp, within("g.sched", "gobuf.sp")),
            (g.sched_pc, within("g.sched", "gobuf.pc")),
            (g.sched_g, within("g.sched", "gobuf.g")),
            (g.sched_bp, within("g.sched", "gobuf.bp")),
            (g.syscall_sp, at("g.syscallsp")),
            (g.syscall_pc, at("g.syscallpc")),
            (g.status, at("g.atomicstatus")),
            (g.goid, at("g.goid")),
            (g.wait_since, at("g.waitsince")),
            (g.wait_reason, at("g.waitreason")),
            (g.locked_m, at("g.lockedm")),
            (g.gopc, at("g.gopc")),
            (g.startpc, at("g.startpc")),
            (m.g0, at("m.g0")),
            (m.id, at("m.id")),
            (m.procid, at("m.procid")),
            (m.curg, at("m.curg")),
            (m.incgo, at("m.incgo")),
            (m.alllink, at("m.alllink")),
            (m.lockedg, at("m.lockedg")),
            (m.createstack, at("m.createstack")),
            (bucket.allnext, at("bucket.allnext")),
            (bucket.typ, at("bucket.typ")),
            (bucket.hash, at("bucket.hash")),
            (bucket.size, at("bucket.size")),
            (bucket.nstk, at("bucket.nstk")),
            (bucket.stack, at("bucket")),
            (bucket.cycle_size, at("memRecordCycle")),
        ];
        for (index, (offset, expected)) in expected.into_iter().enumerate() {
            assert_eq!(Some(offset), expected, "field {index} of Go 1.{minor}");
        }
        assert_eq!(g.syscall_bp, at("g.syscallbp"), "Go 1.{minor}");
        assert_eq!(g.parent_goid, at("g.parentGoid"), "Go 1.{minor}");
    }
}

#[test]
fn an_unknown_version_has_no_layout() {
    for (major, minor) in [(1, 18), (1, 20), (1, 28), (2, 21)] {
        assert_eq!(Layout::of(Version { major, minor }), None);
    }
}
