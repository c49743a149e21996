//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

/// What `--help` shows below the options.
const AFTER_HELP: &str = "\
Examples:
  sudo memtrace --pid 1234                   until Ctrl-C or until the process ends
  sudo memtrace --pid 1234 --duration 30s    for 30 seconds
  sudo kill -USR1 $(pidof memtrace)          a snapshot now; tracing goes on
  go tool pprof -http=: DIR/heap.pb.gz       look at the profile

Exit codes: 0 done, 1 run-time failure, 2 usage, 3 no privilege or kernel feature, 4 no such process.";

/// Says which code of a running process holds its memory.
///
/// Attaches to an unmodified Linux process, records every allocation and free from then on, and writes what is still
/// live at the end as a pprof profile, attributed to the code that allocated it.
#[derive(Clone, Debug, Parser)]
#[command(name = "memtrace", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The process to trace.
    #[arg(long, short, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: u32,

    /// Stop after this time: 30s, 5m, 2h, or 1m30s [default: until Ctrl-C or until the process ends].
    #[arg(long, short, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// The directory to write profiles to [default: memtrace-PID-TIME].
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// How many sites the report shows.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// How many live blocks can be recorded at once; what does not fit is counted. 96 bytes of kernel memory each.
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub max_live: u32,

    /// A private allocator's functions are malloc, calloc, realloc, free and so on with this before their names; for several
    /// allocators, give it several times.
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub allocator_prefix: Vec<String>,

    /// No status line and no report: only the line that says that the probes are live, errors, and the profiles.
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print what is probed and why, and how much kernel memory is used.
    #[arg(long, short)]
    pub verbose: bool,

    /// Attach programs that do nothing: what remains is the cost of the probes alone. For benchmarks.
    #[arg(long, hide = true)]
    pub floor: bool,
}

/// Accepts what a C name can begin with.
fn parse_prefix(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || c == '.';
    let begins_well = text.starts_with(|c: char| !c.is_ascii_digit());
    if begins_well && text.chars().all(is_name) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` cannot begin a function's name; write for example my_"
        ))
    }
}

/// Parses `90`, `90s`, `1m30s`, `2h`, `500ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write for example 30s, 5m, or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "" if next.is_empty() && digits == text.len() => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = next;
    }
    if total.is_zero() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Duration, parse_duration};

    #[test]
    fn durations() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(seconds("30s"), Ok(30_000));
        assert_eq!(seconds("30"), Ok(30_000));
        assert_eq!(seconds("1m30s"), Ok(90_000));
        assert_eq!(seconds("500ms"), Ok(500));
        assert_eq!(seconds("2h"), Ok(7_200_000));
        for wrong in [
            "",
            "s",
            "0",
            "0s",
            "5x",
            "1m30",
            "-3s",
            "99999999999999999999s",
            "99999999999999999h",
        ] {
            assert!(
                parse_duration(wrong).is_err(),
                "{wrong}: {:?}",
                parse_duration(wrong)
            );
        }
        assert_eq!(parse_duration("1s").ok(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
