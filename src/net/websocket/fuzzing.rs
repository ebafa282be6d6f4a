//! What `scripts/fuzz` asks of the codec.

use super::*;

/// What is found in bytes that come in pieces of `size`: payload, the last Ping, a Close; `None`: it is no websocket.
fn found(role: Role, bytes: &[u8], size: usize) -> Option<(Vec<u8>, Decoder)> {
    let (mut decoder, mut payload) = (Decoder::new(role), Vec::new());
    for piece in bytes.chunks(size) {
        let mut piece = piece.to_vec();
        let size = decoder.decode(&mut piece).ok()?;
        assert!(size <= piece.len());
        payload.extend_from_slice(&piece[..size]);
    }
    Some((payload, decoder))
}

/// However the bytes of the other side are cut, either role finds the same in them; and what one writes the other reads.
pub fn codec(data: &[u8]) {
    let [choice, cut, bytes @ ..] = data else {
        return;
    };
    let role = match choice & 1 {
        0 => Role::Server,
        _ => Role::Client,
    };
    let cut = usize::from(*cut).max(1);
    let whole = found(role, bytes, usize::MAX);
    let pieces = found(role, bytes, cut);
    match (&whole, &pieces) {
        (None, None) => {}
        (Some((a, one)), Some((b, other))) => {
            assert_eq!(a, b);
            assert_eq!((&one.ping, one.closed), (&other.ping, other.closed));
            assert_eq!((one.left, one.have), (other.left, other.have));
            assert!(one.ping.as_ref().is_none_or(|ping| ping.len() <= 125));
        }
        _ => panic!("{whole:?} is not {pieces:?}"),
    }
    let key = (role == Role::Server).then_some([*choice, 1, 2, 3]);
    let mut written = Vec::new();
    put_frame(&mut written, BINARY, key, bytes);
    put_frame(&mut written, CLOSE, key, &NORMAL.to_be_bytes());
    match found(role, &written, cut) {
        Some((read, decoder)) => {
            assert_eq!(read, bytes);
            assert_eq!(decoder.closed, Some(Some(NORMAL)));
        }
        None => panic!("what was written is no websocket"),
    }
}
