use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use super::{OutputDir, OutputError};
use crate::{
    profile::{Profile, decode_gz},
    target::ProcessInfo,
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// The message of the refusal.
fn refusal(path: PathBuf) -> String {
    match OutputDir::create(path) {
        Err(error) => error.to_string(),
        Ok(directory) => panic!("{} was taken", directory.path().display()),
    }
}

fn profile(period: i64) -> Profile {
    Profile {
        period,
        string_table: vec![String::new()],
        ..Profile::default()
    }
}

#[test]
fn only_the_owner_can_read_what_is_written() {
    let parent = tempfile::tempdir().unwrap();
    let directory = OutputDir::create(parent.path().join("out")).unwrap();
    assert_eq!(mode(directory.path()), 0o700);
    let path = directory.write_final("heap", &profile(1)).unwrap();
    assert_eq!(path, parent.path().join("out/heap.pb.gz"));
    assert_eq!(mode(&path), 0o600);
    assert_eq!(decode_gz(&fs::read(&path).unwrap()).unwrap(), profile(1));
}

#[test]
fn snapshots_are_numbered_and_the_final_one_is_not() {
    let parent = tempfile::tempdir().unwrap();
    let directory = OutputDir::create(parent.path().join("out")).unwrap();
    let first = directory.write_numbered("heap", &profile(1)).unwrap();
    let second = directory.write_numbered("heap", &profile(2)).unwrap();
    directory.write_final("heap", &profile(3)).unwrap();
    let last = directory.write_final("heap", &profile(4)).unwrap();
    let names = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(
        [names(&first), names(&second), names(&last)],
        ["heap-0001.pb.gz", "heap-0002.pb.gz", "heap.pb.gz"]
    );
    assert_eq!(decode_gz(&fs::read(first).unwrap()).unwrap().period, 1);
    assert_eq!(decode_gz(&fs::read(last).unwrap()).unwrap().period, 4);
    // Another run does not overwrite them.
    let again = OutputDir::create(directory.path()).unwrap();
    assert_eq!(
        names(&again.write_numbered("heap", &profile(5)).unwrap()),
        "heap-0003.pb.gz"
    );
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn files_that_are_links_are_replaced_not_followed() {
    let parent = tempfile::tempdir().unwrap();
    let victim = parent.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let directory = OutputDir::create(parent.path().join("out")).unwrap();
    symlink(&victim, directory.path().join("heap.pb.gz")).unwrap();
    symlink(&victim, directory.path().join("heap-0001.pb.gz")).unwrap();
    symlink(
        &victim,
        directory
            .path()
            .join(format!(".heap.pb.gz.{}", std::process::id())),
    )
    .unwrap();
    let path = directory.write_final("heap", &profile(1)).unwrap();
    assert!(!path.is_symlink());
    assert!(
        directory
            .write_numbered("heap", &profile(1))
            .unwrap()
            .ends_with("heap-0002.pb.gz")
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn the_directory_stays_the_one_that_was_opened() {
    let parent = tempfile::tempdir().unwrap();
    let directory = OutputDir::create(parent.path().join("out")).unwrap();
    fs::rename(directory.path(), parent.path().join("moved")).unwrap();
    fs::create_dir(parent.path().join("elsewhere")).unwrap();
    symlink(parent.path().join("elsewhere"), directory.path()).unwrap();
    directory.write_final("heap", &profile(1)).unwrap();
    assert!(parent.path().join("moved/heap.pb.gz").is_file());
    assert_eq!(fs::read_dir(parent.path().join("elsewhere")).unwrap().count(), 0);
}

#[test]
fn directories_that_are_not_safe_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    fs::create_dir(at("real")).unwrap();
    symlink(at("real"), at("link")).unwrap();
    assert!(refusal(at("link")).contains("it is a symbolic link; choose another directory with --output"));
    assert!(refusal(at("link/")).contains("it is a symbolic link"));
    fs::write(at("file"), "").unwrap();
    assert!(
        refusal(at("file")).contains("Not a directory"),
        "{}",
        refusal(at("file"))
    );
    let missing = refusal(at("no/such/parent"));
    assert!(
        missing.contains("No such file or directory") && missing.contains("--output"),
        "{missing}"
    );

    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: what root refuses: not root");
        return;
    }
    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(
        refusal(at("open")).contains("other users can write to it (mode 1777)"),
        "{}",
        refusal(at("open"))
    );
    fs::create_dir(at("theirs")).unwrap();
    chown(at("theirs"), Some(65534), None).unwrap();
    assert!(refusal(at("theirs")).contains("it belongs to another user (uid 65534)"));
    fs::create_dir(at("ours")).unwrap();
    fs::set_permissions(at("ours"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(OutputDir::create(at("ours")).is_ok());
    assert_eq!(
        mode(&at("ours")),
        0o755,
        "a directory that was there keeps its mode"
    );
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing_behind() {
    let parent = tempfile::tempdir().unwrap();
    let directory = OutputDir::create(parent.path().join("out")).unwrap();
    fs::create_dir(directory.path().join("heap.pb.gz")).unwrap();
    let error = directory.write_final("heap", &profile(1)).unwrap_err();
    assert!(matches!(error, OutputError::File { .. }));
    assert!(error.to_string().contains("--output"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn the_default_name_tells_process_and_time() {
    let process = ProcessInfo {
        pid: 4711,
        name: "server".to_owned(),
        executable: "/app/server".into(),
    };
    let started = UNIX_EPOCH + Duration::from_secs(1_795_368_817);
    assert_eq!(
        OutputDir::default_path(&process, started),
        Path::new("memtrace-4711-20261122-173337")
    );
}
