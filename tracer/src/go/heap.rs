//! The heap profile, from `runtime.mbuckets` (`src/runtime/mprof.go`).

use std::{collections::HashSet, thread, time::Duration};

use super::{
    GoError, GoHeap, MemBucket, MemRecord, Memory, Variables, Version,
    layout::{BucketLayout, Layout},
    memory::{read_u32, read_u64, read_words},
};

/// The most buckets read: programs have thousands.
const MAX_BUCKETS: usize = 1_000_000;

/// How often a bucket that does not pass is read at once.
const BUCKET_ATTEMPTS: usize = 4;
/// How often and how long one is waited for, of all buckets: a thread that was counting in it may wait for a processor.
const WAITS: usize = 32;
const WAIT: Duration = Duration::from_millis(1);

/// How often the profile is read when the runtime published it meanwhile.
const PASS_ATTEMPTS: usize = 8;

/// How long the runtime is given to finish publishing: it takes less than a millisecond.
const PUBLISHING: Duration = Duration::from_millis(1);

/// `memProfile` (`mprof.go`).
const MEM_PROFILE: u64 = 1;

/// The size of a `memRecordCycle` without bytes, as it is from Go 1.27 on.
const SHORT_CYCLE: u64 = 16;

/// Words of a `memRecord` before Go 1.27: four times four.
const RECORD_WORDS: usize = 16;

/// Return addresses read along with the head of a bucket; most buckets have fewer.
const USUAL_DEPTH: usize = 32;

/// Reads the heap profile.
///
/// # Errors
/// [`GoError::Layout`] when a variable is not known, or when what is there contradicts the layout; [`GoError::Memory`].
pub fn read_heap(memory: &dyn Memory, layout: &Layout, variables: &Variables) -> Result<GoHeap, GoError> {
    let mbuckets = known(variables.mbuckets, "runtime.mbuckets")?;
    let mprof_cycle = known(variables.mprof_cycle, "runtime.mProfCycle")?;
    let rate = read_u64(
        memory,
        known(variables.mem_profile_rate, "runtime.MemProfileRate")?,
    )?;
    let mut pass = Pass::default();
    for _ in 0..PASS_ATTEMPTS {
        let cycle = read_u32(memory, mprof_cycle)?;
        let pass_now = walk(memory, &layout.bucket, mbuckets, cycle)?;
        let is_steady = cycle == read_u32(memory, mprof_cycle)? && !pass_now.is_being_published(cycle);
        pass = pass_now;
        if is_steady {
            break;
        }
        thread::sleep(PUBLISHING);
    }
    pass.check(layout)?;
    Ok(pass.publish(rate))
}

/// How many allocations, and of how many bytes, so many sampled ones of this size stand for, as `scaleHeapSample` has it
/// (`src/runtime/pprof/protomem.go`): a block of `size` bytes is sampled with probability `1 - exp(-size/rate)`.
pub fn scale(count: u64, size: u64, rate: u64) -> (u64, u64) {
    if count == 0 || size == 0 {
        return (0, 0);
    }
    let bytes = count.saturating_mul(size);
    if rate <= 1 {
        return (count, bytes);
    }
    let factor = 1.0 / (1.0 - (-(size as f64) / rate as f64).exp());
    ((count as f64 * factor) as u64, (bytes as f64 * factor) as u64)
}

fn known(address: Option<u64>, name: &str) -> Result<u64, GoError> {
    address.ok_or_else(|| GoError::Layout(format!("{name} was not found")))
}

/// What one walk along the buckets found.
#[derive(Default)]
struct Pass {
    buckets: Vec<Bucket>,
    torn: u64,
    /// Buckets that would also pass with records of four words, as they were before Go 1.27; only counted for 1.27.
    with_bytes: usize,
}

/// A bucket that passed every check.
struct Bucket {
    size: u64,
    stack: Vec<u64>,
    active: MemRecord,
    /// Not yet published: the current cycle, and the two after it.
    pending: MemRecord,
    others: MemRecord,
}

impl Pass {
    /// Whether the runtime is adding this cycle to the published records: it says that it did before it does
    /// (`mProf_Flush`), and nothing else is counted for this cycle any more.
    fn is_being_published(&self, cycle: u32) -> bool {
        cycle & 1 != 0
            && self
                .buckets
                .iter()
                .any(|bucket| bucket.pending != MemRecord::default())
    }

    /// Refuses what contradicts the layout.
    fn check(&self, layout: &Layout) -> Result<(), GoError> {
        let Version { major, minor } = layout.version;
        let used = self.buckets.iter().filter(|bucket| !bucket.is_empty()).count() as u64;
        let refused = (self.torn > 0 && used <= self.torn) || (used > 0 && self.with_bytes as u64 * 2 > used);
        if refused {
            return Err(GoError::Layout(format!(
                "the heap profile does not look like that of Go {major}.{minor}: {} of {} buckets pass",
                self.buckets.len(),
                self.buckets.len() as u64 + self.torn
            )));
        }
        Ok(())
    }

    fn publish(self, rate: u64) -> GoHeap {
        // Before the first garbage collection the runtime publishes all there is (`memProfileInternal`, `clear`).
        let published = |bucket: &Bucket| add(bucket.active, bucket.pending);
        let is_clear = self.buckets.iter().all(|bucket| {
            let record = published(bucket);
            record.allocs == 0 && record.frees == 0
        });
        let buckets = self.buckets.into_iter().map(|bucket| {
            let now = add(published(&bucket), bucket.others);
            MemBucket {
                size: bucket.size,
                published: if is_clear { now } else { published(&bucket) },
                now,
                stack: bucket.stack,
            }
        });
        GoHeap {
            rate,
            buckets: buckets.collect(),
            is_uncollected: is_clear,
            torn: self.torn,
        }
    }
}

impl Bucket {
    fn is_empty(&self) -> bool {
        let now = add(add(self.active, self.pending), self.others);
        now == MemRecord::default()
    }
}

fn add(a: MemRecord, b: MemRecord) -> MemRecord {
    MemRecord {
        allocs: a.allocs.wrapping_add(b.allocs),
        frees: a.frees.wrapping_add(b.frees),
        alloc_bytes: a.alloc_bytes.wrapping_add(b.alloc_bytes),
        free_bytes: a.free_bytes.wrapping_add(b.free_bytes),
    }
}

/// Reads all buckets, newest first.
fn walk(memory: &dyn Memory, layout: &BucketLayout, mbuckets: u64, cycle: u32) -> Result<Pass, GoError> {
    let mut pass = Pass::default();
    let (mut seen, mut waits) = (HashSet::new(), WAITS);
    let mut address = read_u64(memory, mbuckets)?;
    while address != 0 && seen.len() < MAX_BUCKETS {
        // Where the list leads nowhere it was no list: what is behind is lost, and `check` refuses if nothing else passed.
        let is_new = address.is_multiple_of(8) && seen.insert(address);
        let words = if is_new {
            settle(memory, layout, address, cycle, &mut waits)
        } else {
            None
        };
        let Some((words, bucket)) = words else {
            pass.torn += 1;
            break;
        };
        match bucket {
            Some(bucket) => {
                pass.with_bytes += usize::from(layout.cycle_size == SHORT_CYCLE && has_bytes(layout, &words));
                pass.buckets.push(bucket);
            }
            None => pass.torn += 1,
        }
        address = word(&words, layout.allnext);
    }
    Ok(pass)
}

/// Reads a bucket until it passes, a few times at most; `None` if it cannot be read.
fn settle(
    memory: &dyn Memory,
    layout: &BucketLayout,
    address: u64,
    cycle: u32,
    waits: &mut usize,
) -> Option<(Vec<u64>, Option<Bucket>)> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let words = read_bucket(memory, layout, address).ok()?;
        let bucket = check_bucket(layout, &words, cycle);
        let is_last = attempt >= BUCKET_ATTEMPTS && *waits == 0;
        if bucket.is_some() || is_last {
            return Some((words, bucket));
        }
        if attempt >= BUCKET_ATTEMPTS {
            *waits -= 1;
            thread::sleep(WAIT);
        }
    }
}

/// The words of a bucket, its stack and its record, and maybe some behind those.
fn read_bucket(memory: &dyn Memory, layout: &BucketLayout, address: u64) -> Result<Vec<u64>, GoError> {
    let head = layout.stack as usize / 8;
    let words = read_words(memory, address, head + USUAL_DEPTH + RECORD_WORDS)
        // The last bucket of a block of memory may be shorter than that.
        .or_else(|_| read_words(memory, address, head))?;
    let depth = word(&words, layout.nstk).min(layout.max_depth) as usize;
    let needed = head + depth + record_words(layout);
    if needed <= words.len() {
        return Ok(words);
    }
    read_words(memory, address, needed)
}

fn record_words(layout: &BucketLayout) -> usize {
    4 * layout.cycle_size as usize / 8
}

/// The bucket, if its hash is that of its stack and size, and its counts can be.
fn check_bucket(layout: &BucketLayout, words: &[u64], cycle: u32) -> Option<Bucket> {
    let (size, depth) = (word(words, layout.size), word(words, layout.nstk));
    if word(words, layout.typ) != MEM_PROFILE || depth > layout.max_depth || size == 0 {
        return None;
    }
    let (stack, record) = words
        .get(layout.stack as usize / 8..)?
        .split_at_checked(depth as usize)?;
    if hash(stack, size) != word(words, layout.hash) {
        return None;
    }
    let mut cycles = record
        .get(..record_words(layout))?
        .chunks_exact(layout.cycle_size as usize / 8)
        .map(|words| check_cycle(words, size));
    let active = cycles.next()??;
    let future = [cycles.next()??, cycles.next()??, cycles.next()??];
    let current = (cycle >> 1) as usize % future.len();
    let others = add(future[(current + 1) % 3], future[(current + 2) % 3]);
    let bucket = Bucket {
        size,
        stack: stack.to_vec(),
        active,
        pending: future[current],
        others,
    };
    let published = add(active, bucket.pending);
    let now = add(published, others);
    (published.frees <= published.allocs && now.frees <= now.allocs).then_some(bucket)
}

/// The counts of one cycle (`memRecordCycle`).
fn check_cycle(words: &[u64], size: u64) -> Option<MemRecord> {
    let (allocs, frees) = (*words.first()?, *words.get(1)?);
    let record = MemRecord {
        allocs,
        frees,
        alloc_bytes: allocs.checked_mul(size)?,
        free_bytes: frees.checked_mul(size)?,
    };
    let agrees = match words.get(2..4) {
        Some(bytes) => bytes == [record.alloc_bytes, record.free_bytes],
        None => true,
    };
    agrees.then_some(record)
}

/// Whether these would be counts with bytes beside them, as they were before Go 1.27: the hash does not cover the record.
fn has_bytes(layout: &BucketLayout, words: &[u64]) -> bool {
    let begin = layout.stack as usize / 8 + word(words, layout.nstk) as usize;
    let record = words.get(begin..begin + RECORD_WORDS).unwrap_or_default();
    let size = word(words, layout.size);
    record
        .chunks_exact(RECORD_WORDS / 4)
        .any(|cycle| cycle[0] > 0 && Some(cycle[2]) == cycle[0].checked_mul(size))
}

/// `bucket.hash` (`stkbucket`).
fn hash(stack: &[u64], size: u64) -> u64 {
    let mix = |hash: u64, word: u64| {
        let hash = hash.wrapping_add(word);
        let hash = hash.wrapping_add(hash << 10);
        hash ^ (hash >> 6)
    };
    let hash = stack.iter().chain([&size]).fold(0, |hash, &word| mix(hash, word));
    let hash = hash.wrapping_add(hash << 3);
    hash ^ (hash >> 11)
}

/// The word at this offset; 0 if it was not read.
fn word(words: &[u64], offset: u64) -> u64 {
    words.get(offset as usize / 8).copied().unwrap_or(0)
}
