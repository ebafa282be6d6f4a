//! `[log]` and `[access_log]`: what the process says of itself, and the line it leaves for each request.

use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::check::{Checker, shorten};
use super::decode::{Decode, Loc, Switch, section, words, wrong_kind};
use super::findings::Findings;
use super::scalar::Wrong;
use super::template::{Part, Side, Template};
use super::tree::{Node, Value};

section! {
    /// What the process says of itself, on standard error.
    pub struct LogRaw {
        /// The least that is said: `error`, `warn`, `info`, `debug` or `trace`. `RUST_LOG` and `--quiet` of the start go
        /// before it.
        level: LogLevel = "info",
        /// `text` for people, `json` for programs: an object a line.
        format: LogFormat = "text",
    }
    later = [];
}

section! {
    /// A line for each request, written when its response has ended, and for each TCP or SOCKS session at its end.
    pub struct AccessLogRaw {
        /// `-` for standard output, or a file. It is opened again on SIGUSR1 and on each reload.
        path: String = "-",
        /// `combined` (as Apache and nginx have it), `json`, or a template such as `{client_ip} {status} {uri}`.
        format: String = "combined",
        /// Share of the requests that get a line, 0 to 1.
        sample: Share = 1,
    }
    short = path;
    later = [];
}

/// The least that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How the process says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

words!(LogLevel {
    "error" => LogLevel::Error,
    "warn" => LogLevel::Warn,
    "info" => LogLevel::Info,
    "debug" => LogLevel::Debug,
    "trace" => LogLevel::Trace,
});
words!(LogFormat { "text" => LogFormat::Text, "json" => LogFormat::Json });

/// A part of a whole, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Share(pub f64);

impl Decode for Share {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        let number = match node.value {
            Value::Int(n @ (0 | 1)) => n as f64,
            Value::Float(Some(n)) if (0.0..=1.0).contains(&n) => n,
            Value::Int(_) | Value::Float(_) => {
                findings.error(node.at, "expected a number from 0 to 1");
                return None;
            }
            _ => {
                wrong_kind(node, "a number from 0 to 1", findings);
                return None;
            }
        };
        Some(Share(number))
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0.0 => serializer.serialize_u64(0),
            1.0 => serializer.serialize_u64(1),
            n => serializer.serialize_f64(n),
        }
    }
}

impl JsonSchema for Share {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Share".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}

/// Checked `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSpec {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// Checked `[access_log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLogSpec {
    pub path: LogPath,
    pub format: AccessFormat,
    /// Share of the requests that get a line, 0 to 1.
    pub sample: f64,
}

/// Where lines go; their identity over generations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogPath {
    Stdout,
    /// Absolute.
    File(PathBuf),
}

impl std::fmt::Display for LogPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogPath::Stdout => f.write_str("standard output"),
            LogPath::File(path) => path.display().fmt(f),
        }
    }
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessFormat {
    Combined,
    Json,
    Template(Template),
}

impl LogRaw {
    /// `[log]`, whose defaults are in.
    pub fn spec(&self) -> LogSpec {
        LogSpec {
            level: self.level.as_ref().map_or(LogLevel::Info, |l| l.value),
            format: self.format.as_ref().map_or(LogFormat::Text, |f| f.value),
        }
    }
}

/// Checks `[access_log]`, whose defaults are in. `None`: there is none.
pub fn access_log(
    raw: Option<&Loc<Switch<AccessLogRaw>>>,
    check: &mut Checker<'_>,
) -> Option<AccessLogSpec> {
    let Switch::On(raw) = &raw?.value else {
        return None;
    };
    let path = match raw.path.as_ref().map(|path| (path.as_str(), path.at)) {
        None | Some(("-", _)) => LogPath::Stdout,
        Some(("", at)) => {
            check.findings.error(at, "an empty path");
            return None;
        }
        Some((path, _)) => LogPath::File(check.base.join(path)),
    };
    let format = match &raw.format {
        None => AccessFormat::Combined,
        Some(text) => format(text, check)?,
    };
    Some(AccessLogSpec {
        path,
        format,
        sample: raw.sample.as_ref().map_or(1.0, |share| share.0),
    })
}

fn format(text: &Loc<String>, check: &mut Checker<'_>) -> Option<AccessFormat> {
    match text.as_str() {
        "combined" => return Some(AccessFormat::Combined),
        "json" => return Some(AccessFormat::Json),
        word if !word.contains('{') => {
            let wrong = Wrong::new(format!("`{}` is not a format", shorten(word))).help(
                "`combined`, `json`, or a template such as `{client_ip} {method} {uri} {status}`",
            );
            return check.take(text.at, Err(wrong));
        }
        _ => {}
    }
    let template = match Template::parse_for(text, Side::Log) {
        Ok(template) => template,
        Err(all) => {
            for wrong in all {
                check
                    .findings
                    .error(text.at, wrong.message)
                    .help_if(wrong.help);
            }
            return None;
        }
    };
    // A line is a line. (A tab is what people put between columns.)
    let breaks = |part: &Part| match part {
        Part::Text(text) => text.contains(|c: char| c.is_control() && c != '\t'),
        Part::Var(_) => false,
    };
    if template.parts.iter().any(breaks) {
        check.findings.error(
            text.at,
            "a line cannot hold line breaks and other control characters",
        );
        return None;
    }
    Some(AccessFormat::Template(template))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::document::{Context, Document, Refused};

    fn parse(text: &str) -> Result<Document, Vec<String>> {
        let context = Context {
            base: "/base".into(),
            running: None,
        };
        match Document::parse(text.as_bytes(), Format::Toml, &context) {
            Ok(parsed) => Ok(std::sync::Arc::unwrap_or_clone(parsed.document)),
            Err(Refused::Syntax(errors) | Refused::Unavailable(errors)) => Err(told(&errors)),
            Err(Refused::Invalid { errors, .. }) => Err(told(&errors)),
        }
    }

    fn told(errors: &[crate::config::Diagnostic]) -> Vec<String> {
        let tell = |e: &crate::config::Diagnostic| format!("{} {}", e.pointer, e.message);
        errors.iter().map(tell).collect()
    }

    #[test]
    fn the_short_form_is_a_path_and_false_is_none() {
        let log = parse("access_log = 'a.log'").unwrap().access_log.unwrap();
        assert_eq!(log.path, LogPath::File("/base/a.log".into()));
        assert_eq!((log.format, log.sample), (AccessFormat::Combined, 1.0));
        assert_eq!(parse("access_log = false").unwrap().access_log, None);
        assert_eq!(parse("").unwrap().access_log, None);
        let log = parse("access_log = { format = 'json', sample = 0.25 }");
        let log = log.unwrap().access_log.unwrap();
        assert_eq!(log.path, LogPath::Stdout);
        assert_eq!((log.format, log.sample), (AccessFormat::Json, 0.25));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let wrong = |text: &str| parse(text).unwrap_err().remove(0);
        let said = wrong("access_log.format = 'common'");
        assert_eq!(said, "/access_log/format `common` is not a format");
        let said = wrong("access_log.sample = 2");
        assert_eq!(said, "/access_log/sample expected a number from 0 to 1");
        let said = wrong("access_log.sample = 1.5");
        assert_eq!(said, "/access_log/sample expected a number from 0 to 1");
        let said = wrong("access_log.format = \"{uri}\\n{status}\"");
        assert!(said.contains("line breaks"), "{said}");
        let said = wrong("log.level = 'chatty'");
        assert!(said.contains("`chatty` is not one of"), "{said}");
    }

    #[test]
    fn the_log_has_defaults() {
        assert_eq!(parse("").unwrap().log, LogSpec::default());
        let spec = parse("log = { level = 'debug', format = 'json' }").unwrap();
        assert_eq!(spec.log.level, LogLevel::Debug);
        assert_eq!(spec.log.format, LogFormat::Json);
    }
}
