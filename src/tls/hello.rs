//! The first words of a TLS client, read to learn which server it wants and kept for that server: TLS is not ended here. Only
//! what tells where they go is understood. It stands in the same place for every version (RFC 8446 section 4.1.2), so clients
//! of versions that nobody here speaks are told apart too.

use std::io;
use std::net::IpAddr;

use bytes::BytesMut;
use rustls::pki_types::DnsName;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes that a hello may take, with what came behind it. It may be spread over records (RFC 8446 section 5.1).
const MOST: usize = 64 * 1024;
const READ: usize = 4096;
/// Of a record, before its contents: type, version, length (RFC 8446 section 5.1).
const HEADER: usize = 5;
/// Bytes of a record's contents.
const RECORD: usize = 16 * 1024;
/// The type of a record that has handshake messages, and of the message that is a client's hello.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Extensions.
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// The record that tells a client that no server has the name it asks for (RFC 6066 section 3): alert, fatal, 112.
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client has said first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The name it asks for, in lower case and without a dot at its end.
    pub sni: Option<Box<str>>,
    /// The protocols that it offers (RFC 7301), the preferred first.
    pub alpn: Vec<Box<[u8]>>,
}

/// Reads until the hello is there. The caller bounds the time. All that was read is in `bytes`, also where this fails or is
/// dropped: it belongs to whoever answers.
///
/// # Errors
/// The stream broke or ended. `InvalidData`: what came is no TLS hello, or it is larger than 64 KiB.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut BytesMut) -> io::Result<Hello> {
    let mut message = Message::default();
    while bytes.len() < MOST {
        let most = READ.min(MOST - bytes.len());
        bytes.reserve(most);
        let read = (&mut *stream).take(most as u64).read_buf(bytes).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if message.is_whole(bytes)? {
            return hello(&message.bytes).ok_or_else(|| wrong("a hello that makes no sense"));
        }
    }
    Err(wrong("a hello of more than 64 KiB"))
}

fn wrong(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A handshake message, put together from records.
#[derive(Debug, Default)]
struct Message {
    /// With its type and length.
    bytes: Vec<u8>,
    /// Where the next record begins.
    next: usize,
}

impl Message {
    /// Takes the records that are whole among `all` that was read; true once the message is.
    ///
    /// # Errors
    /// It is no hello. That is found as early as can be, for whoever sends something else waits for an answer.
    fn is_whole(&mut self, all: &[u8]) -> io::Result<bool> {
        while let Some(record) = all.get(self.next..).filter(|record| !record.is_empty()) {
            if record[0] != HANDSHAKE || record.get(1).is_some_and(|major| *major != 3) {
                return Err(wrong("no TLS"));
            }
            let Some((header, contents)) = record.split_at_checked(HEADER) else {
                return Ok(false);
            };
            let size = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if size == 0 || size > RECORD {
                return Err(wrong("a record that cannot be"));
            }
            let kind = self.bytes.first().or(contents.first());
            if kind.is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Err(wrong("a message that is no hello"));
            }
            let Some(contents) = contents.get(..size) else {
                return Ok(false);
            };
            self.bytes.extend_from_slice(contents);
            self.next += HEADER + size;
            if let [_, a, b, c, ..] = self.bytes[..] {
                let whole = 4 + usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(MOST);
                if whole > MOST {
                    return Err(wrong("a hello of more than 64 KiB"));
                }
                if self.bytes.len() >= whole {
                    self.bytes.truncate(whole);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Reads a hello, type and length included. `None`: it is none.
fn hello(message: &[u8]) -> Option<Hello> {
    let mut rest = Fields(message);
    rest.take(4)?;
    // Version and random; session, ciphers and compressions.
    rest.take(2 + 32)?;
    rest.short()?;
    rest.long()?;
    rest.short()?;
    let mut hello = Hello::default();
    if rest.0.is_empty() {
        // Before extensions there were none.
        return Some(hello);
    }
    let mut extensions = rest.long()?;
    let (mut named, mut offered) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let data = extensions.long()?;
        match kind {
            // Twice would be two answers to one question.
            SERVER_NAME if !std::mem::replace(&mut named, true) => hello.sni = name(data)?,
            ALPN if !std::mem::replace(&mut offered, true) => hello.alpn = protocols(data)?,
            SERVER_NAME | ALPN => return None,
            _ => {}
        }
    }
    rest.0.is_empty().then_some(hello)
}

/// The name of `server_name` (RFC 6066 section 3): the list has one. An address is no name, and as good as none. The outer
/// `None`: it makes no sense.
#[allow(clippy::option_option)]
fn name(mut data: Fields<'_>) -> Option<Option<Box<str>>> {
    let mut list = data.long()?;
    let is_host = list.take(1)? == [0];
    let name = list.long()?.0;
    let alone = list.0.is_empty() && data.0.is_empty();
    if !alone || !is_host {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    if name.parse::<IpAddr>().is_ok() {
        return Some(None);
    }
    DnsName::try_from(name).ok()?;
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    Some(Some(name.into()))
}

/// Those of `application_layer_protocol_negotiation` (RFC 7301 section 3.1).
fn protocols(mut data: Fields<'_>) -> Option<Vec<Box<[u8]>>> {
    let mut list = data.long()?;
    let mut all = Vec::new();
    while !list.0.is_empty() {
        all.push(list.short()?.0.into());
    }
    data.0.is_empty().then_some(all)
}

/// What is left to read.
struct Fields<'m>(&'m [u8]);

impl<'m> Fields<'m> {
    fn take(&mut self, size: usize) -> Option<&'m [u8]> {
        let (taken, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    }

    /// What has its length before it in one byte.
    fn short(&mut self) -> Option<Fields<'m>> {
        let size = usize::from(*self.take(1)?.first()?);
        self.take(size).map(Fields)
    }

    /// In two.
    fn long(&mut self) -> Option<Fields<'m>> {
        let size = usize::from(self.number()?);
        self.take(size).map(Fields)
    }
}

/// Holds for all bytes: whoever ends TLS with rustls reads the same, if both read anything. Else one would be routed by one name
/// and answered by another.
#[cfg(any(test, fuzzing))]
pub(crate) fn agrees(bytes: &[u8]) {
    use futures_util::FutureExt as _;
    use rustls::server::Acceptor;

    let (mut ours, mut theirs) = (bytes, bytes);
    let read = read(&mut ours, &mut BytesMut::new()).now_or_never();
    let Some(Ok(hello)) = read else {
        return;
    };
    let mut acceptor = Acceptor::default();
    while acceptor.read_tls(&mut theirs).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Err(_) => return,
            Ok(Some(accepted)) => {
                let said = accepted.client_hello();
                let name = said.server_name().map(str::to_ascii_lowercase);
                let name = name.map(|name| name.trim_end_matches('.').into());
                let offered = said.alpn().into_iter().flatten();
                let alpn = offered.map(Into::into).collect();
                return assert_eq!(hello, Hello { sni: name, alpn });
            }
        }
    }
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
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = name.try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn read_all(mut bytes: &[u8]) -> io::Result<Hello> {
        read(&mut bytes, &mut BytesMut::new()).await
    }

    /// The same in records of so many bytes each.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let records = hello[HEADER..].chunks(size).map(|contents| {
            let size = u16::try_from(contents.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1, size[0], size[1]], contents].concat()
        });
        records.collect::<Vec<_>>().concat()
    }

    #[tokio::test]
    async fn a_name_is_found_in_whatever_pieces_the_hello_comes_and_no_byte_is_lost() {
        let whole = hello_for("A.Test");
        for hello in [
            whole.clone(),
            in_records(&whole, 1),
            in_records(&whole, 100),
        ] {
            let all = [&hello[..], b"what follows"].concat();
            for size in [1, 7, all.len()] {
                let (mut client, mut here) = tokio::io::duplex(size);
                let sent = all.clone();
                let writing = tokio::spawn(async move { client.write_all(&sent).await });
                let mut bytes = BytesMut::new();
                let hello = read(&mut here, &mut bytes).await.unwrap();
                assert_eq!(hello.sni.as_deref(), Some("a.test"));
                let offered: Vec<_> = hello.alpn.iter().map(|p| &p[..]).collect();
                assert_eq!(offered, [&b"h2"[..], b"http/1.1"]);
                let mut rest = Vec::new();
                here.read_to_end(&mut rest).await.unwrap();
                assert!([&bytes[..], &rest].concat() == all, "by {size}");
                writing.await.unwrap().unwrap();
            }
        }
        let hello = read_all(&hello_for("192.0.2.1")).await.unwrap();
        assert_eq!(hello.sni, None);
    }

    /// A hello with these extensions, in one record.
    fn made(version: u8, extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, version];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        if let Some(extensions) = extensions {
            body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
            body.extend(extensions);
        }
        let size = u8::try_from(body.len()).unwrap();
        [
            &[HANDSHAKE, 3, 1, 0, size + 4, CLIENT_HELLO, 0, 0, size],
            &body[..],
        ]
        .concat()
    }

    const A_TEST: &[u8] = b"\0\0\0\x0b\0\x09\0\0\x06A.test";

    #[tokio::test]
    async fn versions_that_nobody_here_speaks_say_their_name_too() {
        for version in [1, 2, 3] {
            let hello = read_all(&made(version, Some(A_TEST))).await.unwrap();
            assert_eq!(hello.sni.as_deref(), Some("a.test"));
            for extensions in [None, Some(&[][..])] {
                let hello = read_all(&made(version, extensions)).await.unwrap();
                assert_eq!(hello, Hello::default());
            }
        }
    }

    #[tokio::test]
    async fn what_makes_no_sense_names_nobody() {
        let twice = [A_TEST, A_TEST].concat();
        for extensions in [
            &twice[..],
            // Nothing in the list; two names; another type; a name with a blank; a list that is too long.
            b"\0\0\0\x02\0\0",
            b"\0\0\0\x0a\0\x08\0\0\x01a\0\0\x01b",
            b"\0\0\0\x06\0\x04\x01\0\x01a",
            b"\0\0\0\x08\0\x06\0\0\x03a b",
            b"\0\0\0\x06\0\x05\0\0\x01a",
            b"\0\x10\0\x04\0\x02\x02h",
            b"\0",
        ] {
            let error = read_all(&made(3, Some(extensions))).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{extensions:?}");
        }
        let whole = made(3, Some(A_TEST));
        for size in HEADER + 4..whole.len() {
            // Cut off, but said to be whole.
            let mut cut = whole[..size].to_vec();
            (cut[4], cut[8]) = ((size - HEADER) as u8, (size - HEADER - 4) as u8);
            match read_all(&cut).await {
                // Just before the extensions.
                Ok(hello) => assert_eq!((hello, size), (Hello::default(), 9 + 41)),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData),
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_hello_ends_at_once_and_what_never_ends_at_a_bound() {
        for (first, then) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "no TLS"),
            (&[HANDSHAKE, 2][..], "no TLS"),
            (&[HANDSHAKE, 3, 1, 1, 0, 2][..], "no hello"),
            (&[HANDSHAKE, 3, 1, 0xff, 0xff][..], "cannot be"),
            (&[HANDSHAKE, 3, 1, 0, 4, 1, 2, 0, 0][..], "64 KiB"),
        ] {
            // Nothing more is needed to see it.
            let (mut client, mut here) = tokio::io::duplex(64);
            client.write_all(first).await.unwrap();
            let mut bytes = BytesMut::new();
            let error = read(&mut here, &mut bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(then), "{error}");
            assert_eq!(bytes, first);
        }
        let hello = hello_for("a.test");
        let error = read_all(&hello[..hello.len() - 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // A hello that says it has 65,000 bytes, in records of one byte each.
        let mut endless = vec![22, 3, 1, 0, 4, 1, 0, 0xfd, 0xe8];
        endless.extend([22, 3, 1, 0, 1, 0].repeat(20_000));
        let mut left = &endless[..];
        let error = read(&mut left, &mut BytesMut::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(left.len() >= endless.len() - MOST);
    }

    #[test]
    fn what_was_changed_on_its_way_means_the_same_to_rustls() {
        let whole = hello_for("name.a.test");
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut hello = whole.clone();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..hello.len());
                hello[at] = match random.bool() {
                    true => random.u8(..),
                    false => hello[at].wrapping_add(1),
                };
            }
            agrees(&hello);
        }
    }
}
