//! Connections that an agent makes for one flow alone. Whoever wants one hands out a ticket over the session; the agent
//! comes with it on a connection of its own, where it proves who it is as for a session. A ticket is good once, for its
//! agent, while somebody waits.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::auth;
use crate::net::Sever;
use crate::upstream::link::Duplex;

/// Those that are out.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    out: Mutex<HashMap<String, Awaited>>,
}

/// Somebody who waits for a connection.
pub(super) struct Awaited {
    agent: Arc<str>,
    give: oneshot::Sender<Own>,
    cut: CancellationToken,
}

/// What can be closed in the middle of what it carries.
pub(super) trait Socket: Duplex + Sever {}

impl<S: Duplex + Sever> Socket for S {}

/// A connection of one flow's own.
pub(super) struct Own {
    pub(super) io: Box<dyn Socket>,
    /// Tells whoever accepted it that the flow is over.
    pub(super) _over: DropGuard,
}

/// A ticket that is out. It is good no longer when this is dropped.
pub(super) struct Waiting {
    tickets: Arc<Tickets>,
    pub(super) ticket: String,
    pub(super) own: oneshot::Receiver<Own>,
}

impl Tickets {
    /// Hands one out. `cut`: cancelled when the connection is to end before its flow does.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn issue(
        self: &Arc<Self>,
        agent: &Arc<str>,
        cut: CancellationToken,
    ) -> io::Result<Waiting> {
        let ticket = auth::hex(&auth::random::<32>()?);
        let (give, own) = oneshot::channel();
        let awaited = Awaited {
            agent: agent.clone(),
            give,
            cut,
        };
        self.out.lock().insert(ticket.clone(), awaited);
        Ok(Waiting {
            tickets: self.clone(),
            ticket,
            own,
        })
    }

    /// Takes one back in, of its agent. `None`: nobody waits for it.
    pub(super) fn redeem(&self, ticket: &str, agent: &str) -> Option<Awaited> {
        let mut out = self.out.lock();
        // One that another agent shows stays out: it is not that one's to spoil.
        let is_theirs = |awaited: &Awaited| *awaited.agent == *agent;
        out.get(ticket).filter(|awaited| is_theirs(awaited))?;
        out.remove(ticket)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.tickets.out.lock().remove(&self.ticket);
    }
}

impl Awaited {
    /// Hands the connection over, and waits until its flow is over, or `ends` says so. Returns why.
    pub(super) async fn hand_over(
        self,
        io: impl Socket + 'static,
        ends: &CancellationToken,
    ) -> &'static str {
        let over = CancellationToken::new();
        let own = Own {
            io: Box::new(io),
            _over: over.clone().drop_guard(),
        };
        if self.give.send(own).is_err() {
            return "nobody waits for it any more";
        }
        tokio::select! {
            () = over.cancelled() => "its flow is over",
            () = ends.cancelled() => {
                self.cut.cancel();
                "the address is gone"
            }
        }
    }
}

impl fmt::Debug for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awaited")
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_for_its_agent_while_somebody_waits() {
        let tickets = Arc::new(Tickets::default());
        let issue = || {
            tickets
                .issue(&"home".into(), CancellationToken::new())
                .unwrap()
        };
        let (one, two) = (issue(), issue());
        assert_ne!(one.ticket, two.ticket);
        assert!(tickets.redeem("none", "home").is_none());
        assert!(tickets.redeem(&one.ticket, "other").is_none());
        assert!(tickets.redeem(&one.ticket, "home").is_some());
        assert!(tickets.redeem(&one.ticket, "home").is_none());
        let ticket = two.ticket.clone();
        drop(two);
        assert!(tickets.redeem(&ticket, "home").is_none());
    }

    #[tokio::test]
    async fn a_connection_is_held_until_its_flow_is_over() {
        let tickets = Arc::new(Tickets::default());
        let mut waiting = tickets
            .issue(&"home".into(), CancellationToken::new())
            .unwrap();
        let awaited = tickets.redeem(&waiting.ticket, "home").unwrap();
        let (io, _other) = tokio::io::duplex(1);
        let ends = CancellationToken::new();
        let held = tokio::spawn(async move { awaited.hand_over(io, &ends).await });
        let own = (&mut waiting.own).await.unwrap();
        drop(own);
        assert_eq!(held.await.unwrap(), "its flow is over");
    }
}
