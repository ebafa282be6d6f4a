//! The quick modes: a proxy, a file server and a fixed answer from one command line each, with the admin API on.

use std::net::SocketAddr;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::kit::process::{Base, spawn};
use crate::kit::raw::try_get;
use crate::kit::{Call, Conn, Gate, Origin, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// `evergate ARGS --admin …` in a folder of its own.
fn start(dir: TempDir, args: &[&str]) -> Gate {
    let base = Base {
        admin: local(free_port()),
        state_dir: dir.path().join("state"),
        runtime: String::new(),
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
    command
        .args(args)
        .args(["--admin", &base.admin.to_string()]);
    let (child, output) = spawn(command, dir.path());
    Gate::adopt(child, output, base, dir)
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn print_config(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
    command.args(args).arg("--print-config").output().unwrap()
}

#[test]
fn reverse_proxy_shares_requests_among_its_targets() {
    let (a, b) = (Origin::start("A"), Origin::start("B"));
    let from = local(free_port());
    let (at, one, other) = (from.to_string(), a.addr.to_string(), b.addr.to_string());
    let args = ["reverse-proxy", "--from", &at, "--to", &one, "--to", &other];
    let gate = start(folder(), &args);
    for _ in 0..4 {
        assert_eq!(get(from, "x", "/").status, 200);
    }
    assert!(a.requests() > 0 && b.requests() > 0, "both are asked");
    // It is a configuration like any other.
    let now = gate.now().expect(200);
    assert_eq!(now["http"]["reverse-proxy"]["listen"][0], at);
    let text = "[http.reverse-proxy]\nlisten = \"ADDR\"\nrespond = \"swapped\"\n";
    let swapped = gate.document(&text.replace("ADDR", &at));
    gate.call(Call::post("/reload").toml(&swapped)).expect(200);
    assert_eq!(get(from, "x", "/").text(), "swapped");
    // There is no file to read again.
    assert_eq!(gate.call(Call::post("/reload")).status, 409);
}

#[test]
fn reverse_proxy_takes_a_url_with_a_base() {
    let origin = Origin::start("A");
    let from = local(free_port());
    let to = format!("http://{}/base", origin.addr);
    let _gate = start(
        folder(),
        &["reverse-proxy", "--from", &from.to_string(), "--to", &to],
    );
    assert_eq!(get(from, "x", "/page").status, 200);
}

#[test]
fn file_server_serves_the_folder_it_is_started_in() {
    let dir = folder();
    std::fs::create_dir(dir.path().join("site")).unwrap();
    std::fs::write(dir.path().join("site/a.txt"), "a file").unwrap();
    std::fs::write(dir.path().join("site/index.html"), "the page").unwrap();
    let at = local(free_port());
    let listen = at.to_string();
    let _gate = start(dir, &["file-server", "site", "--spa", "--listen", &listen]);
    assert_eq!(get(at, "x", "/a.txt").text(), "a file");
    assert_eq!(get(at, "x", "/no/such/file").text(), "the page");
}

#[test]
fn respond_answers_with_a_template() {
    let at = local(free_port());
    let listen = at.to_string();
    let args = [
        "respond",
        "{method} {path}",
        "--status",
        "201",
        "--header",
        "X-Made: by hand",
    ];
    let args = [&args[..], &["--listen", &listen]].concat();
    let _gate = start(folder(), &args);
    let answer = get(at, "x", "/here");
    assert_eq!((answer.status, answer.text().as_str()), (201, "GET /here"));
    assert_eq!(answer.header("x-made"), Some("by hand"));
}

#[test]
fn proxy_lets_its_user_through() {
    let (origin, at) = (Origin::start("A"), local(free_port()));
    let (listen, allow) = (at.to_string(), origin.addr.to_string());
    let dir = folder();
    let base = Base {
        admin: local(free_port()),
        state_dir: dir.path().join("state"),
        runtime: String::new(),
    };
    std::fs::write(dir.path().join("password"), "sesame\n").unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" \"$@\" < password"])
        .arg(env!("CARGO_BIN_EXE_evergate"))
        .args(["proxy", "--listen", &listen, "--user", "alice"])
        .args(["--allow", &allow, "--admin", &base.admin.to_string()]);
    let (child, output) = spawn(command, dir.path());
    let gate = Gate::adopt(child, output, base, dir);
    let ask = |fields: &str| {
        let request = format!("GET http://{allow}/who HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        Conn::open(at).unwrap().exchange(request).unwrap()
    };
    assert_eq!(ask("").status, 407);
    let answer = ask("Proxy-Authorization: Basic YWxpY2U6c2VzYW1l\r\n");
    assert_eq!(answer.text(), "A /who");
    // The password itself is nowhere.
    assert!(!gate.now().text().contains("sesame"));
}

#[test]
fn edge_and_expose_publish_a_service() {
    let (origin, token) = (Origin::start("A"), "correct-horse-battery-staple");
    let (agents, http, tcp) = (
        local(free_port()).to_string(),
        local(free_port()),
        local(free_port()),
    );
    let (http_at, tcp_at) = (http.to_string(), tcp.to_string());
    let args = ["edge", "--listen", &agents, "--token", token];
    let more = ["--http", &http_at, "--tcp", &tcp_at];
    let _edge = start(folder(), &[&args[..], &more].concat());
    let port = origin.addr.port().to_string();
    let expose = |kind| {
        let args = ["expose", kind, &port, "--to", &agents, "--token", token];
        start(folder(), &args)
    };
    for (kind, at) in [("http", http), ("tcp", tcp)] {
        let _home = expose(kind);
        until("the service to be reached", || {
            let answer = try_get(at, "x", "/who").ok()?;
            (answer.status == 200).then_some(())
        });
    }
}

#[test]
fn edge_and_expose_publish_https_and_datagrams() {
    let token = "correct-horse-battery-staple";
    let [agents, http, udp, site] = [(); 4].map(|()| local(free_port()));
    let _site = Gate::start(&format!(
        "[http.site]\nlisten = \"{site}\"\ntls.self_signed = [\"localhost\"]\nrespond = \"the site\"\n"
    ));
    let (agents, http_at, udp_at) = (agents.to_string(), http.to_string(), udp.to_string());
    let args = ["edge", "--listen", &agents, "--token", token];
    let more = ["--http", &http_at, "--udp", &udp_at];
    let _edge = start(folder(), &[&args[..], &more].concat());
    let expose = |kind, port: u16| {
        let port = port.to_string();
        let args = ["expose", kind, &port, "--to", &agents, "--token", token];
        start(folder(), &args)
    };
    let home = expose("https", site.port());
    until("the service to be reached", || {
        let answer = try_get(http, "x", "/").ok()?;
        (answer.text() == "the site").then_some(())
    });
    drop(home);
    let origin = crate::udp::echo();
    let _home = expose("udp", origin.addr.port());
    crate::udp::ask_until_answered(&crate::udp::client(udp));
}

#[test]
fn print_config_shows_a_document_that_check_takes() {
    let dir = folder();
    let root = dir.path().to_str().unwrap();
    let token = "correct-horse-battery-staple";
    let all: [&[&str]; 7] = [
        &[
            "proxy",
            "--client",
            "10.0.0.0/8",
            "--listen",
            ":8090",
            "--allow",
            "localhost",
        ],
        &["edge", "--listen", ":7000", "--token", token],
        &[
            "expose",
            "http",
            "3000",
            "--to",
            "edge.example.com",
            "--token",
            token,
        ],
        &[
            "expose",
            "https",
            "127.0.0.1:8443",
            "--to",
            "edge.example.com",
            "--token",
            token,
        ],
        &["reverse-proxy", "--from", ":8080", "--to", "127.0.0.1:3000"],
        &["file-server", root, "--browse"],
        &["respond", "hello \"you\"", "--header", "a: b"],
    ];
    for args in all {
        let printed = print_config(args);
        assert!(printed.status.success());
        let file = dir.path().join("evergate.toml");
        std::fs::write(&file, &printed.stdout).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_evergate"));
        let checked = check
            .args(["check", "--strict", "-c"])
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.success(), "{args:?}: {said}");
    }
}

#[test]
fn what_is_wrong_on_the_command_line_is_told_as_in_a_file() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
    let output = command
        .args(["reverse-proxy", "--to", "127.0.0.1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("reverse-proxy") && said.contains('^'),
        "{said}"
    );
}
