//! A Go program's file.

use std::fs::File;
use std::sync::Arc;

use super::image::Image;
use super::module::Module;
use super::pclntab::Pclntab;
use super::variables::Locations;
use super::{GoError, Memory, Variables, Version, build_info};
use crate::target::FileBytes;

/// A Go program or library, as its file describes it. It keeps what it needs in memory: the file may change or go.
#[derive(Clone, Debug)]
pub struct GoBinary {
    version_text: String,
    version: Version,
    table: Arc<Pclntab>,
    locations: Locations,
}

impl GoBinary {
    /// Reads a file, with `pread` only. `None` when it was not built by Go, or is no ELF file for x86-64.
    ///
    /// # Errors
    /// When it was built by Go, and the version's layouts are not known, or the file is damaged or cannot be read.
    pub fn open(file: &File) -> Result<Option<Self>, GoError> {
        let cache = FileBytes::new(file);
        let Some(image) = Image::parse(file, &cache) else {
            return Ok(None);
        };
        let Some(version_text) = build_info::version_text(&image)? else {
            return Ok(None);
        };
        let version = build_info::version(&version_text)?;
        if !is_known(version) {
            return Err(GoError::Layout(format!(
                "this program was built by {}; only Go 1.19 and 1.21 to 1.27 are known",
                version_text.escape_default()
            )));
        }
        let module = Module::find(&image, version)?;
        let table = Pclntab::read(&image, &module, version)?;
        let locations = Locations::find(&image, &table);
        Ok(Some(Self {
            version_text,
            version,
            table: Arc::new(table),
            locations,
        }))
    }

    /// The version of Go that built it.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The same in Go's words, such as `go1.24.11` or `go1.25.5 X:nogreenteagc`.
    pub fn version_text(&self) -> &str {
        &self.version_text
    }

    /// Its functions, files and lines.
    pub fn table(&self) -> Arc<Pclntab> {
        Arc::clone(&self.table)
    }

    /// Whether somebody has its table.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.table) > 1
    }

    /// The addresses of the runtime's variables in a process that has mapped the file with this load bias.
    ///
    /// A variable that was not found, or whose content cannot be what it should be, is `None`.
    ///
    /// # Errors
    /// When the process's memory cannot be read.
    pub fn variables(&self, memory: &dyn Memory, bias: u64) -> Result<Variables, GoError> {
        self.locations.in_process(memory, bias)
    }
}

/// Whether the layouts of a version are known.
fn is_known(version: Version) -> bool {
    version.major == 1 && matches!(version.minor, 19 | 21..=27)
}
