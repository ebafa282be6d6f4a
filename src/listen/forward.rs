//! A connection to a forward proxy: TLS if there is any, then the first byte tells what is spoken. HTTP goes on elsewhere
//! ([`super::http`]); SOCKS is spoken here. All of it until the end
//! of the client's request is over within `timeouts.handshake`, and nothing is dialled before that. Every request that
//! cannot be met is answered in its protocol, and then the connection ends.

mod asked;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::entry::Plane;
use super::http::{Listener, serve_read};
use crate::forward::associate::{self, Association, Ways};
use crate::forward::socks::v5::{self, Method};
use crate::forward::socks::{Parsed, Reply, v4};
use crate::forward::{Ask, Forward, Reached, Refused};
use crate::generation::EpochGuard;
use crate::http::Face as _;
use crate::http::connection::{Connection, IDLE_LINGER};
use crate::http::record::session::{SessionLine, came_to_nothing};
use crate::l4::relay::{Terms, relay};
use crate::net::{Peer, Sever};
use crate::session::Start;
use crate::tls::{Failure, Handshake, Session};
use asked::{Asked, Over, Refusal, Version, What, bad};

/// Of each read before a session begins.
const READ: usize = 1024;
/// How a request begins that may lack brackets, and the bytes in which its line would have to end.
const CONNECT: &[u8] = b"CONNECT ";
const LINE: usize = 256;
/// How long an answer may take to leave, and how long a client that got a refusal is read on, so that it is not lost to a
/// reset.
const LAST_WRITE: Duration = Duration::from_secs(5);
const LAST_READ: Duration = Duration::from_secs(1);

/// Who has connected, and to what.
struct Client {
    peer: Peer,
    /// Of ours, as the client reached it.
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    /// Of the instant in which it was accepted.
    accepted: Arc<Forward>,
    /// `None`: cleartext.
    session: Option<Session>,
    began: Instant,
}

impl Client {
    /// What serves now; an address that is another thing by now goes on as it was accepted.
    fn proxy(&self) -> Arc<Forward> {
        match &self.listener.slot.pin().entry.plane {
            Plane::Forward(proxy) => proxy.clone(),
            _ => self.accepted.clone(),
        }
    }

    /// Writes down that it is not met.
    fn refused(&self, refusal: &mut Refusal) {
        let serving = self.listener.slot.pin();
        let flight = serving.generation.begin(self.listener.slot.binding);
        let proxy = self.proxy();
        let start = Start {
            client: self.peer.address(),
            user: refusal.user.take(),
            listener: Some(proxy.name.clone()),
            destination: refusal.to.take(),
            watch: Some(flight.watch()),
            ..Start::default()
        };
        let (worker, log) = (self.listener.worker.index, proxy.log.as_ref());
        let began = self.began.into_std();
        came_to_nothing(log, worker, refusal.kind, start, began, refusal.status);
    }
}

/// Serves one accepted connection to its end. The caller holds permits and counts, catches panics.
pub async fn serve<S>(
    stream: S,
    peer: Peer,
    listener: Arc<Listener>,
    proxy: Arc<Forward>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    if !proxy.may_connect(peer.ip()) {
        tracing::debug!(%peer, proxy = %proxy.name, "not one of the clients");
        return;
    }
    let deadline = Instant::now() + proxy.spec.timeouts.handshake;
    let local = stream.plain_tcp().and_then(|tcp| tcp.local_addr().ok());
    let mut client = Client {
        peer,
        local,
        listener,
        accepted: proxy,
        session: None,
        began: Instant::now(),
    };
    if client.accepted.tls.is_none() {
        return speak(stream, client, deadline, guard).await;
    }
    let done = tokio::select! {
        biased;
        done = timeout_at(deadline, secure(stream, &client)) => done,
        () = impatient(&guard) => return client.listener.handshakes.failed(Failure::Timeout),
    };
    match done {
        Ok(Ok((stream, session))) => {
            client.listener.handshakes.done(session.resumed);
            client.session = Some(session);
            // Boxed: the larger of the two would be the size of both.
            Box::pin(speak(stream, client, deadline, guard)).await;
        }
        Ok(Err(error)) => {
            client.listener.handshakes.failed(Failure::of(&error));
            tracing::debug!(%peer, %error, "TLS handshake failed");
        }
        Err(_) => client.listener.handshakes.failed(Failure::Timeout),
    }
}

async fn secure<S>(stream: S, client: &Client) -> io::Result<(TlsStream<S>, Session)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = LazyConfigAcceptor::new(Default::default(), stream).await?;
    let now = client.proxy();
    let Some(server) = now.tls.as_ref().or(client.accepted.tls.as_ref()) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let Handshake {
        config,
        client_auth,
    } = server.handshake(hello.client_hello().server_name());
    let stream = hello.into_stream(config).await?;
    let session = Session::of(stream.get_ref().1, client_auth)?;
    Ok((stream, session))
}

/// Ends when a handshake must because its address goes, or is another thing.
async fn impatient(guard: &EpochGuard) {
    let finish = async {
        guard.epoch.finish.cancelled().await;
        tokio::time::sleep(IDLE_LINGER).await;
    };
    tokio::select! {
        () = finish => {}
        () = guard.epoch.cut.cancelled() => {}
    }
}

async fn speak<S>(stream: S, client: Client, deadline: Instant, guard: EpochGuard)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let mut said = Said {
        stream,
        bytes: BytesMut::new(),
    };
    let asked = tokio::select! {
        biased;
        asked = timeout_at(deadline, said.handshake(&client)) => asked,
        () = impatient(&guard) => return,
    };
    match asked {
        Ok(Ok(asked)) => session(said, client, asked, guard).await,
        Ok(Err(Over::With(refusal))) => said.refuse(&client, *refusal).await,
        Ok(Err(Over::Silently)) => {}
        Ok(Err(Over::Http)) => Box::pin(said.http(client, guard)).await,
        Err(_) => {
            tracing::debug!(peer = %client.peer, "no request within the time for a handshake")
        }
    }
}

/// A client's stream, and what it has said that was not understood yet.
struct Said<S> {
    stream: S,
    bytes: BytesMut,
}

impl<S> Said<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// From the first byte to the end of the request.
    async fn handshake(&mut self, client: &Client) -> Result<Asked, Over> {
        let first = |bytes: &[u8]| Ok::<_, ()>(bytes.first().map(|first| (*first, 0)));
        let first = self.message(first).await?.unwrap_or_default();
        let spec = &client.accepted.spec;
        match first {
            v5::VERSION if spec.socks5 => self.socks5(client).await,
            v4::VERSION if spec.socks4 => self.socks4().await,
            // A method's first letter, or HTTP/2's.
            b'!'..=b'~' if spec.http => {
                self.bracket().await?;
                Err(Over::Http)
            }
            _ => {
                tracing::debug!(peer = %client.peer, first, "a protocol that is not spoken here");
                Err(Over::Silently)
            }
        }
    }

    async fn socks5(&mut self, client: &Client) -> Result<Asked, Over> {
        let Ok(offer) = self.message(v5::greeting).await? else {
            return Err(Over::Silently);
        };
        let proxy = client.proxy();
        let nobody = |last: [u8; 2]| {
            let status = StatusCode::PROXY_AUTHENTICATION_REQUIRED;
            Over::with(Version::Socks5, last, status)
        };
        let method = match proxy.asks_for_users() {
            true => offer.password.then_some(Method::Password),
            // Whoever insists on showing a password is let in with any.
            false if offer.none => Some(Method::None),
            false => offer.password.then_some(Method::Password),
        };
        let choice = v5::choice(method);
        let Some(method) = method else {
            return Err(nobody(choice));
        };
        self.send(&choice).await?;
        let mut user = None;
        if method == Method::Password {
            let Ok(given) = self.message(v5::credentials).await? else {
                return Err(nobody(v5::verdict(false)));
            };
            if proxy.asks_for_users() {
                let name = given.name.unwrap_or_default();
                match proxy.authenticate(name, given.password).await {
                    Ok(known) => user = Some(known),
                    Err(denied) => {
                        let (peer, proxy) = (client.peer, &proxy.name);
                        tracing::debug!(%peer, %proxy, ?denied, "nobody we know");
                        return Err(nobody(v5::verdict(false)));
                    }
                }
            }
            self.send(&v5::verdict(true)).await?;
        }
        let request = self.message(v5::request).await?;
        let request = request.map_err(|reply| bad(Version::Socks5, reply, &user))?;
        let what = match request.command {
            v5::Command::Connect => {
                let to = request.to.destination();
                let bad = || bad(Version::Socks5, Reply::Failed, &user);
                What::Connect(to.ok_or_else(bad)?)
            }
            v5::Command::Associate => What::Associate,
        };
        Ok(Asked {
            version: Version::Socks5,
            user,
            what,
        })
    }

    async fn socks4(&mut self) -> Result<Asked, Over> {
        let request = self.message(v4::request).await?;
        let bad = || bad(Version::Socks4, Reply::Failed, &None);
        let request = request.map_err(|_| bad())?;
        Ok(Asked {
            version: Version::Socks4,
            user: None,
            what: What::Connect(request.to.destination().ok_or_else(bad)?),
        })
    }

    /// Reads until a whole message is there, and takes it away. What follows stays.
    async fn message<T, E>(
        &mut self,
        parse: impl Fn(&[u8]) -> Parsed<T, E>,
    ) -> Result<Result<T, E>, Over> {
        loop {
            match parse(&self.bytes) {
                Ok(Some((message, length))) => {
                    let _ = self.bytes.split_to(length.min(self.bytes.len()));
                    return Ok(Ok(message));
                }
                Ok(None) => {}
                Err(error) => return Ok(Err(error)),
            }
            self.bytes.reserve(READ);
            let read = (&mut self.stream)
                .take(READ as u64)
                .read_buf(&mut self.bytes)
                .await;
            if !matches!(read, Ok(1..)) {
                return Err(Over::Silently);
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|_| Over::Silently)
    }

    /// Some clients leave the brackets of an IPv6 address out (`CONNECT ::1:443`, against RFC 3986 section 3.2.2), which no
    /// parser of HTTP takes. What they mean is clear: a CONNECT has a port.
    async fn bracket(&mut self) -> Result<(), Over> {
        let line = |bytes: &[u8]| {
            let connects = bytes.iter().zip(CONNECT).all(|(a, b)| a == b);
            let long = bytes.len() >= LINE || bytes.contains(&b'\n');
            Ok::<_, ()>((!connects || long).then(|| (bracketed(bytes), 0)))
        };
        if let Ok(Some(bytes)) = self.message(line).await? {
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Goes on with HTTP, whose requests have deadlines of their own.
    async fn http(self, client: Client, guard: EpochGuard)
    where
        S: Sever + Send + 'static,
    {
        let Client {
            peer,
            local,
            listener,
            session,
            ..
        } = client;
        let spec = listener.slot.pin().entry.http().connection.clone();
        let connection = Connection::new(peer, local, spec, listener.worker.clone());
        let connection = match session {
            Some(session) => connection.over_tls(session),
            None => connection,
        };
        let read = self.bytes.freeze();
        serve_read(self.stream, read, Arc::new(connection), listener, guard).await;
    }

    /// Says its last words and ends; that is written down.
    async fn refuse(self, client: &Client, mut refusal: Refusal) {
        client.refused(&mut refusal);
        self.end(&refusal.last).await;
    }

    async fn end(mut self, last: &[u8]) {
        let write = async {
            self.stream.write_all(last).await?;
            self.stream.shutdown().await
        };
        if !matches!(timeout(LAST_WRITE, write).await, Ok(Ok(()))) {
            return;
        }
        let read = async {
            let mut buffer = [0; READ];
            while let Ok(1..) = self.stream.read(&mut buffer).await {}
        };
        let _ = timeout(LAST_READ, read).await;
    }
}

/// The same request with brackets around an IPv6 address that lacks them; `None`: it lacks nothing.
fn bracketed(bytes: &[u8]) -> Option<BytesMut> {
    let rest = bytes.strip_prefix(CONNECT)?;
    let end = rest.iter().position(|b| *b == b' ')?;
    let (target, rest) = rest.split_at_checked(end)?;
    let colon = target.iter().rposition(|b| *b == b':')?;
    let (address, port) = target.split_at_checked(colon)?;
    let address: Ipv6Addr = std::str::from_utf8(address).ok()?.parse().ok()?;
    let mut whole = BytesMut::with_capacity(bytes.len() + 48);
    whole.extend_from_slice(CONNECT);
    whole.extend_from_slice(format!("[{address}]").as_bytes());
    whole.extend_from_slice(port);
    whole.extend_from_slice(rest);
    Some(whole)
}

/// What a request becomes: it gets where it wants to, and is a long flow from then on.
async fn session<S>(mut said: Said<S>, client: Client, asked: Asked, guard: EpochGuard)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let (serving, proxy) = (client.listener.slot.pin(), client.proxy());
    let refusal = |asked: &Asked, reply: Reply, status: StatusCode| Refusal {
        user: asked.user.clone(),
        to: asked.to(),
        kind: asked.kind(),
        ..Refusal::new(asked.version, asked.version.refusal(reply), status)
    };
    // A swap may have come since he was asked; and in SOCKS4 nobody is.
    let may = proxy.may_connect(client.peer.ip());
    if !may || !proxy.knows(asked.user.as_ref()) {
        let status = match may {
            true => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            false => StatusCode::FORBIDDEN,
        };
        drop(serving);
        let refusal = refusal(&asked, Reply::NotAllowed, status);
        return said.refuse(&client, refusal).await;
    }
    let flight = serving.generation.begin(client.listener.slot.binding);
    flight.define(proxy.definition());
    // It would keep an old generation in memory.
    drop(serving);
    let on_change = proxy.spec.on_change;
    let begun = tokio::select! {
        biased;
        begun = begin(&proxy, &client, &asked) => begun,
        () = std::future::poll_fn(|cx| flight.poll_cut(cx)) => Err(CUT),
        () = guard.epoch.cut.cancelled() => Err(CUT),
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err((reply, status)) => {
            let refusal = refusal(&asked, reply, status);
            return said.refuse(&client, refusal).await;
        }
    };
    let bound = match &begun {
        Begun::Connected(reached) => reached.local,
        Begun::Associated(association) => Some(association.advertised),
    };
    let success = asked.version.success(bound);
    if !matches!(timeout(LAST_WRITE, said.send(&success)).await, Ok(Ok(()))) {
        return;
    }
    flight.set_long(on_change);
    let newest = client.listener.slot.pin();
    let holds = |definition| newest.entry.holds(definition);
    flight.settle(&newest.generation, holds);
    drop(newest);
    // From now on it lives and ends by its own definition, not with the connections of its epoch.
    drop(guard);
    let Said { stream, bytes } = said;
    let (kind, destination) = (asked.kind(), asked.to());
    let (peer, to) = (client.peer, asked.what);
    let session = client.listener.worker.sessions.open(
        kind,
        Start {
            client: peer.address(),
            user: asked.user,
            listener: Some(proxy.name.clone()),
            destination,
            watch: Some(flight.watch()),
            ..Start::default()
        },
    );
    let worker = client.listener.worker.index;
    let line = SessionLine::new(proxy.log.clone(), worker, &session);
    match begun {
        Begun::Connected(reached) => {
            let Reached { link, place, .. } = *reached;
            let terms = Terms {
                idle: proxy.spec.timeouts.idle,
                bandwidth: proxy.spec.limits.bandwidth,
                flight: &flight,
                in_flight: None,
                session: Some(&session),
            };
            // What it has to know is in hand: neither rules nor users are kept for it.
            drop((proxy, client));
            let early = Bytes::from(bytes);
            let relayed = relay(stream, link, early, terms).await;
            line.end((&relayed.cause).into());
            if let What::Connect(to) = to {
                tracing::debug!(%peer, %to, ?relayed, "session ended");
            }
            drop(place);
        }
        Begun::Associated(association) => {
            let ended = Box::pin(association.run(stream, &flight, &session)).await;
            line.end((&ended).into());
            tracing::debug!(%peer, ?ended, "association ended");
        }
    }
}

enum Begun {
    Connected(Box<Reached>),
    Associated(Box<Association>),
}

/// Why there is no session: in SOCKS, and what HTTP would have answered.
type Why = (Reply, StatusCode);

/// A swap, or the end of the process, came between.
const CUT: Why = (Reply::Failed, StatusCode::SERVICE_UNAVAILABLE);
const NO_DATAGRAMS: Why = (Reply::NoSuchCommand, StatusCode::NOT_IMPLEMENTED);

async fn begin(proxy: &Arc<Forward>, client: &Client, asked: &Asked) -> Result<Begun, Why> {
    let (peer, user) = (client.peer, asked.user.as_ref());
    let refused = |refused: Refused| {
        let detail = &refused.error.detail;
        tracing::debug!(%peer, detail, "not reached");
        (refused.reply(), refused.error.status())
    };
    match &asked.what {
        What::Connect(destination) => {
            let ask = Ask {
                user,
                client: peer.ip(),
                destination,
            };
            let reached = proxy.reach(&client.listener.worker, ask, None).await;
            Ok(Begun::Connected(Box::new(reached.map_err(refused)?)))
        }
        What::Associate => {
            let (Some(ip), Some(local)) = (peer.ip(), client.local) else {
                return Err(NO_DATAGRAMS);
            };
            let place = proxy.place(user).map_err(refused)?;
            proxy.room().map_err(refused)?;
            let mut ways = Ways::new(client.listener.worker.index);
            if let Some(via) = proxy.only_way() {
                if !via.takes_datagrams() {
                    tracing::debug!(%peer, "no datagrams go through the proxies on the way");
                    return Err(NO_DATAGRAMS);
                }
                let deadline = Instant::now() + proxy.spec.timeouts.connect;
                let made = ways.make(via, deadline).await;
                made.map_err(|error| refused(error.into()))?;
            }
            let who = associate::Who {
                ip,
                local: local.ip().to_canonical(),
                user: user.cloned(),
            };
            let made = Association::open(proxy.clone(), who, ways, place);
            let made = made.map_err(|error| {
                tracing::warn!(%error, proxy = %proxy.name, "no port for datagrams");
                (Reply::Failed, StatusCode::INTERNAL_SERVER_ERROR)
            })?;
            Ok(Begun::Associated(Box::new(made)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_gets_the_brackets_that_it_lacks() {
        let with = |line: &str| {
            let whole = bracketed(line.as_bytes())?;
            Some(String::from_utf8_lossy(&whole).into_owned())
        };
        assert_eq!(
            with("CONNECT ::1:443 HTTP/1.1\r\nHost: x\r\n\r\nearly").as_deref(),
            Some("CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\n\r\nearly")
        );
        assert!(with("CONNECT 2001:db8::7:8443 HTTP/1.1\r\n").is_some());
        for whole in [
            "CONNECT [::1]:443 HTTP/1.1\r\n",
            "CONNECT a.test:443 HTTP/1.1\r\n",
            "CONNECT 127.0.0.1:443 HTTP/1.1\r\n",
            "CONNECT ::1:443",
            "GET http://::1:443/ HTTP/1.1\r\n",
            "CONNECT",
        ] {
            assert_eq!(with(whole), None, "{whole}");
        }
    }
}
