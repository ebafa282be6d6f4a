//! Size and time: memory over a thousand swaps, a document of ten thousand routes, an admin API that answers while
//! everything else is busy. Times are asserted on release builds only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kit::load::{Load, Shape};
use crate::kit::{Call, Conn, Gate, count, free_port, get, percentile, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// `routes` host routes and one for the load; `mark` makes each document another one.
fn many_routes(listen: SocketAddr, routes: usize, mark: usize) -> String {
    let mut text = format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"/g{mark} fallback\"\n");
    for i in 0..routes {
        text.push_str(&format!(
            "[[http.web.routes]]\nname = \"r{i}\"\nmatch.host = \"h{i}.example.com\"\nrespond = \"/g{mark} r{i}\"\n"
        ));
    }
    text
}

/// Memory of its own once it is at rest: the least of two seconds, for what is free is given back a second after a swap.
fn at_rest(gate: &Gate) -> u64 {
    gate.wait_settled();
    let start = Instant::now();
    let mut least = gate.own_memory();
    while start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(20));
        least = least.min(gate.own_memory());
    }
    least
}

/// Done when 6. A leak of 600 bytes a swap fails it.
#[test]
fn release_a_thousand_swaps_of_a_thousand_routes_keep_memory_flat() {
    let to = local(free_port());
    let (swaps, early, routes) = (count(1000, 60), count(100, 40), count(1000, 50));
    let gate = Gate::start(&many_routes(to, routes, 0));
    let (mut mark, mut memory) = (0, Vec::new());
    let mut swap = || {
        mark += 1;
        gate.reload_ok(&many_routes(to, routes, mark));
        mark
    };
    // Twice as many: what the allocator keeps comes to rest, a leak does not.
    for upto in [early, swaps, 2 * swaps] {
        while swap() < upto {}
        // How what lives lies among what is free differs from swap to swap.
        let times = (0..count(5, 1)).map(|_| {
            swap();
            at_rest(&gate)
        });
        memory.extend(times.min());
    }
    assert_eq!(
        get(to, "h7.example.com", "/").text(),
        format!("/g{mark} r7")
    );
    let (first, middle, last) = (memory[0], memory[1], memory[2]);
    println!(
        "memory: {first} after {early} swaps, {middle} after {swaps}, {last} after twice as many"
    );
    if !cfg!(debug_assertions) {
        assert!(last as f64 <= middle as f64 * 1.05, "it grows: {memory:?}");
        assert!(last as f64 <= first as f64 * 1.15, "it grows: {memory:?}");
    }
}

/// Free memory between what lives is given back, too.
#[test]
fn release_a_large_document_leaves_no_memory_behind() {
    let to = local(free_port());
    let (large, swaps) = (count(10_000, 500), count(5, 2));
    let gate = Gate::start(&many_routes(to, 10, 0));
    let before = at_rest(&gate);
    for n in 1..=swaps {
        gate.reload_ok(&many_routes(to, large, n));
    }
    let with = at_rest(&gate);
    gate.reload_ok(&many_routes(to, 10, 0));
    let after = at_rest(&gate);
    println!("memory: {before}, {with} with {large} routes, {after} after them");
    if !cfg!(debug_assertions) && cfg!(all(target_os = "linux", target_env = "gnu")) {
        assert!(
            after.saturating_sub(before) <= (with - before) / 2,
            "{before} bytes before, {with} with {large} routes, {after} after them"
        );
    }
}

/// Done when 8.
#[test]
fn release_ten_thousand_routes_are_committed_quickly_and_quietly() {
    let to = local(free_port());
    let (routes, swaps) = (count(10_000, 300), count(20, 3));
    let gate = Gate::start(&many_routes(to, routes, 0));
    let shape = |pace: Duration| Shape {
        host: "h77.example.com".to_owned(),
        pace,
        kept: 8,
        ..Shape::new(to)
    };
    // Capacity: what the same clients get without a pause.
    let flat_out = Load::start(shape(Duration::ZERO));
    flat_out.wait_more(count(20_000, 200) as u64);
    let report = flat_out.finish();
    let capacity = report.answers as f64 / report.took.as_secs_f64();
    let pace = Duration::from_secs_f64(8.0 / (capacity / 2.0));
    let quiet = Load::start(shape(pace));
    quiet.wait_more(count(30_000, 200) as u64);
    let mut quiet_times = quiet.finish().times;

    let load = Load::start(shape(pace));
    let mut commits = Vec::new();
    for n in 1..=swaps {
        let call = Call::post("/reload").toml(&gate.document(&many_routes(to, routes, n)));
        let start = Instant::now();
        let answer = gate.call(call);
        commits.push(start.elapsed());
        assert_eq!(answer.expect(200)["outcome"], "committed");
        load.raise_floor(n as u64);
        load.wait_more(count(1000, 50) as u64);
    }
    let mut times = load.finish().times;
    let (calm, busy) = (
        percentile(&mut quiet_times, 0.99),
        percentile(&mut times, 0.99),
    );
    // Of twenty the machine itself may hold up one.
    let slow = percentile(&mut commits, 0.95);
    let worst = commits[commits.len() - 1];
    println!(
        "capacity {capacity:.0}/s; commits {slow:?} (95 %), {worst:?} (worst); p99 {calm:?} quiet, {busy:?} with {swaps} swaps"
    );
    if !cfg!(debug_assertions) {
        assert!(
            slow <= Duration::from_millis(250),
            "{swaps} swaps took {commits:?}"
        );
        assert!(
            busy <= calm + Duration::from_millis(10),
            "p99 {busy:?} with swaps, {calm:?} without"
        );
    }
}

/// `GET /now` again and again while `busy` holds; the times it took.
fn time_now(gate: &Gate, least: usize, mut busy: impl FnMut() -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while busy() || times.len() < least {
        let start = Instant::now();
        let answer = Call::get("/now").try_send(gate.base.admin).unwrap();
        assert_eq!(answer.status, 200);
        // Enough figures; the wait for the end goes on.
        if times.len() < 20_000 {
            times.push(start.elapsed());
        }
    }
    times
}

/// Done when 9, saturation.
#[test]
fn release_now_answers_while_every_worker_is_saturated() {
    let to = local(free_port());
    let gate = Gate::start(&many_routes(to, 10, 0));
    let load = Load::start(Shape {
        kept: count(64, 16),
        pace: Duration::ZERO,
        ..Shape::new(to)
    });
    let mut times = time_now(&gate, count(500, 50), || false);
    load.finish();
    let p99 = percentile(&mut times, 0.99);
    println!("/now p99 while saturated: {p99:?}");
    if !cfg!(debug_assertions) {
        assert!(
            p99 <= Duration::from_millis(20),
            "/now took {p99:?} at the 99th percentile"
        );
    }
}

/// Done when 9, a swap that waits in prepare: a file that is a FIFO without a writer.
#[test]
fn release_now_answers_while_a_swap_waits_in_prepare() {
    let to = local(free_port());
    let good = format!("[http.web]\nlisten = \"{to}\"\nrespond = \"good\"\n");
    let timeout = count(10, 1);
    let gate = Gate::setup()
        .runtime(&format!("prepare_timeout = \"{timeout}s\""))
        .start(&good);
    let fifo = gate.dir.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let before = gate.now();
    let waiting = format!("[http.web]\nlisten = \"{to}\"\nrespond = {{ file = \"fifo\" }}\n");
    let start = Instant::now();
    let accepted = gate.call(Call::post("/reload?wait=accepted").toml(&gate.document(&waiting)));
    assert_eq!(accepted.status, 202);
    let place = accepted.header("location").unwrap().to_owned();
    let record = || gate.call(Call::get(&place)).expect(200);
    let mut times = time_now(&gate, 50, || record()["done"] == false);
    let took = start.elapsed();
    let record = record();
    assert_eq!(
        (&record["outcome"], &record["status"]),
        (&"rejected".into(), &409.into()),
        "{record}"
    );
    assert!(
        record["errors"][0]["pointer"]
            .as_str()
            .unwrap()
            .starts_with("/http/web/respond/file"),
        "{record}"
    );
    assert!(
        took >= Duration::from_secs(timeout as u64),
        "it did not wait: {took:?}"
    );
    assert_eq!(gate.now().body, before.body);
    let p99 = percentile(&mut times, 0.99);
    println!("/now p99 while a swap waits: {p99:?}");
    if !cfg!(debug_assertions) {
        assert!(
            p99 <= Duration::from_millis(20),
            "/now took {p99:?} at the 99th percentile"
        );
    }
    // Nothing is left of it, and the next swap goes through.
    gate.reload_ok(&good.replace("good", "better"));
    assert_eq!(get(to, "x", "/").text(), "better");
}

/// A stop does not wait behind a swap that waits.
#[test]
fn stop_goes_before_a_swap_that_waits_in_prepare() {
    let to = local(free_port());
    let good = format!("[http.web]\nlisten = \"{to}\"\nrespond = \"good\"\n");
    let mut gate = Gate::setup()
        .runtime("prepare_timeout = \"20s\"")
        .start(&good);
    let fifo = gate.dir.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let waiting = format!("[http.web]\nlisten = \"{to}\"\nrespond = {{ file = \"fifo\" }}\n");
    let accepted = gate.call(Call::post("/reload?wait=accepted").toml(&gate.document(&waiting)));
    assert_eq!(accepted.status, 202);
    let start = Instant::now();
    assert_eq!(gate.call(Call::post("/stop")).status, 200);
    until("the process to end", || (!gate.is_running()).then_some(()));
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "it waited for the swap"
    );
    assert_eq!(gate.wait().code(), Some(0));
}

/// More old generations than are kept: the oldest is hurried, the others go on.
#[test]
fn the_oldest_of_too_many_generations_is_hurried() {
    let origin = crate::kit::Origin::start("A");
    let to = local(free_port());
    let document = |n: usize| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}/g{n}\"\n",
            origin.addr
        )
    };
    let gate = Gate::setup()
        .runtime("drain_timeout = \"1h\"")
        .start(&document(0));
    let mut held = Vec::new();
    for n in 1..=12 {
        let mut conn = crate::kit::Conn::open(to).unwrap();
        conn.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        held.push(conn);
        // Those of hurried generations are gone, the rest wait.
        until("the request to be at the origin", || {
            (origin.requests() >= n as u64).then_some(())
        });
        gate.reload_ok(&document(n));
    }
    let status = gate.wait_status("the oldest to be gone", |s| {
        s["generations"].as_array().unwrap().len() <= 9
    });
    assert!(
        status["generations"].as_array().unwrap().len() >= 2,
        "{status}"
    );
    origin.release_all();
    // The youngest is answered whole, by the generation it began on.
    assert_eq!(
        held.last_mut().unwrap().response().unwrap().text(),
        "A /g11/hold"
    );
    gate.wait_settled();
}

/// Connections that wait for their next request hold next to nothing, and all of them are there.
#[test]
fn release_idle_connections_are_small_and_answer() {
    let to = local(free_port());
    let document =
        format!("[http.web]\nlisten = \"{to}\"\ntimeouts.idle = \"1h\"\nrespond = \"here\"\n");
    let gate = Gate::start(&document);
    let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let connect = || {
        let mut conn = Conn::open(to).unwrap();
        assert_eq!(conn.exchange(request).unwrap().text(), "here");
        conn
    };
    drop(connect());
    let before = at_rest(&gate);
    // A process may have 20,000 descriptors where this runs.
    let mut all: Vec<Conn> = (0..count(8000, 200)).map(|_| connect()).collect();
    let each = || gate.own_memory().saturating_sub(before) / all.len() as u64;
    let held = each();
    if !cfg!(debug_assertions) && cfg!(all(target_os = "linux", target_env = "gnu")) {
        // With what a request needs it is 16 KB; the fewer come at a time, the less is left between others.
        until("what they let go of to be given back", || {
            (each() < 9 << 10).then_some(())
        });
    }
    println!(
        "each of {}: {held} bytes when all had come, then {}",
        all.len(),
        each()
    );
    for conn in &mut all {
        assert_eq!(conn.exchange(request).unwrap().text(), "here");
    }
}
