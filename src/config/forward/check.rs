//! A forward proxy from what is written to what is checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::super::admin::AdminSpec;
use super::super::check::{Checker, shorten};
use super::super::decode::{List, Loc};
use super::super::http::{TlsRaw, TlsSpec, TlsVersion, addresses};
use super::super::runtime::OnChange;
use super::super::scalar::{ListenAddr, Wrong, cidr};
use super::super::tree::At;
use super::super::upstream::{References, UpstreamSpec};
use super::super::via::{self, HopRaw, ViaSpec};
use super::{
    Decision, ForwardRaw, ForwardSpec, ForwardTlsRaw, LimitsSpec, Pattern, Protocol, RuleRaw,
    RuleSpec, TimeoutsSpec, UdpSpec, Way,
};

/// A forward proxy that has been checked for itself, with the places that checks across listeners need.
#[derive(Debug)]
pub struct Checked {
    pub spec: ForwardSpec,
    pub enabled: bool,
    /// Of each of `spec.listen`.
    pub listen_at: Vec<At>,
}

/// What a forward proxy is checked with.
pub struct Around<'a, 'd> {
    pub admin: &'a AdminSpec,
    /// As `[runtime]` says.
    pub on_change: OnChange,
    pub references: &'a mut References<'d>,
    /// Those that are declared.
    pub upstreams: &'a BTreeMap<Arc<str>, UpstreamSpec>,
    /// What serves of upstreams.
    pub running_upstreams: Option<&'a BTreeMap<Arc<str>, UpstreamSpec>>,
}

impl Around<'_, '_> {
    fn via(
        &mut self,
        list: &Loc<List<HopRaw>>,
        pointer: String,
        live: bool,
        running: Option<&ViaSpec>,
        check: &mut Checker<'_>,
    ) -> Option<ViaSpec> {
        let mut around = via::Around {
            references: self.references,
            upstreams: self.upstreams,
            pointer,
            live,
            running,
            running_upstreams: self.running_upstreams,
        };
        via::via(&list.value, list.at, &mut around, check)
    }
}

impl ForwardRaw {
    /// Checks one, whose defaults are in. `running` is the one of that name that serves.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        running: Option<&ForwardSpec>,
        mut around: Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Checked {
        let (listen, listen_at): (Vec<_>, Vec<_>) = self.listen(at, check).into_iter().unzip();
        let protocols = self.protocols.as_ref();
        if let Some(list) = protocols.filter(|l| l.is_empty() && !l.spoiled) {
            let message = "a forward proxy needs at least one protocol";
            check.findings.error(list.at, message);
        }
        let speaks = |p: Protocol| protocols.is_some_and(|l| l.iter().any(|i| i.value == p));
        let users = self.users(name, check);
        if let Some(socks4) = protocols
            .and_then(|l| l.iter().find(|i| i.value == Protocol::Socks4))
            .filter(|i| users.is_some() && i.at != At::NOWHERE)
        {
            check
                .findings
                .warning(
                    socks4.at,
                    "SOCKS4 has no passwords: with users it lets nobody in",
                )
                .help("leave `socks4` out");
        }
        let tls = self.tls.as_ref().map(|tls| {
            let running = running.and_then(|r| r.tls.as_ref());
            tls.spec(tls.at, running, check)
        });
        let clients = self.clients.as_ref().map(|list| {
            if list.is_empty() && !list.spoiled {
                let finding = check.findings.error(list.at, "an empty list of clients");
                finding.help("leave it out to let anybody connect");
            }
            let nets = check.each(Some(list), cidr);
            nets.into_iter().map(|(net, _)| net).collect::<Vec<_>>()
        });
        self.guarded(&listen, at, check);
        let mut patterns = |list: Option<&Loc<List<String>>>| -> Vec<Pattern> {
            let all = check.each(list, Pattern::parse);
            all.into_iter().map(|(pattern, _)| pattern).collect()
        };
        let destinations = self.destinations.as_ref().map(|d| &d.value);
        let allow = patterns(destinations.and_then(|d| d.allow.as_ref()));
        let deny = patterns(destinations.and_then(|d| d.deny.as_ref()));
        let rules = self.rules.iter().flat_map(|rules| rules.iter());
        let enabled = self.enabled.as_ref().is_none_or(|e| e.value);
        let rules = rules.enumerate().filter_map(|(index, rule)| {
            let old = running
                .and_then(|r| r.rules.get(index))
                .map(|rule| &rule.way);
            let old = match old {
                Some(Way::Via(via)) => Some(via),
                _ => None,
            };
            let pointer = format!("/forward/{name}/rules/{index}/via");
            let via = |list: &Loc<List<HopRaw>>, check: &mut Checker<'_>| {
                around.via(list, pointer.clone(), enabled, old, check)
            };
            rule.spec(rule.at, via, check)
        });
        let rules = rules.collect();
        let via = self.via.as_ref().and_then(|list| {
            let old = running.and_then(|r| r.via.as_ref());
            around.via(list, format!("/forward/{name}/via"), enabled, old, check)
        });
        let Around {
            admin, on_change, ..
        } = around;
        let own = [Some(&admin.listen), admin.monitor.as_ref()];
        let spec = ForwardSpec {
            name: name.into(),
            http: speaks(Protocol::Http),
            socks5: speaks(Protocol::Socks5),
            socks4: speaks(Protocol::Socks4),
            users,
            min_version: self
                .tls
                .as_ref()
                .map_or(TlsVersion::V12, |tls| tls.oldest()),
            tls,
            clients,
            rules,
            via,
            allow,
            deny,
            own: own
                .into_iter()
                .flatten()
                .filter_map(ListenAddr::tcp)
                .collect(),
            limits: self.limits(check),
            udp: self.udp(check),
            timeouts: self.timeouts(check),
            on_change: self.on_change.as_ref().map_or(on_change, |o| o.value),
            listen,
        };
        Checked {
            spec,
            enabled,
            listen_at,
        }
    }

    fn listen(&self, at: At, check: &mut Checker<'_>) -> Vec<(ListenAddr, At)> {
        let Some(list) = &self.listen else {
            if !self.spoiled.contains(&"listen") {
                let finding = check.findings.error(at, "a forward proxy needs `listen`");
                finding.help("such as `listen = \"127.0.0.1:8090\"`");
            }
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            let message = "a forward proxy needs an address to listen on";
            check.findings.error(list.at, message);
        }
        addresses(list, check)
    }

    /// A proxy that anybody on the network may use is found, and used, within hours.
    fn guarded(&self, listen: &[ListenAddr], at: At, check: &mut Checker<'_>) {
        let written = |key| self.spoiled.contains(&key);
        let tls = self.tls.as_ref();
        let guarded = self.users.is_some()
            || self.htpasswd.is_some()
            || self.clients.is_some()
            || tls.is_some_and(|t| t.client_auth.is_some() || !t.spoiled.is_empty())
            || ["users", "htpasswd", "clients", "tls"]
                .into_iter()
                .any(written);
        if let (false, Some(open)) = (guarded, listen.iter().find(|a| !a.is_loopback())) {
            let at = self.listen.as_ref().map_or(at, |l| l.at);
            check
                .findings
                .error(
                    at,
                    format!("on {open} anybody on the network could use this proxy"),
                )
                .help("set `users`, `clients` or `tls.client_auth`, or listen on `127.0.0.1`");
        }
    }

    fn limits(&self, check: &mut Checker<'_>) -> LimitsSpec {
        let limits = self.limits.as_ref().map(|l| &l.value);
        LimitsSpec {
            connections: check.most(limits.and_then(|l| l.connections.as_ref())),
            connections_per_user: check.most(limits.and_then(|l| l.connections_per_user.as_ref())),
            bandwidth: limits
                .and_then(|l| l.bandwidth.as_ref())
                .and_then(|b| b.get())
                .map(|speed| speed.0),
        }
    }

    fn udp(&self, check: &mut Checker<'_>) -> UdpSpec {
        let raw = self.udp.as_ref().map(|u| &u.value);
        let advertise = check.each(raw.and_then(|u| u.advertise.as_ref()), |text| {
            let ip: Option<IpAddr> = text.parse().ok();
            ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast())
                .ok_or_else(|| {
                    Wrong::new(format!(
                        "`{}` is no address that clients reach",
                        shorten(text)
                    ))
                    .help("an IP address, such as `203.0.113.7`")
                })
        });
        for (index, (ip, at)) in advertise.iter().enumerate() {
            let before = &advertise[..index];
            if before
                .iter()
                .any(|(other, _)| other.is_ipv4() == ip.is_ipv4())
            {
                let message = format!("{ip} is the second address of its family");
                check.findings.error(*at, message);
            }
        }
        let ports = raw.and_then(|u| u.ports.as_ref());
        UdpSpec {
            advertise: advertise.into_iter().map(|(ip, _)| ip).collect(),
            ports: ports.and_then(|p| check.take(p.at, range(&p.value))),
        }
    }

    fn timeouts(&self, check: &mut Checker<'_>) -> TimeoutsSpec {
        let raw = self.timeouts.as_ref().map(|t| &t.value);
        TimeoutsSpec {
            handshake: check.duration(raw.and_then(|t| t.handshake.as_ref())),
            connect: check.duration(raw.and_then(|t| t.connect.as_ref())),
            idle: check.limit(raw.and_then(|t| t.idle.as_ref())),
        }
    }
}

impl ForwardTlsRaw {
    /// `running`: as in [`TlsRaw::spec`].
    pub(in crate::config) fn spec(
        &self,
        at: At,
        running: Option<&TlsSpec>,
        check: &mut Checker<'_>,
    ) -> TlsSpec {
        let raw = TlsRaw {
            certificates: self.certificates.clone(),
            self_signed: self.self_signed.clone(),
            client_auth: self.client_auth.clone(),
            spoiled: self.spoiled.clone(),
            ..TlsRaw::default()
        };
        raw.spec(at, running, check)
    }

    pub(in crate::config) fn oldest(&self) -> TlsVersion {
        let written = self.min_version.as_ref();
        written.map_or(TlsVersion::V12, |version| version.value)
    }
}

/// Parses `40000-40999`, or one port.
fn range(text: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let port = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|p| plain && *p > 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(
            Wrong::new(format!("`{}` is no range of ports", shorten(text)))
                .help("such as `\"40000-40999\"`"),
        ),
    }
}

impl RuleRaw {
    /// `via` checks the key of that name.
    fn spec(
        &self,
        at: At,
        via: impl FnOnce(&Loc<List<HopRaw>>, &mut Checker<'_>) -> Option<ViaSpec>,
        check: &mut Checker<'_>,
    ) -> Option<RuleSpec> {
        let conditions = self.matcher.as_ref().map(|m| &m.value);
        let clients = check.each(conditions.and_then(|m| m.client.as_ref()), cidr);
        let to = check.each(conditions.and_then(|m| m.to.as_ref()), Pattern::parse);
        let users = conditions.and_then(|m| m.user.as_ref());
        let empty = [
            users.filter(|l| l.is_empty() && !l.spoiled).map(|l| l.at),
            conditions
                .and_then(|m| m.client.as_ref())
                .filter(|l| l.is_empty() && !l.spoiled)
                .map(|l| l.at),
            conditions
                .and_then(|m| m.to.as_ref())
                .filter(|l| l.is_empty() && !l.spoiled)
                .map(|l| l.at),
        ];
        for at in empty.into_iter().flatten() {
            let finding = check.findings.error(at, "an empty list");
            finding.help("leave the key out to match any");
        }
        let chosen = |key: &Option<Loc<bool>>| key.as_ref().map(|k| (k.value, k.at));
        for (value, at) in [chosen(&self.allow), chosen(&self.deny)]
            .into_iter()
            .flatten()
        {
            if !value {
                let finding = check.findings.error(at, "a rule that decides nothing");
                finding.help("`allow = true` or `deny = true`");
            }
        }
        let way = match &self.via {
            Some(list) => via(list, check).map_or(Way::Direct, Way::Via),
            None => Way::Usual,
        };
        let decision = match (&self.allow, &self.deny, &self.via) {
            (Some(_), None, None) | (None, None, Some(_)) => Some(Decision::Allow),
            (None, Some(_), None) => Some(Decision::Deny),
            _ if !self.spoiled.is_empty() => None,
            _ => {
                let finding = check
                    .findings
                    .error(at, "a rule allows or denies, or says a way");
                finding.help("`allow = true`, `deny = true` or `via`, one of them");
                None
            }
        };
        Some(RuleSpec {
            users: users
                .iter()
                .flat_map(|l| l.iter())
                .map(|user| Arc::from(user.as_str()))
                .collect(),
            clients: clients.into_iter().map(|(net, _)| net).collect(),
            to: to.into_iter().map(|(pattern, _)| pattern).collect(),
            decision: decision?,
            way,
        })
    }
}
