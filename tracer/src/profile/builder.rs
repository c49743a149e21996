//! Builds a profile of any kind: strings, functions, locations and stacks are kept once each.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    proto::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType},
    strings::Strings,
};
use crate::{
    symbol::{self, Symbolized, hex},
    target::{self, Mappings, ProcessInfo},
};

/// What one value of each sample counts, such as `inuse_space` in `bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleType {
    /// The name by which viewers offer it.
    pub name: &'static str,
    /// Its unit: `bytes`, `count`, `nanoseconds`.
    pub unit: &'static str,
}

/// What a kind of profile is: its values and how they were sampled.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The values of each sample, in their order.
    pub sample_types: &'static [SampleType],
    /// The value that viewers show first: a name in `sample_types`.
    pub default: &'static str,
    /// What `period` counts.
    pub period_type: SampleType,
    /// How many units of `period_type` lie between two samples; 1 when every event counts.
    pub period: i64,
}

/// One frame of a sample's stack.
#[derive(Clone, Copy, Debug)]
pub enum Frame<'a> {
    /// Code of the target.
    Code(&'a Symbolized),
    /// A frame that stands for something that is not code, such as `[stack not recorded]`.
    Synthetic(&'a str),
}

/// A frame in the tables of the [`Builder`] that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocationId(u64);

/// What tells samples apart: the locations, and the labels' keys and values.
type Distinct = (Vec<u64>, Vec<(i64, i64)>);

/// A profile that grows by samples.
#[derive(Debug)]
pub struct Builder<'a> {
    profile: Profile,
    mappings: &'a Mappings,
    strings: Strings,
    functions: HashMap<(i64, i64, i64), u64>,
    /// By the target's mapping id.
    mapping_ids: HashMap<u16, u64>,
    /// By mapping, address, and how many lines of the address are shown.
    locations: HashMap<(Option<u16>, u64, usize), u64>,
    synthetic: HashMap<i64, u64>,
    stacks: HashMap<Distinct, usize>,
}

impl<'a> Builder<'a> {
    /// An empty profile of a process, whose main binary becomes the first mapping.
    pub fn new(kind: &Kind, process: &ProcessInfo, mappings: &'a Mappings) -> Self {
        let mut builder = Self {
            profile: Profile::default(),
            mappings,
            strings: Strings::default(),
            functions: HashMap::new(),
            mapping_ids: HashMap::new(),
            locations: HashMap::new(),
            synthetic: HashMap::new(),
            stacks: HashMap::new(),
        };
        builder.string("");
        builder.profile.sample_type = kind
            .sample_types
            .iter()
            .map(|of| builder.value_type(of))
            .collect();
        builder.profile.default_sample_type = builder.string(kind.default);
        builder.profile.period_type = Some(builder.value_type(&kind.period_type));
        builder.profile.period = kind.period;
        builder.add_main_mapping(process);
        builder
    }

    /// When the profile's time began, and for how long it lasted.
    pub fn set_time(&mut self, began: SystemTime, duration: Duration) {
        let since_epoch = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.profile.time_nanos = signed(since_epoch.as_nanos());
        self.profile.duration_nanos = signed(duration.as_nanos());
    }

    /// Adds a line to the profile's comments.
    pub fn add_comment(&mut self, text: &str) {
        let text = self.string(text);
        self.profile.comment.push(text);
    }

    /// The frame's place in the profile, made when it is new.
    pub fn location(&mut self, frame: Frame<'_>) -> LocationId {
        LocationId(match frame {
            Frame::Code(code) => self.code_location(code),
            Frame::Synthetic(name) => self.synthetic_location(name),
        })
    }

    /// Adds a sample, innermost frame first, with one value for each of the kind's sample types, and labels (key and
    /// value). A stack seen before with the same labels gets the values added to its own; a sample whose values are all 0
    /// is left out.
    pub fn add_sample(
        &mut self,
        stack: impl IntoIterator<Item = LocationId>,
        labels: &[(&str, &str)],
        values: &[u64],
    ) {
        debug_assert_eq!(values.len(), self.profile.sample_type.len());
        if values.iter().all(|value| *value == 0) {
            return;
        }
        let location_id: Vec<u64> = stack.into_iter().map(|location| location.0).collect();
        let labels = labels.iter();
        let labels = labels
            .map(|(key, value)| (self.string(key), self.string(value)))
            .collect();
        match self.stacks.entry((location_id, labels)) {
            Entry::Occupied(known) => {
                let sample = &mut self.profile.sample[*known.get()];
                for (sum, value) in sample.value.iter_mut().zip(values) {
                    *sum = sum.saturating_add(signed(*value));
                }
            }
            Entry::Vacant(new) => {
                let (location_id, labels) = new.key();
                let label = labels.iter().map(|(key, value)| Label {
                    key: *key,
                    str: *value,
                    ..Label::default()
                });
                let sample = Sample {
                    location_id: location_id.clone(),
                    value: values.iter().map(|value| signed(*value)).collect(),
                    label: label.collect(),
                };
                new.insert(self.profile.sample.len());
                self.profile.sample.push(sample);
            }
        }
    }

    /// The finished profile.
    pub fn finish(self) -> Profile {
        self.profile
    }

    fn string(&mut self, text: &str) -> i64 {
        self.strings.index(&mut self.profile.string_table, text)
    }

    fn value_type(&mut self, of: &SampleType) -> ValueType {
        ValueType {
            r#type: self.string(of.name),
            unit: self.string(of.unit),
        }
    }

    fn code_location(&mut self, code: &Symbolized) -> u64 {
        let key = (code.mapping, code.address, code.lines.len());
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let mapping_id = code.mapping.and_then(|id| self.mapping(id)).unwrap_or(0);
        let line = code.lines.iter().map(|line| self.line(line)).collect();
        self.note_what_is_known(mapping_id, code);
        let id = self.push_location(Location {
            mapping_id,
            address: code.address,
            line,
            ..Location::default()
        });
        self.locations.insert(key, id);
        id
    }

    fn synthetic_location(&mut self, name: &str) -> u64 {
        let name = self.string(name);
        if let Some(id) = self.synthetic.get(&name) {
            return *id;
        }
        let function_id = self.function(name, name, 0);
        let line = vec![Line {
            function_id,
            ..Line::default()
        }];
        let id = self.push_location(Location {
            line,
            ..Location::default()
        });
        self.synthetic.insert(name, id);
        id
    }

    fn push_location(&mut self, location: Location) -> u64 {
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location { id, ..location });
        id
    }

    fn line(&mut self, line: &symbol::Line) -> Line {
        let name = self.string(&line.function);
        let system_name = line.system_name.as_deref().map_or(name, |raw| self.string(raw));
        let filename = line.file.as_deref().map_or(0, |file| self.string(file));
        let function_id = self.function(name, system_name, filename);
        Line {
            function_id,
            line: line.line.into(),
            column: line.column.into(),
        }
    }

    fn function(&mut self, name: i64, system_name: i64, filename: i64) -> u64 {
        let functions = &mut self.profile.function;
        *self
            .functions
            .entry((name, system_name, filename))
            .or_insert_with(|| {
                let id = functions.len() as u64 + 1;
                functions.push(Function {
                    id,
                    name,
                    system_name,
                    filename,
                    start_line: 0,
                });
                id
            })
    }

    fn add_main_mapping(&mut self, process: &ProcessInfo) {
        let same_file = |mapping: &&Arc<target::Mapping>| mapping.path == process.executable;
        let main = self
            .mappings
            .all
            .iter()
            .filter(same_file)
            .min_by_key(|mapping| mapping.begin);
        match main.map(|mapping| mapping.id) {
            Some(id) => {
                self.mapping(id);
            }
            None => {
                let filename = self.file_name(&process.executable);
                self.profile.mapping.push(Mapping {
                    id: 1,
                    filename,
                    ..Mapping::default()
                });
            }
        }
    }

    fn mapping(&mut self, id: u16) -> Option<u64> {
        if let Some(known) = self.mapping_ids.get(&id) {
            return Some(*known);
        }
        let of = Arc::clone(self.mappings.get(id)?);
        let mapping = Mapping {
            id: self.profile.mapping.len() as u64 + 1,
            memory_start: of.begin,
            memory_limit: of.end,
            file_offset: of.file_offset,
            filename: self.file_name(&of.path),
            build_id: of.build_id.as_deref().map_or(0, |id| self.string(&hex(id))),
            ..Mapping::default()
        };
        self.profile.mapping.push(mapping);
        self.mapping_ids.insert(id, mapping.id);
        Some(mapping.id)
    }

    fn file_name(&mut self, path: &Path) -> i64 {
        let name = path.to_string_lossy();
        // The kernel appends this to the path of a file that has been unlinked (fs/d_path.c).
        self.string(name.strip_suffix(" (deleted)").unwrap_or(&name))
    }

    /// A mapping "has" what at least one of its locations has; a viewer that wants more may then look for itself.
    fn note_what_is_known(&mut self, mapping_id: u64, code: &Symbolized) {
        let Some(mapping) = mapping_id
            .checked_sub(1)
            .and_then(|at| self.profile.mapping.get_mut(at as usize))
        else {
            return;
        };
        mapping.has_functions |= code.named;
        mapping.has_filenames |= code.lines.iter().any(|line| line.file.is_some());
        mapping.has_line_numbers |= code.lines.iter().any(|line| line.line != 0);
        mapping.has_inline_frames |= code.lines.len() > 1;
    }
}

/// A count as pprof stores it; beyond `i64::MAX` it stays there.
fn signed(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
