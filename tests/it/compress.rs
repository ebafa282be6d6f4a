//! `compress`: which responses are compressed, that what comes out is what went in, and that nothing is held back.

use std::io::{Read, Write};
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use crate::kit::{Conn, Gate, Origin, Response, count, free_port, h2c, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn ask(to: SocketAddr, line: &str, fields: &str) -> Response {
    let mut conn = Conn::open(to).unwrap();
    conn.send(format!("{line} HTTP/1.1\r\nhost: x\r\n{fields}\r\n"))
        .unwrap();
    let method = line.split(' ').next().unwrap();
    conn.response_to(method).unwrap()
}

fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
        "zstd" => zstd::stream::read::Decoder::new(bytes)
            .unwrap()
            .read_to_end(&mut out),
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        other => panic!("a coding {other}"),
    }
    .unwrap();
    out
}

/// A route that answers with 2000 bytes and these fields.
fn route(path: &str, fields: &str) -> String {
    let body = "all work and no play ".repeat(100);
    format!(
        "[[http.web.routes]]\nmatch.path = \"/{path}\"\nrespond = {{ body = \"{}\", headers = {{ {fields} }} }}\n",
        &body[..2000]
    )
}

#[test]
fn what_gains_is_compressed_as_the_client_likes_best() {
    let to = local(free_port());
    let rest = [
        route(
            "text",
            "etag = '\"a\"', accept-ranges = \"bytes\", vary = \"origin\"",
        ),
        route(
            "weak",
            "etag = 'W/\"a\"', content-type = \"application/problem+json\"",
        ),
        route("image", "content-type = \"image/png\""),
        route("encoded", "content-encoding = \"br\""),
        route("as-it-is", "cache-control = \"public, no-transform\""),
        route("events", "content-type = \"text/event-stream\""),
        route("grpc", "content-type = \"application/grpc\""),
        route("digest", "content-digest = \"sha-256=:x:\""),
        route("off", "etag = '\"a\"'") + "compress = false\n",
        "[[http.web.routes]]\nmatch.path = \"/small\"\nrespond = \"small\"\n".into(),
    ]
    .concat();
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\ncompress = [\"zstd\", \"br\", \"gzip\"]\n{rest}"
    ));
    let text = "all work and no play ".repeat(100)[..2000].to_owned();
    for (accepted, coding) in [
        ("gzip, br, zstd", Some("zstd")),
        ("gzip, br", Some("br")),
        ("gzip", Some("gzip")),
        ("zstd;q=0.5, gzip;q=0.9, br;q=0.9", Some("br")),
        ("zstd;q=0, *", Some("br")),
        ("*", Some("zstd")),
        ("gzip;q=0", None),
        ("deflate", None),
        ("gzip;q=0.5, identity", None),
        ("", None),
    ] {
        let answer = ask(to, "GET /text", &format!("accept-encoding: {accepted}\r\n"));
        assert_eq!(answer.header("content-encoding"), coding, "{accepted}");
        assert_eq!(answer.head.all("vary"), ["origin", "accept-encoding"]);
        match coding {
            Some(coding) => {
                assert_eq!(decoded(coding, &answer.body), text.as_bytes());
                assert!(answer.body.len() < 200);
                assert_eq!(answer.header("etag"), Some("W/\"a\""));
                assert_eq!(answer.header("content-length"), None);
                assert_eq!(answer.header("accept-ranges"), None);
            }
            None => {
                assert_eq!(answer.text(), text);
                assert_eq!(answer.header("etag"), Some("\"a\""));
                assert_eq!(answer.header("content-length"), Some("2000"));
            }
        }
    }
    let answer = ask(to, "GET /weak", "accept-encoding: gzip\r\n");
    assert_eq!(answer.header("etag"), Some("W/\"a\""));
    assert_eq!(decoded("gzip", &answer.body), text.as_bytes());
    for path in [
        "image", "encoded", "as-it-is", "events", "grpc", "digest", "off", "small", "none",
    ] {
        let answer = ask(
            to,
            &format!("GET /{path}"),
            "accept-encoding: gzip, br, zstd\r\n",
        );
        let left = path == "encoded";
        assert_eq!(
            answer.header("content-encoding"),
            left.then_some("br"),
            "{path}"
        );
        assert_eq!(answer.header("vary"), None, "{path}");
        assert!(answer.header("content-length").is_some(), "{path}");
    }
    let answer = ask(to, "HEAD /text", "accept-encoding: gzip\r\n");
    assert_eq!(
        (
            answer.header("content-encoding"),
            answer.header("content-length")
        ),
        (None, Some("2000"))
    );
    assert_eq!(answer.head.all("vary"), ["origin", "accept-encoding"]);
    // Over HTTP/2 as well.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        let mut stream = client.stream();
        let request = http::Request::get(format!("http://{to}/text"))
            .header("accept-encoding", "br")
            .body(Full::new(Bytes::new()))
            .unwrap();
        stream.ready().await.unwrap();
        let answer = stream.send_request(request).await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], "br");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(decoded("br", &body), text.as_bytes());
    });
}

/// A gate that compresses what the origin streams, as if it were text.
fn before_origin() -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}\"\ncompress = [\"zstd\", \"br\", \"gzip\"]\n\
         headers = {{ response = {{ set = {{ content-type = \"text/plain\" }} }} }}\n",
        origin.addr
    ));
    (gate, origin, to)
}

/// Writes what was decompressed to where a test looks.
#[derive(Default)]
struct Seen(Vec<u8>);

impl Write for &mut Seen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_arrives_piece_by_piece() {
    for coding in ["gzip", "br", "zstd"] {
        let (_gate, origin, to) = before_origin();
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!(
            "GET /drip HTTP/1.1\r\nhost: x\r\naccept-encoding: {coding}\r\n\r\n"
        ))
        .unwrap();
        let head = conn.response_head().unwrap();
        assert_eq!(head.header("content-encoding"), Some(coding));
        let mut seen = Seen::default();
        let mut released = false;
        {
            let mut decoder: Box<dyn Write> = match coding {
                "gzip" => Box::new(flate2::write::GzDecoder::new(&mut seen)),
                "br" => Box::new(brotli::DecompressorWriter::new(&mut seen, 4096)),
                _ => Box::new(zstd::stream::write::Decoder::new(&mut seen).unwrap()),
            };
            // The origin waits until the first piece is here.
            conn.body(true, None, |piece| {
                decoder.write_all(piece).unwrap();
                decoder.flush().unwrap();
                if !released {
                    released = true;
                    origin.wait_holding(1);
                    origin.release_all();
                }
            })
            .unwrap();
        }
        assert_eq!(seen.0, b"first second", "{coding}");
    }
}

#[test]
fn trailers_pass_and_a_cut_answer_does_not_look_whole() {
    let (_gate, _origin, to) = before_origin();
    let answer = ask(
        to,
        "GET /chunked",
        "accept-encoding: gzip\r\nte: trailers\r\n",
    );
    assert_eq!(decoded("gzip", &answer.body), b"hello world");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "42".to_owned())]);
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /cut-chunk HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n")
        .unwrap();
    assert!(conn.response().is_err());
}

#[test]
fn a_client_that_goes_away_ends_the_compression() {
    let (_gate, origin, to) = before_origin();
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /infinite HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n")
        .unwrap();
    assert_eq!(conn.response_head().unwrap().status, 200);
    assert!(!conn.some(100).unwrap().is_empty());
    drop(conn);
    until("the origin to notice", || {
        (origin.broken() > 0).then_some(())
    });
}

#[test]
fn a_stream_whose_route_is_gone_ends_at_the_drain_deadline() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let document = |action: &str| {
        format!(
            "[http.web]\nlisten = \"{to}\"\n{action}\ncompress = \"zstd\"\n\
             headers = {{ response = {{ set = {{ content-type = \"text/plain\" }} }} }}\n"
        )
    };
    let proxied = document(&format!("proxy = \"http://{}\"", origin.addr));
    let gate = Gate::setup()
        .runtime("drain_timeout = \"500ms\"")
        .start(&proxied);
    let open = |path: &str| {
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\naccept-encoding: zstd\r\n\r\n"
        ))
        .unwrap();
        assert_eq!(conn.response_head().unwrap().status, 200);
        conn
    };
    let mut waiting = open("/drip");
    let flowing = open("/infinite");
    gate.reload_drained(&document("respond = \"\""));
    // Nothing that looks like an end.
    assert!(waiting.body(true, None, |_| {}).is_err());
    drop(flowing);
    origin.release_all();
    assert_eq!(ask(to, "GET /", "").status, 200);
}

#[test]
fn release_a_large_file_is_compressed_in_bounded_memory() {
    let www = tempfile::tempdir().unwrap();
    let size = count(100 << 20, 8 << 20);
    let mut line = 0_u64;
    let mut body = Vec::with_capacity(size + 64);
    while body.len() < size {
        line = line.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        body.extend_from_slice(format!("a line of {line:x}\n").as_bytes());
    }
    std::fs::write(www.path().join("large.txt"), &body).unwrap();
    std::fs::write(www.path().join("pre.txt"), vec![b'x'; 5000]).unwrap();
    std::fs::write(www.path().join("pre.txt.gz"), b"sibling").unwrap();
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nfiles = \"{}\"\ncompress = [\"zstd\", \"br\", \"gzip\"]\n",
        www.path().display()
    ));
    let before = gate.resident();
    for coding in ["zstd", "gzip"] {
        let answer = ask(
            to,
            "GET /large.txt",
            &format!("accept-encoding: {coding}\r\n"),
        );
        assert_eq!(answer.header("content-encoding"), Some(coding));
        assert!(answer.body.len() < body.len());
        assert!(decoded(coding, &answer.body) == body, "{coding}");
    }
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "grew by {grown}");
    // A part stays what it is; a sibling is sent as it lies there.
    let part = ask(
        to,
        "GET /large.txt",
        "accept-encoding: gzip\r\nrange: bytes=5-2004\r\n",
    );
    assert_eq!((part.status, part.header("content-encoding")), (206, None));
    assert_eq!(part.body, body[5..2005]);
    let sibling = ask(to, "GET /pre.txt", "accept-encoding: gzip, zstd;q=0.1\r\n");
    assert_eq!(sibling.header("content-encoding"), Some("gzip"));
    assert_eq!(sibling.text(), "sibling");
    // What came compressed is known again by its weak validator.
    let answer = ask(to, "GET /large.txt", "accept-encoding: zstd\r\n");
    let etag = answer.header("etag").unwrap().to_owned();
    let fields = format!("accept-encoding: zstd\r\nif-none-match: {etag}\r\n");
    let again = ask(to, "GET /large.txt", &fields);
    assert_eq!(
        (again.status, again.header("etag")),
        (304, Some(etag.as_str()))
    );
    assert!(etag.starts_with("W/"));
}
