//! `via`: the proxies through which something is reached, one behind the other.

mod ways;
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::admin::secret;
use super::check::Checker;
use super::decode::{List, Loc, section, words};
use super::scalar::{Secret, SecretRef, TargetAddr};
use super::tree::At;
use super::upstream::{ProxyAt, References, UpstreamSpec, UpstreamTlsRaw};

pub use ways::resolve_vias;
use written::parse_url;

/// Hops of one chain, and upstreams that lie behind one another because of their `via`.
const MOST: usize = 8;

section! {
    /// A proxy on the way: `http://host:port`, `https://`, `socks5://` (names are looked up here) or `socks5h://` (there), with
    /// `user:password@` in front of the host if need be. Or `"direct"`, alone: none.
    pub struct HopFields {
        /// The proxy, as in the short form.
        url: String,
        /// Instead of `url`, an upstream whose targets are proxies: its policy, checks, limits and `tls` hold, and the next one is
        /// tried where one cannot be had.
        upstream: String,
        /// What the targets of `upstream` speak.
        protocol: HopProtocol,
        /// Who we are there.
        user: String,
        /// With what we prove it.
        password: SecretRef,
        /// How TLS is spoken with the proxy of `url`.
        tls: UpstreamTlsRaw,
    }
    short = url;
    one_of = ["url", "upstream"];
    later = [];
}

/// A hop as it is written. User and password of a URL are taken out of it, so that they are shown as those of a table are.
#[derive(Debug, Clone, Default)]
pub struct HopRaw(HopFields);

/// What a proxy on the way speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HopProtocol {
    /// CONNECT in cleartext.
    Http,
    /// CONNECT within TLS.
    Https,
    /// Names are looked up here.
    Socks5,
    /// Names are looked up there.
    Socks5h,
}

words!(HopProtocol {
    "http" => HopProtocol::Http,
    "https" => HopProtocol::Https,
    "socks5" => HopProtocol::Socks5,
    "socks5h" => HopProtocol::Socks5h,
});

impl HopProtocol {
    /// Whether it is told names, and looks them up itself.
    pub fn takes_names(self) -> bool {
        self != HopProtocol::Socks5
    }

    fn default_port(self) -> u16 {
        match self {
            HopProtocol::Http => 80,
            HopProtocol::Https => 443,
            HopProtocol::Socks5 | HopProtocol::Socks5h => 1080,
        }
    }
}

/// Checked `via`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViaSpec {
    /// The nearest first; never empty.
    pub hops: Vec<HopSpec>,
}

/// Checked hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopSpec {
    /// Name of an upstream that the document holds, or that the URL stands for.
    pub upstream: Arc<str>,
    pub protocol: HopProtocol,
    pub login: Option<LoginSpec>,
}

/// Who we are at a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginSpec {
    pub user: String,
    pub password: Secret,
}

/// What a `via` is checked with.
pub struct Around<'a, 'd> {
    pub references: &'a mut References<'d>,
    /// Those that are declared.
    pub upstreams: &'a BTreeMap<Arc<str>, UpstreamSpec>,
    /// JSON Pointer of the `via`.
    pub pointer: String,
    /// As in [`References::resolve`].
    pub live: bool,
    /// What serves in its place.
    pub running: Option<&'a ViaSpec>,
    /// What serves of upstreams.
    pub running_upstreams: Option<&'a BTreeMap<Arc<str>, UpstreamSpec>>,
}

/// Checks one. `None`: direct, or nothing usable.
pub fn via(
    list: &List<HopRaw>,
    at: At,
    around: &mut Around<'_, '_>,
    check: &mut Checker<'_>,
) -> Option<ViaSpec> {
    if is_direct(list) {
        return None;
    }
    if (list.is_empty() && !list.spoiled) || list.len() > MOST {
        let message = format!("`via` has 1 to {MOST} proxies");
        check
            .findings
            .error(at, message)
            .help("`\"direct\"` is none");
        return None;
    }
    let mut hops: Vec<HopSpec> = Vec::with_capacity(list.len());
    for (index, hop) in list.iter().enumerate() {
        let place = Place {
            index,
            told_names: hops.last().is_some_and(|hop| hop.protocol.takes_names()),
        };
        hops.extend(hop.0.spec(place, hop.at, around, check));
    }
    (hops.len() == list.len() && !list.spoiled).then_some(ViaSpec { hops })
}

/// Where in its chain a hop stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    /// The one before looks its name up.
    told_names: bool,
}

/// Whether a `via` is the word for none.
fn is_direct(list: &List<HopRaw>) -> bool {
    let direct = |hop: &Loc<HopRaw>| hop.0.url.as_ref().is_some_and(|url| url.value == "direct");
    matches!(&list[..], [one] if direct(one))
}

impl HopFields {
    fn spec(
        &self,
        place: Place,
        at: At,
        around: &mut Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Option<HopSpec> {
        let index = place.index;
        let (upstream, protocol) = match (&self.url, &self.upstream) {
            (Some(url), None) => self.by_url(url, place, around, check)?,
            (None, Some(upstream)) => self.by_upstream(upstream, index, at, around, check)?,
            _ => {
                if !self.has("url") && !self.has("upstream")
                    || (self.url.is_some() && self.upstream.is_some())
                {
                    let finding = check
                        .findings
                        .error(at, "a proxy on the way has a `url` or an `upstream`");
                    finding.help("such as `via = \"http://proxy.example:3128\"`");
                }
                return None;
            }
        };
        let running = around.running.and_then(|via| via.hops.get(index));
        let running = running.filter(|hop| hop.upstream == upstream);
        let login = self.login(protocol, running, at, check)?;
        Some(HopSpec {
            upstream,
            protocol,
            login,
        })
    }

    fn by_url(
        &self,
        url: &Loc<String>,
        place: Place,
        around: &mut Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Option<(Arc<str>, HopProtocol)> {
        if let Some(given) = &self.protocol {
            let finding = check
                .findings
                .key_error(given.at, "the `url` says the protocol");
            finding.help("leave it out");
        }
        let (protocol, address) = check.take(url.at, parse_url(url, check.base))?;
        let index = place.index;
        let pointer = format!("{}/{index}/tls", around.pointer);
        let own = own_name(protocol, &address, &around.pointer, index);
        let tls = match (&self.tls, protocol) {
            (Some(tls), HopProtocol::Http) => {
                let message = "`http://` is cleartext, and there is `tls`";
                let finding = check.findings.key_error(tls.at, message);
                finding.help("write `https://`");
                return None;
            }
            (Some(tls), _) => {
                let running = around.running_upstreams.and_then(|all| all.get(&own));
                Some(tls.spec(running.and_then(|u| u.tls.as_ref()), check))
            }
            (None, HopProtocol::Https) => Some(Default::default()),
            (None, _) => None,
        };
        let found_elsewhere = place.told_names && matches!(address, TargetAddr::Name(..));
        let name: Arc<str> = match protocol {
            // Nobody else speaks to it just so.
            _ if self.tls.is_some() || found_elsewhere => own,
            HopProtocol::Https => format!("https://{address}").into(),
            _ => address.to_string().into(),
        };
        if around.live {
            let proxy = ProxyAt {
                address,
                tls,
                tls_place: pointer.into(),
                found_elsewhere,
            };
            around.references.add_proxy(&name, proxy, url.at);
        }
        Some((name, protocol))
    }

    fn by_upstream(
        &self,
        upstream: &Loc<String>,
        index: usize,
        at: At,
        around: &mut Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Option<(Arc<str>, HopProtocol)> {
        if let Some(tls) = &self.tls {
            let finding = check.findings.key_error(tls.at, "`tls` is for a `url`");
            finding.help("an upstream has its own");
        }
        let reference = around.references.resolve(upstream, around.live, check)?;
        if !reference.base.is_empty() {
            let message = "a proxy on the way has no path";
            check.findings.error(upstream.at, message);
            return None;
        }
        let Some(protocol) = &self.protocol else {
            if !self.spoiled.contains(&"protocol") {
                let finding = check
                    .findings
                    .error(at, "what this upstream's proxies speak is not said");
                finding.help("`protocol = \"http\"`, `\"https\"`, `\"socks5\"` or `\"socks5h\"`");
            }
            return None;
        };
        // What an address stands for is right by itself.
        if let Some(spec) = around.upstreams.get(&reference.upstream) {
            if spec.via.is_some() && index > 0 {
                let message = format!("the upstream `{}` has a `via` of its own", spec.name);
                let finding = check.findings.error(upstream.at, message);
                finding.help("such a one can only be the first");
            }
            let wrong = match (protocol.value, &spec.tls) {
                (HopProtocol::Https, None) if spec.split.is_empty() => {
                    Some("`https` is CONNECT over TLS, and the upstream has no `tls`")
                }
                (HopProtocol::Http, Some(_)) => {
                    Some("`http` is CONNECT in cleartext, and the upstream has `tls`")
                }
                _ => None,
            };
            if let Some(message) = wrong {
                check.findings.error(protocol.at, message);
            }
        }
        Some((reference.upstream, protocol.value))
    }

    /// `None`: something is wrong with it.
    #[allow(clippy::option_option)]
    fn login(
        &self,
        protocol: HopProtocol,
        running: Option<&HopSpec>,
        at: At,
        check: &mut Checker<'_>,
    ) -> Option<Option<LoginSpec>> {
        let (user, password) = match (&self.user, &self.password) {
            (Some(user), Some(password)) => (user, password),
            (None, None) if self.spoiled.is_empty() => return Some(None),
            (Some(_), None) | (None, Some(_)) if self.spoiled.is_empty() => {
                let message = "`user` and `password` belong together";
                check.findings.error(at, message);
                return None;
            }
            _ => return None,
        };
        let login = running.and_then(|hop| hop.login.as_ref());
        let running = login.filter(|login| login.user == user.value);
        let password_at = password.at;
        let password = secret(password, running.map(|login| &login.password), check)?;
        let socks = matches!(protocol, HopProtocol::Socks5 | HopProtocol::Socks5h);
        let fits = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_control());
        let short = |text: &str| !socks || text.len() <= 255;
        if !fits(user) || !short(user) || (!socks && user.contains(':')) {
            let finding = check
                .findings
                .error(user.at, "no such user can be told a proxy");
            finding.help("one without control characters; for HTTP without `:` (RFC 7617), for SOCKS at most 255 bytes (RFC 1929)");
            return None;
        }
        if !fits(password.expose()) || !short(password.expose()) {
            let finding = check
                .findings
                .error(password_at, "no such password can be told a proxy");
            finding.help("one without control characters, for SOCKS at most 255 bytes (RFC 1929)");
            return None;
        }
        Some(Some(LoginSpec {
            user: user.value.clone(),
            password,
        }))
    }
}

fn own_name(protocol: HopProtocol, address: &TargetAddr, pointer: &str, index: usize) -> Arc<str> {
    let owner = pointer.trim_start_matches('/').replace('/', ".");
    format!("{}://{address}#{owner}.{index}", protocol.word()).into()
}
