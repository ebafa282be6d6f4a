//! Names to addresses, and addresses to connections: the first address that answers, of both families (RFC 8305).

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::refused::Refused;
use super::target::Destination;
use crate::upstream;
use crate::upstream::error::{Error, Kind};
use crate::upstream::resolve::Resolver;

/// Names that are looked up at once. Each takes a thread, as long as the resolver wants.
const LOOKUPS: usize = 64;
/// How long one address may be alone before the next is tried beside it (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 16;

/// How names are looked up. One per process.
pub struct Lookups {
    resolver: Arc<Resolver>,
    control: tokio::runtime::Handle,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}

impl Lookups {
    /// As the names of targets are, but each anew.
    pub(super) fn of(upstreams: &upstream::Shared) -> Lookups {
        Lookups::new(upstreams.resolver.clone(), upstreams.control.clone())
    }

    pub(super) fn new(resolver: Arc<Resolver>, control: tokio::runtime::Handle) -> Lookups {
        Lookups {
            resolver,
            control,
            places: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// That it has none, or that nobody has said so in time.
    pub(super) async fn find(
        &self,
        name: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Refused> {
        let late = || {
            let detail = format!("the name {name} was not answered in time");
            Error::upstream(Kind::DnsTimeout, detail).unsent()
        };
        let place = self.places.clone().acquire_owned();
        let place = tokio::time::timeout_at(deadline, place).await;
        let Ok(Ok(place)) = place else {
            return Err(late().into());
        };
        let lookup = (self.resolver)(name.into(), port);
        // It goes on when nobody waits any more, and so does its thread: the place is taken until it has ended.
        let task = self.control.spawn(async move {
            let found = lookup.await;
            drop(place);
            found
        });
        match tokio::time::timeout_at(deadline, task).await {
            Err(_) => Err(late().into()),
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(error))) => {
                let detail = format!("the name {name} was not found: {error}");
                Err(Error::upstream(Kind::DnsError, detail).unsent().into())
            }
            Ok(Err(error)) => {
                let detail = format!("the look-up of {name} broke: {error}");
                Err(Error::us(Kind::ProxyInternalError, detail).unsent().into())
            }
        }
    }
}

/// Both families in turn, beginning with that of the first address (RFC 8305 section 4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else {
        return Vec::new();
    };
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = addresses
        .iter()
        .rev()
        .copied()
        .partition(|a| a.is_ipv4() == first.is_ipv4());
    let mut out = Vec::with_capacity(addresses.len());
    while out.len() < ADDRESSES {
        let before = out.len();
        out.extend(ours.pop());
        out.extend(theirs.pop());
        if out.len() == before {
            break;
        }
    }
    out.truncate(ADDRESSES);
    out
}

/// Connects to the first address that answers.
///
/// # Errors
/// Why the last one did not, or that none did in time.
pub(super) async fn any(
    addresses: &[SocketAddr],
    to: &Destination,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), Refused> {
    let racing = race(interleaved(addresses), |address| {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // What comes is written as it comes: waiting for more would only delay it.
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    });
    match tokio::time::timeout_at(deadline, racing).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(Some((error, address)))) => Err(Refused::dial(&error, address)),
        Ok(Err(None)) => {
            let detail = format!("{to} has no address");
            Err(Error::upstream(Kind::DnsError, detail).unsent().into())
        }
        Err(_) => {
            let detail = format!("{to} did not answer in time");
            Err(Error::upstream(Kind::ConnectionTimeout, detail)
                .unsent()
                .into())
        }
    }
}

type Failure = Option<(std::io::Error, SocketAddr)>;

/// Each address gets a head start; the next one is tried beside those before, and at once when one has failed.
async fn race<S>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<S>>,
) -> Result<(S, SocketAddr), Failure> {
    let mut waiting = addresses.into_iter();
    let mut running: Vec<(SocketAddr, BoxFuture<'static, std::io::Result<S>>)> = Vec::new();
    let mut last = None;
    let mut head_start: Option<Pin<Box<tokio::time::Sleep>>> = None;
    poll_fn(|cx| {
        loop {
            let mut failed = false;
            let mut index = 0;
            while let Some((address, attempt)) = running.get_mut(index) {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok((stream, *address))),
                    Poll::Ready(Err(error)) => {
                        last = Some((error, *address));
                        failed = true;
                        drop(running.swap_remove(index));
                    }
                    Poll::Pending => index += 1,
                }
            }
            let over = match &mut head_start {
                Some(sleep) => sleep.as_mut().poll(cx).is_ready(),
                None => true,
            };
            if !(failed || over) {
                return Poll::Pending;
            }
            head_start = None;
            match waiting.next() {
                Some(address) => {
                    running.push((address, connect(address)));
                    head_start = Some(Box::pin(tokio::time::sleep(HEAD_START)));
                }
                None if running.is_empty() => return Poll::Ready(Err(last.take())),
                None => return Poll::Pending,
            }
        }
    })
    .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let sorted = interleaved(&addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]));
        assert_eq!(
            sorted,
            addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"])
        );
        assert_eq!(interleaved(&[]), []);
        let many: Vec<SocketAddr> = (1..99).map(|p| ([127, 0, 0, 1], p).into()).collect();
        assert_eq!(interleaved(&many), many[..ADDRESSES]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_delays_the_next_by_a_head_start_and_a_failed_one_not_at_all() {
        use std::io;
        let begun = Instant::now();
        let script = |address: SocketAddr| -> BoxFuture<'static, io::Result<u16>> {
            Box::pin(async move {
                match address.port() {
                    1 => std::future::pending().await,
                    2 => Err(io::ErrorKind::ConnectionRefused.into()),
                    port => Ok(port),
                }
            })
        };
        let all = |ports: &[u16]| -> Vec<SocketAddr> {
            ports.iter().map(|p| ([127, 0, 0, 1], *p).into()).collect()
        };
        assert_eq!(race(all(&[2, 2, 3]), script).await.unwrap().0, 3);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(race(all(&[1, 3]), script).await.unwrap().0, 3);
        assert_eq!(begun.elapsed(), HEAD_START);
        let failed = race(all(&[2, 2]), script).await.unwrap_err().unwrap();
        assert_eq!(failed.0.kind(), io::ErrorKind::ConnectionRefused);
        assert!(race(all(&[]), script).await.unwrap_err().is_none());
    }
}
