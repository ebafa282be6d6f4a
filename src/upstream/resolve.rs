//! DNS names of targets. The addresses of a name ([`Names`]) are state that outlives generations; the task that looks
//! them up again and again ([`Lookup`]) belongs to the settings it follows (interval, timeout), so a reload that changes
//! them starts another task over the same addresses and the old one ends with its generation.
//!
//! Promises: the last good answer stays when a later lookup fails; at most one lookup per task is under way, however
//! slow the resolver is; a name that was never found is down and is tried again soon.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::error::{Error, Kind};

/// More addresses than this of one name are left out.
const ADDRESSES: usize = 32;
/// First wait after a failed lookup; doubles up to the interval.
const RETRY: Duration = Duration::from_secs(1);

/// How names are looked up: the system's resolver, or a stand-in.
pub type Resolver =
    dyn Fn(Arc<str>, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// The system's resolver (`getaddrinfo` on the runtime's blocking threads).
pub(super) fn system(host: Arc<str>, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    Box::pin(async move {
        Ok(tokio::net::lookup_host((&*host, port))
            .await?
            .take(ADDRESSES)
            .collect())
    })
}

const UNKNOWN: u8 = 0;
const TIMED_OUT: u8 = 1;
const FAILED: u8 = 2;
const FOUND: u8 = 3;

/// What is known of a name.
#[derive(Debug)]
pub(super) struct Names {
    host: Arc<str>,
    port: u16,
    /// `FOUND` is final: the last good answer is kept.
    state: AtomicU8,
    /// Read at a dial only.
    addresses: Mutex<Arc<[SocketAddr]>>,
    turn: AtomicUsize,
}

impl Names {
    pub(super) fn new(host: Arc<str>, port: u16) -> Names {
        Names {
            host,
            port,
            state: AtomicU8::new(UNKNOWN),
            addresses: Mutex::new(Arc::new([])),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.load(Ordering::Relaxed) == FOUND
    }

    /// The addresses, beginning with another one each time.
    pub(super) fn rotated(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.lock().to_vec();
        if !addresses.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses.rotate_left(turn);
        }
        addresses
    }

    /// Why it is down.
    pub(super) fn error(&self) -> Error {
        let (kind, why) = match self.state.load(Ordering::Relaxed) {
            FAILED => (Kind::DnsError, "was not found"),
            _ => (Kind::DnsTimeout, "was not answered in time"),
        };
        Error::upstream(kind, format!("the name {self} {why}")).unsent()
    }

    fn found(&self, mut addresses: Vec<SocketAddr>) {
        let mut seen = Vec::with_capacity(addresses.len().min(ADDRESSES));
        addresses.retain(|a| {
            seen.len() < ADDRESSES && !seen.contains(a) && {
                seen.push(*a);
                true
            }
        });
        *self.addresses.lock() = addresses.into();
        self.state.store(FOUND, Ordering::Release);
    }

    fn missed(&self, state: u8) {
        if !self.is_up() {
            self.state.store(state, Ordering::Release);
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Identity of a lookup: name and settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LookupKey {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// The task that keeps a name's addresses fresh; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) names: Arc<Names>,
    first: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Lookup {
    pub(super) fn start(
        key: &LookupKey,
        names: Arc<Names>,
        resolver: Arc<Resolver>,
        control: &tokio::runtime::Handle,
    ) -> Lookup {
        let (tell, first) = watch::channel(false);
        let task = control.spawn(keep_fresh(
            names.clone(),
            resolver,
            key.interval,
            key.timeout,
            tell,
        ));
        Lookup {
            names,
            first,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Until the first lookup has ended, well or not. Cancel-safe.
    pub(super) async fn first(&self) {
        // An error means that the task is gone, so there is nothing to wait for.
        let _ = self.first.clone().wait_for(|done| *done).await;
    }
}

async fn keep_fresh(
    names: Arc<Names>,
    resolver: Arc<Resolver>,
    interval: Duration,
    timeout: Duration,
    tell: watch::Sender<bool>,
) {
    let mut misses = 0_u32;
    // A lookup that took too long is not started anew but listened to further: a hung resolver costs one thread.
    let mut running = None;
    loop {
        let mut lookup = running
            .take()
            .unwrap_or_else(|| resolver(names.host.clone(), names.port));
        let missed = match tokio::time::timeout(timeout, &mut lookup).await {
            Ok(Ok(addresses)) if !addresses.is_empty() => {
                names.found(addresses);
                None
            }
            Ok(Ok(_)) => Some((FAILED, "it has no address".to_owned())),
            Ok(Err(error)) => Some((FAILED, error.to_string())),
            Err(_) => {
                running = Some(lookup);
                Some((TIMED_OUT, format!("no answer within {timeout:?}")))
            }
        };
        let wait = match missed {
            None => {
                if misses > 0 {
                    tracing::info!(name = %names, "name found again");
                }
                misses = 0;
                interval
            }
            Some((state, why)) => {
                names.missed(state);
                if misses == 0 {
                    let kept = names.is_up();
                    tracing::warn!(name = %names, why, kept, "name lookup failed");
                }
                misses = misses.saturating_add(1);
                retry(misses, interval)
            }
        };
        tell.send_replace(true);
        tokio::time::sleep(wait).await;
    }
}

/// The wait after the `misses`th failure in a row.
fn retry(misses: u32, interval: Duration) -> Duration {
    RETRY
        .saturating_mul(1 << misses.saturating_sub(1).min(20))
        .min(interval)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use tokio::sync::mpsc;

    use super::*;

    type Answer = io::Result<Vec<SocketAddr>>;

    /// A resolver that plays a script, then hangs; it tells of each call.
    fn scripted(answers: Vec<Answer>) -> (Arc<Resolver>, mpsc::UnboundedReceiver<()>) {
        let (tell, calls) = mpsc::unbounded_channel();
        let answers = Mutex::new(VecDeque::from(answers));
        let resolver: Arc<Resolver> = Arc::new(move |_, _| {
            tell.send(()).unwrap();
            let next = answers.lock().pop_front();
            Box::pin(async move {
                match next {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            })
        });
        (resolver, calls)
    }

    fn start(answers: Vec<Answer>) -> (Lookup, mpsc::UnboundedReceiver<()>) {
        let (resolver, calls) = scripted(answers);
        let key = LookupKey {
            host: "api.test".into(),
            port: 80,
            interval: Duration::from_millis(10),
            timeout: Duration::from_millis(50),
        };
        let names = Arc::new(Names::new(key.host.clone(), key.port));
        (
            Lookup::start(&key, names, resolver, &tokio::runtime::Handle::current()),
            calls,
        )
    }

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 80))
    }

    fn lost() -> Answer {
        Err(io::Error::other("no such name"))
    }

    /// A call that is seen here has been answered too: the script answers at once.
    async fn called(calls: &mut mpsc::UnboundedReceiver<()>, times: usize) {
        for _ in 0..times {
            calls.recv().await.unwrap();
        }
    }

    #[test]
    fn failures_are_tried_again_soon_then_as_often_as_others() {
        let interval = Duration::from_secs(30);
        let waits: Vec<u64> = (1..=7)
            .map(|misses| retry(misses, interval).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(retry(u32::MAX, interval), interval);
    }

    #[tokio::test]
    async fn a_name_is_down_until_found() {
        let (lookup, mut calls) = start(vec![lost(), Ok(vec![]), Ok(vec![addr(1)])]);
        lookup.first().await;
        assert!(!lookup.names.is_up());
        assert_eq!(lookup.names.error().kind, Kind::DnsError);
        assert!(lookup.names.rotated().is_empty());
        called(&mut calls, 3).await;
        assert!(lookup.names.is_up());
    }

    #[tokio::test]
    async fn the_last_good_answer_is_kept_and_a_new_one_taken() {
        let (lookup, mut calls) = start(vec![
            Ok(vec![addr(1)]),
            lost(),
            Ok(vec![addr(2), addr(2), addr(3)]),
        ]);
        called(&mut calls, 2).await;
        assert_eq!(lookup.names.rotated(), [addr(1)]);
        assert!(lookup.names.is_up());
        called(&mut calls, 1).await;
        // Twice the same is once; each dial begins with another.
        let (a, b) = (lookup.names.rotated(), lookup.names.rotated());
        assert_eq!((a.len(), b.len()), (2, 2));
        assert_ne!(a[0], b[0]);
    }

    #[tokio::test]
    async fn a_hung_resolver_is_asked_once_and_ends_the_first_wait() {
        let (lookup, mut calls) = start(vec![]);
        lookup.first().await;
        assert_eq!(lookup.names.error().kind, Kind::DnsTimeout);
        called(&mut calls, 1).await;
        // Several timeouts long.
        assert!(
            tokio::time::timeout(Duration::from_millis(300), calls.recv())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn dropping_the_lookup_ends_its_task() {
        let (lookup, mut calls) = start(vec![Ok(vec![addr(1)])]);
        lookup.first().await;
        drop(lookup);
        // The task held the resolver, which holds the channel's only sender.
        while calls.recv().await.is_some() {}
    }
}
