use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};

use super::Token;
use crate::symbol::testing::scratch;

#[test]
fn a_token_is_read_from_a_private_file() {
    let scratch = scratch();
    let path = scratch.path().join("token");
    fs::write(&path, "0123456789abcdef\n").unwrap();
    for (mode, fits) in [
        (0o600, true),
        (0o400, true),
        (0o640, false),
        (0o604, false),
        (0o620, false),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let read = Token::read(&path);
        assert_eq!(read.is_ok(), fits, "{mode:o}: {read:?}");
        if let Err(error) = read {
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = scratch.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(
        Token::read(&link)
            .unwrap()
            .is_shown_by(b"Bearer 0123456789abcdef")
    );
    for wrong in [
        "",
        "short",
        "0123456789 abcdef",
        "0123456789abcdefü",
        "0123456789\nabcdef",
    ] {
        fs::write(&path, wrong).unwrap();
        let error = Token::read(&path).unwrap_err().to_string();
        assert!(error.contains("use "), "{error}");
        assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
    }
    fs::write(&path, "x".repeat(5000)).unwrap();
    assert!(Token::read(&path).is_err());
    assert!(
        Token::read(scratch.path())
            .unwrap_err()
            .to_string()
            .contains("not a file")
    );
    assert!(Token::read(&scratch.path().join("none")).is_err());
}

#[test]
fn a_pipe_is_not_waited_for() {
    let scratch = scratch();
    let path = scratch.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(Token::read(&path).unwrap_err().to_string().contains("not a file"));
}

#[test]
fn a_token_that_is_made_is_private_and_new() {
    let scratch = scratch();
    let directory = scratch.path().join("memtrace");
    let (first, first_file) = Token::make(&directory, 1).unwrap();
    let (second, second_file) = Token::make(&directory, 2).unwrap();
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(first_file.path()).unwrap().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(first_file.path()).unwrap();
    assert_eq!(text.trim().len(), 64);
    assert!(first.is_shown_by(format!("Bearer {}", text.trim()).as_bytes()));
    assert!(!second.is_shown_by(format!("Bearer {}", text.trim()).as_bytes()));
    assert!(!format!("{first:?}").contains(text.trim()));
    let path = first_file.path().to_owned();
    drop(first_file);
    assert!(!path.exists() && second_file.path().exists());
}

#[test]
fn a_token_is_not_kept_where_others_write() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root is wary of others");
        return;
    }
    let scratch = scratch();
    let directory = scratch.path().join("memtrace");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Token::make(&directory, 1).unwrap_err().to_string();
    assert!(
        error.contains("other users can write to it") && error.contains("--token-file"),
        "{error}"
    );
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    let link = scratch.path().join("link");
    symlink("/tmp", &link).unwrap();
    assert!(
        Token::make(&link, 1)
            .unwrap_err()
            .to_string()
            .contains("symbolic link")
    );
}
