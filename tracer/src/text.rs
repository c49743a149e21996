//! Numbers and names as people read them on a terminal.

use std::{borrow::Cow, time::Duration};

/// A name that comes from the target, safe to print: control characters, which could drive the terminal, and characters
/// that reorder or hide text are escaped (`\u{1b}`).
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            safe.extend(character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

fn is_unsafe(character: char) -> bool {
    // Bidirectional controls and invisible characters (Unicode Technical Report 36, section 2.5.2).
    let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    character.is_control() || hidden
}

/// `512 bytes`, `1.5 KiB`, `31.0 MiB`, `300 GiB`.
pub fn bytes(value: u64) -> String {
    if value == 1 {
        return "1 byte".to_owned();
    }
    scaled(
        value,
        1024.0,
        &[" bytes", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"],
    )
}

/// `1 object`, `12.3 k objects`.
pub fn objects(value: u64) -> String {
    counted(value, "object", "objects")
}

/// `1 mapping`, `12.3 k mappings`: a number of things, whose name in the singular and the plural this takes.
pub fn counted(value: u64, one: &str, many: &str) -> String {
    match value {
        1 => format!("1 {one}"),
        _ => format!("{} {many}", count(value)),
    }
}

/// `1 call that never returned`, `12 calls that never returned`: a number of things, named by words of which the first is the
/// noun in the plural, with an s.
pub fn number_of(value: u64, plural: &str) -> String {
    let (noun, rest) = plural.split_once(' ').unwrap_or((plural, ""));
    let one = format!("{} {rest}", noun.strip_suffix('s').unwrap_or(noun));
    counted(value, one.trim_end(), plural)
}

/// `999`, `1.2 k`, `12.3 M`, `123 G`.
pub fn count(value: u64) -> String {
    scaled(value, 1000.0, &["", " k", " M", " G", " T", " P", " E"])
}

/// `3%`, `0.4%`: what an amount is off by.
pub fn error_margin(ratio: f64) -> String {
    let percent = ratio * 100.0;
    let decimals = usize::from(percent < 0.95);
    format!("{percent:.decimals$}%")
}

/// `+1.2 MiB`, `−512 bytes`, `±0`.
pub fn change(value: i64) -> String {
    signed(value, bytes)
}

/// `+12`, `−1.2 k`, `±0`.
pub fn count_change(value: i64) -> String {
    signed(value, count)
}

fn signed(value: i64, amount: fn(u64) -> String) -> String {
    match value {
        0 => "±0".to_owned(),
        1.. => format!("+{}", amount(value.unsigned_abs())),
        _ => format!("−{}", amount(value.unsigned_abs())),
    }
}

/// Up to three digits, and the unit.
fn scaled(value: u64, step: f64, units: &[&str]) -> String {
    let mut scaled = value as f64;
    let mut unit = 0;
    // What would be rounded up to a whole step is shown in the next unit.
    while scaled >= step - 0.5 && unit + 1 < units.len() {
        scaled /= step;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && scaled < 99.95);
    format!("{scaled:.decimals$}{}", units[unit])
}

/// `420 ms`, `14.2 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`.
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    match seconds {
        0 => format!("{} ms", value.as_millis()),
        1..60 => format!("{:.1} s", (value.as_secs_f64() * 10.0).floor() / 10.0),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// `75%`; a part that is not nothing is not shown as `0%`.
pub fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    };
    match percent {
        _ if part == 0 => "0%".to_owned(),
        ..0.1 => "<0.1%".to_owned(),
        ..9.95 => format!("{percent:.1}%"),
        _ if part < whole && percent >= 99.5 => format!("{:.1}%", percent.min(99.9)),
        _ => format!("{percent:.0}%"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, change, count, count_change, counted, duration, printable, share};

    #[test]
    fn numbers_have_units() {
        for (value, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (10_137, "9.9 KiB"),
            (10_240, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1_048_064, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0 k"),
            (12_345, "12.3 k"),
            (999_600, "1.0 M"),
        ] {
            assert_eq!(count(value), text);
        }
        for (value, text) in [
            (0, "±0"),
            (1024, "+1.0 KiB"),
            (-5, "−5 bytes"),
            (i64::MIN, "−8.0 EiB"),
        ] {
            assert_eq!(change(value), text);
        }
        for (value, text) in [(0, "±0"), (12, "+12"), (-1_234, "−1.2 k")] {
            assert_eq!(count_change(value), text);
        }
        for (value, text) in [(0, "0 mice"), (1, "1 mouse"), (1_000, "1.0 k mice")] {
            assert_eq!(counted(value, "mouse", "mice"), text);
        }
    }

    #[test]
    fn durations_and_shares() {
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (14_290, "14.2 s"),
            (59_990, "59.9 s"),
            (200_000, "3 min 20 s"),
            (18_720_000, "5 h 12 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        for (part, whole, text) in [
            (0, 0, "0%"),
            (1, 10_000, "<0.1%"),
            (1, 30, "3.3%"),
            (3, 4, "75%"),
            (9_999, 10_000, "99.9%"),
            (7, 7, "100%"),
        ] {
            assert_eq!(share(part, whole), text);
        }
    }

    #[test]
    fn no_character_reaches_the_terminal_that_drives_it() {
        assert_eq!(printable("operator new"), "operator new");
        assert_eq!(printable("größe"), "größe");
        assert_eq!(
            printable("a\x1b[31mb\r\n\x07\u{9b}c\u{202e}\u{7f}"),
            r"a\u{1b}[31mb\u{d}\u{a}\u{7}\u{9b}c\u{202e}\u{7f}"
        );
        assert_eq!(printable("\u{2028}\u{feff}"), r"\u{2028}\u{feff}");
    }
}
