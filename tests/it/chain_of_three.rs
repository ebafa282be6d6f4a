//! Three evergates in a row over mutual TLS: every byte of much, both ways, while readers beside it are slow or read nothing
//! at all, and no process of the three holds more memory for it.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kit::authority::{Authority, Issued};
use crate::kit::bulk::{self, Bulk, Slow, exchange};
use crate::kit::{Conn, Gate, count, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Bytes that a process may take more than before. Hundreds of times less than what goes through.
const MORE: u64 = 48 << 20;
/// Readers that read nothing.
const MUTE: usize = 16;

struct Chain {
    gates: [Gate; 3],
    /// What the client speaks to.
    first: SocketAddr,
}

/// Who the hops are, and who may use them.
struct Papers {
    ca: Authority,
    server: Issued,
    client: Issued,
}

impl Papers {
    fn start(&self, text: &str) -> Gate {
        Gate::setup()
            .file("ca.pem", self.ca.pem())
            .file("hop.pem", self.server.cert.clone())
            .file("hop.key", self.server.key.clone())
            .file("us.pem", self.client.cert.clone())
            .file("us.key", self.client.key.clone())
            .start(text)
    }
}

fn hop(at: SocketAddr) -> String {
    let tls = "{ ca = \"ca.pem\", client_cert = \"us.pem\", client_key = \"us.key\" }";
    format!("{{ url = \"https://{at}\", tls = {tls} }}")
}

/// A forward proxy for who shows a certificate; `via`: its own way on.
fn proxy(at: SocketAddr, via: &str) -> String {
    format!(
        "[forward.hop]\nlisten = \"{at}\"\nprotocols = \"http\"\ndestinations.allow = \"127.0.0.0/8\"\n{via}\n\
         tls = {{ certificates = {{ cert = \"hop.pem\", key = \"hop.key\" }}, client_auth = {{ ca = \"ca.pem\" }} }}\n"
    )
}

impl Chain {
    /// `nested`: the first knows both hops, and speaks TLS with the second within TLS with the first; else each knows the
    /// next one.
    fn start(nested: bool) -> Chain {
        let ca = Authority::new();
        let papers = Papers {
            server: ca.issue(&["127.0.0.1"]),
            client: ca.issue(&["us.test"]),
            ca,
        };
        let [a, b, c] = [(); 3].map(|()| local(free_port()));
        let (to_b, on) = match nested {
            true => (format!("[{}, {}]", hop(b), hop(c)), String::new()),
            false => (hop(b), format!("via = {}", hop(c))),
        };
        let first = format!(
            "[forward.first]\nlisten = \"{a}\"\ndestinations.allow = \"127.0.0.0/8\"\nvia = {to_b}\n"
        );
        let gates = [first, proxy(b, &on), proxy(c, "")].map(|text| papers.start(&text));
        Chain { gates, first: a }
    }

    fn connect(&self, to: SocketAddr) -> TcpStream {
        let mut conn = Conn::open(self.first).unwrap();
        conn.send(format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n"))
            .unwrap();
        let head = conn.head().unwrap().unwrap();
        assert!(head.line.starts_with("HTTP/1.1 200"), "{}", head.line);
        // Nothing comes unasked, so nothing of it is in `conn`.
        conn.stream
    }

    fn memory(&self) -> [u64; 3] {
        self.gates.each_ref().map(Gate::own_memory)
    }
}

/// Done when 1 of the chains.
fn bytes_and_memory(nested: bool) {
    let (bulk, chain) = (Bulk::start(local(0)), Chain::start(nested));
    // Each has done everything once.
    exchange(&mut chain.connect(bulk.addr), 1 << 20, 1 << 20).unwrap();
    let before = chain.memory();
    let mutes: Vec<TcpStream> = (0..MUTE)
        .map(|_| bulk::mute(chain.connect(bulk.addr)).unwrap())
        .collect();
    let slow = Slow::start(chain.connect(bulk.addr), Duration::from_millis(20)).unwrap();
    let done = AtomicBool::new(false);
    let bytes = count(1_000_000_000, 20_000_000) as u64;
    let (took, most) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = chain.memory();
            while !done.load(Ordering::SeqCst) {
                let now = chain.memory();
                most = std::array::from_fn(|i| most[i].max(now[i]));
                std::thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let took = [(bytes, 0), (0, bytes)].map(|(down, up)| {
            let mut stream = chain.connect(bulk.addr);
            exchange(&mut stream, down, up)
        });
        done.store(true, Ordering::SeqCst);
        (took, watching.join().unwrap())
    });
    let [down, up] = took.map(|took| took.unwrap());
    let came = slow.finish();
    drop(mutes);
    println!(
        "{bytes} bytes: {down:?} down, {up:?} up, {came} to a slow reader; memory {before:?} before, {most:?} at most"
    );
    for (before, most) in before.iter().zip(most) {
        assert!(most <= before + MORE, "{before} before, {most} at most");
    }
    if !cfg!(debug_assertions) {
        for took in [down, up] {
            assert!(took < Duration::from_secs(20), "{took:?}");
        }
    }
    for gate in &chain.gates {
        until("no session to be left", || {
            let sessions = &gate.status()["sessions"]["connect"];
            (sessions["open"] == 0).then_some(())
        });
    }
}

#[test]
fn release_a_gigabyte_goes_through_three_one_after_the_other() {
    bytes_and_memory(false);
}

#[test]
fn release_a_gigabyte_goes_through_three_within_one_another() {
    bytes_and_memory(true);
}
