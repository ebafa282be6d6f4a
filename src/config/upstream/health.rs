//! `health` of an upstream: what is asked of each target, how often, and after how many answers it is believed.

use std::fmt;
use std::time::Duration;

use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::{Serialize, Serializer};

use super::super::check::{Checker, shorten};
use super::super::decode::{Decode, List, Loc, Map, section, text, words, wrong_kind};
use super::super::findings::Findings;
use super::super::scalar::{Span, Wrong};
use super::super::tree::{Node, Value};

section! {
    /// Active checks of each target: an HTTP request (`path`), a gRPC health call (`grpc`), else a TCP connection.
    pub struct HealthRaw {
        /// Path of an HTTP check, with its query. A redirect is an answer like any other: it is not followed.
        path: String,
        /// Method of an HTTP check.
        method: String = "GET",
        /// `Host` of an HTTP or gRPC check; the target's address if left out.
        host: String,
        /// Port that is checked; the target's own if left out.
        port: u64,
        /// More fields of an HTTP or gRPC check.
        headers: Map<String>,
        /// Statuses that pass an HTTP check: `"2xx"`, `204`, `"200-399"`.
        expect: List<StatusRange> = ["2xx"],
        /// Service that a gRPC check asks for (`grpc.health.v1`); `""` is the server as a whole.
        grpc: String,
        /// What a TCP check sends.
        send: String,
        /// What a TCP check must find in the first 16 KiB of the answer.
        receive: String,
        /// Time between two checks of a target; shorter while it is down or its state is in doubt.
        interval: Span = "5s",
        /// How long one check may take.
        timeout: Span = "2s",
        /// Checks in a row that must pass before a target that is down is used again.
        healthy_after: u64 = 2,
        /// Checks in a row that must fail before a target is used no more.
        unhealthy_after: u64 = 3,
        /// What happens to requests and long flows of a target that went down.
        on_down: OnDown = "keep",
    }
    short = path;
    one_of = ["path", "grpc", "send", "receive"];
    later = [];
}

/// What happens to what a target has in flight when it goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnDown {
    /// It goes on.
    Keep,
    /// It ends.
    Cut,
}

words!(OnDown { "keep" => OnDown::Keep, "cut" => OnDown::Cut });

/// Checked `health`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthSpec {
    pub probe: ProbeSpec,
    /// `None`: the target's own.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// 1 to 1000.
    pub healthy_after: u32,
    /// 1 to 1000.
    pub unhealthy_after: u32,
    pub on_down: OnDown,
}

/// What one check does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProbeSpec {
    /// Connects; with `send` or `receive` it also talks.
    Tcp {
        send: Vec<u8>,
        receive: Option<Vec<u8>>,
    },
    Http {
        method: Method,
        /// A valid path and query.
        path: String,
        host: Option<HeaderValue>,
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Never empty.
        expect: Vec<StatusRange>,
    },
    Grpc {
        service: String,
        host: Option<HeaderValue>,
        headers: Vec<(HeaderName, HeaderValue)>,
    },
}

/// A range of statuses, both ends included: `2xx`, `204`, `200-399`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// # Errors
    /// What it should have been.
    pub fn parse(text: &str) -> Result<StatusRange, Wrong> {
        let wrong = || {
            Wrong::new(format!("`{}` is no status", shorten(text)))
                .help("such as `\"2xx\"`, `204` or `\"200-399\"`")
        };
        let status = |text: &str| {
            let three = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
            let number = text
                .parse()
                .ok()
                .filter(|n| three && (100..=599).contains(n));
            number.ok_or_else(wrong)
        };
        if let Some(class) = text.strip_suffix("xx") {
            let first = status(&format!("{class}00"))?;
            return Ok(StatusRange {
                first,
                last: first + 99,
            });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (status(first)?, status(last)?);
        if first > last {
            return Err(wrong());
        }
        Ok(StatusRange { first, last })
    }

    pub fn contains(self, status: StatusCode) -> bool {
        (self.first..=self.last).contains(&status.as_u16())
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StatusRange { first, last } = self;
        if first == last {
            write!(f, "{first}")
        } else if first % 100 == 0 && *last == first + 99 {
            write!(f, "{}xx", first / 100)
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl Decode for StatusRange {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        let parsed = match &node.value {
            Value::Int(number) => StatusRange::parse(&number.to_string()),
            Value::Text(_) => StatusRange::parse(text(node, findings)?),
            _ => {
                wrong_kind(node, "a status", findings);
                return None;
            }
        };
        match parsed {
            Ok(range) => Some(range),
            Err(wrong) => {
                findings.error(node.at, wrong.message).help_if(wrong.help);
                None
            }
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl schemars::JsonSchema for StatusRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StatusRange".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [
            { "type": "string", "pattern": "^[1-5](xx|[0-9]{2}(-[1-5][0-9]{2})?)$" },
            { "type": "integer", "minimum": 100, "maximum": 599 },
        ] })
    }
}

impl HealthRaw {
    /// Checks it, with its defaults in.
    pub fn spec(&self, check: &mut Checker<'_>) -> HealthSpec {
        let times = |n: Option<&Loc<u64>>, check: &mut Checker<'_>| {
            let n = n.map_or(1, |n| check.number(n.at, n.value, 1..=1000));
            u32::try_from(n).unwrap_or(u32::MAX)
        };
        let port = self.port.as_ref();
        let port = port.map(|p| check.number(p.at, p.value, 1..=u64::from(u16::MAX)));
        HealthSpec {
            probe: self.probe(check),
            port: port.and_then(|p| u16::try_from(p).ok()),
            interval: check.duration(self.interval.as_ref()),
            timeout: check.duration(self.timeout.as_ref()),
            healthy_after: times(self.healthy_after.as_ref(), check),
            unhealthy_after: times(self.unhealthy_after.as_ref(), check),
            on_down: self.on_down.as_ref().map_or(OnDown::Keep, |o| o.value),
        }
    }

    fn probe(&self, check: &mut Checker<'_>) -> ProbeSpec {
        let method = self.method(check);
        let host = self.host.as_ref().and_then(|host| {
            let value = HeaderValue::try_from(host.as_str()).ok();
            let value = value.filter(|v| !v.is_empty() && v.to_str().is_ok());
            let wrong = || Wrong::new(format!("`{}` is no host", shorten(host)));
            check.take(host.at, value.ok_or_else(wrong))
        });
        let headers = self.headers(check);
        self.one_kind(check);
        if let Some(path) = &self.path {
            let valid = path.starts_with('/') && PathAndQuery::try_from(path.as_str()).is_ok();
            if !valid {
                let error = format!("`{}` is not a path", shorten(path));
                let help = "it begins with `/` and is percent-encoded";
                check.findings.error(path.at, error).help(help);
            }
            return ProbeSpec::Http {
                method,
                path: path.value.clone(),
                host,
                headers,
                expect: self.expect(check),
            };
        }
        if let Some(service) = &self.grpc {
            return ProbeSpec::Grpc {
                service: service.value.clone(),
                host,
                headers,
            };
        }
        let bytes = |text: &Loc<String>| text.value.clone().into_bytes();
        ProbeSpec::Tcp {
            send: self.send.as_ref().map(bytes).unwrap_or_default(),
            receive: self.receive.as_ref().map(bytes),
        }
    }

    fn method(&self, check: &mut Checker<'_>) -> Method {
        let Some(text) = &self.method else {
            return Method::GET;
        };
        // CONNECT has no path, and its answer is a tunnel.
        let parsed = Method::from_bytes(text.as_bytes()).ok();
        let parsed = parsed.filter(|m| *m != Method::CONNECT);
        let wrong = || {
            let message = format!("`{}` is not a method for a check", shorten(text));
            Wrong::new(message).help("such as `GET` or `HEAD`")
        };
        check
            .take(text.at, parsed.ok_or_else(wrong))
            .unwrap_or(Method::GET)
    }

    fn headers(&self, check: &mut Checker<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in self.headers.iter().flat_map(|map| map.iter()) {
            let wrong = || Wrong::new(format!("`{}` is not a field to send", shorten(name)));
            let field = HeaderName::from_bytes(name.as_bytes())
                .ok()
                .zip(HeaderValue::try_from(value.as_str()).ok())
                .ok_or_else(wrong);
            let Some((name, value)) = check.take(value.at, field) else {
                continue;
            };
            headers.push((name, value));
        }
        for (name, at) in self
            .headers
            .iter()
            .flat_map(|map| map.iter())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.at))
        {
            // They are what the check itself says.
            let own = [
                "host",
                "connection",
                "content-length",
                "transfer-encoding",
                "upgrade",
            ];
            if own.contains(&name.as_str()) {
                let help = if name == "host" {
                    "use `host`"
                } else {
                    "leave it out"
                };
                check
                    .findings
                    .error(at, format!("`{name}` is set by the check itself"))
                    .help(help);
            }
        }
        headers
    }

    fn expect(&self, check: &mut Checker<'_>) -> Vec<StatusRange> {
        let Some(list) = &self.expect else {
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            let error = "no status would pass the check";
            check
                .findings
                .error(list.at, error)
                .help("such as `[\"2xx\"]`");
        }
        list.iter().map(|range| range.value).collect()
    }

    /// Keys of one kind of check only. `method` and `expect` have defaults, so their being there says nothing.
    fn one_kind(&self, check: &mut Checker<'_>) {
        let http = self.path.as_ref().map(|l| l.at);
        let grpc = self.grpc.as_ref().map(|l| l.at);
        let tcp = self.send.as_ref().or(self.receive.as_ref()).map(|l| l.at);
        let second = match (http, grpc, tcp) {
            (Some(_), Some(at), _) => Some((at, "`grpc` is another kind of check than `path`")),
            (Some(_), None, Some(at)) => Some((
                at,
                "`send` and `receive` are another kind of check than `path`",
            )),
            (None, Some(_), Some(at)) => Some((
                at,
                "`send` and `receive` are another kind of check than `grpc`",
            )),
            _ => None,
        };
        if let Some((at, error)) = second {
            check
                .findings
                .error(at, error)
                .help("leave one of them out");
        }
        let spoiled = |key| self.spoiled.contains(&key);
        if http.or(grpc).is_none() && !spoiled("path") && !spoiled("grpc") {
            let host = self.host.as_ref().map(|l| (l.at, "host"));
            let headers = self.headers.as_ref().map(|l| (l.at, "headers"));
            for (at, key) in host.into_iter().chain(headers) {
                check
                    .findings
                    .error(at, format!("a TCP check has no `{key}`"))
                    .help("`path = \"/healthz\"` makes it an HTTP check");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statuses_are_ranges() {
        let range = |text| StatusRange::parse(text).map(|r| (r.first, r.last));
        assert_eq!(range("2xx"), Ok((200, 299)));
        assert_eq!(range("204"), Ok((204, 204)));
        assert_eq!(range("200-399"), Ok((200, 399)));
        for wrong in [
            "", "xx", "6xx", "20", "2xxx", "099", "600", "300-200", "+20", "200-", "-200",
            "2xx-3xx",
        ] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_range_prints_as_it_parses(first in 100_u16..600, more in 0_u16..500) {
            let range = StatusRange { first, last: (first + more).min(599) };
            prop_assert_eq!(StatusRange::parse(&range.to_string()).unwrap(), range);
        }
    }
}
