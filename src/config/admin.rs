//! `[admin]`: the control surface.

mod tls;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::check::{Checker, shorten};
use super::decode::{List, Loc, Map, section};
use super::http::TlsSpec;
use super::scalar::{HostPattern, ListenAddr, Secret, SecretRef, Wrong};
use super::tree::At;

use tls::AdminTlsRaw;

section! {
    /// The control surface: where the admin API listens and who may call it.
    pub struct AdminRaw {
        /// TCP address or `unix:` socket (mode 0600). A non-loopback address needs a token, or
        /// `tls.client_ca`.
        listen: String = "127.0.0.1:8837",
        /// Bearer token that every call but `/livez` must carry.
        token: SecretRef,
        /// More bearer tokens, by the name that `/swaps` and the log show for who carries one.
        tokens: Map<SecretRef>,
        /// Bearer tokens for `GET` and `/adapt` only, by name.
        read_tokens: Map<SecretRef>,
        /// Second address, with `/livez`, `/readyz` and `/metrics` only, for which no token is asked: for whatever restarts,
        /// routes or graphs.
        monitor: String,
        /// Makes it HTTPS; not `monitor`.
        tls: AdminTlsRaw,
        /// Accepted values of `Host`, without port; left out: the loopback names.
        allowed_hosts: List<String>,
    }
    later = [];
}

/// Checked `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSpec {
    pub listen: ListenAddr,
    /// Bearer token that every call but `/livez` must carry.
    pub token: Option<Secret>,
    /// More of them, by name.
    pub tokens: BTreeMap<String, Secret>,
    /// Those for `GET` and `/adapt` only, by name; no name is in `tokens` too.
    pub read_tokens: BTreeMap<String, Secret>,
    /// Second address: `/livez`, `/readyz` and `/metrics` only, without token.
    pub monitor: Option<ListenAddr>,
    /// One certificate, and who must have signed those of callers; `None`: cleartext.
    pub tls: Option<TlsSpec>,
    /// `Host` values accepted, lower case, without port; empty stands for the loopback names.
    pub allowed_hosts: Vec<String>,
}

/// Bytes that a file with a secret may have.
const SECRET_SIZE: u64 = 64 * 1024;

impl AdminRaw {
    /// Checks `[admin]`; `running` gives the token behind a `"<redacted>"` that comes back.
    pub fn spec(&self, check: &mut Checker<'_>, running: Option<&AdminSpec>) -> AdminSpec {
        let token = self
            .token
            .as_ref()
            .and_then(|t| secret(t, running.and_then(|r| r.token.as_ref()), check));
        let before = |of: fn(&AdminSpec) -> &BTreeMap<String, Secret>| running.map(of);
        let tokens = named(self.tokens.as_ref(), before(|r| &r.tokens), check);
        let read_tokens = named(self.read_tokens.as_ref(), before(|r| &r.read_tokens), check);
        for (name, raw) in self.read_tokens.iter().flat_map(|map| map.iter()) {
            if tokens.contains_key(name) {
                let message = format!("`{}` has a token in `tokens` already", shorten(name));
                check.findings.key_error(raw.at, message);
            }
        }
        let written = |key| self.spoiled.contains(&key);
        let may_change = self.token.is_some()
            || self.tokens.as_ref().is_some_and(|map| !map.is_empty())
            || written("token")
            || written("tokens");
        let by_certificate = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if let (Some(map), false) = (self.read_tokens.as_ref(), may_change || by_certificate)
            && !map.is_empty()
        {
            check
                .findings
                .key_warning(
                    map.at,
                    "with `read_tokens` alone nobody may change anything through the API",
                )
                .help("give `token` or `tokens` to those who may");
        }
        let listen = self.listen.as_ref().and_then(|l| {
            let parsed = one_address(l, check.base);
            check.take(l.at, parsed)
        });
        let listen = listen.unwrap_or(ListenAddr::Tcp(([127, 0, 0, 1], 8837).into()));
        let tls = self.tls.as_ref().and_then(|tls| {
            let spec = tls.spec(tls.at, running.and_then(|r| r.tls.as_ref()), check);
            if matches!(listen, ListenAddr::Unix(_)) {
                let message = "a `unix:` socket has no TLS: its file's mode says who may call";
                check.findings.error(tls.at, message);
            }
            spec
        });
        let asks =
            |tls: &Loc<AdminTlsRaw>| tls.client_ca.is_some() || tls.spoiled.contains(&"client_ca");
        let asks_for_certificates = self.tls.as_ref().is_some_and(asks) || written("tls");
        let guarded = may_change
            || !read_tokens.is_empty()
            || written("read_tokens")
            || asks_for_certificates;
        if !listen.is_loopback() && !guarded {
            let at = self.listen.as_ref().map_or(At::NOWHERE, |l| l.at);
            check
                .findings
                .error(at, format!("the admin API on {listen} can be reached from other machines and has neither a `token` nor a `tls.client_ca`"))
                .help("set `token` or `tls.client_ca`, or listen on `127.0.0.1` or a `unix:` socket");
        }
        let monitor = self.monitor.as_ref().and_then(|address| {
            let parsed = one_address(address, check.base);
            let parsed = check.take(address.at, parsed)?;
            let any_port = matches!(&parsed, ListenAddr::Tcp(a) if a.port() == 0);
            if parsed == listen && !any_port {
                check.findings.error(
                    address.at,
                    format!("{parsed} is the address of the admin API itself"),
                );
            }
            Some(parsed)
        });
        let host = |text: &str| match HostPattern::parse(text)? {
            HostPattern::Exact(name) => Ok(name),
            _ => {
                Err(Wrong::new(format!("`{text}` is a pattern")).help("list the names themselves"))
            }
        };
        let allowed_hosts = check
            .each(self.allowed_hosts.as_ref(), host)
            .into_iter()
            .map(|(h, _)| h)
            .collect();
        AdminSpec {
            listen,
            token,
            tokens,
            read_tokens,
            monitor,
            tls,
            allowed_hosts,
        }
    }
}

/// Tokens by name. Two of the same text would leave open who carries it.
fn named(
    raw: Option<&Loc<Map<SecretRef>>>,
    running: Option<&BTreeMap<String, Secret>>,
    check: &mut Checker<'_>,
) -> BTreeMap<String, Secret> {
    let Some(map) = raw else {
        return BTreeMap::new();
    };
    check.names(map);
    let mut out: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, raw) in map.iter() {
        let before = running.and_then(|tokens| tokens.get(name));
        let Some(token) = secret(raw, before, check) else {
            continue;
        };
        if let Some((other, _)) = out.iter().find(|(_, known)| **known == token) {
            let message = format!("the same token as `{}`", shorten(other));
            check.findings.error(raw.at, message);
        }
        out.insert(name.clone(), token);
    }
    out
}

/// The admin API has one address, so the short forms that stand for two do not fit.
fn one_address(text: &str, base: &Path) -> Result<ListenAddr, Wrong> {
    let mut all = ListenAddr::parse_all(text, base)?;
    if let [ListenAddr::Tcp(v4), _] = all.as_slice()
        && !v4.ip().is_loopback()
    {
        let help = format!("write `0.0.0.0{text}` or `[::]{text}`");
        return Err(
            Wrong::new(format!("`{text}` is two addresses; the admin API has one")).help(help),
        );
    }
    Ok(all.swap_remove(0))
}

/// What is wrong with a `"<redacted>"` that nothing stands behind.
pub const NONE_RUNS: &str = "`<redacted>` keeps the running value, and none runs here";

/// The text of a secret. References are read now, each time a document is checked.
pub(super) fn secret(
    secret: &Loc<SecretRef>,
    running: Option<&Secret>,
    check: &mut Checker<'_>,
) -> Option<Secret> {
    match &secret.value {
        SecretRef::Literal(text) => Some(text.clone()),
        SecretRef::Redacted => {
            if running.is_none() {
                check
                    .findings
                    .error(secret.at, NONE_RUNS)
                    .help("write the secret itself, or where it is to be found");
            }
            running.cloned()
        }
        SecretRef::Env(name) => match std::env::var(name) {
            Ok(text) if !text.is_empty() => Some(Secret::new(text)),
            Ok(_) => {
                check.findings.error(
                    secret.at,
                    format!("the environment variable `{name}` is empty"),
                );
                None
            }
            Err(std::env::VarError::NotPresent) => {
                check.findings.error(
                    secret.at,
                    format!("the environment variable `{name}` is not set"),
                );
                None
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                check.findings.error(
                    secret.at,
                    format!("the environment variable `{name}` is not UTF-8"),
                );
                None
            }
        },
        SecretRef::File(path) => {
            let path = check.base.join(path);
            match read_secret(&path) {
                Ok(text) => Some(Secret::new(text)),
                Err(reason) => {
                    check.findings.unavailable(
                        secret.at,
                        format!("cannot read the secret {}: {reason}", path.display()),
                    );
                    None
                }
            }
        }
    }
}

/// Reads a small file; line breaks at its end do not count. Only a regular file: a pipe could keep us waiting.
fn read_secret(path: &Path) -> Result<String, String> {
    let say = |error: std::io::Error| error.to_string();
    if !std::fs::metadata(path).map_err(say)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(say)?
        .take(SECRET_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(say)?;
    if bytes.len() as u64 > SECRET_SIZE {
        return Err(format!("it has more than {SECRET_SIZE} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        Err("it is empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}
