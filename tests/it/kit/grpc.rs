//! An origin that speaks gRPC over cleartext HTTP/2, as far as a proxy can tell, and answers health calls.
//!
//! | method | what comes |
//! | --- | --- |
//! | `/grpc.health.v1.Health/Check` | whether it is well |
//! | `/feed.Feed/Watch` | a message at once, another when it is released |
//! | `/feed.Feed/Slow` | nothing |
//! | other | its name, and trailers |

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug)]
struct Shared {
    name: String,
    well: AtomicBool,
    calls: AtomicU64,
    checks: AtomicU64,
    release: watch::Sender<bool>,
}

impl Feed {
    pub(crate) fn start(name: &str) -> Feed {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            well: AtomicBool::new(true),
            calls: AtomicU64::new(0),
            checks: AtomicU64::new(0),
            release: watch::channel(false).0,
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let of = shared.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(of.clone().serve(stream));
            }
        });
        Feed {
            addr,
            shared,
            _runtime: runtime,
        }
    }

    pub(crate) fn set_well(&self, well: bool) {
        self.shared.well.store(well, SeqCst);
    }

    /// Lets every `Watch` have its second message.
    pub(crate) fn release(&self) {
        self.shared.release.send_replace(true);
    }

    /// Calls that are no health calls.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(SeqCst)
    }

    pub(crate) fn checks(&self) -> u64 {
        self.shared.checks.load(SeqCst)
    }
}

/// A message with its prefix.
pub(crate) fn message(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + payload.len());
    out.put_u8(0);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out.freeze()
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            let shared = self.clone();
            tokio::spawn(async move {
                // How a call ends is the client's to judge.
                let _ = shared.answer(request, respond).await;
            });
        }
    }

    async fn answer(
        &self,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        let (head, mut body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let check = path == "/grpc.health.v1.Health/Check";
        let count = if check { &self.checks } else { &self.calls };
        count.fetch_add(1, SeqCst);
        if path == "/feed.Feed/Slow" {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            return Ok(());
        }
        while let Some(piece) = body.data().await {
            let size = piece?.len();
            body.flow_control().release_capacity(size)?;
        }
        let response = Response::builder().header("content-type", "application/grpc");
        let mut send = respond.send_response(response.body(()).unwrap(), false)?;
        match path.as_str() {
            _ if check => {
                let status = if self.well.load(SeqCst) { 1 } else { 2 };
                send.send_data(message(&[8, status]), false)?;
            }
            "/feed.Feed/Watch" => {
                send.send_data(message(b"first"), false)?;
                let mut released = self.release.subscribe();
                let cut = std::future::poll_fn(|cx| send.poll_reset(cx));
                let go_on = tokio::select! {
                    go = released.wait_for(|released| *released) => go.is_ok(),
                    _ = cut => false,
                };
                if !go_on {
                    return Ok(());
                }
                send.send_data(message(b"second"), false)?;
            }
            _ => send.send_data(message(self.name.as_bytes()), false)?,
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        send.send_trailers(trailers)
    }
}
