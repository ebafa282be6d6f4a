//! What is said and heard on one socket: the request that goes out, and the answer that comes in.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::{HeaderMap, Method, Request, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite as _;

use super::super::body::RequestBody;
use super::super::error::{Error, Kind};
use super::super::wire::Socket;
use super::chunked::Piece;
pub(in crate::upstream) use super::decode::Head;
use super::decode::{self, Framing, Parsed, Span};
use super::encode::{self, CHUNK_END, LAST_CHUNK_END};
use super::{Fault, INTERIM};

/// Bytes that are read at a time: at first, and at most, once the origin has filled that again and again.
const FIRST_READ: usize = 8 * 1024;
const MOST_READ: usize = 128 * 1024;
/// Bytes for heads of requests that a connection keeps room for while it waits for its next one.
const KEPT: usize = 16 * 1024;

/// One HTTP/1 connection, from our side.
#[derive(Debug)]
pub(in crate::upstream) struct Http1 {
    socket: Socket,
    sending: Sending,
    receiving: Receiving,
    /// What came and was not taken yet.
    read: BytesMut,
    /// How much the next read should have room for.
    room: usize,
    /// `read` has had more room than a first read needs.
    grown: bool,
    /// Used by each head anew.
    spans: Vec<Span>,
    /// The origin will take another request after this answer.
    stays: bool,
}

/// What goes out: `out`, then `piece`, then `tail`.
#[derive(Debug, Default)]
struct Sending {
    out: Vec<u8>,
    /// So much of `out` is written.
    from: usize,
    piece: Bytes,
    tail: &'static [u8],
    /// How what is left of the body is written; `None`: nothing is.
    framing: Option<encode::Framing>,
    /// Kept until it is written whole, in case nothing of it is.
    body: RequestBody,
    /// Written and not flushed.
    dirty: bool,
    /// Something of this request is written.
    begun: bool,
    /// Writing has failed. The origin may have refused a large body and closed: its answer is still to be read, so nothing is
    /// said of it; when there is none, reading fails, too.
    deaf: bool,
}

#[derive(Debug)]
enum Receiving {
    /// No request is under way.
    Nothing,
    Head {
        /// Of `read`, that much was looked at before.
        seen: usize,
        bodiless: bool,
        interim: u32,
    },
    Body(Framing),
    Broken,
}

/// What comes before a body.
#[derive(Debug)]
pub(in crate::upstream) enum Heard {
    /// 1xx; the answer is still to come.
    Interim(StatusCode),
    Answer(Head),
}

impl Http1 {
    pub(in crate::upstream) fn new(socket: Socket) -> Http1 {
        Http1 {
            socket,
            sending: Sending::default(),
            receiving: Receiving::Nothing,
            read: BytesMut::new(),
            room: FIRST_READ,
            grown: false,
            spans: Vec::new(),
            stays: true,
        }
    }

    /// Begins to send `request`; its body is taken, its head is left as it is.
    pub(in crate::upstream) fn begin(&mut self, request: &mut Request<RequestBody>) {
        let sending = &mut self.sending;
        sending.out.clear();
        sending.from = 0;
        sending.begun = false;
        (sending.piece, sending.tail) = (Bytes::new(), &[]);
        sending.framing = encode::head(request, &mut sending.out);
        if sending.framing.is_some() {
            sending.body = std::mem::replace(request.body_mut(), RequestBody::empty());
        }
        self.receiving = Receiving::Head {
            seen: 0,
            bodiless: request.method() == Method::HEAD,
            interim: 0,
        };
    }

    /// If nothing of the request was written: its body, as it was.
    pub(in crate::upstream) fn unsent(&mut self) -> Option<RequestBody> {
        let sending = &mut self.sending;
        if sending.begun {
            return None;
        }
        let body = std::mem::replace(&mut sending.body, RequestBody::empty());
        let piece = std::mem::take(&mut sending.piece);
        Some(match piece.is_empty() {
            true => body,
            false => body.rewound([piece].into()),
        })
    }

    /// Something of the request is still to be sent.
    pub(in crate::upstream) fn is_sending(&self) -> bool {
        let sending = &self.sending;
        !sending.deaf && (sending.framing.is_some() || sending.waits() || sending.dirty)
    }

    /// Sends what can be sent; ready when that is all.
    ///
    /// # Errors
    /// The body broke, on the client's side. The request cannot be ended.
    pub(in crate::upstream) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let (sending, mut socket) = (&mut self.sending, Pin::new(&mut self.socket));
        loop {
            if sending.deaf {
                return Poll::Ready(Ok(()));
            }
            if sending.framing.is_some() && sending.piece.is_empty() && sending.tail.is_empty() {
                // Before anything is written: what is at hand goes with the head.
                match Pin::new(&mut sending.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => sending.take(frame)?,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => sending.end(None)?,
                    Poll::Pending => {}
                }
            }
            if sending.waits() {
                match ready!(sending.poll_write(socket.as_mut(), cx)) {
                    Ok(()) => continue,
                    Err(error) => sending.fail(&error),
                }
            } else if sending.dirty {
                // Of TLS this may be the first write that fails.
                match ready!(socket.as_mut().poll_flush(cx)) {
                    Ok(()) => sending.dirty = false,
                    Err(error) => sending.fail(&error),
                }
            } else if sending.framing.is_some() {
                return Poll::Pending;
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The next head. `fields` are replaced by those of an answer.
    ///
    /// # Errors
    /// There will be none.
    pub(in crate::upstream) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        fields: &mut HeaderMap,
    ) -> Poll<Result<Heard, Fault>> {
        let heard = self.poll_heard(cx, fields);
        if let Poll::Ready(Err(_)) = heard {
            self.receiving = Receiving::Broken;
        }
        heard
    }

    fn poll_heard(
        &mut self,
        cx: &mut Context<'_>,
        fields: &mut HeaderMap,
    ) -> Poll<Result<Heard, Fault>> {
        loop {
            let Receiving::Head {
                seen,
                bodiless,
                interim,
            } = &mut self.receiving
            else {
                return Poll::Ready(Err(Fault::Closed));
            };
            if self.read.len() > *seen {
                match decode::head(&mut self.read, *seen, *bodiless, fields, &mut self.spans)? {
                    Parsed::Partial => *seen = self.read.len(),
                    Parsed::Interim(status) => {
                        *seen = 0;
                        *interim += 1;
                        if *interim > INTERIM {
                            let why = format!("more than {INTERIM} interim responses");
                            return Poll::Ready(Err(Fault::Malformed(why)));
                        }
                        return Poll::Ready(Ok(Heard::Interim(status)));
                    }
                    Parsed::Whole {
                        head,
                        framing,
                        stays,
                    } => {
                        self.receiving = Receiving::Body(framing);
                        self.stays = stays;
                        return Poll::Ready(Ok(Heard::Answer(head)));
                    }
                }
            }
            if ready!(self.poll_fill(cx)).map_err(Fault::Io)? == 0 {
                return Poll::Ready(Err(Fault::Closed));
            }
        }
    }

    /// The next piece of the answer's body, or its trailers.
    ///
    /// # Errors
    /// It will not come whole.
    pub(in crate::upstream) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let piece = self.poll_piece(cx);
        match &piece {
            Poll::Ready(Ok(None)) => self.receiving = Receiving::Body(Framing::Length(0)),
            Poll::Ready(Err(_)) => self.receiving = Receiving::Broken,
            _ => {}
        }
        piece.map(Result::transpose)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Fault>> {
        loop {
            let framing = match &mut self.receiving {
                Receiving::Body(framing) => framing,
                Receiving::Nothing => return Poll::Ready(Ok(None)),
                Receiving::Head { .. } | Receiving::Broken => {
                    return Poll::Ready(Err(Fault::Closed));
                }
            };
            match framing {
                Framing::Length(0) => return Poll::Ready(Ok(None)),
                Framing::Length(rest) if !self.read.is_empty() => {
                    let size = usize::try_from(*rest).unwrap_or(usize::MAX);
                    let data = self.read.split_to(size.min(self.read.len())).freeze();
                    *rest -= data.len() as u64;
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Framing::UntilClose if !self.read.is_empty() => {
                    return Poll::Ready(Ok(Some(Frame::data(self.read.split().freeze()))));
                }
                Framing::Length(_) | Framing::UntilClose => {}
                Framing::Chunked(chunked) => match chunked.next(&mut self.read)? {
                    Some(Piece::Data(data)) => {
                        // A reader that sees the end coming does not ask again.
                        if chunked.end_at_hand(&mut self.read) {
                            *framing = Framing::Length(0);
                        }
                        return Poll::Ready(Ok(Some(Frame::data(data))));
                    }
                    Some(Piece::Trailers(trailers)) => {
                        *framing = Framing::Length(0);
                        return Poll::Ready(Ok(Some(Frame::trailers(trailers))));
                    }
                    Some(Piece::End) => return Poll::Ready(Ok(None)),
                    None => {}
                },
            }
            let until_close = matches!(framing, Framing::UntilClose);
            if ready!(self.poll_fill(cx)).map_err(Fault::Io)? == 0 {
                return Poll::Ready(match until_close {
                    true => Ok(None),
                    false => Err(Fault::Closed),
                });
            }
        }
    }

    /// The answer is whole, as far as is known without another read.
    pub(in crate::upstream) fn is_answered(&self) -> bool {
        matches!(
            self.receiving,
            Receiving::Nothing | Receiving::Body(Framing::Length(0))
        )
    }

    /// Bytes of the answer's body that are still to come, where that is known.
    pub(in crate::upstream) fn rest(&self) -> Option<u64> {
        match self.receiving {
            Receiving::Body(Framing::Length(rest)) => Some(rest),
            _ => None,
        }
    }

    /// Both messages have ended, nothing came after them, and the origin has not closed: it can take a request. What it reads
    /// of the socket is known by the last event, so that as a rule it costs no call to the system.
    pub(in crate::upstream) fn is_fresh(&mut self) -> bool {
        self.stays
            && !self.sending.deaf
            && !self.is_sending()
            && self.is_answered()
            && self.read.is_empty()
            && self.socket.is_silent()
    }

    /// Lets go of what the last request needed.
    pub(in crate::upstream) fn rest_idle(&mut self) {
        self.receiving = Receiving::Nothing;
        if std::mem::take(&mut self.grown) {
            self.read = BytesMut::new();
        }
        if self.sending.out.capacity() > KEPT {
            self.sending.out = Vec::new();
        }
        self.room = FIRST_READ;
    }

    /// The socket, and what came after the head of the answer: after `101` it speaks HTTP no more.
    pub(in crate::upstream) fn into_parts(self) -> (Socket, Bytes) {
        (self.socket, self.read.freeze())
    }

    /// Reads once; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() - self.read.len() < self.room / 2 {
            self.grown |= self.room > FIRST_READ;
            self.read.reserve(self.room);
        }
        let spare = self.read.capacity() - self.read.len();
        let socket = Pin::new(&mut self.socket);
        let size = ready!(tokio_util::io::poll_read_buf(socket, cx, &mut self.read))?;
        if size >= spare {
            self.room = (self.room * 2).min(MOST_READ);
        } else if size < self.room / 4 {
            self.room = (self.room / 2).max(FIRST_READ);
        }
        Poll::Ready(Ok(size))
    }
}

impl Sending {
    /// Something is to be written.
    fn waits(&self) -> bool {
        self.from < self.out.len() || !self.piece.is_empty() || !self.tail.is_empty()
    }

    /// A frame of the body is the next to be written.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), Error> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(frame.trailers_ref()),
        };
        let is_last = self.body.is_end_stream();
        match &mut self.framing {
            Some(encode::Framing::Length(rest)) => {
                let left = rest.checked_sub(data.len() as u64);
                *rest = left.ok_or_else(|| wrong_length("longer"))?;
                self.piece = data;
                if self.framing == Some(encode::Framing::Length(0)) || is_last {
                    self.end(None)?;
                }
            }
            // A chunk without bytes would be the last.
            Some(encode::Framing::Chunked(_)) if data.is_empty() && !is_last => {}
            Some(encode::Framing::Chunked(_)) if data.is_empty() => self.end(None)?,
            Some(encode::Framing::Chunked(_)) => {
                self.make_room();
                encode::chunk(data.len(), &mut self.out);
                self.piece = data;
                self.tail = CHUNK_END;
                if is_last {
                    (self.tail, self.framing) = (LAST_CHUNK_END, None);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// The body has ended.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Error> {
        match self.framing.take() {
            Some(encode::Framing::Length(rest)) if rest > 0 => Err(wrong_length("shorter")),
            Some(encode::Framing::Chunked(names)) => {
                self.make_room();
                encode::end(trailers, &names, &mut self.out);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What is written of `out` makes room for more.
    fn make_room(&mut self) {
        if self.from == self.out.len() {
            self.out.clear();
            self.from = 0;
        }
    }

    /// Writes once.
    fn poll_write(
        &mut self,
        socket: Pin<&mut Socket>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let head = &self.out[self.from..];
        let size = if self.piece.is_empty() && self.tail.is_empty() {
            ready!(socket.poll_write(cx, head))?
        } else {
            let all = [head, &self.piece, self.tail].map(IoSlice::new);
            ready!(socket.poll_write_vectored(cx, &all))?
        };
        if size == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        (self.dirty, self.begun) = (true, true);
        let of_head = size.min(head.len());
        self.from += of_head;
        let of_piece = (size - of_head).min(self.piece.len());
        bytes::Buf::advance(&mut self.piece, of_piece);
        self.tail = &self.tail[size - of_head - of_piece..];
        if self.framing.is_none() && !self.waits() {
            // Whole: nothing holds its memory any longer.
            self.body = RequestBody::empty();
            self.piece = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }

    fn fail(&mut self, error: &io::Error) {
        tracing::debug!(%error, "upstream write failed; reading what the origin still said");
        self.deaf = true;
    }
}

fn wrong_length(how: &str) -> Error {
    let detail = format!("the request's body is {how} than it said");
    Error::us(Kind::ProxyInternalError, detail)
}
