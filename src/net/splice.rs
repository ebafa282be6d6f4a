//! Two TCP sockets joined in the kernel: bytes go from one to the other through a pipe and are never copied to us.
//!
//! A direction begins by reading and writing, which is cheaper for messages that are asked and answered; when it has filled
//! its buffer twice in a row it is a stream, and goes through a pipe until that has run dry. Pipes are taken from a small
//! store of the thread when bytes wait and given back when none do, so that silent sessions hold none.
//!
//! It promises what [`super::copy`] does: order, back-pressure (at most a pipe of bytes waits), ends passed on one by one.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::copy::{CHUNK, End, Idle};

/// Bytes that a pipe should hold, if the system allows so much; and the most that are moved at a time.
const PIPE: usize = 256 * 1024;
/// Pipes that a thread keeps.
const STORE: usize = 32;
/// Moves of one direction in one poll, before others may run.
const ROUNDS: usize = 16;
/// Full buffers in a row after which a direction goes through a pipe.
const STREAM: u8 = 2;

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn take() -> io::Result<Pipe> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user's pipes may be limited in all: then it stays as it is.
        let _ = fcntl_setpipe_size(&write, PIPE);
        Ok(Pipe { read, write })
    }

    /// It must be empty.
    fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < STORE {
                pipes.push(self);
            }
        });
    }
}

/// One direction.
#[derive(Debug, Default)]
pub struct Lane {
    /// Bytes that came.
    pub bytes: u64,
    /// Read by us and not yet written.
    pending: Bytes,
    pipe: Option<Pipe>,
    /// In the pipe.
    held: usize,
    /// Full buffers in a row.
    full: u8,
    ended: bool,
    closed: bool,
    /// Something moved since the last look.
    moved: bool,
}

impl Lane {
    /// `first` came already and goes out first.
    fn new(first: Bytes) -> Lane {
        let mut lane = Lane::default();
        lane.bytes = first.len() as u64;
        lane.pending = first;
        lane
    }

    /// Moves what can be moved from `from` to `to`. Ready when the end has come and was passed on.
    ///
    /// # Errors
    /// One side is broken.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS {
            ready!(self.poll_write(cx, to))?;
            if self.ended {
                if !self.closed {
                    let shut = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
                    // It may be gone already; then there is nobody to tell.
                    if let Err(error) = shut
                        && error.kind() != io::ErrorKind::NotConnected
                    {
                        return Poll::Ready(Err(error));
                    }
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, from, to))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what waits.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let size = ready!(poll_io(cx, to, Interest::WRITABLE, || to.try_write(&self.pending)))?;
            if size == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            bytes::Buf::advance(&mut self.pending, size);
            self.moved = true;
        }
        self.pending = Bytes::new();
        while self.held > 0 {
            let Some(pipe) = &self.pipe else {
                // Bytes are counted with the pipe that holds them.
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let held = self.held;
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            let size = ready!(poll_io(cx, to, Interest::WRITABLE, || {
                to.try_io(Interest::WRITABLE, || {
                    Ok(splice(&pipe.read, None, to, None, held, flags)?)
                })
            }))?;
            if size == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held -= size;
            self.moved = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and writes at once what was read by copying.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<io::Result<()>> {
        if self.full >= STREAM {
            if self.pipe.is_none() {
                // Without descriptors it goes on as it was.
                match Pipe::take() {
                    Ok(pipe) => self.pipe = Some(pipe),
                    Err(_) => self.full = 0,
                }
            }
            if let Some(pipe) = &self.pipe {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let moved = from.try_io(Interest::READABLE, || {
                    Ok(splice(from, None, &pipe.write, None, PIPE, flags)?)
                });
                match moved {
                    Ok(0) => self.ended = true,
                    Ok(size) => {
                        self.held = size;
                        self.bytes += size as u64;
                        self.moved = true;
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.full = 0,
                    Err(error) => return Poll::Ready(Err(error)),
                }
                if let Some(pipe) = self.pipe.take() {
                    pipe.give_back();
                }
                if self.ended {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        loop {
            let mut passed = None;
            // What does not fill the buffer has emptied the socket: its readiness ends with that, so that nobody asks in vain
            // before the next event (epoll(7), question 9). Within the attempt: an event that comes later still counts.
            let tried = from.try_io(Interest::READABLE, || {
                let ((bytes, _), _) = recv(from, &mut chunk[..], RecvFlags::empty())?;
                let is_all = (1..CHUNK).contains(&bytes.len());
                passed = Some(self.pass(bytes, to));
                match is_all {
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => Ok(()),
                }
            });
            match (passed, tried) {
                (Some(passed), _) => return Poll::Ready(passed),
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(from.poll_read_ready(cx))?;
                }
                (None, Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                    return Poll::Ready(Err(error));
                }
                (None, _) => {}
            }
        }
    }

    /// Writes what was read, as far as there is room; the rest waits.
    fn pass(&mut self, bytes: &[u8], to: &TcpStream) -> io::Result<()> {
        if bytes.is_empty() {
            self.ended = true;
            return Ok(());
        }
        self.bytes += bytes.len() as u64;
        self.moved = true;
        self.full = match bytes.len() == CHUNK {
            true => self.full.saturating_add(1),
            false => 0,
        };
        let written = match to.try_write(bytes) {
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if written < bytes.len() {
            self.pending = Bytes::copy_from_slice(&bytes[written..]);
        }
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // One that holds bytes is closed with them.
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipe.give_back();
        }
    }
}

/// Tries, and waits for readiness while it would block.
fn poll_io<T>(
    cx: &mut Context<'_>,
    stream: &TcpStream,
    interest: Interest,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            done => return Poll::Ready(done),
        }
        match interest {
            Interest::READABLE => ready!(stream.poll_read_ready(cx))?,
            _ => ready!(stream.poll_write_ready(cx))?,
        }
    }
}

/// Two sockets and what is between them.
#[derive(Debug)]
pub struct Spliced<'a> {
    a: &'a TcpStream,
    b: &'a TcpStream,
    /// From `a` to `b`.
    pub forth: Lane,
    /// From `b` to `a`.
    pub back: Lane,
    idle: Option<Idle>,
}

impl<'a> Spliced<'a> {
    /// `first`: what `a` has sent already. `idle`: how long nothing may move in either direction.
    pub fn new(
        (a, b): (&'a TcpStream, &'a TcpStream),
        first: Bytes,
        idle: Option<Duration>,
    ) -> Spliced<'a> {
        Spliced {
            a,
            b,
            forth: Lane::new(first),
            back: Lane::new(Bytes::new()),
            idle: idle.map(Idle::new),
        }
    }

    /// Moves what can be moved, as [`super::copy::Pair::poll`] does.
    ///
    /// # Errors
    /// One side is broken.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>> {
        let forth = self.forth.poll(cx, self.a, self.b)?;
        let back = self.back.poll(cx, self.b, self.a)?;
        if forth.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(End::Closed));
        }
        let moved = std::mem::take(&mut self.forth.moved) | std::mem::take(&mut self.back.moved);
        match &mut self.idle {
            Some(idle) => idle.poll(cx, moved).map(|()| Ok(End::Idle)),
            None => Poll::Pending,
        }
    }
}
