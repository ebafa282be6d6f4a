//! A long way between two machines: two network namespaces, and a link between them that takes time, has a rate, loses
//! packets, and can be cut. TCP on either side is the kernel's own, so that what it makes of loss and delay is real.
//!
//! Needs the right to make namespaces and interfaces (CAP_NET_ADMIN and CAP_SYS_ADMIN), /dev/net/tun and ip(8). Where that is
//! not to be had the tests say so and do nothing, unless `EVERGATE_NEEDS_LINK=1`, as in CI.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::netns::{Namespace, ip, tun};
use super::until;

/// The addresses of the two ends.
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Another one of the far end; see [`Link::move_far_end`].
pub(crate) const MOVED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);

/// What the interface is called, at both ends.
const DEVICE: &str = "way0";

/// Packets on the way.
const MOST: usize = 1 << 16;

/// What a link is like, each way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    /// How long a packet takes.
    pub(crate) delay: Duration,
    /// Bytes a second, headers included.
    pub(crate) rate: u64,
    /// Bytes that may wait before it.
    pub(crate) queue: u64,
    /// How TCP at both ends answers loss (tcp(7), `tcp_congestion_control`); `None`: as on this machine.
    pub(crate) control: Option<&'static str>,
}

impl Default for Quality {
    /// 60 ms there and back, 320 Mbit/s.
    fn default() -> Quality {
        Quality {
            delay: Duration::from_millis(30),
            rate: 40_000_000,
            queue: 4 << 20,
            control: None,
        }
    }
}

/// Two machines with a link between them. The test itself is at the near end.
#[derive(Debug)]
pub(crate) struct Link {
    near: Namespace,
    far: Namespace,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    /// A port whose packets do not get through; 0: none.
    barred: AtomicU16,
    /// How many of a thousand packets are lost.
    losing: AtomicU64,
    /// Bytes that were taken over.
    carried: AtomicU64,
    /// Packets that were lost by chance, and for want of room.
    lost: AtomicU64,
    refused: AtomicU64,
}

impl Link {
    /// Runs `test` at the near end, if this machine lets us.
    pub(crate) fn with(quality: Quality, test: impl FnOnce(&Link) + Send) {
        let link = match Link::new(quality) {
            Ok(link) => link,
            Err(error) => {
                let needed = std::env::var_os("EVERGATE_NEEDS_LINK").is_some();
                assert!(!needed, "no link between two namespaces: {error}");
                println!(
                    "SKIPPED: no link between two network namespaces can be had here: {error}"
                );
                return;
            }
        };
        link.near.within(|| test(&link));
    }

    fn new(quality: Quality) -> io::Result<Link> {
        let link = Link {
            near: Namespace::new()?,
            far: Namespace::new()?,
            state: Arc::default(),
        };
        let end = |address: Ipv4Addr| {
            if let Some(control) = quality.control {
                std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", control)?;
            }
            let tun = tun(DEVICE)?;
            ip(&format!("address add {address}/24 dev {DEVICE}"))?;
            // What it cannot hold it drops, and the queue is ours to keep.
            ip(&format!(
                "link set dev {DEVICE} mtu 1500 txqueuelen 20000 up"
            ))?;
            Ok::<File, io::Error>(tun)
        };
        let (near, far) = (
            link.near.within(|| end(NEAR))?,
            link.far.within(|| end(FAR))?,
        );
        for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
            let (send, receive) = sync_channel(MOST);
            let way = Way {
                quality,
                state: link.state.clone(),
                free: Instant::now(),
                seen: HashMap::new(),
            };
            // Both end with the interface.
            std::thread::spawn(move || way.take(from, &send));
            std::thread::spawn(move || deliver(to, &receive));
        }
        Ok(link)
    }

    /// Does something at the far end.
    pub(crate) fn far<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.far.within(what)
    }

    /// From now on nothing gets through, or all does again.
    pub(crate) fn cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::SeqCst);
    }

    /// From now on nothing gets through from or to this TCP port; 0: from and to all.
    pub(crate) fn bar(&self, port: u16) {
        self.state.barred.store(port, Ordering::SeqCst);
    }

    /// From now on so many of a thousand packets are lost, each way.
    pub(crate) fn lose(&self, of_a_thousand: u64) {
        self.state.losing.store(of_a_thousand, Ordering::SeqCst);
    }

    /// The far end has another address from now on, and not the one that it had.
    pub(crate) fn move_far_end(&self) {
        self.far(|| {
            ip(&format!("address del {FAR}/24 dev {DEVICE}")).unwrap();
            ip(&format!("address add {MOVED}/24 dev {DEVICE}")).unwrap();
        });
    }

    /// Waits until next to nothing goes over it: whoever does not read has what it may have.
    pub(crate) fn wait_quiet(&self) {
        let carried = || self.state.carried.load(Ordering::SeqCst);
        until("the link to be quiet", || {
            let before = carried();
            std::thread::sleep(Duration::from_millis(300));
            (carried() - before < 50_000).then_some(())
        });
    }

    /// Packets lost by chance, and for want of room.
    pub(crate) fn lost(&self) -> (u64, u64) {
        let read = |n: &AtomicU64| n.load(Ordering::SeqCst);
        (read(&self.state.lost), read(&self.state.refused))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The interfaces, whose threads end by that. They would go with the namespaces otherwise.
        for end in [&self.near, &self.far] {
            let _ = end.within(|| ip(&format!("link del dev {DEVICE}")));
        }
    }
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

/// One of the two directions.
struct Way {
    quality: Quality,
    state: Arc<State>,
    /// When the last packet has left.
    free: Instant,
    /// Packets of each connection, by its ports.
    seen: HashMap<[u8; 4], u64>,
}

impl Way {
    /// Takes packets until the interface is gone.
    fn take(mut self, mut from: File, to: &SyncSender<Packet>) {
        let mut buffer = [0; 2048];
        while let Ok(size) = from.read(&mut buffer) {
            let Some(due) = self.judge(&buffer[..size]) else {
                continue;
            };
            let bytes = buffer[..size].to_vec();
            if to.try_send(Packet { due, bytes }).is_err() {
                self.state.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// When it arrives; `None`: never.
    fn judge(&mut self, packet: &[u8]) -> Option<Instant> {
        let state = &self.state;
        let ports = ports(packet);
        if let Some(ports) = ports {
            let barred = state.barred.load(Ordering::Relaxed).to_be_bytes();
            if barred != [0, 0] && (ports[..2] == barred || ports[2..] == barred) {
                return None;
            }
        }
        if state.cut.load(Ordering::Relaxed) {
            return None;
        }
        let losing = state.losing.load(Ordering::Relaxed);
        if losing > 0 {
            let number = self.seen.entry(ports.unwrap_or_default()).or_default();
            *number += 1;
            if chance(*number) < losing as f64 {
                state.lost.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        }
        let (now, rate) = (Instant::now(), self.quality.rate as f64);
        let begins = self.free.max(now);
        let waiting = begins.duration_since(now).as_secs_f64() * rate;
        if waiting > self.quality.queue as f64 {
            state.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let size = packet.len() as u64;
        state.carried.fetch_add(size, Ordering::Relaxed);
        self.free = begins + Duration::from_secs_f64(packet.len() as f64 / rate);
        Some(self.free + self.quality.delay)
    }
}

/// Source and destination port of a TCP packet over IPv4.
fn ports(packet: &[u8]) -> Option<[u8; 4]> {
    let first = *packet.first()?;
    if first >> 4 != 4 || *packet.get(9)? != 6 {
        return None;
    }
    let head = usize::from(first & 0xf) * 4;
    packet.get(head..)?.first_chunk().copied()
}

/// Between 0 and 1000, the same for the same number: connections that are compared lose the same of their packets. (The
/// finalizer of splitmix64.)
fn chance(number: u64) -> f64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64 * 1000.0
}

fn deliver(mut to: File, packets: &Receiver<Packet>) {
    for packet in packets {
        std::thread::sleep(packet.due.saturating_duration_since(Instant::now()));
        // It fails where the interface is gone, as reading does.
        if to.write_all(&packet.bytes).is_err() {
            return;
        }
    }
}
