//! The request body on its way to a target: the client's stream with its limit, its read timeout and the gate that
//! `Expect: 100-continue` puts before it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::error::Error;

/// How the client's body may be read.
#[derive(Debug, Clone, Default)]
pub struct BodyRules {
    /// Bytes; more is a `Side::Client` error with status 413. `None`: no limit.
    pub limit: Option<u64>,
    /// Longest wait between two pieces; more is a `Side::Client` error with status 408.
    pub timeout: Option<Duration>,
    /// The client waits for `100 Continue`: do not read (which makes hyper send it) before the origin said so.
    pub expect_continue: bool,
}

/// The body sent to a target.
#[derive(Debug)]
pub struct RequestBody {
    _incoming: Option<Incoming>,
}

impl RequestBody {
    pub fn empty() -> RequestBody {
        RequestBody { _incoming: None }
    }
    pub fn new(incoming: Incoming, _rules: BodyRules) -> RequestBody {
        RequestBody {
            _incoming: Some(incoming),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;
    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        unimplemented!()
    }
    fn is_end_stream(&self) -> bool {
        unimplemented!()
    }
    fn size_hint(&self) -> SizeHint {
        unimplemented!()
    }
}

/// Opened by the origin's `100 Continue`, its final answer, or a short wait.
#[derive(Debug, Default)]
pub struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub fn open(self: &Arc<Self>) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}
