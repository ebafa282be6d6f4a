//! A gRPC health call: `grpc.health.v1.Health/Check` (the public health checking protocol), unary over HTTP/2.
//!
//! Its two messages have one field each, so they are coded here by hand; a wire-format library would be many times their
//! size.

use ::http::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use ::http::uri::Scheme;
use ::http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};

use super::super::wire::Socket;
use super::h2;

/// Bytes of an answer: a message of a few bytes, and room for fields that are not known here.
const ANSWER: usize = 4 * 1024;

/// Asks for `service` and waits for the end of the call.
pub(super) async fn ask(
    socket: Socket,
    scheme: Scheme,
    authority: &str,
    service: &str,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<String, String> {
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query("/grpc.health.v1.Health/Check");
    let mut request = Request::new(Full::new(encode(service)));
    *request.uri_mut() = uri.build().map_err(|e| format!("the authority: {e}"))?;
    *request.method_mut() = ::http::Method::POST;
    let fields = request.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(TE, HeaderValue::from_static("trailers"));
    fields.insert(USER_AGENT, HeaderValue::from_static("evergate-health"));
    for (name, value) in headers {
        fields.insert(name, value.clone());
    }
    let answered = h2::send(socket, request).await?;
    let answer = answered.response;
    if answer.status() != StatusCode::OK {
        return Err(format!("status {}", answer.status()));
    }
    // An error may come with the head alone.
    outcome(answer.headers())?;
    let body = Limited::new(answer.into_body(), ANSWER).collect().await;
    let body = body.map_err(|error| format!("the answer: {error}"))?;
    let ended = body.trailers().cloned().unwrap_or_default();
    outcome(&ended)?;
    let status = decode(&body.to_bytes()).ok_or("the answer is no health answer")?;
    let word = match status {
        0 => "UNKNOWN",
        1 => return Ok("SERVING".to_owned()),
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        other => return Err(format!("serving status {other}")),
    };
    Err(word.to_owned())
}

/// `grpc-status`, where it is said.
fn outcome(fields: &HeaderMap) -> Result<(), String> {
    let text = |name| {
        fields
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => {
            let message: String = text("grpc-message")
                .unwrap_or("")
                .chars()
                .take(200)
                .collect();
            Err(format!("grpc-status {code} {message}")
                .trim_end()
                .to_owned())
        }
    }
}

/// `HealthCheckRequest { service = 1 }` in its frame: not compressed, length, message.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

/// The status of `HealthCheckResponse { status = 1 }` in its frame; left out it is 0. Fields that are not known are passed
/// over.
fn decode(frame: &[u8]) -> Option<u64> {
    let (head, mut message) = frame.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut message)?,
            (1.., 0) => drop(varint(&mut message)?),
            (1.., 1) => message = message.get(8..)?,
            (1.., 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (1.., 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_messages_are_those_of_the_protocol() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        assert_eq!(encode(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
        assert_eq!(decode(b"\0\0\0\0\x02\x08\x01"), Some(1));
        assert_eq!(decode(b"\0\0\0\0\0"), Some(0));
        // An unknown text before it.
        assert_eq!(decode(b"\0\0\0\0\x06\x12\x02hi\x08\x02"), Some(2));
        for wrong in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x03\x08\x01",
            b"\0\0\0\0\x01\x08",
            b"\0\0\0\0\x02\x12\x05",
            b"\0\0\0\0\x02\x0b\x01",
        ] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            decode(&bytes);
            // With an honest length it gets further.
            if let Some(message) = bytes.len().checked_sub(5) {
                bytes[..5].copy_from_slice(&[0, 0, 0, 0, message as u8]);
                decode(&bytes);
            }
        }
    }
}
