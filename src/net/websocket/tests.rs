//! What frames carry, however they are cut, and how a carrier ends.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tokio::io::duplex;

use super::*;

/// As a client writes it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, 0, payload);
    out[0] = first;
    out[1] |= MASKED;
    let at = out.len() - payload.len();
    let key = [1, 2, 3, 4];
    let masked = payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k);
    let masked: Vec<u8> = masked.collect();
    out.truncate(at);
    out.extend(key);
    out.extend(masked);
    out
}

fn decoded(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<u8>, Violation> {
    let mut bytes = bytes.to_vec();
    let size = decoder.decode(&mut bytes)?;
    bytes.truncate(size);
    Ok(bytes)
}

proptest! {
    #[test]
    fn any_split_of_frames_carries_the_same(
        pieces in proptest::collection::vec((0_usize..3, 0_usize..70_000), 1..5),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let (mut stream, mut carried) = (Vec::new(), Vec::new());
        for (kind, size) in pieces {
            let payload: Vec<u8> = (0..size).map(|n| (n ^ n >> 8) as u8).collect();
            match kind {
                0 => stream.extend(frame(FIN | BINARY, &payload)),
                1 => {
                    // With a Ping in the middle.
                    stream.extend(frame(TEXT, &payload[..size / 2]));
                    stream.extend(frame(FIN | PING, b"?"));
                    stream.extend(frame(FIN | CONTINUATION, &payload[size / 2..]));
                }
                _ => {
                    stream.extend(frame(FIN | PONG, &payload[..size.min(125)]));
                    continue;
                }
            }
            carried.extend(payload);
        }
        stream.extend(frame(FIN | CLOSE, &[]));
        stream.extend(b"whatever");
        let mut places: Vec<usize> = cuts.iter().map(|c| c.index(stream.len())).collect();
        places.push(stream.len());
        places.sort_unstable();
        let (mut decoder, mut got, mut at) = (Decoder::default(), Vec::new(), 0);
        for place in places {
            got.extend(decoded(&mut decoder, &stream[at..place]).unwrap());
            at = place;
        }
        prop_assert!(got == carried && decoder.closed);
    }

    #[test]
    fn no_bytes_make_it_fall_over(bytes: Vec<u8>) {
        let _ = decoded(&mut Decoder::default(), &bytes);
    }
}

#[test]
fn what_is_no_websocket_is_found_out() {
    let long = vec![0; 126];
    for bytes in [
        vec![FIN | BINARY, 1, 0],
        frame(FIN | 0x40 | BINARY, b"x"),
        frame(FIN | 3, b"x"),
        frame(FIN | CONTINUATION, b"x"),
        [frame(BINARY, b"x"), frame(FIN | BINARY, b"x")].concat(),
        frame(PING, b"x"),
        frame(FIN | PING, &long),
        frame(FIN | CLOSE, b"x"),
        vec![FIN | BINARY, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert!(
            decoded(&mut Decoder::default(), &bytes).is_err(),
            "{bytes:?}"
        );
    }
}

/// The Pong finds no room at first, and nothing else is written that could take it along.
#[tokio::test]
async fn a_ping_is_answered_while_nothing_else_is_said() {
    let (mut client, server) = duplex(4);
    let early = frame(FIN | PING, b"are you there?");
    let mut carrier = Carrier::new(server, Bytes::from(early));
    let reading = tokio::spawn(async move { carrier.read_u8().await });
    let mut answer = [0; 16];
    client.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(&[FIN | PONG, 14]) && answer.ends_with(b"there?"));
    client.write_all(&frame(FIN | BINARY, b"x")).await.unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn each_end_comes_alone_and_one_without_a_close_is_an_error() {
    let (mut client, server) = duplex(100);
    let mut carrier = Carrier::new(server, Bytes::new());
    client.write_all(&frame(FIN | CLOSE, &[])).await.unwrap();
    assert_eq!(carrier.read(&mut [0]).await.unwrap(), 0);
    carrier.write_all(b"more").await.unwrap();
    carrier.shutdown().await.unwrap();
    let mut got = [0; 10];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(got, *b"\x82\x04more\x88\x02\x03\xe8");

    let (client, server) = duplex(100);
    let mut carrier = Carrier::new(server, Bytes::new());
    drop(client);
    let error = carrier.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(carrier.fault(), Some(Fault::Broken));
}
