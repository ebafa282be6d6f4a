//! `[forward.NAME]`: forward proxies, whose clients say themselves where they want to go.
mod check;
mod destinations;
mod users;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::decode::{Limit, List, Map, section, words};
use super::http::{CertificateRaw, ClientAuthRaw, TlsSpec, TlsVersion};
use super::runtime::OnChange;
use super::scalar::{ListenAddr, SecretRef, Span, Speed};
use super::via::{HopRaw, ViaSpec};

pub use check::{Around, Checked};
pub use destinations::{Pattern, Place};
pub use users::{PasswordSpec, UserSpec, UsersSpec};

section! {
    /// A forward proxy: where it listens, who may use it, and where its clients may go.
    pub struct ForwardRaw {
        /// Addresses: `IP:port`, `:port` (all addresses), `localhost:port` or `unix:/path`. Nothing else listens there. Beyond
        /// loopback `users`, `clients` or `tls.client_auth` is needed.
        listen: List<String>,
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// What is spoken: the first byte of a connection tells which.
        protocols: List<Protocol> = ["http", "socks5", "socks4"],
        /// Who may use it: passwords by name, as a secret or its hash (argon2 or bcrypt). SOCKS4 has no passwords: with
        /// users it lets nobody in.
        users: Map<SecretRef>,
        /// A file with a line `name:hash` for each user; read when the configuration is loaded. A name that `users` has counts
        /// there.
        htpasswd: String,
        /// TLS between clients and the proxy.
        tls: ForwardTlsRaw,
        /// Ranges of client addresses that may connect; left out: any.
        clients: List<String>,
        /// Asked before `destinations`; the first that matches decides.
        rules: List<RuleRaw> = [],
        /// Where clients may go.
        destinations: DestinationsRaw = {},
        /// How much is let through at once.
        limits: ForwardLimitsRaw = {},
        /// How SOCKS5 relays datagrams.
        udp: ForwardUdpRaw = {},
        /// How long the stages of a session may take.
        timeouts: ForwardTimeoutsRaw = {},
        /// What happens to a session when a swap removed its proxy or address; left out: as `[runtime]` says.
        on_change: OnChange,
        /// The proxies through which destinations are reached, the nearest first; left out, or `"direct"`: none. Names are looked up by the
        /// last one, but for `socks5`; what is known of such a destination is its name, and by that alone it is judged.
        /// Datagrams go that way too if all proxies on it speak SOCKS5, not over TLS; those of other ways are lost.
        via: List<HopRaw>,
    }
    later = [];
}

section! {
    /// TLS between clients and the proxy.
    pub struct ForwardTlsRaw {
        /// Certificates with their keys.
        certificates: List<CertificateRaw>,
        /// Names and addresses of a certificate that is made at start, for development: no client trusts it by itself.
        self_signed: List<String>,
        /// Ask clients for a certificate.
        client_auth: ClientAuthRaw,
        /// The oldest version of TLS it speaks.
        min_version: TlsVersion = "1.2",
    }
    later = [];
}

section! {
    /// Where clients may go. Loopback, link-local and unspecified addresses, those of the admin API, and port 25 are denied
    /// unless `allow` names them. Names are looked up first, and what is found is judged, and dialled.
    pub struct DestinationsRaw {
        /// What is let through of that which is denied by default: `10.0.0.0/8`, `127.0.0.1:8080`, `localhost`, `:25`. A range
        /// lifts what lies within the denied one, so `0.0.0.0/0` lifts nothing. Not a list of all that is allowed: that is a
        /// last rule `{ deny = true }`.
        allow: List<String> = [],
        /// What is denied besides: `10.0.0.0/8`, `host`, `*.host`, `:6881`, or a host or range with a port.
        deny: List<String> = [],
    }
    later = [];
}

section! {
    /// What is decided for some clients, users or destinations before `destinations` is asked.
    pub struct RuleRaw {
        /// Every given condition must hold; a list holds when any item does. Left out: always.
        matcher as "match": RuleMatchRaw,
        /// Let it through, whatever `destinations.deny` says. What is denied by default stays so unless `match.to` names it as
        /// `destinations.allow` would.
        allow: bool,
        /// Refuse it.
        deny: bool,
        /// Let it through as `allow` does, this way: proxies as in `via` of the whole, or `"direct"`.
        via: List<HopRaw>,
    }
    one_of = ["allow", "deny", "via"];
    later = [];
}

section! {
    /// Conditions of a rule.
    pub struct RuleMatchRaw {
        /// Names of users.
        user: List<String>,
        /// Ranges of client addresses.
        client: List<String>,
        /// Destinations, as in `destinations`.
        to: List<String>,
    }
    later = [];
}

section! {
    /// How much is let through at once.
    pub struct ForwardLimitsRaw {
        /// Connections of an address, the whole process together.
        connections: Limit<u64> = "unlimited",
        /// Sessions of one user, the whole process together.
        connections_per_user: Limit<u64> = "unlimited",
        /// Bytes of a session by time, in each direction.
        bandwidth: Limit<Speed> = "unlimited",
    }
    later = [];
}

section! {
    /// How SOCKS5 relays datagrams.
    pub struct ForwardUdpRaw {
        /// IP addresses at which clients reach this machine, at most one of each family, where they are not those that it
        /// sees itself: behind NAT, in a container. Left out: the address to which the client has connected.
        advertise: List<String>,
        /// Ports on which datagrams of clients are taken, such as `"40000-40999"`; left out: any free one.
        ports: String,
    }
    later = [];
}

section! {
    /// How long the stages of a session may take.
    pub struct ForwardTimeoutsRaw {
        /// From the connection to the end of the client's request, TLS and passwords with it.
        handshake: Span = "10s",
        /// Looking a name up and connecting.
        connect: Span = "10s",
        /// How long a session may be silent in both directions.
        idle: Limit<Span> = "5m",
    }
    later = [];
}

words!(Protocol {
    "http" => Protocol::Http,
    "socks5" => Protocol::Socks5,
    "socks4" => Protocol::Socks4,
} later []);

/// What clients may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// CONNECT, and requests in absolute form.
    Http,
    /// CONNECT and UDP ASSOCIATE, to IPv4, IPv6 and names.
    Socks5,
    /// With SOCKS4a.
    Socks4,
}

/// Checked `[forward.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardSpec {
    pub name: Arc<str>,
    pub listen: Vec<ListenAddr>,
    pub http: bool,
    pub socks5: bool,
    pub socks4: bool,
    /// `None`: anybody.
    pub users: Option<UsersSpec>,
    /// `None`: cleartext.
    pub tls: Option<TlsSpec>,
    pub min_version: TlsVersion,
    /// `None`: from anywhere.
    pub clients: Option<Vec<IpNet>>,
    /// In the document's order.
    pub rules: Vec<RuleSpec>,
    /// For what no rule sends another way; `None`: direct.
    pub via: Option<ViaSpec>,
    /// Lifts default denials.
    pub allow: Vec<Pattern>,
    pub deny: Vec<Pattern>,
    /// Addresses of the admin API and the monitor.
    pub own: Vec<SocketAddr>,
    pub limits: LimitsSpec,
    pub udp: UdpSpec,
    pub timeouts: TimeoutsSpec,
    pub on_change: OnChange,
}

/// Checked rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// Empty: any, or none at all.
    pub users: Vec<Arc<str>>,
    /// Empty: from anywhere.
    pub clients: Vec<IpNet>,
    /// Empty: to anywhere.
    pub to: Vec<Pattern>,
    pub decision: Decision,
    pub way: Way,
}

/// How a rule has a destination reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// As the proxy says.
    Usual,
    Direct,
    Via(ViaSpec),
}

/// What a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitsSpec {
    /// `None`: any number.
    pub connections: Option<usize>,
    /// `None`: any number.
    pub connections_per_user: Option<usize>,
    /// Bytes a second; `None`: no limit.
    pub bandwidth: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpSpec {
    /// At most one of each family.
    pub advertise: Vec<IpAddr>,
    /// `None`: any.
    pub ports: Option<RangeInclusive<u16>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutsSpec {
    pub handshake: Duration,
    pub connect: Duration,
    /// `None`: no limit.
    pub idle: Option<Duration>,
}

impl ForwardSpec {
    /// The ways through other proxies.
    pub fn ways(&self) -> impl Iterator<Item = &ViaSpec> {
        let rules = self.rules.iter().filter_map(|rule| match &rule.way {
            Way::Via(via) => Some(via),
            Way::Usual | Way::Direct => None,
        });
        self.via.iter().chain(rules)
    }

    /// Names of the upstreams whose targets are proxies on the way.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ways()
            .flat_map(|via| via.hops.iter().map(|hop| &hop.upstream))
    }

    /// The files that it names, but for certificates, each with the JSON Pointer of its path.
    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, &str)> {
        let users = self.users.as_ref();
        users
            .and_then(|users| users.htpasswd.as_ref())
            .into_iter()
            .map(|(path, pointer)| (path, pointer.as_str()))
    }
}
