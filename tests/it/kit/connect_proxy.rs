//! A proxy of others: CONNECT, with a password and TLS if that is wanted. What is asked of it is written down. Names below `test`,
//! which nobody else knows, lead to one address.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How it behaves.
#[derive(Clone, Default)]
pub(crate) struct Ways {
    /// `user:password`.
    pub(crate) login: Option<&'static str>,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// Where names below `test` are.
    pub(crate) test: Option<SocketAddr>,
    /// It closes every connection once it was asked.
    pub(crate) mute: bool,
    /// It never answers when asked for that.
    pub(crate) silent_on: Option<&'static str>,
}

/// A running proxy, until it is dropped.
pub(crate) struct ConnectProxy {
    pub(crate) addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl ConnectProxy {
    pub(crate) fn start(ways: Ways) -> ConnectProxy {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let book = asked.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (ways, book) = (ways.clone(), book.clone());
                tokio::spawn(async move {
                    match ways.tls.clone() {
                        None => serve(stream, ways, book).await,
                        Some(config) => {
                            let accepting = tokio_rustls::TlsAcceptor::from(config).accept(stream);
                            if let Ok(stream) = accepting.await {
                                serve(stream, ways, book).await;
                            }
                        }
                    }
                });
            }
        });
        ConnectProxy {
            addr,
            asked,
            _runtime: runtime,
        }
    }

    /// The destinations that it was asked for since the last time, by whoever had the right password.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ways: Ways,
    book: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ');
    assert_eq!(words.next(), Some("CONNECT"), "{head}");
    let to = words.next().unwrap().to_owned();
    assert!(head.contains(&format!("\r\nHost: {to}\r\n")), "{head}");
    let shown = |login: &str| {
        head.contains(&format!(
            "\r\nProxy-Authorization: Basic {}\r\n",
            STANDARD.encode(login)
        ))
    };
    if ways.login.is_some_and(|login| !shown(login)) {
        let answer = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                      proxy-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes()).await;
        return;
    }
    book.lock().unwrap().push(to.clone());
    if ways.mute {
        return;
    }
    if ways.silent_on == Some(&*to) {
        // Until we are left.
        let _ = stream.read_u8().await;
        return;
    }
    let name = to.rsplit_once(':').map_or("", |(name, _)| name);
    let address = match ways.test.filter(|_| name.ends_with(".test")) {
        Some(address) => address.to_string(),
        None => to,
    };
    let answer = match TcpStream::connect(address).await {
        Ok(mut there) => {
            let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
            if stream.write_all(established).await.is_ok() {
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
            }
            return;
        }
        Err(_) => b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
    };
    let _ = stream.write_all(answer).await;
}
