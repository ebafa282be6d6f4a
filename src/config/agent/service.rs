//! The services of an agent: what they speak, and where the agent finds them.

use std::fmt;
use std::time::Duration;

use super::super::check::{Checker, shorten};
use super::super::decode::{Loc, section, words};
use super::super::scalar::{Span, TargetAddr, Wrong};
use super::super::tree::At;
use super::super::upstream::{UpstreamTlsRaw, UpstreamTlsSpec};
use super::{Permit, dialled};

section! {
    /// A service: what kind it is, and where it is found from here.
    pub struct ServiceRaw {
        /// `http://host:port`, `https://host:port`, `tcp://host:port` or `udp://host:port`. TLS with an `https` service is
        /// spoken by the agent for those who send requests; who passes bytes on, or has `tls` of its own, speaks it itself.
        to: String,
        /// How long connecting may take.
        connect: Span = "5s",
        /// Each connection to a `tcp` service begins with a PROXY header that says who the client is.
        proxy_protocol: ProxyVersion,
        /// How TLS is spoken to an `https` service; left out: the CAs of the system are trusted.
        tls: UpstreamTlsRaw,
        /// Each connection to it has a connection of its own to the server, for flows that are large: neither the window
        /// nor the losses of a session are shared. Such a connection takes some round trips longer to begin.
        dedicated: bool = false,
    }
    short = to;
    later = [];
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
    Https,
    Tcp,
    Udp,
}

words!(ServiceKind {
    "http" => ServiceKind::Http,
    "https" => ServiceKind::Https,
    "tcp" => ServiceKind::Tcp,
    "udp" => ServiceKind::Udp,
});

impl ServiceKind {
    /// The kind that a word stands for.
    pub fn of(word: &str) -> Option<ServiceKind> {
        let all = [
            ServiceKind::Http,
            ServiceKind::Https,
            ServiceKind::Tcp,
            ServiceKind::Udp,
        ];
        all.into_iter().find(|kind| kind.word() == word)
    }

    /// The port of one whose address has none.
    fn default_port(self) -> Option<u16> {
        match self {
            ServiceKind::Http => Some(80),
            ServiceKind::Https => Some(443),
            ServiceKind::Tcp | ServiceKind::Udp => None,
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Checked service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSpec {
    pub kind: ServiceKind,
    /// An IP address or a name.
    pub to: TargetAddr,
    /// Only of `tcp`.
    pub proxy_protocol: Option<ProxyVersion>,
    pub connect: Duration,
    /// Of every `https` service, and of no other.
    pub tls: Option<UpstreamTlsSpec>,
    /// Only of streams.
    pub dedicated: bool,
}

impl ServiceRaw {
    /// `running` is what serves under the same name.
    pub(super) fn spec(
        &self,
        at: At,
        permit: &[Permit],
        running: Option<&ServiceSpec>,
        check: &mut Checker<'_>,
    ) -> Option<ServiceSpec> {
        let Some(text) = &self.to else {
            if !self.spoiled.contains(&"to") {
                check
                    .findings
                    .error(at, "a service needs `to`")
                    .help("such as `to = \"http://127.0.0.1:3000\"`");
            }
            return None;
        };
        let parsed = parse(text, check);
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
        let tls = match (&self.tls, kind) {
            (Some(tls), ServiceKind::Https) => {
                let running = running.and_then(|service| service.tls.as_ref());
                Some(tls_of(&tls.value, &to, running, check))
            }
            (Some(tls), _) => {
                check
                    .findings
                    .key_error(tls.at, "`tls` is for `https` services")
                    .help("write `https://` in `to`, or leave it out");
                None
            }
            (None, ServiceKind::Https) => Some(UpstreamTlsSpec::default()),
            (None, _) => None,
        };
        let dedicated = self.dedicated.as_ref().is_some_and(|raw| {
            if raw.value && kind == ServiceKind::Udp {
                check
                    .findings
                    .error(raw.at, "datagrams have no connections of their own")
                    .help("leave `dedicated` out");
            }
            raw.value
        });
        Some(ServiceSpec {
            kind,
            to,
            proxy_protocol,
            connect: check.duration(self.connect.as_ref()),
            tls,
            dedicated,
        })
    }
}

/// How TLS is spoken to `to`.
fn tls_of(
    raw: &UpstreamTlsRaw,
    to: &TargetAddr,
    running: Option<&UpstreamTlsSpec>,
    check: &mut Checker<'_>,
) -> UpstreamTlsSpec {
    let is_here = matches!(to, TargetAddr::Ip(ip) if ip.ip().is_loopback());
    let insecure = raw.insecure.as_ref().is_some_and(|insecure| insecure.value);
    if !(is_here && insecure && raw.ca.is_none()) {
        return raw.spec(running, check);
    }
    // Nobody is between: it is not worth a warning.
    let quiet = UpstreamTlsRaw {
        insecure: None,
        ..raw.clone()
    };
    UpstreamTlsSpec {
        insecure,
        ..quiet.spec(running, check)
    }
}

/// Takes `kind://host:port` apart.
fn parse(text: &Loc<String>, check: &Checker<'_>) -> Result<(ServiceKind, TargetAddr), Wrong> {
    let help = "such as `http://127.0.0.1:3000`, `tcp://127.0.0.1:22` or `udp://127.0.0.1:53`";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Wrong::new(format!("`{}` does not say what it is", shorten(text))).help(help));
    };
    let Some(kind) = ServiceKind::of(scheme) else {
        return Err(Wrong::new(format!("`{}` is no kind of service", shorten(scheme))).help(help));
    };
    let rest = match kind {
        ServiceKind::Http | ServiceKind::Https => rest.strip_suffix('/').unwrap_or(rest),
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
    let whole = match kind.default_port() {
        Some(port) if !has_port => format!("{rest}:{port}"),
        _ => rest.to_owned(),
    };
    let address = TargetAddr::parse(&whole, check.base).and_then(dialled)?;
    Ok((kind, address))
}
