//! Listening sockets: what is queued in the kernel while the configuration changes is served, added addresses open,
//! removed ones close, and addresses held by others are found.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Signal;

use crate::kit::{Call, Conn, Gate, PATIENCE, free_port, get, raw, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn respond(listen: &str, text: &str) -> String {
    format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"{text}\"\n")
}

/// Freezes the process, fills the kernel's queues of `to` with 200 requests and the admin port's with a reload to
/// `next`, and lets it go on. Returns after all 200 have been answered and the older generation is gone.
fn frozen_accept(before: &str, next: &str, to: SocketAddr) -> Gate {
    let gate = Gate::start(before);
    assert_eq!(get(to, "x", "/").status, 200);
    gate.freeze();
    let mut clients: Vec<Conn> = (0..200)
        .map(|i| {
            let mut conn = Conn::open(to).unwrap_or_else(|e| panic!("client {i}: {e}"));
            conn.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            conn
        })
        .collect();
    let call = Call::post("/reload").toml(&gate.document(next));
    let mut admin = Conn::open(gate.base.admin).unwrap();
    admin.send(call.bytes(gate.base.admin, false)).unwrap();
    gate.thaw();
    let answer = admin.response().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    for (i, client) in clients.iter_mut().enumerate() {
        let response = client
            .response()
            .unwrap_or_else(|e| panic!("client {i} of 200: {e}"));
        assert_eq!(response.status, 200);
    }
    drop(clients);
    gate.wait_settled();
    gate
}

/// Done when 3, first variant.
#[test]
fn frozen_accept_with_a_reload_that_keeps_the_address() {
    let to = local(free_port());
    let listen = to.to_string();
    let gate = frozen_accept(&respond(&listen, "one"), &respond(&listen, "two"), to);
    assert_eq!(get(to, "x", "/").text(), "two");
    drop(gate);
}

/// Done when 3, second variant: the queue is served, later clients are refused.
#[test]
fn frozen_accept_with_a_reload_that_removes_the_address() {
    let to = local(free_port());
    let other = local(free_port());
    let gate = frozen_accept(
        &respond(&to.to_string(), "one"),
        &respond(&other.to_string(), "two"),
        to,
    );
    until("the removed address to refuse", || {
        raw::refused(to).then_some(())
    });
    assert_eq!(get(other, "x", "/").text(), "two");
    drop(gate);
}

/// Done when 3, third variant.
#[test]
fn frozen_accept_with_a_listener_moved_from_any_to_loopback() {
    let port = free_port();
    let (before, after) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}"));
    let gate = frozen_accept(
        &respond(&before, "one"),
        &respond(&after, "two"),
        local(port),
    );
    assert_eq!(get(local(port), "x", "/").text(), "two");
    until("the wildcard to be gone", || {
        raw::refused(SocketAddr::from(([127, 0, 0, 2], port))).then_some(())
    });
    drop(gate);
}

/// And back: the specific address gives way to the wildcard.
#[test]
fn frozen_accept_with_a_listener_moved_from_loopback_to_any() {
    let port = free_port();
    let (before, after) = (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"));
    let gate = frozen_accept(
        &respond(&before, "one"),
        &respond(&after, "two"),
        local(port),
    );
    assert_eq!(get(local(port), "x", "/").text(), "two");
    assert_eq!(
        get(SocketAddr::from(([127, 0, 0, 2], port)), "x", "/").text(),
        "two"
    );
    drop(gate);
}

#[test]
fn an_added_address_serves_when_committed_and_a_removed_one_refuses() {
    let (one, two) = (local(free_port()), local(free_port()));
    let gate = Gate::start(&respond(&one.to_string(), "one"));
    let both = format!("[http.web]\nlisten = [\"{one}\", \"{two}\"]\nrespond = \"both\"\n");
    let answer = gate.reload_ok(&both);
    // At once: the answer says that it serves.
    assert_eq!(get(two, "x", "/").text(), "both");
    let listeners = answer["plan"]["listeners"].as_array().unwrap();
    let change = |address: SocketAddr| {
        let line = listeners
            .iter()
            .find(|l| l["address"] == address.to_string())
            .unwrap();
        line["change"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (change(one).as_str(), change(two).as_str()),
        ("update", "open")
    );
    gate.reload_drained(&respond(&two.to_string(), "two"));
    assert!(raw::refused(one));
    assert_eq!(get(two, "x", "/").text(), "two");
    // And the address may come back at once.
    gate.reload_ok(&both);
    assert_eq!(get(one, "x", "/").text(), "both");
}

/// Invariant 3's exception: who is connected to an address that goes is answered by the old entry, and told to go.
#[test]
fn a_connection_to_a_removed_address_gets_its_next_answer_with_connection_close() {
    let (one, two) = (local(free_port()), local(free_port()));
    let gate = Gate::start(&respond(&one.to_string(), "one"));
    let mut conn = Conn::open(one).unwrap();
    assert_eq!(
        conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .text(),
        "one"
    );
    gate.reload_ok(&respond(&two.to_string(), "two"));
    let last = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(
        (last.status, last.text().as_str(), last.header("connection")),
        (200, "one", Some("close"))
    );
    assert!(conn.closed());
}

/// Connection-level settings changed: the address stays, its connections are asked to finish.
#[test]
fn changed_connection_settings_refresh_the_connections() {
    let to = local(free_port());
    let document =
        |limits: &str| format!("[http.web]\nlisten = \"{to}\"\nrespond = \"ok\"\n{limits}");
    let gate = Gate::start(&document(""));
    let mut conn = Conn::open(to).unwrap();
    assert_eq!(
        conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .status,
        200
    );
    let answer = gate.reload_ok(&document("limits = { headers = 50 }\n"));
    assert_eq!(
        answer["plan"]["listeners"][0]["change"], "refresh",
        "{answer}"
    );
    let last = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
    assert!(conn.closed());
    // A new one goes by the new settings.
    let many: String = (0..60).map(|i| format!("x-{i}: 1\r\n")).collect();
    let refused = Conn::open(to)
        .unwrap()
        .exchange(format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n"))
        .unwrap();
    assert_eq!(refused.status, 431);
}

#[test]
fn port_zero_is_a_free_one_and_status_shows_it() {
    let gate = Gate::start(&respond("127.0.0.1:0", "free"));
    let find = || {
        let status = gate.status();
        let listeners = status["listeners"].as_array().unwrap();
        let line = listeners
            .iter()
            .find(|l| l["configured"] == "127.0.0.1:0")
            .unwrap()
            .clone();
        line["address"]
            .as_str()
            .unwrap()
            .parse::<SocketAddr>()
            .unwrap()
    };
    let address = find();
    assert_ne!(address.port(), 0);
    assert_eq!(get(address, "x", "/").text(), "free");
    // A swap keeps the port it got.
    gate.reload_ok(&respond("127.0.0.1:0", "still"));
    assert_eq!(find(), address);
    assert_eq!(get(address, "x", "/").text(), "still");
}

#[test]
fn a_bare_port_listens_on_both_families() {
    let port = free_port();
    let _gate = Gate::start(&respond(&format!(":{port}"), "both"));
    assert_eq!(get(local(port), "x", "/").text(), "both");
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        assert_eq!(
            get(SocketAddr::new("::1".parse().unwrap(), port), "x", "/").text(),
            "both"
        );
    }
}

/// One request over a connection of its own, to the end of the stream.
fn ask(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    answer(&mut stream)
}

fn answer(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn a_unix_socket_serves_is_replaced_and_unlinked() {
    let setup = Gate::setup();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let listen = unix(&path);
    let other = local(free_port());
    let gate = setup.start(&respond(&listen, "unix"));
    assert!(ask(&path).ends_with("\r\n\r\nunix"));
    let status = gate.status();
    assert_eq!(status["listeners"][0]["address"], listen);
    gate.reload_ok(&respond(&listen, "again"));
    assert!(ask(&path).ends_with("\r\n\r\nagain"));
    gate.reload_drained(&respond(&other.to_string(), "tcp"));
    assert!(!path.exists(), "the socket file is left behind");
    // And it may come back at once.
    gate.reload_ok(&respond(&listen, "back"));
    assert!(ask(&path).ends_with("\r\n\r\nback"));
    gate.call(Call::post("/stop")).expect(200);
    until("the path to be gone", || (!path.exists()).then_some(()));
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

/// Done when 3 for a unix path: who is queued when it goes is served, later ones find nothing.
#[test]
fn frozen_accept_with_a_reload_that_removes_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let gate = Gate::start(&respond(&unix(&path), "one"));
    assert!(ask(&path).ends_with("one"));
    gate.freeze();
    let mut clients: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    let next = gate.document(&respond(&local(free_port()).to_string(), "two"));
    let mut admin = Conn::open(gate.base.admin).unwrap();
    admin
        .send(
            Call::post("/reload")
                .toml(&next)
                .bytes(gate.base.admin, false),
        )
        .unwrap();
    gate.thaw();
    assert_eq!(admin.response().unwrap().status, 200);
    for (i, client) in clients.iter_mut().enumerate() {
        let text = answer(client);
        assert!(text.starts_with("HTTP/1.1 200 "), "client {i}: {text:?}");
    }
    gate.wait_settled();
    assert!(UnixStream::connect(&path).is_err() && !path.exists());
}

#[test]
fn a_unix_path_where_somebody_is_is_refused_and_untouched() {
    let gate = Gate::start(&respond(&local(free_port()).to_string(), "one"));
    let folder = tempfile::tempdir().unwrap();
    let (taken, file) = (folder.path().join("taken"), folder.path().join("file"));
    let stranger = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    std::fs::write(&file, "precious").unwrap();
    for path in [&taken, &file] {
        let refused = gate.reload(&respond(&unix(path), "mine"));
        refused.problem(409, "not-prepared");
        assert_eq!(refused.pointers(), ["/http/web/listen/0"]);
    }
    UnixStream::connect(&taken).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    // Nobody answers there any more: what is left is stale.
    drop(stranger);
    gate.reload_ok(&respond(&unix(&taken), "mine"));
    assert!(ask(&taken).ends_with("mine"));
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}

/// A client of a unix socket has no address: it is in no range, and no limit per client counts it.
#[test]
fn a_client_of_a_unix_socket_has_no_address() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{}\"\nlimits = {{ connections_per_client = 1 }}\n\
         respond = \"<{{client_ip}}><{{client_port}}><{{port}}>\"\n\
         routes = [{{ match.remote = [\"0.0.0.0/0\", \"::/0\"], respond = \"an address\" }}]\n",
        unix(&path)
    ));
    let _first = UnixStream::connect(&path).unwrap();
    let text = ask(&path);
    assert!(text.ends_with("\r\n\r\n<><><>"), "{text}");
}

#[test]
fn a_second_process_with_the_same_state_folder_refuses_to_start() {
    let gate = Gate::start(&respond(&local(free_port()).to_string(), "one"));
    let mut base = gate.base.clone();
    base.admin = local(free_port());
    let config = gate.dir.path().join("second.toml");
    std::fs::write(
        &config,
        base.document(&respond(&local(free_port()).to_string(), "two")),
    )
    .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["run", "-c"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(text.contains("state"), "{text}");
}

/// A process that cannot have its port ends with an error that names it, and with the right code.
#[test]
fn a_taken_port_at_start_ends_the_process() {
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = stranger.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("evergate.toml");
    let admin = local(free_port());
    std::fs::write(
        &config,
        format!(
            "[admin]\nlisten = \"{admin}\"\n[runtime]\nstate_dir = \"{}\"\n{}",
            folder.path().join("state").display(),
            respond(&taken.to_string(), "x")
        ),
    )
    .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["run", "-c"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(5),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains(&taken.to_string()));
}

#[test]
fn admin_address_moves_and_the_connection_that_asked_is_answered() {
    let to = local(free_port());
    let gate = Gate::start(&respond(&to.to_string(), "one"));
    let old = gate.base.admin;
    let mut base = gate.base.clone();
    base.admin = local(free_port());
    let answer = gate
        .call(Call::post("/reload").toml(&base.document(&respond(&to.to_string(), "two"))))
        .expect(200);
    assert_eq!(answer["outcome"], "committed");
    until("the new admin address to answer", || {
        Call::get("/now")
            .try_send(base.admin)
            .is_ok_and(|r| r.status == 200)
            .then_some(())
    });
    until("the old admin address to refuse", || {
        raw::refused(old).then_some(())
    });
    gate.signal(Signal::TERM);
}

/// Two addresses of one document that overlap are not strangers to each other.
#[test]
fn a_wildcard_and_a_specific_address_begin_together() {
    let port = free_port();
    let both = format!(
        "[http.web]\nlisten = [\"0.0.0.0:{port}\", \"127.0.0.1:{port}\"]\nrespond = \"x\"\n"
    );
    let gate = Gate::start(&both);
    assert_eq!(get(local(port), "x", "/").status, 200);
    gate.reload_ok(&format!(
        "[http.web]\nlisten = \"0.0.0.0:{port}\"\nrespond = \"y\"\n"
    ));
    assert_eq!(get(local(port), "x", "/").text(), "y");
}
