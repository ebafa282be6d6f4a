//! `[agents.NAME]`: the private side of tunnels. An agent dials the public side, and serves what that asks of it: its
//! services, as far as the machine it runs on permits.

mod permit;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check::Checker;
use super::decode::{List, Map, section};
use super::http::KeyRaw;
use super::scalar::{Pin, Secret, SecretRef, TargetAddr, Wrong};
use super::tree::At;
use super::tunnel::token;
use super::upstream::{References, UpstreamSpec, UpstreamTlsRaw, UpstreamTlsSpec};
use super::via::{self, HopRaw, ViaSpec};

pub use permit::Permit;
pub use service::{ProxyVersion, ServiceKind, ServiceRaw, ServiceSpec};

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
        /// The proxies on the way to the server, as in `[forward.NAME]`; left out: none.
        via: List<HopRaw>,
        /// Connections to the server at once, 1 to 8. With two of them one may be lost without anybody's noticing.
        sessions: u64 = 2,
        /// What is published, by name.
        services: Map<ServiceRaw>,
    }
    later = [];
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
    /// The proxies on the way to the server.
    pub via: Option<ViaSpec>,
    /// 1 to 8.
    pub sessions: usize,
    pub services: BTreeMap<Arc<str>, ServiceSpec>,
}

/// What an agent is checked with.
pub struct Around<'a, 'd> {
    pub references: &'a mut References<'d>,
    /// Those that are declared.
    pub upstreams: &'a BTreeMap<Arc<str>, UpstreamSpec>,
    /// What serves under the agent's name.
    pub running: Option<&'a AgentSpec>,
    /// What serves of upstreams.
    pub running_upstreams: Option<&'a BTreeMap<Arc<str>, UpstreamSpec>>,
}

impl AgentRaw {
    /// Checks one agent, whose defaults are in; `at` is its place. `None`: it is disabled, or something is wrong that it cannot
    /// be without.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        around: Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Option<AgentSpec> {
        let running = around.running;
        let enabled = self.enabled.as_ref().is_none_or(|enabled| enabled.value);
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
                    let running = running.and_then(|r| r.services.get(service.as_str()));
                    let spec = raw.spec(raw.at, &permit, running, check);
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
        let via = self.via(name, enabled, around, check);
        server.filter(|_| enabled).map(|server| AgentSpec {
            name: name.into(),
            server,
            token,
            tls,
            permit,
            via,
            sessions,
            services,
        })
    }

    fn via(
        &self,
        name: &str,
        live: bool,
        around: Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Option<ViaSpec> {
        let list = self.via.as_ref()?;
        let mut around = via::Around {
            references: around.references,
            upstreams: around.upstreams,
            pointer: format!("/agents/{name}/via"),
            live,
            running: around.running.and_then(|running| running.via.as_ref()),
            running_upstreams: around.running_upstreams,
        };
        via::via(&list.value, list.at, &mut around, check)
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
