//! `via`: what is reached through other proxies, by whom it may be, and what is told when it is not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use crate::kit::authority::Authority;
use crate::kit::connect_proxy::{ConnectProxy, Ways};
use crate::kit::{Call, Conn, Gate, Origin, PATIENCE, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxy(origin: &Origin, login: Option<&'static str>) -> ConnectProxy {
    ConnectProxy::start(Ways {
        login,
        test: Some(origin.addr),
        ..Ways::default()
    })
}

/// A server whose origin has a name that only the proxies know.
fn web(to: SocketAddr, via: &str, more: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n\
         [upstreams.o]\ntargets = \"origin.test:80\"\nvia = {via}\n{more}\n"
    )
}

/// The status, and the error that is told.
fn ask(to: SocketAddr) -> (u16, String) {
    let answer = get(to, "x", "/id");
    let error = answer.header("proxy-status").unwrap_or_default();
    let error = error.split("error=").nth(1).unwrap_or_default();
    (answer.status, error.to_owned())
}

fn served() -> (u16, String) {
    (200, String::new())
}

#[test]
fn a_name_that_only_the_proxy_knows_is_reached_with_a_password() {
    let (origin, to) = (Origin::start("o"), local(free_port()));
    let proxy = proxy(&origin, Some("me:pa:ss"));
    let gate = Gate::start(&web(
        to,
        &format!("\"http://me:pa%3Ass@{}\"", proxy.addr),
        "",
    ));
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..3 {
        let answer = conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(answer.unwrap().status, 200);
    }
    // Connections through a proxy are kept as others are.
    assert_eq!(proxy.asked(), ["origin.test:80"]);
    assert_eq!(origin.connections(), 1);
    let status = gate.status();
    let upstreams = status["upstreams"].as_array().unwrap();
    let healths = |name: &str| -> Vec<&Value> {
        let upstream = upstreams.iter().find(|u| u["name"] == name).unwrap();
        let targets = upstream["targets"].as_array().unwrap();
        targets.iter().map(|t| &t["health"]).collect()
    };
    assert_eq!(healths("o"), ["up"]);
    assert_eq!(healths(&proxy.addr.to_string()), ["up"]);
    // The secret in the URL is one.
    let now = gate.now();
    assert!(!now.text().contains("pa:ss") && !now.text().contains("pa%3A"));
    let hop = now.json()["upstreams"]["o"]["via"][0].clone();
    assert_eq!(hop["user"], "me");
    assert_eq!(hop["password"], "<redacted>");
    // And what is shown can be posted: the running one is meant.
    let back = gate.call(Call::post("/reload").json(&now.json()));
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(ask(to), served());
}

#[test]
fn a_wrong_password_is_told_and_takes_no_connection_of_the_right_one() {
    let (origin, to) = (Origin::start("o"), local(free_port()));
    let proxy = proxy(&origin, Some("me:right"));
    let text = |password: &str| {
        let hop = "{ url = \"http://ADDR\", user = \"me\", password = \"PASSWORD\" }";
        let hop = hop.replace("ADDR", &proxy.addr.to_string());
        web(to, &hop.replace("PASSWORD", password), "")
    };
    let gate = Gate::start(&text("right"));
    assert_eq!(ask(to), served());
    assert_eq!(proxy.asked().len(), 1);
    // One is idle now.
    gate.reload_ok(&text("wrong"));
    assert_eq!(ask(to), (502, "connection_refused".to_owned()));
    assert!(proxy.asked().is_empty());
    assert_eq!(origin.connections(), 1);
    let told = format!(
        "via http://{}: CONNECT origin.test:80 was answered with 407 Proxy Authentication Required: \
         it does not take this user and password",
        proxy.addr
    );
    until("the log", || gate.output().contains(&told).then_some(()));
    gate.reload_ok(&text("right"));
    assert_eq!(ask(to), served());
}

#[test]
fn an_https_proxy_proves_who_it_is_and_so_do_we() {
    let (ca, other, origin) = (Authority::new(), Authority::new(), Origin::start("o"));
    let us = other.issue(&["us.test"]);
    let proxy = ConnectProxy::start(Ways {
        tls: Some(Authority::server(
            &ca.issue(&["127.0.0.1"]),
            &[],
            Some(&other),
        )),
        test: Some(origin.addr),
        ..Ways::default()
    });
    let to = local(free_port());
    let text = |tls: &str| {
        let url = format!("https://{}", proxy.addr);
        web(to, &format!("{{ url = \"{url}\", tls = {{ {tls} }} }}"), "")
    };
    let right = "ca = \"ca.pem\", client_cert = \"us.pem\", client_key = \"us.key\"";
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .file("other.pem", other.pem())
        .file("us.pem", us.cert.clone())
        .file("us.key", us.key.clone())
        .start(&text(right));
    assert_eq!(ask(to), served());
    gate.reload_ok(&text(&right.replace("ca.pem", "other.pem")));
    assert_eq!(ask(to), (502, "tls_certificate_error".to_owned()));
    // Without a certificate it does not let us in.
    gate.reload_ok(&text("ca = \"ca.pem\""));
    assert_eq!(ask(to).0, 502);
    assert_eq!(proxy.asked().len(), 1);
    gate.reload_ok(&text(right));
    assert_eq!(ask(to), served());
    // What is wrong with a file is told at the hop.
    let answer = gate.reload(&text(&right.replace("ca.pem", "none.pem")));
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(
        answer
            .pointers()
            .iter()
            .all(|p| p.starts_with("/upstreams/o/via")),
        "{:?}",
        answer.pointers()
    );
}

#[test]
fn a_chain_goes_through_one_after_the_other() {
    let (origin, to) = (Origin::start("o"), local(free_port()));
    let (first, second) = (proxy(&origin, None), proxy(&origin, Some("a:b")));
    let via = format!(
        "[\"http://{}\", \"http://a:b@{}\"]",
        first.addr, second.addr
    );
    let gate = Gate::start(&web(to, &via, ""));
    assert_eq!(ask(to), served());
    assert_eq!(first.asked(), [second.addr.to_string()]);
    assert_eq!(second.asked(), ["origin.test:80"]);
    // Which of them failed, is told.
    gate.reload_ok(&web(to, &via.replace("a:b", "a:c"), ""));
    assert_eq!(ask(to).0, 502);
    let told = format!(
        "via http://{}: CONNECT origin.test:80 was answered with 407",
        second.addr
    );
    until("the log", || gate.output().contains(&told).then_some(()));
    // The first one looks up where the second is.
    let inner = Origin::start("inner");
    let hidden = proxy(&inner, Some("a:b"));
    let outer = ConnectProxy::start(Ways {
        test: Some(hidden.addr),
        ..Ways::default()
    });
    let via = format!(
        "[\"http://{}\", \"http://a:b@inner.test:3128\"]",
        outer.addr
    );
    gate.reload_ok(&web(to, &via, ""));
    assert_eq!(ask(to), served());
    assert_eq!(outer.asked(), ["inner.test:3128"]);
    assert_eq!(hidden.asked(), ["origin.test:80"]);
}

#[test]
fn the_next_proxy_is_tried_where_one_is_dead_or_mute() {
    let (origin, to) = (Origin::start("o"), local(free_port()));
    let alive = proxy(&origin, Some("a:b"));
    let mute = ConnectProxy::start(Ways {
        mute: true,
        ..Ways::default()
    });
    let login = "user = \"a\", password = \"b\"";
    let via = format!("{{ upstream = \"parents\", protocol = \"http\", {login} }}");
    for bad in [local(free_port()), mute.addr] {
        let parents = format!(
            "[upstreams.parents]\ntargets = [\"{bad}\", \"{}\"]\n",
            alive.addr
        );
        // Each request on its own connection.
        let _gate = Gate::start(&web(to, &via, &format!("pool.idle = 0\n{parents}")));
        for _ in 0..6 {
            assert_eq!(ask(to), served(), "{bad}");
        }
        assert_eq!(alive.asked().len(), 6);
    }
    assert!(!mute.asked().is_empty());
    // None of them at all.
    let parents = format!("[upstreams.parents]\ntargets = \"{}\"\n", mute.addr);
    let gate = Gate::start(&web(to, &via, &parents));
    assert_eq!(ask(to), (502, "connection_terminated".to_owned()));
    let told = format!(
        "via http://{}: it closed the connection instead of an answer",
        mute.addr
    );
    until("the log", || gate.output().contains(&told).then_some(()));
}

#[test]
fn socks_proxies_of_our_own_take_names_and_addresses() {
    let (origin, to, socks) = (Origin::start("o"), local(free_port()), local(free_port()));
    let office = format!(
        "[forward.office]\nlisten = \"{socks}\"\nusers = {{ alice = \"sesame\" }}\n\
         destinations.allow = [\"127.0.0.0/8\", \"::1/128\"]\n"
    );
    let text = |scheme: &str, password: &str, target: &str| {
        let via = format!("\"{scheme}://alice:{password}@{socks}\"");
        web(to, &via, &office).replace("origin.test:80", target)
    };
    let target = |name: &str| format!("{name}:{}", origin.addr.port());
    let gate = Gate::start("");
    for (scheme, name) in [
        ("socks5h", "localhost"),
        ("socks5h", "127.0.0.1"),
        ("socks5", "localhost"),
    ] {
        gate.reload_ok(&text(scheme, "sesame", &target(name)));
        assert_eq!(ask(to), served(), "{scheme} {name}");
    }
    gate.reload_ok(&text("socks5h", "guess", &target("localhost")));
    assert_eq!(ask(to), (502, "connection_refused".to_owned()));
    let told = format!("via socks5h://{socks}: it does not take this user and password");
    until("the log", || gate.output().contains(&told).then_some(()));
    // A name is looked up here, and nobody knows it.
    gate.reload_ok(&text("socks5", "sesame", "origin.test:80"));
    assert_eq!(ask(to), (502, "dns_error".to_owned()));
    // There, and the proxy says that it is not found.
    gate.reload_ok(&text("socks5h", "sesame", "origin.test:80"));
    assert_eq!(ask(to), (503, "destination_unavailable".to_owned()));
    // Nobody listens behind it.
    gate.reload_ok(&text("socks5h", "sesame", &local(free_port()).to_string()));
    assert_eq!(ask(to), (502, "connection_refused".to_owned()));
}

#[test]
fn checks_go_the_same_way() {
    let (origin, to) = (Origin::start("o"), local(free_port()));
    let proxy = proxy(&origin, None);
    let health = "health = { path = \"/health\", interval = \"50ms\", unhealthy_after = 1 }";
    let via = format!("\"http://{}\"", proxy.addr);
    let gate = Gate::start(&web(to, &via, health));
    let mut checks = 0;
    until("two checks", || {
        checks += proxy.asked().len();
        (checks >= 2).then_some(())
    });
    let health_of = |status: &Value| {
        let upstreams = status["upstreams"].as_array().unwrap();
        let upstream = upstreams.iter().find(|u| u["name"] == "o").unwrap();
        upstream["targets"][0]["health"].clone()
    };
    gate.wait_status("the target to be up", |status| health_of(status) == "up");
    assert_eq!(ask(to), served());
    drop(proxy);
    gate.wait_status("the target to be down", |status| {
        health_of(status) == "down"
    });
}

#[test]
fn websockets_and_tcp_sessions_and_proxy_headers_go_through() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let echo = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut write = stream.try_clone().unwrap();
                // It speaks first.
                let _ = write.write_all(b"hello ");
                let _ = std::io::copy(&mut &stream, &mut write);
            });
        }
    });
    let proxy = ConnectProxy::start(Ways {
        test: Some(echo),
        ..Ways::default()
    });
    let tcp = local(free_port());
    let _gate = Gate::start(&format!(
        "[tcp.t]\nlisten = \"{tcp}\"\nupstream = \"o\"\n\
         [upstreams.o]\ntargets = \"origin.test:22\"\nvia = \"http://{}\"\nproxy_protocol = \"v1\"\n",
        proxy.addr
    ));
    let mut stream = TcpStream::connect(tcp).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"through").unwrap();
    let header = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        own.port(),
        tcp.port()
    );
    let expected = format!("hello {header}through");
    let mut back = vec![0; expected.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(String::from_utf8(back).unwrap(), expected);
    assert_eq!(proxy.asked(), ["origin.test:22"]);
}

/// A client of a SOCKS proxy that has asked for a name; the reply's code.
fn socks(proxy: SocketAddr, name: &str, port: u16) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply[..2]).unwrap();
    let ask = [
        &[5, 1, 0, 3, name.len() as u8],
        name.as_bytes(),
        &port.to_be_bytes(),
    ]
    .concat();
    stream.write_all(&ask).unwrap();
    stream.read_exact(&mut reply).unwrap();
    (stream, reply[1])
}

#[test]
fn a_forward_proxy_sends_on_what_its_rules_do_not_keep() {
    let origin = Origin::start("o");
    let parent = proxy(&origin, Some("office:secret"));
    let listen = local(free_port());
    let text = |password: &str| {
        format!(
            "[forward.office]\nlisten = \"{listen}\"\ndestinations = {{ allow = \"localhost\", deny = \"*.bad.test\" }}\n\
             via = {{ upstream = \"parents\", protocol = \"http\", user = \"office\", password = \"{password}\" }}\n\
             [[forward.office.rules]]\nmatch = {{ to = \"localhost\" }}\nvia = \"direct\"\n\
             [upstreams.parents]\ntargets = [\"127.0.0.1:{}\", \"{}\"]\n",
            free_port(),
            parent.addr
        )
    };
    let gate = Gate::start(&text("secret"));
    let exchange = |stream: TcpStream| {
        let mut conn = Conn::over(stream).unwrap();
        let answer = conn
            .exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        assert_eq!(answer.status, 200);
    };
    for _ in 0..4 {
        let (stream, reply) = socks(listen, "site.test", 80);
        assert_eq!(reply, 0);
        exchange(stream);
    }
    assert_eq!(parent.asked(), ["site.test:80"; 4]);
    let (stream, reply) = socks(listen, "localhost", origin.addr.port());
    assert_eq!(reply, 0);
    exchange(stream);
    // What is denied is denied, and mail with it.
    assert_eq!(socks(listen, "x.bad.test", 80).1, 2);
    assert_eq!(socks(listen, "site.test", 25).1, 2);
    assert!(parent.asked().is_empty());
    // Datagrams do not go through such parents, but past them to where nothing else does either.
    let mut stream = TcpStream::connect(listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    stream.write_all(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[3], 0);
    gate.reload_ok(&text("guess"));
    assert_eq!(socks(listen, "site.test", 80).1, 5);
}

#[test]
fn two_that_lead_to_each_other_find_out() {
    let (a, b) = (local(free_port()), local(free_port()));
    let one = |name: &str, listen: SocketAddr, via: SocketAddr| {
        format!(
            "[forward.{name}]\nlisten = \"{listen}\"\nvia = \"http://{via}\"\ntimeouts.connect = \"90s\"\n"
        )
    };
    let gate = Gate::start(&(one("a", a, b) + &one("b", b, a)));
    let mut conn = Conn::open(a).unwrap();
    let answer = conn.exchange("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n");
    assert_eq!(answer.unwrap().status, 502);
    // Each time round it is one more; the last one says what it is.
    let via = "1.1 evergate, ".repeat(16);
    let mut conn = Conn::open(a).unwrap();
    let answer = conn.exchange(format!(
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nVia: {via}1.0 x\r\n\r\n"
    ));
    let answer = answer.unwrap();
    assert_eq!(answer.status, 502);
    let why = answer.header("proxy-status").unwrap();
    assert!(why.ends_with("error=proxy_loop_detected"), "{why}");
    assert_eq!(gate.status()["panics"], 0);
}

#[test]
fn a_proxy_that_waits_for_a_destination_is_not_to_blame_for_it() {
    let (origin, listen) = (Origin::start("o"), local(free_port()));
    let start = || {
        ConnectProxy::start(Ways {
            test: Some(origin.addr),
            silent_on: Some("silent.test:80"),
            ..Ways::default()
        })
    };
    let (one, other) = (start(), start());
    let gate = Gate::start(&format!(
        "[forward.office]\nlisten = \"{listen}\"\ntimeouts.connect = \"400ms\"\n\
         via = {{ upstream = \"parents\", protocol = \"http\" }}\n\
         [upstreams.parents]\ntargets = [\"{}\", \"{}\"]\npassive = {{ failures = 1, eject = \"1h\" }}\n",
        one.addr, other.addr
    ));
    let (_stream, reply) = socks(listen, "silent.test", 80);
    assert_ne!(reply, 0);
    assert_eq!((one.asked().len(), other.asked().len()), (1, 1));
    let healths = || -> Vec<Value> {
        let status = gate.status();
        let upstreams = status["upstreams"].as_array().unwrap();
        let parents = upstreams.iter().find(|u| u["name"] == "parents").unwrap();
        let targets = parents["targets"].as_array().unwrap();
        targets.iter().map(|t| t["health"].clone()).collect()
    };
    assert_eq!(healths(), ["up", "up"]);
    // One that is not there is.
    let gone = one.addr;
    drop(one);
    until("it to be refused", || {
        TcpStream::connect(gone).is_err().then_some(())
    });
    until("it to be ejected", || {
        assert_eq!(socks(listen, "site.test", 80).1, 0);
        (healths() == ["ejected", "up"]).then_some(())
    });
}

#[test]
fn what_cannot_be_is_refused_at_its_place() {
    let gate = Gate::start("");
    let upstream = |via: &str| {
        format!(
            "[http.web]\nlisten = \"127.0.0.1:1\"\nproxy = \"o\"\n[upstreams.o]\ntargets = \"127.0.0.1:1\"\nvia = {via}\n"
        )
    };
    for (text, pointer, message) in [
        (
            upstream("\"ftp://a\""),
            "/upstreams/o/via",
            "`ftp://` is no proxy's scheme",
        ),
        (
            upstream("\"http://me@a:1\""),
            "/upstreams/o/via",
            "a user and a password",
        ),
        (
            upstream("[\"http://a:1\", \"direct\"]"),
            "/upstreams/o/via/1",
            "`direct` stands alone",
        ),
        (
            upstream("{ url = \"http://a:1\", tls = {} }"),
            "/upstreams/o/via/tls",
            "cleartext",
        ),
        (
            upstream("{ url = \"http://a:1\", user = \"me\" }"),
            "/upstreams/o/via",
            "belong together",
        ),
        (
            upstream("{ upstream = \"o\", protocol = \"http\" }"),
            "/upstreams/o/via",
            "leads back to itself",
        ),
        (
            upstream("{ upstream = \"none\", protocol = \"http\" }"),
            "/upstreams/o/via/upstream",
            "there is no upstream `none`",
        ),
        (
            upstream(
                "{ upstream = \"p\", protocol = \"https\" }\n[upstreams.p]\ntargets = \"a:1\"",
            ),
            "/upstreams/o/via/protocol",
            "has no `tls`",
        ),
        (
            upstream("\"http://a:1\"").replace("127.0.0.1:1\"\nvia", "unix:/x\"\nvia"),
            "/upstreams/o/via",
            "reached by no proxy",
        ),
    ] {
        let answer = gate.call(Call::post("/adapt").toml(&gate.document(&text)));
        assert_eq!(answer.status, 422, "{text}\n{}", answer.text());
        assert_eq!(answer.pointers(), [pointer], "{text}\n{}", answer.text());
        assert!(
            answer.text().contains(message),
            "{message}\n{}",
            answer.text()
        );
    }
}
