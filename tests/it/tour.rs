//! Done when 11: the README's tour, step by step. With the kit's own client, so that `cargo test` needs nothing but Rust;
//! `scripts/smoke` does the same with curl.

use std::net::SocketAddr;

use crate::kit::{Call, Gate, free_port, get, raw};

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
