//! The `memtrace` command.

use std::process::ExitCode;

use memtrace::{
    cli::{Arguments, Mode},
    session,
};

fn main() -> ExitCode {
    let arguments = Arguments::of_process();
    let done = match &arguments.mode {
        None => {
            start_log(arguments.quiet, arguments.verbose);
            session::run(&arguments)
        }
        Some(Mode::Serve(serve)) => {
            start_log(serve.quiet, serve.verbose);
            let words: Vec<_> = std::env::args_os().skip(2).collect();
            session::serve(serve, &words)
        }
    };
    match done {
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
fn start_log(quiet: bool, verbose: bool) {
    let level = match (quiet, verbose) {
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
