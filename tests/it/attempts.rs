//! The access log: sessions of SOCKS and `[tcp]` that come to nothing have a line too, which says why.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::kit::{Gate, free_port, until};
use crate::socks::{Client, LOOPBACK, echo, local, name};

fn lines(path: &Path, count: usize) -> Vec<String> {
    until("the lines", || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(text.lines().count() <= count, "more than {count}:\n{text}");
        let whole = text.lines().count() == count && (count == 0 || text.ends_with('\n'));
        whole.then(|| text.lines().map(str::to_owned).collect())
    })
}

/// What a client says, in one go, and waits for the end.
fn say(proxy: SocketAddr, pieces: &[&[u8]]) {
    let mut client = Client::open(proxy);
    client.say(&pieces.concat());
    client.rest();
}

#[test]
fn an_attempt_by_socks_that_comes_to_nothing_has_its_line() {
    let ((origin, _), listen, dead) = (echo(), local(free_port()), free_port());
    let more = format!(
        "[access_log]\npath = \"a.log\"\nformat = \"{{scheme}} {{user}} {{server}} {{target}} {{ended}} {{status}} {{generation}}\"\n\
         [forward.office]\nlisten = \"{listen}\"\nusers = {{ alice = \"sesame\" }}\nlimits.connections_per_user = 1\n\
         destinations = {{ allow = \"127.0.0.0/8\", deny = \"*.bad.test\" }}\n"
    );
    let gate = Gate::start(&more);
    let path = gate.dir.path().join("a.log");
    let login = |password: &str| {
        let (length, password) = (password.len() as u8, password.as_bytes());
        [&[5, 1, 2, 1, 5], &b"alice"[..], &[length], password].concat()
    };
    let (right, wrong) = (login("sesame"), login("guess"));
    let connect =
        |address: &[u8], port: u16| [&[5, 1, 0], address, &port.to_be_bytes()[..]].concat();
    let socks4 = [
        &[4, 1],
        &dead.to_be_bytes()[..],
        &[127, 0, 0, 1],
        b"alice\0",
    ]
    .concat();
    let cases: Vec<(Vec<Vec<u8>>, String)> = vec![
        // Who it is, is not known: whoever was named may be somebody else.
        (
            vec![vec![5, 1, 0]],
            "socks5 - office - refused 407 1".into(),
        ),
        (vec![wrong], "socks5 - office - refused 407 1".into()),
        (
            vec![socks4],
            format!("socks4 - office 127.0.0.1:{dead} refused 407 1"),
        ),
        (
            vec![right.clone(), connect(&name("x.bad.test"), 80)],
            "socks5 alice office x.bad.test:80 refused 403 1".into(),
        ),
        (
            vec![right.clone(), connect(&[1, 169, 254, 169, 254], 80)],
            "socks5 alice office 169.254.169.254:80 refused 403 1".into(),
        ),
        (
            vec![right.clone(), connect(LOOPBACK, dead)],
            format!("socks5 alice office 127.0.0.1:{dead} failed 502 1"),
        ),
        (
            vec![right.clone(), vec![5, 2, 0, 1, 127, 0, 0, 1, 0, 80]],
            "socks5 alice office - failed 400 1".into(),
        ),
        (
            vec![right.clone(), connect(LOOPBACK, 0)],
            "socks5 alice office - failed 400 1".into(),
        ),
    ];
    for (count, (said, expected)) in cases.iter().enumerate() {
        let pieces: Vec<&[u8]> = said.iter().map(Vec::as_slice).collect();
        say(listen, &pieces);
        assert_eq!(&lines(&path, count + 1)[count], expected);
    }
    // One session too many; the one that is has its own line, at its end.
    let mut one = Client::open(listen);
    one.say(&[right.clone(), connect(LOOPBACK, origin.port())].concat());
    one.hear(4 + 10);
    say(listen, &[&right, &connect(LOOPBACK, origin.port())]);
    let count = cases.len() + 1;
    let full = format!("socks5 alice office {origin} failed 503 1");
    assert_eq!(lines(&path, count)[count - 1], full);
    drop(one);
    let ended = format!("socks5 alice office {origin} closed 200 1");
    assert_eq!(lines(&path, count + 1)[count], ended);
    // Who leaves in the midst of it has asked for nothing.
    for half in [&b""[..], &[5], &[5, 1, 2, 1, 5]] {
        let mut client = Client::open(listen);
        client.say(half);
    }
    gate.wait_status("them to be gone", |s| s["connections"] == 0);
    lines(&path, count + 1);
}

#[test]
fn a_tcp_session_without_a_target_has_its_line() {
    let (listen, dead) = (local(free_port()), local(free_port()));
    let gate = Gate::start(&format!(
        "[access_log]\npath = \"a.log\"\nformat = \"json\"\n[tcp.numbers]\nlisten = \"{listen}\"\nupstream = \"{dead}\"\n"
    ));
    assert!(Client::open(listen).rest().is_empty());
    let line: Value = serde_json::from_str(&lines(&gate.dir.path().join("a.log"), 1)[0]).unwrap();
    let expected = json!({
        "time": line["time"], "client_ip": "127.0.0.1", "user": "", "kind": "tcp", "listener": "numbers",
        "upstream": dead.to_string(), "target": "", "ended": "failed",
        "bytes_received": 0, "bytes_sent": 0, "duration_ms": line["duration_ms"], "generation": 1
    });
    assert_eq!(line, expected);
}
