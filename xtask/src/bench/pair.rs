//! The table: one malloc+free pair under each tracer.

use anyhow::{Result, bail};

use super::{
    Timing,
    contestant::{Contestant, Kind, SAMPLE_BYTES},
    statistics::Samples,
    target::Program,
};

/// Before each measurement: caches, branch predictors and the tracer's own memory of the stack fill (ms).
const WARM_UP: u64 = 50;

/// What was measured of one contestant.
struct Row {
    contestant: Contestant,
    cpu: Samples,
    wall: Samples,
    breakpoints: usize,
}

/// At most so many times the floor shall a sampled pair cost.
const SAMPLED_GOAL: f64 = 1.25;

/// Measures in rounds, so that what disturbs the machine for a while disturbs every contestant, and prints the table.
///
/// # Errors
/// When no contestant can run.
pub fn pair(kinds: &[Kind], timing: Timing) -> Result<()> {
    measured(kinds, timing).map(|rows| print(&rows, timing))
}

/// As [`pair`], of sampling alone, and compares it with its goal.
///
/// # Errors
/// When no contestant can run.
pub fn sampled(timing: Timing) -> Result<()> {
    let rows = measured(&[Kind::Untraced, Kind::Floor, Kind::Sampled], timing)?;
    print(&rows, timing);
    if let (Some(floor), Some(sampled)) = (median(&rows, Kind::Floor), median(&rows, Kind::Sampled)) {
        let ratio = sampled / floor;
        println!(
            "\nOne block in {SAMPLE_BYTES} recorded: {ratio:.3} times the floor (goal: at most {SAMPLED_GOAL}, {})",
            if ratio <= SAMPLED_GOAL { "met" } else { "missed" }
        );
    }
    Ok(())
}

fn measured(kinds: &[Kind], timing: Timing) -> Result<Vec<Row>> {
    let program = Program::prepare()?;
    let mut rows: Vec<Row> = kinds.iter().filter_map(|kind| row(*kind)).collect();
    for round in 1..=timing.rounds {
        eprintln!("round {round} of {}", timing.rounds);
        rows.retain_mut(|row| match measure(row, &program, timing.milliseconds) {
            Ok(()) => true,
            Err(error) => {
                eprintln!(
                    "{}: not measured in round {round}: {error:#}",
                    row.contestant.kind
                );
                // Who worked before gets another chance.
                !row.cpu.0.is_empty()
            }
        });
    }
    if rows.is_empty() {
        bail!("nothing could be measured");
    }
    Ok(rows)
}

/// The contestants of these names; all if there are none.
///
/// # Errors
/// When a name is unknown.
pub fn chosen(names: &[String]) -> Result<Vec<Kind>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| Kind::ALL.iter().all(|kind| kind.name() != **name))
    {
        bail!("there is no contestant `{unknown}`");
    }
    Ok(Kind::ALL
        .into_iter()
        .filter(|kind| names.is_empty() || names.iter().any(|name| name == kind.name()))
        .collect())
}

fn row(kind: Kind) -> Option<Row> {
    match Contestant::provide(kind) {
        Ok(contestant) => Some(Row {
            contestant,
            cpu: Samples::default(),
            wall: Samples::default(),
            breakpoints: 0,
        }),
        Err(error) => {
            eprintln!("{kind}: not measured: {error:#}");
            None
        }
    }
}

fn measure(row: &mut Row, program: &Program, milliseconds: u64) -> Result<()> {
    let mut session = row.contestant.start(program)?;
    session.target.run(WARM_UP)?;
    let batch = session.target.run(milliseconds)?;
    if !session.is_steady()? {
        bail!("its probes changed while it was measured");
    }
    row.breakpoints = session.breakpoints;
    session.end()?;
    row.cpu.0.push(batch.cpu);
    row.wall.0.push(batch.wall);
    Ok(())
}

/// The CPU time of a contestant (ns).
fn median(rows: &[Row], kind: Kind) -> Option<f64> {
    rows.iter()
        .find(|row| row.contestant.kind == kind)
        .and_then(|row| row.cpu.median())
}

fn print(rows: &[Row], timing: Timing) {
    let (floor, memleak) = (median(rows, Kind::Floor), median(rows, Kind::Memleak));
    println!(
        "\nOne malloc+free pair, 64 to 127 bytes, 16 frames deep, no frame pointers; {} rounds of {} ms.\n\
         CPU time of the calling thread, the kernel's part included; nanoseconds, median (smallest to largest).\n",
        timing.rounds, timing.milliseconds
    );
    println!("| tracer    | CPU ns | range             | elapsed ns | / floor | / memleak | breakpoints |");
    println!("| --------- | -----: | ----------------: | ---------: | ------: | --------: | ----------: |");
    for row in rows {
        let (Some(cpu), Some(wall), Some((low, high))) =
            (row.cpu.median(), row.wall.median(), row.cpu.range())
        else {
            continue;
        };
        println!(
            "| {:9} | {cpu:6.0} | {:>17} | {wall:10.0} | {:>7} | {:>9} | {:11} |",
            row.contestant.kind,
            format!("{low:.0} to {high:.0}"),
            ratio(cpu, floor),
            ratio(cpu, memleak),
            row.breakpoints
        );
    }
}

fn ratio(value: f64, reference: Option<f64>) -> String {
    reference.map_or_else(|| "-".into(), |reference| format!("{:.3}", value / reference))
}
