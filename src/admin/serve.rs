//! The admin listener: follows the binding that the supervisor publishes, accepts from it, and owns every connection.
//! A new address is served before the old one's last answer is out; a changed token or name needs nothing here, since
//! the guards read the binding at each request. TLS is begun with what the binding presents when a connection is
//! accepted; where it comes, goes or asks for other certificates, the connections from before finish what they are at.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::connection::{Accepted, Wire, connection};
use super::control::Control;
use super::guard::Peer;
use super::seats::{Seat, Seats};
use super::secure::{self, Opening};
use super::{App, Context, monitor};
use crate::supervisor::{AdminBinding, AdminListener, Handle};

/// Open connections. Beyond, an idle one makes room; when none is idle, more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// How long the last answers may take once the process has ended its work.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// First and longest pause after a failed accept.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Serves the admin API for the life of the process. Returns once `context.stop` is cancelled (or the supervisor's
/// binding watch has closed) and the answers in flight are out, or their time is over.
pub async fn serve(handle: Handle, context: Context) {
    run(handle, context).await;
}

pub(crate) async fn run<C: Control>(control: C, context: Context) {
    let app = App::new(control, context);
    let api = Face {
        router: super::router(app.clone()),
        listener: |binding| Some(&binding.listener),
        opening: Opening::of,
        connections: CONNECTIONS,
    };
    tokio::join!(follow(&app, api), follow(&app, monitor::face(&app)));
    app.0.ended.cancel();
    app.0.observers.close();
    app.0.observers.wait().await;
}

/// What one address serves.
pub(super) struct Face {
    pub(super) router: Router,
    /// Which of the addresses it is.
    pub(super) listener: fn(&AdminBinding) -> Option<&Arc<AdminListener>>,
    /// What its connections begin with; `None`: they cannot.
    pub(super) opening: fn(&AdminBinding) -> Option<Opening>,
    /// Open connections.
    pub(super) connections: usize,
}

/// Serves one address for the life of the process, wherever swaps move it.
async fn follow<C: Control>(app: &App<C>, face: Face) {
    let stop = app.0.context.stop.clone();
    let router = face.router;
    let mut binding = app.0.binding.clone();
    let seats = Seats::new(face.connections);
    let mut connections = JoinSet::new();
    let mut open: Option<Open> = None;
    loop {
        let bound = binding.borrow_and_update().clone();
        let wanted = bound
            .as_ref()
            .and_then(|binding| (face.listener)(binding).cloned());
        if !same(open.as_ref().map(|open| &open.origin), wanted.as_ref()) {
            // Dropping the old one tells its connections to finish what they are at.
            open = wanted.and_then(|listener| match Open::new(listener) {
                Ok(open) => Some(open),
                Err(error) => {
                    tracing::error!(%error, "the admin address cannot be served");
                    None
                }
            });
        }
        if let (Some(open), Some(bound)) = (&mut open, &bound) {
            open.change(bound);
        }
        tokio::select! {
            // What has changed comes before who is accepted: a connection belongs to the binding that it comes after.
            biased;
            () = stop.cancelled() => break,
            changed = binding.changed() => if changed.is_err() { break },
            Some(ended) = connections.join_next() => note(app, ended),
            (stream, peer, seat) = accept(open.as_mut(), &seats) => {
                let leave = open.as_ref().map(|open| open.leave.child_token()).unwrap_or_default();
                if let Some(opening) = bound.as_deref().and_then(face.opening) {
                    let accepted = Accepted { wire: stream, opening, peer };
                    connections.spawn(connection(accepted, router.clone(), leave, seat));
                }
            }
        }
    }
    drop(open);
    seats.end();
    let last = async {
        while let Some(ended) = connections.join_next().await {
            note(app, ended);
        }
    };
    if tokio::time::timeout(LAST_ANSWERS, last).await.is_err() {
        tracing::warn!("admin connections were closed with answers unread");
        connections.shutdown().await;
    }
}

fn same(a: Option<&Arc<AdminListener>>, b: Option<&Arc<AdminListener>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn note<C: Control>(app: &App<C>, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        app.0.context.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%error, "a panic in an admin connection");
    }
}

/// A listener that is being served.
struct Open {
    origin: Arc<AdminListener>,
    socket: Socket,
    /// What its connections were opened under.
    under: Option<Arc<AdminBinding>>,
    leave: CancellationToken,
    pause: Duration,
}

enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Open {
    /// Registers a duplicate of the socket with this runtime; the supervisor keeps the original.
    fn new(origin: Arc<AdminListener>) -> io::Result<Open> {
        let socket = match &*origin {
            AdminListener::Tcp(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                Socket::Tcp(TcpListener::from_std(listener)?)
            }
            #[cfg(unix)]
            AdminListener::Unix(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                Socket::Unix(UnixListener::from_std(listener)?)
            }
        };
        Ok(Open {
            origin,
            socket,
            under: None,
            leave: CancellationToken::new(),
            pause: BACK_OFF.0,
        })
    }
}

impl Open {
    /// Tells the connections from before to finish, if they may not go on under `new`.
    fn change(&mut self, new: &Arc<AdminBinding>) {
        let old = self.under.replace(new.clone());
        if old.is_some_and(|old| !secure::may_go_on(&old.spec, &new.spec)) {
            std::mem::take(&mut self.leave).cancel();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.leave.cancel();
    }
}

/// The next connection, with its seat. Never ends without a listener. Cancel-safe: nothing is accepted before it is
/// returned.
async fn accept(open: Option<&mut Open>, seats: &Arc<Seats>) -> (Wire, Peer, Arc<Seat>) {
    let Some(open) = open else {
        return std::future::pending().await;
    };
    seats.room().await;
    loop {
        let accepted: io::Result<(Wire, Peer)> = match &open.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                // Answers are small and streamed line by line; without this each line could wait for an ACK.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                (Box::pin(stream) as Wire, Peer::Tcp(peer))
            }),
            #[cfg(unix)]
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                let user = stream.peer_cred().ok().map(|peer| peer.uid());
                (Box::pin(stream) as Wire, Peer::Unix(user))
            }),
        };
        match accepted {
            Ok((stream, peer)) => {
                open.pause = BACK_OFF.0;
                return (stream, peer, seats.take());
            }
            // Of one connection, not of the listener.
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: the connection stays queued, so trying at once would spin.
                tracing::warn!(%error, pause_ms = open.pause.as_millis() as u64, "the admin address cannot accept");
                let pause = open.pause;
                open.pause = (pause * 2).min(BACK_OFF.1);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
