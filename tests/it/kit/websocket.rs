//! Frames of websockets by hand.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::Conn;
use super::h2origin::accept;
use super::raw::Head;

pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// A whole message, or a control frame; `mask`: of a client.
pub(crate) fn frame(opcode: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..126 => out.push(masked | short as u8),
        middle @ 126..65536 => {
            out.push(masked | 126);
            out.extend((middle as u16).to_be_bytes());
        }
        long => {
            out.push(masked | 127);
            out.extend((long as u64).to_be_bytes());
        }
    }
    out.extend(mask.into_iter().flatten());
    let key = mask.unwrap_or_default();
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
    out
}

pub(crate) fn exact(conn: &mut Conn, size: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        let some = conn.some(size - out.len())?;
        if some.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.extend(some);
    }
    Ok(out)
}

/// Opcode and payload, unmasked.
pub(crate) fn read_frame(conn: &mut Conn) -> io::Result<(u8, Vec<u8>)> {
    let head = exact(conn, 2)?;
    let size = match head[1] & 0x7f {
        126 => exact(conn, 2)?,
        127 => exact(conn, 8)?,
        short => vec![short],
    };
    let size = size.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    let key = match head[1] & 0x80 {
        0 => vec![0; 4],
        _ => exact(conn, 4)?,
    };
    let payload = exact(conn, size)?;
    let plain = payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k);
    Ok((head[0] & 0x0f, plain.collect()))
}

/// A frame that must have a mask, as one of a client has: mask, opcode and payload.
pub(crate) fn read_masked(conn: &mut Conn) -> io::Result<([u8; 4], u8, Vec<u8>)> {
    let head = exact(conn, 2)?;
    assert_ne!(head[1] & 0x80, 0, "a frame without a mask");
    let size = match head[1] & 0x7f {
        126 => exact(conn, 2)?,
        127 => exact(conn, 8)?,
        short => vec![short],
    };
    let size = size.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    let key = <[u8; 4]>::try_from(&exact(conn, 4)?[..]).unwrap();
    let payload = exact(conn, size)?;
    let plain = payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k);
    Ok((key, head[0] & 0x0f, plain.collect()))
}

/// Agrees to the handshake that comes, as a server; `more`: fields of the answer.
pub(crate) fn agree(stream: TcpStream, more: &str) -> (Conn, Head) {
    let mut conn = Conn::over(stream).unwrap();
    let head = agree_on(&mut conn, more).unwrap();
    (conn, head)
}

/// The same on a connection of any kind.
pub(crate) fn agree_on<S: Read + Write>(conn: &mut Conn<S>, more: &str) -> io::Result<Head> {
    let head = conn.head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let key = accept(head.get("sec-websocket-key").expect("no key"));
    conn.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {key}\r\n{more}\r\n"
    ))?;
    Ok(head)
}
