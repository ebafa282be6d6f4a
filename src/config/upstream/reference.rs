//! What actions name: an upstream of the document, or an address or URL that stands for one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::super::check::{Checker, shorten};
use super::super::decode::{Decode, Loc, Map};
use super::super::scalar::{TargetAddr, Wrong};
use super::super::tree::At;
use super::{Protocol, TargetSpec, UpstreamRaw, UpstreamSpec, UpstreamTlsSpec, shares};

/// The upstreams that actions may name, and those that their addresses stand for.
#[derive(Debug)]
pub struct References<'d> {
    declared: &'d Map<UpstreamRaw>,
    used: HashSet<&'d str>,
    /// By name, `host:port`, with the scheme in front unless it is `http`: those that enabled actions need.
    pub implicit: BTreeMap<Arc<str>, UpstreamSpec>,
    /// Where each of those is first named.
    places: HashMap<Arc<str>, At>,
    defaults: UpstreamSpec,
}

/// What an action names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub upstream: Arc<str>,
    /// Path of a URL, without trailing slash.
    pub base: String,
}

/// A proxy on the way, whose address is written where it is used.
#[derive(Debug)]
pub struct ProxyAt {
    pub address: TargetAddr,
    pub tls: Option<UpstreamTlsSpec>,
    /// JSON Pointer of `tls`.
    pub tls_place: Arc<str>,
    /// As in [`UpstreamSpec`].
    pub found_elsewhere: bool,
}

impl<'d> References<'d> {
    pub fn new(declared: &'d Map<UpstreamRaw>, base: &Path) -> References<'d> {
        let mut raw = UpstreamRaw::default();
        raw.fill();
        // Findings of this checker can only be "needs targets": the defaults are what they are.
        let mut scratch = Checker::new(super::super::findings::Findings::default(), base, true);
        let defaults = raw.spec("", At::NOWHERE, None, &mut scratch);
        References {
            declared,
            used: HashSet::new(),
            implicit: BTreeMap::new(),
            places: HashMap::new(),
            defaults,
        }
    }

    /// Resolves a name, an address or a URL. `live`: the action is enabled, so what it stands for must exist.
    pub fn resolve(
        &mut self,
        text: &Loc<String>,
        live: bool,
        check: &mut Checker<'_>,
    ) -> Option<Reference> {
        if !text.contains(':') {
            if let Some((name, _)) = self.declared.get_key_value(text.as_str()) {
                self.used.insert(name);
                return Some(Reference {
                    upstream: name.as_str().into(),
                    base: String::new(),
                });
            }
            if self.declared.spoiled.contains(&text.value) {
                return None;
            }
            let help = check.suggest(text, self.declared.keys().map(String::as_str));
            let help = help.unwrap_or_else(|| {
                format!(
                    "define `[upstreams.{}]`, or write an address such as `127.0.0.1:3000`",
                    shorten(text)
                )
            });
            check
                .findings
                .error(text.at, format!("there is no upstream `{}`", shorten(text)))
                .help(help);
            return None;
        }
        let parsed = Destination::parse(text, check.base);
        let Destination {
            scheme,
            address,
            base,
        } = check.take(text.at, parsed)?;
        let name: Arc<str> = match scheme {
            Scheme::Http => address.to_string().into(),
            Scheme::Https => format!("https://{address}").into(),
            Scheme::H2c => format!("h2c://{address}").into(),
        };
        if live && !self.implicit.contains_key(&name) {
            let targets = vec![TargetSpec {
                address,
                weight: 1,
                backup: false,
            }];
            let spec = UpstreamSpec {
                name: name.clone(),
                targets,
                protocol: match scheme {
                    Scheme::H2c => Protocol::H2c,
                    Scheme::Http | Scheme::Https => self.defaults.protocol,
                },
                tls: (scheme == Scheme::Https).then(UpstreamTlsSpec::default),
                ..self.defaults.clone()
            };
            self.places.insert(name.clone(), text.at);
            self.implicit.insert(name.clone(), spec);
        }
        Some(Reference {
            upstream: name,
            base,
        })
    }

    /// The upstream that a proxy on the way stands for, under `name`.
    pub fn add_proxy(&mut self, name: &Arc<str>, proxy: ProxyAt, at: At) {
        if self.implicit.contains_key(name) {
            return;
        }
        let spec = UpstreamSpec {
            name: name.clone(),
            targets: vec![TargetSpec {
                address: proxy.address,
                weight: 1,
                backup: false,
            }],
            tls: proxy.tls,
            tls_place: Some(proxy.tls_place),
            found_elsewhere: proxy.found_elsewhere,
            ..self.defaults.clone()
        };
        self.places.insert(name.clone(), at);
        self.implicit.insert(name.clone(), spec);
    }

    /// The upstream that a split written in an action stands for; it is named by its members and shares. `live` as in
    /// [`References::resolve`].
    pub fn split(
        &mut self,
        split: &Loc<Map<u64>>,
        live: bool,
        check: &mut Checker<'_>,
    ) -> Option<Reference> {
        let members = shares(split, live, self, check);
        if members.len() < split.len() || members.is_empty() {
            return None;
        }
        let parts = members
            .iter()
            .map(|m| format!("{}={}", m.upstream, m.share));
        // No address begins so.
        let name: Arc<str> = format!("split:{}", parts.collect::<Vec<_>>().join(",")).into();
        if live {
            let spec = UpstreamSpec {
                name: name.clone(),
                split: members,
                ..self.defaults.clone()
            };
            self.implicit.insert(name.clone(), spec);
        }
        Some(Reference {
            upstream: name,
            base: String::new(),
        })
    }

    /// Where an upstream is written: its table, or what stands for it.
    pub fn place(&self, name: &str) -> At {
        let declared = self.declared.get(name).map(|raw| {
            let targets = raw.targets.as_ref();
            targets.map_or(raw.at, |targets| targets.at)
        });
        let implicit = || self.places.get(name).copied();
        declared.or_else(implicit).unwrap_or(At::ROOT)
    }

    /// Warns of upstreams that no action names.
    pub fn warn_unused(&self, check: &mut Checker<'_>) {
        for (name, raw) in self
            .declared
            .iter()
            .filter(|(name, _)| !self.used.contains(name.as_str()))
        {
            check.findings.key_warning(
                raw.at,
                format!("nothing uses the upstream `{}`", shorten(name)),
            );
        }
    }
}

/// How the target of a URL is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    H2c,
}

/// What an address or a URL stands for.
struct Destination {
    scheme: Scheme,
    address: TargetAddr,
    base: String,
}

impl Destination {
    /// `host:port`, `unix:/path` or `http://host[:port][/base]`, also with `https` and `h2c`.
    fn parse(text: &str, base: &Path) -> Result<Destination, Wrong> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Destination {
                scheme: Scheme::Http,
                address: TargetAddr::parse(text, base)?,
                base: String::new(),
            });
        };
        let (scheme, port) = match scheme {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "h2c" => (Scheme::H2c, 80),
            other => {
                let message = format!("`{}://` is not a scheme to proxy to", shorten(other));
                return Err(Wrong::new(message).help("use `http://`, `https://` or `h2c://`"));
            }
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains(['@', '?', '#']) {
            return Err(Wrong::new(format!(
                "`{}` is not `host` or `host:port`",
                shorten(authority)
            )));
        }
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if has_port {
            TargetAddr::parse(authority, base)
        } else {
            TargetAddr::parse(&format!("{authority}:{port}"), base)
        };
        Ok(Destination {
            scheme,
            address: address?,
            base: base_path(path)?,
        })
    }
}

/// A path to put before requests' paths, without the slash at its end.
///
/// # Errors
/// That it is not a path as requests have them.
pub fn base_path(path: &str) -> Result<String, Wrong> {
    let trimmed = path.trim_end_matches('/');
    let wrong = Wrong::new(format!(
        "`{}` is not a path to put before others",
        shorten(path)
    ));
    if trimmed.is_empty() {
        return if path.is_empty() || path == "/" {
            Ok(String::new())
        } else {
            Err(wrong)
        };
    }
    if !trimmed.starts_with('/') {
        return Err(wrong.help("it begins with `/`"));
    }
    if trimmed.contains(['?', '#']) {
        return Err(wrong.help("it has no query and no fragment"));
    }
    if trimmed.split('/').any(|s| s == "." || s == "..")
        || ::http::uri::PathAndQuery::try_from(trimmed).is_err()
    {
        return Err(wrong.help("it has no `.` or `..` and is percent-encoded"));
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_urls_are_a_target_and_a_base() {
        let parse = |text| {
            Destination::parse(text, Path::new("/b")).map(|d| (d.address.to_string(), d.base))
        };
        let is = |address: &str, base: &str| Ok((address.to_owned(), base.to_owned()));
        assert_eq!(parse("10.0.0.1:3000"), is("10.0.0.1:3000", ""));
        assert_eq!(parse("http://Example.com"), is("example.com:80", ""));
        assert_eq!(parse("http://[::1]/a/"), is("[::1]:80", "/a"));
        assert_eq!(parse("http://[::1]:81/a/b"), is("[::1]:81", "/a/b"));
        assert_eq!(parse("https://a.test/b"), is("a.test:443", "/b"));
        assert_eq!(parse("h2c://a.test:81"), is("a.test:81", ""));
        assert_eq!(parse("unix:/run/a.sock"), is("unix:/run/a.sock", ""));
        assert_eq!(parse("tunnel:a/b"), is("tunnel:a/b", ""));
        for wrong in [
            "h2://a",
            "ftp://a",
            "http://",
            "http://a:b",
            "http://u@a",
            "http://a?b",
            "http://a/../b",
            "http://a/b?c",
            "http://a//",
            "tunnel:a",
            "tunnel:a/b/c",
            ":80",
            "a:0",
            "a:99999",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
