//! `[tunnels.NAME]`: the public side of tunnels. Agents dial it, prove who they are and publish services, which are
//! targets then: `tunnel:AGENT/SERVICE`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::admin::secret;
use super::agent::ServiceKind;
use super::check::{Checker, shorten};
use super::decode::{Limit, List, Loc, Map, section};
use super::http::{CertificateRaw, ClientAuthMode, ClientAuthRaw, TlsRaw, TlsSpec, addresses};
use super::scalar::{ListenAddr, Secret, SecretRef, Speed, TargetAddr, Wrong};
use super::tree::At;
use super::upstream::UpstreamSpec;

section! {
    /// Accepts agents: machines that publish services which they alone can reach.
    pub struct TunnelRaw {
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// Addresses that agents dial. They belong to this tunnel alone.
        listen: List<String>,
        /// What proves to agents who this is; TLS 1.3 is all that is spoken.
        tls: TunnelTlsRaw,
        /// Who may come, by the agent's name: its secret, or two while one takes the place of the other. It is never sent: both
        /// sides prove that they know it.
        tokens: Map<List<SecretRef>>,
        /// What an agent may publish, by its name; one that is not named may publish anything.
        grants: Map<GrantRaw> = {},
    }
    later = [];
}

section! {
    /// What is presented to agents, and asked of them.
    pub struct TunnelTlsRaw {
        /// Certificates with their keys.
        certificates: List<CertificateRaw>,
        /// Names and addresses of a certificate that is made at start: agents trust it by its `pin`.
        self_signed: List<String>,
        /// Agents may show a certificate instead of a secret: one of its names is the agent's.
        client_auth: ClientAuthRaw,
    }
    later = [];
}

section! {
    /// What one agent may publish, and how much of it may be used at once.
    pub struct GrantRaw {
        /// Names of services; one that ends in `*` stands for all that begin so. Left out: any.
        services: List<String>,
        /// Kinds of services. Left out: all.
        kinds: List<ServiceKind>,
        /// Connections through the agent at once.
        flows: Limit<u64> = "unlimited",
        /// Bytes a second through the agent in each direction, all its flows together.
        bandwidth: Limit<Speed> = "unlimited",
    }
    later = [];
}

/// Checked `[tunnels.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TunnelSpec {
    pub name: Arc<str>,
    pub listen: Vec<ListenAddr>,
    pub tls: TlsSpec,
    /// By agent; one or two of them.
    pub tokens: BTreeMap<Arc<str>, Vec<Secret>>,
    pub grants: BTreeMap<Arc<str>, GrantSpec>,
}

/// Checked grant of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrantSpec {
    /// `None`: any.
    pub services: Option<Vec<NamePattern>>,
    /// `None`: any.
    pub kinds: Option<Vec<ServiceKind>>,
    /// `None`: any number.
    pub flows: Option<usize>,
    /// Bytes a second, each way. `None`: as many as there are.
    pub bandwidth: Option<u64>,
}

/// The name of a service, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    Exact(String),
    Prefix(String),
}

impl NamePattern {
    fn parse(text: &str) -> Result<NamePattern, Wrong> {
        let (stem, prefix) = match text.strip_suffix('*') {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        let any = prefix && stem.is_empty();
        if !any && !super::check::is_name(stem) {
            return Err(
                Wrong::new(format!("`{}` is not the name of a service", shorten(text))).help(
                    "names have up to 128 letters, digits, `_`, `-` and `.`; a `*` may end one",
                ),
            );
        }
        Ok(match prefix {
            true => NamePattern::Prefix(stem.to_owned()),
            false => NamePattern::Exact(stem.to_owned()),
        })
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            NamePattern::Exact(exact) => exact == name,
            NamePattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// A checked tunnel with the places of its parts.
#[derive(Debug)]
pub struct CheckedTunnel {
    pub spec: TunnelSpec,
    pub enabled: bool,
    /// Of each address.
    pub listen_at: Vec<At>,
    /// Of the agents' tokens.
    agents_at: Vec<(Arc<str>, At)>,
}

impl TunnelRaw {
    /// Checks one tunnel, whose defaults are in; `at` is its place. `running` is what serves under the same name.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        running: Option<&TunnelSpec>,
        check: &mut Checker<'_>,
    ) -> CheckedTunnel {
        let (listen, listen_at) = self.addresses(at, check).into_iter().unzip();
        let mut tls = TlsSpec {
            certificates: Vec::new(),
            self_signed: Vec::new(),
            client_auth: None,
        };
        match &self.tls {
            Some(raw) => tls = raw.value.spec(raw.at, running.map(|r| &r.tls), check),
            None if self.spoiled.contains(&"tls") => {}
            None => {
                check.findings.error(at, "a tunnel needs `tls`").help(
                    "`tls.certificates = [{ cert = \"edge.pem\", key = \"edge.key\" }]`, or `tls.self_signed = [\"edge.example.com\"]` for agents that pin it",
                );
            }
        }
        let (tokens, agents_at) = self.tokens(running, check);
        let admits = !tokens.is_empty()
            || tls.client_auth.is_some()
            || ["tokens", "tls"]
                .iter()
                .any(|key| self.spoiled.contains(key))
            || self
                .tokens
                .as_ref()
                .is_some_and(|map| !map.is_empty() || !map.spoiled.is_empty());
        if !admits {
            check
                .findings
                .error(
                    at,
                    "no agent could ever come: there are no `tokens` and no `tls.client_auth`",
                )
                .help("`tokens = { home = { env = \"HOME_TOKEN\" } }`");
        }
        CheckedTunnel {
            spec: TunnelSpec {
                name: name.into(),
                listen,
                grants: self.grants(&tokens, tls.client_auth.is_some(), check),
                tls,
                tokens,
            },
            enabled: self.enabled.as_ref().is_none_or(|enabled| enabled.value),
            listen_at,
            agents_at,
        }
    }

    fn addresses(&self, at: At, check: &mut Checker<'_>) -> Vec<(ListenAddr, At)> {
        match &self.listen {
            Some(list) => {
                if list.is_empty() && !list.spoiled {
                    check.findings.error(list.at, "a tunnel needs an address");
                }
                addresses(list, check)
            }
            None => {
                if !self.spoiled.contains(&"listen") {
                    check
                        .findings
                        .error(at, "a tunnel needs `listen`")
                        .help("such as `listen = \":7000\"`");
                }
                Vec::new()
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "a pair that is taken apart at once")]
    fn tokens(
        &self,
        running: Option<&TunnelSpec>,
        check: &mut Checker<'_>,
    ) -> (BTreeMap<Arc<str>, Vec<Secret>>, Vec<(Arc<str>, At)>) {
        let (mut tokens, mut places) = (BTreeMap::new(), Vec::new());
        let Some(map) = &self.tokens else {
            return (tokens, places);
        };
        check.names(map);
        for (agent, list) in map.iter() {
            let agent: Arc<str> = agent.as_str().into();
            let before = running.and_then(|r| r.tokens.get(&agent));
            let mut secrets = Vec::new();
            for (index, raw) in list.iter().enumerate() {
                let before = before.and_then(|b| b.get(index));
                secrets.extend(token(raw, before, check));
            }
            match list.len() {
                0 if !list.spoiled => {
                    check.findings.error(list.at, "an agent needs a secret");
                }
                0..=2 => {}
                _ => {
                    check.findings.error(
                        list.at,
                        "an agent has one secret, or two while one takes the place of the other",
                    );
                }
            }
            places.push((agent.clone(), list.at));
            tokens.insert(agent, secrets);
        }
        (tokens, places)
    }

    fn grants(
        &self,
        tokens: &BTreeMap<Arc<str>, Vec<Secret>>,
        certificates: bool,
        check: &mut Checker<'_>,
    ) -> BTreeMap<Arc<str>, GrantSpec> {
        let mut grants = BTreeMap::new();
        let Some(map) = &self.grants else {
            return grants;
        };
        check.names(map);
        for (agent, raw) in map.iter() {
            if !tokens.contains_key(agent.as_str()) && !certificates {
                let help = check.suggest(agent, tokens.keys().map(|name| &**name));
                check
                    .findings
                    .key_warning(
                        raw.at,
                        format!("no token lets an agent `{}` in", shorten(agent)),
                    )
                    .help_if(help);
            }
            grants.insert(agent.as_str().into(), raw.spec(check));
        }
        grants
    }
}

impl TunnelTlsRaw {
    fn spec(&self, at: At, running: Option<&TlsSpec>, check: &mut Checker<'_>) -> TlsSpec {
        // What else a server's `tls` has makes no sense here.
        let raw = TlsRaw {
            certificates: self.certificates.clone(),
            self_signed: self.self_signed.clone(),
            client_auth: self.client_auth.clone(),
            spoiled: self.spoiled.clone(),
            ..TlsRaw::default()
        };
        raw.spec(at, running, check)
    }
}

impl GrantRaw {
    fn spec(&self, check: &mut Checker<'_>) -> GrantSpec {
        let services = self.services.as_ref().map(|list| {
            let parsed = check.each_of(list, NamePattern::parse);
            parsed.into_iter().map(|(pattern, _)| pattern).collect()
        });
        let kinds = self
            .kinds
            .as_ref()
            .map(|list| list.iter().map(|kind| kind.value).collect());
        let flows = self.flows.as_ref().and_then(|raw| {
            let count = raw.get()?;
            Some(check.count(raw.at, count))
        });
        let bandwidth = self.bandwidth.as_ref().and_then(|raw| raw.get());
        GrantSpec {
            services,
            kinds,
            flows,
            bandwidth: bandwidth.map(|speed| speed.0),
        }
    }
}

impl TunnelSpec {
    /// Whether agents need a certificate, whatever secret they know.
    pub fn requires_certificate(&self) -> bool {
        let auth = self.tls.client_auth.as_ref();
        auth.is_some_and(|auth| auth.mode == ClientAuthMode::Require)
    }
}

/// Bytes below which a secret could be found by trying.
const SHORT: usize = 16;

/// A secret that both sides know.
pub(super) fn token(
    raw: &Loc<SecretRef>,
    running: Option<&Secret>,
    check: &mut Checker<'_>,
) -> Option<Secret> {
    let token = secret(raw, running, check)?;
    if token.expose().len() < SHORT {
        check
            .findings
            .warning(
                raw.at,
                format!("a secret of less than {SHORT} characters can be guessed"),
            )
            .help("`openssl rand -hex 32` makes a good one");
    }
    Some(token)
}

/// Agents belong to one tunnel each, and targets name known ones.
pub fn check_agents<'u>(
    tunnels: &[CheckedTunnel],
    upstreams: impl Iterator<Item = (&'u UpstreamSpec, At)>,
    check: &mut Checker<'_>,
) {
    let mut known: HashMap<&str, &str> = HashMap::new();
    for tunnel in tunnels.iter().filter(|tunnel| tunnel.enabled) {
        for (agent, at) in &tunnel.agents_at {
            if let Some(other) = known.insert(agent, &tunnel.spec.name) {
                check
                    .findings
                    .error(*at, format!("`tunnels.{other}` has an agent `{agent}` too"))
                    .help("an agent comes to one tunnel");
            }
        }
    }
    let by_certificate = tunnels
        .iter()
        .any(|tunnel| tunnel.enabled && tunnel.spec.tls.client_auth.is_some());
    for (upstream, at) in upstreams {
        for target in &upstream.targets {
            let TargetAddr::Tunnel(agent, _) = &target.address else {
                continue;
            };
            if known.contains_key(&**agent) {
                continue;
            }
            let message = format!("`{}`: no token lets an agent `{agent}` in", target.address);
            let help = check.suggest(agent, known.keys().copied());
            let finding = match by_certificate {
                true => check.findings.warning(at, message),
                false => check.findings.error(at, message),
            };
            finding.help_if(help.or_else(|| {
                Some(format!(
                    "name it in `tokens` of a tunnel: `tokens = {{ {agent} = … }}`"
                ))
            }));
        }
    }
}
