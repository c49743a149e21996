//! What a person sees: the report, the status line, the directory with the profiles, and the list of descriptors; and what programs fetch over HTTP.

mod c_library;
mod directory;
mod fd_details;
mod frames;
pub mod http;
mod places;
mod processes;
pub mod push;
mod report;
mod status;
mod style;

pub use directory::{OutputDir, OutputError};
pub use fd_details::fd_details_json;
pub use processes::{Amount, ProcessRow, write_processes};
pub use report::{ReportOptions, write_report};
pub use status::{Status, StatusLine};

#[cfg(test)]
mod testing;
