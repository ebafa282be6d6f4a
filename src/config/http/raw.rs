//! `[http.NAME]` as it is written.

use super::super::decode::{Limit, List, Map, section, words};
use super::super::runtime::OnChange;
use super::super::scalar::{Size, Span};
use super::filters::{LATER, filtered};
use super::tls::TlsRaw;
use super::{FilesRaw, RetriesRaw, Scheme};

filtered! {
    /// An HTTP server: where it listens, what names it answers for, and what it does with requests.
    pub struct HttpRaw {
        /// Addresses: `IP:port`, `:port` (all addresses), `localhost:port` or `unix:/path`. Servers may share one when their
        /// `hosts` differ and all settings of the connection are equal.
        listen: List<String>,
        /// Names it answers for: exact, then the longest `*.example.com`. Left out: any that no other server has.
        hosts: List<String>,
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// HTTP versions it speaks: over TLS by ALPN, in cleartext `h2` is with prior knowledge.
        protocols: List<Protocol> = ["h1", "h2"],
        /// Makes it HTTPS.
        tls: TlsRaw,
        /// CIDRs whose `X-Forwarded-*` and `Forwarded` are believed.
        trusted_proxies: List<String> = [],
        /// Connections of `trusted_proxies` begin with a PROXY header, version 1 or 2, which says who the client is. From
        /// others none is read.
        proxy_protocol: bool = false,
        /// How long clients may take.
        timeouts: TimeoutsRaw = {},
        /// How much clients may send and hold.
        limits: LimitsRaw = {},
        /// Tried in order, the first match wins.
        routes: List<RouteRaw> = [],
        /// What happens to a websocket when a swap changed or removed its own definition; left out: as `[runtime]` says.
        on_change: OnChange,
        /// Files that are sent with errors made here, never instead of an upstream's answers: by status (`404`), else by its
        /// class (`5xx`). They are read when the configuration is loaded.
        error_pages: Map<String>,
        /// For requests that no route takes: pass them on to an upstream.
        proxy: Box<ProxyRaw>,
        /// For requests that no route takes: serve the files of a folder.
        files: Box<FilesRaw>,
        /// For requests that no route takes: answer them from here.
        respond: Box<RespondRaw>,
        /// For requests that no route takes: send the client elsewhere.
        redirect: Box<RedirectRaw>,
        /// For requests that no route takes: a websocket that carries a TCP stream to a target; the name of an upstream, or
        /// `host:port`.
        tcp: String,
        /// Filters of `[filters]` for all its requests; of several that say the same thing the last counts.
        using as "use": List<String>,
    }
    one_of = ["proxy", "files", "respond", "redirect", "tcp"];
    later = [LATER];
}

section! {
    /// How long clients may take.
    pub struct TimeoutsRaw {
        /// From the first byte of a head to its last, and how long a new connection may stay silent.
        header: Limit<Span> = "10s",
        /// Between two reads of a request body.
        body: Limit<Span> = "30s",
        /// Between two requests of a connection.
        idle: Limit<Span> = "75s",
        /// How long a write may make no progress.
        write: Limit<Span> = "30s",
        /// How long a websocket may be silent in both directions.
        upgraded: Limit<Span> = "1h",
    }
    later = [];
}

section! {
    /// How much clients may send and hold.
    pub struct LimitsRaw {
        /// Bytes of a request head.
        header_size: Size = "32KiB",
        /// Fields of a request head.
        headers: u64 = 100,
        /// Bytes of a request body.
        body: Limit<Size> = "unlimited",
        /// Connections of an address, the whole process together.
        connections: Limit<u64> = "unlimited",
        /// Connections of an address from one client address.
        connections_per_client: Limit<u64> = "unlimited",
        /// Concurrent HTTP/2 streams of a connection.
        streams: u64 = 100,
        /// Requests after which a connection is closed.
        requests_per_connection: Limit<u64> = "unlimited",
    }
    later = [];
}

filtered! {
    /// What one kind of request gets: conditions and exactly one action.
    pub struct RouteRaw {
        /// Unique in its server; shown in metrics, logs and the API.
        name: String,
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// Every given condition must hold; a list holds when any item does. Left out: every request.
        matcher as "match": Box<MatchRaw>,
        /// Pass the request on to an upstream.
        proxy: Box<ProxyRaw>,
        /// Serve the files of a folder.
        files: Box<FilesRaw>,
        /// Answer from here.
        respond: Box<RespondRaw>,
        /// Send the client elsewhere.
        redirect: Box<RedirectRaw>,
        /// A websocket that carries a TCP stream to a target: the name of an upstream, or `host:port`.
        tcp: String,
        /// Filters of `[filters]` for its requests; of several that say the same thing the last counts.
        using as "use": List<String>,
    }
    later = [LATER, &["on_change"]];
}

section! {
    /// Conditions of a route. A value that starts with `~` is a regular expression.
    pub struct MatchRaw {
        /// Host names without port: `www.example.com`, `*.example.com` (any depth).
        host: List<String>,
        /// Decoded paths: `/v1/*` is `/v1` and all below, `/v1*` all that begins so, without `*` exactly that.
        path: List<String>,
        /// Request methods: `GET`, or `~^P` for all that begin with P. Left out: every method.
        method: List<String>,
        /// Header fields; `*` for any value, `abc*` for all that begins so.
        header: Map<List<String>>,
        /// Cookies; values as in `header`.
        cookie: Map<List<String>>,
        /// Keys of the query; values as in `header`.
        query: Map<List<String>>,
        /// `http` or `https`.
        scheme: List<Scheme>,
        /// Ranges that the client's address lies in, after `trusted_proxies`.
        remote: List<String>,
        /// Must not hold.
        not: Box<MatchRaw>,
    }
    later = [];
}

section! {
    /// Pass the request on to an upstream: its name, an address, or an `http://` URL.
    pub struct ProxyRaw {
        /// Name of an upstream, `host:port`, or `http://host:port/base`.
        upstream: String,
        /// Instead of one: upstreams, each with its share of the requests, as in `[upstreams.NAME]`.
        split: Map<u64>,
        /// Put before the path of the request.
        path: String,
        /// `preserve` (as the client sent it), `upstream` (the target's), or a text.
        host_header: String = "preserve",
        /// For one try; overrides the upstream's `timeouts.response`.
        timeout: Span,
        /// Let clients upgrade to websocket; `false`: they get the answer to an ordinary request.
        websocket: bool = true,
        /// Which failed tries are repeated on another target.
        retries: RetriesRaw = {},
        /// Request bodies of a known length up to this are read whole before they are sent, so that they can be sent again.
        buffer: Size = "0B",
        /// What happens to a websocket when a swap changed or removed its own definition; left out: as the server says.
        on_change: OnChange,
    }
    short = upstream;
    one_of = ["upstream", "split"];
    later = [&["mirror"]];
}

section! {
    /// Answer from here, with a text or a file.
    pub struct RespondRaw {
        /// 200 to 599.
        status: u64 = 200,
        /// The body, in which `{variables}` are replaced; `{{` is a brace.
        body: String,
        /// A file that is the body; read when the configuration is loaded.
        file: String,
        /// Header fields, in whose values `{variables}` are replaced.
        headers: Map<String>,
    }
    short = body;
    one_of = ["body", "file"];
    later = [];
}

section! {
    /// Send the client elsewhere.
    pub struct RedirectRaw {
        /// Where to, in which `{variables}` are replaced: `https://{host}{uri}`.
        to: String,
        /// 301, 302, 303, 307 or 308.
        status: u64 = 308,
    }
    short = to;
    later = [];
}

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    H1,
    H2,
}

words!(Protocol { "h1" => Protocol::H1, "h2" => Protocol::H2 } later ["h3"]);
words!(Scheme { "http" => Scheme::Http, "https" => Scheme::Https });
