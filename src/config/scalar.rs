//! Values with a unit or a meaning of their own: addresses, durations, sizes, host patterns, secrets, regexes. Each parses
//! from text, prints back to the same text, and cannot hold a wrong value.

mod pattern;
mod pin;
mod secret;
mod unit;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use pattern::{HostPattern, Pattern, cidr};
pub use pin::Pin;
pub use secret::{REDACTED, Secret, SecretRef};
pub use unit::{Rate, Size, Span, Speed};

use super::check::is_name;
use pattern::host_name;

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
    /// A service that an agent publishes: both by name.
    Tunnel(Arc<str>, Arc<str>),
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetAddr::Ip(a) => a.fmt(f),
            TargetAddr::Name(n, p) => write!(f, "{n}:{p}"),
            TargetAddr::Unix(p) => write!(f, "unix:{}", p.display()),
            TargetAddr::Tunnel(agent, service) => write!(f, "tunnel:{agent}/{service}"),
        }
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
        return Err(
            Wrong::new(format!("`{text}` has no port")).help(format!("such as `{text}:80`"))
        );
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

/// Bytes of a unix socket's path that the kernel takes, less the one that ends it.
const MAX_UNIX_PATH: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    107
} else {
    103
};

/// Bytes that the temporary name of a listening socket has besides its path: `.`, a process id, `-`, a counter.
const MAX_UNIX_SUFFIX: usize = 20;

fn unix_path(path: &str, base: &Path, max: usize) -> Result<PathBuf, Wrong> {
    if path.is_empty() {
        return Err(Wrong::new("`unix:` needs a path").help("such as `unix:/run/app.sock`"));
    }
    let path = base.join(path);
    let len = path.as_os_str().len();
    if len > max {
        let message =
            format!("the path of a unix socket has at most {max} bytes here, and this one {len}");
        return Err(Wrong::new(message).help("choose a shorter folder, such as `/run`"));
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
            return unix_path(path, base, MAX_UNIX_PATH - MAX_UNIX_SUFFIX)
                .map(|p| vec![ListenAddr::Unix(p)]);
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
                Some(ip) if ip != ip.to_canonical() => Err(Wrong::new(format!(
                    "`{text}` is an IPv4 address in the form of an IPv6 one"
                ))
                .help(format!("write `{}`", SocketAddr::from((ip.to_canonical(), port))))),
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

    /// Whether two sockets cannot listen at once: see [`conflict`].
    pub fn conflicts_with(&self, other: &ListenAddr) -> bool {
        match (self, other) {
            (ListenAddr::Tcp(a), ListenAddr::Tcp(b)) => conflict(*a, *b),
            _ => self == other,
        }
    }

    /// Whether the kernel chooses the port.
    pub fn is_any_port(&self) -> bool {
        matches!(self, ListenAddr::Tcp(addr) if addr.port() == 0)
    }

    /// `None`: a unix path.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            ListenAddr::Tcp(addr) => Some(*addr),
            ListenAddr::Unix(_) => None,
        }
    }

    pub fn is_v6(&self) -> bool {
        matches!(self, ListenAddr::Tcp(SocketAddr::V6(_)))
    }
}

impl TargetAddr {
    /// Parses `host:port`, `unix:/path` or `tunnel:AGENT/SERVICE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, base: &Path) -> Result<TargetAddr, Wrong> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path, base, MAX_UNIX_PATH).map(TargetAddr::Unix);
        }
        if let Some(names) = text.strip_prefix("tunnel:") {
            let both = names.split_once('/');
            let Some((agent, service)) = both.filter(|(a, s)| is_name(a) && is_name(s)) else {
                return Err(Wrong::new(format!("`{text}` is not a service of an agent"))
                    .help("write `tunnel:AGENT/SERVICE`"));
            };
            return Ok(TargetAddr::Tunnel(agent.into(), service.into()));
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

/// Whether two TCP sockets that do not share cannot listen at once: on one port of one family, at the same address or
/// one of them at every address. IPv6 sockets take no IPv4 here.
pub fn conflict(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
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
    fn an_ipv4_address_in_ipv6_form_is_told_to_be_written_plainly() {
        let wrong = ListenAddr::parse_all("[::ffff:127.0.0.1]:1", Path::new("/b")).unwrap_err();
        assert_eq!(wrong.help.as_deref(), Some("write `127.0.0.1:1`"));
    }

    #[test]
    fn a_listening_path_leaves_room_for_its_temporary_name() {
        let base = Path::new("/b");
        let path = |len: usize| format!("unix:/{}", "x".repeat(len - 1));
        let longest = MAX_UNIX_PATH - MAX_UNIX_SUFFIX;
        assert!(ListenAddr::parse_all(&path(longest), base).is_ok());
        let wrong = ListenAddr::parse_all(&path(longest + 1), base).unwrap_err();
        assert!(wrong.help.is_some());
        // Nothing is added to what is only connected to.
        assert!(TargetAddr::parse(&path(MAX_UNIX_PATH), base).is_ok());
        assert!(TargetAddr::parse(&path(MAX_UNIX_PATH + 1), base).is_err());
    }

    #[test]
    fn families_and_ports_keep_addresses_apart() {
        let conflict = |a: &str, b: &str| conflict(a.parse().unwrap(), b.parse().unwrap());
        assert!(conflict("0.0.0.0:80", "127.0.0.1:80") && conflict("127.0.0.1:80", "0.0.0.0:80"));
        assert!(!conflict("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!conflict("0.0.0.0:80", "[::]:80"));
        assert!(!conflict("0.0.0.0:80", "127.0.0.1:81"));
    }
}
