//! Profiles in which the same code has the same address, whichever process ran it.

use std::collections::HashMap;

use super::proto::Profile;

/// Counts the addresses of each file's code from the file's beginning, as if it were mapped there.
///
/// Each process has its code elsewhere, so that the sum of many processes has a sample for each process, and grows with every
/// one that comes. What viewers do with an address, subtract where the mapping begins and add its offset, gives the same.
/// Addresses of memory without a file mean nothing outside of their process: they become 0 where the frame has a name.
pub fn make_file_relative(profile: &mut Profile) {
    let has_file = |name: i64, build_id: i64| {
        let text = |index: i64| {
            usize::try_from(index)
                .ok()
                .and_then(|index| profile.string_table.get(index))
        };
        [name, build_id]
            .into_iter()
            .any(|index| text(index).is_some_and(|text| !text.is_empty()))
    };
    let moves: HashMap<u64, Option<(u64, u64)>> = profile
        .mapping
        .iter()
        .map(|mapping| {
            let is_file = has_file(mapping.filename, mapping.build_id);
            let to = is_file.then_some((mapping.memory_start, mapping.file_offset));
            (mapping.id, to)
        })
        .collect();
    for mapping in &mut profile.mapping {
        if let Some(Some((start, offset))) = moves.get(&mapping.id) {
            mapping.memory_limit = mapping.memory_limit.wrapping_sub(*start).wrapping_add(*offset);
            mapping.memory_start = *offset;
        }
    }
    for location in &mut profile.location {
        match moves.get(&location.mapping_id) {
            Some(Some((start, offset))) => {
                location.address = location.address.wrapping_sub(*start).wrapping_add(*offset);
            }
            _ if !location.line.is_empty() => {
                location.address = 0;
                location.mapping_id = 0;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::make_file_relative;
    use crate::profile::{
        merge,
        proto::{Line, Location, Mapping, Profile, Sample, ValueType},
    };

    /// One sample of a function of a file that is mapped at `start`, and one of a named function in memory without a file.
    fn process(start: u64) -> Profile {
        let location = |id, mapping_id, address| Location {
            id,
            mapping_id,
            address,
            line: vec![Line {
                line: 7,
                ..Line::default()
            }],
            ..Location::default()
        };
        let sample = |id| Sample {
            location_id: vec![id],
            value: vec![1],
            label: Vec::new(),
        };
        let mapping = |id, filename, memory_start| Mapping {
            id,
            filename,
            memory_start,
            memory_limit: memory_start + 0x2000,
            file_offset: 0x1000,
            ..Mapping::default()
        };
        Profile {
            string_table: ["", "objects", "count", "/lib/libc.so"]
                .map(str::to_owned)
                .to_vec(),
            sample_type: vec![ValueType { r#type: 1, unit: 2 }],
            mapping: vec![mapping(1, 3, start), mapping(2, 0, start + 0x10_0000)],
            location: vec![location(1, 1, start + 0x123), location(2, 2, start + 0x10_0123)],
            sample: vec![sample(1), sample(2)],
            ..Profile::default()
        }
    }

    #[test]
    fn two_processes_have_the_same_samples() {
        let parts = [0x7f00_0000_0000, 0x5500_0000_0000].map(|start| {
            let mut profile = process(start);
            make_file_relative(&mut profile);
            profile
        });
        assert_eq!(parts[0].location[0].address, 0x1123);
        assert_eq!(parts[0].mapping[0].memory_start, 0x1000);
        assert_eq!(parts[0].mapping[0].memory_limit, 0x3000);
        let sum = merge(&parts);
        let values: Vec<i64> = sum.sample.iter().map(|sample| sample.value[0]).collect();
        assert_eq!(values, [2, 2]);
    }
}
