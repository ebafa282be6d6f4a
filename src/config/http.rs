//! `[http.NAME]`: servers, routes, matches, actions. Here is what they are when checked; [`raw`] is what is written,
//! [`check`] leads from there to here.

mod action;
mod check;
mod error_pages;
mod files;
pub(in crate::config) mod filters;
mod matcher;
mod raw;
mod retries;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, Method, StatusCode};
use ipnet::IpNet;

use super::runtime::OnChange;
use super::scalar::{HostPattern, ListenAddr, Pattern};
use super::template::Template;

pub use check::{Around, Checked, RouteAt};
pub(super) use check::{addresses, place};
pub use error_pages::{ErrorPagesSpec, PageFor};
pub use files::{FileCoding, FilesRaw, FilesSpec};
pub use filters::{
    AccessSpec, BasicAuthRaw, BasicAuthSpec, CompressSpec, ConcurrencyRaw, ConcurrencySpec,
    CorsRaw, CorsSpec, EditSpec, FilterSets, FiltersRaw, FiltersSpec, ForwardAuthRaw,
    ForwardAuthSpec, HashKind, HashedPassword, HeadersRaw, HeadersSetting, HeadersSpec,
    MOST_LIMITS, OriginPattern, Piece, RateLimitRaw, RateLimitSpec, RewriteRaw, RewriteSpec,
    Setting, htpasswd,
};
pub use raw::{HttpRaw, RouteRaw};
pub use retries::{MAX_ATTEMPTS, RetriesRaw, RetrySpec};
pub use tls::{
    Alpn, CertificateSpec, ClientAuthMode, ClientAuthSpec, KeyRaw, PemSource, TlsSpec, TlsVersion,
    redirects_to,
};
pub(super) use tls::{CertificateRaw, ClientAuthRaw, TlsRaw, cert_source, key_source};

/// Checked `[http.NAME]`. Only enabled servers and routes are here.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSpec {
    pub name: Arc<str>,
    /// In the document's order, never empty. Servers may share an address when their hosts differ.
    pub listen: Vec<ListenAddr>,
    /// Names it answers for; empty: any.
    pub hosts: Vec<HostPattern>,
    /// What belongs to the connection: equal for all servers that share an address.
    pub connection: ConnectionSpec,
    /// There if `connection.tls` is.
    pub tls: Option<TlsSpec>,
    /// How long a websocket may be silent. `None`: no limit.
    pub upgraded_timeout: Option<Duration>,
    /// For what no route takes: its own and those it uses.
    pub filters: FiltersSpec,
    pub routes: Vec<RouteSpec>,
    /// For errors that are ours.
    pub error_pages: ErrorPagesSpec,
    /// The action for what no route takes.
    pub fallback: Option<ActionSpec>,
    pub on_change: OnChange,
}

impl HttpSpec {
    /// The filters of the server and of each of its routes.
    pub fn all_filters(&self) -> impl Iterator<Item = &FiltersSpec> {
        let routes = self.routes.iter().map(|route| &route.filters);
        std::iter::once(&self.filters).chain(routes)
    }
}

/// The part of a server that every server on the same address must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSpec {
    pub h1: bool,
    /// On cleartext: HTTP/2 with prior knowledge.
    pub h2: bool,
    /// The oldest version it speaks; `None`: cleartext.
    pub tls: Option<TlsVersion>,
    /// Offered over TLS, the preferred first.
    pub alpn: Vec<Alpn>,
    pub trusted_proxies: Vec<IpNet>,
    /// Connections of those begin with a PROXY header.
    pub proxy_protocol: bool,
    /// First byte of a head to its last; also how long a new connection may stay silent. `None`: no limit.
    pub header_timeout: Option<Duration>,
    /// Between two reads of a request body.
    pub body_timeout: Option<Duration>,
    /// Between two requests of a connection.
    pub idle_timeout: Option<Duration>,
    /// How long a write may make no progress.
    pub write_timeout: Option<Duration>,
    /// Bytes of a request head.
    pub header_size: usize,
    /// Number of header fields.
    pub headers: usize,
    /// Connections of this address, the whole process together.
    pub connections: Option<usize>,
    /// Connections of this address from one peer address.
    pub connections_per_client: Option<usize>,
    /// Concurrent HTTP/2 streams of a connection.
    pub streams: u32,
    pub requests_per_connection: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RouteSpec {
    pub name: Option<Arc<str>>,
    pub matcher: MatchSpec,
    pub action: ActionSpec,
    /// Its own, those it uses, and below them the server's.
    pub filters: FiltersSpec,
}

/// Conditions of a route: every non-empty list must hold, a list holds when any item does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct MatchSpec {
    pub host: Vec<HostPattern>,
    pub path: Vec<PathPattern>,
    pub method: Vec<MethodPattern>,
    /// Each named field must hold one of its values.
    pub header: Vec<(HeaderName, Vec<TextPattern>)>,
    pub cookie: Vec<(String, Vec<TextPattern>)>,
    pub query: Vec<(String, Vec<TextPattern>)>,
    pub scheme: Vec<Scheme>,
    /// The client's address, after trusted proxies.
    pub remote: Vec<IpNet>,
    /// Must not hold.
    pub not: Option<Box<MatchSpec>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

/// A request method; methods have a case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MethodPattern {
    Exact(Method),
    /// `~^P`: a regular expression, unanchored.
    Regex(Pattern),
}

impl MethodPattern {
    pub fn matches(&self, method: &Method) -> bool {
        match self {
            MethodPattern::Exact(exact) => exact == method,
            MethodPattern::Regex(pattern) => pattern.regex.is_match(method.as_str()),
        }
    }
}

/// A path, compared decoded (but `%2F`) and without dot segments.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// `/v1`: exactly that.
    Exact(String),
    /// `/v1/*`, held as `/v1`: that and all below. `/*` is held as the empty string.
    Below(String),
    /// `/v1*`, held as `/v1`: all that begins so.
    Prefix(String),
    /// `~^/v[0-9]+/`: a regular expression, unanchored.
    Regex(Pattern),
}

/// A value of a header, cookie or query key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextPattern {
    /// `*`: present, whatever it holds.
    Any,
    Exact(String),
    /// `abc*`, held as `abc`.
    Prefix(String),
    Regex(Pattern),
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub enum ActionSpec {
    Proxy(ProxySpec),
    Files(FilesSpec),
    Respond(RespondSpec),
    Redirect(RedirectSpec),
    /// A websocket that carries a stream to an upstream that the document holds.
    Tcp {
        upstream: Arc<str>,
    },
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub struct ProxySpec {
    /// Name of an upstream that the document holds (one written as a URL or address is there under its `host:port`).
    pub upstream: Arc<str>,
    /// That upstream is the `split` written here: its shares are no part of what the action is.
    pub split: bool,
    /// Put before the request's path: `/base` of `http://host/base`; without trailing slash, empty for none.
    pub base: String,
    pub host_header: HostHeader,
    /// For one try; overrides the upstream's `timeouts.response`.
    pub timeout: Option<Duration>,
    /// Clients may upgrade to websocket.
    pub websocket: bool,
    pub retries: RetrySpec,
    /// Bytes of a request body that are kept to be sent again.
    pub buffer: u64,
    /// `None`: as the server says.
    pub on_change: Option<OnChange>,
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub enum HostHeader {
    /// As the client sent it.
    Preserve,
    /// The target's `host:port`.
    Upstream,
    Fixed(::http::HeaderValue),
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub struct RespondSpec {
    pub status: StatusCode,
    pub body: RespondBody,
    pub headers: Vec<(HeaderName, Template)>,
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub enum RespondBody {
    Template(Template),
    /// An absolute path; read at prepare, its contents are part of the generation.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub struct RedirectSpec {
    pub to: Template,
    pub status: StatusCode,
}
