//! An edge and an agent with 60 ms between them: how fast, what is lost, what is cut, and what comes back.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::{TOKEN, edge, home, local, pin};
use crate::kit::bulk::{self, Bulk, Slow};
use crate::kit::link::{FAR, Link, NEAR};
use crate::kit::{Call, Conn, Gate, Origin, free_port, until};
use crate::tcp::Echo;

mod outage;
mod speed;

/// The edge at the near end, where the visitors are; the agent and its services at the far end.
struct Far {
    edge: Gate,
    home: Gate,
    web: SocketAddr,
    /// A websocket that echoes.
    socket: SocketAddr,
    /// A [`Bulk`], and an echo.
    bulk: SocketAddr,
    /// The same, each flow with a connection of its own.
    own: SocketAddr,
    echo: SocketAddr,
    /// An echo of datagrams.
    datagrams: SocketAddr,
    /// Another [`Bulk`], to be reached without a tunnel.
    plain: SocketAddr,
    _services: (Origin, Bulk, Echo, Bulk, crate::udp::Echo),
}

/// A server whose websockets echo what comes, frame by frame.
fn echoing_socket() -> SocketAddr {
    let listener = TcpListener::bind(local(0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut conn = Conn::over(stream)?;
                conn.head()?;
                conn.send(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                     sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                )?;
                loop {
                    let some = conn.some(1 << 16)?;
                    if some.is_empty() {
                        return std::io::Result::Ok(());
                    }
                    conn.send(some)?;
                }
            });
        }
    });
    addr
}

impl Far {
    fn start(link: &Link, sessions: usize) -> Far {
        let services = link.far(|| {
            let bulk = (
                Bulk::start(local(0)),
                Bulk::start((FAR, free_port()).into()),
            );
            let echoes = (crate::tcp::echo(), crate::udp::echo());
            (Origin::start("blog"), bulk.0, echoes.0, bulk.1, echoes.1)
        });
        let socket = link.far(echoing_socket);
        let (blog, bulk, echo, plain, datagrams) = &services;
        let agents = SocketAddr::from((NEAR, free_port()));
        let [web, at_socket, at_bulk, at_own, at_echo, at_datagrams] =
            [(); 6].map(|()| local(free_port()));
        let published = format!(
            "[http.socket]\nlisten = \"{at_socket}\"\nproxy = \"tunnel:home/socket\"\n\
             [tcp.bulk]\nlisten = \"{at_bulk}\"\nupstream = \"tunnel:home/bulk\"\n\
             [tcp.own]\nlisten = \"{at_own}\"\nupstream = \"tunnel:home/own\"\n\
             [tcp.echo]\nlisten = \"{at_echo}\"\nupstream = \"tunnel:home/echo\"\n\
             [udp.echo]\nlisten = \"{at_datagrams}\"\nupstream = \"tunnel:home/datagrams\"\n"
        );
        let edge = Gate::start(&edge(agents, web, &published));
        let lines = format!(
            "sessions = {sessions}\ntoken = \"{TOKEN}\"\ntls.pin = \"{}\"\n\
             services.socket = \"http://{}\"\nservices.bulk = \"tcp://{}\"\nservices.echo = \"tcp://{}\"\n\
             services.own = {{ to = \"tcp://{}\", dedicated = true }}\nservices.datagrams = \"udp://{}\"",
            pin(&edge),
            socket,
            bulk.addr,
            echo.addr,
            bulk.addr,
            datagrams.addr
        );
        let home = link.far(|| Gate::start(&home(agents, blog.addr, &lines, "")));
        let plain = plain.addr;
        let far = Far {
            edge,
            home,
            web,
            socket: at_socket,
            bulk: at_bulk,
            own: at_own,
            echo: at_echo,
            datagrams: at_datagrams,
            plain,
            _services: services,
        };
        far.wait_sessions(sessions);
        far
    }

    /// What the edge knows of the agent.
    fn published(&self) -> Value {
        let list = self.edge.call(Call::get("/tunnels")).expect(200);
        list["tunnels"][0]["agents"][0].clone()
    }

    /// The sessions that the edge knows: id and peer.
    fn sessions(&self) -> Vec<(String, SocketAddr)> {
        let published = self.published();
        let all = published["sessions"].as_array().into_iter().flatten();
        let one = |session: &Value| {
            let text = |key: &str| session[key].as_str().unwrap().to_owned();
            (text("session"), text("peer").parse().unwrap())
        };
        let mut all: Vec<_> = all.map(one).collect();
        all.sort();
        all
    }

    fn wait_sessions(&self, count: usize) -> Vec<(String, SocketAddr)> {
        until("so many sessions", || {
            let all = self.sessions();
            (all.len() == count).then_some(all)
        })
    }

    /// A connection through the tunnel, or none.
    fn connect(&self, to: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// On each session one reader that reads nothing, and one that is slow. Their windows are full by now.
    fn slow_readers(
        &self,
        link: &Link,
        sessions: usize,
        pause: Duration,
    ) -> (Vec<TcpStream>, Vec<Slow>) {
        let mute = |_| bulk::mute(self.connect(self.bulk)).unwrap();
        let mutes = (0..sessions).map(mute).collect();
        let slow = |_| Slow::start(self.connect(self.bulk), pause).unwrap();
        let slow = (0..sessions).map(slow).collect();
        let flows = 2 * sessions;
        until("all of them to be there", || {
            (self.published()["flows"] == flows).then_some(())
        });
        link.wait_quiet();
        (mutes, slow)
    }

    /// Both processes' own memory.
    fn memory(&self) -> [u64; 2] {
        [self.edge.own_memory(), self.home.own_memory()]
    }
}
