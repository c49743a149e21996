//! Finds out which processes the targets have now.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use regex::Regex;

use super::labels;
use crate::{
    cli::TargetArguments,
    target::containers::{self, Container, Endpoints, Wanted},
};

/// How long an engine's answer is believed that a container does not run, or that it does as before.
const ENGINE_PERIOD: Duration = Duration::from_secs(5);
/// How often a young process's command line is read: it may execute another program soon.
const YOUNG: u8 = 10;

/// A target that was found, with the processes that it has.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is called in addresses.
    pub id: String,
    /// What people know it by.
    pub title: String,
    /// For stores, `service_name` among them.
    pub labels: BTreeMap<String, String>,
    /// Which of the configured targets it is, or belongs to.
    pub spec: Arc<TargetArguments>,
    /// Its processes.
    pub pids: Vec<u32>,
    /// Why it has none that are its own.
    pub absent: Option<String>,
}

/// A configured target, with what was found out before.
struct Spec {
    arguments: Arc<TargetArguments>,
    what: What,
    /// Whether it had any process: one that never had may be a slip of the pen.
    was_found: bool,
}

enum What {
    Pid(u32),
    Cgroup(String),
    Command {
        pattern: Regex,
        /// How often a process was looked at, and whether it matched.
        seen: HashMap<u32, (u8, bool)>,
    },
    Container {
        wanted: Wanted,
        found: Vec<Container>,
        next_look: Instant,
        /// What was told last, so that it is told once.
        told: Option<String>,
    },
}

/// Why a target's description cannot be used.
pub type Unusable = String;

/// Looks for targets.
pub struct Discovery {
    specs: Vec<Spec>,
    endpoints: Endpoints,
}

impl Discovery {
    /// Of these targets, with these sockets of engines.
    ///
    /// # Errors
    /// When a pattern is none.
    pub fn new(targets: Vec<TargetArguments>, endpoints: Endpoints) -> Result<Self, Unusable> {
        let specs = targets.into_iter().map(|arguments| {
            let what = What::of(&arguments)?;
            Ok(Spec {
                arguments: Arc::new(arguments),
                what,
                was_found: false,
            })
        });
        Ok(Self {
            specs: specs.collect::<Result<_, Unusable>>()?,
            endpoints,
        })
    }

    /// What there is now.
    pub async fn look(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        let is_needed = |spec: &Spec| matches!(spec.what, What::Command { .. });
        let processes = match self.specs.iter().any(is_needed) {
            true => all_processes(),
            false => Vec::new(),
        };
        for spec in &mut self.specs {
            let its = spec.look(&processes, &self.endpoints).await;
            spec.was_found |= !its.is_empty();
            let absent = its.is_empty() && !spec.was_found;
            found.extend(absent.then(|| spec.absent()));
            found.extend(its);
        }
        one_each(found)
    }
}

impl What {
    fn of(arguments: &TargetArguments) -> Result<Self, Unusable> {
        if let Some(pid) = arguments.pid {
            return Ok(Self::Pid(pid));
        }
        if let Some(cgroup) = &arguments.cgroup {
            return Ok(Self::Cgroup(cgroup.clone()));
        }
        if let Some(wanted) = &arguments.container {
            return Ok(Self::Container {
                wanted: wanted.clone(),
                found: Vec::new(),
                next_look: Instant::now(),
                told: None,
            });
        }
        let pattern = arguments.command.as_deref().unwrap_or_default();
        Ok(Self::Command {
            pattern: Regex::new(pattern).map_err(|error| error.to_string())?,
            seen: HashMap::new(),
        })
    }
}

impl Spec {
    /// What is known of it as long as it was never there.
    fn absent(&self) -> Found {
        let (kind, which, why) = match &self.what {
            What::Pid(pid) => ("pid", pid.to_string(), "there is no such process"),
            What::Cgroup(path) => ("cgroup", path.clone(), "no process is in it"),
            What::Command { pattern, .. } => (
                "command",
                pattern.to_string(),
                "no process has such a command line",
            ),
            What::Container { wanted, told, .. } => {
                let why = told.as_deref().and_then(|told| told.lines().next());
                let why = why
                    .unwrap_or("it has no process")
                    .trim_end_matches([':', ';', ',']);
                ("container", wanted.to_string(), why)
            }
        };
        labels::of_nobody(&self.arguments, kind, &which, format!("{why} (yet)"))
    }

    async fn look(&mut self, processes: &[u32], endpoints: &Endpoints) -> Vec<Found> {
        let arguments = &self.arguments;
        match &mut self.what {
            What::Pid(pid) => labels::of_process(arguments, *pid).into_iter().collect(),
            What::Cgroup(path) => {
                let pids = containers::processes_below(path);
                labels::of_cgroup(arguments, path, pids).into_iter().collect()
            }
            What::Command { pattern, seen } => {
                let matching = matching(pattern, seen, processes);
                eldest(&matching)
                    .filter_map(|pid| labels::of_process(arguments, pid))
                    .collect()
            }
            What::Container {
                wanted,
                found,
                next_look,
                told,
            } => {
                // One that is gone may be back under its name at once.
                let is_lost = found.iter().any(|container| container.processes().is_err());
                if is_lost || *next_look <= Instant::now() {
                    *next_look = Instant::now() + ENGINE_PERIOD;
                    ask(wanted, endpoints, found, told).await;
                }
                let with_processes = found.iter().filter_map(|container| {
                    let pids = container.processes().ok()?;
                    labels::of_container(arguments, container, pids)
                });
                with_processes.collect()
            }
        }
    }
}

/// Asks the engines for a container.
async fn ask(wanted: &Wanted, endpoints: &Endpoints, found: &mut Vec<Container>, told: &mut Option<String>) {
    match containers::find_all(wanted, endpoints).await {
        Ok(containers) => {
            *found = containers;
            *told = None;
        }
        Err(error) => {
            let text = error.to_string();
            if told.as_ref() != Some(&text) {
                log::warn!("{text}");
                *told = Some(text);
            }
            // One whose engine does not answer may run on.
            found.retain(|container| container.processes().is_ok());
        }
    }
}

/// The processes whose command line matches. Only young ones are looked at again: one that executes another program
/// usually does so soon.
fn matching(pattern: &Regex, seen: &mut HashMap<u32, (u8, bool)>, processes: &[u32]) -> Vec<u32> {
    let before = std::mem::take(seen);
    for &pid in processes {
        let (looks, matched) = before.get(&pid).copied().unwrap_or((0, false));
        let matches = match looks < YOUNG {
            true => command_line(pid).is_some_and(|line| pattern.is_match(&line)),
            false => matched,
        };
        seen.insert(pid, ((looks + 1).min(YOUNG), matches));
    }
    let mut found: Vec<u32> = seen
        .iter()
        .filter(|(_, (_, matches))| *matches)
        .map(|(&pid, _)| pid)
        .collect();
    found.sort_unstable();
    found
}

/// Without those that descend from others: what descends from a process is traced with it.
fn eldest(pids: &[u32]) -> impl Iterator<Item = u32> {
    let all: HashSet<u32> = pids.iter().copied().collect();
    let parent = |pid: &u32| {
        let process = procfs::process::Process::new(i32::try_from(*pid).ok()?).ok()?;
        u32::try_from(process.stat().ok()?.ppid)
            .ok()
            .filter(|&parent| parent > 1)
    };
    pids.iter().copied().filter(move |&pid| {
        let mut ancestors = std::iter::successors(parent(&pid), parent);
        !ancestors.any(|ancestor| all.contains(&ancestor))
    })
}

/// The words of a command line, with blanks between; kernel threads have none.
fn command_line(pid: u32) -> Option<String> {
    let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
    let words = process.cmdline().ok()?;
    (!words.is_empty()).then(|| words.join(" "))
}

/// All processes but memtrace.
fn all_processes() -> Vec<u32> {
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    let ids = all.map(|process| process.pid as u32);
    ids.filter(|&pid| pid != std::process::id()).collect()
}

/// A process belongs to the first target that names it, and another that has no more than such processes is not traced.
/// Targets with the same id are told apart by a number.
fn one_each(found: Vec<Found>) -> Vec<Found> {
    // By their places among those that are kept.
    let mut owners: HashMap<u32, usize> = HashMap::new();
    let mut ids: HashMap<String, u32> = HashMap::new();
    let mut kept: Vec<Found> = Vec::new();
    for mut target in found {
        let all = std::mem::take(&mut target.pids);
        let of_others = all.iter().find_map(|pid| owners.get(pid)).copied();
        target.pids = all.into_iter().filter(|pid| !owners.contains_key(pid)).collect();
        owners.extend(target.pids.iter().map(|pid| (*pid, kept.len())));
        if let (Some(owner), true) = (of_others, target.pids.is_empty()) {
            let owner = &kept[owner].title;
            target.absent = Some(format!(
                "its processes are those of {owner}, and are counted there"
            ));
        }
        let count = ids.entry(target.id.clone()).or_default();
        *count += 1;
        if *count > 1 {
            target.id = format!("{}-{count}", target.id);
        }
        kept.push(target);
    }
    kept
}
