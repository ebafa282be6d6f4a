//! One request: admission, routing, headers, actions, errors. [`pipeline::serve`] is the way in; what a generation does
//! behind one address is its [`Entry`].

pub mod action;
pub mod body;
mod bridge;
pub mod client;
pub mod compressed;
pub mod connection;
pub mod error;
pub mod error_pages;
pub mod extended;
pub mod filter;
mod forward;
pub mod grpc;
pub mod headers;
pub mod host;
mod passage;
pub mod path;
pub mod pipeline;
pub mod progress;
pub mod record;
pub mod request;
pub mod route;
pub mod switch;
pub mod text;
pub mod tunnel;
pub mod vars;
pub mod websocket;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use crate::config::http::{ClientAuthSpec, ConnectionSpec, FiltersSpec, HttpSpec};
use crate::config::runtime::OnChange;
use crate::config::scalar::HostPattern;
use crate::forward::Forward;
use crate::l4::names::Names;
use crate::tls;
use crate::upstream::Upstream;
use action::Action;
use error_pages::ErrorPages;
use filter::Filters;
use record::{Recording, Watch};
use route::{Head, Routes, domains_above};

/// Contents of the files a document names, read at prepare.
pub type Files = HashMap<PathBuf, Bytes>;

/// The hash of what a document names. Whoever sends a request can only look keys up, never add any, so that it need not
/// be a secret one.
pub(crate) type Quick = foldhash::fast::FixedState;
/// By host or path.
pub(crate) type ByName<T> = HashMap<Box<str>, T, Quick>;

/// What one generation does behind one bound address: all servers that share it. Shared by the workers.
#[derive(Debug)]
pub struct Entry {
    /// Shared with its connections, which outlive the entry.
    pub connection: Arc<ConnectionSpec>,
    /// `None`: cleartext.
    tls: Option<Arc<tls::Server>>,
    servers: Vec<Server>,
    exact: ByName<usize>,
    below: ByName<usize>,
    /// The server without `hosts`.
    default: Option<usize>,
    definitions: OnceLock<HashSet<u64>>,
    /// For requests that no server takes, or that are none.
    pub watch: Watch,
    /// It is a forward proxy's: there are no servers.
    forward: Option<Arc<Forward>>,
    /// Names of the same address whose clients `[tcp]` passes on.
    names: Option<Arc<Names>>,
}

/// What a generation does behind one address, as far as requests are concerned.
pub trait Face: Send + Sync + 'static {
    /// Without servers where no HTTP is spoken (any more).
    fn http(&self) -> &Entry;

    /// True if a flow that lives by `definition` would live by the same here.
    fn holds(&self, definition: u64) -> bool;
}

/// What a handshake needs: what the address presents, and the settings its connections live under.
#[derive(Debug, Clone)]
pub struct Secure {
    pub server: Arc<tls::Server>,
    pub connection: Arc<ConnectionSpec>,
}

/// One server of an address.
#[derive(Debug)]
pub struct Server {
    pub name: Arc<str>,
    /// For what no route takes.
    pub filters: Arc<Filters>,
    /// How long a websocket may be silent.
    pub upgraded_timeout: Option<Duration>,
    /// What becomes of its websockets whose definition is gone, unless the action says otherwise.
    pub on_change: OnChange,
    /// `None`: the built-in ones.
    pub error_pages: Option<ErrorPages>,
    /// What it asks of its clients at their handshake; `None`: nothing.
    pub client_auth: Option<Arc<ClientAuthSpec>>,
    /// For what no route takes.
    pub watch: Watch,
    matchers: Routes,
    routes: Vec<Route>,
    fallback: Option<Action>,
}

/// One route, less its conditions.
#[derive(Debug)]
pub struct Route {
    pub name: Option<Arc<str>>,
    /// Its own, or the server's.
    pub filters: Arc<Filters>,
    pub watch: Watch,
    action: Action,
}

impl Entry {
    /// Compiles the servers of one address. `specs` share `connection`; every upstream they name is in `upstreams`,
    /// every file in `files` (the document's checks guarantee it).
    pub fn build(
        specs: &[&HttpSpec],
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        files: &Files,
        shared: &filter::Shared,
        recording: Recording<'_>,
    ) -> Entry {
        let mut entry = Entry {
            connection: Arc::new(
                specs
                    .first()
                    .map_or_else(unlimited, |spec| spec.connection.clone()),
            ),
            tls: None,
            servers: Vec::with_capacity(specs.len()),
            exact: ByName::default(),
            below: ByName::default(),
            default: None,
            definitions: OnceLock::new(),
            watch: recording.watch(&"".into(), None, &FiltersSpec::default()),
            forward: None,
            names: None,
        };
        for (number, spec) in specs.iter().enumerate() {
            entry
                .servers
                .push(Server::build(spec, upstreams, files, shared, recording));
            for host in &spec.hosts {
                match host {
                    HostPattern::Exact(name) => {
                        _ = entry.exact.insert(name.as_str().into(), number)
                    }
                    HostPattern::Below(name) => {
                        _ = entry.below.insert(name.as_str().into(), number)
                    }
                    // `hosts` takes none: the document was refused.
                    HostPattern::Regex(_) => {}
                }
            }
            if spec.hosts.is_empty() {
                entry.default = Some(number);
            }
        }
        entry
    }

    /// What HTTP there is with a forward proxy; none of its servers' settings hold but those for connections.
    pub fn of_forward(proxy: Arc<Forward>, recording: Recording<'_>) -> Entry {
        let timeouts = &proxy.spec.timeouts;
        let connection = ConnectionSpec {
            header_timeout: Some(timeouts.handshake),
            body_timeout: timeouts.idle,
            idle_timeout: timeouts.idle,
            write_timeout: timeouts.idle,
            ..unlimited()
        };
        // No server has such a name.
        let name = format!("forward.{}", proxy.name).into();
        Entry {
            connection: Arc::new(connection),
            tls: None,
            servers: Vec::new(),
            exact: ByName::default(),
            below: ByName::default(),
            default: None,
            definitions: OnceLock::new(),
            watch: recording.watch(&name, None, &FiltersSpec::default()),
            forward: proxy.spec.http.then_some(proxy),
            names: None,
        }
    }

    /// The same entry over TLS.
    pub fn over_tls(self, server: Option<tls::Server>) -> Entry {
        Entry {
            tls: server.map(Arc::new),
            ..self
        }
    }

    /// The same entry on an address that has clients of these names passed on.
    pub fn beside(self, names: Arc<Names>) -> Entry {
        Entry {
            names: Some(names),
            ..self
        }
    }

    /// From now on the address presents `server`; it stays what it is, cleartext or not.
    pub fn present(&self, server: Option<tls::Server>) {
        if let (Some(tls), Some(server)) = (&self.tls, server) {
            tls.exchange(server);
        }
    }

    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// `None`: cleartext.
    pub fn secure(&self) -> Option<Secure> {
        let server = self.tls.clone()?;
        Some(Secure {
            server,
            connection: self.connection.clone(),
        })
    }

    /// True if who asks for `host` must make a connection with that name (RFC 9110 section 7.4): `[tcp]` passes it on from
    /// here. It is no matter of ours even if one server takes just any name, or a certificate is good for both.
    pub fn is_elsewhere(&self, host: &str) -> bool {
        let names = self.names.as_ref();
        names.is_some_and(|names| names.is_elsewhere(host))
    }

    /// True if a request for `host` may not come over this connection (RFC 9110 section 7.4): it was made for another
    /// server's name, whose certificate is not good for this one, or the server asks its clients for a certificate and
    /// this handshake did not, or not in the same way. A client that named no server at its handshake is believed: what
    /// it asked for is in its request only.
    pub fn misdirected(&self, session: Option<&tls::Session>, host: &str, server: &Server) -> bool {
        if server.client_auth.is_some()
            && session.and_then(|s| s.client_auth.as_ref()) != server.client_auth.as_ref()
        {
            return true;
        }
        let Some(session) = session else {
            return false;
        };
        let Some(sni) = session.sni.as_deref().filter(|sni| *sni != host) else {
            return false;
        };
        self.server_number(sni) != self.server_number(host)
            && self.tls.as_ref().is_some_and(|tls| !tls.shares(sni, host))
    }

    /// True if a request that lives by `definition` (see `generation::Flight::define`: a digest of server name, action and
    /// the target used) would live by the same here.
    ///
    /// Until a request's target is known its definition is that of server and action alone.
    pub fn holds(&self, definition: u64) -> bool {
        // Asked at drain deadlines only, so gathered then.
        let all = self.definitions.get_or_init(|| {
            let actions = self.servers.iter().flat_map(|server| {
                server
                    .routes
                    .iter()
                    .map(|route| &route.action)
                    .chain(&server.fallback)
            });
            // As `define` stores it: never 0.
            actions
                .flat_map(Action::definitions)
                .map(|definition| definition.max(1))
                .collect()
        });
        all.contains(&definition)
    }

    /// The server for `host` (lower case, without port): exact, then the longest domain it lies below, then the
    /// one without `hosts`. Nothing falls through from one to another; no server is a 404.
    pub fn server(&self, host: &str) -> Option<&Server> {
        let number = self.server_number(host)?;
        self.servers.get(number)
    }

    fn server_number(&self, host: &str) -> Option<usize> {
        if !self.exact.is_empty()
            && let Some(number) = self.exact.get(host)
        {
            return Some(*number);
        }
        if !self.below.is_empty()
            && let Some(number) = domains_above(host)
                // `.a.test` lies below nothing.
                .filter(|_| !host.starts_with('.'))
                .find_map(|domain| self.below.get(domain))
        {
            return Some(*number);
        }
        self.default
    }
}

impl Server {
    fn build(
        spec: &HttpSpec,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        files: &Files,
        shared: &filter::Shared,
        recording: Recording<'_>,
    ) -> Server {
        let given = filter::Given {
            upstreams,
            files,
            shared,
        };
        let filters = Arc::new(Filters::build(&spec.filters, &given));
        let action = |spec_action| Action::build(&spec.name, spec_action, upstreams, files);
        Server {
            name: spec.name.clone(),
            upgraded_timeout: spec.upgraded_timeout,
            on_change: spec.on_change,
            client_auth: spec.tls.as_ref().and_then(|tls| tls.client_auth.clone()),
            matchers: Routes::new(
                spec.routes
                    .iter()
                    .map(|route| route.matcher.clone())
                    .collect(),
            ),
            routes: spec
                .routes
                .iter()
                .map(|route| Route {
                    name: route.name.clone(),
                    filters: filter::shared(&route.filters, (&spec.filters, &filters), &given),
                    watch: recording.watch(&spec.name, route.name.as_ref(), &route.filters),
                    action: action(&route.action),
                })
                .collect(),
            fallback: spec.fallback.as_ref().map(action),
            error_pages: ErrorPages::build(&spec.error_pages, files),
            watch: recording.watch(&spec.name, None, &spec.filters),
            filters,
        }
    }

    /// The first route that takes `head` and its action, else the server's own action.
    pub fn find(&self, head: &Head<'_>) -> (Option<&Route>, Option<&Action>) {
        match self
            .matchers
            .find(head)
            .and_then(|number| self.routes.get(number))
        {
            Some(route) => (Some(route), Some(&route.action)),
            None => (None, self.fallback.as_ref()),
        }
    }
}

/// For an address without servers, which a document does not make.
fn unlimited() -> ConnectionSpec {
    ConnectionSpec {
        h1: true,
        h2: true,
        tls: None,
        alpn: Vec::new(),
        trusted_proxies: Vec::new(),
        proxy_protocol: false,
        header_timeout: None,
        body_timeout: None,
        idle_timeout: None,
        write_timeout: None,
        header_size: 32 * 1024,
        headers: 100,
        connections: None,
        connections_per_client: None,
        streams: 100,
        requests_per_connection: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod test_kit {
    //! Specs and connections for the tests of this layer and the one above.

    use super::connection::Connection;
    use super::*;
    use crate::config::http::{ActionSpec, ErrorPagesSpec, FiltersSpec, RespondBody, RespondSpec};
    use crate::config::template::{Part, Template};
    use crate::metrics::{WorkerContext, WorkerCounters};

    pub(crate) fn spec() -> ConnectionSpec {
        ConnectionSpec {
            header_timeout: Some(Duration::from_secs(10)),
            body_timeout: Some(Duration::from_secs(30)),
            idle_timeout: Some(Duration::from_secs(75)),
            write_timeout: Some(Duration::from_secs(30)),
            ..unlimited()
        }
    }

    pub(crate) fn worker() -> Arc<WorkerContext> {
        Arc::new(WorkerContext {
            index: 0,
            of: 1,
            counters: WorkerCounters::default(),
            sessions: crate::session::Sessions::new(0, 1),
        })
    }

    /// A record of nothing that lasts.
    pub(crate) fn records() -> record::Shared {
        record::Shared::new(Arc::default(), 1)
    }

    pub(crate) fn connection(spec: ConnectionSpec) -> Connection {
        let peer: std::net::SocketAddr = "192.0.2.1:50000".parse().unwrap();
        let local = "192.0.2.2:80".parse().unwrap();
        Connection::new(peer.into(), Some(local), Arc::new(spec), worker())
    }

    /// Over a unix socket.
    pub(crate) fn local_connection(spec: ConnectionSpec) -> Connection {
        Connection::new(crate::net::Peer::Unix, None, Arc::new(spec), worker())
    }

    pub(crate) fn template(text: &str) -> Template {
        Template {
            parts: vec![Part::Text(text.into())],
        }
    }

    pub(crate) fn respond(text: &str) -> ActionSpec {
        let body = RespondBody::Template(template(text));
        ActionSpec::Respond(RespondSpec {
            status: http::StatusCode::OK,
            body,
            headers: vec![],
        })
    }

    /// A server that answers `text` to all.
    pub(crate) fn server(name: &str, connection: ConnectionSpec, text: &str) -> HttpSpec {
        HttpSpec {
            name: name.into(),
            listen: vec![],
            hosts: vec![],
            connection,
            tls: None,
            upgraded_timeout: None,
            filters: FiltersSpec::default(),
            routes: vec![],
            error_pages: ErrorPagesSpec::default(),
            fallback: Some(respond(text)),
            on_change: OnChange::default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::test_kit::{respond, server, spec};
    use super::*;

    fn build(specs: &[HttpSpec]) -> Entry {
        Entry::build(
            &specs.iter().collect::<Vec<_>>(),
            &BTreeMap::new(),
            &Files::new(),
            &filter::Shared::default(),
            Recording {
                shared: &test_kit::records(),
                log: None,
            },
        )
    }

    #[test]
    fn the_server_is_the_exact_then_the_longest_then_the_one_without_hosts() {
        let with = |name: &str, hosts: Vec<HostPattern>| HttpSpec {
            hosts,
            ..server(name, spec(), name)
        };
        let below = |domain: &str| HostPattern::Below(domain.into());
        let entry = build(&[
            with("any", vec![]),
            with("wide", vec![below("a.test")]),
            with(
                "narrow",
                vec![below("b.a.test"), HostPattern::Exact("c.a.test".into())],
            ),
        ]);
        let name = |host: &str| entry.server(host).map(|server| server.name.to_string());
        for (host, expected) in [
            ("a.test", "any"),
            ("x.a.test", "wide"),
            ("y.x.a.test", "wide"),
            ("x.b.a.test", "narrow"),
            ("b.a.test", "wide"),
            ("c.a.test", "narrow"),
            (".a.test", "any"),
            ("", "any"),
        ] {
            assert_eq!(name(host).as_deref(), Some(expected), "{host}");
        }
        let entry = build(&[with("only", vec![HostPattern::Exact("a.test".into())])]);
        assert!(entry.server("b.test").is_none());
    }

    #[test]
    fn a_definition_holds_where_server_and_action_are_the_same() {
        let one = build(&[server("web", spec(), "hello")]);
        let same = build(&[server("other", spec(), "x"), server("web", spec(), "hello")]);
        let changed = build(&[server("web", spec(), "goodbye")]);
        let renamed = build(&[server("site", spec(), "hello")]);
        let definition = one.servers[0].fallback.as_ref().unwrap().definition;
        assert!(one.holds(definition) && same.holds(definition));
        assert!(!changed.holds(definition) && !renamed.holds(definition) && !one.holds(0));
        assert_eq!(respond("a"), respond("a"));
    }
}
