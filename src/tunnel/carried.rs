//! A flow of datagrams, as the public side holds it. What is sent waits in a short queue, for which there is no waiting: what
//! has no room is dropped and counted. Both directions go on while somebody asks for what comes. What the agent's rate makes
//! wait for longer than [`LATE`], either way, is dropped and counted too: what comes after it is worth more.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use parking_lot::Mutex;

use super::allowance::{Direction, Pause};
use super::carrier::broken;
use super::datagram::{self, Queue};
use super::flow::{Counted, Cut};
use super::offer::Standing;
use crate::upstream::dial::Datagrams;

/// The longest datagram of UDP over IPv4: whoever is at the other end may send no longer one on.
const LONGEST: usize = 65_507;

/// How long one may wait for those before it to be paid for.
const LATE: Duration = Duration::from_millis(200);

/// A flow. Dropping it resets the stream.
#[derive(Debug)]
pub(super) struct Carried {
    waiting: Mutex<Waiting>,
    stream: Mutex<Stream>,
    counted: Counted,
    // Whoever withdraws the service sees by it that there are flows.
    _standing: Arc<Standing>,
}

/// What is to be sent.
#[derive(Debug, Default)]
struct Waiting {
    queue: Queue,
    /// Who sends it, when that has nothing else to do.
    sender: Option<Waker>,
    ended: bool,
}

#[derive(Debug)]
struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Left the queue, and has no room yet.
    sending: Bytes,
    /// Came, and is no whole datagram yet.
    came: BytesMut,
    /// Came, and may not pass yet.
    held: Queue,
    pauses: [Pause; 2],
    cut: Cut,
}

impl Carried {
    pub(super) fn new(
        (send, receive): (SendStream<Bytes>, RecvStream),
        counted: Counted,
        (cut, standing): (Cut, Arc<Standing>),
    ) -> Carried {
        Carried {
            waiting: Mutex::default(),
            stream: Mutex::new(Stream {
                send,
                receive,
                sending: Bytes::new(),
                came: BytesMut::new(),
                held: Queue::default(),
                pauses: Default::default(),
                cut,
            }),
            counted,
            _standing: standing,
        }
    }

    /// Drops what is late.
    fn freshen(&self, queue: &mut Queue) {
        if self.counted.is_limited() {
            self.counted.dropped(queue.drop_older(LATE));
        }
    }

    /// Sends what waits, as far as there is room.
    fn poll_send(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pause = Direction::ToService as usize;
        loop {
            // What has begun is sent to its end.
            if stream.sending.is_empty() {
                ready!(stream.pauses[pause].poll(cx));
                let mut waiting = self.waiting.lock();
                self.freshen(&mut waiting.queue);
                match waiting.queue.take(self.counted.piece()) {
                    Some(some) => stream.sending = some,
                    None => {
                        waiting.sender = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
            }
            let wanted = stream.sending.len();
            stream.send.reserve_capacity(wanted);
            while stream.send.capacity() == 0 {
                match ready!(stream.send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                    None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                }
            }
            let piece = stream.sending.split_to(wanted.min(stream.send.capacity()));
            let until = self.counted.sent(piece.len());
            stream.send.send_data(piece, false).map_err(broken)?;
            stream.pauses[pause].until(until);
        }
    }

    fn poll_next(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let reset = |why: &str| io::Error::new(io::ErrorKind::ConnectionReset, why);
        if stream.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(reset("the service is withdrawn")));
        }
        // What waits there need not keep what comes here waiting.
        if let Poll::Ready(Err(error)) = self.poll_send(stream, cx) {
            return Poll::Ready(Err(error));
        }
        let pause = Direction::FromService as usize;
        loop {
            let paused = stream.pauses[pause].poll(cx).is_pending();
            if !paused {
                self.freshen(&mut stream.held);
                if let Some(datagram) = stream.held.pop() {
                    let until = self.counted.received(datagram.len());
                    stream.pauses[pause].until(until);
                    return Poll::Ready(Ok(datagram));
                }
            }
            if let Some(datagram) = datagram::take(&mut stream.came)? {
                // It is taken off the stream also where it may not pass: in its window it would be late.
                self.freshen(&mut stream.held);
                let held = match paused {
                    // Not with all that came beside it.
                    true => Bytes::copy_from_slice(&datagram),
                    false => datagram,
                };
                if !stream.held.push(held) {
                    self.counted.dropped(1);
                }
                continue;
            }
            match ready!(stream.receive.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    let flow = stream.receive.flow_control();
                    flow.release_capacity(chunk.len()).map_err(broken)?;
                    stream.came.extend_from_slice(&chunk);
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(reset("the agent has ended it"))),
            }
        }
    }
}

impl Datagrams for Carried {
    fn send(&self, data: &[u8]) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        if waiting.ended {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if data.len() > LONGEST {
            self.counted.dropped(1);
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.freshen(&mut waiting.queue);
        if !waiting.queue.push(datagram::encode(data)) {
            self.counted.dropped(1);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let sender = waiting.sender.take();
        drop(waiting);
        if let Some(sender) = sender {
            sender.wake();
        }
        Ok(())
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let came = self.poll_next(&mut self.stream.lock(), cx);
        if let Poll::Ready(Err(_)) = came {
            self.waiting.lock().ended = true;
        }
        came
    }
}
