//! What requests are compared with: regular expressions, host names, address ranges.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Wrong;

/// A host name pattern, lower case, without port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

impl Eq for Pattern {}

impl std::hash::Hash for Pattern {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "~{}", self.text)
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
pub(super) fn host_name(text: &str) -> Result<String, Wrong> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let wrong = || Wrong::new(format!("`{text}` is not a host name"));
    if text.contains("://") {
        return Err(wrong().help("write the name alone, without scheme and path"));
    }
    if text.contains(':') {
        return Err(wrong().help("hosts are compared without the port; leave it out"));
    }
    if text.contains('*') {
        return Err(wrong().help("a `*` stands only at the beginning: `*.example.com`"));
    }
    if !text.is_ascii() {
        return Err(wrong().help("write it as it goes over the wire: `xn--…`"));
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        Err(wrong())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
