//! `[tcp]` and TLS: connections told apart by the name in their hello, and passed on unopened.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::kit::process::Setup;
use crate::kit::raw::Conn;
use crate::kit::tls::{Authority, Client, Pair, Tls};
use crate::kit::{Call, Gate, PATIENCE, free_port, until};
use crate::tcp::{echo, open};

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Ends TLS with a certificate of its own, and echoes.
pub(crate) struct Site {
    pub(crate) addr: SocketAddr,
    pub(crate) pair: Pair,
}

pub(crate) fn site(name: &str) -> Site {
    let pair = Pair::new(&[name]);
    let chain = vec![CertificateDer::from(pair.der.clone())];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let server = ServerConnection::new(config.clone()).unwrap();
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(server, stream);
                let mut buffer = [0; 1024];
                while let Ok(size @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..size]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Site { addr, pair }
}

pub(crate) fn exchange(conn: &mut Conn<Tls>, text: &str) {
    conn.stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    conn.stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

/// Whose certificate a client of `name` gets, once bytes have gone both ways.
pub(crate) fn given(to: SocketAddr, name: &str) -> Vec<u8> {
    let mut conn = Client::new().open(to, name).unwrap();
    exchange(&mut conn, "hello");
    conn.certificate()
}

/// The description of the alert that ends a handshake.
pub(crate) fn refused(client: &Client, to: SocketAddr, name: &str) -> rustls::AlertDescription {
    told(client.open(to, name))
}

/// The same of a handshake that was made.
pub(crate) fn told(made: std::io::Result<Conn<Tls>>) -> rustls::AlertDescription {
    let error = made.err().unwrap();
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        other => panic!("{other:?}: {error}"),
    }
}

fn routing(listen: SocketAddr, sni: &str) -> String {
    format!("[tcp.names]\nlisten = \"{listen}\"\nsni = {{ {sni} }}\n")
}

#[test]
fn each_name_reaches_its_upstream_which_ends_tls_itself() {
    let (a, below, rest) = (site("a.test"), site("*.a.test"), site("rest.test"));
    let listen = local(free_port());
    let sni = format!(
        "\"A.test\" = \"{}\", \"*.a.test\" = \"{}\", \"*\" = \"{}\"",
        a.addr, below.addr, rest.addr
    );
    let gate = Gate::start(&routing(listen, &sni));
    for (name, site) in [
        ("a.test", &a),
        ("x.a.test", &below),
        ("x.y.a.test", &below),
        ("b.test", &rest),
        // No name at all.
        ("127.0.0.1", &rest),
    ] {
        assert!(given(listen, name) == site.pair.der, "{name}");
    }
    let nameless = Client::new().without_name().open(listen, "a.test").unwrap();
    assert!(nameless.certificate() == rest.pair.der);
    // The session says where it went.
    let mut one = Client::new().open(listen, "x.a.test").unwrap();
    exchange(&mut one, "here");
    let sessions = gate.call(Call::get("/sessions")).expect(200);
    let all = sessions["sessions"].as_array().unwrap();
    let upstream = json!(below.addr.to_string());
    let has = |session: &serde_json::Value| {
        session["listener"] == "names" && session["upstream"] == upstream
    };
    assert!(all.iter().any(has), "{sessions}");
}

#[test]
fn a_name_that_nobody_has_is_told_so_and_what_is_no_tls_is_closed() {
    let a = site("a.test");
    let listen = local(free_port());
    let _gate = Gate::start(&routing(listen, &format!("\"a.test\" = \"{}\"", a.addr)));
    assert!(given(listen, "a.test") == a.pair.der);
    let unknown = rustls::AlertDescription::UnrecognisedName;
    assert_eq!(refused(&Client::new(), listen, "b.test"), unknown);
    assert_eq!(refused(&Client::new(), listen, "b.a.test"), unknown);
    let nameless = Client::new().without_name();
    assert_eq!(refused(&nameless, listen, "a.test"), unknown);
    let mut other = open(listen);
    other
        .write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .unwrap();
    let end = other.read(&mut [0]);
    let reset = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionReset;
    assert!(
        matches!(&end, Ok(0)) || end.as_ref().is_err_and(reset),
        "{end:?}"
    );
}

/// A relay for one connection that splits what its client says into bytes.
pub(crate) fn in_bytes(to: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let through = between.local_addr().unwrap();
    let splitting = std::thread::spawn(move || {
        let (client, _) = between.accept().unwrap();
        let mut there = TcpStream::connect(to).unwrap();
        there.set_nodelay(true).unwrap();
        let (mut back, mut forth) = (there.try_clone().unwrap(), client.try_clone().unwrap());
        let backward = std::thread::spawn(move || io::copy(&mut back, &mut forth));
        for byte in io::BufReader::new(client).bytes().map_while(Result::ok) {
            if there.write_all(&[byte]).is_err() {
                break;
            }
        }
        let _ = there.shutdown(std::net::Shutdown::Both);
        let _ = backward.join();
    });
    (through, splitting)
}

#[test]
fn a_hello_may_come_in_pieces_but_not_for_ever() {
    let a = site("a.test");
    let listen = local(free_port());
    let more = "timeouts.header = \"300ms\"\n";
    let text = routing(listen, &format!("\"*\" = \"{}\"", a.addr)) + more;
    let _gate = Gate::start(&text);
    let (through, splitting) = in_bytes(listen);
    assert!(given(through, "a.test") == a.pair.der);
    splitting.join().unwrap();
    let mut silent = open(listen);
    silent.write_all(&[22, 3, 1]).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(silent.read(&mut [0]), Ok(1..)));
}

#[test]
fn a_session_lives_as_long_as_its_upstream_is_named() {
    let (a, b) = (site("a.test"), site("b.test"));
    let listen = local(free_port());
    let sni = |names: &[(&str, &Site)]| {
        let of = |(name, site): &(&str, &Site)| format!("\"{name}\" = \"{}\"", site.addr);
        let all: Vec<_> = names.iter().map(of).collect();
        routing(listen, &all.join(", ")) + "on_change = \"cut\"\n"
    };
    let gate = Gate::start(&sni(&[("a.test", &a)]));
    let mut session = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut session, "one");
    gate.reload_ok(&sni(&[("a.test", &a), ("b.test", &b)]));
    exchange(&mut session, "two");
    assert!(given(listen, "b.test") == b.pair.der);
    gate.reload_ok(&sni(&[("a.test", &b)]));
    assert!(!matches!(session.stream.read(&mut [0]), Ok(1..)));
    assert!(given(listen, "a.test") == b.pair.der);
}

/// The hello was begun before the swap: it goes where the new generation says.
#[test]
fn a_hello_that_a_swap_overtakes_goes_where_its_name_leads_now() {
    let (a, b) = (site("a.test"), site("b.test"));
    let listen = local(free_port());
    let to = |site: &Site| routing(listen, &format!("\"a.test\" = \"{}\"", site.addr));
    let gate = Gate::start(&to(&a));
    let stream = TcpStream::connect(listen).unwrap();
    gate.wait_status("the connection", |s| s["connections"] == 1);
    gate.reload_ok(&to(&b));
    let mut conn = Client::new().over(stream, "a.test").unwrap();
    exchange(&mut conn, "hello");
    assert!(conn.certificate() == b.pair.der);
}

#[test]
fn wrong_names_are_refused_with_the_place() {
    let gate = Gate::start("");
    let (origin, listen) = (echo(), local(free_port()));
    let (a, l) = (origin.addr, listen);
    let wrong = format!(
        "[tcp.a]\nlisten = \"{l}\"\nupstream = \"{a}\"\nsni = {{ \"x.test\" = \"{a}\" }}\n\
         [tcp.b]\nlisten = \"127.0.0.1:0\"\nsni = {{}}\n\
         [tcp.c]\nlisten = \"127.0.0.1:0\"\nsni = {{ \"~x\" = \"{a}\", \"10.0.0.1\" = \"{a}\", \
         \"x.test\" = \"nobody\", \"y.test\" = \"https://{a}\", \"z.test\" = \"{a}\", \"Z.test\" = \"{a}\" }}\n\
         [tcp.d]\nlisten = \"127.0.0.1:0\"\n\
         [tcp.e]\nlisten = \"127.0.0.1:0\"\nupstream = \"{a}\"\nalpn = \"h2\"\n\
         [tcp.f]\nlisten = \"127.0.0.1:0\"\nsni = {{ \"*\" = \"{a}\" }}\nalpn = [\"\", \"h2\", \"h2\"]\n\
         [tcp.g]\nlisten = \"127.0.0.1:0\"\nsni = {{ \"*\" = \"{a}\" }}\nalpn = []\n"
    );
    let text = gate.reload(&wrong).json().to_string();
    for told in [
        "exclude each other",
        "without a name lets nobody in",
        "no regular expressions",
        "no client asks for `10.0.0.1`",
        "there is no upstream `nobody`",
        "a URL says too much",
        "`z.test` is there twice",
        "or `sni`",
        "/tcp/c/sni/y.test",
        "among the clients that `sni` names",
        "1 to 255 bytes",
        "`h2` is there twice",
        "an empty list of protocols",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

/// A listener that ends TLS before `upstream`.
fn ending(listen: SocketAddr, upstream: &str, tls: &str) -> String {
    format!(
        "[tcp.ends]\nlisten = \"{listen}\"\nupstream = \"{upstream}\"\n\
         tls = {{ certificates = {{ cert = \"site.crt\", key = \"site.key\" }}{tls} }}\n"
    )
}

pub(crate) fn with_files(pair: &Pair) -> Setup {
    Gate::setup()
        .file("site.crt", pair.cert.clone())
        .file("site.key", pair.key.clone())
}

#[test]
fn tls_ends_here_and_the_upstream_gets_cleartext_or_tls_of_ours() {
    let (plain, secure) = (echo(), site("o.test"));
    let (pair, listen) = (Pair::new(&["a.test"]), local(free_port()));
    let to_plain = ending(listen, &plain.addr.to_string(), "");
    let gate = with_files(&pair)
        .file("o.pem", secure.pair.cert.clone())
        .start(&to_plain);
    let mut session = Client::new().open(listen, "a.test").unwrap();
    assert!(session.certificate() == pair.der);
    exchange(&mut session, "hello");
    // What is no TLS gets nowhere.
    let mut other = open(listen);
    other.write_all(b"hello, are you there?").unwrap();
    gate.wait_status("a failed handshake to be counted", |s| {
        s["handshakes"]["failed"]["protocol"] == 1
    });
    gate.reload_ok(
        &(ending(listen, "o", "")
            + &format!(
                "[upstreams.o]\ntargets = \"{}\"\ntls = {{ ca = \"o.pem\", server_name = \"o.test\" }}\n",
                secure.addr
            )),
    );
    assert!(given(listen, "a.test") == pair.der);
    // Another swap takes TLS away: what has begun goes on.
    let mut kept = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut kept, "one");
    gate.reload_ok(&format!(
        "[tcp.ends]\nlisten = \"{listen}\"\nupstream = \"o\"\n[upstreams.o]\ntargets = \"{}\"\n\
         tls = {{ ca = \"o.pem\", server_name = \"o.test\" }}\n",
        secure.addr
    ));
    exchange(&mut kept, "two");
    let mut bare = open(listen);
    bare.write_all(b"bare").unwrap();
    let mut back = [0; 4];
    bare.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"bare");
}

#[test]
fn certificates_are_renewed_by_swap_and_by_file_and_sessions_go_on() {
    let (origin, listen) = (echo(), local(free_port()));
    let pair = Pair::new(&["a.test"]);
    let text = ending(listen, &origin.addr.to_string(), "");
    let gate = with_files(&pair).start(&text);
    let mut session = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut session, "one");
    let put = |pair: &Pair| {
        let folder = gate.dir.path();
        std::fs::write(folder.join("site.crt"), &pair.cert).unwrap();
        std::fs::write(folder.join("site.key"), &pair.key).unwrap();
    };
    let by_file = Pair::new(&["a.test"]);
    put(&by_file);
    until("the new certificate", || {
        (given(listen, "a.test") == by_file.der).then_some(())
    });
    let by_swap = Pair::new(&["a.test"]);
    put(&by_swap);
    gate.reload_ok(&(text + "limits.connections = 100\n"));
    assert!(given(listen, "a.test") == by_swap.der);
    exchange(&mut session, "two");
    let list = gate.call(Call::get("/certificates")).expect(200);
    assert_eq!(list["certificates"][0]["servers"], json!(["[tcp.ends]"]));
}

#[test]
fn who_must_show_a_certificate_and_has_none_reaches_nobody() {
    let (origin, listen) = (echo(), local(free_port()));
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let target = origin.addr.to_string();
    let gate = with_files(&Pair::new(&["a.test"]))
        .file("ca.pem", ours.cert.clone())
        .start(&ending(listen, &target, ", client_auth = \"ca.pem\""));
    let alice = Client::new().showing(&ours.client("alice"));
    exchange(&mut alice.open(listen, "a.test").unwrap(), "alice");
    let stranger = Client::new().showing(&theirs.client("alice"));
    for client in [Client::new(), stranger] {
        // In TLS 1.3 a client hears of it after its handshake.
        let answer = client.open(listen, "a.test").and_then(|mut conn| {
            conn.stream.write_all(b"hello")?;
            conn.stream.read_exact(&mut [0])
        });
        answer.unwrap_err();
    }
    gate.wait_status("two refusals to be counted", |s| {
        s["handshakes"]["failed"]["client_certificate"] == 2
    });
    let wrong = format!(
        "[tcp.a]\nlisten = \"{listen}\"\nsni = {{ \"*\" = \"{target}\" }}\ntls = {{ self_signed = \"a.test\" }}\n\
         [tcp.b]\nlisten = \"127.0.0.1:0\"\nupstream = \"{target}\"\ntls = {{}}\n"
    );
    let told = gate.reload(&wrong).json().to_string();
    for part in [
        "/tcp/a/tls",
        "unopened",
        "/tcp/b/tls",
        "needs a certificate",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
