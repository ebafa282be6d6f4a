//! Done when 11: the README's tour, step by step. With the kit's own client, so that `cargo test` needs nothing but Rust;
//! `scripts/smoke` does the same with curl.

use std::net::SocketAddr;

use crate::kit::{Call, Gate, free_port, get, raw, tls};
use crate::samples::Sample;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn the_tour_by_hand() {
    let (first, second) = (free_port(), free_port());
    let server = |port: u16| {
        format!("[http.hello]\nlisten = \"127.0.0.1:{port}\"\nrespond = \"hello from {port}\"\n")
    };
    let says = |port: u16| get(local(port), "localhost", "/").text();
    let mut gate = Gate::start(&server(first));
    assert_eq!(says(first), format!("hello from {first}"));

    // The file edited to another port.
    gate.write(&server(second));
    let answer = gate.call(Call::post("/reload?wait=drained")).expect(200);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    assert_eq!(says(second), format!("hello from {second}"));
    assert!(raw::refused(local(first)), "the old port still answers");

    // A broken file: what is wrong, and nothing changes.
    let broken = "[http.hello]\nlisten = \"127.0.0.1:80800\"\nrespnd = \"x\"\n";
    let answer = gate.call(Call::post("/adapt").toml(broken));
    assert_eq!(answer.status, 422);
    let pointers = answer.pointers();
    for wanted in ["/http/hello/listen", "/http/hello/respnd"] {
        let named = pointers.iter().any(|pointer| pointer.starts_with(wanted));
        assert!(named, "{wanted} is missing: {pointers:?}");
    }
    let text = answer.text();
    assert!(
        text.contains("did you mean `respond`?") && text.contains("\"line\""),
        "{text}"
    );
    assert_eq!(says(second), format!("hello from {second}"));

    // What runs.
    let now = gate.now().expect(200);
    assert_eq!(
        now["http"]["hello"]["listen"][0],
        format!("127.0.0.1:{second}"),
        "{now}"
    );

    gate.call(Call::post("/stop")).expect(200);
    assert_eq!(gate.wait().code(), Some(0));
    for port in [first, second, gate.base.admin.port()] {
        assert!(raw::refused(local(port)));
    }
}

#[test]
fn a_site_with_https_and_its_maintenance_page() {
    let site = Sample::start("site.toml");
    let client = tls::Client::new();
    let page = client.get(site.at(8443), "localhost", "/any/path");
    assert_eq!(page.status, 200);
    assert!(
        page.text().starts_with("<!doctype html>"),
        "{}",
        page.text()
    );
    assert!(page.header("strict-transport-security").is_some());
    let missing = client.get(site.at(8443), "localhost", "/assets/gone.js");
    assert_eq!(missing.status, 404);
    let plain = get(site.at(8088), "localhost", "/any/path");
    let there = format!("https://localhost:{}/any/path", site.at(8443).port());
    assert_eq!(
        (plain.status, plain.header("location")),
        (308, Some(&*there))
    );

    let page = Sample::start("maintenance.toml");
    // The application is not there: its own page says so.
    let lost = get(page.at(8091), "localhost", "/");
    assert_eq!(lost.status, 502);
    assert!(lost.text().contains("Back soon"));
    let text = page
        .text
        .replacen("enabled   = false", "enabled   = true", 1);
    assert_ne!(text, page.text);
    page.gate
        .call(Call::post("/reload").toml(&text))
        .expect(200);
    let closed = get(page.at(8091), "localhost", "/");
    assert_eq!(
        (closed.status, closed.header("retry-after")),
        (503, Some("600"))
    );
    assert!(closed.text().contains("Back soon"));
}
