//! A chunked body (RFC 9112 section 7.1), read from a buffer that fills as it likes.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::{Buf as _, Bytes, BytesMut};
use httparse::Status;

use super::decode::may_be_whole;
use super::encode::LAST_CHUNK_END;
use super::{FIELDS, Fault, HEAD};

/// Bytes of all chunk extensions of a body: nobody reads them.
const EXTENSIONS: usize = 16 * 1024;

/// What comes next.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// After them it has ended.
    Trailers(HeaderMap),
    End,
}

#[derive(Debug, Default)]
pub(super) struct Chunked {
    at: At,
    extensions: usize,
    /// Of the trailers, that much was looked at before.
    seen: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Within the digits of a size; whether one has come.
    Size(u64, bool),
    /// After them; within an extension or not.
    AfterSize(u64, bool),
    /// Before the LF that ends the line.
    SizeEnd(u64),
    Data(u64),
    /// Before the CR and the LF that end a chunk.
    DataEnd,
    DataEndLf,
    Trailers,
}

impl Default for At {
    fn default() -> At {
        At::Size(0, false)
    }
}

impl Chunked {
    /// Takes the next piece from `read`. `None`: it takes more bytes.
    pub(super) fn next(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, Fault> {
        loop {
            match self.at {
                At::Data(rest) => {
                    if read.is_empty() {
                        return Ok(None);
                    }
                    let size = usize::try_from(rest).unwrap_or(usize::MAX).min(read.len());
                    let data = read.split_to(size).freeze();
                    self.at = match rest - size as u64 {
                        0 => At::DataEnd,
                        rest => At::Data(rest),
                    };
                    return Ok(Some(Piece::Data(data)));
                }
                At::Trailers => return self.trailers(read),
                at => {
                    let Some(byte) = read.first().copied() else {
                        return Ok(None);
                    };
                    read.advance(1);
                    self.at = self.step(at, byte)?;
                }
            }
        }
    }

    /// Takes the end, if it is at hand whole and has no trailers.
    pub(super) fn end_at_hand(&mut self, read: &mut BytesMut) -> bool {
        let is_end = self.at == At::DataEnd && read.starts_with(LAST_CHUNK_END);
        if is_end {
            read.advance(LAST_CHUNK_END.len());
        }
        is_end
    }

    fn step(&mut self, at: At, byte: u8) -> Result<At, Fault> {
        let sized = |size| match size {
            0 => At::Trailers,
            size => At::Data(size),
        };
        Ok(match (at, byte) {
            (At::Size(size, _), digit) if digit.is_ascii_hexdigit() => {
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                let size = size.checked_mul(16).ok_or_else(|| bad("a chunk's size"))?;
                At::Size(size + u64::from(digit), true)
            }
            (At::Size(size, true) | At::AfterSize(size, _), b'\r') => At::SizeEnd(size),
            (At::Size(size, true) | At::AfterSize(size, false), b' ' | b'\t') => {
                self.count_extension()?;
                At::AfterSize(size, false)
            }
            (At::Size(size, true) | At::AfterSize(size, false), b';') => At::AfterSize(size, true),
            (At::AfterSize(size, true), other) if other != b'\n' => {
                self.count_extension()?;
                At::AfterSize(size, true)
            }
            (At::SizeEnd(size), b'\n') => sized(size),
            (At::DataEnd, b'\r') => At::DataEndLf,
            (At::DataEndLf, b'\n') => At::default(),
            (At::Size(..) | At::AfterSize(..) | At::SizeEnd(_), _) => {
                return Err(bad("a chunk's size"));
            }
            _ => return Err(bad("a chunk's end")),
        })
    }

    fn count_extension(&mut self) -> Result<(), Fault> {
        self.extensions += 1;
        match self.extensions > EXTENSIONS {
            true => Err(bad("its chunk extensions")),
            false => Ok(()),
        }
    }

    fn trailers(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, Fault> {
        if read.starts_with(b"\r\n") {
            read.advance(2);
            return Ok(Some(Piece::End));
        }
        if self.seen == 0 || may_be_whole(read, self.seen) {
            let mut room = [httparse::EMPTY_HEADER; FIELDS];
            match httparse::parse_headers(read, &mut room) {
                Ok(Status::Complete((size, fields))) if size <= HEAD => {
                    let mut trailers = HeaderMap::with_capacity(fields.len());
                    for field in fields {
                        let name = HeaderName::from_bytes(field.name.as_bytes());
                        let value = HeaderValue::from_bytes(field.value);
                        let (Ok(name), Ok(value)) = (name, value) else {
                            return Err(bad("its trailers"));
                        };
                        trailers.append(name, value);
                    }
                    read.advance(size);
                    return Ok(Some(match trailers.is_empty() {
                        true => Piece::End,
                        false => Piece::Trailers(trailers),
                    }));
                }
                Ok(Status::Partial) => {}
                _ => return Err(bad("its trailers")),
            }
        }
        self.seen = read.len();
        match read.len() > HEAD {
            true => Err(bad("its trailers")),
            false => Ok(None),
        }
    }
}

fn bad(what: &str) -> Fault {
    Fault::Malformed(format!("a chunked body, by {what}"))
}
