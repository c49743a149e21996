//! The Go runtime of one address space.

use std::{collections::HashMap, fs::File, sync::Arc, time::Duration};

use memtrace_ebpf::{layout::EndReason, unwind::frame};

use super::{
    code::Code,
    connections,
    reading::{Earlier, GoReading, Ids, difference},
};
use crate::{
    go::{
        EnabledRate, GoBinary, GoError, GoHeap, GoStatus, Goroutine, Goroutines, Layout, MemRecord,
        RateError, Variables, group, is_system, read_goroutines, read_heap, read_threads, read_u64, scale,
    },
    snapshot::{GoHeapState, GoHeapView, GoState, GoWishes, GoroutineGroup, RUNNING, Site, ThreadGroup},
    target::{Backing, Mapping, Mappings, Process},
    text,
};

/// The Go runtime of one address space.
#[derive(Debug)]
pub struct Runtime {
    process: Arc<Process>,
    program: Option<Arc<File>>,
    version: String,
    /// What is needed to read it, or why it cannot be.
    reader: Result<Reader, String>,
    enabled: Option<EnabledRate>,
    /// What was sampled before memtrace enabled the profile, perhaps at another rate: it cannot be scaled by this one.
    sampled_before: Samples,
    /// The rate that its heap profile is to have once it has started: until then it is not known whether it keeps one.
    awaited_rate: Option<u64>,
    /// Why its heap profile could not be enabled, if that was wanted.
    note: Option<String>,
}

#[derive(Debug)]
struct Reader {
    layout: &'static Layout,
    variables: Variables,
    code: Code,
}

impl Runtime {
    /// The runtime of a program that is mapped there.
    pub fn new(process: Arc<Process>, mapping: &Mapping, binary: Result<Arc<GoBinary>, String>) -> Self {
        let version = match &binary {
            Ok(binary) => binary.version_text().to_owned(),
            Err(_) => String::new(),
        };
        let reader = binary.and_then(|binary| Reader::new(&process, mapping, &binary));
        let program = match &mapping.backing {
            Backing::File(file) => Some(Arc::clone(file)),
            _ => None,
        };
        Self {
            process,
            program,
            version,
            reader,
            enabled: None,
            sampled_before: Samples::new(),
            awaited_rate: None,
            note: None,
        }
    }

    /// Its version in Go's words, if it can be read.
    pub fn version(&self) -> Option<&str> {
        self.reader.is_ok().then_some(&*self.version)
    }

    /// Why it cannot be read, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        self.reader.as_ref().err().map(|why| cannot_be_read(why))
    }

    /// An address in its heap: the array of `runtime.allgs` is there, as `append` makes it.
    pub fn heap_address(&self) -> Option<u64> {
        let allgs = self.reader.as_ref().ok()?.variables.allgs?;
        let array = read_u64(&*self.process, allgs);
        array.ok().filter(|address| *address != 0)
    }

    /// Has the runtime begin a heap profile, if it keeps none.
    pub fn enable(&mut self, rate: u64) {
        let (Ok(reader), Some(program)) = (&self.reader, &self.program) else {
            return;
        };
        let Some(address) = reader.variables.mem_profile_rate else {
            self.note =
                Some("The heap profile was not enabled: runtime.MemProfileRate was not found.".into());
            return;
        };
        let has_started = self.heap_address().is_some();
        let before = read_heap(&*self.process, reader.layout, &reader.variables);
        self.awaited_rate = None;
        match EnabledRate::enable(Arc::clone(&self.process), program, address, rate) {
            Ok(enabled) => {
                self.enabled = Some(enabled);
                let buckets = before.map(|heap| heap.buckets).unwrap_or_default().into_iter();
                self.sampled_before = buckets
                    .map(|bucket| ((bucket.stack, bucket.size), bucket.now))
                    .collect();
                self.note = None;
            }
            // `schedinit` sets the rate to 0 where the linker found that nothing reads the profile.
            Err(RateError::Present(_)) if !has_started => {
                self.awaited_rate = Some(rate);
                self.note = Some("The heap profile was not enabled: the runtime was only starting.".into());
            }
            Err(error) => self.note = Some(format!("The heap profile was not enabled: {error}.")),
        }
    }

    /// The same, if that was too early before.
    pub fn enable_awaited(&mut self) {
        if let Some(rate) = self.awaited_rate {
            self.enable(rate);
        }
    }

    /// What it knows now, and how that changed since an earlier reading, which was made so long ago.
    pub fn read(
        &self,
        mappings: &Mappings,
        wishes: &GoWishes,
        earlier: Option<(&GoReading, Duration)>,
    ) -> GoReading {
        let mut state = GoState {
            version: self.version.clone(),
            recent: earlier.map_or(Duration::ZERO, |(_, ago)| ago),
            notes: self.note.iter().cloned().collect(),
            ..GoState::default()
        };
        let mut ids = Ids::default();
        let reader = match &self.reader {
            Ok(reader) => reader,
            Err(why) => {
                state.notes.push(format!("{}.", cannot_be_read(why)));
                return GoReading { state, ids };
            }
        };
        let context = Context {
            reader,
            process: &self.process,
            mappings,
            sampled_before: &self.sampled_before,
            earlier: earlier.map(|(reading, _)| Earlier::of(reading)),
        };
        if wishes.heap {
            let heap = context.heap(wishes.view);
            if let Some(mut heap) = note_failure("heap profile", heap, &mut state.notes) {
                heap.is_enabled_by_us = self.enabled.is_some();
                state.notes.extend(context.standstill(&heap, state.recent));
                state.heap = Some(heap);
            }
        }
        if wishes.goroutines || wishes.threads {
            let goroutines = context.goroutines();
            if let Some(goroutines) = note_failure("goroutines", goroutines, &mut state.notes) {
                ids = goroutines.all.iter().map(|goroutine| goroutine.id).collect();
                state.loops = connections::loops(&goroutines, &reader.code);
                if wishes.goroutines {
                    state.goroutines = Some(context.groups(&goroutines));
                }
                if goroutines.torn > 0 {
                    let torn = goroutines.torn;
                    let note =
                        format!("{torn} goroutines changed whenever they were read and are not shown.");
                    state.notes.push(note);
                }
                if wishes.threads {
                    let threads = context.threads(&goroutines);
                    state.threads = note_failure("threads", threads, &mut state.notes);
                }
            }
        }
        GoReading { state, ids }
    }
}

fn cannot_be_read(why: &str) -> String {
    format!("Its Go runtime cannot be read: {why}")
}

/// What was read; if it could not be, that is noted.
fn note_failure<T>(what: &str, result: Result<T, GoError>, notes: &mut Vec<String>) -> Option<T> {
    result
        .inspect_err(|error| notes.push(format!("Its {what} cannot be read: {error}.")))
        .ok()
}

impl Reader {
    fn new(process: &Process, mapping: &Mapping, binary: &GoBinary) -> Result<Self, String> {
        let layout = Layout::of(binary.version())
            .ok_or_else(|| format!("the layout of {} is not known", binary.version_text()))?;
        let variables = binary.variables(process, mapping.bias);
        Ok(Self {
            layout,
            variables: variables.map_err(|error| error.to_string())?,
            code: Code {
                table: binary.table(),
                bias: mapping.bias,
            },
        })
    }
}

/// What a reading needs.
struct Context<'r> {
    reader: &'r Reader,
    process: &'r Process,
    mappings: &'r Mappings,
    sampled_before: &'r Samples,
    earlier: Option<Earlier<'r>>,
}

/// What was sampled of each stack and size of blocks.
type Samples = HashMap<(Vec<u64>, u64), MemRecord>;

impl Context<'_> {
    fn heap(&self, view: GoHeapView) -> Result<GoHeapState, GoError> {
        let Reader {
            layout,
            variables,
            code,
        } = self.reader;
        let GoHeap {
            rate,
            mut buckets,
            is_uncollected,
            torn,
        } = read_heap(self.process, layout, variables)?;
        for bucket in buckets.iter_mut().filter(|_| !self.sampled_before.is_empty()) {
            let stack = std::mem::take(&mut bucket.stack);
            let key = (stack, bucket.size);
            if let Some(before) = self.sampled_before.get(&key) {
                bucket.published = bucket.published.since(before);
                bucket.now = bucket.now.since(before);
            }
            bucket.stack = key.0;
        }
        let mut sites: HashMap<Vec<u64>, Site> = HashMap::new();
        let mut unpublished_bytes = 0;
        // A runtime that keeps no profile may have drawn a sample before it knew.
        for bucket in buckets.iter().filter(|_| rate > 0) {
            let record = match view {
                GoHeapView::Published => &bucket.published,
                GoHeapView::Now => &bucket.now,
            };
            let (alloc_objects, alloc_bytes) = scale(record.allocs, bucket.size, rate);
            unpublished_bytes += scale(bucket.now.allocs, bucket.size, rate)
                .1
                .saturating_sub(alloc_bytes);
            let live = record.allocs.saturating_sub(record.frees);
            let (live_objects, live_bytes) = scale(live, bucket.size, rate);
            if record.allocs == 0 {
                continue;
            }
            let frames = code.pack(self.mappings, &code.physical(&bucket.stack));
            let site = sites
                .entry(frames)
                .or_insert_with_key(|frames| empty_site(frames));
            site.alloc_objects += alloc_objects;
            site.alloc_bytes += alloc_bytes;
            site.live_objects += live_objects;
            site.live_bytes += live_bytes;
            site.live_samples += live;
        }
        let mut sites: Vec<Site> = sites.into_values().collect();
        for site in &mut sites {
            let earlier = self.earlier.as_ref();
            site.recent_change = earlier.map_or(0, |earlier| earlier.change_of_site(site));
        }
        Ok(GoHeapState {
            sites,
            rate,
            is_enabled_by_us: false,
            view,
            is_uncollected,
            unpublished_bytes,
            torn,
        })
    }

    /// That a heap which looks as if nothing happened is only not published yet.
    fn standstill(&self, heap: &GoHeapState, recent: Duration) -> Option<String> {
        let stands_still = self.earlier.as_ref()?.heap_stands_still(heap);
        (stands_still && heap.unpublished_bytes > 0).then(|| {
            format!(
                "The heap is as of the last garbage collection, and none was completed in the last {}; {} were allocated \
                 since, which --go-heap now counts.",
                text::duration(recent),
                text::bytes(heap.unpublished_bytes)
            )
        })
    }

    fn goroutines(&self) -> Result<Goroutines, GoError> {
        let Reader {
            layout,
            variables,
            code,
        } = self.reader;
        read_goroutines(self.process, layout, variables, code)
    }

    fn groups(&self, goroutines: &Goroutines) -> Vec<GoroutineGroup> {
        let groups = group(&goroutines.all);
        let mut groups: Vec<GoroutineGroup> = groups
            .iter()
            .map(|group| {
                let earlier = self.earlier.as_ref();
                let persists = |id: &&u64| earlier.is_some_and(|earlier| earlier.had(**id));
                GoroutineGroup {
                    frames: self.stack(&group.example),
                    created_by: self.created_by(&group.example),
                    wait: wait(&group.example),
                    count: group.ids.len() as u64,
                    persistent: group.ids.iter().filter(persists).count() as u64,
                    recent_change: 0,
                    is_system: self.is_system(&group.example),
                }
            })
            .collect();
        self.note_changes(&mut groups);
        groups
    }

    /// What waits at one place for several reasons, or was made at several, changes together: it goes to the largest group.
    fn note_changes(&self, groups: &mut [GoroutineGroup]) {
        let Some(earlier) = &self.earlier else {
            return;
        };
        let mut now: HashMap<Vec<u64>, u64> = HashMap::new();
        for group in &*groups {
            *now.entry(group.frames.clone()).or_default() += group.count;
        }
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        for group in groups {
            if let Some(count) = now.remove(&group.frames) {
                group.recent_change = difference(count, earlier.goroutines_at(&group.frames));
            }
        }
    }

    /// The stack of a goroutine; of one that runs, its function only.
    fn stack(&self, goroutine: &Goroutine) -> Vec<u64> {
        match goroutine.stack.is_empty() {
            true if goroutine.start != 0 => {
                let start = frame::pack(0, goroutine.start, false);
                vec![self.mappings.place(start)]
            }
            _ => self.reader.code.pack(self.mappings, &goroutine.stack),
        }
    }

    fn created_by(&self, goroutine: &Goroutine) -> Arc<str> {
        match goroutine.created_at {
            0 => "".into(),
            address => self.reader.code.function(address),
        }
    }

    fn is_system(&self, goroutine: &Goroutine) -> bool {
        let code = &self.reader.code;
        // A function's entry is no return address.
        let start = code.function(goroutine.start.wrapping_add(1));
        let is_user = |pc: &u64| !code.function(*pc).starts_with("runtime.");
        let runs_user_code = goroutine.stack.iter().any(is_user);
        is_system(&start, runs_user_code, self.reader.layout.version)
    }

    fn threads(&self, goroutines: &Goroutines) -> Result<Vec<ThreadGroup>, GoError> {
        let Reader {
            layout, variables, ..
        } = self.reader;
        let by_id: HashMap<u64, &Goroutine> = goroutines.all.iter().map(|of| (of.id, of)).collect();
        let mut groups: HashMap<(&'static str, Vec<u64>), u64> = HashMap::new();
        let threads = read_threads(self.process, layout, variables)?;
        // Without an id it is kept for threads of C that may call Go, and stands for none.
        for thread in threads.iter().filter(|thread| thread.id != 0) {
            let frames = match by_id.get(&thread.goroutine) {
                Some(goroutine) => self.stack(goroutine),
                None => self.reader.code.pack(self.mappings, &thread.created_by),
            };
            *groups.entry((thread.hold.name(), frames)).or_default() += 1;
        }
        let group = |((hold, frames), count)| {
            let mut group = ThreadGroup {
                frames,
                hold,
                count,
                recent_change: 0,
            };
            let earlier = self.earlier.as_ref();
            group.recent_change = earlier.map_or(0, |earlier| earlier.change_of_threads(&group));
            group
        };
        Ok(groups.into_iter().map(group).collect())
    }
}

fn empty_site(frames: &[u64]) -> Site {
    Site {
        inherited: false,
        frames: frames.to_vec(),
        end: EndReason::Complete,
        alloc_objects: 0,
        alloc_bytes: 0,
        live_objects: 0,
        live_bytes: 0,
        mean_age: Duration::ZERO,
        recent_change: 0,
        live_samples: 0,
    }
}

/// Why a goroutine waits, or what else it does.
fn wait(goroutine: &Goroutine) -> &'static str {
    match goroutine.status {
        GoStatus::Runnable => "runnable",
        GoStatus::Running => RUNNING,
        GoStatus::Syscall => "syscall",
        GoStatus::Waiting if goroutine.wait_reason.is_empty() => "waiting",
        GoStatus::Waiting => goroutine.wait_reason,
        GoStatus::Other(_) => "other",
    }
}
