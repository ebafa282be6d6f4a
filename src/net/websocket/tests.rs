//! What frames carry, however they are cut, and how a carrier ends.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tokio::io::duplex;

use super::frame::*;
use super::*;

const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// With these first bits, as a client writes it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    frame_of(KEY, first, payload)
}

fn frame_of(key: Option<[u8; 4]>, first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, 0, key, payload);
    out[0] = first;
    out
}

fn server() -> Decoder {
    Decoder::new(Role::Server)
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
        of_client: bool,
    ) {
        let key = KEY.filter(|_| of_client);
        let frame = |first, payload: &[u8]| frame_of(key, first, payload);
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
        let role = if of_client { Role::Server } else { Role::Client };
        let (mut decoder, mut got, mut at) = (Decoder::new(role), Vec::new(), 0);
        for place in places {
            got.extend(decoded(&mut decoder, &stream[at..place]).unwrap());
            at = place;
        }
        prop_assert!(got == carried && decoder.closed == Some(None));
    }

    #[test]
    fn no_bytes_make_it_fall_over(bytes: Vec<u8>) {
        for role in [Role::Server, Role::Client] {
            let _ = decoded(&mut Decoder::new(role), &bytes);
        }
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
        frame(FIN | CLOSE, &999_u16.to_be_bytes()),
        frame(FIN | CLOSE, &1006_u16.to_be_bytes()),
        vec![FIN | BINARY, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert!(decoded(&mut server(), &bytes).is_err(), "{bytes:?}");
    }
}

/// The Pong finds no room at first, and nothing else is written that could take it along.
#[tokio::test]
async fn a_ping_is_answered_while_nothing_else_is_said() {
    let (mut client, server) = duplex(4);
    let early = frame(FIN | PING, b"are you there?");
    let mut carrier = Carrier::new(Role::Server, server, Bytes::from(early));
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
    let mut carrier = Carrier::new(Role::Server, server, Bytes::new());
    client.write_all(&frame(FIN | CLOSE, &[])).await.unwrap();
    assert_eq!(carrier.read(&mut [0]).await.unwrap(), 0);
    carrier.write_all(b"more").await.unwrap();
    carrier.shutdown().await.unwrap();
    let mut got = [0; 10];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(got, *b"\x82\x04more\x88\x02\x03\xe8");

    let (client, server) = duplex(100);
    let mut carrier = Carrier::new(Role::Server, server, Bytes::new());
    drop(client);
    let error = carrier.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(carrier.fault(), Some(Fault::Broken));
}

#[tokio::test]
async fn who_leaves_instead_of_answering_our_close_ends_well_only_between_frames() {
    let whole = frame(FIN | BINARY, b"all");
    for (came, got, broken) in [
        (&whole[..], &b"all"[..], false),
        (b"", b"", false),
        // In a payload, in a header, in a control frame.
        (&whole[..whole.len() - 1], b"al", true),
        (&whole[..1], b"", true),
        (&frame(FIN | PING, b"?")[..6], b"", true),
    ] {
        let (mut client, server) = duplex(100);
        let mut carrier = Carrier::new(Role::Server, server, Bytes::new());
        carrier.shutdown().await.unwrap();
        client.write_all(came).await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        let read = carrier.read_to_end(&mut all).await;
        assert_eq!((&all[..], read.is_err()), (got, broken), "{came:?}");
        assert_eq!(carrier.fault(), broken.then_some(Fault::Broken));
    }
}

/// What the one writes the other reads, in both directions at once, with Pings between.
#[tokio::test]
async fn a_client_and_a_server_are_two_ends_of_a_stream() {
    let (a, b) = duplex(1000);
    let ends = [(Role::Client, a), (Role::Server, b)].map(|(role, stream)| {
        let early = match role {
            Role::Client => frame_of(None, FIN | PING, b"of the server"),
            Role::Server => frame(FIN | PING, b"of the client"),
        };
        let carrier = Carrier::new(role, stream, Bytes::from(early));
        tokio::spawn(async move {
            let sent: Vec<u8> = (0..300_000_u32).map(|n| (n ^ n >> 8) as u8).collect();
            let (mut read, mut write) = tokio::io::split(carrier);
            let writing = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
            read.unwrap();
            assert!(got == sent, "{} bytes", got.len());
        })
    });
    for end in ends {
        end.await.unwrap();
    }
}

#[tokio::test]
async fn each_frame_of_a_client_has_a_mask_of_its_own() {
    let (client, mut server) = duplex(100);
    let mut carrier = Carrier::new(Role::Client, client, Bytes::new());
    let mut masks = std::collections::HashSet::new();
    for _ in 0..20 {
        carrier.write_all(b"same").await.unwrap();
        let mut got = [0; 10];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(got[..2], [FIN | BINARY, MASKED | 4]);
        let key = <[u8; 4]>::try_from(&got[2..6]).unwrap();
        mask(&mut got[6..], key);
        assert_eq!(&got[6..], b"same");
        masks.insert(key);
    }
    assert!(masks.len() > 18, "{masks:?}");
}

#[tokio::test]
async fn a_server_that_masks_is_none() {
    let early = Bytes::from(frame(FIN | BINARY, b"x"));
    let mut carrier = Carrier::new(Role::Client, duplex(1).0, early);
    carrier.read(&mut [0; 9]).await.unwrap_err();
    assert_eq!(carrier.fault(), Some(Fault::Violation));
}

#[tokio::test]
async fn a_close_for_another_reason_than_being_done_is_a_break_behind_what_came_before() {
    for (code, fault) in [(1000, None), (1001, Some(Fault::Closed(1001)))] {
        let close = frame_of(None, FIN | CLOSE, &u16::to_be_bytes(code));
        let early = [frame_of(None, FIN | BINARY, b"all"), close].concat();
        let (stream, _other) = duplex(1);
        let mut carrier = Carrier::new(Role::Client, stream, Bytes::from(early));
        let mut got = Vec::new();
        let read = carrier.read_to_end(&mut got).await;
        assert_eq!((read.is_err(), &got[..]), (fault.is_some(), &b"all"[..]));
        assert_eq!(carrier.fault(), fault);
        assert!(carrier.is_closed());
    }
}
