//! `[agents.NAME]`: the private side of tunnels. An agent dials the public side, and serves what that asks of it: its
//! services, as far as the machine it runs on permits.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::check::{Checker, shorten};
use super::decode::{List, Loc, Map, section, words};
use super::http::KeyRaw;
use super::scalar::{HostPattern, Pin, Secret, SecretRef, Span, TargetAddr, Wrong, cidr};
use super::tree::At;
use super::tunnel::token;
use super::upstream::{UpstreamTlsRaw, UpstreamTlsSpec};

section! {
    /// Publishes services of this machine, or of those that it can reach, at a public one. The table's name is the agent's.
    pub struct AgentRaw {
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// Where agents are accepted (`[tunnels.NAME]` there): `host:port`.
        server: String,
        /// The secret that the server has for this agent. It is never sent, and the server must prove that it knows it too.
        token: SecretRef,
        /// How the server proves who it is. `{}`: by a certificate that the system trusts.
        tls: AgentTlsRaw = {},
        /// What may be dialled, whatever a service says: `ADDRESS:PORT`, where the address is an IP address, a range
        /// (`10.0.0.0/8`), a name or `*.name`, and the port a number, two with `-` between, or `*`.
        permit: List<String> = ["127.0.0.0/8:*", "[::1]:*"],
        /// Connections to the server at once, 1 to 8. With two of them one may be lost without anybody's noticing.
        sessions: u64 = 2,
        /// What is published, by name.
        services: Map<ServiceRaw>,
    }
    later = [&["via"]];
}

section! {
    /// Whom an agent takes for its server.
    pub struct AgentTlsRaw {
        /// The name the server must prove and is asked for (SNI); left out: the host of `server`.
        server_name: String,
        /// The CAs to trust instead of the system's: path of a PEM file, or the PEM text itself.
        ca: String,
        /// The server's public key instead: `sha256/…`, or two while one takes the place of the other.
        pin: List<String>,
        /// Our certificate, one of whose names is the agent's: path of a PEM file, or the PEM text itself.
        client_cert: String,
        /// Its private key: path of a PEM file, or the key itself, a secret.
        client_key: KeyRaw,
        /// Take any certificate: that the server knows the `token` is all the proof then.
        insecure: bool = false,
    }
    later = [];
}

section! {
    /// A service: what kind it is, and where it is found from here.
    pub struct ServiceRaw {
        /// `http://host:port` or `tcp://host:port`.
        to: String,
        /// How long connecting may take.
        connect: Span = "5s",
        /// Each connection to a `tcp` service begins with a PROXY header that says who the client is.
        proxy_protocol: ProxyVersion,
    }
    short = to;
    later = [&["dedicated", "tls"]];
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

words!(ProxyVersion { "v1" => ProxyVersion::V1, "v2" => ProxyVersion::V2 });

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKind {
    Http,
    Tcp,
    Udp,
}

words!(ServiceKind {
    "http" => ServiceKind::Http, "tcp" => ServiceKind::Tcp, "udp" => ServiceKind::Udp
} later ["https"]);

impl ServiceKind {
    /// The kind that a word stands for.
    pub fn of(word: &str) -> Option<ServiceKind> {
        let all = [ServiceKind::Http, ServiceKind::Tcp, ServiceKind::Udp];
        all.into_iter().find(|kind| kind.word() == word)
    }
}

/// Checked `[agents.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSpec {
    /// Also what it is called at the server.
    pub name: Arc<str>,
    /// An IP address or a name.
    pub server: TargetAddr,
    /// `None`: it has a client certificate.
    pub token: Option<Secret>,
    pub tls: UpstreamTlsSpec,
    pub permit: Arc<[Permit]>,
    /// 1 to 8.
    pub sessions: usize,
    pub services: BTreeMap<Arc<str>, ServiceSpec>,
}

/// Checked service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    pub kind: ServiceKind,
    /// An IP address or a name.
    pub to: TargetAddr,
    /// Only of streams.
    pub proxy_protocol: Option<ProxyVersion>,
    pub connect: Duration,
}

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

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl AgentRaw {
    /// Checks one agent, whose defaults are in; `at` is its place. `running` is what runs under the same name. `None`: it is
    /// disabled, or something is wrong that it cannot be without.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        running: Option<&AgentSpec>,
        check: &mut Checker<'_>,
    ) -> Option<AgentSpec> {
        let server = self.server(at, check);
        let token = self
            .token
            .as_ref()
            .and_then(|raw| token(raw, running.and_then(|r| r.token.as_ref()), check));
        let tls = self
            .tls
            .as_ref()
            .map(|raw| raw.value.spec(raw.at, running.map(|r| &r.tls), check))
            .unwrap_or_default();
        let has_token = self.token.is_some() || self.spoiled.contains(&"token");
        let shows = tls.client.is_some() || self.spoiled.contains(&"tls");
        if !has_token && !shows {
            check
                .findings
                .error(at, "an agent needs a `token`, or a certificate in `tls`")
                .help("`token = { env = \"HOME_TOKEN\" }`");
        }
        if let Some(insecure) = self.tls.as_ref().and_then(|tls| tls.insecure.as_ref())
            && insecure.value
            && !has_token
        {
            check.findings.error(
                insecure.at,
                "with `insecure` only a `token` tells the server from another",
            );
        }
        let permit: Arc<[Permit]> = check
            .each(self.permit.as_ref(), Permit::parse)
            .into_iter()
            .map(|(permit, _)| permit)
            .collect();
        let sessions = self.sessions.as_ref().map_or(2, |raw| {
            usize::try_from(check.number(raw.at, raw.value, 1..=8)).unwrap_or(8)
        });
        let mut services = BTreeMap::new();
        match &self.services {
            Some(map) => {
                check.names(map);
                for (service, raw) in map.iter() {
                    let spec = raw.spec(raw.at, &permit, check);
                    services.extend(spec.map(|spec| (Arc::from(service.as_str()), spec)));
                }
            }
            None if self.spoiled.contains(&"services") => {}
            None => {
                check
                    .findings
                    .warning(at, "this agent publishes nothing")
                    .help("`services = { blog = \"http://127.0.0.1:4000\" }`");
            }
        }
        let enabled = self.enabled.as_ref().is_none_or(|enabled| enabled.value);
        server.filter(|_| enabled).map(|server| AgentSpec {
            name: name.into(),
            server,
            token,
            tls,
            permit,
            sessions,
            services,
        })
    }

    fn server(&self, at: At, check: &mut Checker<'_>) -> Option<TargetAddr> {
        let Some(text) = &self.server else {
            if !self.spoiled.contains(&"server") {
                check
                    .findings
                    .error(at, "an agent needs a `server`")
                    .help("such as `server = \"edge.example.com:7000\"`");
            }
            return None;
        };
        let parsed = TargetAddr::parse(text, check.base).and_then(dialled);
        check.take(text.at, parsed)
    }
}

/// Only what is dialled over a network.
fn dialled(address: TargetAddr) -> Result<TargetAddr, Wrong> {
    match address {
        TargetAddr::Ip(_) | TargetAddr::Name(..) => Ok(address),
        other => Err(Wrong::new(format!("`{other}` is not `host:port`"))),
    }
}

impl AgentTlsRaw {
    fn spec(
        &self,
        at: At,
        running: Option<&UpstreamTlsSpec>,
        check: &mut Checker<'_>,
    ) -> UpstreamTlsSpec {
        let insecure = self.insecure.as_ref().is_some_and(|i| i.value);
        let ways = [self.ca.is_some(), self.pin.is_some(), insecure];
        if ways.iter().filter(|given| **given).count() > 1 {
            check
                .findings
                .error(
                    at,
                    "`ca`, `pin` and `insecure` each say whom to take for the server",
                )
                .help("give one of them");
        }
        let raw = UpstreamTlsRaw {
            server_name: self.server_name.clone(),
            ca: self.ca.clone(),
            client_cert: self.client_cert.clone(),
            client_key: self.client_key.clone(),
            spoiled: self.spoiled.clone(),
            ..UpstreamTlsRaw::default()
        };
        let pins = check.each(self.pin.as_ref(), Pin::parse);
        UpstreamTlsSpec {
            pins: pins.into_iter().map(|(pin, _)| pin).collect(),
            insecure,
            ..raw.spec(running, check)
        }
    }
}

impl ServiceRaw {
    fn spec(&self, at: At, permit: &[Permit], check: &mut Checker<'_>) -> Option<ServiceSpec> {
        let Some(text) = &self.to else {
            if !self.spoiled.contains(&"to") {
                check
                    .findings
                    .error(at, "a service needs `to`")
                    .help("such as `to = \"http://127.0.0.1:3000\"`");
            }
            return None;
        };
        let parsed = service(text, check);
        let (kind, to) = check.take(text.at, parsed)?;
        if let TargetAddr::Ip(ip) = &to
            && !permit.iter().any(|p| p.allows(None, ip.ip(), ip.port()))
        {
            check
                .findings
                .warning(
                    text.at,
                    format!("`permit` does not let this agent dial {ip}"),
                )
                .help(format!(
                    "add `{ip}` to `permit`; nobody reaches this service without"
                ));
        }
        let proxy_protocol = self.proxy_protocol.as_ref().map(|raw| {
            if kind != ServiceKind::Tcp {
                check
                    .findings
                    .error(raw.at, "`proxy_protocol` is for `tcp` services")
                    .help("the requests of others say in their fields who the client is");
            }
            raw.value
        });
        Some(ServiceSpec {
            kind,
            to,
            proxy_protocol,
            connect: check.duration(self.connect.as_ref()),
        })
    }
}

/// Takes `kind://host:port` apart.
fn service(text: &Loc<String>, check: &Checker<'_>) -> Result<(ServiceKind, TargetAddr), Wrong> {
    let help = "such as `http://127.0.0.1:3000` or `tcp://127.0.0.1:22`";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Wrong::new(format!("`{}` does not say what it is", shorten(text))).help(help));
    };
    if scheme == "https" {
        return Err(Wrong::new("`https` services are not supported yet")
            .help("a `tcp` service carries TLS as it is"));
    }
    if scheme == "udp" {
        return Err(Wrong::new("`udp` services are not supported yet"));
    }
    let Some(kind) = ServiceKind::of(scheme) else {
        return Err(Wrong::new(format!("`{}` is no kind of service", shorten(scheme))).help(help));
    };
    let rest = match kind {
        ServiceKind::Http => rest.strip_suffix('/').unwrap_or(rest),
        ServiceKind::Tcp | ServiceKind::Udp => rest,
    };
    if rest.contains(['/', '?', '#', '@']) {
        return Err(
            Wrong::new(format!("`{}` is not `host:port`", shorten(rest)))
                .help("paths are the matter of whoever proxies to the service"),
        );
    }
    let has_port = rest
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    let whole = match kind {
        ServiceKind::Http if !has_port => format!("{rest}:80"),
        _ => rest.to_owned(),
    };
    let address = TargetAddr::parse(&whole, check.base).and_then(dialled)?;
    Ok((kind, address))
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
