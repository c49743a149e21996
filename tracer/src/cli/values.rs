//! How sizes, times and names are written on the command line.

use std::{num::NonZeroU64, time::Duration};

/// The largest mean distance between samples (bytes): then the smallest block still has a chance in 32 bits.
const MAX_DISTANCE: u64 = 1 << 30;

/// Parses `4096`, `512k`, `512KiB`, `1M`, `2g`, each unit being 1024 times the one before it.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write for example 4096, 512k, or 1M");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Parses the mean distance between two samples.
pub(super) fn parse_distance(text: &str) -> Result<NonZeroU64, String> {
    let size = parse_size(text)?;
    NonZeroU64::new(size)
        .filter(|size| size.get() <= MAX_DISTANCE)
        .ok_or_else(|| format!("`{text}` is not between 1 byte and 1G"))
}

/// Parses a rate that can be set with one byte, so that the target never sees half of it.
pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 4 << 10;
    let rate = parse_size(text)?;
    let is_one_byte = rate.to_ne_bytes().iter().filter(|byte| **byte != 0).count() == 1;
    match rate {
        LEAST..=MAX_DISTANCE if is_one_byte => Ok(rate),
        _ => Err(format!(
            "`{text}` is not a rate that can be set at once: from 4k to 1G, in one byte that is not 0, such as 4k, 64k, or 512k"
        )),
    }
}

/// Accepts what a C name can begin with.
pub(super) fn parse_prefix(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || c == '.';
    let begins_well = text.starts_with(|c: char| !c.is_ascii_digit());
    if begins_well && text.chars().all(is_name) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` cannot begin a function's name; write for example my_"
        ))
    }
}

/// Parses `90`, `90s`, `1m30s`, `2h`, `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write for example 30s, 5m, or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "" if next.is_empty() && digits == text.len() => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = next;
    }
    if total.is_zero() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::{Duration, parse_distance, parse_duration, parse_size};

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512k"), Ok(512 << 10));
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        assert_eq!(parse_size("3g"), Ok(3 << 30));
        for wrong in ["", "k", "1x", "-1", "1.5M", "1k2", "99999999999g"] {
            assert!(parse_size(wrong).is_err(), "{wrong}: {:?}", parse_size(wrong));
        }
        assert!(parse_distance("1").is_ok() && parse_distance("1g").is_ok());
        assert!(parse_distance("0").is_err() && parse_distance("1025M").is_err());
    }

    #[test]
    fn durations() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(seconds("30s"), Ok(30_000));
        assert_eq!(seconds("30"), Ok(30_000));
        assert_eq!(seconds("1m30s"), Ok(90_000));
        assert_eq!(seconds("500ms"), Ok(500));
        assert_eq!(seconds("2h"), Ok(7_200_000));
        for wrong in [
            "",
            "s",
            "0",
            "0s",
            "5x",
            "1m30",
            "-3s",
            "99999999999999999999s",
            "99999999999999999h",
        ] {
            assert!(
                parse_duration(wrong).is_err(),
                "{wrong}: {:?}",
                parse_duration(wrong)
            );
        }
        assert_eq!(parse_duration("1s").ok(), Some(Duration::from_secs(1)));
    }
}
