//! Reading heap profiles: gzipped pprof, flattened into stacks of named frames.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, bail};
use memtrace::profile::{INHERITED, decode_gz, proto as pprof};

use crate::Result;

/// The four values of a heap sample, in the order that pprof's viewers expect.
const SAMPLE_TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// What a stack, a site or a whole profile allocated and still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Blocks allocated since the attach.
    pub alloc_objects: i64,
    /// Bytes allocated since the attach.
    pub alloc_bytes: i64,
    /// Blocks that live.
    pub inuse_objects: i64,
    /// Bytes that live.
    pub inuse_bytes: i64,
}

impl Values {
    /// Adds another stack's values to these.
    pub fn add(&mut self, other: &Self) {
        self.alloc_objects += other.alloc_objects;
        self.alloc_bytes += other.alloc_bytes;
        self.inuse_objects += other.inuse_objects;
        self.inuse_bytes += other.inuse_bytes;
    }
}

/// One frame: inlined calls are frames of their own, at the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function, demangled.
    pub function: String,
    /// The source file; empty when not known.
    pub file: String,
    /// The line; 0 when not known.
    pub line: i64,
    /// The address in the process: for a caller, its return address minus 1.
    pub address: u64,
}

/// One sample: a stack, innermost frame first, and what was allocated there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Innermost frame first.
    pub frames: Vec<Frame>,
    /// What this stack allocated and holds.
    pub values: Values,
    /// Whether this is from before the fork that made the process.
    pub inherited: bool,
}

impl Stack {
    /// The functions' names, innermost first.
    pub fn functions(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.function.as_str()).collect()
    }

    /// Whether a function of this name is in the stack.
    pub fn contains(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.function == function)
    }

    /// The innermost function whose name begins with `prefix`.
    pub fn innermost(&self, prefix: &str) -> Option<&str> {
        self.frames
            .iter()
            .map(|frame| frame.function.as_str())
            .find(|name| name.starts_with(prefix))
    }
}

/// A decoded heap profile.
#[derive(Clone, Debug)]
pub struct Heap {
    /// All samples.
    pub stacks: Vec<Stack>,
    /// The comments: coverage and losses.
    pub comments: Vec<String>,
    /// The sample type that viewers show first.
    pub default_sample_type: String,
    /// The mean distance between two samples (bytes); 1 when every block is recorded.
    pub period: i64,
    /// When tracing began, in nanoseconds since 1970.
    pub time_nanos: i64,
    /// How long tracing took, in nanoseconds.
    pub duration_nanos: i64,
}

impl Heap {
    /// Reads and checks a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let profile = decode_gz(&bytes).with_context(|| format!("decoding {}", path.display()))?;
        Self::flatten(&profile).with_context(|| format!("reading {}", path.display()))
    }

    fn flatten(profile: &pprof::Profile) -> Result<Self> {
        let strings = Strings(&profile.string_table);
        strings.check_sample_types(&profile.sample_type, &SAMPLE_TYPES)?;
        let locations = strings.locations(profile)?;
        let stacks = profile
            .sample
            .iter()
            .map(|sample| stack(sample, &locations, &strings))
            .collect::<Result<_>>()?;
        Ok(Self {
            stacks,
            comments: strings.comments(profile)?,
            default_sample_type: strings.get(profile.default_sample_type)?,
            period: profile.period,
            time_nanos: profile.time_nanos,
            duration_nanos: profile.duration_nanos,
        })
    }

    /// Everything together.
    pub fn total(&self) -> Values {
        self.stacks.iter().fold(Values::default(), |mut sum, stack| {
            sum.add(&stack.values);
            sum
        })
    }

    /// What each function whose name begins with `prefix` allocated: the innermost such function of a stack has it.
    pub fn by_function(&self, prefix: &str) -> BTreeMap<String, Values> {
        let mut sums: BTreeMap<String, Values> = BTreeMap::new();
        for stack in &self.stacks {
            if let Some(function) = stack.innermost(prefix) {
                sums.entry(function.to_owned()).or_default().add(&stack.values);
            }
        }
        sums
    }

    /// The same, of inherited blocks only or of others only.
    pub fn by_function_and_origin(&self, prefix: &str, inherited: bool) -> BTreeMap<String, Values> {
        let stacks = self.stacks.iter().filter(|stack| stack.inherited == inherited);
        let part = Self {
            stacks: stacks.cloned().collect(),
            ..self.clone()
        };
        part.by_function(prefix)
    }

    /// The stacks that go through a function.
    pub fn through<'a>(&'a self, function: &'a str) -> impl Iterator<Item = &'a Stack> {
        self.stacks.iter().filter(move |stack| stack.contains(function))
    }
}

fn stack(sample: &pprof::Sample, locations: &Locations, strings: &Strings<'_>) -> Result<Stack> {
    let inherited = strings
        .labels(sample)?
        .iter()
        .any(|(key, value)| (key.as_str(), value.as_str()) == INHERITED);
    let [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes] = sample.value[..] else {
        bail!("a sample has {} values instead of 4", sample.value.len());
    };
    Ok(Stack {
        frames: frames(sample, locations)?,
        values: Values {
            alloc_objects,
            alloc_bytes,
            inuse_objects,
            inuse_bytes,
        },
        inherited,
    })
}

/// The frames of each location, by its id.
pub(crate) type Locations = HashMap<u64, Vec<Frame>>;

/// The stack of a sample.
pub(crate) fn frames(sample: &pprof::Sample, locations: &Locations) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    for id in &sample.location_id {
        let location = locations.get(id);
        frames.extend_from_slice(location.with_context(|| format!("there is no location {id}"))?);
    }
    Ok(frames)
}

/// A profile's table of strings, and what is read with it.
pub(crate) struct Strings<'a>(pub(crate) &'a [String]);

impl Strings<'_> {
    pub(crate) fn get(&self, index: i64) -> Result<String> {
        let string = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        Ok(string
            .with_context(|| format!("there is no string {index}"))?
            .clone())
    }

    /// The keys and values of a sample's labels.
    pub(crate) fn labels(&self, sample: &pprof::Sample) -> Result<Vec<(String, String)>> {
        let labels = sample.label.iter();
        labels
            .map(|label| Ok((self.get(label.key)?, self.get(label.str)?)))
            .collect()
    }

    pub(crate) fn comments(&self, profile: &pprof::Profile) -> Result<Vec<String>> {
        profile.comment.iter().map(|index| self.get(*index)).collect()
    }

    pub(crate) fn locations(&self, profile: &pprof::Profile) -> Result<Locations> {
        let functions: HashMap<u64, &pprof::Function> = profile.function.iter().map(|f| (f.id, f)).collect();
        let locations = profile.location.iter();
        locations
            .map(|location| Ok((location.id, self.frames(location, &functions)?)))
            .collect()
    }

    /// Insists on these types, in this order.
    pub(crate) fn check_sample_types(
        &self,
        types: &[pprof::ValueType],
        expected: &[(&str, &str)],
    ) -> Result<()> {
        let mut found = Vec::new();
        for value_type in types {
            found.push((self.get(value_type.r#type)?, self.get(value_type.unit)?));
        }
        if !found
            .iter()
            .map(|(name, unit)| (name.as_str(), unit.as_str()))
            .eq(expected.iter().copied())
        {
            bail!("the sample types are {found:?}");
        }
        Ok(())
    }

    fn frames(
        &self,
        location: &pprof::Location,
        functions: &HashMap<u64, &pprof::Function>,
    ) -> Result<Vec<Frame>> {
        let unnamed = Frame {
            function: String::new(),
            file: String::new(),
            line: 0,
            address: location.address,
        };
        if location.line.is_empty() {
            return Ok(vec![unnamed]);
        }
        let mut frames = Vec::new();
        for line in &location.line {
            let id = line.function_id;
            let function = functions
                .get(&id)
                .with_context(|| format!("there is no function {id}"))?;
            let (name, file) = (self.get(function.name)?, self.get(function.filename)?);
            frames.push(Frame {
                function: name,
                file,
                line: line.line,
                address: location.address,
            });
        }
        Ok(frames)
    }
}
