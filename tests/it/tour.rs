//! Done when 11: the README's tour, as a person would do it with an editor and curl.

use std::net::SocketAddr;
use std::process::Command;

use crate::kit::{Gate, free_port, raw};

fn curl(args: &[&str]) -> (i32, String) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20"])
        .args(args)
        .output()
        .unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn the_tour_by_hand() {
    let (first, second) = (free_port(), free_port());
    let server = |port: u16| {
        format!("[http.hello]\nlisten = \"127.0.0.1:{port}\"\nrespond = \"hello from {port}\"\n")
    };
    let mut gate = Gate::start(&server(first));
    let admin = format!("http://{}", gate.base.admin);
    let at = |port: u16| format!("http://127.0.0.1:{port}/");
    assert_eq!(curl(&[&at(first)]).1, format!("hello from {first}"));

    // The file edited to another port.
    gate.write(&server(second));
    let (code, answer) = curl(&[
        "--fail-with-body",
        "-X",
        "POST",
        &format!("{admin}/reload?wait=drained"),
    ]);
    assert_eq!(code, 0, "{answer}");
    assert!(answer.contains("\"committed\""), "{answer}");
    assert_eq!(curl(&[&at(second)]).1, format!("hello from {second}"));
    assert_eq!(curl(&[&at(first)]).0, 7, "the old port still answers");

    // A broken file: what is wrong, and nothing changes.
    let broken = gate.dir.path().join("broken.toml");
    std::fs::write(
        &broken,
        "[http.hello]\nlisten = \"127.0.0.1:80800\"\nrespnd = \"x\"\n",
    )
    .unwrap();
    let data = format!("@{}", broken.display());
    let adapt = format!("{admin}/adapt");
    let (code, answer) = curl(&[
        "--fail-with-body",
        "-H",
        "Content-Type: application/toml",
        "--data-binary",
        &data,
        &adapt,
    ]);
    assert_eq!(code, 22);
    for wanted in [
        "/http/hello/listen",
        "/http/hello/respnd",
        "respond",
        "\"line\"",
    ] {
        assert!(answer.contains(wanted), "{wanted} is missing: {answer}");
    }
    assert_eq!(curl(&[&at(second)]).1, format!("hello from {second}"));

    // What runs.
    let (_, now) = curl(&[&format!("{admin}/now")]);
    assert!(now.contains(&format!("127.0.0.1:{second}")), "{now}");

    let (code, answer) = curl(&["--fail-with-body", "-X", "POST", &format!("{admin}/stop")]);
    assert_eq!(code, 0, "{answer}");
    assert_eq!(gate.wait().code(), Some(0));
    for port in [first, second, gate.base.admin.port()] {
        assert!(raw::refused(SocketAddr::from(([127, 0, 0, 1], port))));
    }
}
