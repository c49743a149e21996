//! The threads, compared with the kernel's.

use std::collections::BTreeSet;

use super::target::{TOOLCHAINS, for_each};
use crate::go::{GoThread, Layout, ThreadHold, Version, read_threads};

#[test]
fn ids_are_those_of_the_kernel() {
    for_each("target", &[], |target| {
        target.ask("park");
        let (threads, ids, expected) = (0..50)
            .map(|_| {
                let threads = read_threads(&*target.process, target.layout, &target.variables);
                let threads = threads.expect("readable threads");
                let ids: BTreeSet<u32> = threads.iter().map(|thread| thread.id).collect();
                let expected: BTreeSet<u32> = target.process.threads().iter().map(|id| id.get()).collect();
                (threads, ids, expected)
            })
            // A thread that is being made has no id yet.
            .find(|(_, ids, _)| !ids.contains(&0))
            .expect("all threads are made");
        assert_eq!(ids, expected, "{:?}", target.version);
        let held = |hold: ThreadHold| -> Vec<&GoThread> {
            threads.iter().filter(|thread| thread.hold == hold).collect()
        };
        assert_eq!(held(ThreadHold::Locked).len(), 3, "{threads:?}");
        assert!(held(ThreadHold::Locked).iter().all(|thread| thread.goroutine > 1));
        // Three read from pipes, and the first reads the commands.
        assert!(held(ThreadHold::Syscall).len() >= 3, "{threads:?}");
        assert!(!held(ThreadHold::Idle).is_empty(), "{threads:?}");
    });
}

#[test]
fn another_layout_is_refused() {
    for_each("target", &[], |target| {
        for (minor, _) in TOOLCHAINS {
            let layout = Layout::of(Version { major: 1, minor }).expect("a known version");
            let read = read_threads(&*target.process, layout, &target.variables);
            let is_same = layout.m == target.layout.m;
            // `schedlink` follows `alllink`: taken for it, it leads through the idle threads, and nothing contradicts the layout
            // if the first thread happens to be the last of these.
            let leads_through_idle = layout.m.alllink == target.layout.m.alllink + 8;
            match read {
                Ok(_) => assert!(
                    is_same || leads_through_idle,
                    "{:?} read as 1.{minor}",
                    target.version
                ),
                Err(_) => {
                    assert!(!is_same, "{:?} refused as 1.{minor}", target.version);
                }
            }
        }
    });
}
