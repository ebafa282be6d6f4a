//! One of an agent's sessions, over and over: connect, serve, and connect again. While a session is good it goes only when
//! another has taken its place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ::http::{Response, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::connect::{Carrier, Failed, connect};
use super::{By, Control, Running, Settings, Shared, State, Terms, Trouble};
use crate::tunnel::carrier::{self, Ear, Mouth, RoundTrip};
use crate::tunnel::local;
use crate::tunnel::wire::{self, FromAgent, FromServer};

/// How long the flows of a session may go on when its agent has less sessions now.
const LAST_FLOWS: Duration = Duration::from_secs(30);
/// Sessions that end with their flows, of one slot; above it the oldest is cut.
const MAX_RETIRING: usize = 8;

/// A session, and the ways to end it.
struct Session {
    terms: Terms,
    since: Instant,
    running: Arc<Running>,
    /// No new flows; it ends with those that it has.
    drain: CancellationToken,
    /// The server wants another in its place.
    unwanted: CancellationToken,
    /// It is over.
    ended: CancellationToken,
}

/// Keeps one session alive until it is told to end.
pub(super) async fn run(shared: Arc<Shared>, control: Arc<Control>, state: Arc<Mutex<State>>) {
    let mut sessions: JoinSet<String> = JoinSet::new();
    // The last session is told to drain when what kept it is dropped.
    let keeping = keep(&shared, &control, &state, &mut sessions);
    control.ends.run_until_cancelled(keeping).await;
    let all = async { while sessions.join_next().await.is_some() {} };
    let awaited = control.awaited.load(Ordering::Acquire);
    // Those that are left are cut when the set is dropped.
    tokio::select! {
        () = all => {}
        () = control.cut.cancelled() => {}
        () = tokio::time::sleep(LAST_FLOWS), if !awaited => {}
    }
}

/// Cancels when dropped: whoever keeps a session lets it drain by forgetting it.
struct Kept(Session, tokio::task::AbortHandle);

impl Drop for Kept {
    fn drop(&mut self) {
        // Its flows may go on for long.
        self.0.running.by.set(None);
        self.0.drain.cancel();
    }
}

async fn keep(
    shared: &Arc<Shared>,
    control: &Arc<Control>,
    state: &Mutex<State>,
    sessions: &mut JoinSet<String>,
) {
    let mut changes = shared.settings.subscribe();
    let mut backoff = Backoff::default();
    let mut said = String::new();
    let mut current: Option<Kept> = None;
    let mut retiring = VecDeque::new();
    loop {
        // A good one is replaced in turn with those of the other slots.
        let good = current.as_ref().map(|kept| kept.0.ended.clone());
        let turn = match &good {
            // Nor does one that has died meanwhile wait for another that cannot be had.
            Some(ended) => {
                let turn = ended.run_until_cancelled(shared.rolling.acquire());
                turn.await.and_then(Result::ok)
            }
            None => None,
        };
        let (settings, carrier, running) =
            another(shared, state, good, &mut backoff, &mut said, &mut changes).await;
        *state.lock() = State::Connected(running.clone());
        said.clear();
        let name = settings.spec.name.clone();
        tracing::info!(agent = %name, server = %settings.spec.server, session = running.session, "connected");
        let made = Session {
            terms: settings.terms(),
            since: Instant::now(),
            running: running.clone(),
            drain: CancellationToken::new(),
            unwanted: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        drop(settings);
        let ended = made.ended.clone().drop_guard();
        let serving = serve(
            carrier,
            (running, control.clone()),
            shared.clone(),
            made.drain.clone(),
            made.unwanted.clone(),
        );
        let task = async move {
            let _ended = ended;
            serving.await
        };
        let handle = sessions.spawn(task);
        // From here on the one before takes no new flows.
        if let Some(Kept(_, before)) = current.replace(Kept(made, handle)).as_ref() {
            retiring.push_back(before.clone());
        }
        drop(turn);
        retiring.retain(|task| !task.is_finished());
        if retiring.len() > MAX_RETIRING
            && let Some(oldest) = retiring.pop_front()
        {
            oldest.abort();
        }
        let Some(Kept(now, handle)) = &current else {
            continue;
        };
        let id = handle.id();
        let gone = loop {
            tokio::select! {
                ended = sessions.join_next_with_id() => match ended {
                    Some(Ok((task, why))) if task == id => break Some(why),
                    Some(Err(error)) if error.id() == id => break Some(format!("its task ended: {error}")),
                    // An older one, or none at all.
                    Some(_) => {}
                    None => break Some("there is none".to_owned()),
                },
                () = now.unwanted.cancelled() => break None,
                changed = changes.changed() => {
                    let next = changes.borrow_and_update().clone();
                    if changed.is_err() {
                        return;
                    }
                    match next {
                        Some(next) if next.terms() == now.terms => now.running.by.set(Some(next)),
                        Some(_) => break None,
                        None => {}
                    }
                }
            }
        };
        if let Some(why) = gone {
            let lived = now.since.elapsed();
            tracing::warn!(agent = %name, why, "a session is lost");
            backoff.ended(lived);
            current = None;
            let wait = backoff.next(Trouble::Unreachable);
            *state.lock() = State::Waiting {
                why,
                kind: Trouble::Unreachable,
                since: Timestamp::now(),
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// Makes a session, however long it takes. `good`: there is one meanwhile, until it is cancelled.
async fn another(
    shared: &Shared,
    state: &Mutex<State>,
    mut good: Option<CancellationToken>,
    backoff: &mut Backoff,
    said: &mut String,
    changes: &mut watch::Receiver<Option<Arc<Settings>>>,
) -> (Arc<Settings>, Carrier, Arc<Running>) {
    loop {
        let settings = changes.borrow_and_update().clone();
        let Some(settings) = settings else {
            // The sender lives as long as the agent.
            let _ = changes.changed().await;
            continue;
        };
        if good.is_none() && !matches!(*state.lock(), State::Waiting { .. }) {
            *state.lock() = State::Connecting;
        }
        let Failed { trouble, why } = match connect(&settings, shared).await {
            Ok((carrier, session, peer)) => {
                let running = Arc::new(Running {
                    session,
                    server: settings.spec.server.to_string(),
                    peer,
                    since: Timestamp::now(),
                    round_trip: RoundTrip::default(),
                    flows: AtomicUsize::new(0),
                    dropped: AtomicU64::new(0),
                    by: By::new(settings.clone()),
                });
                return (settings, carrier, running);
            }
            Err(failed) => failed,
        };
        let wait = backoff.next(trouble);
        let name = &settings.spec.name;
        if *said == why {
            tracing::debug!(agent = %name, kind = trouble.word(), why, ?wait, "not connected");
        } else {
            tracing::warn!(agent = %name, kind = trouble.word(), why, ?wait, "not connected");
        }
        *said = why.clone();
        let pause = tokio::time::sleep(wait);
        tokio::pin!(pause);
        loop {
            let Some(ended) = &good else {
                *state.lock() = State::Waiting {
                    why,
                    kind: trouble,
                    since: Timestamp::now(),
                };
                tokio::select! {
                    () = pause => {}
                    // Somebody has done something about it.
                    _ = changes.changed() => {}
                }
                break;
            };
            tokio::select! {
                () = &mut pause => break,
                _ = changes.changed() => break,
                () = ended.cancelled() => good = None,
            }
        }
    }
}

/// A flow's place in the count.
struct Counted(Arc<Running>, Arc<Control>);

impl Counted {
    fn new(running: &Arc<Running>, control: &Arc<Control>) -> Counted {
        running.flows.fetch_add(1, Ordering::AcqRel);
        control.flows.fetch_add(1, Ordering::AcqRel);
        Counted(running.clone(), control.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::AcqRel);
        self.1.flows.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves a session to its end. Returns why it ended.
async fn serve(
    mut carrier: Carrier,
    (running, control): (Arc<Running>, Arc<Control>),
    shared: Arc<Shared>,
    drain: CancellationToken,
    unwanted: CancellationToken,
) -> String {
    let ping = carrier.ping_pong();
    let dead = async {
        match ping {
            Some(ping) => carrier::until_dead(ping, &running.round_trip).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(dead);
    // All that it started ends with it.
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut talks = false;
    loop {
        tokio::select! {
            accepted = carrier.accept() => match accepted {
                None => return "the server has closed the connection".to_owned(),
                Some(Err(error)) => return format!("the connection broke: {error}"),
                Some(Ok((request, mut respond))) => match request.uri().path() {
                    wire::CONTROL if !talks => {
                        talks = true;
                        let Ok(send) = respond.send_response(Response::new(()), false) else {
                            continue;
                        };
                        let (ear, mouth) = (Ear::new(request.into_body()), Mouth::new(send));
                        let (shared, drain, unwanted) = (shared.clone(), drain.clone(), unwanted.clone());
                        tasks.spawn(async move {
                            if let Err(error) = talk(ear, mouth, &shared, &drain, &unwanted).await {
                                tracing::debug!(%error, "the control stream has ended");
                            }
                        });
                    }
                    wire::FLOW => {
                        let settings = shared.settings.borrow().clone();
                        let counted = Counted::new(&running, &control);
                        let shared = shared.clone();
                        tasks.spawn(async move {
                            // All of it, until the flow is over.
                            let counted = counted;
                            let Some(settings) = settings else { return };
                            let serving = local::Serving {
                                settings,
                                shared,
                                running: &counted.0,
                            };
                            local::serve(request, respond, serving).await;
                        });
                    }
                    _ => {
                        let mut answer = Response::new(());
                        *answer.status_mut() = StatusCode::NOT_FOUND;
                        // It fails where the request has been given up.
                        let _ = respond.send_response(answer, true);
                    }
                },
            },
            why = &mut dead => return why,
            _ = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

/// Tells the server of changes, and hears what it makes of them.
async fn talk(
    mut ear: Ear,
    mut mouth: Mouth,
    shared: &Shared,
    drain: &CancellationToken,
    unwanted: &CancellationToken,
) -> std::io::Result<()> {
    let mut changes = shared.settings.subscribe();
    // What the greeting said may be old by now.
    changes.mark_changed();
    let mut told = None;
    loop {
        tokio::select! {
            said = ear.next::<FromServer>() => match said? {
                Some(FromServer::Judged { refused }) => {
                    let before = std::mem::replace(&mut *shared.refused.lock(), refused.clone());
                    if before != refused {
                        for one in &refused {
                            tracing::warn!(service = one.service, why = one.why, "the server refuses a service");
                        }
                    }
                }
                Some(FromServer::Drain) => unwanted.cancel(),
                Some(FromServer::Unknown) => {}
                None => return Ok(()),
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    // The agent is gone, and says so by its token.
                    drain.cancelled().await;
                    continue;
                }
                let settings = changes.borrow_and_update().clone();
                let services = settings.map(|settings| shared.services(&settings));
                if let Some(services) = services.filter(|services| told.as_ref() != Some(services)) {
                    mouth.say(&FromAgent::Services { services: services.clone() }).await?;
                    told = Some(services);
                }
            }
            () = drain.cancelled() => {
                mouth.say(&FromAgent::Drain).await?;
                // It is the server's to end it, when its last flow has.
                while ear.next::<FromServer>().await?.is_some() {}
                return Ok(());
            }
        }
    }
}
