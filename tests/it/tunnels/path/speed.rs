//! How fast it is, beside a plain TCP stream that goes the same way.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Far;
use crate::kit::bulk::{self, exchange, rate};
use crate::kit::link::{Link, Quality};
use crate::kit::websocket::{BINARY, exact, frame};
use crate::kit::{Conn, count, percentile, until};
use crate::udp::{ask, client};

/// A tunnel's share of what a plain stream gets, at least.
const SHARE: f64 = 0.8;
/// What a process may hold for readers that do not read: their windows, twice, and as much again for what goes by.
const MORE: u64 = 96 << 20;

/// `up`: to the agent instead of from it. The plain stream says what the link has, for which a quarter will do; both are past
/// their slow start by then.
fn a_gigabyte(up: bool) {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        let before = far.memory();
        let (mutes, slow) = far.slow_readers(link, 2, Duration::from_millis(20));
        let mut own = bulk::mute(far.connect(far.own)).unwrap();
        until("a flow with a connection of its own", || {
            (far.published()["flows"] == 5).then_some(())
        });
        link.wait_quiet();
        let since = Instant::now();
        let bytes = count(1_000_000_000, 10_000_000) as u64;
        let measured = |to: SocketAddr, bytes: u64| {
            let mut stream = far.connect(to);
            let mut run = |bytes: u64| {
                let (down, up) = if up { (0, bytes) } else { (bytes, 0) };
                exchange(&mut stream, down, up).unwrap()
            };
            run(bytes / 50);
            rate(bytes, run(bytes))
        };
        let (plain, through) = (measured(far.plain, bytes / 4), measured(far.bulk, bytes));
        let share = through / plain;
        let what = if up { "to the agent" } else { "from the agent" };
        println!(
            "{bytes} bytes {what}: {:.1} MB/s, {share:.2} of a plain stream's {:.1} MB/s",
            through / 1e6,
            plain / 1e6
        );
        assert!(
            cfg!(debug_assertions) || share >= SHARE,
            "{what}: {share:.2}"
        );
        let after = far.memory();
        println!(
            "memory: {before:?} before, {after:?} after; packets lost: {:?}",
            link.lost()
        );
        for (before, after) in before.iter().zip(after) {
            assert!(after <= before + MORE, "{before} before, {after} after");
        }
        for slow in slow {
            slow.finish();
        }
        // It may read as late as it likes: longer than the kernel would wait if it were asked to watch.
        let paused = since.elapsed();
        assert!(
            cfg!(debug_assertions) || paused > Duration::from_secs(20),
            "{paused:?}"
        );
        bulk::wake(&mut own, count(20_000_000, 2_000_000) as u64).unwrap();
        drop(mutes);
    });
}

#[test]
fn release_a_gigabyte_from_the_agent_goes_as_fast_as_over_a_plain_stream() {
    a_gigabyte(false);
}

#[test]
fn release_a_gigabyte_to_the_agent_goes_as_fast_as_over_a_plain_stream() {
    a_gigabyte(true);
}

/// Streams of each kind: one is a matter of luck.
const STREAMS: usize = 3;

/// `together`: both kinds at the same time, where the link has room for all.
fn with_loss(control: Option<&'static str>, together: bool) {
    let quality = Quality {
        control,
        ..Quality::default()
    };
    Link::with(quality, |link| {
        let far = Far::start(link, STREAMS);
        let (mutes, slow) = far.slow_readers(link, STREAMS, Duration::from_millis(500));
        link.lose(5);
        let bytes = count(20_000_000, 300_000) as u64;
        let run = |to: SocketAddr| -> Vec<Duration> {
            let streams = [(); STREAMS].map(|()| far.connect(to));
            std::thread::scope(|scope| {
                let run = |mut stream: TcpStream| {
                    scope.spawn(move || exchange(&mut stream, bytes, 0).unwrap())
                };
                streams.map(run).map(|one| one.join().unwrap()).into()
            })
        };
        let (plain, through) = match together {
            true => std::thread::scope(|scope| {
                let plain = scope.spawn(|| run(far.plain));
                let through = run(far.bulk);
                (plain.join().unwrap(), through)
            }),
            false => (run(far.plain), run(far.bulk)),
        };
        let mean = |all: &[Duration]| {
            let rates = all.iter().map(|took| rate(bytes, *took));
            rates.sum::<f64>() / all.len() as f64
        };
        let share = mean(&through) / mean(&plain);
        println!(
            "{bytes} bytes, 0.5 % lost, {control:?}: {plain:?} plain, {through:?} through the tunnel: {share:.2} of its rate; \
             packets lost: {:?}",
            link.lost()
        );
        assert!(cfg!(debug_assertions) || share >= SHARE, "{share:.2}");
        link.lose(0);
        for slow in slow {
            slow.finish();
        }
        drop(mutes);
    });
}

#[test]
fn release_streams_that_lose_packets_are_as_fast_as_plain_ones() {
    // It may be bbr, which does not take loss for the sign of a full link.
    with_loss(None, false);
}

/// Where each loss halves what a stream may have under way. (Of what a namespace may choose it is the only one everywhere; at
/// this rate cubic does the same.)
#[test]
fn release_streams_that_lose_packets_are_as_fast_as_plain_ones_with_reno() {
    with_loss(Some("reno"), true);
}

/// There and back, and what both ends need for it.
const ROUND: Duration = Duration::from_millis(60);
const ENOUGH: Duration = Duration::from_millis(120);

/// Nine of ten: one that the machine itself held up says nothing of the way.
fn in_time(what: &str, mut times: Vec<Duration>) {
    let quickest = *times.iter().min().unwrap();
    assert!(quickest >= ROUND, "{what}: {quickest:?}: no such way");
    let most = percentile(&mut times, 0.9);
    println!(
        "{} {what}: 90 % within {most:?}, all within {:?}",
        times.len(),
        times[times.len() - 1]
    );
    assert!(
        cfg!(debug_assertions) || most <= ENOUGH,
        "{what}: {times:?}"
    );
}

#[test]
fn release_requests_and_messages_take_one_round_trip_beside_slow_readers() {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        let (mutes, slow) = far.slow_readers(link, 2, Duration::from_millis(20));
        let rounds = count(50, 5);
        let mut conn = Conn::open(far.web).unwrap();
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        // The first makes the connection that the others use.
        assert_eq!(conn.exchange(request("/who")).unwrap().text(), "blog /who");
        let asked = |_| {
            let since = Instant::now();
            assert_eq!(conn.exchange(request("/who")).unwrap().text(), "blog /who");
            since.elapsed()
        };
        in_time("requests", (0..rounds).map(asked).collect());
        let large = conn.exchange(request("/download?bytes=3000000")).unwrap();
        assert!(large.body == crate::kit::origin::piece_of_pattern(0, 3_000_000));

        let mut socket = Conn::open(far.socket).unwrap();
        let upgrade = "GET /socket HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.send(upgrade).unwrap();
        assert_eq!(socket.response_head().unwrap().status, 101);
        let sent = |n| {
            let message = frame(BINARY, Some([1, 2, 3, 4]), &[n as u8; 100]);
            let since = Instant::now();
            socket.send(&message).unwrap();
            assert_eq!(exact(&mut socket, message.len()).unwrap(), message);
            since.elapsed()
        };
        in_time("messages", (0..rounds).map(sent).collect());
        for slow in slow {
            slow.finish();
        }
        drop(mutes);
    });
}

#[test]
fn release_datagrams_take_one_round_trip_beside_slow_readers_and_none_is_lost() {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        let (mutes, slow) = far.slow_readers(link, 2, Duration::from_millis(20));
        let client = client(far.datagrams);
        // The first one makes the flow that the others use.
        ask(&client, "hello");
        let datagrams = count(1000, 50) as u32;
        let start = Instant::now();
        let mut times = std::thread::scope(|scope| {
            // Those behind one do not wait for its answer.
            scope.spawn(|| {
                for n in 0..datagrams {
                    let (mut datagram, now) = ([0; 200], start.elapsed());
                    datagram[..4].copy_from_slice(&n.to_be_bytes());
                    datagram[4..20].copy_from_slice(&now.as_nanos().to_be_bytes());
                    client.send(&datagram).unwrap();
                    // A modest rate: 1.6 Mbit/s.
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let heard = |n: u32| {
                let mut room = [0; 256];
                let size = client.recv(&mut room).unwrap();
                let now = start.elapsed();
                // None was lost, none came twice, none overtook another.
                assert_eq!((size, room[..4].as_ref()), (200, &n.to_be_bytes()[..]));
                let sent = u128::from_be_bytes(*room[4..20].first_chunk().unwrap());
                now - Duration::from_nanos(u64::try_from(sent).unwrap())
            };
            (0..datagrams).map(heard).collect::<Vec<_>>()
        });
        let quickest = *times.iter().min().unwrap();
        assert!(quickest >= ROUND, "{quickest:?}: no such way");
        let nearly_all = percentile(&mut times, 0.99);
        println!("{datagrams} datagrams there and back: 99 % within {nearly_all:?}");
        assert!(
            cfg!(debug_assertions) || nearly_all <= ENOUGH,
            "{nearly_all:?}"
        );
        assert_eq!(far.published()["dropped"], 0);
        for slow in slow {
            slow.finish();
        }
        drop(mutes);
    });
}
