//! `[udp]`: datagrams passed on as they are, by sessions that go on over swaps.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::{Call, Gate, PATIENCE, count, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Answers each datagram with itself, and knows who has come.
pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    came: Arc<Mutex<Vec<SocketAddr>>>,
}

pub(crate) fn echo() -> Echo {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let echo = Echo {
        addr: socket.local_addr().unwrap(),
        came: Arc::default(),
    };
    let came = echo.came.clone();
    // What the proxy passes on must not be lost here.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    std::thread::spawn(move || {
        let mut room = vec![0; 1 << 16];
        // Word of an answer that nobody waited for may come too.
        loop {
            if let Ok((size, from)) = socket.recv_from(&mut room) {
                came.lock().unwrap().push(from);
                let _ = socket.send_to(&room[..size], from);
            }
        }
    });
    echo
}

impl Echo {
    /// Datagrams that came.
    fn count(&self) -> usize {
        self.came.lock().unwrap().len()
    }

    /// Datagrams that came, and of how many.
    pub(crate) fn seen(&self) -> (usize, usize) {
        let came = self.came.lock().unwrap();
        (came.len(), came.iter().collect::<HashSet<_>>().len())
    }
}

/// Sends to `listen` alone.
pub(crate) fn client(listen: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(listen).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(crate) fn ask(client: &UdpSocket, text: &str) {
    client.send(text.as_bytes()).unwrap();
    hear(client, text);
}

pub(crate) fn hear(client: &UdpSocket, text: &str) {
    let mut room = [0; 2048];
    let size = client.recv(&mut room).unwrap();
    assert_eq!(String::from_utf8_lossy(&room[..size]), text);
}

/// Asks until there is an answer to the last question.
pub(crate) fn ask_until_answered(client: &UdpSocket) {
    client
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut n = 0;
    until("an answer", || {
        n += 1;
        let text = format!("question {n}");
        client.send(text.as_bytes()).ok()?;
        let mut room = [0; 64];
        let size = client.recv(&mut room).ok()?;
        (room[..size] == *text.as_bytes()).then_some(())
    });
    client.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Nothing comes back, however often it is asked.
fn is_deaf(client: &UdpSocket) -> bool {
    client
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let deaf = (0..5).all(|_| client.send(b"?").is_err() || client.recv(&mut [0; 64]).is_err());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    deaf
}

fn passing(listen: SocketAddr, upstream: &str, more: &str) -> String {
    format!("[udp.numbers]\nlisten = \"{listen}\"\nupstream = \"{upstream}\"\n{more}\n")
}

/// Sessions at all UDP addresses.
pub(crate) fn sessions(gate: &Gate) -> u64 {
    let status = gate.status();
    let all = status["listeners"].as_array().unwrap().iter();
    let udp = all.filter(|l| l["address"].as_str().unwrap().starts_with("udp://"));
    udp.map(|l| l["connections"].as_u64().unwrap()).sum()
}

pub(crate) fn wait_sessions(gate: &Gate, count: u64) {
    until("so many sessions", || {
        (sessions(gate) == count).then_some(())
    });
}

#[test]
fn a_session_begins_by_saying_who_the_client_is() {
    let (origin, specific, all) = (echo(), local(free_port()), free_port());
    let _gate = Gate::start(&format!(
        "[udp.numbers]\nlisten = [\"{specific}\", \"0.0.0.0:{all}\"]\nupstream = \"told\"\n\
         [upstreams.told]\ntargets = \"{}\"\nproxy_protocol = \"v2\"\n",
        origin.addr
    ));
    for listen in [specific, local(all)] {
        let client = client(listen);
        client.send(b"first").unwrap();
        // PROXY over UDP and IPv4, then both addresses and both ports.
        let mut told = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
        for port in [client.local_addr().unwrap().port(), listen.port()] {
            told.extend(port.to_be_bytes());
        }
        told.extend(b"first");
        let mut room = [0; 128];
        let size = client.recv(&mut room).unwrap();
        assert_eq!(
            room[..size].escape_ascii().to_string(),
            told.escape_ascii().to_string()
        );
        ask(&client, "second");
    }
}

#[test]
fn each_client_has_a_session_with_a_port_of_its_own() {
    let (origin, listen) = (echo(), local(free_port()));
    let gate = Gate::start(&passing(listen, &origin.addr.to_string(), ""));
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(listen)).collect();
    for round in 0..5 {
        for (index, client) in clients.iter().enumerate() {
            ask(client, &format!("{round} of {index}"));
        }
    }
    assert_eq!(origin.seen(), (100, 20));
    assert_eq!(sessions(&gate), 20);
    let generation = &gate.status()["generations"][0];
    assert_eq!(generation["tunnels"], 20, "{generation}");
}

#[test]
fn the_largest_datagram_is_whole_and_an_empty_one_is_one() {
    let (origin, listen) = (echo(), local(free_port()));
    let _gate = Gate::start(&passing(listen, &origin.addr.to_string(), ""));
    let client = client(listen);
    let mut room = vec![0; 1 << 16];
    for size in [0, 1, 1472, 1473, 60_000, 65_507] {
        let sent: Vec<u8> = (0..size).map(|n: u32| (n >> 5 ^ n) as u8).collect();
        client.send(&sent).unwrap();
        let back = client.recv(&mut room).unwrap();
        assert!(room[..back] == sent, "{back} of {size} bytes");
    }
}

#[test]
fn answered_a_session_ends_but_no_question_is_left_without_its_answer() {
    let (origin, listen) = (echo(), local(free_port()));
    let gate = Gate::start(&passing(listen, &origin.addr.to_string(), "replies = 1"));
    let client = client(listen);
    for round in 0..50 {
        // As resolvers do: two at once from one port.
        let both: HashSet<String> = ["a", "aaaa"].map(|kind| format!("{round} {kind}")).into();
        for text in &both {
            client.send(text.as_bytes()).unwrap();
        }
        let mut room = [0; 64];
        let heard = (0..2).map(|_| {
            let size = client.recv(&mut room).unwrap();
            String::from_utf8_lossy(&room[..size]).into_owned()
        });
        assert_eq!(heard.collect::<HashSet<_>>(), both);
    }
    wait_sessions(&gate, 0);
    let (_, ports) = origin.seen();
    assert!(ports >= 40, "{ports} ports");
}

#[test]
fn silence_ends_a_session_and_the_next_datagram_begins_another() {
    let (origin, listen) = (echo(), local(free_port()));
    let upstream = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &upstream, "idle = \"300ms\""));
    let client = client(listen);
    ask(&client, "hello");
    wait_sessions(&gate, 0);
    ask(&client, "again");
    assert_eq!(origin.seen(), (2, 2));
}

#[test]
fn more_clients_than_the_limit_are_not_heard() {
    let (origin, listen) = (echo(), local(free_port()));
    let upstream = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &upstream, "limits.sessions = 3"));
    let clients: Vec<UdpSocket> = (0..4).map(|_| client(listen)).collect();
    for client in &clients[..3] {
        ask(client, "in time");
    }
    assert!(is_deaf(&clients[3]));
    ask(&clients[0], "still");
    let page = gate.call(Call::get("/metrics")).0.text();
    let refused = format!("evergate_listener_refused_total{{listener=\"udp://{listen}\"}} 5");
    assert!(page.contains(&refused), "{page}");
    gate.reload_ok(&passing(listen, &upstream, "limits.sessions = 4"));
    ask_until_answered(&clients[3]);
    assert_eq!(sessions(&gate), 4);
}

/// Bound to all addresses: an answer comes from where the question went to, or its client would not take it.
#[test]
#[cfg(target_os = "linux")]
fn answers_come_from_the_address_that_was_asked() {
    let (origin, port) = (echo(), free_port());
    let upstream = origin.addr.to_string();
    let document = format!("[udp.all]\nlisten = \":{port}\"\nupstream = \"{upstream}\"\n");
    let _gate = Gate::start(&document);
    for ip in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 9, 9, 9]] {
        let client = client(SocketAddr::from((ip, port)));
        ask(&client, "first");
        ask(&client, "second");
    }
    // One socket, two of our addresses: two conversations.
    let both = UdpSocket::bind("127.0.0.1:0").unwrap();
    both.set_read_timeout(Some(PATIENCE)).unwrap();
    for ip in [[127, 0, 0, 3], [127, 0, 0, 4], [127, 0, 0, 3]] {
        let to = SocketAddr::from((ip, port));
        both.send_to(b"?", to).unwrap();
        assert_eq!(both.recv_from(&mut [0; 8]).unwrap(), (1, to));
    }
    assert_eq!(origin.seen(), (9, 5));
    if let Ok(six) = UdpSocket::bind("[::1]:0") {
        six.connect(("::1", port)).unwrap();
        six.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(&six, "IPv6");
    }
}

#[test]
fn who_is_denied_reaches_nobody() {
    let (origin, listen) = (echo(), local(free_port()));
    let upstream = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &upstream, "deny = \"127.0.0.0/8\""));
    let client = client(listen);
    assert!(is_deaf(&client));
    gate.reload_ok(&passing(listen, &upstream, "allow = \"10.0.0.0/8\""));
    assert!(is_deaf(&client));
    assert_eq!(origin.seen(), (0, 0));
    gate.reload_ok(&passing(listen, &upstream, "allow = \"127.0.0.1/32\""));
    ask(&client, "me");
}

#[test]
fn a_target_that_refuses_is_left_for_the_next_one() {
    let (origin, listen) = (echo(), local(free_port()));
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "{}[upstreams.two]\ntargets = [\"{}\", \"{}\"]\npassive = {{ failures = 1, eject = \"1h\" }}\n",
        passing(listen, "two", ""),
        dead.local_addr().unwrap(),
        origin.addr
    );
    drop(dead);
    let gate = Gate::start(&text);
    // Whoever has the dead one hears of it.
    until("it to be ejected", || {
        ask_until_answered(&client(listen));
        let page = gate.call(Call::get("/status")).0.text();
        page.contains("ejected").then_some(())
    });
    for _ in 0..6 {
        ask(&client(listen), "at once");
    }
}

#[test]
fn a_target_that_dies_is_left_by_its_sessions() {
    let (origin, listen) = (echo(), local(free_port()));
    let mortal = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "{}[upstreams.two]\ntargets = [\"{}\", {{ address = \"{}\", backup = true }}]\npassive = {{ failures = 1, eject = \"1h\" }}\n",
        passing(listen, "two", ""),
        mortal.local_addr().unwrap(),
        origin.addr
    );
    let _gate = Gate::start(&text);
    let client = client(listen);
    client.send(b"first").unwrap();
    let mut room = [0; 64];
    let (size, from) = mortal.recv_from(&mut room).unwrap();
    mortal.send_to(&room[..size], from).unwrap();
    hear(&client, "first");
    drop(mortal);
    ask_until_answered(&client);
}

#[test]
fn sessions_never_notice_swaps_of_other_things() {
    let (origin, other) = (echo(), echo());
    let (listen, web, around) = (local(free_port()), local(free_port()), local(free_port()));
    let document = |n: usize| {
        let mut text = passing(listen, "numbers", "");
        // Its upstream changes too, but for the target in use.
        text += &format!(
            "[upstreams.numbers]\ntargets = [{{ address = \"{}\", weight = {} }}]\n",
            origin.addr,
            1 + n % 2
        );
        text += &format!("[http.other]\nlisten = \"{web}\"\nrespond = \"{n}\"\n");
        if n % 2 == 1 {
            text += &format!(
                "[udp.around]\nlisten = \"{around}\"\nupstream = \"{}\"\n",
                other.addr
            );
        }
        text
    };
    // Who is not carried over is cut soon.
    let setup = Gate::setup().runtime("drain_timeout = \"300ms\"");
    let gate = setup.start(&document(0));
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(listen)).collect();
    for client in &clients {
        ask(client, "hello");
    }
    for n in 1..=20 {
        gate.reload_ok(&document(n));
        assert_eq!(get(web, "x", "/").text(), n.to_string());
        for (index, client) in clients.iter().enumerate() {
            ask(client, &format!("{n} of {index}"));
        }
        // New ones get what is there now.
        ask(&client(listen), "new");
        if n % 2 == 1 {
            ask(&client(around), "around");
        }
    }
    // Each by its own port all the time.
    assert_eq!(origin.seen(), (20 * 21 + 20, 20 + 20));
    // They live in the newest generation: nothing older is left.
    gate.wait_settled();
    let status: Value = gate.status();
    assert_eq!(
        status["generations"].as_array().unwrap().len(),
        1,
        "{status}"
    );
    for client in &clients {
        ask(client, "after all that was old is gone");
    }
    assert_eq!(origin.seen().1, 40);
}

/// The address stays, its upstream is another: sessions go to it as `on_change` says, and no datagram is lost.
#[test]
fn a_changed_upstream_takes_over_without_a_lost_datagram() {
    let (old, new, listen) = (echo(), echo(), local(free_port()));
    let to = |origin: &Echo| passing(listen, &origin.addr.to_string(), "on_change = \"cut\"");
    let gate = Gate::start(&to(&old));
    let client = client(listen);
    ask(&client, "hello");
    for n in 1..=10 {
        let origin = [&old, &new][n % 2];
        let (before, _) = origin.seen();
        gate.reload_ok(&to(origin));
        ask(&client, &format!("swapped {n}"));
        assert_eq!(origin.seen().0, before + 1);
    }
    // Kept, it stays where it is: as was said when it began.
    let keep = |origin: &Echo| passing(listen, &origin.addr.to_string(), "on_change = \"keep\"");
    gate.reload_ok(&keep(&old));
    let kept = self::client(listen);
    ask(&kept, "hello");
    gate.reload_ok(&keep(&new));
    let (before, _) = new.seen();
    ask(&kept, "kept");
    assert_eq!(new.seen().0, before);
    ask(&self::client(listen), "new");
    assert_eq!(new.seen().0, before + 1);
}

#[test]
fn without_their_listener_sessions_end_as_on_change_says() {
    // Each for the answer that is on its way: until the deadline.
    for on_change in ["drain", "keep"] {
        let (origin, listen) = (echo(), local(free_port()));
        let more = format!("on_change = \"{on_change}\"");
        let setup = Gate::setup().runtime("drain_timeout = \"400ms\"");
        let gate = setup.start(&passing(listen, &origin.addr.to_string(), &more));
        let known = client(listen);
        ask(&known, "here");
        gate.reload_ok("");
        ask(&known, "still here");
        assert!(is_deaf(&client(listen)));
        until("the address to be free", || UdpSocket::bind(listen).ok());
        wait_sessions(&gate, 0);
    }
    let (origin, listen) = (echo(), local(free_port()));
    let upstream = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &upstream, "on_change = \"cut\""));
    let known = client(listen);
    ask(&known, "here");
    gate.reload_ok("");
    until("the address to be free", || UdpSocket::bind(listen).ok());
    wait_sessions(&gate, 0);
}

#[test]
fn an_address_that_drains_is_there_again_at_once() {
    let (origin, listen) = (echo(), local(free_port()));
    let document = passing(listen, &origin.addr.to_string(), "");
    // Its sessions would have half a minute.
    let gate = Gate::start(&document);
    for n in 0..3 {
        let client = client(listen);
        ask(&client, &format!("{n}"));
        gate.reload_ok("");
        ask(&client, "draining");
        gate.reload_ok(&document);
        ask(&client, "back");
    }
}

#[test]
fn a_port_of_tcp_and_the_same_of_udp_are_two() {
    let (origin, listen) = (echo(), local(free_port()));
    let udp = passing(listen, &origin.addr.to_string(), "");
    let http = format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"web\"\n");
    let gate = Gate::start(&format!("{udp}{http}"));
    let client = client(listen);
    ask(&client, "both");
    assert_eq!(get(listen, "x", "/").text(), "web");
    gate.reload_ok(&udp);
    ask(&client, "one");
    assert!(TcpStream::connect(listen).is_err());
    gate.reload_ok(&http);
    assert_eq!(get(listen, "x", "/").text(), "web");
    gate.reload_ok(&format!("{udp}{http}"));
    ask(&client, "both again");
}

#[test]
fn an_address_of_somebody_else_is_refused_and_what_runs_goes_on() {
    let (origin, listen) = (echo(), local(free_port()));
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = origin.addr.to_string();
    let document = passing(listen, &upstream, "");
    let gate = Gate::start(&document);
    let taken = stranger.local_addr().unwrap();
    let more = format!("[udp.taken]\nlisten = \"{taken}\"\nupstream = \"{upstream}\"\n");
    let problem = gate.reload(&format!("{document}{more}"));
    let problem = problem.problem(409, "not-prepared").to_string();
    assert!(
        problem.contains("is in use") && problem.contains("/udp/taken/listen"),
        "{problem}"
    );
    ask(&client(listen), "goes on");
    drop(stranger);
    gate.reload_ok(&format!("{document}{more}"));
    ask(&client(taken), "free now");
}

/// `config/layer4.toml`: a question goes to the name server that is up.
#[test]
fn the_sample_asks_a_name_server_that_is_up() {
    let sample = crate::samples::Sample::start("layer4.toml");
    // The other one is down: its check says so.
    let addr = sample.at(6354);
    let _tcp = TcpListener::bind(addr).unwrap();
    let server = UdpSocket::bind(addr).unwrap();
    std::thread::spawn(move || {
        let mut room = [0; 512];
        while let Ok((size, from)) = server.recv_from(&mut room) {
            let _ = server.send_to(&room[..size], from);
        }
    });
    ask_until_answered(&client(sample.at(5353)));
}

#[test]
fn wrong_documents_are_refused_with_the_place() {
    let gate = Gate::start("");
    let listen = local(free_port());
    let wrong = format!(
        "[udp.a]\nlisten = \"{listen}\"\nupstream = \"nobody\"\nproxy_protocol = true\n\
         [udp.b]\nlisten = \"{listen}\"\nupstream = \"http://127.0.0.1:1\"\nreplies = 0\n\
         [udp.c]\nlisten = \"unix:/tmp/x\"\nupstream = \"secure\"\nlimits.bandwidth = \"1MB/s\"\n\
         [udp.d]\nlisten = \"127.0.0.1:0\"\nupstream = \"unix\"\n\
         [upstreams.secure]\ntargets = \"127.0.0.1:1\"\ntls = {{}}\n\
         [upstreams.unix]\ntargets = \"unix:/tmp/y\"\n"
    );
    let text = gate.reload(&wrong).json().to_string();
    for told in [
        "/udp/a/upstream",
        "/udp/a/proxy_protocol",
        "not supported yet",
        "/udp/b/upstream",
        "/udp/b/replies",
        "`udp.a` has the address",
        "/udp/c/listen",
        "/udp/c/limits/bandwidth",
        "/udp/c/upstream",
        "/udp/d/upstream",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

/// The flows of one thread, each with a datagram every 50 ms, one after the other. Returns how many were sent and how many
/// answers never came.
fn flood(listen: SocketAddr, flows: usize, stop: &AtomicBool) -> (u64, u64) {
    const ROUND: Duration = Duration::from_millis(50);
    let clients: Vec<UdpSocket> = (0..flows).map(|_| client(listen)).collect();
    for client in &clients {
        client.set_nonblocking(true).unwrap();
    }
    let mut heard = vec![HashSet::new(); flows];
    let hear = |heard: &mut Vec<HashSet<u64>>| {
        for (client, heard) in clients.iter().zip(heard) {
            let mut room = [0; 8];
            while let Ok(8) = client.recv(&mut room) {
                heard.insert(u64::from_be_bytes(room));
            }
        }
    };
    let mut rounds: u64 = 0;
    let mut due = Instant::now();
    while !stop.load(Ordering::Acquire) {
        for client in &clients {
            client.send(&rounds.to_be_bytes()).unwrap();
            due += ROUND / flows as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        hear(&mut heard);
        rounds += 1;
    }
    let lost = |heard: &[HashSet<u64>]| {
        let came: usize = heard.iter().map(HashSet::len).sum();
        rounds * flows as u64 - came as u64
    };
    let end = Instant::now() + Duration::from_secs(5);
    while lost(&heard) > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
        hear(&mut heard);
    }
    (rounds * flows as u64, lost(&heard))
}

/// 500 flows of 20 datagrams a second over 50 swaps: none is lost, and each keeps its port.
#[test]
fn release_flows_lose_nothing_over_swaps() {
    const THREADS: usize = 4;
    let (flows, swaps) = (count(500, 40), count(50, 10));
    let (origin, listen, web) = (echo(), local(free_port()), local(free_port()));
    let document = |n: usize| {
        format!(
            "{}[upstreams.numbers]\ntargets = [{{ address = \"{}\", weight = {} }}]\n\
             [http.other]\nlisten = \"{web}\"\nrespond = \"{n}\"\n",
            passing(listen, "numbers", ""),
            origin.addr,
            1 + n % 2
        )
    };
    let gate = Gate::setup()
        .runtime("drain_timeout = \"300ms\"")
        .start(&document(0));
    let stop = AtomicBool::new(false);
    let (sent, lost) = std::thread::scope(|scope| {
        let flooding: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| flood(listen, flows / THREADS, &stop)))
            .collect();
        until("all flows to be there", || {
            (sessions(&gate) == flows as u64).then_some(())
        });
        for n in 1..=swaps {
            gate.reload_ok(&document(n));
            // Each generation has a datagram of each flow.
            let before = origin.count();
            until("a round of all flows", || {
                (origin.count() >= before + flows).then_some(())
            });
        }
        stop.store(true, Ordering::Release);
        let all = flooding
            .into_iter()
            .map(|flooding| flooding.join().unwrap());
        all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    assert_eq!(lost, 0, "of {sent} datagrams");
    assert_eq!(origin.seen().1, flows);
}
