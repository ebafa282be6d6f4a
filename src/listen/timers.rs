//! What may end a connection from outside: its deadlines, and its epoch's wish that it finish or its order that it end.
//!
//! One timer per connection, armed lazily: a request that ends before a deadline moves a field, not a timer. The timer
//! fires at most once per idle time for nothing, and is then set to what is due.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;
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

pin_project! {
    /// Watches for [`Event`]s beside the connection's own work.
    pub struct Watch<'a> {
        connection: Arc<Connection>,
        pub epoch: &'a Epoch,
        // Sets the connection's signal and wakes the driver.
        waker: Waker,
        #[pin]
        finish: Option<WaitForCancellationFuture<'a>>,
        #[pin]
        cut: WaitForCancellationFuture<'a>,
        sleep: Option<Pin<Box<Sleep>>>,
        // When `sleep` will fire; `None`: it has, or was never set.
        armed: Option<Instant>,
        started: bool,
    }
}

impl<'a> Watch<'a> {
    pub fn new(connection: Arc<Connection>, epoch: &'a Epoch) -> Watch<'a> {
        Watch {
            waker: Waker::from(connection.clone()),
            connection,
            epoch,
            finish: Some(epoch.finish.cancelled()),
            cut: epoch.cut.cancelled(),
            sleep: None,
            armed: None,
            started: false,
        }
    }

    /// Ready when something happened. Call it after the connection's own work, when that is pending: deadlines are
    /// stamped here.
    pub fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        self.connection.register(cx);
        if (self.connection.take_signal() || !self.started)
            && let Poll::Ready(event) = self.as_mut().poll_signalled()
        {
            return Poll::Ready(event);
        }
        while let Some((at, expired)) = self.connection.deadline() {
            match self.armed {
                // Fires early or in time; then we are here again.
                Some(armed) if armed <= at => return Poll::Pending,
                Some(_) => {}
                None if at <= Instant::now() => return Poll::Ready(Event::Expired(expired)),
                None => {}
            }
            self.as_mut().arm(at);
        }
        Poll::Pending
    }

    fn poll_signalled(self: Pin<&mut Self>) -> Poll<Event> {
        let mut this = self.project();
        let mut cx = Context::from_waker(this.waker);
        *this.started = true;
        if this.cut.poll(&mut cx).is_ready() {
            return Poll::Ready(Event::Cut);
        }
        if let Some(sleep) = this.sleep
            && this.armed.is_some()
            && sleep.as_mut().poll(&mut cx).is_ready()
        {
            *this.armed = None;
        }
        if let Some(finish) = this.finish.as_mut().as_pin_mut()
            && finish.poll(&mut cx).is_ready()
        {
            this.finish.set(None);
            this.connection.finish();
            return Poll::Ready(Event::Finish);
        }
        Poll::Pending
    }

    fn arm(self: Pin<&mut Self>, at: Instant) {
        let this = self.project();
        let sleep = match this.sleep {
            Some(sleep) => {
                sleep.as_mut().reset(at);
                sleep
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        let mut cx = Context::from_waker(this.waker);
        *this.armed = sleep.as_mut().poll(&mut cx).is_pending().then_some(at);
    }
}
