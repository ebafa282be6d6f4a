//! An HTTP/2 client over hyper, with prior knowledge or over a stream that has chosen it, with a spy on the wire that counts GOAWAY and RST_STREAM.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Frames of interest that the server has sent.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pub(crate) goaway: AtomicU64,
    pub(crate) resets: AtomicU64,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct H2 {
    sender: SendRequest<Full<Bytes>>,
    pub(crate) frames: Arc<Frames>,
    driver: JoinHandle<()>,
}

impl H2 {
    pub(crate) async fn open(to: SocketAddr) -> H2 {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        H2::over(stream).await
    }

    pub(crate) async fn over<S>(stream: S) -> H2
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let frames = Arc::new(Frames::default());
        let spy = Spy {
            inner: stream,
            frames: frames.clone(),
            head: [0; 9],
            have: 0,
            skip: 0,
        };
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(spy))
            .await
            .unwrap();
        let driver = tokio::spawn(async move {
            // What went wrong shows in the requests.
            let _ = connection.await;
        });
        H2 {
            sender,
            frames,
            driver,
        }
    }

    /// A handle for one more stream at the same time.
    pub(crate) fn stream(&self) -> SendRequest<Full<Bytes>> {
        self.sender.clone()
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.driver.is_finished() && !self.sender.is_closed()
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One request over a stream of its own: status and body.
pub(crate) async fn send(
    mut stream: SendRequest<Full<Bytes>>,
    method: &str,
    uri: &str,
    body: impl Into<Bytes>,
) -> Result<(http::response::Parts, Bytes, Option<http::HeaderMap>), hyper::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .body(Full::new(body.into()))
        .unwrap();
    stream.ready().await?;
    let (parts, body) = stream.send_request(request).await?.into_parts();
    let whole = body.collect().await?;
    let trailers = whole.trailers().cloned();
    Ok((parts, whole.to_bytes(), trailers))
}

/// Reads frame heads as they pass.
struct Spy<S> {
    inner: S,
    frames: Arc<Frames>,
    head: [u8; 9],
    have: usize,
    skip: usize,
}

impl<S> Spy<S> {
    fn look(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skip = self.skip.min(bytes.len());
            self.skip -= skip;
            bytes = &bytes[skip..];
            let take = (9 - self.have).min(bytes.len());
            self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == 9 {
                self.have = 0;
                self.skip = usize::from(self.head[0]) << 16
                    | usize::from(self.head[1]) << 8
                    | usize::from(self.head[2]);
                match self.head[3] {
                    3 => self.frames.resets.fetch_add(1, Ordering::SeqCst),
                    7 => self.frames.goaway.fetch_add(1, Ordering::SeqCst),
                    _ => 0,
                };
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Spy<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.look(&buf.filled()[before..]);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Spy<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
