//! Where the connections of one address go by the name in their TLS hello: to upstreams of `[tcp]` listeners, unopened, or to
//! the HTTP servers that are there too. One rule for all: the name itself, then the longest domain that it lies below, then
//! what takes all others; of those, one whose protocol the client offers before one that asks for none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::tcp::Tcp;
use crate::config::http::HttpSpec;
use crate::config::scalar::HostPattern;
use crate::config::tcp::ToSpec;
use crate::tls::hello::Hello;
use crate::upstream::Upstream;

/// Shared by the workers.
#[derive(Debug)]
pub struct Names {
    listeners: Vec<Arc<Tcp>>,
    has_http: bool,
    exact: HashMap<Box<str>, Goes>,
    /// `*.a.test` under `a.test`.
    below: HashMap<Box<str>, Goes>,
    rest: Goes,
}

/// Where those of one name go. The document's checks see to it that there is one answer.
#[derive(Debug, Default)]
struct Goes {
    /// By a protocol that the client offers.
    offering: Vec<(Box<str>, Goal)>,
    others: Option<Goal>,
}

#[derive(Debug, Clone)]
pub enum Goal {
    /// TLS is ended here, by an HTTP server.
    Http,
    Tcp(Way),
}

/// A listener, and one of its upstreams.
#[derive(Debug, Clone)]
pub struct Way {
    pub tcp: Arc<Tcp>,
    pub upstream: Arc<Upstream>,
}

impl Names {
    /// `listeners` have `sni`; `http` are the servers of the same address, over TLS. `None`: an upstream is not there, which
    /// none that a document names is.
    pub fn new(listeners: Vec<Arc<Tcp>>, http: &[&HttpSpec]) -> Option<Names> {
        let mut names = Names {
            has_http: !http.is_empty(),
            exact: HashMap::new(),
            below: HashMap::new(),
            rest: Goes::default(),
            listeners: Vec::new(),
        };
        for host in http.iter().flat_map(|spec| &spec.hosts) {
            if let Some(goes) = names.of(host) {
                goes.others = Some(Goal::Http);
            }
        }
        for tcp in &listeners {
            let ToSpec::Sni(sni) = &tcp.spec.to else {
                continue;
            };
            let way = |name| {
                let upstream = tcp.upstream_called(name)?.clone();
                let tcp = tcp.clone();
                Some(Way { tcp, upstream })
            };
            for (pattern, upstream) in &sni.names {
                let way = way(upstream)?;
                if let Some(goes) = names.of(pattern) {
                    goes.add(way);
                }
            }
            if let Some(upstream) = &sni.rest {
                names.rest.add(way(upstream)?);
            }
        }
        if names.has_http && names.rest.others.is_none() {
            // Also where none of its servers takes just any name: then it says so itself.
            names.rest.others = Some(Goal::Http);
        }
        Some(Names { listeners, ..names })
    }

    fn of(&mut self, pattern: &HostPattern) -> Option<&mut Goes> {
        match pattern {
            HostPattern::Exact(name) => Some(self.exact.entry(name.as_str().into()).or_default()),
            HostPattern::Below(name) => Some(self.below.entry(name.as_str().into()).or_default()),
            // The document was refused.
            HostPattern::Regex(_) => None,
        }
    }

    /// Where a client goes that said this; `None`: nowhere.
    pub fn find(&self, hello: &Hello) -> Option<&Goal> {
        let mut goes = self.candidates(hello.sni.as_deref());
        goes.find_map(|goes| goes.find(&hello.alpn))
    }

    /// Whether clients that ask for `host`, and offer nothing that tells them apart, go to an upstream: then no server here
    /// answers for it, whoever else asks.
    pub fn is_elsewhere(&self, host: &str) -> bool {
        let goal = self
            .candidates(Some(host))
            .find_map(|goes| goes.others.as_ref());
        matches!(goal, Some(Goal::Tcp(_)))
    }

    /// The nearest first.
    fn candidates<'n>(&'n self, name: Option<&str>) -> impl Iterator<Item = &'n Goes> {
        let exact = name.and_then(|name| self.exact.get(name));
        let above = name.into_iter().flat_map(|name| {
            let dots = name.match_indices('.');
            dots.map(move |(at, _)| &name[at + 1..])
        });
        let below = above.filter_map(move |domain| self.below.get(domain));
        exact.into_iter().chain(below).chain([&self.rest])
    }

    /// Of a hello; the same for all listeners.
    pub fn header_timeout(&self) -> Option<std::time::Duration> {
        self.listeners.first().and_then(|tcp| tcp.spec.header)
    }

    /// The listeners that take part.
    pub fn listeners(&self) -> &[Arc<Tcp>] {
        &self.listeners
    }

    /// Whether a client may connect at all. Which listener's it is, its name tells.
    pub fn admits(&self, client: Option<IpAddr>) -> bool {
        self.has_http || self.listeners.iter().any(|tcp| tcp.admits(client))
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        self.listeners.iter().any(|tcp| tcp.holds(definition))
    }
}

impl Goes {
    /// By the listener's protocols, if it has any.
    fn add(&mut self, way: Way) {
        if way.tcp.spec.alpn.is_empty() {
            self.others = Some(Goal::Tcp(way));
            return;
        }
        for protocol in &way.tcp.spec.alpn {
            self.offering
                .push((protocol.clone(), Goal::Tcp(way.clone())));
        }
    }

    fn find(&self, offered: &[Box<[u8]>]) -> Option<&Goal> {
        let by_protocol = offered.iter().find_map(|wanted| {
            let mut all = self.offering.iter();
            all.find(|(protocol, _)| protocol.as_bytes() == &**wanted)
        });
        by_protocol.map(|(_, goal)| goal).or(self.others.as_ref())
    }
}
