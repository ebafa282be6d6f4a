//! `/metrics`: that it is what Prometheus reads, that counts add up over workers and swaps, that no client can make it
//! grow, and the address of its own.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use crate::kit::raw::{refused, try_get};
use crate::kit::{Call, Conn, Gate, Origin, Response, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Samples by name and labels, as the text has them.
type Samples = BTreeMap<String, f64>;

/// Reads a page and holds it to the rules of OpenMetrics, as far as they concern us.
fn read(page: &Response) -> Samples {
    assert_eq!(page.status, 200);
    let kind = page.header("content-type").unwrap();
    assert!(
        kind.starts_with("application/openmetrics-text; version=1.0.0"),
        "{kind}"
    );
    let text = page.text();
    let body = text.strip_suffix("# EOF\n").expect("no end");
    let (mut samples, mut families) = (Samples::new(), HashSet::new());
    let mut family = ("", "");
    let mut bucket: Option<(String, f64)> = None;
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, name, rest) = (
                words.next().unwrap(),
                words.next().unwrap(),
                words.next().unwrap(),
            );
            match keyword {
                "HELP" => assert!(families.insert(name), "{name} twice"),
                "TYPE" => family = (name, rest),
                other => panic!("{other}"),
            }
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(value >= 0.0, "{line}");
        let name = key.split('{').next().unwrap();
        let suffix = name
            .strip_prefix(family.0)
            .unwrap_or_else(|| panic!("{line} in {family:?}"));
        let fits: &[&str] = match family.1 {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("{other}"),
        };
        assert!(fits.contains(&suffix), "{line} in {family:?}");
        let rest = &key[name.len()..];
        assert!(
            rest.is_empty() || (rest.starts_with('{') && rest.ends_with('}') && rest.len() > 2),
            "{line}"
        );
        if suffix == "_bucket" {
            // Cumulative, up to the count.
            let series = rest
                .split_once("\",")
                .map_or("", |(_, labels)| labels)
                .to_owned();
            match &bucket {
                Some((last, count)) if *last == series => assert!(value >= *count, "{line}"),
                _ => assert!(rest.contains("le=\"0.0005\""), "{line}"),
            }
            if rest.contains("le=\"+Inf\"") {
                let labels = series.trim_end_matches('}');
                let braces = if labels.is_empty() {
                    String::new()
                } else {
                    format!("{{{labels}}}")
                };
                assert_eq!(samples[&format!("{}_count{braces}", family.0)], value);
                bucket = None;
            } else {
                bucket = Some((series, value));
            }
        }
        assert!(
            samples.insert(key.to_owned(), value).is_none(),
            "{key} twice"
        );
    }
    samples
}

fn scrape(gate: &Gate) -> Samples {
    read(&gate.call(Call::get("/metrics")).0)
}

fn value(samples: &Samples, key: &str) -> f64 {
    *samples
        .get(key)
        .unwrap_or_else(|| panic!("{key} is not in {samples:#?}"))
}

fn web(to: SocketAddr, rest: &str) -> String {
    format!("[http.web]\nlisten = \"{to}\"\n{rest}\n")
}

fn route(name: &str, action: &str) -> String {
    format!("[[http.web.routes]]\nname = \"{name}\"\nmatch.path = \"/{name}/*\"\n{action}\n")
}

#[test]
fn counts_add_up_over_workers_and_swaps_and_go_with_their_names() {
    let origin = Origin::start("o");
    let to = local(free_port());
    let one = route("one", "respond = \"12345\"");
    let api = route("api", &format!("proxy = \"{}\"", origin.addr));
    let gate = Gate::start(&web(to, &format!("{one}{api}")));
    let key = |name: &str, code: &str| {
        format!("evergate_http_requests_total{{server=\"web\",route=\"{name}\",code=\"{code}\"}}")
    };
    let mut asked = 0;
    let mut ask_some = || {
        for _ in 0..25 {
            // A connection each: the kernel spreads them over the workers.
            assert_eq!(get(to, "x", "/one/a").status, 200);
            asked += 1;
        }
        f64::from(asked)
    };
    let so_far = ask_some();
    let settled = |wanted: f64| {
        until("the counts", || {
            let samples = scrape(&gate);
            (samples.get(&key("one", "2xx")) == Some(&wanted)).then_some(samples)
        })
    };
    let samples = settled(so_far);
    let labels = "server=\"web\",route=\"one\"";
    assert_eq!(
        value(
            &samples,
            &format!("evergate_http_response_bytes_total{{{labels}}}")
        ),
        so_far * 5.0
    );
    assert_eq!(
        value(
            &samples,
            &format!("evergate_http_request_duration_seconds_count{{{labels}}}")
        ),
        so_far
    );
    assert_eq!(
        value(
            &samples,
            &format!("evergate_http_requests_in_flight{{{labels}}}")
        ),
        0.0
    );
    assert_eq!(
        value(&samples, "evergate_swaps_total{outcome=\"committed\"}"),
        1.0
    );

    // Another generation, the same names.
    gate.reload_ok(&web(
        to,
        &format!("{one}{api}{}", route("new", "respond = \"\"")),
    ));
    let so_far = ask_some();
    let samples = settled(so_far);
    assert_eq!(value(&samples, "evergate_generation"), 2.0);
    assert_eq!(
        value(&samples, "evergate_swaps_total{outcome=\"committed\"}"),
        2.0
    );
    assert_eq!(value(&samples, "evergate_swap_duration_seconds_count"), 2.0);

    // A target: what it answered, what it took, what it gave.
    let post = "POST /api/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n0123456789";
    for _ in 0..3 {
        assert_eq!(
            Conn::open(to).unwrap().exchange(post).unwrap().body,
            b"0123456789"
        );
    }
    assert_eq!(get(to, "x", "/api/status?code=503").status, 503);
    assert_eq!(get(to, "x", "/api/empty").status, 502);
    let samples = until("the counts", || {
        let samples = scrape(&gate);
        (samples.get(&key("api", "5xx")) == Some(&2.0)).then_some(samples)
    });
    let target = format!("upstream=\"{0}\",target=\"{0}\"", origin.addr);
    let of = |name: &str, more: &str| {
        value(
            &samples,
            &format!("evergate_target_{name}{{{target}{more}}}"),
        )
    };
    assert_eq!(of("responses_total", ",code=\"2xx\""), 3.0);
    assert_eq!(of("responses_total", ",code=\"5xx\""), 1.0);
    assert!(of("unanswered_total", "") >= 1.0);
    assert_eq!(of("up", ""), 1.0);
    assert_eq!(of("response_bytes_total", ""), 36.0);
    assert_eq!(of("requests_in_flight", ""), 0.0);
    assert!(of("connections", "") >= of("connections_idle", ""));
    let api = "server=\"web\",route=\"api\"";
    assert_eq!(
        value(
            &samples,
            &format!("evergate_http_request_bytes_total{{{api}}}")
        ),
        30.0
    );

    // A name that is gone takes its series along; it comes back at nothing.
    gate.reload_drained(&web(to, "respond = \"x\""));
    until("the series to go", || {
        let samples = scrape(&gate);
        (!samples
            .keys()
            .any(|key| key.contains("route=\"one\"") || key.contains("target=")))
        .then_some(())
    });
    gate.reload_ok(&web(to, &one));
    assert!(!scrape(&gate).contains_key(&key("one", "2xx")));
}

#[test]
fn no_client_can_make_the_page_grow() {
    let to = local(free_port());
    let gate = Gate::start(&web(
        to,
        &format!("hosts = [\"a.test\"]\n{}", route("one", "respond = \"\"")),
    ));
    let ask = |n: u32| {
        let mut conn = Conn::open(to).unwrap();
        for host in ["a.test".to_owned(), format!("h{n}.test")] {
            for path in ["/".to_owned(), format!("/one/{n}"), format!("/{n}")] {
                let method = ["GET", "PURGE", "X-1"][n as usize % 3];
                let request =
                    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: {n}\r\n\r\n");
                assert!([200, 404].contains(&conn.exchange(request).unwrap().status));
            }
        }
    };
    (0..3).for_each(ask);
    let names = |samples: &Samples| samples.keys().cloned().collect::<Vec<_>>();
    let before = names(&scrape(&gate));
    (3..100).for_each(ask);
    assert_eq!(names(&scrape(&gate)), before);
}

#[test]
fn handshakes_are_counted_by_how_they_went() {
    let to = local(free_port());
    let gate = Gate::start(&web(to, "respond = \"x\"\ntls.self_signed = \"localhost\""));
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    until("the failure", || {
        let failed = value(
            &scrape(&gate),
            "evergate_tls_handshakes_total{result=\"failed\"}",
        );
        (failed == 1.0).then_some(())
    });
}

#[test]
fn the_monitor_has_three_calls_and_asks_for_no_token() {
    let (to, monitor, other) = (local(free_port()), local(free_port()), local(free_port()));
    let gate = Gate::start(&web(to, "respond = \"x\""));
    let document = |address: Option<SocketAddr>| {
        let line = address.map_or(String::new(), |a| {
            format!("\nmonitor = \"{a}\"\ntoken = \"secret\"")
        });
        let whole = gate.document(&web(to, "respond = \"x\""));
        whole.replacen("\n\n[runtime]", &format!("{line}\n\n[runtime]"), 1)
    };
    let reload = |document: &str, token: &str| {
        let call = Call::post("/reload?wait=committed").toml(document);
        gate.call(call.header("authorization", token)).expect(200);
    };
    reload(&document(Some(monitor)), "Bearer none");
    assert_eq!(
        get(gate.base.admin, &gate.base.admin.to_string(), "/metrics").status,
        401
    );
    let ask = |path: &str| try_get(monitor, "pod-7.example", path).unwrap();
    read(&ask("/metrics"));
    assert_eq!((ask("/livez").status, ask("/readyz").status), (200, 200));
    for path in [
        "/",
        "/now",
        "/status",
        "/openapi.yaml",
        "/reload",
        "/metrics/",
    ] {
        assert_eq!(ask(path).status, 404, "{path}");
    }
    let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(
        Conn::open(monitor).unwrap().exchange(post).unwrap().status,
        405
    );

    // It moves with a swap, and goes with one.
    reload(&document(Some(other)), "Bearer secret");
    assert_eq!(try_get(other, "x", "/livez").unwrap().status, 200);
    until("the old address to be free", || {
        refused(monitor).then_some(())
    });
    reload(&document(None), "Bearer secret");
    until("the address to be free", || refused(other).then_some(()));
    // One that is taken is refused.
    let taken = document(Some(to));
    gate.call(Call::post("/reload").toml(&taken))
        .problem(409, "not-prepared");
}
