//! Those of the whole configurations that are no web sites: an office's way out, layer 4, a machine at home. Run as they are
//! written in `examples/`, with addresses moved to free local ones and secrets filled in.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use crate::auth::bcrypt_of;
use crate::kit::authority::Authority;
use crate::kit::process::{Base, spawn};
use crate::kit::raw::try_get;
use crate::kit::tls::Client;
use crate::kit::{Conn, Gate, Origin, PATIENCE, free_port, replaced, until};

const OFFICE: &str = include_str!("examples/office.toml");
const LAYER4: &str = include_str!("examples/layer4.toml");
const EDGE: &str = include_str!("examples/nas-edge.toml");
const HOME: &str = include_str!("examples/nas-home.toml");

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Every `from` must be there.
fn put(text: &str, moved: &[(&str, String)]) -> String {
    for (from, _) in moved {
        assert!(text.contains(from), "{from} is not in\n{text}");
    }
    replaced(text, moved.iter().map(|(from, to)| (*from, &**to)))
}

fn start(text: &str, files: &[(&str, &str)], env: &[(&str, &str)]) -> Gate {
    let dir = tempfile::tempdir().unwrap();
    start_in(dir, text, files, env)
}

fn start_in(dir: TempDir, text: &str, files: &[(&str, &str)], env: &[(&str, &str)]) -> Gate {
    let base = Base {
        admin: local(),
        state_dir: dir.path().join("state"),
        runtime: String::new(),
    };
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let (state, admin) = (base.state_dir.display(), base.admin);
    let ours = format!("\n[admin]\nlisten = \"{admin}\"\n[runtime]\nstate_dir = \"{state}\"\n");
    let file = dir.path().join("evergate.toml");
    std::fs::write(&file, format!("{text}{ours}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
    command
        .args(["run", "-c"])
        .arg(&file)
        .envs(env.iter().copied());
    let (child, output) = spawn(command, dir.path());
    Gate::adopt(child, output, base, dir)
}

fn basic(user: &str) -> String {
    use base64::Engine as _;
    let token = base64::engine::general_purpose::STANDARD.encode(user);
    format!("Proxy-Authorization: Basic {token}\r\n")
}

/// The answer's status, and its body where it is no 200 of a CONNECT.
fn connect(proxy: SocketAddr, to: &str, fields: &str) -> (u16, Conn) {
    let mut conn = Conn::open(proxy).unwrap();
    conn.send(format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{fields}\r\n"
    ))
    .unwrap();
    let head = conn.head().unwrap().unwrap();
    let status = head.line.split(' ').nth(1).unwrap().parse().unwrap();
    (status, conn)
}

/// (d)
#[test]
fn an_office_goes_out_through_parents_over_mutual_tls() {
    let ca = Authority::new();
    let (served, shown) = (ca.issue(&["localhost"]), ca.issue(&["office"]));
    let origin = Origin::start("A");
    let parent = |at: SocketAddr| {
        let text = format!(
            "[forward.parent]\nlisten = \"{at}\"\nprotocols = \"http\"\nusers = {{ office = \"parent's secret\" }}\n\
             destinations.allow = \"127.0.0.0/8\"\n\
             tls = {{ certificates = {{ cert = \"p.pem\", key = \"p.key\" }}, client_auth = {{ ca = \"ca.pem\" }} }}\n"
        );
        let files = [
            ("p.pem", &*served.cert),
            ("p.key", &*served.key),
            ("ca.pem", &*ca.pem()),
        ];
        start(&text, &files, &[])
    };
    let (a, b, listen) = (local(), local(), local());
    let parents = [parent(a), parent(b)];
    let text = put(
        OFFICE,
        &[
            ("\":3128\"", format!("\"{listen}\"")),
            (
                "parent-a.example.net:443",
                format!("localhost:{}", a.port()),
            ),
            (
                "parent-b.example.net:443",
                format!("localhost:{}", b.port()),
            ),
            ("10.0.0.0/8", "127.0.0.0/8".to_owned()),
            ("$argon2id$v=19$…", bcrypt_of("sesame")),
        ],
    );
    let files = [
        ("parents-ca.pem", &*ca.pem()),
        ("office.pem", &*shown.cert),
        ("office.key", &*shown.key),
    ];
    let env = [
        ("CI_PROXY_SECRET", "chips"),
        ("PARENT_SECRET", "parent's secret"),
    ];
    let gate = start(&text, &files, &env);
    let (alice, ci) = (basic("alice:sesame"), basic("ci:chips"));
    let to = format!("localhost:{}", origin.addr.port());
    let through = |at: &Gate| {
        let sessions = at.call(crate::kit::Call::get("/status")).expect(200);
        sessions["sessions"]["connect"]["opened"]
            .as_u64()
            .unwrap_or(0)
    };
    let asks = |fields: &str| {
        let (status, mut conn) = connect(listen, &to, fields);
        assert_eq!(status, 200);
        conn.exchange("GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap()
            .text()
    };
    assert_eq!(connect(listen, &to, "").0, 407);
    assert_eq!(asks(&alice), "A /who");
    assert_eq!((through(&parents[0]), through(&parents[1])), (1, 0));
    // Straight there, by the rule that names the range, and not past the first parent.
    let (status, mut direct) = connect(listen, &origin.addr.to_string(), &alice);
    assert_eq!(status, 200);
    assert_eq!(
        direct
            .exchange("GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap()
            .text(),
        "A /who"
    );
    assert_eq!(through(&parents[0]), 1);
    for (to, fields, wanted) in [
        ("x.ads.example:443", &alice, 403),
        ("tracker.example:6881", &alice, 403),
        ("example.com:443", &ci, 403),
        // Let through, and the parent says that there is no such name.
        ("registry.example:443", &ci, 502),
    ] {
        assert_eq!(connect(listen, to, fields).0, wanted, "{to}");
    }
    // The backup, once the first is gone.
    let [first, second] = parents;
    drop(first);
    until("the backup to be asked", || {
        (connect(listen, &to, &alice).0 == 200 && through(&second) > 0).then_some(())
    });
    drop(gate);
}

/// Answers with its name and what it got.
fn dns(at: SocketAddr, name: &'static str) {
    let (udp, tcp) = (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((size, from)) = udp.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), b":", &buffer[..size]].concat();
            let _ = udp.send_to(&answer, from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(&[name.as_bytes(), b":", &all].concat());
            });
        }
    });
}

/// Reads a PROXY header of version 2 and says what it was; then echoes.
fn postgres(at: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut head = [0; 28];
                if stream.read_exact(&mut head).is_err() {
                    return;
                }
                let known =
                    head[..12] == *b"\r\n\r\n\0\r\nQUIT\n" && head[12..16] == [0x21, 0x11, 0, 12];
                let source = std::net::Ipv4Addr::new(head[16], head[17], head[18], head[19]);
                let _ = writeln!(stream, "{name} {known} {source}");
                let mut write = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut write);
            });
        }
    });
}

/// `/primary` of a database.
fn primary(at: SocketAddr) -> Arc<AtomicBool> {
    let (listener, is) = (
        TcpListener::bind(at).unwrap(),
        Arc::new(AtomicBool::new(true)),
    );
    let state = is.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(mut conn) = Conn::over(stream) else {
                continue;
            };
            let Ok(Some(head)) = conn.head() else {
                continue;
            };
            let well = state.load(Ordering::SeqCst) && head.line.starts_with("GET /primary ");
            let status = if well { "200 OK" } else { "503 No" };
            let _ = conn.send(format!(
                "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            ));
        }
    });
    is
}

fn line(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// (e)
#[test]
fn dns_and_postgres_at_layer_4() {
    let at = |last: u8, port: u16| SocketAddr::from(([127, 0, 0, last], port));
    let (dns_port, db_port, check) = (free_port(), free_port(), free_port());
    dns(at(11, dns_port), "a");
    dns(at(12, dns_port), "b");
    postgres(at(21, db_port), "one");
    postgres(at(22, db_port), "two");
    let first = primary(at(21, check));
    let second = primary(at(22, check));
    second.store(false, Ordering::SeqCst);
    let (fifty_three, db) = (local(), local());
    let text = put(
        LAYER4,
        &[
            ("\":53\"", format!("\"{fifty_three}\"")),
            ("\":5432\"", format!("\"{db}\"")),
            ("10.3.0.1:53", at(11, dns_port).to_string()),
            ("10.3.0.2:53", at(12, dns_port).to_string()),
            ("10.3.1.1:6432", at(21, db_port).to_string()),
            ("10.3.1.2:6432", at(22, db_port).to_string()),
            ("8008", check.to_string()),
            ("10.0.0.5/32", "127.0.0.5/32".to_owned()),
        ],
    );
    let gate = start(&text, &[], &[]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"who?", fifty_three).unwrap();
    let mut buffer = [0; 64];
    let (size, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[1..size], from), (&b":who?"[..], fifty_three));
    let mut stream = TcpStream::connect(fifty_three).unwrap();
    stream.write_all(b"who?").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all == "a:who?" || all == "b:who?", "{all}");

    gate.wait_status("the second database to be no primary", |status| {
        let upstreams = status["upstreams"].as_array().unwrap();
        let postgres = upstreams.iter().find(|u| u["name"] == "postgres").unwrap();
        postgres["targets"][1]["health"] == "down"
    });
    // Of nobody's: who it is is what the connection says.
    let mut plain = TcpStream::connect(db).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(line(&mut plain), "one true 127.0.0.1");
    // Of the balancer's: what its header says.
    let mut behind = Conn::open_from([127, 0, 0, 5].into(), db).unwrap().stream;
    behind.set_read_timeout(Some(PATIENCE)).unwrap();
    behind
        .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 5432\r\n")
        .unwrap();
    assert_eq!(line(&mut behind), "one true 192.0.2.7");
    behind.write_all(b"select\n").unwrap();
    assert_eq!(line(&mut behind), "select");
    // The other is the primary now: who is with the first is cut, and comes back to the second.
    first.store(false, Ordering::SeqCst);
    second.store(true, Ordering::SeqCst);
    assert!(!matches!(behind.read(&mut [0; 8]), Ok(1..)));
    until("the second to be asked", || {
        let mut again = TcpStream::connect(db).ok()?;
        again.set_read_timeout(Some(PATIENCE)).unwrap();
        (line(&mut again) == "two true 127.0.0.1").then_some(())
    });
}

/// (f), with a certificate of our own where it has one by ACME, which is not supported yet.
#[test]
fn a_machine_at_home_is_published() {
    let (photos, ssh) = (Origin::start("photos"), Origin::start("ssh"));
    let (agents, https, http, tcp) = (local(), local(), local(), local());
    let moved = [
        ("\":7000\"", format!("\"{agents}\"")),
        ("\":443\"", format!("\"{https}\"")),
        ("\":80\"", format!("\"{http}\"")),
        ("\":2222\"", format!("\"{tcp}\"")),
        ("198.51.100.0/24", "127.0.0.0/8".to_owned()),
    ];
    let refused = put(EDGE, &moved);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("evergate.toml");
    std::fs::write(&file, &refused).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["check", "-c"])
        .arg(&file)
        .env("NAS_TOKEN", "correct-horse-battery-staple")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("`acme` is not supported yet"), "{said}");
    let text = put(
        &refused,
        &[(
            "acme = { email = \"me@example.com\" }",
            "self_signed = \"photos.example.com\"".to_owned(),
        )],
    );
    let env = [("NAS_TOKEN", "correct-horse-battery-staple")];
    let edge = start(&text, &[], &env);
    let tunnels = edge.call(crate::kit::Call::get("/tunnels")).expect(200);
    let pin = tunnels["tunnels"][0]["pins"][0]
        .as_str()
        .unwrap_or_else(|| panic!("{tunnels}"))
        .to_owned();
    let home = put(
        HOME,
        &[
            ("edge.example.com:7000", agents.to_string()),
            ("sha256/…", pin),
            ("127.0.0.1:2283", photos.addr.to_string()),
            ("127.0.0.1:22", ssh.addr.to_string()),
        ],
    );
    let _home = start(&home, &[], &env);
    let client = Client::new();
    until("the photos", || {
        let mut conn = client.open(https, "photos.example.com").ok()?;
        let request = "GET /who HTTP/1.1\r\nHost: photos.example.com\r\n\r\n";
        let answer = conn.exchange(request).ok()?;
        (answer.text() == "photos /who").then_some(())
    });
    assert_eq!(try_get(tcp, "x", "/who").unwrap().text(), "ssh /who");
    let answer = try_get(http, "photos.example.com", "/x").unwrap();
    assert!(matches!(answer.status, 301 | 308), "{}", answer.status);
}
