//! A connection whose task ends in a way that it should not.
#![allow(clippy::unwrap_used)]

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::super::connection::Open;
use super::*;

#[tokio::test]
async fn a_panic_ends_the_connection_for_its_pool_and_for_who_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // It takes what is asked, and never answers.
    let target = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut asked = Vec::new();
        while let Some(Ok(one)) = connection.accept().await {
            asked.push(one);
        }
    });
    let open_ones = Arc::new(Open::default());
    let slot = Slot::take(&open_ones, None).unwrap();
    let socket = Socket::Tcp(TcpStream::connect(address).await.unwrap());
    let peer = TargetAddr::Ip(address);
    let mut parts = open(socket, slot, &peer).await.unwrap();
    let (panic, told) = oneshot::channel::<()>();
    let mut wire = parts.wire;
    parts.wire = Box::pin(async move {
        tokio::select! {
            () = &mut wire => {}
            _ = told => panic!("in the task of a connection"),
        }
    });
    let connection = Multiplexed::new(parts, peer);
    let keep = Keep {
        share: 8,
        timeout: Duration::from_secs(60),
    };
    let mut entry = Entry::new(connection, keep);
    let ticket = entry.take(keep).unwrap();
    let mut request = Request::new(Outgoing::empty());
    *request.uri_mut() = format!("http://{address}/").parse().unwrap();
    let answer = tokio::spawn(ticket.connection.send(request));
    tokio::task::yield_now().await;
    assert!(!entry.is_over() && entry.stays(Instant::now(), &mut 0));
    panic.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), answer)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(!entry.stays(Instant::now(), &mut 0));
    assert!(entry.take(keep).is_none());
    assert_eq!(open_ones.count(), 0);
    target.await.unwrap();
}
