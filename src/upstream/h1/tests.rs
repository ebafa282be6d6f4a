use std::convert::Infallible;

use ::http::{HeaderMap, Request};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use proptest::prelude::*;

use super::super::body::{BodyRules, RequestBody};
use super::encode::{self, Framing};
use super::fuzzing::{self, read};
use super::*;

fn sized(text: &'static str) -> RequestBody {
    let body = Full::from(text).map_err(|never: Infallible| match never {});
    RequestBody::of(body, BodyRules::default())
}

fn streamed() -> RequestBody {
    let pieces = [Ok(Frame::data(Bytes::from_static(b"x")))];
    let stream = futures_util::stream::iter(pieces);
    RequestBody::of(StreamBody::new(stream), BodyRules::default())
}

/// The head of what is sent, with these fields.
fn head(body: RequestBody, fields: &[(&str, &str)]) -> (String, Option<Framing>) {
    let mut request = Request::post("/a/b?c=%20");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut out = Vec::new();
    let framing = encode::head(&request.body(body).unwrap(), &mut out);
    (String::from_utf8(out).unwrap(), framing)
}

#[test]
fn a_head_has_what_the_request_has_and_the_length_that_its_body_has() {
    let begin = "POST /a/b?c=%20 HTTP/1.1\r\n";
    let (text, framing) = head(
        RequestBody::empty(),
        &[("host", "a"), ("x", "1"), ("x", "")],
    );
    assert_eq!(text, format!("{begin}host: a\r\nx: 1\r\nx: \r\n\r\n"));
    assert_eq!(framing, None);
    // Said, wrongly said, said twice, not said.
    for said in [
        &[("content-length", "5")][..],
        &[("content-length", "7")],
        &[("content-length", "7"), ("content-length", "5")],
        &[("transfer-encoding", "chunked"), ("content-length", "7")],
        &[("transfer-encoding", "gzip, chunked")],
        &[],
    ] {
        let (text, framing) = head(sized("hello"), said);
        assert_eq!(
            text,
            format!("{begin}content-length: 5\r\n\r\n"),
            "{said:?}"
        );
        assert_eq!(framing, Some(Framing::Length(5)));
        let (text, _) = head(streamed(), said);
        assert_eq!(text, format!("{begin}transfer-encoding: chunked\r\n\r\n"));
        // An origin must not wait for what will not come.
        let (text, _) = head(RequestBody::empty(), said);
        let none = text == format!("{begin}\r\n") && !said.iter().any(|s| s.0 == "content-length");
        assert!(
            none || text == format!("{begin}content-length: 0\r\n\r\n"),
            "{text}"
        );
    }
}

#[test]
fn trailers_are_sent_if_they_were_announced_and_are_no_framing() {
    let announced = [("trailer", "x-sum, Content-Length"), ("trailer", "x-more")];
    let (text, framing) = head(streamed(), &announced);
    assert!(text.ends_with("trailer: x-more\r\ntransfer-encoding: chunked\r\n\r\n"));
    let Some(Framing::Chunked(names)) = framing else {
        panic!("{framing:?}");
    };
    let mut trailers = HeaderMap::new();
    for name in ["x-sum", "content-length", "x-other"] {
        trailers.insert(name, "1".parse().unwrap());
    }
    let mut out = Vec::new();
    encode::end(Some(&trailers), &names, &mut out);
    assert_eq!(out, b"0\r\nx-sum: 1\r\n\r\n");
    out.clear();
    encode::end(None, &names, &mut out);
    assert_eq!(out, b"0\r\n\r\n");
}

/// Body and whether the connection stays, of an answer whose head is `fields` after this status line; what follows is `body`.
fn answered(line: &str, fields: &str, body: &str) -> Result<Option<(String, bool)>, String> {
    let bytes = format!("{line}\r\n{fields}\r\n{body}");
    let whole = read(bytes.as_bytes(), bytes.len(), false)?;
    Ok(whole.map(|(_, stays, body, ..)| (String::from_utf8(body).unwrap(), stays)))
}

#[test]
fn an_answers_length_is_what_rfc_9112_says() {
    let ok = "HTTP/1.1 200 OK";
    let is = |body: &str, stays| Ok(Some((body.to_owned(), stays)));
    assert_eq!(answered(ok, "content-length: 2\r\n", "ok"), is("ok", true));
    assert_eq!(
        answered(ok, "content-length: 2, 2\r\n", "ok"),
        is("ok", true)
    );
    assert_eq!(answered(ok, "content-length: 3\r\n", "ok"), Ok(None));
    assert_eq!(
        answered(ok, "", "until the end"),
        is("until the end", false)
    );
    let chunks = "3;a=b\r\nabc\r\n0A \r\n0123456789\r\n0\r\n\r\n";
    let chunked = "transfer-encoding: Chunked\r\n";
    assert_eq!(answered(ok, chunked, chunks), is("abc0123456789", true));
    assert_eq!(
        answered("HTTP/1.0 200 OK", "content-length: 2\r\n", "ok"),
        is("ok", false)
    );
    let kept = "connection: x, Keep-Alive\r\ncontent-length: 2\r\n";
    assert_eq!(answered("HTTP/1.0 200 OK", kept, "ok"), is("ok", true));
    // A version that has no such coding.
    let coded = format!("{chunked}connection: keep-alive\r\n");
    assert_eq!(
        answered("HTTP/1.0 200 OK", &coded, chunks),
        is("abc0123456789", false)
    );
    for close in ["close", "keep-alive, close"] {
        let fields = format!("connection: {close}\r\ncontent-length: 2\r\n");
        assert_eq!(answered(ok, &fields, "ok"), is("ok", false));
    }
    let apart = "connection: close\r\nconnection: keep-alive\r\ncontent-length: 0\r\n";
    assert_eq!(answered(ok, apart, ""), is("", false));
    // No body, whatever is said of it.
    for status in ["204 No Content", "304 Not Modified"] {
        let line = format!("HTTP/1.1 {status}");
        assert_eq!(answered(&line, "content-length: 9\r\n", ""), is("", true));
    }
    let early = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK";
    assert_eq!(answered(early, "content-length: 0\r\n", ""), is("", true));
    let whole = read(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 99, true);
    assert!(
        matches!(whole, Ok(Some((200, true, body, None, rest))) if body.is_empty() && rest.is_empty())
    );
}

#[test]
fn what_is_no_answer_is_refused_at_once() {
    let many = "a: b\r\n".repeat(FIELDS + 1);
    let large = format!("a: {}\r\n", "x".repeat(HEAD));
    for (line, fields) in [
        ("SSH-2.0-OpenSSH_9.2", ""),
        ("HTTP/2 200 OK", ""),
        ("HTTP/1.1 20 OK", ""),
        ("HTTP/1.1 099 OK", ""),
        ("HTTP/1.1 200 OK", "no field\r\n"),
        ("HTTP/1.1 200 OK", "a : b\r\n"),
        ("HTTP/1.1 200 OK", " a: b\r\n"),
        ("HTTP/1.1 200 OK", "a: b\r\n c\r\n"),
        ("HTTP/1.1 200 OK", "a: b\0\r\n"),
        ("HTTP/1.1 200 OK", "content-length: -1\r\n"),
        ("HTTP/1.1 200 OK", "content-length: +1\r\n"),
        ("HTTP/1.1 200 OK", "content-length: \r\n"),
        ("HTTP/1.1 200 OK", "content-length: 1, 2\r\n"),
        (
            "HTTP/1.1 200 OK",
            "content-length: 1\r\ncontent-length: 2\r\n",
        ),
        (
            "HTTP/1.1 200 OK",
            "content-length: 18446744073709551616\r\n",
        ),
        ("HTTP/1.1 200 OK", &many),
        ("HTTP/1.1 200 OK", &large),
    ] {
        let got = answered(line, fields, "");
        assert!(got.is_err(), "{line} {fields:.60}: {got:?}");
    }
    let chunked = |body: &str| answered("HTTP/1.1 200 OK", "transfer-encoding: chunked\r\n", body);
    for body in [
        "x\r\n",
        "-1\r\n",
        "\r\n",
        ";a\r\n",
        "10000000000000000\r\n",
        "1\nab",
        "1\r\r",
        "1;a\nb\r\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\n0\r\n\r\n",
        "1 1\r\na",
        "0\r\nno field\r\n\r\n",
    ] {
        assert!(chunked(body).is_err(), "{body:?}: {:?}", chunked(body));
    }
    let extended = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
    assert!(chunked(&extended).is_err());
    let trailers = format!("0\r\na: {}\r\n", "x".repeat(HEAD));
    assert!(chunked(&trailers).is_err());
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("HTTP/1.1 200 OK\r\n".to_owned()),
        Just("\r\nHTTP/1.1 404 \r\n".to_owned()),
        Just("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200\r\n".to_owned()),
    ]
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z-]{1,12}: [ -~]{0,30}\r\n",
        (0..50_u32).prop_map(|n| format!("Content-Length: {n}\r\n")),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just("Connection: close\r\n".to_owned()),
    ]
}

fn body() -> impl Strategy<Value = String> {
    let chunk = "[a-z]{1,20}".prop_map(|text| format!("{:x}\r\n{text}\r\n", text.len()));
    prop_oneof![
        "[ -~]{0,60}",
        (proptest::collection::vec(chunk, 0..5), "(x-t: 1\r\n)?")
            .prop_map(|(chunks, trailers)| format!("{}0\r\n{trailers}\r\n", chunks.concat())),
    ]
}

proptest! {
    #[test]
    fn an_answer_is_the_same_however_it_comes(
        line in line(), fields in proptest::collection::vec(field(), 0..6), body in body(), how: u8,
    ) {
        let bytes = format!("{line}{}\r\n{body}", fields.concat());
        fuzzing::answer(&[&[how], bytes.as_bytes()].concat());
    }

    #[test]
    fn chunks_are_what_they_were(pieces in proptest::collection::vec("[a-z\r\n]{1,40}", 0..8), cut in 1_usize..40) {
        let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for piece in &pieces {
            encode::chunk(piece.len(), &mut bytes);
            bytes.extend_from_slice(piece.as_bytes());
            bytes.extend_from_slice(encode::CHUNK_END);
        }
        encode::end(None, &[], &mut bytes);
        bytes.extend_from_slice(b"next");
        let (_, stays, body, trailers, rest) = read(&bytes, cut, false).unwrap().unwrap();
        prop_assert!(stays && trailers.is_none());
        prop_assert_eq!(String::from_utf8(body).unwrap(), pieces.concat());
        prop_assert_eq!(rest, b"next");
    }
}
