//! Forward proxies: who may use them, where they may go, and how that is reached. It knows no protocol; SOCKS is in
//! [`socks`], HTTP in `http`.
//!
//! It promises: nothing is looked up or dialled for somebody who has not shown who he is, where that is asked; every
//! destination is judged by the address that was found for it, in every notation; and that very address is dialled.

pub mod associate;
mod dial;
mod limits;
mod refused;
mod rules;
pub mod socks;
pub mod target;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;

use crate::config::forward::{ForwardSpec, RuleSpec, Way};
use crate::config::scalar::TargetAddr;
use crate::http::record::AccessLog;
use crate::metrics::WorkerContext;
#[cfg(unix)]
use crate::net::Ceiling;
use crate::password::{self, Passwords};
use crate::tls;
use crate::upstream;
use crate::upstream::Upstream;
use crate::upstream::error::{Error, Kind};
use crate::upstream::link::Link;
use crate::upstream::via::Via;
use limits::Users;
use rules::Rules;

pub use crate::password::Denied;
pub use dial::Lookups;
pub use limits::Place;
pub use refused::Refused;
pub use rules::Verdict;
pub use target::Destination;

/// How long the answer to a wrong password takes at least: who tries many of them has to wait.
const WRONG_PASSWORD: Duration = Duration::from_millis(500);

/// What forward proxies keep over generations. One per process.
#[derive(Debug)]
pub struct Shared {
    users: crate::registry::Registry<Arc<str>, Users>,
    lookups: Arc<Lookups>,
    #[cfg(unix)]
    ceiling: Ceiling,
}

impl Shared {
    pub fn new(upstreams: &upstream::Shared) -> Shared {
        Shared {
            users: crate::registry::Registry::default(),
            lookups: Arc::new(Lookups::of(upstreams)),
            #[cfg(unix)]
            ceiling: Ceiling::of_process(),
        }
    }
}

/// What one generation does for one `[forward.NAME]`. Shared by its addresses and the workers.
#[derive(Debug)]
pub struct Forward {
    pub name: Arc<str>,
    pub spec: ForwardSpec,
    /// `None`: cleartext.
    pub tls: Option<Arc<tls::Server>>,
    /// Where sessions leave a line.
    pub log: Option<Arc<AccessLog>>,
    /// By what its sessions live: see `generation::Flight::define`.
    definition: u64,
    passwords: Option<Passwords>,
    rules: Rules,
    users: Arc<Users>,
    lookups: Arc<Lookups>,
    #[cfg(unix)]
    ceiling: Ceiling,
    /// For what no rule sends another way; `None`: direct.
    via: Option<Arc<Via>>,
    /// By rule; `None`: it says no way through proxies.
    ways: Box<[Option<Arc<Via>>]>,
}

/// Somebody wants to go somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// As [`Forward::authenticate`] has it.
    pub user: Option<&'a Arc<str>>,
    /// `None`: it came by a unix socket.
    pub client: Option<IpAddr>,
    pub destination: &'a Destination,
}

/// Where somebody has got.
#[derive(Debug)]
pub struct Reached {
    pub link: Link,
    /// Of ours, towards it.
    pub local: Option<SocketAddr>,
    /// The address that was judged and dialled, or the name that a proxy on the way was told.
    pub to: TargetAddr,
    /// Of the user's sessions: to be held as long as this one lasts.
    pub place: Option<Place>,
}

impl Forward {
    /// `files` has the users' file, whose contents were judged when it was read; `upstreams` the proxies on the way.
    pub fn build(
        spec: &ForwardSpec,
        files: &HashMap<PathBuf, Bytes>,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        tls: Option<tls::Server>,
        passwords: &password::Shared,
        shared: &Shared,
        log: Option<Arc<AccessLog>>,
    ) -> Forward {
        let users = spec.users.as_ref().map(|users| {
            let path = users.htpasswd.as_ref().map(|(path, _)| path);
            let file = path.and_then(|path| files.get(path)).map(|text| &text[..]);
            Passwords::new(users.all(file), passwords)
        });
        let ways = spec.rules.iter().map(|rule| match &rule.way {
            Way::Via(via) => Some(Via::build(via, upstreams)),
            Way::Usual | Way::Direct => None,
        });
        Forward {
            name: spec.name.clone(),
            tls: tls.map(Arc::new),
            log,
            definition: definition(&spec.name),
            passwords: users,
            rules: Rules::new(spec),
            users: shared.users.lease(&spec.name, Users::default),
            lookups: shared.lookups.clone(),
            #[cfg(unix)]
            ceiling: shared.ceiling,
            via: spec.via.as_ref().map(|via| Via::build(via, upstreams)),
            ways: ways.collect(),
            spec: spec.clone(),
        }
    }

    /// By what a session lives that goes through here (see `generation::Flight::define`).
    pub fn definition(&self) -> u64 {
        self.definition
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        self.definition == definition
    }

    /// Whether a client may connect at all. Those of a unix socket have the rights of its file.
    pub fn may_connect(&self, client: Option<IpAddr>) -> bool {
        match (&self.spec.clients, client) {
            (Some(nets), Some(ip)) => nets.iter().any(|net| net.contains(&ip.to_canonical())),
            _ => true,
        }
    }

    /// Whether clients must show who they are.
    pub fn asks_for_users(&self) -> bool {
        self.passwords.is_some()
    }

    /// Whether somebody may go on who has shown to be `user`: one that a swap has brought since may ask for users, or have
    /// others.
    pub fn knows(&self, user: Option<&Arc<str>>) -> bool {
        match &self.passwords {
            Some(passwords) => user.is_some_and(|user| passwords.has(user)),
            None => true,
        }
    }

    /// Who it is; takes its time. Not for a proxy without users.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn authenticate(&self, name: String, password: Vec<u8>) -> Result<Arc<str>, Denied> {
        let Some(passwords) = &self.passwords else {
            return Err(Denied::Wrong);
        };
        let begun = Instant::now();
        let known = passwords.verify(name, password).await;
        if known == Err(Denied::Wrong) {
            tokio::time::sleep_until(begun + WRONG_PASSWORD).await;
        }
        known
    }

    /// Judges where somebody wants to go, and goes there, within `timeouts.connect`. `passed`: `Via` of the request for it, us
    /// included, which proxies on the way are told; `None`: it came by SOCKS.
    ///
    /// # Errors
    /// That it is not allowed, not there, or that the user has all the sessions that he may have.
    pub async fn reach(
        &self,
        worker: &Arc<WorkerContext>,
        ask: Ask<'_>,
        passed: Option<&HeaderValue>,
    ) -> Result<Reached, Refused> {
        let place = self.place(ask.user)?;
        let deadline = Instant::now() + self.spec.timeouts.connect;
        if let Destination::Name(name, port) = ask.destination
            && let Some((via, verdict)) = self.way_of_name(ask, name, *port)
        {
            if verdict != Verdict::Allowed {
                return Err(Refused::denied(ask.destination, None));
            }
            self.room()?;
            let to = TargetAddr::Name(Arc::from(&**name), *port);
            let link = via.connect(worker.index, &to, deadline, passed).await?;
            return Ok(Reached {
                link,
                local: None,
                to,
                place,
            });
        }
        let addresses = self.resolve(ask, deadline).await?;
        self.room()?;
        let first = addresses.first().copied();
        if let Some(first) = first
            && let Some(via) = self.way_to(ask, first)
        {
            let to = TargetAddr::Ip(first);
            let link = via.connect(worker.index, &to, deadline, passed).await?;
            return Ok(Reached {
                link,
                local: None,
                to,
                place,
            });
        }
        // Each by its own rule: one that has a way must not be raced against it.
        let straight = |address: &SocketAddr| self.way_to(ask, *address).is_none();
        let addresses: Vec<SocketAddr> = addresses.into_iter().filter(straight).collect();
        let (link, address) = dial::any(&addresses, ask.destination, deadline).await?;
        Ok(Reached {
            local: link.local_addr().ok(),
            link: Link::of_tcp(link),
            to: TargetAddr::Ip(address),
            place,
        })
    }

    /// The way for what this rule takes; `None`: direct.
    fn way(&self, rule: Option<usize>) -> Option<&Arc<Via>> {
        match rule.and_then(|index| Some((index, &self.spec.rules.get(index)?.way))) {
            Some((_, Way::Direct)) => None,
            Some((index, Way::Via(_))) => self.ways.get(index)?.as_ref(),
            Some((_, Way::Usual)) | None => self.via.as_ref(),
        }
    }

    /// The way to what was asked for, for which `address` was found; `None`: direct.
    pub fn way_to(&self, ask: Ask<'_>, address: SocketAddr) -> Option<&Arc<Via>> {
        self.way(self.rules.first(&ask, ask.destination.name(), address))
    }

    /// The way for a name that is looked up at its end, and whether one may go there; `None`: it is looked up here.
    pub fn way_of_name(&self, ask: Ask<'_>, name: &str, port: u16) -> Option<(&Arc<Via>, Verdict)> {
        let via = self.way(self.rules.first_by_name(&ask, name, port))?;
        via.takes_names()
            .then(|| (via, self.rules.judge_by_name(&ask, name, port)))
    }

    /// The way that everything goes, if it all goes through the same proxies.
    pub fn only_way(&self) -> Option<&Arc<Via>> {
        let usual = |rule: &RuleSpec| matches!(rule.way, Way::Usual);
        self.via
            .as_ref()
            .filter(|_| self.spec.rules.iter().all(usual))
    }

    /// Whether there is a descriptor for another connection: the last ones are not for clients, and a client of HTTP/2 takes
    /// none by asking.
    ///
    /// # Errors
    /// That there is none.
    pub fn room(&self) -> Result<(), Refused> {
        #[cfg(unix)]
        if self.ceiling.is_reached() {
            let detail = "there is no descriptor for another connection";
            let error = Error::us(Kind::ConnectionLimitReached, detail);
            return Err(error.unsent().into());
        }
        Ok(())
    }

    /// One more session of a user.
    ///
    /// # Errors
    /// That he has all that he may have.
    pub fn place(&self, user: Option<&Arc<str>>) -> Result<Option<Place>, Refused> {
        let (Some(user), Some(most)) = (user, self.spec.limits.connections_per_user) else {
            return Ok(None);
        };
        let place = self.users.enter(user, most);
        place.map(Some).ok_or_else(|| {
            let detail = format!("the user `{user}` has {most} sessions");
            Error::us(Kind::ConnectionLimitReached, detail)
                .unsent()
                .into()
        })
    }

    /// Whether this client may send to an address.
    pub fn allows(&self, ask: Ask<'_>, address: SocketAddr) -> bool {
        self.rules.judge(&ask, ask.destination.name(), address) == Verdict::Allowed
    }

    /// The addresses of a destination to which this client may go, in the order in which they are to be tried; never empty.
    ///
    /// # Errors
    /// That there is none.
    pub async fn resolve(
        &self,
        ask: Ask<'_>,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Refused> {
        let name = ask.destination.name();
        let found = match ask.destination {
            Destination::Address(address) => vec![*address],
            Destination::Name(name, port) => {
                // What no address could change is not worth a look-up.
                let verdict = self.rules.judge_name(&ask, name, *port);
                if verdict == Some(Verdict::Denied) {
                    return Err(Refused::denied(ask.destination, None));
                }
                self.lookups.find(name, *port, deadline).await?
            }
        };
        let mut refused = None;
        let allowed: Vec<SocketAddr> = found
            .into_iter()
            .filter(|address| {
                let verdict = self.rules.judge(&ask, name, *address);
                if verdict != Verdict::Allowed {
                    refused.get_or_insert((*address, verdict));
                }
                verdict == Verdict::Allowed
            })
            .collect();
        match (allowed.is_empty(), refused) {
            (false, _) => Ok(allowed),
            (true, Some((address, verdict))) => Err(Refused::of(verdict, ask.destination, address)),
            (true, None) => {
                let detail = format!("{} has no address", ask.destination);
                Err(Error::upstream(Kind::DnsError, detail).unsent().into())
            }
        }
    }
}

/// The same for the same proxy: whoever may use it, and where they may go, is no part of it.
fn definition(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    ("forward", name, "direct").hash(&mut hasher);
    hasher.finish().max(1)
}
