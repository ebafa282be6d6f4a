//! An origin that can die and come back on its port, and that answers its health checks as it is told.

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::raw::Conn;
use super::{free_port, until};

/// Its checks go to `/healthz`; everything else is a request.
pub(crate) struct Mortal {
    pub(crate) addr: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    name: String,
    dead: AtomicBool,
    healthy: AtomicBool,
    requests: AtomicU64,
    checks: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Mortal {
    pub(crate) fn start(name: &str) -> Mortal {
        let mut mortal = Mortal {
            addr: SocketAddr::from(([127, 0, 0, 1], free_port())),
            state: Arc::new(State {
                name: name.to_owned(),
                healthy: AtomicBool::new(true),
                ..State::default()
            }),
            accepting: None,
        };
        mortal.revive();
        mortal
    }

    /// Listens (again).
    pub(crate) fn revive(&mut self) {
        // A connection that an earlier life closed first may still hold the port for a moment.
        let listener = until("the port to be free again", || {
            match TcpListener::bind(self.addr) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => None,
                listener => Some(listener.unwrap()),
            }
        });
        self.state.dead.store(false, Ordering::SeqCst);
        let state = self.state.clone();
        self.accepting = Some(std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if state.dead.load(Ordering::SeqCst) {
                    return;
                }
                state.open.lock().unwrap().push(stream.try_clone().unwrap());
                let state = state.clone();
                std::thread::spawn(move || state.serve(stream));
            }
        }));
    }

    /// Stops listening and closes every connection, whatever is under way.
    pub(crate) fn kill(&mut self) {
        self.state.dead.store(true, Ordering::SeqCst);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.addr);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
        for stream in self.state.open.lock().unwrap().drain(..) {
            // Fails when the peer has closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn set_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, Ordering::SeqCst);
    }

    /// Requests that were read, over all lives.
    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Checks that were answered.
    pub(crate) fn checks(&self) -> u64 {
        self.state.checks.load(Ordering::SeqCst)
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.kill();
    }
}

impl State {
    /// A websocket, as far as bytes go.
    fn echo(&self, conn: &mut Conn) {
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let mut sent = conn.send(agreed);
        while sent.is_ok() {
            match conn.some(1024) {
                Ok(bytes) if !bytes.is_empty() => sent = conn.send(bytes),
                _ => return,
            }
        }
    }

    fn serve(&self, stream: TcpStream) {
        let Ok(mut conn) = Conn::over(stream) else {
            return;
        };
        if conn.stream.set_read_timeout(None).is_err() {
            return;
        }
        while let Ok(Some(head)) = conn.head() {
            if head.get("upgrade").is_some() {
                self.requests.fetch_add(1, Ordering::SeqCst);
                self.echo(&mut conn);
                break;
            }
            let check = head.line.contains("/healthz");
            let status = if check && !self.healthy.load(Ordering::SeqCst) {
                "503 Sick"
            } else {
                "200 OK"
            };
            let count = if check { &self.checks } else { &self.requests };
            count.fetch_add(1, Ordering::SeqCst);
            let (name, length) = (&self.name, self.name.len());
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{name}");
            if self.dead.load(Ordering::SeqCst) || conn.send(answer).is_err() {
                break;
            }
        }
        // Fails when the peer has closed it already.
        let _ = conn.stream.shutdown(Shutdown::Both);
    }
}
