//! HTTP/2 from clients that mean harm: each flood ends its connection or is bounded, the others are served meanwhile, and
//! nothing malformed becomes a request of an origin (RFC 9113; the CVEs are named at each).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kit::frames::{
    Bystander, CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, HEADERS, NEWEST, PING, PRIORITY,
    SETTINGS, WINDOW_UPDATE, Wire, field, frame, get, remembered, request, reset,
};
use crate::kit::{Gate, Origin, free_port};

/// Others wait no longer, whatever one client does. With room for a debug build on a busy machine.
const BAR: Duration = Duration::from_millis(2500);
/// Memory may grow by no more.
const GROWTH: u64 = 150 << 20;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// `/ok` is answered here, everything else by the origin. At most ten streams a connection.
fn start() -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nlimits = {{ streams = 10 }}\nproxy = \"app\"\n\
         [[http.web.routes]]\nmatch.path = \"/ok\"\nrespond = \"ok\"\n[upstreams.app]\ntargets = [\"{}\"]\n",
        origin.addr
    ));
    (gate, origin, to)
}

/// Runs `flood` with a bystander and looks at time and memory afterwards.
fn bounded(gate: &Gate, to: SocketAddr, flood: impl FnOnce()) {
    let before = gate.resident();
    let bystander = Bystander::start(to, "/ok");
    flood();
    let worst = bystander.worst();
    assert!(worst < BAR, "another client waited {worst:?}");
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < GROWTH, "memory grew by {} MiB", grown >> 20);
    assert_eq!(gate.status()["panics"], 0);
}

/// Sends until the server does not take any more, at most `times`. True if it ended the connection.
fn until_refused(wire: &mut Wire, times: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> bool {
    for turn in 0..times {
        if wire.send(&bytes(turn)).is_err() {
            return true;
        }
    }
    false
}

fn in_flight(gate: &Gate) -> u64 {
    gate.status()["upstreams"][0]["targets"][0]["in_flight"]
        .as_u64()
        .unwrap()
}

/// CVE-2023-44487, as it was: requests and their resets in one go.
#[test]
fn rapid_resets_end_the_connection() {
    let (gate, _origin, to) = start();
    bounded(&gate, to, || {
        let mut wire = Wire::open(to, &[]);
        until_refused(&mut wire, 2000, |turn| {
            let stream = 1 + 2 * turn as u32;
            [get(stream, "/hang"), reset(stream)].concat()
        });
        let (said, _) = wire.end();
        assert!(said.is_none_or(|code| code != 0), "{said:?}");
    });
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0 && s["connections"] == 0
    });
}

/// The same at leisure: each request has reached the origin before it is given up. The origin never has more of them than
/// there may be streams, and the client is not let go on for ever.
#[test]
fn resets_of_requests_in_progress_are_bounded_too() {
    let (gate, origin, to) = start();
    let mut most = 0;
    bounded(&gate, to, || {
        let mut wire = Wire::open(to, &[]);
        let ended = (0..500_u32).any(|turn| {
            let before = origin.requests();
            let streams = (0..10).map(|n| 1 + 2 * (10 * turn + n));
            let asked: Vec<u8> = streams.clone().flat_map(|s| get(s, "/hang")).collect();
            let given_up: Vec<u8> = streams.flat_map(reset).collect();
            if wire.send(&asked).is_err() {
                return true;
            }
            // They arrive, or the connection has ended.
            let start = Instant::now();
            while origin.requests() < before + 10 && start.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if turn % 5 == 0 {
                most = most.max(in_flight(&gate));
            }
            wire.send(&given_up).is_err()
        });
        assert!(ended, "5000 resets were taken");
        wire.end();
    });
    assert!(most <= 10, "{most} in flight");
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0
    });
}

#[test]
fn streams_over_the_limit_are_refused_and_never_at_the_origin() {
    let (gate, origin, to) = start();
    let mut wire = Wire::open(to, &[]);
    let all: Vec<u8> = (0..30).flat_map(|n| get(1 + 2 * n, "/hold")).collect();
    wire.send(&all).unwrap();
    origin.wait_holding(10);
    // REFUSED_STREAM: they may be sent again.
    assert_eq!(wire.fate(1 + 2 * 29), Fate::Reset(7));
    assert_eq!((origin.requests(), in_flight(&gate)), (10, 10));
    origin.release_all();
    assert_eq!(wire.fate(1), Fate::Answer(200));
}

/// CVE-2025-8671, MadeYouReset: the client does not reset its streams, it makes us.
#[test]
fn errors_that_make_us_reset_streams_end_the_connection() {
    let (gate, _origin, to) = start();
    for (what, payload) in [
        ("an increment of 0", 0_u32),
        ("a window over its limit", u32::MAX >> 1),
    ] {
        bounded(&gate, to, || {
            let mut wire = Wire::open(to, &[]);
            until_refused(&mut wire, 2000, |turn| {
                let stream = 1 + 2 * turn as u32;
                let update = frame(WINDOW_UPDATE, 0, stream, &payload.to_be_bytes());
                [get(stream, "/hang"), update].concat()
            });
            let (said, resets) = wire.end();
            assert!(said.is_none_or(|code| code != 0), "{what}: {said:?}");
            assert!(resets <= 150, "{what}: {resets} resets");
        });
    }
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0
    });
}

/// CVE-2024-27316, RUSTSEC-2024-0332: a head that never ends, in large pieces, small ones and empty ones.
#[test]
fn a_head_that_goes_on_for_ever_ends_the_connection() {
    let (gate, origin, to) = start();
    for size in [16_000, 100, 0] {
        bounded(&gate, to, || {
            let mut wire = Wire::open(to, &[]);
            wire.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/id")))
                .unwrap();
            let piece = field("x", vec![b'y'; size]);
            let piece = if size == 0 { &[][..] } else { &piece };
            let more = frame(CONTINUATION, 0, 1, piece).repeat(100);
            assert!(until_refused(&mut wire, 5000, |_| more.clone()), "{size}");
            assert!(wire.fate(1).is_refusal());
        });
    }
    assert_eq!(origin.requests(), 0);
}

/// CVE-2016-6581: a few bytes that mean many. Counted is what they mean.
#[test]
fn a_small_block_that_means_a_large_head_is_refused() {
    let (gate, origin, to) = start();
    bounded(&gate, to, || {
        for round in 0..20_u32 {
            let mut wire = Wire::open(to, &[]);
            let mut block = request("GET", "/id");
            block.extend(remembered("x", vec![b'y'; 4000]));
            block.extend(vec![NEWEST; 12_000 - round as usize]);
            // It may be over before all of it was sent.
            let _ = wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
            assert!(wire.fate(1).is_refusal());
        }
    });
    assert_eq!(origin.requests(), 0);
}

#[test]
fn a_large_head_is_431_or_less_and_the_next_stream_is_served() {
    let (_gate, origin, to) = start();
    let mut wire = Wire::open(to, &[]);
    let mut block = request("GET", "/id");
    (0..10).for_each(|n| block.extend(field(format!("x-{n}"), vec![b'y'; 8000])));
    let mut pieces = block.chunks(16_000);
    let mut bytes = frame(HEADERS, END_STREAM, 1, pieces.next().unwrap());
    let rest: Vec<&[u8]> = pieces.collect();
    for (n, piece) in rest.iter().enumerate() {
        let flags = if n + 1 == rest.len() { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, 1, piece));
    }
    wire.send(&bytes).unwrap();
    assert!(wire.fate(1).is_refusal());
    assert_eq!(origin.requests(), 0);
    let mut wire = Wire::open(to, &[]);
    wire.send(&get(1, "/id")).unwrap();
    assert_eq!(wire.fate(1), Fate::Answer(200));
}

/// CVE-2019-9511 to 9518: frames that cost the sender nothing, whose answers it does not read.
#[test]
fn floods_of_cheap_frames_are_bounded() {
    let (gate, _origin, to) = start();
    let floods: [(&str, Vec<u8>); 6] = [
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("empty settings", frame(SETTINGS, 0, 0, &[])),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("window", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ];
    for (what, one) in floods {
        bounded(&gate, to, || {
            let mut wire = Wire::open(to, &[]);
            // An open stream, for what needs one.
            wire.send(&frame(HEADERS, END_HEADERS, 1, &request("POST", "/echo")))
                .unwrap();
            // It ends the connection, or stops reading while its answers are not read, or reads them all away.
            wire.stream
                .set_write_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            let many = one.repeat(2000);
            until_refused(&mut wire, 200, |_| many.clone());
        });
        gate.wait_status(
            &format!("the connection of the {what} flood to be gone"),
            |s| s["connections"] == 0,
        );
    }
}

/// A client that asks for much and takes little has little waiting for it.
#[test]
fn answers_that_are_not_taken_do_not_pile_up() {
    let (gate, origin, to) = start();
    let before = gate.resident();
    let wires: Vec<Wire> = (0..10)
        .map(|_| {
            let mut wire = Wire::open(to, &[(4, 1)]);
            let all: Vec<u8> = (0..10)
                .flat_map(|n| get(1 + 2 * n, "/download?bytes=50000000"))
                .collect();
            wire.send(&all).unwrap();
            wire
        })
        .collect();
    gate.wait_status("all requests at the origin", |_| origin.requests() >= 100);
    let bystander = Bystander::start(to, "/ok");
    gate.wait_status("they to be in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 100
    });
    assert!(bystander.worst() < BAR);
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < GROWTH, "memory grew by {} MiB", grown >> 20);
    drop(wires);
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0
    });
}

/// CVE-2021-33193, CVE-2026-42926: what would be two requests, or two fields, once it is written as HTTP/1.
#[test]
fn nothing_that_http_1_would_read_otherwise_reaches_an_origin() {
    let (_gate, origin, to) = start();
    let plain = |name: &str, value: &[u8]| -> Vec<u8> {
        [request("GET", "/id"), field(name, value)].concat()
    };
    let pseudo = |name: &str, value: &str| -> Vec<u8> {
        [":method", ":scheme", ":authority", ":path"]
            .iter()
            .zip(["GET", "http", "x", "/id"])
            .flat_map(|(field_name, usual)| {
                field(field_name, if *field_name == name { value } else { usual })
            })
            .collect()
    };
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for name in [
        "x y", "x:y", "x\r\ny", "x\ny", "x\0", "X-Upper", "", " x", "x\u{e4}", "x\t",
    ] {
        cases.push((format!("the name {name:?}"), plain(name, b"1")));
    }
    for value in [
        &b"1\r\nx-evil: 1"[..],
        b"1\nx",
        b"1\rx",
        b"1\0",
        b"\r\n\r\nGET /evil HTTP/1.1",
    ] {
        cases.push((
            format!("the value {:?}", String::from_utf8_lossy(value)),
            plain("x", value),
        ));
    }
    for (name, value) in [
        (":path", "/id HTTP/1.1\r\nx-evil: 1\r\n\r\n"),
        (":path", "/a b"),
        (":path", "/a\0"),
        (":path", "/a\tb"),
        (":path", "/\r\n"),
        (":path", "id"),
        (":path", ""),
        (":method", "GET /evil HTTP/1.1\r\n"),
        (":method", "GE T"),
        (":method", ""),
        (":method", "GET\0"),
        (":authority", "x\r\nx-evil: 1"),
        (":authority", "a b"),
        (":authority", "user@x"),
        (":authority", "x/y"),
        (":authority", "x\0"),
        (":scheme", "ht tp"),
        (":scheme", "http\r\n"),
    ] {
        cases.push((format!("{name} {value:?}"), pseudo(name, value)));
    }
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        (":path", "/twice"),
        (":method", "POST"),
        (":evil", "1"),
        (":status", "200"),
        ("content-length", "5"),
        ("content-length", "-1"),
        ("content-length", "1, 1"),
    ] {
        cases.push((format!("{name}: {value}"), plain(name, value.as_bytes())));
    }
    cases.push(("no :method".into(), field(":path", "/id")));
    cases.push((
        "no :path".into(),
        [field(":method", "GET"), field(":scheme", "http")].concat(),
    ));
    cases.push((
        "a pseudo-header after a field".into(),
        [field("x", "1"), request("GET", "/id")].concat(),
    ));
    for (what, block) in cases {
        let mut wire = Wire::open(to, &[]);
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
            .unwrap();
        let fate = wire.fate(1);
        assert!(fate.is_refusal(), "{what}: {fate:?}");
        assert_eq!(origin.requests(), 0, "{what} reached the origin");
    }
    let mut wire = Wire::open(to, &[]);
    wire.send(&get(1, "/id")).unwrap();
    assert_eq!(wire.fate(1), Fate::Answer(200));
}

/// The body must be as long as was said (RFC 9113 section 8.1.1): the origin never has a whole request of another length.
#[test]
fn a_body_of_another_length_than_was_said_is_no_request() {
    let (_gate, origin, to) = start();
    for (said, sent, trailers) in [
        ("5", "abc", false),
        ("5", "abcdefg", false),
        ("0", "x", false),
        ("5", "abc", true),
    ] {
        let mut wire = Wire::open(to, &[]);
        let block = [request("POST", "/echo"), field("content-length", said)].concat();
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &block);
        let flags = if trailers { 0 } else { END_STREAM };
        bytes.extend(frame(DATA, flags, 1, sent.as_bytes()));
        if trailers {
            bytes.extend(frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &field("x-sum", "1"),
            ));
        }
        wire.send(&bytes).unwrap();
        let fate = wire.fate(1);
        assert!(fate.is_refusal(), "{said} for {sent:?}: {fate:?}");
    }
    drop(origin);
}
