//! The accept loop against real sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::control::Control;
use super::super::fake::Fake;
use super::super::{Context, serve};

/// One request on a connection of its own, to its end.
async fn raw(address: std::net::SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const READY: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn the_listener_follows_the_binding() {
    let fake = Fake::new();
    let spec = fake.binding().borrow().as_ref().unwrap().spec.clone();
    let first = fake.bind(spec.clone());
    let server = tokio::spawn(serve::run(fake.clone(), Context::default()));
    assert!(raw(first, READY).await.starts_with("HTTP/1.1 200 "));

    // A request in flight on the old address is answered after the move.
    fake.hold();
    let mut old = TcpStream::connect(first).await.unwrap();
    old.write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    while fake.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = fake.bind(spec);
    assert!(raw(second, READY).await.starts_with("HTTP/1.1 200 "));
    fake.release();
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"committed\""),
        "{answer}"
    );
    server.abort();
}

#[tokio::test]
async fn the_last_answers_are_given_before_the_end() {
    let fake = Fake::new();
    let spec = fake.binding().borrow().as_ref().unwrap().spec.clone();
    let address = fake.bind(spec);
    let context = Context::default();
    let server = tokio::spawn(serve::run(fake.clone(), context.clone()));
    fake.hold();
    let mut waiting = TcpStream::connect(address).await.unwrap();
    waiting
        .write_all(
            b"POST /stop?wait=drained HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        )
        .await
        .unwrap();
    while fake.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    // No address any more, then told to end: the answer in flight still comes.
    fake.unbind();
    context.stop.cancel();
    fake.release();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"stopped\""),
        "{answer}"
    );
    server.await.unwrap();
}

#[tokio::test]
async fn a_refused_upload_is_answered_not_reset() {
    let fake = Fake::new();
    let spec = fake.binding().borrow().as_ref().unwrap().spec.clone();
    let address = fake.bind(spec);
    let server = tokio::spawn(serve::run(fake.clone(), Context::default()));
    let size = crate::config::MAX_BYTES + 4096;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/toml\r\n\
         Content-Length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; size]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    server.abort();
}
