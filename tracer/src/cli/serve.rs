//! The command line of the daemon, and its configuration file, which has the same words.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgGroup, Args, CommandFactory as _, FromArgMatches as _, Parser};

use super::{Recording, values::parse_size};
use crate::{
    output::{http::HttpOptions, push::PushOptions},
    target::containers::Wanted,
};

/// What `memtrace serve --help` shows below the options.
const AFTER_HELP: &str = "\
A configuration file has the same options by the same names, and a [[target]] for each target:

  listen = \"127.0.0.1:6060\"
  sample-bytes = \"512k\"            # of every target that does not say otherwise

  [[target]]
  name = \"shop\"
  container = \"docker://shop\"

  [[target]]
  command = \"^/usr/bin/redis-server\"
  profiles = [\"heap\", \"fd\"]";

/// Traces targets as they come and go, until it is told to stop; serves their profiles, and pushes them to stores.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArguments {
    /// The configuration file (TOML). SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A process to trace. Like the other targets, it can be given several times.
    #[arg(long, short, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Vec<u32>,

    /// A container or pod's containers to trace: as for a single run, and with labels all that have them.
    #[arg(long, value_name = "NAME", value_parser = Wanted::parse)]
    pub container: Vec<Wanted>,

    /// A cgroup whose processes are traced: its path below the cgroup file system, such as /system.slice/nginx.service.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,

    /// Processes whose command line matches this regular expression, and what descends from them.
    #[arg(long, value_name = "REGEX")]
    pub command: Vec<String>,

    /// The socket of the container runtime that a kubelet uses [default: CONTAINER_RUNTIME_ENDPOINT, or the usual ones].
    #[arg(long, value_name = "SOCKET")]
    pub runtime_endpoint: Option<String>,

    /// What is recorded of targets that do not say otherwise.
    #[command(flatten)]
    pub recording: Recording,

    /// How many targets are traced at once; further ones wait.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub max_targets: usize,

    /// How much kernel memory all tables together may take; a target that needs more waits.
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = parse_size)]
    pub max_memory: u64,

    /// Where profiles are served.
    #[command(flatten)]
    pub http: HttpOptions,

    /// Where profiles are pushed to.
    #[command(flatten)]
    pub push: PushOptions,

    /// Only errors.
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Also print what is probed and why.
    #[arg(long, short)]
    pub verbose: bool,
}

/// One target: what it is, what it is called, and what is recorded of it.
#[derive(Clone, Debug, Parser, PartialEq, Eq)]
#[command(no_binary_name = true, disable_help_flag = true)]
#[command(group = ArgGroup::new("what").required(true).args(["pid", "container", "cgroup", "command"]))]
pub struct TargetArguments {
    /// The name of the service in stores; by default what the target is called.
    #[arg(long)]
    pub name: Option<String>,

    /// See [`ServeArguments::pid`].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,

    /// See [`ServeArguments::container`].
    #[arg(long, value_parser = Wanted::parse)]
    pub container: Option<Wanted>,

    /// See [`ServeArguments::cgroup`].
    #[arg(long)]
    pub cgroup: Option<String>,

    /// See [`ServeArguments::command`].
    #[arg(long)]
    pub command: Option<String>,

    /// What is recorded.
    #[command(flatten)]
    pub recording: Recording,
}

/// Why a configuration cannot be used, in words that say where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It says something that the options do not know.
    #[error("{}: {place}: {text}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        place: String,
        /// Why.
        text: String,
    },
}

/// What the daemon is to do.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The daemon's own options.
    pub options: ServeArguments,
    /// What is to be traced.
    pub targets: Vec<TargetArguments>,
}

impl ServeArguments {
    /// Joins the options of the command line with those of the file that they name. The command line has the last word.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn configuration(&self, words: &[OsString]) -> Result<Configuration, ConfigError> {
        let Some(path) = &self.config else {
            return Ok(self.clone().with(Vec::new()));
        };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.clone(),
            source,
        })?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|source| ConfigError::Syntax {
            path: path.clone(),
            source: source.into(),
        })?;
        let unknown = |place: &str, text: String| ConfigError::Unknown {
            path: path.clone(),
            place: place.to_owned(),
            text,
        };
        let targets = match table.remove("target") {
            None => Vec::new(),
            Some(toml::Value::Array(targets)) => targets,
            Some(_) => return Err(unknown("target", "write [[target]], once for each target".into())),
        };
        let options = options_of(&table, words).map_err(|text| unknown("options", text))?;
        let parsed = targets.iter().enumerate().map(|(index, target)| {
            let target = target.as_table().ok_or_else(|| "write [[target]]".to_owned());
            let target = target.and_then(|table| target_of(table, &options.recording));
            target.map_err(|text| unknown(&format!("target {}", index + 1), text))
        });
        let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
        Ok(options.with(parsed))
    }

    /// Adds the targets of the options.
    fn with(self, mut targets: Vec<TargetArguments>) -> Configuration {
        let none = TargetArguments {
            name: None,
            pid: None,
            container: None,
            cgroup: None,
            command: None,
            recording: self.recording.clone(),
        };
        targets.extend(self.pid.iter().map(|&pid| TargetArguments {
            pid: Some(pid),
            ..none.clone()
        }));
        targets.extend(self.container.iter().map(|container| TargetArguments {
            container: Some(container.clone()),
            ..none.clone()
        }));
        targets.extend(self.cgroup.iter().map(|cgroup| TargetArguments {
            cgroup: Some(cgroup.clone()),
            ..none.clone()
        }));
        targets.extend(self.command.iter().map(|command| TargetArguments {
            command: Some(command.clone()),
            ..none.clone()
        }));
        Configuration {
            options: self,
            targets,
        }
    }
}

/// The options of a file, then those of the command line.
fn options_of(table: &toml::Table, words: &[OsString]) -> Result<ServeArguments, String> {
    let command = || ServeArguments::augment_args(clap::Command::new("serve").no_binary_name(true));
    let of_file = command().try_get_matches_from(words_of(table)?).map_err(told)?;
    let mut options = ServeArguments::from_arg_matches(&of_file).map_err(told)?;
    let without_defaults = command().mut_args(without_default);
    let of_line = without_defaults.try_get_matches_from(words).map_err(told)?;
    options.update_from_arg_matches(&of_line).map_err(told)?;
    Ok(options)
}

/// A target of a file; what it does not say is as in `recording`.
fn target_of(table: &toml::Table, recording: &Recording) -> Result<TargetArguments, String> {
    let words = words_of(table)?;
    let whole = TargetArguments::command()
        .try_get_matches_from(&words)
        .map_err(told)?;
    let target = TargetArguments::from_arg_matches(&whole).map_err(told)?;
    let without_defaults = TargetArguments::command().mut_args(without_default);
    let said = without_defaults.try_get_matches_from(&words).map_err(told)?;
    let mut recording = recording.clone();
    recording.update_from_arg_matches(&said).map_err(told)?;
    Ok(TargetArguments { recording, ..target })
}

/// So that only what is said overrides.
fn without_default(argument: clap::Arg) -> clap::Arg {
    argument.default_value(None::<&str>)
}

/// The words of the command line that say the same as a table.
fn words_of(table: &toml::Table) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    for (key, value) in table {
        let option = key.replace('_', "-");
        let values = match value {
            toml::Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            match value {
                toml::Value::Boolean(false) => {}
                toml::Value::Boolean(true) => words.push(format!("--{option}")),
                toml::Value::String(text) => words.push(format!("--{option}={text}")),
                toml::Value::Integer(number) => words.push(format!("--{option}={number}")),
                _ => {
                    return Err(format!(
                        "`{key}` must be a text, a number, true or false, or a list of them"
                    ));
                }
            }
        }
    }
    Ok(words)
}

/// What clap says, without its colours and what concerns the command line, in one line.
fn told(error: clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let words: Vec<&str> = lines.collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}
