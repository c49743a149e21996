//! Containers: found by name through their engines, or by id without one; their processes, and nobody else's, are traced, with
//! names from the container's own files.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use memtrace_tests::{
    Result,
    child::PATIENCE,
    containers::{Engine, Libc, Prepared, root},
    kernel,
    profile::Heap,
    serial, skip,
    tracer::{self, Memtrace},
};

/// Long enough for many of the blocks that the target keeps, one every 5 ms.
const A_WHILE: Duration = Duration::from_millis(700);

/// What is kept in the functions of the target.
fn kept(heap: &Heap) -> BTreeMap<String, i64> {
    let functions = heap.by_function("contained_").into_iter();
    functions
        .map(|(name, values)| (name, values.inuse_objects))
        .collect()
}

/// Insists that these functions, and no others of the target's, keep blocks.
fn check(heap: &Heap, functions: &[&str]) -> Result<()> {
    let kept = kept(heap);
    let names: Vec<&str> = kept.keys().map(String::as_str).collect();
    ensure!(names == functions, "{kept:?}\n{}", heap.comments.join("\n"));
    ensure!(kept.values().all(|&count| count > 10), "{kept:?}");
    Ok(())
}

/// Whom memtrace asks, and nobody else on this machine.
fn only(engines: &[&Engine]) -> Vec<(&'static str, String)> {
    let mut variables: BTreeMap<&'static str, String> = [
        "DOCKER_HOST",
        "CONTAINER_HOST",
        "CONTAINERD_ADDRESS",
        "CONTAINER_RUNTIME_ENDPOINT",
    ]
    .map(|name| (name, "unix:///nonexistent/engine.sock".to_owned()))
    .into();
    variables.extend(engines.iter().map(|engine| engine.environment()));
    variables.into_iter().collect()
}

/// Traces a container for a while.
fn trace(name: &str, variables: &[(&str, String)]) -> Result<(Heap, tracer::Outcome)> {
    let memtrace = Memtrace::attach_container(name, variables, &[])?;
    std::thread::sleep(A_WHILE);
    memtrace.stop()
}

/// What memtrace says of a container that it does not find.
fn refusal(name: &str, variables: &[(&str, String)]) -> Result<(Option<i32>, String)> {
    let mut command = tracer::command()?;
    let directory = tempfile::tempdir()?;
    command.current_dir(directory.path());
    command
        .args(["--container", name])
        .envs(variables.iter().cloned());
    let output = command.output().context("running memtrace")?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[test]
fn a_container_has_its_own_libraries_and_debug_files() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Glibc)? else {
        return Ok(());
    };
    let pid = docker.run("web", "contained", &[])?;
    let (heap, outcome) = trace("web", &only(&[&docker]))?;
    // The library has the path of another one of the host's, and its debug file is in the container.
    check(&heap, &["contained_first", "contained_inner"])?;
    let others = outcome.other_heaps()?;
    ensure!(others.len() == 1, "{} other processes", others.len());
    check(&others[0], &["contained_child"])?;
    kernel::await_unpatched(pid)
}

#[test]
fn a_container_with_musl() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Musl)? else {
        return Ok(());
    };
    docker.run("web", "contained", &[])?;
    let (heap, outcome) = trace("docker://web", &only(&[&docker]))?;
    check(&heap, &["contained_first"])?;
    check(&outcome.other_heaps()?[0], &["contained_child"])
}

#[test]
fn one_of_two_containers_of_an_image() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Glibc)? else {
        return Ok(());
    };
    let traced = docker.run("traced", "contained", &["--network", "host"])?;
    let bystander = docker.run("bystander", "contained", &[])?;
    let id = docker.id("traced")?;
    let memtrace = Memtrace::attach_container(&id[..12], &only(&[&docker]), &[])?;
    std::thread::sleep(A_WHILE);
    ensure!(
        !kernel::patched_addresses(traced)?.is_empty(),
        "the container is not probed"
    );
    ensure!(
        kernel::patched_addresses(bystander)?.is_empty(),
        "the other one is probed, too"
    );
    let (heap, outcome) = memtrace.stop()?;
    check(&heap, &["contained_first", "contained_inner"])?;
    ensure!(outcome.other_heaps()?.len() == 1);
    ensure!(
        !outcome.stdout.contains(&bystander.to_string()),
        "{}",
        outcome.stdout
    );
    kernel::await_unpatched(traced)
}

/// When a container restarts, its processes are others: what the old ones held is not lost.
#[test]
fn a_container_that_restarts() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Glibc)? else {
        return Ok(());
    };
    let before = docker.run("web", "contained", &[])?;
    let memtrace = Memtrace::attach_container("web", &only(&[&docker]), &[])?;
    std::thread::sleep(A_WHILE);
    docker.client(&["restart", "--time", "0", "web"])?;
    let (heap, outcome) = memtrace.finish(PATIENCE)?.succeeded()?;
    check(&heap, &["contained_first", "contained_inner"])?;
    ensure!(
        outcome.stderr.contains("every process has ended"),
        "{}",
        outcome.stderr
    );
    let after = docker.first_process("web")?;
    ensure!(before != after);
    let (heap, _) = trace("web", &only(&[&docker]))?;
    check(&heap, &["contained_first", "contained_inner"])
}

/// `docker exec` starts processes from outside the container: one before memtrace comes, and one after.
#[test]
fn processes_that_were_started_from_outside() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Glibc)? else {
        return Ok(());
    };
    docker.run("web", "contained", &[])?;
    let exec = || docker.client(&["exec", "--detach", "web", "/contained", "exec"]);
    exec()?;
    let memtrace = Memtrace::attach_container("web", &only(&[&docker]), &[])?;
    exec()?;
    // It is looked for once a second.
    std::thread::sleep(A_WHILE * 5);
    let (heap, outcome) = memtrace.stop()?;
    check(&heap, &["contained_first", "contained_inner"])?;
    let others = outcome.other_heaps()?;
    let of = |function| {
        others
            .iter()
            .filter(|heap| check(heap, &[function]).is_ok())
            .count()
    };
    let found = (of("contained_child"), of("contained_exec"));
    ensure!(found == (1, 2), "{found:?}: {}", outcome.stderr);
    Ok(())
}

#[test]
fn podman_with_user_namespaces() -> Result<()> {
    let Some(podman) = Prepared::new(Engine::podman, Libc::Glibc)? else {
        return Ok(());
    };
    let own = podman.run("own", "contained", &[])?;
    let mapped = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let pid = podman.run("mapped", "contained", &mapped)?;
    let users = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    ensure!(
        users(own)? != users(pid)?,
        "the container has no user namespace of its own"
    );
    for name in ["podman://own", "mapped"] {
        let (heap, outcome) = trace(name, &only(&[&podman]))?;
        check(&heap, &["contained_first", "contained_inner"])?;
        check(&outcome.other_heaps()?[0], &["contained_child"])?;
    }
    Ok(())
}

#[test]
fn containerd_itself_and_no_engine_at_all() -> Result<()> {
    let Some(docker) = Prepared::new(Engine::docker, Libc::Glibc)? else {
        return Ok(());
    };
    docker.run("web", "contained", &[])?;
    let id = docker.id("web")?;
    let mut variables = only(&[]);
    let containerd = docker.containerd();
    for (name, value) in &mut variables {
        if *name == "CONTAINERD_ADDRESS" {
            *value = containerd.display().to_string();
        }
    }
    // Docker keeps its containers in this namespace of containerd's.
    let (heap, _) = trace(&format!("containerd://moby/{id}"), &variables)?;
    check(&heap, &["contained_first", "contained_inner"])?;
    for name in [&id[..], &id[..12]] {
        let (heap, _) = trace(name, &only(&[]))?;
        check(&heap, &["contained_first", "contained_inner"])?;
    }
    // This containerd is not one that a kubelet could use.
    let (code, stderr) = refusal(
        "cri://web",
        &[("CONTAINER_RUNTIME_ENDPOINT", containerd.display().to_string())],
    )?;
    ensure!(
        code == Some(4) && stderr.contains("RuntimeService"),
        "{code:?}: {stderr}"
    );
    Ok(())
}

#[test]
fn names_that_mean_none_or_several() -> Result<()> {
    let (true, _turn) = (skip::can_trace(), serial::turn()?) else {
        return Ok(());
    };
    let (Some(docker), Some(podman), Some(root)) = (Engine::docker()?, Engine::podman()?, root(Libc::Musl)?)
    else {
        return Ok(());
    };
    for engine in [&docker, &podman] {
        engine.import(root.path(), "contained")?;
        engine.run("web", "contained", &["--label", "app=shop"])?;
    }
    let variables = only(&[&docker, &podman]);
    for name in ["web", "app=shop"] {
        let (code, stderr) = refusal(name, &variables)?;
        ensure!(
            code == Some(2) && stderr.contains("means several containers"),
            "{code:?}: {stderr}"
        );
        for engine in [(&docker, "docker"), (&podman, "podman")] {
            let line = format!("{}://{}  web", engine.1, &engine.0.id("web")?[..12]);
            ensure!(stderr.contains(&line), "no {line} in {stderr}");
        }
    }
    let (code, stderr) = refusal("nobody", &variables)?;
    ensure!(
        code == Some(4) && stderr.contains("no running container is nobody"),
        "{stderr}"
    );
    ensure!(
        stderr.contains("1 container runs") && stderr.contains("no such socket"),
        "{stderr}"
    );
    ensure!(
        stderr.contains("podman://") && stderr.contains("  web"),
        "{stderr}"
    );
    let (heap, _) = trace("docker://web", &variables)?;
    check(&heap, &["contained_first"])
}

/// An engine that takes a question and never answers costs two seconds, not more.
#[test]
fn an_engine_that_hangs() -> Result<()> {
    if !skip::can_trace() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("hung.sock");
    let _listener = UnixListener::bind(&socket)?;
    let variables = only(&[]).into_iter();
    let variables: Vec<_> = variables
        .map(|(name, _)| (name, format!("unix://{}", socket.display())))
        .collect();
    let begin = Instant::now();
    let (code, stderr) = refusal("web", &variables)?;
    ensure!(code == Some(4), "{code:?}: {stderr}");
    ensure!(stderr.matches("no answer within 2 s").count() == 4, "{stderr}");
    ensure!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    Ok(())
}
