//! The machine's only file system: busybox, memtrace, the tests and their targets, with the libraries they need, all
//! at the paths that they have here.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    cpio::Archive,
    guest::{self, Compiled, TestProgram},
};
use crate::{build, process, setup, workspace};

/// Compiles what runs inside and packs it; gives the archive's path.
///
/// # Errors
/// When something does not compile or a program is missing that cannot be installed.
pub fn make(programs: &[TestProgram]) -> Result<PathBuf> {
    let busybox = setup::program("busybox", "busybox-static")?;
    let memtrace = build::build(build::Profile::Debug)?;
    let programs: Vec<Compiled> = programs
        .iter()
        .map(|program| program.compile())
        .collect::<Result<_>>()?;

    let path = workspace::target().join("vm/initramfs");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file))?;
    // What the script mounts and runs on.
    for directory in ["/proc", "/sys", "/dev", "/tmp"] {
        archive.directory(Path::new(directory))?;
    }
    archive.file(Path::new("/init"), guest::script(&programs, &memtrace).as_bytes())?;
    archive.file(Path::new("/bin/busybox"), &read(&busybox)?)?;

    let targets = [
        files(&workspace::root().join("tests/targets"))?,
        files(&workspace::target().join("debug/memtrace-tests"))?,
    ]
    .concat();
    let mut libraries: BTreeSet<PathBuf> = libraries(&busybox).into_iter().collect();
    for program in programs.iter().map(|program| &program.path).chain([&memtrace]) {
        libraries.extend(self::libraries(program));
        archive.file(program, &without_debug_information(program)?)?;
    }
    for target in &targets {
        libraries.extend(self::libraries(target));
        archive.file(target, &read(target)?)?;
    }
    for library in libraries.iter().filter(|library| !targets.contains(library)) {
        archive.file(library, &read(library)?)?;
    }
    for compiled in &programs {
        archive.directory(&compiled.program.directory())?;
    }
    archive.finish()?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The program as it is, but a tenth of its size.
fn without_debug_information(program: &Path) -> Result<Vec<u8>> {
    let stripped = workspace::target().join("vm/stripped");
    let strip = setup::program("strip", "binutils")?;
    let mut command = process::command(strip);
    command.arg("--strip-debug").arg("-o").arg(&stripped).arg(program);
    process::run(&mut command)?;
    read(&stripped)
}

/// The libraries that the dynamic linker loads for `program`, itself included; none for other files.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = process::output(process::command("ldd").arg(program)).unwrap_or_default();
    paths(&listed)
}

/// The paths in ldd's `NAME => PATH (ADDRESS)` and `PATH (ADDRESS)`.
fn paths(listed: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path);
        let path = line.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    listed.lines().filter_map(path).collect()
}

/// Every file below `directory`, except the profiles that tests that were killed left behind.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_file() {
            found.push(path);
        } else if !entry.file_name().to_string_lossy().starts_with("run-") {
            found.extend(files(&path)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::paths;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd5b5f2000)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f9d3c000000)\n\
                      \tlibgone.so => not found\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f9d3c3b1000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths(listed), expected.map(PathBuf::from));
    }
}
