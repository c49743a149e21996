//! The pages that lead to the profiles, and the same as JSON.

use maud::{DOCTYPE, Markup, html};
use serde_json::json;

use super::source::TargetSummary;
use crate::{text::printable, time::rfc3339};

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid #ddd }
td a { margin-right: .8rem }
td .note { margin: 0 }
pre { background: #f4f4f4; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
.note { color: #666; font-size: .9em }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } a { color: #8bf } pre { background: #262626 } th, td { border-color: #444 } .note { color: #aaa }
}";

/// How clients reach the server, for the commands on the pages.
pub(super) enum Reach {
    /// At this scheme and authority, with the token.
    Network(String),
    /// Through this socket.
    Socket(String),
}

impl Reach {
    /// A command that saves or shows what is at the path.
    fn command(&self, path: &str, file: &str) -> String {
        match self {
            Self::Network(base) => {
                let base = base.replacen("://", "://memtrace:$MEMTRACE_TOKEN@", 1);
                format!("go tool pprof \"{base}{path}\"")
            }
            Self::Socket(socket) => {
                format!("curl --unix-socket {socket} -o {file}.pb.gz \"http://localhost{path}\"")
            }
        }
    }
}

/// Where a target's profiles are.
pub(super) fn path_of(target: &TargetSummary) -> String {
    format!("/targets/{}/debug/pprof/", target.id)
}

/// All targets.
pub(super) fn targets(targets: &[TargetSummary]) -> String {
    let body = html! {
        h1 { "memtrace" }
        @if targets.is_empty() {
            p { "No target is traced now." }
        } @else {
            table {
                tr { th { "Target" } th { "Processes" } th { "Traced since" } th { "Profiles" } }
                @for target in targets {
                    tr {
                        td { a href=(path_of(target)) { (printable(&target.title)) } br; span.note { (target.id) } }
                        td { (pids(target)) }
                        td { (rfc3339(target.since)) }
                        td { @for name in target.names() {
                            a href={ (path_of(target)) (name.as_str()) "?debug=1" } { (name.as_str()) } " "
                        } }
                    }
                    @if !target.notes.is_empty() {
                        tr { td colspan="4" { (notes(target)) } }
                    }
                }
            }
        }
        p.note {
            a href="/targets" { "The same as JSON" } " · " a href="/metrics" { "Metrics" }
        }
    };
    page("memtrace", &body)
}

/// The profiles of a target.
pub(super) fn profiles(target: &TargetSummary, reach: &Reach) -> String {
    let path = path_of(target);
    let example = target.names().next();
    let title = printable(&target.title);
    let body = html! {
        h1 { (title) }
        p { "Processes " (pids(target)) ", traced since " (rfc3339(target.since)) ". " a href="/" { "All targets" } }
        (notes(target))
        table {
            tr { th { "As text" } th { "What it shows" } th { "For viewers" } }
            @for name in target.names() {
                tr {
                    td { a href={ (path) (name.as_str()) "?debug=1" } { (name.as_str()) } }
                    td { (name.description()) }
                    td { a href={ (path) (name.as_str()) } { (name.as_str()) ".pb.gz" } }
                }
            }
        }
        @if let Some(name) = example.map(|name| name.as_str()) {
            p { "What is there now, and what changes in 30 seconds:" }
            pre {
                (reach.command(&format!("{path}{name}"), name)) "\n"
                (reach.command(&format!("{path}{name}?seconds=30"), &format!("{name}-delta")))
            }
        }
        p.note { "CPU profiles, traces and the command line are not offered." }
    };
    page(&title, &body)
}

/// The targets as JSON.
pub(super) fn json(targets: &[TargetSummary]) -> serde_json::Value {
    let targets: Vec<serde_json::Value> = targets
        .iter()
        .map(|target| {
            json!({
                "id": target.id,
                "title": target.title,
                "pids": target.pids,
                "since": rfc3339(target.since),
                "path": path_of(target),
                "profiles": target.names().map(|name| name.as_str()).collect::<Vec<_>>(),
                "notes": target.notes,
            })
        })
        .collect();
    json!({ "targets": targets })
}

/// The targets as text, for errors.
pub(super) fn list(targets: &[TargetSummary]) -> String {
    let lines: String = targets
        .iter()
        .map(|target| format!("\n  {}  {}", path_of(target), printable(&target.title)))
        .collect();
    match targets.len() {
        0 => "no target is traced now".to_owned(),
        _ => format!("the targets are{lines}"),
    }
}

fn pids(target: &TargetSummary) -> String {
    /// More are not listed.
    const MOST: usize = 8;
    let shown = target.pids.iter().take(MOST);
    let mut shown: Vec<String> = shown.map(u32::to_string).collect();
    if target.pids.len() > MOST {
        shown.push(format!("and {} more", target.pids.len() - MOST));
    }
    shown.join(", ")
}

fn notes(target: &TargetSummary) -> Markup {
    html! {
        @for note in &target.notes {
            p.note { (printable(note)) }
        }
    }
}

fn page(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (maud::PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}
