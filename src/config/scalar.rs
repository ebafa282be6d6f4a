//! Values with a unit or a meaning of their own: addresses, durations, sizes, host patterns, secrets, regexes. Each parses
//! from text, prints back to the same text, and cannot hold a wrong value.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::decode::{Decode, text, unknown_key, wrong_kind};
use super::findings::Findings;
use super::tree::{Node, Value};

/// One address to listen on, as one socket group. `:80` and `localhost:80` in a document become two of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddr {
    /// An IP literal and port; port 0 is a free one.
    Tcp(SocketAddr),
    /// An absolute path.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(a) => a.fmt(f),
            ListenAddr::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

/// The address of a target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetAddr {
    /// An IP literal.
    Ip(SocketAddr),
    /// A DNS name (lower case) and port, resolved again every `resolve.interval`.
    Name(Arc<str>, u16),
    Unix(PathBuf),
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetAddr::Ip(a) => a.fmt(f),
            TargetAddr::Name(n, p) => write!(f, "{n}:{p}"),
            TargetAddr::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

/// A host name pattern, lower case, without port.
#[derive(Debug, Clone, PartialEq)]
pub enum HostPattern {
    Exact(String),
    /// `*.example.com`, held as `example.com`: any depth below, not the name itself.
    Below(String),
    Regex(Pattern),
}

/// A compiled regular expression; two are equal when their texts are.
#[derive(Clone)]
pub struct Pattern {
    pub text: Arc<str>,
    pub regex: regex_automata::meta::Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "~{}", self.text)
    }
}

/// A secret string: redacts itself wherever it is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }
    /// The secret itself; for comparison and for sending only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A span of time as documents write it: one integer and `ms`, `s`, `m`, `h` or `d`; at most 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub Duration);

/// A number of bytes as documents write it: one integer and `B`, `kB`, `MB`, `GB`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size(pub u64);

/// Largest first: the first that divides is the one to print.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];
const LONGEST_MS: u64 = 365 * 86_400_000;

/// Splits `"10MB"` and multiplies. `None`: no integer, no such unit, or too large.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn print_with_unit(
    value: u64,
    smallest: &str,
    units: &[(&str, u64)],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
    {
        Some((name, factor)) => write!(f, "{}{name}", value / factor),
        None => write!(f, "{value}{smallest}"),
    }
}

impl Span {
    /// Parses `"250ms"`.
    pub fn parse(text: &str) -> Option<Span> {
        with_unit(text, &TIME_UNITS)
            .filter(|ms| *ms <= LONGEST_MS)
            .map(|ms| Span(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Span {
    /// The largest unit that fits: `"90s"`, but `"2m"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_with_unit(
            u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX),
            "s",
            &TIME_UNITS,
            f,
        )
    }
}

impl Size {
    /// Parses `"64KiB"`.
    pub fn parse(text: &str) -> Option<Size> {
        // TOML and JSON know no more than 63 bits either.
        with_unit(text, &SIZE_UNITS)
            .filter(|n| i64::try_from(*n).is_ok())
            .map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_with_unit(self.0, "B", &SIZE_UNITS, f)
    }
}

/// A scalar with a unit: from text, to text, as a pattern in the schema.
macro_rules! unit_scalar {
    ($type:ident, $what:literal, $example:literal, $pattern:literal) => {
        impl Decode for $type {
            fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
                if let Value::Int(n) = node.value {
                    let help = concat!("write a string with a unit, such as `\"", $example, "\"`");
                    findings.error(node.at, format!("{n} is {} without a unit", $what)).help(help);
                    return None;
                }
                let text = text(node, findings)?;
                let parsed = $type::parse(text);
                if parsed.is_none() {
                    let help = concat!("one integer and a unit, such as `\"", $example, "\"`");
                    findings.error(node.at, format!("`{text}` is not {}", $what)).help(help);
                }
                parsed
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

unit_scalar!(Span, "a duration", "250ms", "^[0-9]+(ms|s|m|h|d)$");
unit_scalar!(
    Size,
    "a size",
    "64KiB",
    "^[0-9]+(B|kB|KB|MB|GB|KiB|MiB|GiB)$"
);

/// A secret as a document gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    Literal(Secret),
    /// `"<redacted>"`: the value that runs.
    Redacted,
    Env(String),
    File(String),
}

/// What stands for a literal secret in everything that is shown.
pub const REDACTED: &str = "<redacted>";

impl Decode for SecretRef {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        let entries = match &node.value {
            Value::Text(text) if text == REDACTED => return Some(SecretRef::Redacted),
            Value::Text(text) if text.is_empty() => {
                findings.error(node.at, "an empty secret");
                return None;
            }
            Value::Text(text) => return Some(SecretRef::Literal(Secret::new(text.to_string()))),
            Value::Table(entries) => entries,
            _ => {
                wrong_kind(
                    node,
                    "a string, `{ env = \"NAME\" }` or `{ file = \"path\" }`",
                    findings,
                );
                return None;
            }
        };
        let mut found = Vec::new();
        let mut wrong = false;
        for (key, child) in entries {
            match key.as_ref() {
                "env" => found.extend(text(child, findings).map(|t| SecretRef::Env(t.to_owned()))),
                "file" => {
                    found.extend(text(child, findings).map(|t| SecretRef::File(t.to_owned())))
                }
                _ => {
                    wrong = true;
                    unknown_key(child.at, key, &["env", "file"], &[], findings);
                }
            }
        }
        if entries.len() != 1 && !wrong {
            findings.error(
                node.at,
                "a secret is either `{ env = \"NAME\" }` or `{ file = \"path\" }`",
            );
            return None;
        }
        found.pop()
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SecretRef::Literal(_) | SecretRef::Redacted => serializer.serialize_str(REDACTED),
            SecretRef::Env(name) => serializer.collect_map([("env", name)]),
            SecretRef::File(path) => serializer.collect_map([("file", path)]),
        }
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let of = |key: &str| {
            serde_json::json!({
                "type": "object", "properties": { key: { "type": "string" } },
                "required": [key], "additionalProperties": false
            })
        };
        json_schema!({
            "description": "A secret: the text itself, the name of an environment variable, or a file that holds it.",
            "anyOf": [{ "type": "string" }, of("env"), of("file")]
        })
    }
}

/// Why a piece of text is not what it should be: a sentence, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub message: String,
    pub help: Option<String>,
}

impl Wrong {
    pub fn new(message: impl Into<String>) -> Wrong {
        Wrong {
            message: message.into(),
            help: None,
        }
    }

    pub fn help(mut self, help: impl Into<String>) -> Wrong {
        self.help = Some(help.into());
        self
    }
}

/// Memory that one compiled regular expression may take.
const REGEX_SIZE: usize = 1 << 20;

impl Pattern {
    /// Compiles the text after the `~`.
    ///
    /// # Errors
    /// The place of a mistake in it, or that it is too large.
    pub fn compile(text: &str) -> Result<Pattern, Wrong> {
        let config = regex_automata::meta::Config::new()
            .nfa_size_limit(Some(REGEX_SIZE))
            .onepass_size_limit(Some(REGEX_SIZE))
            .hybrid_cache_capacity(REGEX_SIZE);
        let syntax = regex_automata::util::syntax::Config::new().nest_limit(100);
        let built = regex_automata::meta::Builder::new()
            .configure(config)
            .syntax(syntax)
            .build(text);
        match built {
            Ok(regex) => Ok(Pattern {
                text: text.into(),
                regex,
            }),
            Err(error) if error.size_limit().is_some() => {
                Err(Wrong::new("the regular expression is too large")
                    .help("use smaller repetition counts"))
            }
            Err(error) => Err(Wrong::new(regex_message(&error))),
        }
    }
}

/// One sentence of an error whose text is a drawing over several lines.
fn regex_message(error: &regex_automata::meta::BuildError) -> String {
    let source = std::error::Error::source(error)
        .and_then(|e| e.source().or(Some(e)))
        .map(ToString::to_string);
    let full = source.unwrap_or_else(|| error.to_string());
    // The parser draws the expression and carets below it, both indented by four.
    let carets = full
        .lines()
        .rfind(|line| line.contains('^') && line.chars().all(|c| matches!(c, ' ' | '^')));
    let caret = carets.map(|line| {
        line.chars()
            .take_while(|c| *c == ' ')
            .count()
            .saturating_sub(3)
    });
    let reason = full.lines().last().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    match caret {
        Some(column) => format!("bad regular expression at character {column}: {reason}"),
        None => format!("bad regular expression: {reason}"),
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Below(name) => write!(f, "*.{name}"),
            HostPattern::Regex(pattern) => write!(f, "{pattern:?}"),
        }
    }
}

impl HostPattern {
    /// Parses a name, `*.name` or `~regex`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<HostPattern, Wrong> {
        if let Some(regex) = text.strip_prefix('~') {
            // Names have no case, so patterns of them have none either.
            return Pattern::compile(&format!("(?i){regex}"))
                .map(|p| {
                    HostPattern::Regex(Pattern {
                        text: regex.into(),
                        regex: p.regex,
                    })
                })
                .map_err(|w| {
                    if regex.is_empty() {
                        w
                    } else {
                        Pattern::compile(regex).err().unwrap_or(w)
                    }
                });
        }
        if text == "*" {
            return Err(Wrong::new("`*` is not a host pattern")
                .help("leave the key out: without it any host will do"));
        }
        if let Some(name) = text.strip_prefix("*.") {
            return host_name(name).map(HostPattern::Below);
        }
        if let Some(v6) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            return match v6.parse::<Ipv6Addr>() {
                Ok(ip) => Ok(HostPattern::Exact(format!("[{ip}]"))),
                Err(_) => Err(Wrong::new(format!("`{text}` is not an IPv6 address"))),
            };
        }
        host_name(text).map(HostPattern::Exact)
    }
}

/// A DNS name, lower case and without a dot at its end.
fn host_name(text: &str) -> Result<String, Wrong> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let wrong = Wrong::new(format!("`{text}` is not a host name"));
    if text.contains("://") {
        return Err(wrong.help("write the name alone, without scheme and path"));
    }
    if text.contains(':') {
        return Err(wrong.help("hosts are compared without the port; leave it out"));
    }
    if text.contains('*') {
        return Err(wrong.help("a `*` stands only at the beginning: `*.example.com`"));
    }
    if !text.is_ascii() {
        return Err(wrong.help("write it as it goes over the wire: `xn--…`"));
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        Err(wrong)
    } else {
        Ok(name)
    }
}

/// Parses `10.0.0.0/8`, or an address that stands for itself.
///
/// # Errors
/// That it is neither.
pub fn cidr(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net.trunc());
    }
    text.parse::<IpAddr>().map(IpNet::from).map_err(|_| {
        Wrong::new(format!("`{text}` is not an address range"))
            .help("such as `10.0.0.0/8` or `::1`")
    })
}

/// Splits off the port, which is after the last colon.
fn host_and_port(text: &str) -> Result<(&str, u16), Wrong> {
    let wrong = || {
        Wrong::new(format!("`{text}` is not an address"))
            .help("an address is `host:port`, such as `10.0.0.1:80`")
    };
    if text.starts_with('[') && text.ends_with(']') || text.parse::<Ipv6Addr>().is_ok() {
        return Err(Wrong::new(format!("`{text}` has no port")).help("an address is `[::1]:80`"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(Wrong::new(format!("`{text}` has no port"))
            .help(format!("write `{text}:80`, or `:80` for a port alone")));
    };
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    match port.parse::<u16>() {
        Ok(port) => Ok((host, port)),
        Err(_) => Err(Wrong::new(format!("{port} is not a port")).help("ports are 0 to 65535")),
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

fn unix_path(path: &str, base: &Path) -> Result<PathBuf, Wrong> {
    if path.is_empty() {
        return Err(Wrong::new("`unix:` needs a path").help("such as `unix:/run/app.sock`"));
    }
    let path = base.join(path);
    // The kernel's bound for a socket address, less the byte that ends it.
    if path.as_os_str().len() > 107 {
        return Err(Wrong::new(
            "the path of a unix socket has at most 107 bytes",
        ));
    }
    Ok(path)
}

impl ListenAddr {
    /// The addresses that a text stands for: `:80` and `localhost:80` are an IPv4 and an IPv6 one, in this order.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_all(text: &str, base: &Path) -> Result<Vec<ListenAddr>, Wrong> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path, base).map(|p| vec![ListenAddr::Unix(p)]);
        }
        if text.contains("://") {
            return Err(Wrong::new(format!("`{text}` is not an address"))
                .help("write `host:port` without a scheme"));
        }
        let (host, port) = host_and_port(text)?;
        let both = |v4: Ipv4Addr, v6: Ipv6Addr| {
            vec![
                ListenAddr::Tcp((v4, port).into()),
                ListenAddr::Tcp((v6, port).into()),
            ]
        };
        match host {
            "" => Ok(both(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)),
            "localhost" => Ok(both(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)),
            "*" => Err(Wrong::new(format!("`{text}` is not an address")).help(format!("write `:{port}` for all addresses"))),
            host => match literal(host) {
                Some(ip) => Ok(vec![ListenAddr::Tcp((ip, port).into())]),
                None => Err(Wrong::new(format!("`{host}` is not an address to listen on"))
                    .help("listening takes IP addresses and `localhost`; names of sites go into `hosts`")),
            },
        }
    }

    pub fn is_loopback(&self) -> bool {
        match self {
            ListenAddr::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
            ListenAddr::Unix(_) => true,
        }
    }

    /// Whether the kernel chooses the port.
    pub fn is_any_port(&self) -> bool {
        matches!(self, ListenAddr::Tcp(addr) if addr.port() == 0)
    }

    pub fn is_v6(&self) -> bool {
        matches!(self, ListenAddr::Tcp(SocketAddr::V6(_)))
    }
}

impl TargetAddr {
    /// Parses `host:port` or `unix:/path`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, base: &Path) -> Result<TargetAddr, Wrong> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path, base).map(TargetAddr::Unix);
        }
        if text.starts_with("tunnel:") {
            return Err(Wrong::new("a target in a tunnel is not supported yet"));
        }
        if text.contains("://") {
            return Err(Wrong::new(format!("`{text}` is not an address"))
                .help("a target is `host:port`, without a scheme"));
        }
        let (host, port) = host_and_port(text)?;
        if port == 0 {
            return Err(Wrong::new("a target cannot have port 0"));
        }
        match literal(host) {
            Some(ip) => Ok(TargetAddr::Ip((ip, port).into())),
            None if host.is_empty() => Err(Wrong::new(format!("`{text}` has no host"))
                .help(format!("such as `127.0.0.1:{port}`"))),
            None => host_name(host).map(|name| TargetAddr::Name(name.into(), port)),
        }
    }
}

/// Whether this host has IPv6 at all. Where nobody can tell, it has.
pub fn has_ipv6() -> bool {
    if cfg!(target_os = "linux") {
        // A kernel without IPv6 has no such file; one with it disabled has an empty one.
        std::fs::read("/proc/net/if_inet6").is_ok_and(|table| !table.is_empty())
    } else {
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn durations_print_to_what_they_parse_from(ms in 0..=LONGEST_MS) {
            let span = Span(Duration::from_millis(ms));
            prop_assert_eq!(Span::parse(&span.to_string()), Some(span));
        }

        #[test]
        fn sizes_print_to_what_they_parse_from(bytes in 0..=i64::MAX as u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string()), Some(Size(bytes)));
        }

        #[test]
        fn no_text_makes_an_address_panic(text in "\\PC{0,30}") {
            let base = Path::new("/b");
            let _ = (ListenAddr::parse_all(&text, base), TargetAddr::parse(&text, base), HostPattern::parse(&text), cidr(&text));
        }

        #[test]
        fn addresses_print_to_what_they_parse_from(v4: [u8; 4], v6: [u16; 8], port: u16) {
            let base = Path::new("/b");
            for addr in [SocketAddr::from((v4, port)), SocketAddr::from((v6, port))] {
                let addr = ListenAddr::Tcp(addr);
                prop_assert_eq!(ListenAddr::parse_all(&addr.to_string(), base), Ok(vec![addr]));
            }
        }
    }

    #[test]
    fn the_largest_unit_that_fits_is_printed() {
        let print = |text: &str| Span::parse(text).map(|s| s.to_string());
        assert_eq!(print("1000ms").as_deref(), Some("1s"));
        assert_eq!(print("90s").as_deref(), Some("90s"));
        assert_eq!(print("120s").as_deref(), Some("2m"));
        assert_eq!(print("48h").as_deref(), Some("2d"));
        assert_eq!(print("0ms").as_deref(), Some("0s"));
        for wrong in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "1m30s",
            "366d",
            "99999999999999999999s",
        ] {
            assert_eq!(print(wrong), None, "{wrong}");
        }
        assert_eq!(Size(65_536).to_string(), "64KiB");
        assert_eq!(Size::parse("10MB"), Some(Size(10_000_000)));
        assert_eq!(Size::parse("1KB"), Size::parse("1kB"));
    }

    #[test]
    fn a_port_alone_and_localhost_are_two_addresses() {
        let parse = |text| {
            ListenAddr::parse_all(text, Path::new("/b"))
                .map(|l| l.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(parse(":80").unwrap(), ["0.0.0.0:80", "[::]:80"]);
        assert_eq!(parse("localhost:80").unwrap(), ["127.0.0.1:80", "[::1]:80"]);
        assert_eq!(parse("unix:x.sock").unwrap(), ["unix:/b/x.sock"]);
        for wrong in [
            "80",
            "example.com:80",
            "::1",
            "[::1]",
            "*:80",
            "1.2.3.4:65536",
            "1.2.3.4:+1",
            "http://1.2.3.4:80",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bad_regex_says_where() {
        let wrong = Pattern::compile("^/v(1").unwrap_err();
        assert_eq!(
            wrong.message,
            "bad regular expression at character 4: unclosed group"
        );
        let wrong = Pattern::compile("(?:a{1000}){1000}").unwrap_err();
        assert_eq!(wrong.message, "the regular expression is too large");
    }

    #[test]
    fn host_patterns_have_no_case_no_port_and_a_star_in_front_only() {
        assert_eq!(
            HostPattern::parse("WWW.Example.com.").unwrap(),
            HostPattern::Exact("www.example.com".into())
        );
        assert_eq!(
            HostPattern::parse("*.example.com").unwrap(),
            HostPattern::Below("example.com".into())
        );
        for wrong in ["a:80", "*", "a.*.b", "http://a", "a/b", "", "a..b", "ä.de"] {
            assert!(HostPattern::parse(wrong).is_err(), "{wrong}");
        }
        let HostPattern::Regex(pattern) = HostPattern::parse("~^a[0-9]$").unwrap() else {
            unreachable!()
        };
        assert!(pattern.regex.is_match("A1"));
    }
}
