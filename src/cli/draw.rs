//! What people read: findings with their line and caret, the phases of a swap, the table of `status`.

mod tunnels;

use std::collections::HashMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;

use super::file::Text;
use crate::config::diagnostic::{render_diagnostics, render_warnings};
use crate::config::{Diagnostic, Severity};
use crate::supervisor::event::{Event, Kind, Phase};
use crate::supervisor::{LiveSession, SessionList, Status, TargetState};

/// Draws errors and warnings on standard error; with the text, each with its line and a caret.
pub(crate) fn findings(name: &str, bytes: &[u8], errors: &[Diagnostic], warnings: &[Diagnostic]) {
    let mut texts = Texts {
        own: Drawn {
            name: name.to_owned(),
            text: String::from_utf8_lossy(bytes).into_owned(),
        },
        included: HashMap::new(),
    };
    let color = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    for warning in warnings {
        eprint!(
            "{}",
            one(texts.of(warning), Severity::Warning, warning, color)
        );
    }
    for error in errors {
        eprint!("{}", one(texts.of(error), Severity::Error, error, color));
    }
}

/// A text that findings are drawn into; empty: it is not here.
struct Drawn {
    name: String,
    text: String,
}

/// The text of a configuration, and those of the files it includes as far as they can be read here.
struct Texts {
    own: Drawn,
    included: HashMap<String, Drawn>,
}

impl Texts {
    fn of(&mut self, finding: &Diagnostic) -> &Drawn {
        let Some(file) = &finding.file else {
            return &self.own;
        };
        let load = || {
            let text = Text::again(Path::new(file));
            let text = text.and_then(|text| String::from_utf8(text.bytes).ok());
            Drawn {
                name: from_here(file),
                text: text.unwrap_or_default(),
            }
        };
        self.included.entry(file.clone()).or_insert_with(load)
    }
}

/// A path as one would write it here.
fn from_here(path: &str) -> String {
    let here = std::env::current_dir().ok();
    let short = here.and_then(|here| Path::new(path).strip_prefix(here).ok());
    short.map_or_else(|| path.to_owned(), |path| path.display().to_string())
}

fn one(drawn: &Drawn, severity: Severity, finding: &Diagnostic, color: bool) -> String {
    let text = drawn.text.as_str();
    let word = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    if text.is_empty() {
        return untold(word, finding);
    }
    let located = [located(text, finding)];
    match severity {
        Severity::Error => render_diagnostics(&drawn.name, text, &located, color),
        Severity::Warning => render_warnings(&drawn.name, text, &located, color),
    }
}

/// A finding about a text that is not here: its place in numbers.
fn untold(word: &str, finding: &Diagnostic) -> String {
    let mut text = format!("{word}: {}\n", finding.message);
    let at = match (finding.line, finding.column) {
        (Some(line), Some(column)) => format!("line {line}, column {column}"),
        _ => String::new(),
    };
    let file = finding.file.as_deref().unwrap_or_default();
    let parts: Vec<_> = [finding.pointer.as_str(), file, at.as_str()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    if !parts.is_empty() {
        text.push_str(&format!(" --> {}\n", parts.join(", ")));
    }
    if let Some(help) = &finding.help {
        text.push_str(&format!("  = help: {help}\n"));
    }
    text.push('\n');
    text
}

/// Over the API a finding has line and column, not the bytes of the text: they are found again here.
fn located(text: &str, finding: &Diagnostic) -> Diagnostic {
    let mut finding = finding.clone();
    if let (None, Some(line), false) = (finding.span, finding.line, text.is_empty()) {
        finding.span = span(text, line, finding.column.unwrap_or(1));
    }
    finding
}

/// From the place to the end of the word, or of the string, that begins there.
fn span(text: &str, line: u32, column: u32) -> Option<(u32, u32)> {
    let mut start = 0;
    for _ in 1..line {
        start += text.get(start..)?.find('\n')? + 1;
    }
    let rest = text.get(start..)?;
    let rest = rest.split(['\n', '\r']).next()?;
    let skip = rest
        .char_indices()
        .nth(column.saturating_sub(1) as usize)
        .map_or(rest.len(), |(at, _)| at);
    let word = rest.get(skip..)?;
    let length = match word.chars().next() {
        Some(quote @ ('"' | '\'')) => word.get(1..)?.find(quote).map_or(word.len(), |end| end + 2),
        Some(first) => word
            .find(|c: char| c.is_whitespace() || ",=:]}".contains(c))
            .unwrap_or(word.len())
            .max(first.len_utf8()),
        None => 0,
    };
    let start = start + skip;
    Some((
        u32::try_from(start).ok()?,
        u32::try_from(start + length).ok()?,
    ))
}

/// `what`, with the number of errors when there is more than one and it does not say so itself.
pub(crate) fn summary(what: &str, errors: usize) -> String {
    match errors {
        count if count > 1 && !what.contains(&format!("{count} errors")) => {
            format!("{what} ({count} errors)")
        }
        _ => what.to_owned(),
    }
}

/// One phase of a swap, as a line.
pub(crate) fn event(event: &Event) -> String {
    let time = match event.elapsed_us {
        micros if micros >= 1_000_000 => format!("{:.2} s", micros as f64 / 1e6),
        micros => format!("{:.1} ms", micros as f64 / 1e3),
    };
    let phase = serde_json::to_value(event.phase).ok();
    let phase = phase
        .as_ref()
        .and_then(|phase| phase.as_str())
        .unwrap_or("?");
    let words = match event.phase {
        Phase::Received => match (&event.source, event.bytes) {
            (Some(source), Some(bytes)) => format!("swap {}, {source}, {bytes} bytes", event.swap),
            (Some(source), None) => format!("swap {}, {source}", event.swap),
            _ => format!("swap {}", event.swap),
        },
        Phase::Validated => match event.warnings.as_ref().map_or(0, Vec::len) {
            0 => String::new(),
            1 => "1 warning".to_owned(),
            count => format!("{count} warnings"),
        },
        Phase::Planned => event.plan.as_ref().map_or_else(String::new, |plan| {
            let text = crate::admin::plan_text(plan);
            text.trim_end().replace('\n', "\n                       ")
        }),
        Phase::Prepared => match event.bound.as_deref() {
            Some(bound) if !bound.is_empty() => format!("bound {}", bound.join(", ")),
            _ => String::new(),
        },
        Phase::Committed if event.kind == Kind::Stop => "nothing is accepted any more".to_owned(),
        Phase::Committed => match event.previous {
            Some(previous) => format!("generation {} serves, {previous} drains", event.generation),
            None => format!("generation {}", event.generation),
        },
        Phase::Draining => event.remaining.as_ref().map_or_else(String::new, |left| {
            let (requests, connections, listeners) =
                (left.requests, left.connections, left.listeners);
            let tunnels = match left.tunnels {
                0 => String::new(),
                tunnels => format!("{tunnels} long flows, "),
            };
            format!(
                "{requests} requests, {tunnels}{connections} connections, {listeners} addresses left"
            )
        }),
        Phase::Cut => format!("{} closed at the deadline", event.closed.unwrap_or(0)),
        Phase::Unchanged => format!("generation {} goes on", event.generation),
        Phase::Drained | Phase::Rejected | Phase::Adapted => String::new(),
    };
    let detail = match (&event.detail, event.phase) {
        // The end of a refused swap is told once, by the caller.
        (Some(detail), phase) if phase != Phase::Rejected => format!("  {detail}"),
        _ => String::new(),
    };
    let line = format!("{time:>10}  {phase:<11}{words}{detail}");
    format!("{}\n", line.trim_end())
}

/// What was started and what listens where.
pub(crate) fn started(from: &str, status: &Status, admin: Option<&str>) -> String {
    let mut text = format!("evergate {} runs {from}\n", status.version);
    for listener in &status.listeners {
        let _ = writeln!(
            text,
            "  {:<24} {}",
            listener.address,
            listener.servers.join(", ")
        );
    }
    if let Some(admin) = admin {
        let _ = writeln!(
            text,
            "  {admin:<24} admin API; try: evergate status --admin {admin}"
        );
    }
    text
}

/// `/status` as tables.
pub(crate) fn status(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "evergate {}, up {}, generation {}, {} workers ({})",
        status.version,
        uptime(status.uptime_s),
        status.generation,
        status.workers,
        status.model
    );
    let _ = write!(
        text,
        "{} connections, {} requests, {} tasks",
        status.connections, status.requests, status.tasks
    );
    if let Some(descriptors) = status.descriptors {
        let _ = write!(text, ", {descriptors} descriptors");
    }
    if let Some(bytes) = status.resident_bytes {
        let _ = write!(text, ", {:.1} MiB", bytes as f64 / 1_048_576.0);
    }
    if status.panics > 0 {
        let _ = write!(text, ", {} PANICS", status.panics);
    }
    text.push('\n');
    let draining: Vec<_> = status
        .generations
        .iter()
        .filter(|one| one.generation != status.generation)
        .collect();
    for one in draining {
        let _ = writeln!(
            text,
            "generation {} {}: {} requests, {} long flows left",
            one.generation, one.state, one.requests, one.tunnels
        );
    }
    let rows = status.listeners.iter().map(|one| {
        let servers = one.servers.join(", ");
        vec![
            one.address.clone(),
            one.state.clone(),
            one.connections.to_string(),
            one.sockets.to_string(),
            servers,
        ]
    });
    table(
        &mut text,
        &["LISTENER", "STATE", "CONNECTIONS", "SOCKETS", "SERVERS"],
        rows.collect(),
    );
    let rows = status.upstreams.iter().flat_map(|upstream| {
        let members = upstream.split.iter().map(|one| {
            let (name, member) = (upstream.name.clone(), one.upstream.clone());
            let nothing = String::new;
            vec![
                name,
                member,
                nothing(),
                one.share.to_string(),
                nothing(),
                nothing(),
            ]
        });
        let targets = upstream.targets.iter().map(|one| {
            let health = match one.state {
                TargetState::Up => one.health.clone(),
                TargetState::Drain => format!("{}, drained", one.health),
                TargetState::Down => format!("{}, taken out", one.health),
            };
            let connections = format!("{} ({} idle)", one.connections, one.idle);
            let (weight, in_flight) = (one.weight.to_string(), one.in_flight.to_string());
            vec![
                upstream.name.clone(),
                one.address.clone(),
                health,
                weight,
                in_flight,
                connections,
            ]
        });
        members.chain(targets)
    });
    table(
        &mut text,
        &[
            "UPSTREAM",
            "TARGET",
            "HEALTH",
            "WEIGHT",
            "IN FLIGHT",
            "CONNECTIONS",
        ],
        rows.collect(),
    );
    tunnels::draw(&mut text, &status.tunnels, &status.agents);
    certificates(&mut text, status);
    text
}

/// A page of `/sessions` as a table.
pub(crate) fn sessions(list: &SessionList) -> String {
    let rows = list.sessions.iter().map(|one| {
        let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        let client = match &one.user {
            Some(user) => format!("{user}@{}", named(&one.client)),
            None => named(&one.client),
        };
        vec![
            one.id.to_string(),
            one.kind.clone(),
            client,
            named(&one.listener),
            named(&one.destination),
            one.generation
                .map_or_else(|| "-".to_owned(), |n| n.to_string()),
            uptime(one.age_s),
            uptime(one.idle_s),
            one.received.to_string(),
            one.sent.to_string(),
        ]
    });
    let mut text = String::new();
    let head = [
        "ID",
        "KIND",
        "CLIENT",
        "LISTENER",
        "DESTINATION",
        "GENERATION",
        "AGE",
        "IDLE",
        "RECEIVED",
        "SENT",
    ];
    table(&mut text, &head, rows.collect());
    if list.sessions.is_empty() {
        text.push_str("none\n");
    }
    if let Some(next) = list.next {
        let _ = writeln!(text, "\nthere are more: --after {next}");
    }
    // The table begins with an empty line, to stand below something.
    text.trim_start_matches('\n').to_owned()
}

/// A session that was told to end.
pub(crate) fn closed(one: &LiveSession) -> String {
    let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let (client, to) = (named(&one.client), named(&one.destination));
    format!(
        "{} {}, {client} to {to}, is told to end\n",
        one.kind, one.id
    )
}

fn certificates(text: &mut String, status: &Status) {
    let rows = status.certificates.iter().map(|one| {
        vec![
            one.names.join(", "),
            one.state.clone(),
            one.days_left.to_string(),
            one.servers.join(", "),
            one.source.clone(),
        ]
    });
    table(
        text,
        &["CERTIFICATE", "STATE", "DAYS LEFT", "SERVERS", "SOURCE"],
        rows.collect(),
    );
    for problem in &status.certificate_problems {
        let _ = writeln!(text, "kept out: {}", problem.message);
    }
}

fn uptime(seconds: u64) -> String {
    match (
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    ) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

fn table(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .max()
            .unwrap_or(0)
            .max(head.get(column).map_or(0, |title| title.len()))
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let titles = head.iter().map(|title| (*title).to_owned()).collect();
    text.push('\n');
    for row in std::iter::once(titles).chain(rows) {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_becomes_a_span() {
        let text = "[http]\nproxy = \"apj\" # x\nö = ölk, 1\n";
        let at = |line, column| {
            span(text, line, column).map(|(from, to)| &text[from as usize..to as usize])
        };
        assert_eq!(at(1, 2), Some("http"));
        assert_eq!(at(2, 1), Some("proxy"));
        assert_eq!(at(2, 9), Some("\"apj\""));
        assert_eq!(at(3, 5), Some("ölk"));
        assert_eq!(at(2, 99), Some(""));
        assert_eq!(at(9, 1), None);
    }

    #[test]
    fn a_finding_without_its_text_still_has_a_place() {
        let finding = Diagnostic {
            pointer: "/http".into(),
            file: None,
            line: Some(3),
            column: Some(1),
            message: "wrong".into(),
            help: Some("mend it".into()),
            span: None,
        };
        let text = "error: wrong\n --> /http, line 3, column 1\n  = help: mend it\n\n";
        assert_eq!(untold("error", &finding), text);
    }

    #[test]
    fn tables_line_up() {
        let mut text = String::new();
        table(
            &mut text,
            &["A", "LONG"],
            vec![vec!["xx".into(), "y".into()], vec!["z".into(), "w".into()]],
        );
        assert_eq!(text, "\nA   LONG\nxx  y\nz   w\n");
    }

    proptest! {
        #[test]
        fn a_span_lies_within_the_text(text in "[a-z\"'ö =\n\r]{0,60}", line in 0u32..8, column in 0u32..70) {
            if let Some((from, to)) = span(&text, line, column) {
                prop_assert!(text.get(from as usize..to as usize).is_some());
            }
        }
    }
}
