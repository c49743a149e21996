//! Brings samples of several profiles into one, by content: ids and indices of two profiles have nothing in common.

use std::collections::HashMap;

use super::{
    proto::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType},
    strings::Strings,
};

/// What tells samples apart: the locations, innermost first, and the labels in an order of their own.
type Distinct = (Vec<u64>, Vec<Label>);

/// A profile that is made of the samples of others. Only what these samples need gets into its tables.
#[derive(Debug)]
pub(super) struct Join {
    profile: Profile,
    strings: Strings,
    functions: HashMap<Function, u64>,
    mappings: HashMap<Mapping, u64>,
    locations: HashMap<Location, u64>,
    samples: HashMap<Distinct, usize>,
}

impl Join {
    /// A profile without samples. What it says of itself (default sample type, period, times, the main binary, which is the
    /// first mapping) is as in `like`, except the sample types and the comments, of which it has none.
    pub(super) fn new(like: &Profile) -> Self {
        let mut join = Self {
            profile: Profile::default(),
            strings: Strings::default(),
            functions: HashMap::new(),
            mappings: HashMap::new(),
            locations: HashMap::new(),
            samples: HashMap::new(),
        };
        // The format wants the empty string first.
        join.string("");
        join.profile.default_sample_type = join.string(text(like, like.default_sample_type));
        join.profile.period_type = like.period_type.map(|of| join.value_type(like, of));
        join.profile.period = like.period;
        join.profile.time_nanos = like.time_nanos;
        join.profile.duration_nanos = like.duration_nanos;
        join.profile.drop_frames = join.string(text(like, like.drop_frames));
        join.profile.keep_frames = join.string(text(like, like.keep_frames));
        join.profile.doc_url = join.string(text(like, like.doc_url));
        if let Some(main) = like.mapping.first() {
            join.mapping(like, main);
        }
        join
    }

    /// Where the values of a sample type of `of` go: the index of the type with the same name and unit, which is added when
    /// it is new.
    pub(super) fn sample_type(&mut self, of: &Profile, sample_type: ValueType) -> usize {
        let sample_type = self.value_type(of, sample_type);
        let known = self.find_type(sample_type);
        known.unwrap_or_else(|| {
            self.profile.sample_type.push(sample_type);
            self.profile.sample_type.len() - 1
        })
    }

    /// The same, but nothing when the type is not there.
    pub(super) fn known_sample_type(&mut self, of: &Profile, sample_type: ValueType) -> Option<usize> {
        let sample_type = self.value_type(of, sample_type);
        self.find_type(sample_type)
    }

    /// Adds a comment that is not there yet.
    pub(super) fn comment(&mut self, comment: &str) {
        let index = self.string(comment);
        if !self.profile.comment.contains(&index) {
            self.profile.comment.push(index);
        }
    }

    /// The times and the period, to be set by who knows what they are.
    pub(super) fn profile_mut(&mut self) -> &mut Profile {
        &mut self.profile
    }

    /// Adds the samples of `from`; `value` gets the index of a value in the sample and the value, and says to which sample
    /// type of this profile what is added.
    pub(super) fn add(&mut self, from: &Profile, value: impl Fn(usize, i64) -> Option<(usize, i64)>) {
        self.add_some(&Source::new(from), &from.sample, |_| true, value);
    }

    /// Adds these samples of `source`, with those of their labels for which `keeps` is true; `value` as in [`Join::add`].
    pub(super) fn add_some<'s>(
        &mut self,
        source: &Source<'_>,
        samples: impl IntoIterator<Item = &'s Sample>,
        keeps: impl Fn(&Label) -> bool,
        value: impl Fn(usize, i64) -> Option<(usize, i64)>,
    ) {
        let types = self.profile.sample_type.len();
        let mut ids = HashMap::new();
        for sample in samples {
            let mut values = vec![0_i64; types];
            let placed = sample.value.iter().enumerate();
            for (to, amount) in placed.filter_map(|(index, amount)| value(index, *amount)) {
                values[to] = values[to].saturating_add(amount);
            }
            if values.iter().all(|value| *value == 0) {
                continue;
            }
            let location_id = sample.location_id.iter().filter_map(|id| {
                let known = ids.entry(*id);
                *known.or_insert_with(|| self.location(source, *id))
            });
            let location_id = location_id.collect();
            let labels = sample.label.iter().filter(|label| keeps(label));
            let label = labels.map(|label| self.label(source.profile, label)).collect();
            self.add_sample(location_id, label, values);
        }
    }

    /// The finished profile, without samples whose values have become 0 and without what only these needed.
    pub(super) fn finish(self) -> Profile {
        let is_zero = |sample: &Sample| sample.value.iter().all(|value| *value == 0);
        let mut profile = self.profile;
        profile.sample.iter_mut().for_each(|sample| {
            sample.value.resize(profile.sample_type.len(), 0);
        });
        if !profile.sample.iter().any(is_zero) {
            return profile;
        }
        let mut without = Self::new(&profile);
        for sample_type in &profile.sample_type {
            without.sample_type(&profile, *sample_type);
        }
        for comment in &profile.comment {
            without.comment(text(&profile, *comment));
        }
        without.add(&profile, |index, amount| Some((index, amount)));
        without.profile
    }

    fn add_sample(&mut self, location_id: Vec<u64>, label: Vec<Label>, values: Vec<i64>) {
        let mut sorted = label.clone();
        sorted.sort_unstable_by_key(|label| (label.key, label.str, label.num, label.num_unit));
        let samples = &mut self.profile.sample;
        let at = *self
            .samples
            .entry((location_id.clone(), sorted))
            .or_insert_with(|| {
                samples.push(Sample {
                    location_id,
                    value: Vec::new(),
                    label,
                });
                samples.len() - 1
            });
        let sums = &mut samples[at].value;
        sums.resize(values.len().max(sums.len()), 0);
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.saturating_add(value);
        }
    }

    fn find_type(&self, sample_type: ValueType) -> Option<usize> {
        let mut types = self.profile.sample_type.iter();
        types.position(|known| *known == sample_type)
    }

    fn string(&mut self, text: &str) -> i64 {
        self.strings.index(&mut self.profile.string_table, text)
    }

    fn value_type(&mut self, from: &Profile, of: ValueType) -> ValueType {
        ValueType {
            r#type: self.string(text(from, of.r#type)),
            unit: self.string(text(from, of.unit)),
        }
    }

    fn label(&mut self, from: &Profile, label: &Label) -> Label {
        Label {
            key: self.string(text(from, label.key)),
            str: self.string(text(from, label.str)),
            num: label.num,
            num_unit: self.string(text(from, label.num_unit)),
        }
    }

    /// The location with the content that `id` has in `source`; nothing when it has none.
    fn location(&mut self, source: &Source<'_>, id: u64) -> Option<u64> {
        let of = source.locations.get(&id)?;
        let mapping = source.mappings.get(&of.mapping_id);
        let lines = of.line.iter().map(|line| Line {
            function_id: source
                .functions
                .get(&line.function_id)
                .map_or(0, |function| self.function(source.profile, function)),
            ..*line
        });
        let location = Location {
            id: 0,
            line: lines.collect(),
            mapping_id: mapping.map_or(0, |mapping| self.mapping(source.profile, mapping)),
            ..**of
        };
        if let Some(known) = self.locations.get(&location) {
            return Some(*known);
        }
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location {
            id,
            ..location.clone()
        });
        self.locations.insert(location, id);
        Some(id)
    }

    fn function(&mut self, from: &Profile, of: &Function) -> u64 {
        let function = Function {
            id: 0,
            name: self.string(text(from, of.name)),
            system_name: self.string(text(from, of.system_name)),
            filename: self.string(text(from, of.filename)),
            ..*of
        };
        let functions = &mut self.profile.function;
        *self.functions.entry(function).or_insert_with(|| {
            let id = functions.len() as u64 + 1;
            functions.push(Function { id, ..function });
            id
        })
    }

    /// Two mappings are one when they are the same bytes of the same file at the same place.
    fn mapping(&mut self, from: &Profile, of: &Mapping) -> u64 {
        let place = Mapping {
            memory_start: of.memory_start,
            memory_limit: of.memory_limit,
            file_offset: of.file_offset,
            filename: self.string(text(from, of.filename)),
            build_id: self.string(text(from, of.build_id)),
            ..Mapping::default()
        };
        let mappings = &mut self.profile.mapping;
        let id = *self.mappings.entry(place).or_insert_with(|| {
            let id = mappings.len() as u64 + 1;
            mappings.push(Mapping { id, ..place });
            id
        });
        let mapping = &mut mappings[id as usize - 1];
        mapping.has_functions |= of.has_functions;
        mapping.has_filenames |= of.has_filenames;
        mapping.has_line_numbers |= of.has_line_numbers;
        mapping.has_inline_frames |= of.has_inline_frames;
        id
    }
}

/// A profile whose tables can be searched by id.
pub(super) struct Source<'a> {
    profile: &'a Profile,
    locations: HashMap<u64, &'a Location>,
    functions: HashMap<u64, &'a Function>,
    mappings: HashMap<u64, &'a Mapping>,
}

impl<'a> Source<'a> {
    pub(super) fn new(profile: &'a Profile) -> Self {
        let locations = profile.location.iter();
        let functions = profile.function.iter();
        let mappings = profile.mapping.iter();
        Self {
            profile,
            locations: locations.map(|location| (location.id, location)).collect(),
            functions: functions.map(|function| (function.id, function)).collect(),
            mappings: mappings.map(|mapping| (mapping.id, mapping)).collect(),
        }
    }
}

/// The string at an index of the profile's table; empty when there is none.
pub(super) fn text(profile: &Profile, index: i64) -> &str {
    let index = usize::try_from(index).ok();
    index
        .and_then(|index| profile.string_table.get(index))
        .map_or("", String::as_str)
}

/// When the time ended that the profile is about, in nanoseconds since 1970.
pub fn ended_nanos(profile: &Profile) -> i64 {
    profile.time_nanos.saturating_add(profile.duration_nanos)
}
