//! Which functions of Go's `net/http` are probed, to tell for whom it connects.

use std::{fs::File, sync::Arc};

use super::{Image, Images, LiveCode};
use crate::{
    go::{DialFunctions, GoBinaries},
    probe::{DialSites, after_stack_check},
    target::{FileBytes, Mapping, Process},
};

/// What a profile says that cannot show it.
const NOT_COVERED: &str = "who asks for connections of net/http (a goroutine of its own dials them)";

/// What is probed in one image, or why not if it has such functions.
pub(super) type Dials = Option<Result<DialSites, String>>;

impl Images {
    /// Finds the functions of `net/http` in those images that are Go programs; to be called if descriptors are traced.
    pub fn find_dials(&mut self, process: &Process, mappings: &[Arc<Mapping>], binaries: &GoBinaries) {
        for image in &mut self.images {
            let is_its = |mapping: &&Arc<Mapping>| mapping.file_id == image.file_id;
            let (Some(file), Some(mapping)) = (&image.file, mappings.iter().find(is_its)) else {
                continue;
            };
            let live = LiveCode {
                process,
                bias: mapping.bias,
            };
            image.dials = find(file, &live, binaries).transpose();
        }
    }
}

impl Image {
    /// The functions of `net/http` to probe, and the file.
    pub(super) fn dials(&self) -> Option<(DialSites, Arc<File>)> {
        let sites = self.dials.as_ref()?.as_ref().ok()?;
        Some((sites.clone(), Arc::clone(self.file.as_ref()?)))
    }

    /// Why it does not tell for whom it connects, if it should.
    pub fn dial_note(&self) -> Option<String> {
        let why = self.dials.as_ref()?.as_ref().err()?;
        Some(format!("{}: {NOT_COVERED}: {why}", self.name))
    }
}

fn find(file: &File, live: &LiveCode<'_>, binaries: &GoBinaries) -> Result<Option<DialSites>, String> {
    let Some(binary) = binaries.open(file) else {
        return Ok(None);
    };
    let binary = binary?;
    let Some(functions) = binary.dial_functions()? else {
        return Ok(None);
    };
    let DialFunctions { queue, dial, fields } = functions;
    let cache = FileBytes::new(file);
    let site = |range| after_stack_check(&cache, range, live);
    Ok(Some(DialSites {
        wanted: site(queue)?,
        dialed: site(dial)?,
        fields,
    }))
}
