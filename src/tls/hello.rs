//! The first words of a TLS client, read to learn which server it wants and kept for that server: TLS is not ended here.
//! rustls understands them, so TLS 1.2 and later is what is known (older hellos have no signature algorithms).

use std::io;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes that a hello may take, with what came behind it. A handshake message has at most as many (RFC 8446 section 5.1
/// spreads it over records).
const MOST: usize = 64 * 1024;
const READ: usize = 4096;

/// The record that tells a client that no server has the name it asks for (RFC 6066 section 3): alert, fatal, 112.
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client has said first.
#[derive(Debug, Default)]
pub struct Hello {
    /// The name it asks for, in lower case and without a dot at its end.
    pub sni: Option<Box<str>>,
    /// All that was read: it belongs to whoever answers.
    pub bytes: Bytes,
}

/// Reads until the hello is there. The caller bounds the time.
///
/// # Errors
/// The stream broke or ended, what came is no TLS hello, or it is larger than 64 KiB.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Hello> {
    let (mut acceptor, mut bytes) = (Acceptor::default(), BytesMut::new());
    while bytes.len() < MOST {
        let have = bytes.len();
        let most = READ.min(MOST - have);
        bytes.reserve(most);
        let read = (&mut *stream)
            .take(most as u64)
            .read_buf(&mut bytes)
            .await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = &bytes[have..];
        while !new.is_empty() && acceptor.read_tls(&mut new)? > 0 {
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted
                        .client_hello()
                        .server_name()
                        .map(str::to_ascii_lowercase);
                    return Ok(Hello {
                        sni: name.map(|name| name.trim_end_matches('.').into()),
                        bytes: bytes.freeze(),
                    });
                }
                Err((error, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
    let message = "a hello of more than 64 KiB";
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn hello_for(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_name_is_found_in_whatever_pieces_the_hello_comes_and_no_byte_is_lost() {
        let mut all = hello_for("A.Test");
        all.extend_from_slice(b"what follows");
        for size in [1, 7, all.len()] {
            let (mut client, mut here) = tokio::io::duplex(size);
            let sent = all.clone();
            let writing = tokio::spawn(async move { client.write_all(&sent).await });
            let hello = read(&mut here).await.unwrap();
            assert_eq!(hello.sni.as_deref(), Some("a.test"));
            let mut rest = Vec::new();
            here.read_to_end(&mut rest).await.unwrap();
            assert!([&hello.bytes[..], &rest].concat() == all, "by {size}");
            writing.await.unwrap().unwrap();
        }
        let hello = read(&mut &hello_for("192.0.2.1")[..]).await.unwrap();
        assert_eq!(hello.sni, None);
    }

    #[tokio::test]
    async fn what_is_no_hello_ends_at_once_and_what_never_ends_at_a_bound() {
        let http = b"GET / HTTP/1.1\r\n\r\n";
        let error = read(&mut &http[..]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let hello = hello_for("a.test");
        let error = read(&mut &hello[..hello.len() - 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // A hello that says it has 65,000 bytes, in records of one byte each.
        let mut endless = vec![22, 3, 1, 0, 4, 1, 0, 0xfd, 0xe8];
        endless.extend([22, 3, 1, 0, 1, 0].repeat(20_000));
        let mut left = &endless[..];
        let error = read(&mut left).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(left.len() >= endless.len() - MOST);
    }
}
