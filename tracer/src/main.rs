//! The `memtrace` command.

use std::process::ExitCode;

use memtrace::{cli::Arguments, session};

fn main() -> ExitCode {
    let arguments = Arguments::of_process();
    start_log(&arguments);
    match session::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // Whether or not anybody reads it, the exit code says it, too.
            let _nobody_listens = writeln!(std::io::stderr(), "memtrace: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// User space and the programs log to the same place. `RUST_LOG` overrides the options.
fn start_log(arguments: &Arguments) {
    let level = match (arguments.quiet, arguments.verbose) {
        (true, _) => "error",
        (_, true) => "info",
        _ => "warn",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(|out, record| {
            use std::io::Write as _;
            writeln!(out, "memtrace: {}", record.args())
        })
        .init();
}
