//! Values with a unit or a meaning of their own: addresses, durations, sizes, host patterns, secrets, regexes. Each parses
//! from text, prints back to the same text, and cannot hold a wrong value.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

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
