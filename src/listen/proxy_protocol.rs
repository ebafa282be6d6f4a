//! The PROXY protocol before anything else (version 1 and 2, as HAProxy's specification has it): who the client of a
//! balancer in front is. It is read from `trusted_proxies` only, and from them it must come.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, its end of line included.
const LINE: usize = 107;
/// Longest rest of version 2: addresses, and what balancers tell beside them.
const REST: usize = 4096;

/// Where the connection came from and where to, as the balancer has it; `None`: it speaks for itself (a health check).
pub(super) type Told = Option<(SocketAddr, SocketAddr)>;

/// Reads the header and not a byte more, within `limit`.
///
/// # Errors
/// What came is no such header, did not come in time, or the connection ended.
pub(super) async fn read(stream: &mut TcpStream, limit: Option<Duration>) -> io::Result<Told> {
    let header = header(stream);
    match limit {
        Some(limit) => tokio::time::timeout(limit, header)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?,
        None => header.await,
    }
}

async fn header(stream: &mut TcpStream) -> io::Result<Told> {
    // Both versions are longer than this.
    let mut bytes = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut bytes).await?;
    if bytes == SIGNATURE {
        read_more(stream, &mut bytes, 4).await?;
        let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        if length > REST {
            return Err(wrong("a header of version 2 that is too long"));
        }
        read_more(stream, &mut bytes, length).await?;
    } else if bytes.starts_with(b"PROXY ") {
        line(stream, &mut bytes).await?;
    } else {
        return Err(wrong("no PROXY header"));
    }
    let (header, length) = ProxyHeader::parse(&bytes, ParseConfig::default())
        .map_err(|_| wrong("a PROXY header that cannot be understood"))?;
    if length != bytes.len() {
        return Err(wrong("a PROXY header of another length than it says"));
    }
    let told = header.proxied_address();
    Ok(told.map(|told| (told.source, told.destination)))
}

/// To the end of the line; what follows it is left to whoever reads next.
async fn line(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    while bytes.last() != Some(&b'\n') {
        let mut room = [0; LINE];
        let most = LINE - bytes.len();
        let seen = stream.peek(&mut room[..most]).await?;
        let end = room[..seen].iter().position(|byte| *byte == b'\n');
        let take = end.map_or(seen, |end| end + 1);
        if take == 0 {
            // Either nothing came any more, or there is no room for more.
            return Err(wrong("a PROXY header without an end"));
        }
        read_more(stream, bytes, take).await?;
    }
    Ok(())
}

async fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>, more: usize) -> io::Result<()> {
    let have = bytes.len();
    bytes.resize(have + more, 0);
    stream.read_exact(&mut bytes[have..]).await.map(drop)
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proxy_header::ProxiedAddress;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    /// What is read of `pieces`, and what is left for the next reader.
    async fn sent(pieces: &[&[u8]]) -> (io::Result<Told>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|p| p.to_vec()).collect();
        let sending = tokio::spawn(async move {
            for piece in pieces {
                client.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let told = read(&mut stream, Some(Duration::from_secs(10))).await;
        sending.await.unwrap();
        let mut rest = Vec::new();
        if told.is_ok() {
            stream.read_to_end(&mut rest).await.unwrap();
        }
        (told, rest)
    }

    #[tokio::test]
    async fn both_versions_are_read_to_their_end_and_no_further() {
        let (source, destination): (SocketAddr, SocketAddr) = (
            "192.0.2.7:4711".parse().unwrap(),
            "198.51.100.1:443".parse().unwrap(),
        );
        let told = Some((source, destination));
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
        let (got, rest) = sent(&[v1, b"GET /"]).await;
        assert_eq!((got.unwrap(), rest.as_slice()), (told, &b"GET /"[..]));
        let bytes: Vec<&[u8]> = v1.chunks(1).collect();
        assert_eq!(sent(&bytes).await.0.unwrap(), told);
        let mut v2 = Vec::new();
        ProxyHeader::with_address(ProxiedAddress::stream(source, destination))
            .encode_v2(&mut v2)
            .unwrap();
        v2.extend_from_slice(b"GET /");
        let (got, rest) = sent(&[&v2[..13], &v2[13..]]).await;
        assert_eq!((got.unwrap(), rest.as_slice()), (told, &b"GET /"[..]));
    }

    #[tokio::test]
    async fn a_balancer_may_speak_for_itself() {
        assert_eq!(sent(&[b"PROXY UNKNOWN\r\n"]).await.0.unwrap(), None);
        let mut local = Vec::new();
        ProxyHeader::with_local().encode_v2(&mut local).unwrap();
        assert_eq!(sent(&[&local]).await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200], b"\r\n"].concat();
        let huge = [&SIGNATURE[..], b"\x21\x11\xff\xff"].concat();
        for bad in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            b"PROXY TCP4 1.2.3.4\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
            b"PROXY TC",
            &long,
            &huge,
        ] {
            assert!(
                sent(&[bad]).await.0.is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
