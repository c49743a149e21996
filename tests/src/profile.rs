//! Reading profiles: gzipped pprof, flattened into stacks of named frames; and heap profiles.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, bail, ensure};
use memtrace::profile::{INHERITED, decode_gz, proto as pprof};

use crate::Result;

/// The four values of a heap sample, in the order that pprof's viewers expect.
pub const SAMPLE_TYPES: [(&str, &str); 4] = [
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

/// Whether a function of this name is among the frames.
pub fn contains(frames: &[Frame], function: &str) -> bool {
    frames.iter().any(|frame| frame.function == function)
}

/// The innermost function whose name begins with `prefix`, of frames that begin with the innermost.
pub fn innermost<'a>(frames: &'a [Frame], prefix: &str) -> Option<&'a str> {
    let mut names = frames.iter().map(|frame| frame.function.as_str());
    names.find(|name| name.starts_with(prefix))
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
        contains(&self.frames, function)
    }

    /// The innermost function whose name begins with `prefix`.
    pub fn innermost(&self, prefix: &str) -> Option<&str> {
        innermost(&self.frames, prefix)
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
        let profile = Samples::read(path, &SAMPLE_TYPES)?;
        let stacks = profile.samples.into_iter().map(stack).collect::<Result<_>>()?;
        Ok(Self {
            stacks,
            comments: profile.comments,
            default_sample_type: profile.default_sample_type,
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

fn stack(sample: Sample) -> Result<Stack> {
    let [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes] = sample.values()?;
    let inherited = sample
        .labels
        .iter()
        .any(|(key, value)| (key.as_str(), value.as_str()) == INHERITED);
    Ok(Stack {
        frames: sample.frames,
        values: Values {
            alloc_objects,
            alloc_bytes,
            inuse_objects,
            inuse_bytes,
        },
        inherited,
    })
}

/// A decoded profile of any kind.
#[derive(Clone, Debug)]
pub struct Samples {
    /// All samples.
    pub samples: Vec<Sample>,
    /// As [`Heap::comments`].
    pub comments: Vec<String>,
    /// As [`Heap::default_sample_type`].
    pub default_sample_type: String,
    /// As [`Heap::period`].
    pub period: i64,
    /// What the period counts, and in which unit.
    pub period_type: (String, String),
    /// As [`Heap::time_nanos`].
    pub time_nanos: i64,
    /// As [`Heap::duration_nanos`].
    pub duration_nanos: i64,
}

/// One sample of a profile of any kind.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Innermost frame first.
    pub frames: Vec<Frame>,
    values: Vec<i64>,
    /// Keys and their strings.
    pub labels: Vec<(String, String)>,
}

impl Samples {
    /// Reads a profile, and insists that its sample types, names and units, are these.
    pub fn read(path: &Path, sample_types: &[(&str, &str)]) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let profile = decode_gz(&bytes).with_context(|| format!("decoding {}", path.display()))?;
        Self::flatten(&profile, sample_types).with_context(|| format!("reading {}", path.display()))
    }

    fn flatten(profile: &pprof::Profile, sample_types: &[(&str, &str)]) -> Result<Self> {
        let strings = Strings(&profile.string_table);
        strings.check_sample_types(&profile.sample_type, sample_types)?;
        let functions = profile.function.iter().map(|f| (f.id, f)).collect();
        let mut locations = HashMap::new();
        for location in &profile.location {
            locations.insert(location.id, strings.frames(location, &functions)?);
        }
        let samples = profile
            .sample
            .iter()
            .map(|sample| Sample::read(sample, &locations, &strings))
            .collect::<Result<_>>()?;
        let comments = profile
            .comment
            .iter()
            .map(|index| strings.get(*index))
            .collect::<Result<_>>()?;
        Ok(Self {
            samples,
            comments,
            default_sample_type: strings.get(profile.default_sample_type)?,
            period: profile.period,
            period_type: match &profile.period_type {
                Some(period_type) => strings.value_type(period_type)?,
                None => <(String, String)>::default(),
            },
            time_nanos: profile.time_nanos,
            duration_nanos: profile.duration_nanos,
        })
    }

    /// Insists on the sample type that viewers show first.
    pub fn check_default(&self, name: &str) -> Result<()> {
        ensure!(
            self.default_sample_type == name,
            "the default sample type is {:?}",
            self.default_sample_type
        );
        Ok(())
    }
}

impl Sample {
    /// The values, one for each of `N` sample types.
    pub fn values<const N: usize>(&self) -> Result<[i64; N]> {
        let values = <[i64; N]>::try_from(self.values.as_slice());
        values
            .ok()
            .with_context(|| format!("a sample has {} values instead of {N}", self.values.len()))
    }

    /// The value of the label `kind`, and whether the label `inherited` is there. No other label may be.
    pub fn kind(&self, inherited: (&str, &str)) -> Result<(String, bool)> {
        let (mut kind, mut is_inherited) = (None, false);
        for (key, value) in &self.labels {
            match (key.as_str(), value.as_str()) {
                ("kind", value) => kind = Some(value.to_owned()),
                label if label == inherited => is_inherited = true,
                // What labels say is fixed: a path or an address would make a stack of each thing that is held.
                label => bail!("an unknown label: {label:?}"),
            }
        }
        let kind = kind.with_context(|| format!("a sample has no kind: {:?}", self.frames))?;
        Ok((kind, is_inherited))
    }

    fn read(
        sample: &pprof::Sample,
        locations: &HashMap<u64, Vec<Frame>>,
        strings: &Strings<'_>,
    ) -> Result<Self> {
        let mut labels = Vec::new();
        for label in &sample.label {
            labels.push((strings.get(label.key)?, strings.get(label.str)?));
        }
        let mut frames = Vec::new();
        for id in &sample.location_id {
            frames.extend_from_slice(
                locations
                    .get(id)
                    .with_context(|| format!("there is no location {id}"))?,
            );
        }
        Ok(Self {
            frames,
            values: sample.value.clone(),
            labels,
        })
    }
}

struct Strings<'a>(&'a [String]);

impl Strings<'_> {
    fn get(&self, index: i64) -> Result<String> {
        let string = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        Ok(string
            .with_context(|| format!("there is no string {index}"))?
            .clone())
    }

    /// Its name and its unit.
    fn value_type(&self, value_type: &pprof::ValueType) -> Result<(String, String)> {
        Ok((self.get(value_type.r#type)?, self.get(value_type.unit)?))
    }

    fn check_sample_types(&self, types: &[pprof::ValueType], expected: &[(&str, &str)]) -> Result<()> {
        let mut found = Vec::new();
        for value_type in types {
            found.push(self.value_type(value_type)?);
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
