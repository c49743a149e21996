//! A profile as text, in the form that Go's `runtime/pprof` writes with `debug=1`: `printCountProfile` and `writeHeapInternal`
//! of its `pprof.go`. How far into a function an address is, which that form has, memtrace's profiles do not say.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::HashMap,
    fmt::{self, Write},
};

use crate::{
    profile::{
        HEAP, Profile,
        proto::{Function, Line, Location, Sample},
    },
    text::printable,
};

/// The profile as text; `name` is what it says it is, unless it is a heap.
pub(super) fn text(profile: &Profile, name: &str) -> Result<String, fmt::Error> {
    let reader = Reader::new(profile);
    let mut out = String::new();
    match reader.heap_values() {
        Some(values) => reader.write_heap(values, &mut out)?,
        None => reader.write_counts(name, &mut out)?,
    }
    writeln!(out, "\n# memtrace")?;
    for comment in &profile.comment {
        writeln!(out, "# {}", reader.string(*comment))?;
    }
    Ok(out)
}

/// A profile with its parts by their ids.
struct Reader<'p> {
    profile: &'p Profile,
    locations: HashMap<u64, &'p Location>,
    functions: HashMap<u64, &'p Function>,
}

/// Where the values of a heap's samples are, in the order of [`HEAP`].
type HeapValues = [usize; 4];

impl<'p> Reader<'p> {
    fn new(profile: &'p Profile) -> Self {
        Self {
            profile,
            locations: profile.location.iter().map(|of| (of.id, of)).collect(),
            functions: profile.function.iter().map(|of| (of.id, of)).collect(),
        }
    }

    /// Safe to print; empty when there is none.
    fn string(&self, index: i64) -> Cow<'p, str> {
        let index = usize::try_from(index).ok();
        let text = index.and_then(|index| self.profile.string_table.get(index));
        printable(text.map_or("", String::as_str))
    }

    fn value_named(&self, name: &str) -> Option<usize> {
        let mut types = self.profile.sample_type.iter();
        types.position(|of| self.string(of.r#type) == name)
    }

    fn heap_values(&self) -> Option<HeapValues> {
        let mut values = [0; 4];
        for (value, of) in values.iter_mut().zip(HEAP.sample_types) {
            *value = self.value_named(of.name)?;
        }
        Some(values)
    }

    fn write_heap(&self, values: HeapValues, out: &mut impl Write) -> fmt::Result {
        let of = |sample: &Sample| values.map(|at| sample.value.get(at).copied().unwrap_or(0));
        let mut samples: Vec<&Sample> = self.profile.sample.iter().collect();
        samples.sort_by_key(|sample| Reverse((of(sample)[3], of(sample)[1])));
        let mut total = [0_i64; 4];
        for sample in &samples {
            for (sum, value) in total.iter_mut().zip(of(sample)) {
                *sum = sum.saturating_add(value);
            }
        }
        let [objects, mut bytes, live, live_bytes] = total;
        // pprof takes equal totals to mean that a profile does not tell them apart; Go does the same as this.
        if bytes == live_bytes {
            bytes = bytes.saturating_add(1);
        }
        // Twice the mean distance of samples, as Go writes it. Ours are estimates of all already, so it is that of no sampling.
        writeln!(
            out,
            "heap profile: {live}: {live_bytes} [{objects}: {bytes}] @ heap/2"
        )?;
        for sample in samples {
            let [objects, bytes, live, live_bytes] = of(sample);
            write!(out, "{live}: {live_bytes} [{objects}: {bytes}] @")?;
            self.write_stack(sample, out)?;
        }
        Ok(())
    }

    fn write_counts(&self, name: &str, out: &mut impl Write) -> fmt::Result {
        let default = self.string(self.profile.default_sample_type);
        let shown = self.value_named(&default).unwrap_or(0);
        let of = |sample: &Sample| sample.value.get(shown).copied().unwrap_or(0);
        let mut samples: Vec<&Sample> = self.profile.sample.iter().collect();
        samples.retain(|sample| of(sample) != 0);
        samples.sort_by_key(|sample| Reverse(of(sample)));
        let total = samples
            .iter()
            .fold(0_i64, |sum, sample| sum.saturating_add(of(sample)));
        writeln!(out, "{name} profile: total {total}")?;
        for sample in samples {
            write!(out, "{} @", of(sample))?;
            self.write_stack(sample, out)?;
        }
        Ok(())
    }

    /// The addresses, the labels, and a line for each function.
    fn write_stack(&self, sample: &Sample, out: &mut impl Write) -> fmt::Result {
        let locations = || sample.location_id.iter().filter_map(|id| self.locations.get(id));
        for location in locations() {
            write!(out, " {:#x}", return_address(location))?;
        }
        writeln!(out)?;
        let labels: Vec<String> = sample
            .label
            .iter()
            .map(|label| format!("{:?}:{:?}", self.string(label.key), self.string(label.str)))
            .collect();
        if !labels.is_empty() {
            writeln!(out, "# labels: {{{}}}", labels.join(", "))?;
        }
        for location in locations() {
            if location.line.is_empty() {
                writeln!(out, "#\t{:#x}", return_address(location))?;
            }
            for line in &location.line {
                self.write_line(return_address(location), line, out)?;
            }
        }
        writeln!(out)
    }

    fn write_line(&self, address: u64, line: &Line, out: &mut impl Write) -> fmt::Result {
        let function = self.functions.get(&line.function_id);
        let text =
            |index: fn(&Function) -> i64| function.map_or_else(Default::default, |of| self.string(index(of)));
        write!(out, "#\t{address:#x}\t{}", text(|of| of.name))?;
        let file = text(|of| of.filename);
        match line.line {
            _ if file.is_empty() => writeln!(out),
            0 => writeln!(out, "\t{file}"),
            number => writeln!(out, "\t{file}:{number}"),
        }
    }
}

/// The form has the addresses that calls return to, and who reads it takes 1 away; a profile has addresses inside the calls.
fn return_address(location: &Location) -> u64 {
    match location.address {
        0 => 0,
        inside => inside.saturating_add(1),
    }
}

#[cfg(test)]
mod tests;
