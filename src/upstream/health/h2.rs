//! One request over HTTP/2 on a connection of its own, for checks: everything that belongs to it ends when the answer is
//! dropped.

use std::sync::Arc;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::super::error::chain;
use super::super::h1::HEAD;
use super::super::wire::Socket;

/// An answer, and what it comes on.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    _connection: Connection,
}

struct Connection {
    _driver: AbortOnDropHandle<Result<(), hyper::Error>>,
    _end: End,
}

/// Sends, and waits for the head of the answer.
pub(super) async fn send(
    socket: Socket,
    request: Request<Full<Bytes>>,
) -> Result<Answered, String> {
    let tasks = Tasks::default();
    let end = End(tasks.clone());
    let handshake = http2::Builder::new(tasks)
        .max_header_list_size(HEAD as u32)
        .handshake(TokioIo::new(socket));
    let (mut sender, connection) = handshake.await.map_err(|e| chain(&e))?;
    let connection = Connection {
        _driver: AbortOnDropHandle::new(tokio::spawn(connection)),
        _end: end,
    };
    let response = sender.send_request(request).await;
    Ok(Answered {
        response: response.map_err(|e| chain(&e))?,
        _connection: connection,
    })
}

/// Runs what hyper starts beside a connection.
#[derive(Debug, Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortOnDropHandle<()>>>>);

/// Ends them: the tasks themselves hold the list.
struct End(Tasks);

impl Drop for End {
    fn drop(&mut self) {
        self.0.0.lock().clear();
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, work: F) {
        let task = AbortOnDropHandle::new(tokio::spawn(work));
        self.0.lock().push(task);
    }
}
