//! Requests as bytes (RFC 9112 sections 3 and 7).
//!
//! How a body is framed is said by the body itself, whatever fields the request came with: a length that two fields tell
//! differently, or that the body does not have, would let one request be taken for two.

use std::io::Write as _;

use ::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use ::http::{HeaderMap, HeaderName, Request};
use http_body::Body as _;

use super::super::body::RequestBody;

/// What ends a chunk, and with it the last of a body.
pub(super) const CHUNK_END: &[u8] = b"\r\n";
pub(super) const LAST_CHUNK_END: &[u8] = b"\r\n0\r\n\r\n";
/// A body that has ended without one of them.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How a body is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// With these trailers, if they come: who takes them is told beforehand.
    Chunked(Vec<HeaderName>),
}

/// What says how a message is framed, routed, or who sent it, is not said after it (RFC 9110 section 6.5.1).
const NO_TRAILERS: [HeaderName; 13] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    HOST,
    MAX_FORWARDS,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// Appends the head of `request` to `out`. `None`: there is no body.
pub(super) fn head(request: &Request<RequestBody>, out: &mut Vec<u8>) -> Option<Framing> {
    let (body, fields) = (request.body(), request.headers());
    let framing = if body.is_end_stream() {
        None
    } else {
        Some(match body.size_hint().exact() {
            Some(length) => Framing::Length(length),
            None => Framing::Chunked(trailer_names(fields)),
        })
    };
    let path = request.uri().path_and_query();
    let path = path.map_or("/", |path| path.as_str());
    out.reserve(path.len() + 64 + fields.len() * 48);
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut told = false;
    for (name, value) in fields {
        if name == TRANSFER_ENCODING {
            continue;
        }
        if name == CONTENT_LENGTH {
            if !std::mem::replace(&mut told, true) {
                put_length(framing.as_ref(), out);
            }
            continue;
        }
        put_field(name.as_str().as_bytes(), value.as_bytes(), out);
    }
    match &framing {
        Some(Framing::Chunked(_)) => put_field(b"transfer-encoding", b"chunked", out),
        Some(Framing::Length(_)) if !told => put_length(framing.as_ref(), out),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
    framing
}

fn put_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put_length(framing: Option<&Framing>, out: &mut Vec<u8>) {
    let length = match framing {
        None => 0,
        Some(Framing::Length(length)) => *length,
        Some(Framing::Chunked(_)) => return,
    };
    // A vector takes all.
    let _ = write!(out, "content-length: {length}\r\n");
}

/// What a chunk of so many bytes begins with.
pub(super) fn chunk(size: usize, out: &mut Vec<u8>) {
    let _ = write!(out, "{size:x}\r\n");
}

/// The end of a chunked body.
pub(super) fn end(trailers: Option<&HeaderMap>, names: &[HeaderName], out: &mut Vec<u8>) {
    let Some(trailers) = trailers else {
        return out.extend_from_slice(LAST_CHUNK);
    };
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if names.contains(name) {
            put_field(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The trailers that a request announces (RFC 9110 section 6.6.2).
fn trailer_names(fields: &HeaderMap) -> Vec<HeaderName> {
    let lines = fields.get_all(TRAILER).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    names.filter(|name| !NO_TRAILERS.contains(name)).collect()
}
