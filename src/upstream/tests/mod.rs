//! The reach layer against real origins on loopback, most of which misbehave.
#![allow(clippy::unwrap_used)]

mod answers;
mod health;
mod multiplexed;
mod requests;
mod retries;
mod targets;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::{Method, Request, Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::body::{BodyRules, RequestBody};
use super::error::Error;
use super::{InFlight, SendOptions, Shared, Upstream, UpstreamBody};
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{
    Balance, PoolSpec, Protocol, ResolveSpec, TargetSpec, UpstreamSpec, UpstreamTimeouts,
};
use crate::metrics::WorkerContext;

/// Longer than anything here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(20);

/// An origin that runs `script(connection, its number)` for each connection, and counts them.
async fn origin<F, S>(script: S) -> (SocketAddr, Arc<AtomicUsize>)
where
    S: Fn(Peer, usize) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(
                Peer {
                    stream,
                    read: Vec::new(),
                },
                counter.fetch_add(1, Ordering::SeqCst),
            ));
        }
    });
    (address, count)
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// The origin's end of a connection.
struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    /// Reads up to and including `end`; `None` when the connection ends first.
    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self
                .read
                .windows(end.len())
                .position(|w| w == end.as_bytes())
            {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).ok();
            }
            if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n").await
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Until the proxy closes.
    async fn closed(mut self) {
        while self.stream.read_buf(&mut self.read).await.unwrap_or(0) > 0 {}
    }
}

/// Answers every request on every connection with `text`.
async fn always(text: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    origin(move |mut peer, _| async move {
        while peer.head().await.is_some() {
            peer.say(text).await;
        }
    })
    .await
}

fn spec(targets: &[(TargetAddr, u32)]) -> UpstreamSpec {
    UpstreamSpec {
        name: "api".into(),
        targets: targets
            .iter()
            .map(|(address, weight)| TargetSpec {
                address: address.clone(),
                weight: *weight,
                backup: false,
            })
            .collect(),
        split: Vec::new(),
        balance: Balance::RoundRobin,
        sticky: None,
        protocol: Protocol::Http1,
        tls: None,
        pool: PoolSpec {
            idle: 8,
            idle_timeout: Duration::from_secs(60),
            max_connections: None,
        },
        timeouts: UpstreamTimeouts {
            connect: Duration::from_secs(5),
            response: Some(PATIENCE),
            idle: Some(PATIENCE),
        },
        resolve: ResolveSpec {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
        },
        limits: None,
        targets_file: None,
        health: None,
        passive: None,
        slow_start: Duration::ZERO,
        proxy_protocol: None,
        via: None,
        tls_place: None,
        found_elsewhere: false,
    }
}

fn shared(workers: usize) -> Arc<Shared> {
    Arc::new(Shared::new(tokio::runtime::Handle::current(), workers))
}

/// An upstream of one address, with some of the spec changed.
fn one(address: SocketAddr, change: impl FnOnce(&mut UpstreamSpec)) -> Upstream {
    let mut spec = spec(&[(TargetAddr::Ip(address), 1)]);
    change(&mut spec);
    Upstream::build(&spec, &shared(1))
}

fn worker(index: usize, of: usize) -> Arc<WorkerContext> {
    Arc::new(WorkerContext {
        index,
        of,
        counters: Default::default(),
        sessions: crate::session::Sessions::new(index, of),
    })
}

fn get() -> Request<RequestBody> {
    request(Method::GET, RequestBody::empty())
}

fn request(method: Method, body: RequestBody) -> Request<RequestBody> {
    Request::builder()
        .method(method)
        .uri("/x?y=1")
        .header("host", "example.test")
        .body(body)
        .unwrap()
}

type Piece = io::Result<Frame<Bytes>>;

/// A body fed by hand; its sender's end is its end.
fn fed(rules: BodyRules) -> (mpsc::Sender<Piece>, RequestBody) {
    let (feed, mut pieces) = mpsc::channel(4);
    let stream = futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx));
    (feed, RequestBody::of(StreamBody::new(stream), rules))
}

fn data(text: &'static str) -> Piece {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn send(
    upstream: &Upstream,
    request: Request<RequestBody>,
) -> Result<(Response<UpstreamBody>, InFlight), Error> {
    let worker = worker(0, 1);
    let sending = upstream.send(&worker, request, SendOptions::default());
    tokio::time::timeout(PATIENCE, sending).await.unwrap()
}

async fn text(response: Response<UpstreamBody>) -> String {
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect())
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// Waits for a fact that other tasks bring about.
async fn eventually(mut fact: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !fact() {
        assert!(begun.elapsed() < PATIENCE, "never became true");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
