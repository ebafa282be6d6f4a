//! Which way each address of a name is reached.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::TcpListener;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::Format;
use crate::document::{Context, Document};

/// Listens, and knows whether anybody has come.
struct Place(TcpListener);

impl Place {
    fn at(ip: [u8; 4]) -> Place {
        let listener = TcpListener::bind((IpAddr::from(ip), 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Place(listener)
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Since the last time.
    fn was_dialled(&self) -> bool {
        self.0.accept().is_ok()
    }
}

/// A proxy that says yes; what it is asked.
async fn proxy() -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            tell.send(head.lines().next().unwrap().to_owned())
                .await
                .unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        }
    });
    (addr, told)
}

/// A proxy that reaches 127.0.0.2 over `way`, and all else straight; all names have these addresses.
fn forward(way: SocketAddr, addresses: Vec<SocketAddr>) -> Forward {
    let text = format!(
        "[forward.f]\nlisten = \"127.0.0.1:1\"\ndestinations.allow = [\"127.0.0.0/8\"]\n\
         [[forward.f.rules]]\nmatch = {{ to = \"127.0.0.2\" }}\nvia = \"http://{way}\"\n"
    );
    let context = Context {
        base: "/base".into(),
        running: None,
    };
    let parsed = Document::parse(text.as_bytes(), Format::Toml, &context).unwrap();
    let document = parsed.document;
    let upstreams = Arc::new(upstream::Shared::with_resolver(
        tokio::runtime::Handle::current(),
        1,
        Arc::new(move |_, _| {
            let addresses = addresses.clone();
            Box::pin(async move { Ok::<_, io::Error>(addresses) })
        }),
    ));
    let built = document
        .upstreams
        .iter()
        .map(|(name, spec)| (name.clone(), Arc::new(Upstream::build(spec, &upstreams))));
    Forward::build(
        &document.forward["f"],
        &HashMap::new(),
        &built.collect(),
        None,
        &password::Shared::default(),
        &Shared::new(&upstreams),
        None,
    )
}

/// Where a name below `test` leads to.
async fn reach(forward: &Forward) -> Result<TargetAddr, Refused> {
    let worker = Arc::new(WorkerContext {
        index: 0,
        of: 1,
        counters: Default::default(),
        sessions: crate::session::Sessions::new(0, 1),
    });
    let ask = Ask {
        user: None,
        client: None,
        destination: &Destination::Name("split.test".into(), 8080),
    };
    let reached = forward.reach(&worker, ask, None).await?;
    Ok(reached.to)
}

#[tokio::test]
async fn each_address_of_a_name_is_reached_by_its_own_rules_way() {
    let (way, mut asked) = proxy().await;
    let (ruled, good) = (Place::at([127, 0, 0, 2]), Place::at([127, 0, 0, 1]));
    // Not where other tests get their ports from.
    let nobody = Place::at([127, 0, 0, 3]).addr();
    // Nobody goes straight to what a rule has another way for, not even where that is all that is left.
    let none = forward(way, vec![nobody, ruled.addr()]);
    assert!(reach(&none).await.is_err());
    assert!(!ruled.was_dialled() && asked.try_recv().is_err());
    let other = forward(way, vec![nobody, ruled.addr(), good.addr()]);
    assert_eq!(reach(&other).await.unwrap(), TargetAddr::Ip(good.addr()));
    assert!(good.was_dialled() && !ruled.was_dialled() && asked.try_recv().is_err());
    // What comes first says where it goes.
    let first = forward(way, vec![ruled.addr(), good.addr()]);
    assert_eq!(reach(&first).await.unwrap(), TargetAddr::Ip(ruled.addr()));
    let said = asked.recv().await.unwrap();
    assert_eq!(said, format!("CONNECT {} HTTP/1.1", ruled.addr()));
    assert!(!good.was_dialled() && !ruled.was_dialled());
}
