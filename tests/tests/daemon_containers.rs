//! The daemon and real containers: one is traced under its name, also after it has restarted, and its neighbours are not.

use std::time::Duration;

use anyhow::ensure;
use memtrace_tests::{
    Result,
    containers::{Engine, Libc, Prepared},
    daemon::Daemon,
    kernel,
    profile::Heap,
};

/// Of which functions more than a few blocks are kept.
fn kept(heap: &Heap) -> Vec<String> {
    let functions = heap.by_function("contained_").into_iter();
    functions
        .filter(|(_, values)| values.inuse_objects > 10)
        .map(|(name, _)| name)
        .collect()
}

/// Insists that these functions, and no others, soon keep blocks.
fn expect(daemon: &Daemon, functions: &[&str]) -> Result<()> {
    daemon.await_heap("docker-web", |heap| {
        let kept = kept(heap);
        ensure!(kept == functions, "{kept:?}\n{}", heap.comments.join("\n"));
        Ok(())
    })
}

#[test]
fn a_container_that_restarts_and_one_beside_it() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Glibc)? else {
        return Ok(());
    };
    let before = docker.run("web", "contained", &[])?;
    let bystander = docker.run("bystander", "contained", &[])?;
    let daemon = Daemon::start_with(&["--container", "docker://web"], &[docker.environment()])?;
    let listed = daemon.await_traced("docker-web")?;
    ensure!(
        listed.pids.len() == 2 && listed.pids.contains(&before),
        "{listed:?}"
    );
    expect(
        &daemon,
        &["contained_child", "contained_first", "contained_inner"],
    )?;
    ensure!(
        !kernel::patched_addresses(before)?.is_empty(),
        "the container is not probed"
    );
    // `docker exec` starts a process from outside.
    docker.client(&["exec", "--detach", "web", "/contained", "exec"])?;
    expect(
        &daemon,
        &[
            "contained_child",
            "contained_exec",
            "contained_first",
            "contained_inner",
        ],
    )?;
    let held = |heap: &Heap| heap.total().alloc_objects;
    std::thread::sleep(Duration::from_secs(2));
    let so_far = held(&daemon.heap("docker-web")?);
    docker.client(&["restart", "--time", "0", "web"])?;
    let after = docker.first_process("web")?;
    ensure!(before != after);
    daemon.await_targets("restarted", |targets| {
        targets.iter().any(|target| target.pids.contains(&after))
    })?;
    expect(
        &daemon,
        &["contained_child", "contained_first", "contained_inner"],
    )?;
    let anew = held(&daemon.heap("docker-web")?);
    ensure!(
        anew < so_far,
        "{anew} after {so_far}: the books are those of before"
    );
    ensure!(daemon.targets()?.len() == 1, "{:?}", daemon.targets()?);
    ensure!(
        kernel::patched_addresses(bystander)?.is_empty(),
        "the other one is probed, too"
    );
    daemon.stop()?;
    kernel::await_unpatched(after)
}
