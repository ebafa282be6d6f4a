//! What an agent may dial, whatever its server asks for.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::check::shorten;
use super::super::scalar::{HostPattern, Wrong, cidr};

/// Something that an agent may dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    host: PermitHost,
    /// Both ends are meant.
    ports: (u16, u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PermitHost {
    Any,
    Net(IpNet),
    Name(HostPattern),
}

impl Permit {
    /// Parses `ADDRESS:PORT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Permit, Wrong> {
        let wrong = |what: &str| {
            Wrong::new(format!("`{}` is not a permit: {what}", shorten(text))).help(
                "such as `127.0.0.1:*`, `10.0.0.0/8:22`, `[::1]:8000-8999` or `db.internal:5432`",
            )
        };
        let (host, ports) = text
            .rsplit_once(':')
            .ok_or_else(|| wrong("it has no port"))?;
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(wrong(
                "ports are 1 to 65535, two of them with `-` between, or `*`",
            )),
        };
        let ports = match (ports, ports.split_once('-')) {
            ("*", _) => (1, u16::MAX),
            (_, Some((first, last))) => (port(first)?, port(last)?),
            (one, None) => (port(one)?, port(one)?),
        };
        if ports.0 > ports.1 {
            return Err(wrong("the range of ports is empty"));
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if bare.is_none() && host.contains(':') {
            return Err(wrong("an IPv6 address stands in brackets"));
        }
        let host = match (host, cidr(bare.unwrap_or(host))) {
            ("*", _) => PermitHost::Any,
            (_, Ok(net)) => PermitHost::Net(net),
            (name, Err(_)) => match HostPattern::parse(name)? {
                HostPattern::Regex(_) => return Err(wrong("it takes no regular expressions")),
                pattern => PermitHost::Name(pattern),
            },
        };
        Ok(Permit { host, ports })
    }

    /// Whether this permits to dial `ip`, which `name` stands for if it has one.
    pub fn allows(&self, name: Option<&str>, ip: IpAddr, port: u16) -> bool {
        if !(self.ports.0..=self.ports.1).contains(&port) {
            return false;
        }
        match &self.host {
            PermitHost::Any => true,
            PermitHost::Net(net) => net.contains(&ip.to_canonical()),
            PermitHost::Name(HostPattern::Exact(exact)) => name == Some(exact.as_str()),
            PermitHost::Name(HostPattern::Below(domain)) => name.is_some_and(|name| {
                name.strip_suffix(domain.as_str())
                    .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }),
            PermitHost::Name(HostPattern::Regex(_)) => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_an_address_and_ports() {
        let allows = |permit: &str, name, ip: &str, port| {
            let permit = Permit::parse(permit).unwrap();
            permit.allows(name, ip.parse().unwrap(), port)
        };
        assert!(allows("127.0.0.1:*", None, "127.0.0.1", 1));
        assert!(!allows("127.0.0.1:*", None, "127.0.0.2", 1));
        assert!(allows("10.0.0.0/8:22", None, "10.1.2.3", 22));
        assert!(!allows("10.0.0.0/8:22", None, "10.1.2.3", 23));
        assert!(allows("[::1]:80-90", None, "::1", 90));
        assert!(!allows("[::1]:80-90", None, "::1", 91));
        assert!(allows("127.0.0.0/8:*", None, "::ffff:127.0.0.1", 5));
        assert!(allows(
            "db.internal:5432",
            Some("db.internal"),
            "10.9.9.9",
            5432
        ));
        assert!(!allows("db.internal:5432", None, "10.9.9.9", 5432));
        assert!(allows("*.internal:*", Some("a.b.internal"), "10.9.9.9", 1));
        assert!(!allows("*.internal:*", Some("internal"), "10.9.9.9", 1));
        assert!(!allows("*.internal:*", Some("xinternal"), "10.9.9.9", 1));
        assert!(allows("*:443", Some("x"), "192.0.2.1", 443));
        for wrong in [
            "", "a", "::1:80", "a:0", "a:x", "a:9-8", "a:1-", "~a:1", "a:+1", "a b:1",
        ] {
            assert!(Permit::parse(wrong).is_err(), "{wrong}");
        }
    }
}
