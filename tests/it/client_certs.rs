//! Certificates that clients show: who gets in, what is known of them, and that what was proved to one server is never
//! taken for another.

use std::net::SocketAddr;

use crate::kit::tls::{Authority, Client, Pair, Tls, request};
use crate::kit::{Conn, Gate, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A server with the pair `site.crt`, `site.key` and more keys of `tls`.
fn server(name: &str, to: SocketAddr, hosts: &str, tls: &str) -> String {
    format!(
        "[http.{name}]\nlisten = \"{to}\"\n{hosts}\n\
         respond = \"{name}|{{client_cert.subject}}|{{client_cert.san}}|{{client_cert.fingerprint}}\"\n\
         [http.{name}.tls]\ncertificates = {{ cert = \"site.crt\", key = \"site.key\" }}\n{tls}\n"
    )
}

fn require(ca: &str) -> String {
    format!("client_auth = {{ ca = \"{ca}\" }}")
}

fn request_from(ca: &str) -> String {
    format!("client_auth = {{ ca = \"{ca}\", mode = \"request\" }}")
}

fn start(authority: &Authority, document: &str) -> Gate {
    let pair = Pair::new(&["a.test", "b.test", "c.test"]);
    Gate::setup()
        .file("site.crt", pair.cert.clone())
        .file("site.key", pair.key.clone())
        .file("ca.pem", authority.cert.clone())
        .start(document)
}

/// Handshake and one request; in TLS 1.3 a client hears of a refusal after it.
fn visit(client: &Client, to: SocketAddr, name: &str) -> Result<(String, bool), String> {
    let exchange = |conn: &mut Conn<Tls>| conn.exchange(request(name, "/", "close"));
    let mut conn = client.open(to, name).map_err(|e| e.to_string())?;
    let answer = exchange(&mut conn).map_err(|e| e.to_string())?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok((answer.text(), conn.is_resumed()))
}

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] =
    [&rustls::version::TLS13, &rustls::version::TLS12];

#[test]
fn a_required_certificate_lets_in_those_that_the_ca_has_signed_and_names_them() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let to = local(free_port());
    let gate = start(&ours, &server("web", to, "", &require("ca.pem")));
    let (alice, mallory) = (ours.client("alice"), theirs.client("alice"));
    for version in VERSIONS {
        let client = || Client::versions(&[version]);
        let (text, _) = visit(&client().showing(&alice), to, "a.test").unwrap();
        let parts: Vec<&str> = text.split('|').collect();
        assert_eq!(parts[1], r"CN=alice,O=Example\, Inc.");
        assert_eq!(parts[2], "DNS:alice.test");
        assert_eq!(parts[3].len(), 64);
        for bad in [client(), client().showing(&mallory)] {
            visit(&bad, to, "a.test").unwrap_err();
        }
        // Self-signed, with the same name.
        visit(&client().showing(&Pair::new(&["alice.test"])), to, "a.test").unwrap_err();
    }
    // A client of TLS 1.3 is done before it is refused.
    gate.wait_status("six refusals to be counted", |s| {
        s["handshakes"]["failed"]["client_certificate"] == 6
    });
    // A CA that cannot be read is refused at its place.
    std::fs::write(gate.dir.path().join("none.pem"), "nothing").unwrap();
    let refused = gate.reload(&server("web", to, "", &require("none.pem")));
    assert_eq!(refused.pointers(), ["/http/web/tls/client_auth/ca"]);
    refused.problem(409, "not-prepared");
    visit(&Client::new().showing(&alice), to, "a.test").unwrap();
}

#[test]
fn a_requested_certificate_may_be_missing_but_not_wrong() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let to = local(free_port());
    let _gate = start(&ours, &server("web", to, "", &request_from("ca.pem")));
    for version in VERSIONS {
        let client = || Client::versions(&[version]);
        assert_eq!(visit(&client(), to, "a.test").unwrap().0, "web|||");
        let (text, _) = visit(&client().showing(&ours.client("bob")), to, "a.test").unwrap();
        assert!(text.starts_with("web|CN=bob,"), "{text}");
        visit(&client().showing(&theirs.client("bob")), to, "a.test").unwrap_err();
    }
}

#[test]
fn servers_of_one_address_ask_differently_by_name_and_a_connection_is_good_for_its_own() {
    let ours = Authority::new("ours");
    let to = local(free_port());
    let document = [
        server("open", to, "hosts = 'a.test'", ""),
        server("asks", to, "hosts = 'b.test'", &request_from("ca.pem")),
        server(
            "wants",
            to,
            "hosts = ['c.test', '*.c.test']",
            &require("ca.pem"),
        ),
    ];
    let _gate = start(&ours, &document.concat());
    let alice = Client::new().showing(&ours.client("alice"));
    assert_eq!(visit(&Client::new(), to, "a.test").unwrap().0, "open|||");
    assert_eq!(visit(&alice, to, "a.test").unwrap().0, "open|||");
    assert!(
        visit(&alice, to, "b.test")
            .unwrap()
            .0
            .starts_with("asks|CN=alice")
    );
    assert!(
        visit(&alice, to, "c.test")
            .unwrap()
            .0
            .starts_with("wants|CN=alice")
    );
    visit(&Client::new(), to, "x.c.test").unwrap_err();
    // The certificate is good for all three, but what was asked of the client is not. Who names nobody is asked as the
    // first server by name does.
    for (client, name, asked) in [
        (
            &Client::new(),
            "a.test",
            [("a.test", 200), ("b.test", 421), ("c.test", 421)],
        ),
        (
            &alice,
            "b.test",
            [("b.test", 200), ("c.test", 421), ("a.test", 200)],
        ),
        (
            &alice,
            "c.test",
            [("b.test", 421), ("C.test", 200), ("a.test", 200)],
        ),
        (
            &Client::new().without_name(),
            "a.test",
            [("c.test", 421), ("b.test", 200), ("a.test", 200)],
        ),
    ] {
        let mut conn = client.open(to, name).unwrap();
        for (host, status) in asked {
            let answer = conn.exchange(request(host, "/", "keep-alive")).unwrap();
            assert_eq!(
                answer.status, status,
                "{host} over the connection for {name}"
            );
            // Nothing of the certificate goes to a server that did not ask for it.
            if host == "a.test" {
                assert_eq!(answer.text(), "open|||");
            }
        }
    }
}

#[test]
fn a_session_is_resumed_only_under_what_it_began_with() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let to = local(free_port());
    let wanted = |more: &str, tls: &str| server("web", to, more, tls);
    let gate = start(&ours, &wanted("", &require("ca.pem")));
    std::fs::write(gate.dir.path().join("theirs.pem"), &theirs.cert).unwrap();
    for version in VERSIONS {
        let client = Client::versions(&[version]);
        let alice = client.clone().showing(&ours.client("alice"));
        assert!(!visit(&alice, to, "a.test").unwrap().1);
        let (text, resumed) = visit(&alice, to, "a.test").unwrap();
        assert!(resumed && text.contains("CN=alice"), "{text}");
        // A swap that leaves it as it is.
        gate.reload_ok(&wanted("limits.headers = 50", &require("ca.pem")));
        let (text, resumed) = visit(&alice, to, "a.test").unwrap();
        assert!(resumed && text.contains("CN=alice"), "{text}");
        // Another CA: what the old one has signed does not come in by its session.
        gate.reload_ok(&wanted("", &require("theirs.pem")));
        visit(&alice, to, "a.test").unwrap_err();
        // Nobody is asked: a session of that is none where somebody is.
        gate.reload_ok(&wanted("", ""));
        let anyone = Client::versions(&[version]);
        assert!(!visit(&anyone, to, "a.test").unwrap().1);
        assert!(visit(&anyone, to, "a.test").unwrap().1);
        gate.reload_ok(&wanted("", &request_from("ca.pem")));
        assert!(!visit(&anyone, to, "a.test").unwrap().1);
        gate.reload_ok(&wanted("", &require("ca.pem")));
        visit(&anyone, to, "a.test").unwrap_err();
    }
}

#[test]
fn connections_from_before_a_swap_do_not_pass_for_what_it_asks() {
    let ours = Authority::new("ours");
    let to = local(free_port());
    let gate = start(&ours, &server("web", to, "", ""));
    let mut kept = Client::new().open(to, "a.test").unwrap();
    let ask = |conn: &mut Conn<Tls>| conn.exchange(request("a.test", "/", "keep-alive")).unwrap();
    assert_eq!(ask(&mut kept).status, 200);
    let answer = gate.reload_ok(&server("web", to, "", &require("ca.pem")));
    assert_eq!(answer["plan"]["listeners"][0]["change"], "refresh");
    let answer = ask(&mut kept);
    assert_eq!(
        (answer.status, answer.header("connection")),
        (421, Some("close"))
    );
    // Nor does cleartext, from before the address was HTTPS.
    gate.reload_ok(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n"));
    let mut plain = Conn::open(to).unwrap();
    let mut ask = || {
        plain
            .exchange(request("a.test", "/", "keep-alive"))
            .unwrap()
    };
    assert_eq!(ask().text(), "x");
    gate.reload_ok(&server("web", to, "", &request_from("ca.pem")));
    assert_eq!(ask().status, 421);
}

#[test]
fn a_ca_file_that_changes_is_followed() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let to = local(free_port());
    let gate = start(&ours, &server("web", to, "", &require("ca.pem")));
    let (alice, bob) = (ours.client("alice"), theirs.client("bob"));
    let comes = |pair: &Pair| visit(&Client::new().showing(pair), to, "a.test").is_ok();
    assert!(comes(&alice) && !comes(&bob));
    let mut kept = Client::new().showing(&alice).open(to, "a.test").unwrap();
    std::fs::write(gate.dir.path().join("ca.pem"), &theirs.cert).unwrap();
    until("the other CA", || comes(&bob).then_some(()));
    assert!(!comes(&alice));
    // It was good when the connection began.
    let answer = kept.exchange(request("a.test", "/", "close")).unwrap();
    assert!(answer.text().contains("CN=alice"), "{}", answer.text());
    // None at all: the last one stays.
    std::fs::write(gate.dir.path().join("ca.pem"), "").unwrap();
    gate.wait_status("the empty file to be shown", |s| {
        s["certificate_problems"][0]["pointer"] == "/http/web/tls/client_auth/ca"
    });
    assert!(comes(&bob) && !comes(&alice));
}
