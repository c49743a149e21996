//! How much is in the hash tables and tries that a process has in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context, ensure};
use aya::maps::{MapData, MapType};

use crate::{Result, kernel::number};

/// `BPF_MAP_GET_NEXT_KEY` (`include/uapi/linux/bpf.h`).
const MAP_GET_NEXT_KEY: libc::c_long = 4;

/// What that call takes of `union bpf_attr`.
#[repr(C)]
struct NextKey {
    map_fd: u32,
    _pad: u32,
    key: u64,
    next_key: u64,
}

/// The number of entries of each hash table and trie, by its name. Tables that forget what was used least recently are left out.
pub fn entries(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // What was closed meanwhile has no text.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        ids.extend(number(&text, "map_id:"));
    }
    let mut entries = BTreeMap::new();
    for id in ids {
        let map = MapData::from_id(id).with_context(|| format!("opening the map {id}"))?;
        let info = map.info()?;
        if matches!(info.map_type()?, MapType::Hash | MapType::LpmTrie) {
            let name = info.name_as_str().unwrap_or_default().to_owned();
            *entries.entry(name).or_default() += count(&map, info.key_size() as usize)?;
        }
    }
    ensure!(!entries.is_empty(), "process {pid} has no tables in the kernel");
    Ok(entries)
}

/// Goes from key to key. While others add and remove, some are missed or met twice.
fn count(map: &MapData, key_size: usize) -> Result<u64> {
    let (mut key, mut next) = (vec![0_u8; key_size], vec![0_u8; key_size]);
    let mut found = 0;
    loop {
        let attributes = NextKey {
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            _pad: 0,
            key: if found == 0 { 0 } else { key.as_ptr() as u64 },
            next_key: next.as_mut_ptr() as u64,
        };
        // SAFETY: the kernel reads one key and writes one, for which the vectors have room.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_GET_NEXT_KEY,
                &raw const attributes,
                size_of::<NextKey>(),
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            ensure!(
                error.raw_os_error() == Some(libc::ENOENT),
                "reading a map's keys: {error}"
            );
            return Ok(found);
        }
        found += 1;
        std::mem::swap(&mut key, &mut next);
    }
}
