//! The handshakes against scripted proxies: every answer, cut anywhere, and what follows it.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::scalar::Secret;

fn login() -> LoginSpec {
    LoginSpec {
        user: "me".into(),
        password: Secret::new("pa:ss".into()),
    }
}

/// What asking comes to when the proxy says `answer` in pieces of `size` and ends; and what it was asked.
async fn asked(
    protocol: HopProtocol,
    to: &str,
    login: Option<LoginSpec>,
    answer: &[u8],
    size: usize,
) -> (Result<Bytes, String>, Vec<u8>) {
    let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let to = TargetAddr::parse(to, std::path::Path::new("/")).unwrap();
    let script = async {
        for piece in answer.chunks(size) {
            theirs.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        theirs.shutdown().await.unwrap();
    };
    let asking = async {
        let question = Question {
            hop: "hop",
            to: &to,
            login: login.as_ref(),
            passed: None,
        };
        let mut asked = false;
        let done = match protocol {
            HopProtocol::Http | HopProtocol::Https => {
                connect::ask(&mut ours, question, &mut asked).await
            }
            _ => socks5::ask(&mut ours, question, &mut asked)
                .await
                .map(|()| Bytes::new()),
        };
        let done = done.map_err(|fault| match fault {
            Fault::Answered(error) => format!("{} {}", error.kind, error.detail),
            Fault::Broken(_, why) => format!("broken: {why}"),
        });
        let mut rest = Vec::new();
        if let Ok(first) = &done {
            rest.extend_from_slice(first);
            ours.read_to_end(&mut rest).await.unwrap();
        }
        ours.shutdown().await.unwrap();
        done.map(|_| Bytes::from(rest))
    };
    let (done, ()) = tokio::join!(asking, script);
    let mut said = Vec::new();
    theirs.read_to_end(&mut said).await.unwrap();
    (done, said)
}

#[tokio::test]
async fn connect_says_who_it_is_and_reads_no_further_than_the_answer() {
    for size in [1, 7, 1000] {
        let answer = b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nvia: 1.1 x\r\n\r\nSSH-2.0\r\n\r\n";
        let (done, said) = asked(HopProtocol::Http, "a.test:22", Some(login()), answer, size).await;
        assert_eq!(done.unwrap(), "SSH-2.0\r\n\r\n");
        let head = "CONNECT a.test:22 HTTP/1.1\r\nHost: a.test:22\r\nProxy-Authorization: Basic bWU6cGE6c3M=\r\nVia: 1.1 evergate\r\n\r\n";
        assert_eq!(String::from_utf8(said).unwrap(), head);
    }
    let (_, said) = asked(HopProtocol::Http, "[::1]:80", None, b"", 1).await;
    let head = "CONNECT [::1]:80 HTTP/1.1\r\nHost: [::1]:80\r\nVia: 1.1 evergate\r\n\r\n";
    assert_eq!(String::from_utf8(said).unwrap(), head);
}

#[tokio::test]
async fn what_a_proxy_answers_is_told() {
    let long = [&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'x'; connect::MOST]].concat();
    for (known, answer, told) in [
        (
            true,
            &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
            "connection_refused via hop: CONNECT a.test:80 was answered with 407 Proxy Authentication Required: it does not take this user and password",
        ),
        (
            false,
            b"HTTP/1.1 407 x\r\n\r\n",
            "connection_refused via hop: CONNECT a.test:80 was answered with 407 Proxy Authentication Required: it wants a user and a password",
        ),
        (
            false,
            b"HTTP/1.0 504 x\r\n\r\n",
            "connection_timeout via hop: CONNECT a.test:80 was answered with 504 Gateway Timeout",
        ),
        (
            false,
            b"HTTP/1.1 200 OK\r\n",
            "broken: it closed the connection instead of an answer",
        ),
        (
            false,
            b"",
            "broken: it closed the connection instead of an answer",
        ),
        (
            false,
            b"SSH-2.0-OpenSSH\r\n\r\n",
            "broken: it does not answer in HTTP/1",
        ),
        (
            false,
            &long,
            "broken: the head of its answer is over 16384 bytes",
        ),
    ] {
        let login = known.then(login);
        let (done, _) = asked(HopProtocol::Http, "a.test:80", login, answer, 4096).await;
        assert_eq!(done.unwrap_err(), told);
    }
}

#[tokio::test]
async fn socks_says_what_it_must_and_reads_no_further() {
    let granted = [&[5, 2][..], &[1, 0], &[5, 0, 0, 3, 1, b'x', 0, 1], b"rest"].concat();
    for size in [1, 3, 100] {
        let (done, said) = asked(
            HopProtocol::Socks5h,
            "a.test:22",
            Some(login()),
            &granted,
            size,
        )
        .await;
        assert_eq!(done.unwrap(), "rest");
        let expected = [
            &[5, 2, 0, 2][..],
            b"\x01\x02me\x05pa:ss",
            b"\x05\x01\x00\x03\x06a.test\x00\x16",
        ];
        assert_eq!(said, expected.concat());
    }
    let granted = [&[5, 0][..], &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    let (done, said) = asked(HopProtocol::Socks5, "[::1]:1", None, &granted, 100).await;
    assert!(done.unwrap().is_empty());
    assert_eq!(said[..7], [5, 1, 0, 5, 1, 0, 4]);
}

#[tokio::test]
async fn what_a_socks_proxy_answers_is_told() {
    for (known, answer, told) in [
        (
            true,
            &[5, 2, 1, 1][..],
            "connection_refused via hop: it does not take this user and password",
        ),
        (
            true,
            &[5, 0xff],
            "connection_refused via hop: it takes no user and password",
        ),
        (
            false,
            &[5, 0xff],
            "connection_refused via hop: it wants to know who we are, by a user and a password or otherwise",
        ),
        (
            false,
            &[5, 0, 5, 4, 0, 1],
            "destination_unavailable via hop: CONNECT a.test:80 was answered with reply 4: host unreachable",
        ),
        (false, &[4, 0], "broken: it does not answer in SOCKS5"),
        // Chosen, but never offered.
        (false, &[5, 2], "broken: it does not answer in SOCKS5"),
        (
            false,
            &[5, 0, 5, 0, 0, 9, 1],
            "broken: its reply has an address of no known kind",
        ),
        (
            false,
            &[5, 0, 5, 0, 0, 1, 1],
            "broken: it closed the connection instead of an answer",
        ),
    ] {
        let (done, _) = asked(
            HopProtocol::Socks5h,
            "a.test:80",
            known.then(login),
            answer,
            100,
        )
        .await;
        assert_eq!(done.unwrap_err(), told);
    }
}

#[tokio::test]
async fn a_chain_that_lacks_a_proxy_leads_nowhere_and_certainly_not_past_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = TargetAddr::Ip(listener.local_addr().unwrap());
    let spec = ViaSpec {
        hops: vec![crate::config::via::HopSpec {
            upstream: "gone".into(),
            protocol: HopProtocol::Http,
            login: None,
        }],
    };
    let via = Via::build(&spec, &BTreeMap::new());
    let deadline = Instant::now() + std::time::Duration::from_secs(10);
    let error = via.connect(0, &to, deadline, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::ProxyConfigurationError);
    assert!(error.unsent);
}

#[tokio::test]
async fn those_that_were_passed_are_told() {
    let (mut ours, mut theirs) = tokio::io::duplex(1024);
    let to = TargetAddr::parse("a.test:22", std::path::Path::new("/")).unwrap();
    let passed = HeaderValue::from_static("1.0 fred, 1.1 evergate");
    let question = Question {
        hop: "hop",
        to: &to,
        login: None,
        passed: Some(&passed),
    };
    theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let mut asked = false;
    connect::ask(&mut ours, question, &mut asked)
        .await
        .ok()
        .unwrap();
    assert!(asked);
    drop(ours);
    let mut said = String::new();
    theirs.read_to_string(&mut said).await.unwrap();
    assert!(
        said.ends_with("\r\nVia: 1.0 fred, 1.1 evergate\r\n\r\n"),
        "{said}"
    );
}

/// Where datagrams go when the proxy answers so, and what it was asked.
async fn associated(login: Option<LoginSpec>, answer: &[u8]) -> (Result<String, String>, Vec<u8>) {
    let (mut ours, mut theirs) = tokio::io::duplex(1024);
    theirs.write_all(answer).await.unwrap();
    theirs.shutdown().await.unwrap();
    let told = socks5::associate(&mut ours, "hop", login.as_ref()).await;
    ours.shutdown().await.unwrap();
    let mut said = Vec::new();
    theirs.read_to_end(&mut said).await.unwrap();
    let told = told.map(|relay| relay.to_string());
    let told = told.map_err(|fault| match fault {
        Fault::Answered(error) => format!("{} {}", error.kind, error.detail),
        Fault::Broken(_, why) => format!("broken: {why}"),
    });
    (told, said)
}

#[tokio::test]
async fn a_socks_proxy_is_asked_to_relay_and_says_where() {
    let granted = [&[5, 2, 1, 0][..], &[5, 0, 0, 1, 192, 0, 2, 1, 1, 0]].concat();
    let (told, said) = associated(Some(login()), &granted).await;
    assert_eq!(told.unwrap(), "192.0.2.1:256");
    let asked = [
        &[5, 2, 0, 2][..],
        b"\x01\x02me\x05pa:ss",
        &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(said, asked.concat());
    let mapped = [
        &[5, 0, 5, 0, 0, 4][..],
        &[0; 10],
        &[255, 255, 127, 0, 0, 1, 0, 53],
    ];
    assert_eq!(
        associated(None, &mapped.concat()).await.0.unwrap(),
        "127.0.0.1:53"
    );
    for (answer, told) in [
        (
            &[5, 0, 5, 7, 0, 1][..],
            "connection_refused via hop: UDP ASSOCIATE was answered with reply 7: it does not do that",
        ),
        (
            &[5, 0, 5, 0, 0, 1, 127, 0, 0, 1, 0, 0],
            "broken: its reply does not say where datagrams go",
        ),
        (
            &[5, 0, 5, 0, 0, 3, 1, b'x', 0, 1],
            "broken: its reply does not say where datagrams go",
        ),
        (
            &[5, 0, 5, 0, 0, 1, 127],
            "broken: it closed the connection instead of an answer",
        ),
    ] {
        assert_eq!(associated(None, answer).await.0.unwrap_err(), told);
    }
}

#[test]
fn what_stands_before_a_datagram() {
    let address = |text: &str| TargetAddr::parse(text, std::path::Path::new("/")).unwrap();
    let header = |text: &str| socks5::header(&address(text)).unwrap();
    assert_eq!(header("127.0.0.1:53"), [0, 0, 0, 1, 127, 0, 0, 1, 0, 53]);
    assert_eq!(header("a.test:256"), b"\0\0\0\x03\x06a.test\x01\0");
    for to in ["127.0.0.1:53", "[2001:db8::1]:53"] {
        let whole = [&header(to)[..], b"data"].concat();
        let (from, data) = socks5::read(&whole).unwrap();
        assert_eq!(
            (from.unwrap().to_string().as_str(), data),
            (to, &b"data"[..])
        );
        for cut in 0..whole.len() - 4 {
            assert!(socks5::read(&whole[..cut]).is_none(), "{to}: {cut}");
        }
        assert_eq!(socks5::read(&whole[..whole.len() - 4]).unwrap().1, b"");
        // A fragment, and what is no header.
        assert!(socks5::read(&[&[0, 0, 1], &whole[3..]].concat()).is_none());
        assert!(socks5::read(&[&[1, 0, 0], &whole[3..]].concat()).is_none());
    }
    let named = header("a.test:256");
    assert_eq!(socks5::read(&named), Some((Err(256), &b""[..])));
    assert!(socks5::read(&named[..named.len() - 1]).is_none());
    assert!(socks5::read(&[0, 0, 0, 9, 1, 1, 1, 1, 1, 1]).is_none());
}

proptest::proptest! {
    #[test]
    fn no_datagram_makes_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = socks5::read(&bytes);
        let _ = socks5::read(&[&[0, 0, 0, 3], &bytes[..]].concat());
    }
}
