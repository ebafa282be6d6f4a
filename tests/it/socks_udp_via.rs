//! Datagrams of SOCKS5 clients (UDP ASSOCIATE) that go through other proxies, as connections by the same rules do.

use std::net::{SocketAddr, UdpSocket};

use crate::kit::{Call, Gate, PATIENCE, free_port, until};
use crate::socks::{Client, LOOPBACK, local, name};
use crate::udp::{Echo, echo};

/// One of our proxies that may go to this machine.
fn proxy(listen: SocketAddr, more: &str) -> String {
    format!(
        "[forward.office]\nlisten = \"{listen}\"\nusers = {{ alice = \"sesame\" }}\n\
         destinations.allow = [\"127.0.0.0/8\", \"::1/128\"]\n{more}\n"
    )
}

fn url(scheme: &str, proxy: SocketAddr) -> String {
    format!("\"{scheme}://alice:sesame@{proxy}\"")
}

/// Of a proxy: its associations.
fn associations(gate: &Gate) -> usize {
    let all = gate.call(Call::get("/sessions?kind=socks_udp")).json();
    all["sessions"].as_array().unwrap().len()
}

fn wait_associations(gate: &Gate, count: usize) {
    until("so many associations", || {
        (associations(gate) == count).then_some(())
    });
}

struct Associated {
    _control: Client,
    socket: UdpSocket,
}

/// The reply to the request, and what comes of it if it is granted.
fn associate(listen: SocketAddr) -> Result<Associated, u8> {
    let mut control = Client::open(listen);
    control.say(&[5, 1, 2]);
    assert_eq!(control.hear(2), [5, 2]);
    control.say(b"\x01\x05alice\x06sesame");
    assert_eq!(control.hear(2), [1, 0]);
    control.say(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
    let reply = control.hear(10);
    if reply[1] != 0 {
        return Err(reply[1]);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let relay = local(u16::from_be_bytes([reply[8], reply[9]]));
    socket.connect(relay).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(Associated {
        _control: control,
        socket,
    })
}

impl Associated {
    fn send(&self, to: &[u8], port: u16, text: &str) {
        let whole = [&[0, 0, 0], to, &port.to_be_bytes(), text.as_bytes()].concat();
        self.socket.send(&whole).unwrap();
    }

    /// The next answer, without its header.
    fn hear(&self) -> String {
        let mut room = [0; 2048];
        let size = self.socket.recv(&mut room).unwrap();
        assert_eq!(room[..3], [0, 0, 0]);
        let length = match room[3] {
            1 => 4,
            4 => 16,
            _ => 1 + usize::from(room[4]),
        };
        String::from_utf8(room[4 + length + 2..size].to_vec()).unwrap()
    }

    fn ask(&self, to: &[u8], port: u16, text: &str) {
        self.send(to, port, text);
        assert_eq!(self.hear(), text);
    }

    /// Asks until the answer to the last question comes.
    fn ask_until_answered(&self, to: &[u8], port: u16) {
        let short = std::time::Duration::from_millis(50);
        self.socket.set_read_timeout(Some(short)).unwrap();
        let mut n = 0;
        until("an answer", || {
            n += 1;
            self.send(to, port, &format!("question {n}"));
            let mut room = [0; 256];
            while let Ok(size) = self.socket.recv(&mut room) {
                if room[..size].ends_with(format!("question {n}").as_bytes()) {
                    return Some(());
                }
            }
            None
        });
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

fn port(echo: &Echo) -> u16 {
    echo.addr.port()
}

#[test]
fn all_goes_through_the_proxies_if_all_connections_do() {
    let origin = echo();
    let [listen, first, second] = [(); 3].map(|()| local(free_port()));
    let [near, far] = [first, second].map(|at| Gate::start(&proxy(at, "")));
    for scheme in ["socks5", "socks5h"] {
        let via = format!("via = [{}, {}]", url(scheme, first), url(scheme, second));
        let document = proxy(listen, &via);
        let gate = Gate::start(&document);
        let clients = [(); 2].map(|()| associate(listen).unwrap());
        for round in 0..3 {
            for (index, client) in clients.iter().enumerate() {
                client.ask(LOOPBACK, port(&origin), &format!("{round} of {index}"));
                let text = format!("{round} of {index} by name");
                client.ask(&name("localhost"), port(&origin), &text);
            }
        }
        // Each client has an association with both.
        assert_eq!([&near, &far].map(associations), [2, 2]);
        // A swap of other things, here and on the way, is not noticed.
        let other = "[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n";
        gate.reload_ok(&(document + other));
        near.reload_ok(&(proxy(first, "") + other));
        for client in &clients {
            client.ask(LOOPBACK, port(&origin), "after a swap");
        }
        // Their end is that of what was made for them.
        drop(clients);
        for proxy in [&near, &far, &gate] {
            wait_associations(proxy, 0);
        }
        near.reload_ok(&proxy(first, ""));
    }
    // Two clients, twice, through the last proxy alone.
    assert_eq!(origin.seen().1, 4);
}

#[test]
fn each_destination_goes_its_own_way() {
    let (beyond, here, denied) = (echo(), echo(), echo());
    let (listen, socks) = (local(free_port()), local(free_port()));
    let parent = Gate::start(&proxy(socks, ""));
    let rules = format!(
        "rules = [\n{{ match.to = \":{}\", via = {} }},\n{{ match.to = \":{}\", deny = true }},\n]\n",
        port(&beyond),
        url("socks5", socks),
        port(&denied),
    );
    let gate = Gate::start(&proxy(listen, &rules));
    let client = associate(listen).unwrap();
    client.ask(LOOPBACK, port(&here), "direct");
    // Made when the first datagram needs it.
    assert_eq!(associations(&parent), 0);
    for round in 0..5 {
        client.ask(LOOPBACK, port(&beyond), &format!("{round} through"));
        client.ask(LOOPBACK, port(&here), &format!("{round} direct"));
        client.ask(
            &name("localhost"),
            port(&beyond),
            &format!("{round} by name"),
        );
        client.send(LOOPBACK, port(&denied), "never");
    }
    assert_eq!((associations(&parent), associations(&gate)), (1, 1));
    assert_eq!(
        (beyond.seen(), here.seen(), denied.seen()),
        ((10, 1), (6, 1), (0, 0))
    );
    drop(client);
    wait_associations(&parent, 0);
}

#[test]
fn a_proxy_that_cannot_or_is_gone_is_told_and_one_that_comes_back_is_used() {
    let (beyond, here) = (echo(), echo());
    let (listen, parent) = (local(free_port()), local(free_port()));
    // It is HTTP, or not there: where all goes that way, the client hears of it.
    let gate = Gate::start("");
    for (via, reply) in [
        (url("http", parent), 7),
        (url("socks5", local(free_port())), 5),
    ] {
        gate.reload_ok(&proxy(listen, &format!("via = {via}")));
        assert_eq!(associate(listen).err(), Some(reply), "{via}");
    }
    // Where only some does, the rest is none the worse.
    let rule = |via: &str| {
        let to = port(&beyond);
        proxy(
            listen,
            &format!("rules = [{{ match.to = \":{to}\", via = {via} }}]"),
        )
    };
    gate.reload_ok(&rule(&url("http", parent)));
    let client = associate(listen).unwrap();
    client.send(LOOPBACK, port(&beyond), "lost");
    client.ask(LOOPBACK, port(&here), "direct");
    drop(client);
    gate.reload_ok(&rule(&url("socks5", parent)));
    let client = associate(listen).unwrap();
    client.send(LOOPBACK, port(&beyond), "lost");
    client.ask(LOOPBACK, port(&here), "direct");
    let document = proxy(parent, "on_change = \"cut\"");
    let proxy = Gate::start(&document);
    client.ask_until_answered(LOOPBACK, port(&beyond));
    // It ends, and is there again.
    proxy.reload_ok("");
    wait_associations(&proxy, 0);
    client.ask(LOOPBACK, port(&here), "still direct");
    proxy.reload_ok(&document);
    client.ask_until_answered(LOOPBACK, port(&beyond));
    assert_eq!(associations(&proxy), 1);
}
