//! What `/sessions` shows: the long flows of all workers, read from their tables at the moment of asking, without a word to
//! the actor; and telling one of them to end. It is no swap: what a session lives by stays as it is, and its client may
//! come back at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::handle::Handle;
use super::view::View;
use crate::session::{self, Info, Kind, Name, Sessions, Totals, Wanted};

/// `GET /sessions`: one page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionList {
    /// In the order of their ids, which is about that of their beginnings.
    pub sessions: Vec<LiveSession>,
    /// What `after` is for the next page. Absent: there is no more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<u64>,
}

/// A long flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LiveSession {
    /// Unique as long as the process lives.
    pub id: u64,
    /// `websocket`, `connect`, `socks5`, `socks4`, `socks_udp`, `tcp`, `udp`, `bridge` or `tunnel`.
    pub kind: String,
    /// Address, and port if it is known (absent: it came over a unix socket).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub client: Option<String>,
    /// Whom authentication found.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    /// The name of its table: `db` of `[tcp.db]`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream: Option<String>,
    /// The target in use, or where the client of a forward proxy wanted to go.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub destination: Option<String>,
    /// The generation it lives in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation: Option<u64>,
    /// Seconds since it began.
    pub age_s: u64,
    /// Seconds since something passed.
    pub idle_s: u64,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// It was told to end.
    pub closing: bool,
}

/// The long flows of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionTotals {
    /// Now.
    pub open: u64,
    /// Since start, the open ones included.
    pub opened: u64,
    /// Bytes from clients since start.
    pub received: u64,
    /// Bytes to clients since start.
    pub sent: u64,
}

impl From<Totals> for SessionTotals {
    fn from(totals: Totals) -> SessionTotals {
        SessionTotals {
            open: totals.open,
            opened: totals.opened,
            received: totals.received,
            sent: totals.sent,
        }
    }
}

impl From<Info> for LiveSession {
    fn from(info: Info) -> LiveSession {
        let text = |name: Option<Arc<str>>| name.map(|name| name.to_string());
        LiveSession {
            id: info.id,
            kind: info.kind.name().to_owned(),
            client: info.client.map(|client| match client.port() {
                0 => client.ip().to_string(),
                _ => client.to_string(),
            }),
            user: text(info.user),
            listener: text(info.listener),
            route: text(info.route),
            upstream: text(info.upstream),
            destination: info.destination.map(String::from),
            generation: info.generation,
            age_s: info.age.as_secs(),
            idle_s: info.idle.as_secs(),
            received: info.received,
            sent: info.sent,
            closing: info.closing,
        }
    }
}

impl View {
    fn tables(&self) -> impl Iterator<Item = &Arc<Sessions>> {
        let workers = self.crew.iter().flat_map(|crew| &crew.workers);
        workers.map(|worker| &worker.context.sessions)
    }

    /// Sums of all workers, of the kinds that there have been.
    pub(super) fn session_totals(&self) -> Vec<(Kind, Totals)> {
        let all = session::totals(self.tables()).into_iter();
        all.filter(|(_, totals)| totals.opened > 0).collect()
    }

    /// The same by kind and listener.
    pub(super) fn session_names(&self) -> Vec<(Name, Totals)> {
        session::names(self.tables()).into_iter().collect()
    }

    pub(super) fn session_status(&self) -> BTreeMap<String, SessionTotals> {
        let all = self.session_totals().into_iter();
        all.map(|(kind, totals)| (kind.name().to_owned(), totals.into()))
            .collect()
    }
}

impl Handle {
    /// Long flows with ids above `after`, at most `limit`.
    pub fn sessions(&self, wanted: &Wanted, after: u64, limit: usize) -> SessionList {
        let view = self.inner.view.load_full();
        let (found, next) = session::page(view.tables(), wanted, after, limit);
        SessionList {
            sessions: found.into_iter().map(LiveSession::from).collect(),
            next,
        }
    }

    /// Tells a long flow to end, and returns what it was then. `None`: there is none of this id.
    pub fn close_session(&self, id: u64) -> Option<LiveSession> {
        let view = self.inner.view.load_full();
        session::close(view.tables(), id).map(LiveSession::from)
    }
}
