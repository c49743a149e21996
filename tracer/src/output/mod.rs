//! What a person sees: the report, the status line, and the directory with the profiles.

mod directory;
mod frames;
mod places;
mod processes;
mod report;
mod status;
mod style;

pub use directory::{OutputDir, OutputError};
pub use processes::{ProcessRow, write_processes};
pub use report::{ReportOptions, write_report};
pub use status::{Status, StatusLine};
