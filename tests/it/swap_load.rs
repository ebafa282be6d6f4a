//! Swaps under load: nothing fails, nothing old answers after `committed`, no connection notices.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::kit::load::{Load, Shape, mark};
use crate::kit::origin::{hex, pattern_hash, throttled};
use crate::kit::{Conn, Gate, Origin, PATIENCE, count, free_port, full, h2c};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Generation mark `n`: its route leads to A or B in turn, below a base path that carries the mark.
fn flip(listen: SocketAddr, origins: [&Origin; 2], n: u64) -> String {
    let origin = origins[(n % 2) as usize].addr;
    format!(
        "[http.web]\nlisten = \"{listen}\"\n[[http.web.routes]]\nname = \"app\"\nmatch.path = \"/*\"\nproxy = \"http://{origin}/g{n}\"\n"
    )
}

/// Done when 2.
#[test]
fn release_two_hundred_swaps_flip_an_upstream_under_load() {
    let (a, b) = (Origin::start("A"), Origin::start("B"));
    let listen = local(free_port());
    let gate = Gate::start(&flip(listen, [&a, &b], 0));
    let load = Load::start(Shape {
        kept: count(64, 16),
        fresh: count(1200, 100) as u64,
        pace: Duration::from_millis(count(10, 5) as u64),
        post: 100,
        ..Shape::new(listen)
    });
    let swaps = count(200, 40) as u64;
    let start = Instant::now();
    for n in 1..=swaps {
        if full() {
            // Five a second.
            std::thread::sleep(
                (Duration::from_millis(200) * n as u32).saturating_sub(start.elapsed()),
            );
        }
        gate.reload_ok(&flip(listen, [&a, &b], n));
        load.raise_floor(n);
    }
    load.wait_more(100);
    let report = load.finish();
    gate.wait_settled();
    assert!(a.requests() > 0 && b.requests() > 0);
    let rate = report.fresh as f64 / report.took.as_secs_f64();
    println!(
        "{} answers, {rate:.0} new connections a second over {swaps} swaps",
        report.answers
    );
    if full() && !cfg!(debug_assertions) {
        assert!(
            rate >= 1000.0,
            "the load itself was too light: {rate:.0} new connections a second"
        );
    }
}

/// Done when 2, the exact part alone: each answer to a request sent after `committed` is of that generation.
#[test]
fn a_request_sent_after_committed_is_never_answered_by_an_older_generation() {
    let listen = local(free_port());
    let respond =
        |n: u64| format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"/g{n} {{generation}}\"\n");
    let gate = Gate::start(&respond(0));
    // Several, so that every worker holds some.
    let mut kept: Vec<Conn> = (0..8).map(|_| Conn::open(listen).unwrap()).collect();
    for n in 1..=20 {
        let generation = gate.reload_ok(&respond(n))["generation"].as_u64().unwrap();
        for conn in &mut kept {
            let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            assert_eq!(answer.text(), format!("/g{n} {generation}"));
        }
        for _ in 0..8 {
            assert_eq!(
                crate::kit::get(listen, "x", "/").text(),
                format!("/g{n} {generation}")
            );
        }
    }
}

/// The moment of the next swap, told to all clients at once.
#[derive(Default)]
struct Announced {
    next: Mutex<(u64, Option<Instant>)>,
    changed: Condvar,
}

/// Done when 4, first part.
#[test]
fn release_idle_keep_alive_clients_that_post_around_swaps_are_never_reset() {
    let (a, b) = (Origin::start("A"), Origin::start("B"));
    let listen = local(free_port());
    let gate = Gate::start(&flip(listen, [&a, &b], 0));
    let clients = count(500, 100);
    let swaps = 20;
    let announced = Arc::new(Announced::default());
    let connected = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..clients)
        .map(|i| {
            let (announced, connected) = (announced.clone(), connected.clone());
            std::thread::Builder::new()
                .stack_size(256 * 1024)
                .spawn(move || -> std::io::Result<()> {
                    let mut conn = Conn::open(listen)?;
                    let mut random = fastrand::Rng::with_seed(i as u64);
                    let post = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
                    let first = conn.exchange(post);
                    connected.fetch_add(1, Ordering::SeqCst);
                    first?;
                    for swap in 1..=swaps {
                        let at = {
                            let next = announced.next.lock().unwrap();
                            let (next, _) = announced
                                .changed
                                .wait_timeout_while(next, PATIENCE, |n| n.0 < swap)
                                .unwrap();
                            next.1.unwrap()
                        };
                        // 40 ms before to 40 ms after.
                        let when = at - Duration::from_millis(40)
                            + Duration::from_micros(random.u64(0..80_000));
                        std::thread::sleep(when.saturating_duration_since(Instant::now()));
                        let answer = conn.exchange(post)?;
                        if answer.status != 200 || answer.body != b"hello" {
                            return Err(std::io::Error::other(format!(
                                "{}: {}",
                                answer.status,
                                answer.text()
                            )));
                        }
                    }
                    Ok(())
                })
                .unwrap()
        })
        .collect();
    crate::kit::until("all clients to be connected", || {
        (connected.load(Ordering::SeqCst) == clients as u64).then_some(())
    });
    for swap in 1..=swaps {
        let at = Instant::now() + Duration::from_millis(60);
        *announced.next.lock().unwrap() = (swap, Some(at));
        announced.changed.notify_all();
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        gate.reload_ok(&flip(listen, [&a, &b], swap));
    }
    let failed: Vec<String> = threads
        .into_iter()
        .filter_map(|t| t.join().unwrap().err())
        .map(|e| e.to_string())
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {clients} clients failed: {:?}",
        failed.len(),
        &failed[..failed.len().min(5)]
    );
}

/// Done when 4, second part.
#[test]
fn release_h2c_connections_see_neither_goaway_nor_reset_over_swaps() {
    let (a, b) = (Origin::start("A"), Origin::start("B"));
    let listen = local(free_port());
    let gate = Gate::start(&flip(listen, [&a, &b], 0));
    let (connections, streams, swaps) = (count(50, 10), 10, count(20, 10) as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let floor = Arc::new(AtomicU64::new(0));
    let answers = Arc::new(AtomicU64::new(0));
    let (clients, tasks) = runtime.block_on(async {
        let mut clients = Vec::new();
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let client = h2c::H2::open(listen).await;
            for _ in 0..streams {
                let (stream, stop, floor, answers) = (
                    client.stream(),
                    stop.clone(),
                    floor.clone(),
                    answers.clone(),
                );
                tasks.push(tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let least = floor.load(Ordering::SeqCst);
                        let answer =
                            h2c::send(stream.clone(), "GET", "http://h2.test/id", "").await;
                        let (parts, body, _) = answer.map_err(|e| format!("{e:?}"))?;
                        let text = String::from_utf8_lossy(&body).into_owned();
                        if parts.status != 200 || mark(&text) < Some(least) {
                            return Err(format!("{}, after g{least}: {text}", parts.status));
                        }
                        answers.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(())
                }));
            }
            clients.push(client);
        }
        (clients, tasks)
    });
    let more = |n: u64| {
        let before = answers.load(Ordering::SeqCst);
        crate::kit::until("streams to be answered", || {
            (answers.load(Ordering::SeqCst) >= before + n).then_some(())
        });
    };
    more((connections * streams) as u64);
    for n in 1..=swaps {
        gate.reload_ok(&flip(listen, [&a, &b], n));
        floor.store(n, Ordering::SeqCst);
        more(connections as u64);
    }
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    });
    for client in &clients {
        assert!(client.is_open(), "a connection was closed");
        assert_eq!(client.frames.goaway.load(Ordering::SeqCst), 0);
        assert_eq!(client.frames.resets.load(Ordering::SeqCst), 0);
    }
    // The clients' drop aborts their tasks and needs the runtime.
    let _inside = runtime.enter();
    drop(clients);
}

/// Done when 4, third part: on a route that stays, and on one whose upstream every swap replaces.
#[test]
fn release_throttled_upload_and_download_are_whole_across_swaps() {
    let (a, b) = (Origin::start("A"), Origin::start("B"));
    let listen = local(free_port());
    let document = |n: u64| {
        format!(
            "[http.web]\nlisten = \"{listen}\"\n\
             [[http.web.routes]]\nname = \"stays\"\nmatch.path = \"/stays/*\"\nproxy = \"http://{}\"\n\
             [[http.web.routes]]\nname = \"flips\"\nmatch.path = \"/*\"\nproxy = \"http://{}/g{n}\"\n",
            a.addr,
            [&b, &a][(n % 2) as usize].addr
        )
    };
    let gate = Gate::setup()
        .runtime("drain_timeout = \"2m\"")
        .start(&document(0));
    let bytes = count(100_000_000, 10_000_000) as u64;
    let rate = bytes / count(8, 3) as u64;
    let transfers: Vec<_> = ["/stays", "/moving"]
        .into_iter()
        .flat_map(|base| {
            let upload = std::thread::spawn(move || {
                let mut conn = Conn::open(listen).unwrap();
                conn.send(format!(
                    "POST {base}/hash HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n"
                ))
                .unwrap();
                throttled(bytes, Some(rate), |piece| conn.send(piece)).unwrap();
                conn.response().unwrap().text()
            });
            let download = std::thread::spawn(move || {
                let mut conn = Conn::open(listen).unwrap();
                let target = format!("{base}/download?bytes={bytes}&rate={rate}");
                conn.send(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n"))
                    .unwrap();
                let head = conn.response_head().unwrap();
                assert_eq!(head.status, 200);
                let mut hash = Sha256::new();
                conn.body(false, head.head.length(), |piece| hash.update(piece))
                    .unwrap();
                hex(&hash.finalize())
            });
            [upload, download]
        })
        .collect();
    crate::kit::until("all four transfers to be at the origins", || {
        (a.requests() + b.requests() >= 4).then_some(())
    });
    for n in 1..=10 {
        gate.reload_ok(&document(n));
        // Spread over the transfer: what must come in between is bytes.
        std::thread::sleep(Duration::from_millis(count(500, 150) as u64));
    }
    let wanted = pattern_hash(bytes);
    for transfer in transfers {
        assert_eq!(transfer.join().unwrap(), wanted);
    }
    gate.wait_settled();
}
