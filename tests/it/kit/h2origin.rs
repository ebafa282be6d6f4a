//! An origin that speaks HTTP/2, and HTTP/1 where ALPN chooses it, in cleartext or over TLS. What it does is in the path:
//!
//! | path | what comes |
//! | --- | --- |
//! | `/hold` | the answer, once it is released |
//! | `/half` | the head and `half`, the rest once it is released |
//! | `/chat` | each piece of the body as it comes, then trailers |
//! | `/refuse` | `REFUSED_STREAM`, until it accepts |
//! | `/never` | nothing |
//! | CONNECT | what came |
//! | other | version, scheme, authority and body size |

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// What the origin saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    /// Handshakes that resumed a session.
    pub(crate) resumed: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) open: AtomicUsize,
    pub(crate) most: AtomicUsize,
    /// Streams that were reset while they waited.
    pub(crate) resets: AtomicU64,
    /// Takes `/refuse` after all.
    accepts: AtomicBool,
    pub(crate) heads: Mutex<Vec<String>>,
}

#[derive(Debug)]
pub(crate) struct H2Origin {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    release: watch::Sender<bool>,
    goaway: watch::Sender<u64>,
    _runtime: Runtime,
}

/// How it is to be.
#[derive(Clone, Default)]
pub(crate) struct Ways {
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) streams: Option<u32>,
    /// Takes extended CONNECT.
    pub(crate) websockets: bool,
}

struct Shared {
    seen: Arc<Seen>,
    release: watch::Receiver<bool>,
    goaway: watch::Receiver<u64>,
    ways: Ways,
}

impl H2Origin {
    pub(crate) fn start(ways: Ways) -> H2Origin {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (release, released) = watch::channel(false);
        let (goaway, going) = watch::channel(0);
        let seen = Arc::new(Seen::default());
        let shared = Arc::new(Shared {
            seen: seen.clone(),
            release: released,
            goaway: going,
            ways,
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        runtime.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                stream.set_nodelay(true).unwrap();
                shared.seen.connections.fetch_add(1, SeqCst);
                tokio::spawn(shared.clone().settle(stream));
            }
        });
        H2Origin {
            addr,
            seen,
            release,
            goaway,
            _runtime: runtime,
        }
    }

    pub(crate) fn release(&self) {
        self.release.send_replace(true);
    }

    pub(crate) fn accept(&self) {
        self.seen.accepts.store(true, SeqCst);
    }

    /// Every connection ends kindly.
    pub(crate) fn go_away(&self) {
        self.goaway.send_modify(|n| *n += 1);
    }

    pub(crate) fn connections(&self) -> u64 {
        self.seen.connections.load(SeqCst)
    }
}

impl Shared {
    async fn settle(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let Some(config) = self.ways.tls.clone() else {
            return self.serve_h2(stream).await;
        };
        let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else {
            return;
        };
        if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            self.seen.resumed.fetch_add(1, SeqCst);
        }
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.serve_h2(stream).await;
        } else {
            self.serve_h1(stream).await;
        }
    }

    async fn serve_h1(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        loop {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
            self.seen.requests.fetch_add(1, SeqCst);
            let key = text
                .lines()
                .find_map(|l| l.strip_prefix("sec-websocket-key: "));
            let answer = match key {
                Some(key) => format!(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {}\r\n\r\n",
                    accept(key)
                ),
                None => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh1".to_owned(),
            };
            let upgraded = key.is_some();
            self.seen.heads.lock().unwrap().push(text);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            let _ = stream.flush().await;
            if upgraded {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                    let _ = stream.flush().await;
                }
                let _ = stream.shutdown().await;
                return;
            }
        }
    }

    async fn serve_h2(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut builder = h2::server::Builder::new();
        if let Some(streams) = self.ways.streams {
            builder.max_concurrent_streams(streams);
        }
        if self.ways.websockets {
            builder.enable_connect_protocol();
        }
        let Ok(mut connection): Result<Connection<_, Bytes>, _> = builder.handshake(stream).await
        else {
            return;
        };
        let mut goaway = self.goaway.clone();
        goaway.mark_unchanged();
        loop {
            let next = tokio::select! {
                next = connection.accept() => next,
                _ = goaway.changed() => {
                    connection.graceful_shutdown();
                    continue;
                }
            };
            let Some(Ok((request, respond))) = next else {
                return;
            };
            let shared = self.clone();
            tokio::spawn(async move {
                let open = shared.seen.open.fetch_add(1, SeqCst) + 1;
                shared.seen.most.fetch_max(open, SeqCst);
                shared.seen.requests.fetch_add(1, SeqCst);
                let _ = shared.answer(request, respond).await;
                shared.seen.open.fetch_sub(1, SeqCst);
            });
        }
    }

    async fn released(&self, respond: &mut SendResponse<Bytes>) -> bool {
        let mut release = self.release.clone();
        let reset = std::future::poll_fn(|cx| respond.poll_reset(cx));
        tokio::select! {
            _ = release.wait_for(|released| *released) => true,
            _ = reset => {
                self.seen.resets.fetch_add(1, SeqCst);
                false
            }
        }
    }

    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        let (head, mut body) = request.into_parts();
        self.seen
            .heads
            .lock()
            .unwrap()
            .push(format!("{} {}\n{:?}", head.method, head.uri, head.headers));
        let ok = || Response::builder().status(200);
        match head.uri.path() {
            _ if head.method == http::Method::CONNECT => {
                let mut send = respond.send_response(ok().body(()).unwrap(), false)?;
                while let Some(piece) = body.data().await {
                    let piece = piece?;
                    body.flow_control().release_capacity(piece.len())?;
                    send.send_data(piece, false)?;
                }
                send.send_data(Bytes::new(), true)
            }
            "/hold" => {
                if self.released(&mut respond).await {
                    let mut send = respond.send_response(ok().body(()).unwrap(), false)?;
                    send.send_data("held".into(), true)?;
                }
                Ok(())
            }
            "/half" => {
                let mut release = self.release.clone();
                let mut send = respond.send_response(ok().body(()).unwrap(), false)?;
                send.send_data("half".into(), false)?;
                tokio::select! {
                    _ = release.wait_for(|released| *released) => send.send_data("whole".into(), true),
                    _ = std::future::poll_fn(|cx| send.poll_reset(cx)) => {
                        self.seen.resets.fetch_add(1, SeqCst);
                        Ok(())
                    }
                }
            }
            "/chat" => {
                let response = ok()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                let mut send = respond.send_response(response, false)?;
                while let Some(piece) = body.data().await {
                    let piece = piece?;
                    body.flow_control().release_capacity(piece.len())?;
                    send.send_data(piece, false)?;
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                if let Some(theirs) = body.trailers().await? {
                    trailers.extend(theirs);
                }
                send.send_trailers(trailers)
            }
            "/refuse" if !self.seen.accepts.load(SeqCst) => {
                respond.send_reset(Reason::REFUSED_STREAM);
                Ok(())
            }
            "/never" => {
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                self.seen.resets.fetch_add(1, SeqCst);
                Ok(())
            }
            _ => {
                let mut size = 0;
                while let Some(piece) = body.data().await {
                    let piece = piece?;
                    size += piece.len();
                    body.flow_control().release_capacity(piece.len())?;
                }
                let scheme = head.uri.scheme_str().unwrap_or_default();
                let authority = head.uri.authority().map_or("", |a| a.as_str());
                let text = format!("h2 {scheme} {authority} {size}");
                let mut send = respond.send_response(ok().body(()).unwrap(), false)?;
                send.send_data(text.into(), true)
            }
        }
    }
}

/// RFC 6455 section 4.2.2.
pub(crate) fn accept(key: &str) -> String {
    use base64::Engine as _;
    use sha1::Digest as _;
    let digest = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(digest)
}
