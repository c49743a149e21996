//! What a Go program says of itself: the texts that `runtime/pprof` writes with debug=1 and debug=2.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use crate::{
    Result,
    go_profile::{Site, WaitKey},
    profile::Values,
};

/// A heap profile as `runtime/pprof` writes it with debug=1: sampled values, bucket by bucket.
#[derive(Clone, Debug, Default)]
pub struct HeapText {
    /// `runtime.MemProfileRate` (bytes).
    pub rate: i64,
    /// The buckets.
    pub buckets: Vec<(Site, Values)>,
}

impl HeapText {
    /// Reads the lines of the text.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut text = Self::default();
        for record in Record::all(lines)? {
            match record.head.strip_prefix("heap profile: ") {
                // The text gives twice the rate, for a reader of other heap profiles (pprof.go, writeHeapInternal).
                Some(_) => text.rate = record.after_at("heap/")?.parse::<i64>()? / 2,
                None => text.buckets.push((record.site()?, sampled_values(&record.head)?)),
            }
        }
        ensure!(text.rate > 0, "the text of a heap profile gives no rate");
        Ok(text)
    }

    /// The values by site, each bucket scaled up as in the profile that `runtime/pprof` writes without debug.
    pub fn scaled(&self) -> BTreeMap<Site, Values> {
        let mut sums: BTreeMap<Site, Values> = BTreeMap::new();
        for (site, sampled) in &self.buckets {
            let values = Values {
                alloc_objects: self.scale(sampled.alloc_objects, sampled.alloc_bytes).0,
                alloc_bytes: self.scale(sampled.alloc_objects, sampled.alloc_bytes).1,
                inuse_objects: self.scale(sampled.inuse_objects, sampled.inuse_bytes).0,
                inuse_bytes: self.scale(sampled.inuse_objects, sampled.inuse_bytes).1,
            };
            sums.entry(site.clone()).or_default().add(&values);
        }
        sums
    }

    /// `scaleHeapSample` (runtime/pprof, protomem.go): a block of s bytes is sampled with a probability of 1 − exp(−s/rate).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "runtime/pprof cuts off what is behind the point"
    )]
    fn scale(&self, objects: i64, bytes: i64) -> (i64, i64) {
        if objects == 0 || bytes == 0 {
            return (0, 0);
        }
        if self.rate <= 1 {
            return (objects, bytes);
        }
        let size = bytes as f64 / objects as f64;
        let scale = 1.0 / (1.0 - (-size / self.rate as f64).exp());
        ((objects as f64 * scale) as i64, (bytes as f64 * scale) as i64)
    }
}

/// The goroutines that a text of debug=1 counts, by site.
pub fn goroutines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<Site, i64>> {
    let mut counts = BTreeMap::new();
    let mut total = None;
    for record in Record::all(lines)? {
        if let Some(count) = record.head.strip_prefix("goroutine profile: total ") {
            total = Some(count.parse::<i64>()?);
        } else {
            let count: i64 = record
                .head
                .split(' ')
                .next()
                .context("an empty record")?
                .parse()?;
            *counts.entry(record.site()?).or_default() += count;
        }
    }
    let sum: i64 = counts.values().sum();
    ensure!(
        total == Some(sum),
        "the text has {sum} goroutines, and says {total:?}"
    );
    Ok(counts)
}

/// What the goroutines of a text of debug=2 wait for.
pub fn waits<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<WaitKey, i64>> {
    let mut counts = BTreeMap::new();
    let mut current: Option<WaitKey> = None;
    for line in lines {
        if let Some(rest) = line.strip_prefix("goroutine ") {
            let (_, state) = rest.split_once(" [").with_context(|| format!("{line:?}"))?;
            let state = state.trim_end_matches("]:");
            // The minutes, and what it is locked to, follow.
            let wait = state.split(", ").next().unwrap_or(state).to_owned();
            current = Some(WaitKey {
                wait,
                ..WaitKey::default()
            });
        } else if line.is_empty() {
            count(&mut counts, current.take());
        } else if let Some(key) = &mut current {
            read_line(key, line);
        }
    }
    count(&mut counts, current);
    Ok(counts)
}

fn count(counts: &mut BTreeMap<WaitKey, i64>, key: Option<WaitKey>) {
    if let Some(key) = key {
        *counts.entry(key).or_default() += 1;
    }
}

/// A line of a traceback: a call with its arguments, where it is, or who made the goroutine.
fn read_line(key: &mut WaitKey, line: &str) {
    if let Some(creator) = line.strip_prefix("created by ") {
        // Since Go 1.21 the creator's goroutine follows.
        let creator = creator.split(" in goroutine ").next().unwrap_or(creator);
        key.created_by = without_types(creator);
    } else if key.function.is_empty()
        && line.starts_with("main.")
        && let Some((function, _)) = line.rsplit_once('(')
    {
        key.function = without_types(function);
    }
}

/// A function's name with `[...]` for the types of a generic one: texts have it so, profiles name the types (`go.shape.int`).
pub fn without_types(function: &str) -> String {
    match (function.find('['), function.rfind(']')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}[...]{}", &function[..first], &function[last + 1..])
        }
        _ => function.to_owned(),
    }
}

/// A line with numbers and the frames that follow it.
struct Record {
    head: String,
    frames: Vec<(String, String)>,
}

impl Record {
    /// All records. Lines of comment, such as the statistics that end a heap profile, are left out.
    fn all<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Vec<Self>> {
        let mut records: Vec<Self> = Vec::new();
        for line in lines {
            if line.starts_with("#\t0x") {
                // Padded with as many tabs as the columns need.
                let fields: Vec<&str> = line.split('\t').filter(|field| !field.is_empty()).collect();
                let record = records.last_mut().context("a frame without a record")?;
                match fields[..] {
                    ["#", _, function, place] => record.frames.push((function.to_owned(), place.to_owned())),
                    _ => bail!("a frame without a name: {line:?}"),
                }
            } else if !line.is_empty() && !line.starts_with('#') {
                records.push(Self {
                    head: line.to_owned(),
                    frames: Vec::new(),
                });
            }
        }
        Ok(records)
    }

    /// What follows ` @ ` and this.
    fn after_at(&self, what: &str) -> Result<&str> {
        let rest = self.head.split_once(" @ ").map(|(_, rest)| rest);
        rest.and_then(|rest| rest.strip_prefix(what))
            .with_context(|| format!("no {what:?} in {:?}", self.head))
    }

    fn site(&self) -> Result<Site> {
        let frames = self.frames.iter().map(|(function, place)| {
            // `main.main+0x1c`: the name, and how far into the function.
            let (function, _) = function.rsplit_once("+0x").context("no offset")?;
            let (file, line) = place.rsplit_once(':').context("no line")?;
            Ok((function, file, line.parse()?))
        });
        let frames = frames
            .collect::<Result<Vec<_>>>()
            .with_context(|| format!("{:?}", self.frames))?;
        Ok(Site::new(frames))
    }
}

/// Reads `1: 2048 [3: 6144] @ 0x…`: blocks and bytes in use, blocks and bytes allocated.
fn sampled_values(head: &str) -> Result<Values> {
    let (numbers, _) = head.split_once(" @").with_context(|| format!("{head:?}"))?;
    let numbers = numbers
        .split([' ', ':', '[', ']'])
        .filter(|word| !word.is_empty());
    let numbers = numbers
        .map(str::parse)
        .collect::<Result<Vec<i64>, _>>()
        .with_context(|| format!("{head:?}"))?;
    let [inuse_objects, inuse_bytes, alloc_objects, alloc_bytes] = numbers[..] else {
        bail!("{} numbers instead of 4: {head:?}", numbers.len());
    };
    Ok(Values {
        alloc_objects,
        alloc_bytes,
        inuse_objects,
        inuse_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::{HeapText, WaitKey, goroutines, waits, without_types};

    const HEAP: &str = "heap profile: 2: 3000 [5: 9000] @ heap/8192\n\
        2: 2048 [4: 4096] @ 0x1 0x2 0x3\n\
        #\t0x1\truntime.mallocgc+0x1\t\t/go/malloc.go:9\n\
        #\t0x2\tmain.f[...]+0x2a\t\t/src/main.go:7\n\
        #\t0x3\tmain.main+0x4\t/src/main.go:8\n\
        \n\
        # runtime.MemStats\n\
        # Alloc = 1\n";

    #[test]
    fn heap_is_read_and_scaled() -> crate::Result<()> {
        let text = HeapText::parse(HEAP.lines())?;
        assert_eq!(text.rate, 4096);
        let scaled = text.scaled();
        let (site, values) = scaled.first_key_value().expect("one site");
        assert_eq!(
            site.to_string(),
            "main.f[...] /src/main.go:7 < main.main /src/main.go:8"
        );
        // 1 / (1 - exp(-1024 / 4096)) is 4.52.
        assert_eq!((values.inuse_objects, values.inuse_bytes), (9, 9258));
        assert_eq!((values.alloc_objects, values.alloc_bytes), (18, 18517));
        Ok(())
    }

    #[test]
    fn goroutines_are_counted_by_site() -> crate::Result<()> {
        let text = "goroutine profile: total 3\n2 @ 0x1 0x2\n#\t0x1\tmain.a+0x1\t/a.go:1\n\n1 @ 0x3\n#\t0x3\tmain.a+0x1\t/a.go:1\n";
        let counts = goroutines(text.lines())?;
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [3]);
        assert!(goroutines("goroutine profile: total 3".lines()).is_err());
        Ok(())
    }

    #[test]
    fn waits_are_read() -> crate::Result<()> {
        let text = "goroutine 7 [chan receive (nil chan), 2 minutes, locked to thread]:\n\
            main.wait(0x1, {0x2, 0x3})\n\t/a.go:1 +0x1\nmain.other(...)\n\t/a.go:2\n\
            created by main.(*t).start in goroutine 1\n\t/a.go:3 +0x1\n";
        let waits = waits(text.lines())?;
        let key = WaitKey {
            function: "main.wait".into(),
            wait: "chan receive (nil chan)".into(),
            created_by: "main.(*t).start".into(),
        };
        assert_eq!(waits.get(&key), Some(&1));
        Ok(())
    }

    #[test]
    fn types_are_left_out() {
        assert_eq!(without_types("main.f[go.shape.[]int].func1"), "main.f[...].func1");
        assert_eq!(without_types("main.(*t).f"), "main.(*t).f");
    }
}
