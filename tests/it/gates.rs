//! Filters that hold back: rate limits, places, bandwidth and timeouts, and what a swap leaves of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::filters::gate;
use crate::kit::{Conn, Gate, Origin, PATIENCE, count, get, h2c, raw};

fn document(to: SocketAddr, lines: &str) -> String {
    format!("[http.web]\nlisten = \"{to}\"\n{lines}\n")
}

/// A server in front of an origin.
fn before(origin: &Origin, lines: &str) -> (Gate, SocketAddr) {
    gate(&format!("proxy = \"http://{}\"\n{lines}", origin.addr), "")
}

fn asks(to: SocketAddr, path: &str) -> Conn {
    let mut conn = Conn::open(to).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    conn.send(request).unwrap();
    conn
}

#[test]
fn over_the_rate_is_a_429_that_says_when_to_come_again() {
    let (_gate, to) = gate(
        "respond = \"ok\"\nrate_limit = { rate = \"2/h\", key = \"{header.x-key}\" }",
        "",
    );
    let ask = |key: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\nx-key: {key}\r\n\r\n");
        Conn::open(to).unwrap().exchange(request).unwrap()
    };
    assert_eq!([ask("a").status, ask("a").status], [200, 200]);
    let refused = ask("a");
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1790..=1800).contains(&wait), "{wait}");
    assert_eq!(ask("b").status, 200);
}

#[test]
fn a_limit_in_filters_counts_once_for_all_its_users() {
    let rest = "[[http.web.routes]]\nmatch.path = \"/own\"\nrespond = \"own\"\nrate_limit = \"1/h\"\n\
                [[http.web.routes]]\nmatch.path = \"/off\"\nrespond = \"off\"\nrate_limit = false\n\
                [[http.web.routes]]\nmatch.path = \"/*\"\nrespond = \"rest\"\nuse = \"slow\"\n\
                [http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"other\"\nuse = \"slow\"\n\
                [filters.slow]\nrate_limit = { rate = \"3/h\", status = 503 }\n";
    let (gate, to) = gate("use = \"slow\"", rest);
    let status = gate.status();
    let other = status["listeners"].as_array().unwrap().iter();
    let other = other
        .filter_map(|l| l["address"].as_str()?.parse::<SocketAddr>().ok())
        .find(|address| *address != to && *address != gate.base.admin)
        .unwrap();
    let mut got = vec![];
    for (to, path) in [
        (to, "/a"),
        (other, "/"),
        (to, "/b"),
        (to, "/a"),
        (other, "/"),
        (to, "/own"),
        (to, "/own"),
        (to, "/off"),
    ] {
        got.push(get(to, "x", path).status);
    }
    assert_eq!(got, [200, 200, 200, 503, 503, 200, 429, 200]);
}

#[test]
fn a_list_counts_only_what_all_of_it_lets_through() {
    let limits = "rate_limit = [{ rate = \"3/h\" }, { rate = \"1/h\", key = \"{path}\" }]";
    let (_gate, to) = gate(&format!("respond = \"\"\n{limits}"), "");
    let got = ["/a", "/a", "/a", "/b", "/c", "/d"].map(|path| get(to, "x", path).status);
    assert_eq!(got, [200, 429, 429, 200, 200, 429]);
}

#[test]
fn release_a_limit_that_is_reloaded_each_second_admits_no_more_than_its_rate() {
    const RATE: f64 = 100.0;
    let (gate, to) = gate("respond = \"0\"\nrate_limit = \"100/s\"", "");
    let (admitted, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // A connection each, so that both workers have some; now and then a new one.
                while !over.load(Ordering::Relaxed) {
                    let mut conn = Conn::open(to).unwrap();
                    for _ in 0..200 {
                        let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
                        match answer.status {
                            200 => _ = admitted.fetch_add(1, Ordering::Relaxed),
                            429 => {}
                            other => panic!("{other}"),
                        }
                    }
                }
            });
        }
        let pause = Duration::from_millis(if crate::kit::full() { 1_000 } else { 100 });
        for turn in 1..=count(30, 20) {
            std::thread::sleep(pause);
            // Every second one changes the rate, and back.
            let rate = 100 - turn % 2;
            let lines = format!(
                "respond = \"{turn}\"\nrate_limit = {{ rate = \"{rate}/s\", burst = 100 }}"
            );
            gate.reload_ok(&document(to, &lines));
        }
        over.store(true, Ordering::Relaxed);
    });
    let time = began.elapsed().as_secs_f64();
    let admitted = admitted.load(Ordering::Relaxed) as f64;
    assert!(
        admitted <= 1.05 * (RATE * time + RATE),
        "{admitted} in {time} s"
    );
    // It lets through what it should, as far as a busy machine asks for it.
    assert!(
        admitted >= RATE + 0.5 * RATE * time,
        "{admitted} in {time} s"
    );
}

#[test]
fn those_beyond_the_places_wait_in_order_and_the_rest_is_a_503() {
    let origin = Origin::start("A");
    let lines = "concurrency = { requests = 1, queue = 2, wait = \"30s\" }";
    let (gate, to) = before(&origin, lines);
    let mut first = asks(to, "/hold?1");
    origin.wait_holding(1);
    // Three more, of which one finds the queue full; the others wait.
    let mut waiting: Vec<Conn> = (2..5).map(|n| asks(to, &format!("/{n}"))).collect();
    let late = crate::kit::until("one of them to be refused", || {
        waiting.iter().position(|conn| {
            let brief = Some(Duration::from_millis(20));
            conn.stream.set_read_timeout(brief).unwrap();
            conn.stream.peek(&mut [0]).is_ok()
        })
    });
    let refused = waiting.swap_remove(late).response().unwrap();
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("30"))
    );
    // The one in progress counts in the next generation, too.
    gate.reload_ok(&document(
        to,
        &format!("proxy = \"http://{}\"\n{lines}\nhosts = \"x\"", origin.addr),
    ));
    assert_eq!(get(to, "x", "/5").status, 503);
    assert_eq!(origin.requests(), 1);
    origin.release_all();
    for conn in waiting.iter_mut().chain([&mut first]) {
        conn.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(conn.response().unwrap().status, 200);
    }
    assert_eq!(get(to, "x", "/6").status, 200);
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let origin = Origin::start("A");
    let (_gate, to) = before(&origin, "concurrency = { requests = 1 }");
    let held = asks(to, "/hold");
    origin.wait_holding(1);
    assert_eq!(get(to, "x", "/").status, 503);
    drop(held);
    let free = || (get(to, "x", "/").status == 200).then_some(());
    crate::kit::until("the place to be free", free);
    // While its response is sent as well.
    let mut slow = asks(to, "/infinite");
    slow.response_head().unwrap();
    assert_eq!(get(to, "x", "/").status, 503);
    drop(slow);
    crate::kit::until("the place to be free again", free);
}

#[test]
fn a_body_is_sent_no_faster_than_its_bandwidth() {
    let origin = Origin::start("A");
    let (_gate, to) = before(&origin, "bandwidth = \"200kB/s\"");
    let began = Instant::now();
    let answer = get(to, "x", "/download?bytes=265536");
    let took = began.elapsed();
    assert_eq!(answer.body.len(), 265_536);
    assert!(answer.body == crate::kit::origin::piece_of_pattern(0, 265_536));
    // 64 KiB are free, the rest takes a second but for its last piece.
    assert!(took >= Duration::from_millis(850), "{took:?}");
}

#[test]
fn a_file_is_sent_no_faster_either() {
    let gate = Gate::setup().file("big", vec![b'x'; 165_536]);
    let to = SocketAddr::from(([127, 0, 0, 1], crate::kit::free_port()));
    let _gate = gate.start(&document(to, "files = \".\"\nbandwidth = \"100kB/s\""));
    let began = Instant::now();
    assert_eq!(get(to, "x", "/big").body.len(), 165_536);
    assert!(began.elapsed() >= Duration::from_millis(850));
}

#[test]
fn an_exchange_that_takes_too_long_is_a_504_or_cut() {
    let origin = Origin::start("A");
    let lines = format!(
        "proxy = \"http://{0}\"\ntimeout = \"300ms\"\n[[http.web.routes]]\nmatch.path = \"/free/*\"\n\
         proxy = \"http://{0}\"\ntimeout = \"unlimited\"",
        origin.addr
    );
    let (_gate, to) = gate(&lines, "");
    // The connection goes on after a 504: nothing of the request is left on it.
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..2 {
        let late = conn
            .exchange("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        assert_eq!(late.status, 504);
    }
    let mut dripping = asks(to, "/drip");
    assert_eq!(dripping.response_head().unwrap().status, 200);
    let cut = dripping.body(true, None, |_| ());
    assert!(cut.is_err());
    let mut free = asks(to, "/free/drip");
    assert_eq!(free.response_head().unwrap().status, 200);
    std::thread::sleep(Duration::from_millis(400));
    origin.release_all();
    assert!(free.body(true, None, |_| ()).is_ok());
    assert!(raw::try_get(to, "x", "/").is_ok_and(|r| r.status == 200));
}

/// An origin that switches to whatever is asked for and then sends back what it gets; anything else is a 200.
fn switching() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut conn = Conn::over(stream).unwrap();
                while let Ok(Some(head)) = conn.head() {
                    if head.get("upgrade").is_none() {
                        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                            .unwrap();
                        continue;
                    }
                    conn.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
                        .unwrap();
                    while let Ok(piece) = conn.some(1 << 16)
                        && !piece.is_empty()
                        && conn.send(piece).is_ok()
                    {}
                    return;
                }
            });
        }
    });
    addr
}

#[test]
fn a_websocket_keeps_its_place_and_has_no_other_limit() {
    let lines = format!(
        "proxy = \"http://{}\"\nconcurrency = {{ requests = 1 }}\ntimeout = \"300ms\"\nbandwidth = \"1B/s\"",
        switching()
    );
    let (_gate, to) = gate(&lines, "");
    let mut socket = Conn::open(to).unwrap();
    let began = Instant::now();
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.send(request).unwrap();
    assert_eq!(socket.response_head().unwrap().status, 101);
    // Its time as a request passes.
    while began.elapsed() < Duration::from_millis(400) {
        assert_eq!(get(to, "x", "/").status, 503);
        std::thread::sleep(Duration::from_millis(20));
    }
    socket.send(vec![b'x'; 200_000]).unwrap();
    let mut back = 0;
    while back < 200_000 {
        let piece = socket.some(1 << 16).unwrap();
        assert!(!piece.is_empty());
        back += piece.len();
    }
    drop(socket);
    crate::kit::until("the place to be free", || {
        (get(to, "x", "/").status == 200).then_some(())
    });
}

#[tokio::test]
async fn streams_are_held_back_each_by_itself() {
    let origin = Origin::start("A");
    let lines = "protocols = [\"h1\", \"h2\"]\nconcurrency = { requests = 2 }\nbandwidth = \"100kB/s\"\ntimeout = \"20s\"";
    let (_gate, to) = before(&origin, lines);
    let client = h2c::H2::open(to).await;
    let ask = |path: &str| {
        let (stream, uri) = (client.stream(), format!("http://x{path}"));
        async move { h2c::send(stream, "GET", &uri, "").await.unwrap() }
    };
    let began = Instant::now();
    let (one, two) = tokio::join!(ask("/download?bytes=165536"), ask("/download?bytes=165536"));
    let took = began.elapsed();
    assert_eq!([one.1.len(), two.1.len()], [165_536; 2]);
    assert!(took >= Duration::from_millis(850), "{took:?}");
    // A stream that its client resets frees its place.
    let mut held: Vec<_> = (0..2).map(|_| tokio::spawn(ask("/hold"))).collect();
    let waiting = origin.clone();
    tokio::task::spawn_blocking(move || waiting.wait_holding(2))
        .await
        .unwrap();
    assert_eq!(ask("/").await.0.status, 503);
    held.swap_remove(0).abort();
    let freed = async {
        while ask("/").await.0.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::kit::PATIENCE, freed)
        .await
        .expect("the place of the stream that was reset is free");
    origin.release_all();
    assert_eq!(held.remove(0).await.unwrap().0.status, 200);
    assert!(client.is_open());
}
