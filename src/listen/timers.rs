//! What may end a connection from outside: its deadlines, and its epoch's wish that it finish or its order that it end.
//!
//! One timer per connection, armed lazily: a request that ends before a deadline moves a field, not a timer. The timer
//! fires at most once per idle time for nothing, and is then set to what is due.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFuture;

use crate::generation::Epoch;
use crate::http::connection::{Connection, Expired};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The epoch wants the connection to end kindly. Told once.
    Finish,
    /// The epoch ends it now.
    Cut,
    Expired(Expired),
}

/// Watches for [`Event`]s beside the connection's own work.
pub struct Watch<'a> {
    connection: Arc<Connection>,
    pub epoch: &'a Epoch,
    /// Sets the connection's signal and wakes the driver.
    waker: Waker,
    finish: Option<Pin<Box<WaitForCancellationFuture<'a>>>>,
    cut: Pin<Box<WaitForCancellationFuture<'a>>>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// When `sleep` will fire; `None`: it has, or was never set.
    armed: Option<Instant>,
    started: bool,
}

impl<'a> Watch<'a> {
    pub fn new(connection: Arc<Connection>, epoch: &'a Epoch) -> Watch<'a> {
        Watch {
            waker: Waker::from(connection.clone()),
            connection,
            epoch,
            finish: Some(Box::pin(epoch.finish.cancelled())),
            cut: Box::pin(epoch.cut.cancelled()),
            sleep: None,
            armed: None,
            started: false,
        }
    }

    /// Ready when something happened. Call it after the connection's own work, when that is pending: deadlines are
    /// stamped here.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.connection.register(cx);
        if self.connection.take_signal() || !self.started {
            self.started = true;
            if let Poll::Ready(event) = self.poll_signalled() {
                return Poll::Ready(event);
            }
        }
        while let Some((at, expired)) = self.connection.deadline() {
            match self.armed {
                // Fires early or in time; then we are here again.
                Some(armed) if armed <= at => return Poll::Pending,
                Some(_) => {}
                None if at <= Instant::now() => return Poll::Ready(Event::Expired(expired)),
                None => {}
            }
            self.arm(at);
        }
        Poll::Pending
    }

    fn poll_signalled(&mut self) -> Poll<Event> {
        let mut cx = Context::from_waker(&self.waker);
        if self.cut.as_mut().poll(&mut cx).is_ready() {
            return Poll::Ready(Event::Cut);
        }
        if let Some(sleep) = &mut self.sleep
            && self.armed.is_some()
            && sleep.as_mut().poll(&mut cx).is_ready()
        {
            self.armed = None;
        }
        if let Some(finish) = &mut self.finish
            && finish.as_mut().poll(&mut cx).is_ready()
        {
            self.finish = None;
            self.connection.finish();
            return Poll::Ready(Event::Finish);
        }
        Poll::Pending
    }

    fn arm(&mut self, at: Instant) {
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                sleep.as_mut().reset(at);
                sleep
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        let mut cx = Context::from_waker(&self.waker);
        self.armed = sleep.as_mut().poll(&mut cx).is_pending().then_some(at);
    }
}
