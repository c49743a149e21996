//! Makes profiles of snapshots, in a thread of its own: naming code takes long, and must not keep a tracer from its events.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    profile::{self, AllocatorFrames, Profile, is_cumulative, type_names},
    session::{
        Error,
        profiles::{names_of, profile_of},
    },
    snapshot::Snapshot,
    symbol::Symbolizer,
};

/// Names are found anew when more files are known than this, and half of them were not needed for [`A_WHILE`]: those of
/// targets that are gone are among them.
const MODULES: usize = 512;
/// See [`MODULES`].
const A_WHILE: Duration = Duration::from_secs(60);
/// Names are also found anew when so many files were not needed for [`LONG`]: the tables of one can take 100 MiB.
const UNUSED: usize = 8;
/// See [`UNUSED`]; the files of which profiles are asked for rarely must not be read each time.
const LONG: Duration = Duration::from_secs(600);
/// So many comments are kept of the processes of a target that have ended: each has some of its own.
const COMMENTS: usize = 64;

/// The profiles of a target by their names.
pub type Profiles = BTreeMap<&'static str, Arc<Profile>>;

/// What is to be made.
pub enum Job {
    /// The profiles of a target now, or the one of this name.
    Now {
        /// The target's id.
        target: String,
        /// What its processes hold.
        snapshots: Vec<Snapshot>,
        /// Which profile, if not all.
        only: Option<&'static str>,
        /// How stacks are shown.
        frames: AllocatorFrames,
        /// Where they go.
        answer: oneshot::Sender<Profiles>,
    },
    /// A process of a target has ended; this is the last word on it.
    Past {
        /// The target's id.
        target: String,
        /// What it held.
        snapshot: Box<Snapshot>,
        /// How stacks are shown.
        frames: AllocatorFrames,
    },
    /// A target has ended: its last profiles, with what its processes held that ended last.
    Last {
        /// The target's id.
        target: String,
        /// Where they go.
        answer: oneshot::Sender<Profiles>,
    },
}

/// How long jobs may take that are left at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread.
pub struct Naming {
    jobs: mpsc::Sender<Job>,
    /// Closed when the thread ends.
    done: mpsc::Receiver<()>,
}

impl Naming {
    /// Begins to wait for jobs. Whether [`Job::Last`] is to tell what processes held that ended last; it costs to keep it.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(keeps_recent: bool) -> Result<Self, Error> {
        let (jobs, received) = mpsc::channel();
        let (ends, done) = mpsc::channel();
        let thread = std::thread::Builder::new().name("naming".into()).spawn(move || {
            let mut maker = Maker {
                symbolizer: Symbolizer::new(),
                ended: HashMap::new(),
                keeps_recent,
            };
            received.iter().for_each(|job| maker.perform(job));
            drop::<mpsc::Sender<()>>(ends);
        });
        thread.map_err(|source| Error::System {
            what: "cannot start a thread",
            source,
        })?;
        Ok(Self { jobs, done })
    }

    /// Where jobs are sent to.
    pub fn jobs(&self) -> mpsc::Sender<Job> {
        self.jobs.clone()
    }

    /// Waits until all jobs are done, but not for ever: how long code takes to be named is in the hands of the targets.
    pub fn join(self) {
        drop(self.jobs);
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.done.recv_timeout(PATIENCE) {
            log::warn!(
                "profiles that were not made within {} s are lost",
                PATIENCE.as_secs()
            );
        }
    }
}

/// What the ended processes of a target left.
#[derive(Default)]
struct Ended {
    /// What only grows, of all of them: it stays in the target's profiles, so that the difference of two is what happened between.
    cumulative: HashMap<&'static str, Profile>,
    /// Everything, of those that ended since the profiles were made the last time.
    recent: HashMap<&'static str, Profile>,
}

struct Maker {
    symbolizer: Symbolizer,
    ended: HashMap<String, Ended>,
    keeps_recent: bool,
}

impl Maker {
    fn perform(&mut self, job: Job) {
        match job {
            Job::Now {
                target,
                snapshots,
                only,
                frames,
                answer,
            } => {
                let made = self.now(&target, &snapshots, only, frames);
                // Whoever asked may have left.
                let _left = answer.send(made);
            }
            Job::Past {
                target,
                snapshot,
                frames,
            } => {
                self.keep(target, &snapshot, frames);
                self.forget_names();
            }
            Job::Last { target, answer } => {
                let _left = answer.send(self.last(&target));
                self.forget_names();
            }
        }
    }

    fn forget_names(&mut self) {
        let names = &self.symbolizer;
        let are_many = names.module_count() > MODULES && names.unused_for(A_WHILE) > MODULES / 2;
        if are_many || names.unused_for(LONG) >= UNUSED {
            self.symbolizer = Symbolizer::new();
        }
    }

    fn now(
        &mut self,
        target: &str,
        snapshots: &[Snapshot],
        only: Option<&'static str>,
        frames: AllocatorFrames,
    ) -> Profiles {
        let mut parts: BTreeMap<&'static str, Vec<Profile>> = BTreeMap::new();
        for snapshot in snapshots {
            for name in names_of(snapshot) {
                if only.is_none_or(|only| only == name)
                    && let Some(made) = self.profile(snapshot, name, frames)
                {
                    parts.entry(name).or_default().push(made);
                }
            }
        }
        if let Some(ended) = self.ended.get_mut(target) {
            for (name, profile) in &ended.cumulative {
                if let Some(parts) = parts.get_mut(name) {
                    parts.push(profile.clone());
                }
            }
            if only.is_none() {
                ended.recent.clear();
            }
        }
        joined(parts)
    }

    /// The profile of one process. The processes of a target are summed up, over its whole life: what is the same code is to
    /// be the same sample.
    fn profile(
        &mut self,
        snapshot: &Snapshot,
        name: &'static str,
        frames: AllocatorFrames,
    ) -> Option<Profile> {
        let mut made = profile_of(snapshot, name, &mut self.symbolizer, frames)?;
        profile::make_file_relative(&mut made);
        Some(made)
    }

    fn keep(&mut self, target: String, snapshot: &Snapshot, frames: AllocatorFrames) {
        let mut ended = self.ended.remove(&target).unwrap_or_default();
        for name in names_of(snapshot) {
            let Some(made) = self.profile(snapshot, name, frames) else {
                continue;
            };
            let mut grown = made.clone();
            keep_cumulative(&mut grown);
            if !grown.sample.is_empty() {
                add(&mut ended.cumulative, name, grown);
            }
            if self.keeps_recent {
                add(&mut ended.recent, name, made);
            }
        }
        self.ended.insert(target, ended);
    }

    fn last(&mut self, target: &str) -> Profiles {
        let Some(ended) = self.ended.remove(target) else {
            return Profiles::new();
        };
        let mut parts: BTreeMap<&'static str, Vec<Profile>> = BTreeMap::new();
        for (name, mut recent) in ended.recent {
            // That is in what all have left.
            drop_cumulative(&mut recent);
            parts.entry(name).or_default().push(recent);
        }
        for (name, all) in ended.cumulative {
            parts.entry(name).or_default().push(all);
        }
        joined(parts)
    }
}

/// Adds a profile to the sum of those of its name.
fn add(sums: &mut HashMap<&'static str, Profile>, name: &'static str, profile: Profile) {
    let mut sum = match sums.remove(name) {
        Some(before) => profile::merge(&[before, profile]),
        None => profile,
    };
    sum.comment.truncate(COMMENTS);
    sums.insert(name, sum);
}

fn joined(parts: BTreeMap<&'static str, Vec<Profile>>) -> Profiles {
    let joined = parts.into_iter().filter_map(|(name, mut parts)| {
        let profile = match parts.len() {
            0 | 1 => parts.pop()?,
            _ => profile::merge(&parts),
        };
        Some((name, Arc::new(profile)))
    });
    joined.collect()
}

/// Sets everything to zero that does not only grow, and removes what is nothing then.
fn keep_cumulative(profile: &mut Profile) {
    clear(profile, |name| !is_cumulative(name));
    profile
        .sample
        .retain(|sample| sample.value.iter().any(|&value| value != 0));
}

/// Sets everything to zero that only grows.
fn drop_cumulative(profile: &mut Profile) {
    clear(profile, is_cumulative);
}

fn clear(profile: &mut Profile, is_cleared: impl Fn(&str) -> bool) {
    let cleared: Vec<bool> = type_names(profile).map(is_cleared).collect();
    for sample in &mut profile.sample {
        for (value, is_cleared) in sample.value.iter_mut().zip(&cleared) {
            if *is_cleared {
                *value = 0;
            }
        }
    }
}
