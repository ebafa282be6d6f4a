//! What a line of the access log looks like. A format is compiled once; a line is begun while the request's head is
//! there, with marks for what only its end can tell, and completed when the response has ended.

use std::borrow::Cow;
use std::io::Write as _;

use http::{Method, Uri, Version};

use super::Late;
use super::session::Flow;
use crate::config::log::AccessFormat;
use crate::config::template::{Part, Source, Var};
use crate::log::escape;
use crate::log::stamp::Stamp;

/// Most lines fit.
const LINE: usize = 384;

/// A compiled format.
#[derive(Debug)]
pub struct Format {
    pieces: Vec<Piece>,
    /// Of a session's line, if that is another.
    session: Option<Vec<Piece>>,
    escape: fn(&[u8], &mut Vec<u8>),
    /// Stands for nothing.
    nothing: &'static [u8],
}

#[derive(Debug)]
enum Piece {
    Text(Vec<u8>),
    Var(Var),
    /// `GET /a HTTP/1.1`.
    RequestLine,
    Protocol,
    Mark(Mark),
}

/// A place that is filled when the response has ended. In a line that is begun it is a byte of this value: no other
/// byte there is less than a tab, which is room for nine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mark {
    BytesReceived = 0,
    CommonTime,
    Time,
    Status,
    DurationMs,
    BytesSent,
    Upstream,
    Target,
    User,
}

impl Mark {
    const ALL: [Mark; 9] = [
        Mark::BytesReceived,
        Mark::CommonTime,
        Mark::Time,
        Mark::Status,
        Mark::DurationMs,
        Mark::BytesSent,
        Mark::Upstream,
        Mark::Target,
        Mark::User,
    ];

    fn of_var(var: &Var) -> Option<Mark> {
        Some(match var {
            Var::Time => Mark::Time,
            Var::Status => Mark::Status,
            Var::DurationMs => Mark::DurationMs,
            Var::BytesReceived => Mark::BytesReceived,
            Var::BytesSent => Mark::BytesSent,
            Var::Upstream => Mark::Upstream,
            Var::Target => Mark::Target,
            Var::User => Mark::User,
            _ => return None,
        })
    }
}

/// The request line, as far as there is one.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    /// Of a target with an authority all is wanted.
    pub whole: bool,
    pub version: Version,
}

impl Asked<'_> {
    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }
    }

    fn target(&self) -> Cow<'_, str> {
        match self.uri.path_and_query() {
            Some(target) if !self.whole => target.as_str().into(),
            _ => self.uri.to_string().into(),
        }
    }
}

impl Format {
    pub fn new(spec: &AccessFormat) -> Format {
        match spec {
            AccessFormat::Combined => Format::text(combined()),
            AccessFormat::Template(template) => {
                let piece = |part: &Part| match part {
                    Part::Text(text) => Piece::Text(text.clone().into_bytes()),
                    Part::Var(var) => variable(var.clone()),
                };
                Format::text(template.parts.iter().map(piece).collect())
            }
            AccessFormat::Json => Format {
                pieces: json(),
                session: Some(json_session()),
                escape: escape::json,
                nothing: b"",
            },
        }
    }

    fn text(pieces: Vec<Piece>) -> Format {
        Format {
            pieces,
            session: None,
            escape: escape::plain,
            nothing: b"-",
        }
    }

    /// Begins a line. `asked`: `None` if there was no request to be read.
    pub(super) fn begin(&self, source: &impl Source, asked: Option<Asked<'_>>) -> Vec<u8> {
        let mut line = Vec::with_capacity(LINE);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.extend_from_slice(text),
                Piece::Var(var) => self.value(source.var(var).as_bytes(), &mut line),
                Piece::Mark(mark) => line.push(*mark as u8),
                Piece::Protocol => {
                    let protocol = asked.map_or("", |asked| asked.protocol());
                    self.value(protocol.as_bytes(), &mut line);
                }
                Piece::RequestLine => match asked {
                    None => line.extend_from_slice(self.nothing),
                    Some(asked) => {
                        (self.escape)(asked.method.as_str().as_bytes(), &mut line);
                        line.push(b' ');
                        (self.escape)(asked.target().as_bytes(), &mut line);
                        line.push(b' ');
                        line.extend_from_slice(asked.protocol().as_bytes());
                    }
                },
            }
        }
        line
    }

    fn value(&self, value: &[u8], line: &mut Vec<u8>) {
        if value.is_empty() {
            line.extend_from_slice(self.nothing);
        } else {
            (self.escape)(value, line);
        }
    }

    /// Completes a line that was begun with this format, and ends it.
    pub(super) fn complete(&self, begun: &[u8], late: &Late<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
        let mut rest = begun;
        while let Some(at) = rest.iter().position(|b| *b < b'\t') {
            out.extend_from_slice(&rest[..at]);
            if let Some(mark) = Mark::ALL.iter().find(|mark| **mark as u8 == rest[at]) {
                self.fill(*mark, late, stamp, out);
            }
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
        out.push(b'\n');
    }

    /// Writes the line of a session.
    pub(super) fn session(&self, flow: &Flow, stamp: &Stamp, out: &mut Vec<u8>) {
        let late = flow.late();
        for piece in self.session.as_ref().unwrap_or(&self.pieces) {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Var(var) => self.value(flow.var(var).as_bytes(), out),
                Piece::Mark(Mark::Target) => self.value(flow.destination().as_bytes(), out),
                Piece::Mark(mark) => self.fill(*mark, &late, stamp, out),
                Piece::RequestLine => self.value(flow.request_line().as_bytes(), out),
                Piece::Protocol => self.value(b"", out),
            }
        }
        out.push(b'\n');
    }

    fn fill(&self, mark: Mark, late: &Late<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = match mark {
            Mark::CommonTime => return stamp.common(out),
            Mark::Time => return stamp.rfc3339(out),
            Mark::Status => write!(out, "{}", late.status),
            Mark::BytesReceived => match late.received {
                Some(received) => write!(out, "{received}"),
                None => return out.extend_from_slice(self.nothing),
            },
            Mark::BytesSent => write!(out, "{}", late.sent),
            Mark::DurationMs => {
                let micros = late.took.as_micros();
                write!(out, "{}.{:03}", micros / 1000, micros % 1000)
            }
            Mark::Upstream => return self.value(late.upstream.as_bytes(), out),
            Mark::User => return self.value(late.user.as_bytes(), out),
            Mark::Target => {
                let target = late.target.map(ToString::to_string).unwrap_or_default();
                return self.value(target.as_bytes(), out);
            }
        };
    }
}

fn variable(var: Var) -> Piece {
    match Mark::of_var(&var) {
        Some(mark) => Piece::Mark(mark),
        None => Piece::Var(var),
    }
}

fn text(text: &str) -> Piece {
    Piece::Text(text.as_bytes().to_vec())
}

fn header(name: &'static str) -> Var {
    Var::Header(http::HeaderName::from_static(name))
}

/// `127.0.0.1 - alice [25/Nov/2026:01:34:36 +0000] "GET / HTTP/1.1" 200 5 "-" "curl/8"`.
fn combined() -> Vec<Piece> {
    vec![
        Piece::Var(Var::ClientIp),
        text(" - "),
        Piece::Mark(Mark::User),
        text(" ["),
        Piece::Mark(Mark::CommonTime),
        text("] \""),
        Piece::RequestLine,
        text("\" "),
        Piece::Mark(Mark::Status),
        text(" "),
        Piece::Mark(Mark::BytesSent),
        text(" \""),
        Piece::Var(header("referer")),
        text("\" \""),
        Piece::Var(header("user-agent")),
        text("\""),
    ]
}

/// An object with the same keys in every line.
fn json() -> Vec<Piece> {
    let quoted = [
        ("time", Piece::Mark(Mark::Time)),
        ("client_ip", Piece::Var(Var::ClientIp)),
        ("user", Piece::Mark(Mark::User)),
        ("method", Piece::Var(Var::Method)),
        ("scheme", Piece::Var(Var::Scheme)),
        ("host", Piece::Var(Var::Host)),
        ("uri", Piece::Var(Var::Uri)),
        ("protocol", Piece::Protocol),
        ("server", Piece::Var(Var::Server)),
        ("route", Piece::Var(Var::Route)),
        ("upstream", Piece::Mark(Mark::Upstream)),
        ("target", Piece::Mark(Mark::Target)),
        ("request_id", Piece::Var(Var::RequestId)),
        ("referer", Piece::Var(header("referer"))),
        ("user_agent", Piece::Var(header("user-agent"))),
    ];
    let numbers = [
        ("status", Piece::Mark(Mark::Status)),
        ("bytes_sent", Piece::Mark(Mark::BytesSent)),
        ("duration_ms", Piece::Mark(Mark::DurationMs)),
        ("generation", Piece::Var(Var::Generation)),
    ];
    object(quoted, numbers)
}

/// The same for sessions.
fn json_session() -> Vec<Piece> {
    let quoted = [
        ("time", Piece::Mark(Mark::Time)),
        ("client_ip", Piece::Var(Var::ClientIp)),
        ("user", Piece::Mark(Mark::User)),
        ("kind", Piece::Var(Var::Scheme)),
        ("listener", Piece::Var(Var::Server)),
        ("upstream", Piece::Mark(Mark::Upstream)),
        ("target", Piece::Mark(Mark::Target)),
        ("ended", Piece::Var(Var::Ended)),
    ];
    let numbers = [
        ("bytes_received", Piece::Mark(Mark::BytesReceived)),
        ("bytes_sent", Piece::Mark(Mark::BytesSent)),
        ("duration_ms", Piece::Mark(Mark::DurationMs)),
        ("generation", Piece::Var(Var::Generation)),
    ];
    object(quoted, numbers)
}

fn object<const Q: usize, const N: usize>(
    quoted: [(&str, Piece); Q],
    numbers: [(&str, Piece); N],
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut before = "{";
    for (key, piece) in quoted {
        pieces.extend([text(&format!("{before}\"{key}\":\"")), piece]);
        before = "\",";
    }
    for (key, piece) in numbers {
        pieces.extend([text(&format!("{before}\"{key}\":")), piece]);
        before = ",";
    }
    pieces.push(text("}"));
    pieces
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::config::template::{Side, Template};

    /// The same text for every variable.
    struct All<'a>(&'a str);
    impl Source for All<'_> {
        fn var(&self, var: &Var) -> Cow<'_, str> {
            match var {
                Var::Generation => "7".into(),
                _ => self.0.into(),
            }
        }
    }

    fn line(format: &AccessFormat, values: &str, asked: bool) -> String {
        let (format, uri) = (Format::new(format), "http://a.test/x?y".parse().unwrap());
        let asked = asked.then_some(Asked {
            method: &Method::GET,
            uri: &uri,
            whole: false,
            version: Version::HTTP_11,
        });
        let begun = format.begin(&All(values), asked);
        let late = Late {
            status: 200,
            took: Duration::from_micros(1_020),
            received: None,
            sent: 5,
            upstream: "api",
            target: None,
            user: values,
        };
        let mut stamp = Stamp::default();
        stamp.set(UNIX_EPOCH + Duration::from_millis(1_500));
        let mut out = Vec::new();
        format.complete(&begun, &late, &stamp, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn combined_is_what_everybody_reads() {
        let expected =
            "x - x [01/Jan/1970:00:00:01 +0000] \"GET /x?y HTTP/1.1\" 200 5 \"x\" \"x\"\n";
        assert_eq!(line(&AccessFormat::Combined, "x", true), expected);
        let expected = "- - - [01/Jan/1970:00:00:01 +0000] \"-\" 200 5 \"-\" \"-\"\n";
        assert_eq!(line(&AccessFormat::Combined, "", false), expected);
    }

    #[test]
    fn a_template_is_filled_in_its_order() {
        let text =
            "{time}\t{duration_ms} {status} {bytes_sent} {upstream} {target} {user} {host} {{}}";
        let template = Template::parse_for(text, Side::Log).unwrap();
        let expected = "1970-01-01T00:00:01.500Z\t1.020 200 5 api - a\\x0Ab a\\x0Ab {}\n";
        assert_eq!(
            line(&AccessFormat::Template(template), "a\nb", true),
            expected
        );
    }

    fn flow(values: &str) -> Flow {
        Flow {
            info: crate::session::Info {
                id: 1,
                kind: crate::session::Kind::Socks5,
                client: Some("10.0.0.1:4000".parse().unwrap()),
                user: Some(values.into()),
                listener: Some("office".into()),
                route: None,
                upstream: None,
                destination: Some(values.into()),
                generation: Some(7),
                age: Duration::from_micros(1_020),
                idle: Duration::ZERO,
                received: 3,
                sent: 5,
                closing: false,
            },
            end: crate::session::End::Idle,
        }
    }

    fn session(format: &AccessFormat, values: &str) -> String {
        let mut stamp = Stamp::default();
        stamp.set(UNIX_EPOCH + Duration::from_millis(1_500));
        let mut out = Vec::new();
        Format::new(format).session(&flow(values), &stamp, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_session_has_a_line_in_every_format() {
        let expected = "10.0.0.1 - x [01/Jan/1970:00:00:01 +0000] \"SOCKS5 x\" 408 5 \"-\" \"-\"\n";
        assert_eq!(session(&AccessFormat::Combined, "x"), expected);
        let text = "{client_port} {scheme} {server} {target} {bytes_received} {bytes_sent} {duration_ms} {ended} {uri}";
        let template = AccessFormat::Template(Template::parse_for(text, Side::Log).unwrap());
        let expected = "4000 socks5 office a\\x0Ab 3 5 1.020 idle -\n";
        assert_eq!(session(&template, "a\nb"), expected);
        // Of a request neither is known.
        let template = Template::parse_for("{bytes_received} {ended}", Side::Log).unwrap();
        assert_eq!(line(&AccessFormat::Template(template), "", true), "- -\n");
    }

    proptest! {
        #[test]
        fn the_line_of_a_session_is_one_line_and_json_is_json(values in "[\\x00-\\x7f\u{80}-\u{ff}]{0,40}") {
            let json = session(&AccessFormat::Json, &values);
            prop_assert_eq!(json.matches('\n').count(), 1);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read["target"].as_str(), Some(&*values));
            prop_assert_eq!(read["ended"].as_str(), Some("idle"));
            prop_assert_eq!(read["bytes_received"].as_u64(), Some(3));
            let combined = session(&AccessFormat::Combined, &values);
            prop_assert!(!combined.trim_end_matches('\n').contains(|c: char| c.is_control()));
        }

        #[test]
        fn a_line_is_one_line_and_json_is_json(values in "[\\x00-\\x7f\u{80}-\u{ff}]{0,40}", asked: bool) {
            let json = line(&AccessFormat::Json, &values, asked);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read["user_agent"].as_str(), Some(&*values));
            prop_assert_eq!(read["user"].as_str(), Some(&*values));
            prop_assert_eq!(read["duration_ms"].as_f64(), Some(1.02));
            prop_assert_eq!(read["generation"].as_u64(), Some(7));
            let combined = line(&AccessFormat::Combined, &values, asked);
            for line in [json, combined] {
                prop_assert_eq!(line.matches('\n').count(), 1);
                prop_assert!(!line.trim_end_matches('\n').contains(|c: char| c.is_control()));
            }
        }
    }
}
