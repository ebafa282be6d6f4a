//! What `scripts/fuzz` asks of those who read the answers of proxies.

use std::net::Ipv4Addr;
use std::pin::pin;
use std::task::Waker;

use super::*;
use crate::config::scalar::Secret;

/// A proxy that says this, in pieces of `cut` bytes, whatever it hears, and then ends.
struct Script<'a> {
    rest: &'a [u8],
    cut: usize,
}

impl AsyncRead for Script<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.cut.min(self.rest.len()).min(buf.remaining());
        let (now, rest) = self.rest.split_at(size);
        buf.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a future comes to that never has to wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits for more than the proxy says"),
    }
}

/// What follows the answer, or why there is nothing.
type Outcome = Result<Vec<u8>, (Kind, String)>;

fn told(fault: Fault) -> (Kind, String) {
    match fault {
        Fault::Answered(error) => {
            assert!(error.unsent);
            (error.kind, error.detail)
        }
        Fault::Broken(kind, why) => (kind, why),
    }
}

fn login(choice: u8) -> Option<LoginSpec> {
    (choice & 1 == 1).then(|| LoginSpec {
        user: "user".to_owned(),
        password: Secret::new("password".to_owned()),
    })
}

fn target(choice: u8) -> TargetAddr {
    match choice & 2 {
        0 => TargetAddr::Ip((Ipv4Addr::LOCALHOST, 80).into()),
        _ => TargetAddr::Name("a.test".into(), 443),
    }
}

/// However an answer to CONNECT is cut, it is the same; what follows it is not lost.
pub fn connect_reply(data: &[u8]) {
    let [choice, cut, said @ ..] = data else {
        return;
    };
    let ask = |cut: usize| -> Outcome {
        let mut script = Script { rest: said, cut };
        let (to, login) = (target(*choice), login(*choice));
        let question = Question {
            hop: "proxy",
            to: &to,
            login: login.as_ref(),
            passed: None,
        };
        let asked = at_once(connect::ask(&mut script, question, &mut false));
        let first = asked.map_err(told)?;
        Ok([&first[..], script.rest].concat())
    };
    let whole = ask(usize::MAX);
    assert_eq!(whole, ask(usize::from(*cut).max(1)));
    if let Ok(rest) = whole {
        assert!(said.ends_with(&rest) && said.starts_with(b"HTTP/1."));
        assert!(said[..said.len() - rest.len()].ends_with(b"\r\n\r\n"));
    }
}

/// The same of SOCKS5, of which nothing is read that follows the answer.
pub fn socks_reply(data: &[u8]) {
    /// A choice, a verdict, and a reply with the longest name.
    const MOST: usize = 2 + 2 + 4 + 1 + 255 + 2;
    let [choice, cut, said @ ..] = data else {
        return;
    };
    let ask = |said: &[u8], cut: usize| -> Outcome {
        let mut script = Script { rest: said, cut };
        let (to, login) = (target(*choice), login(*choice));
        let question = Question {
            hop: "proxy",
            to: &to,
            login: login.as_ref(),
            passed: None,
        };
        let asked = at_once(socks5::ask(&mut script, question, &mut false));
        assert!(said.len() - script.rest.len() <= MOST);
        asked.map_err(told)?;
        Ok(script.rest.to_vec())
    };
    let whole = ask(said, usize::MAX);
    assert_eq!(whole, ask(said, usize::from(*cut).max(1)));
    if let Ok(rest) = whole {
        let answer = &said[..said.len() - rest.len()];
        assert_eq!(ask(answer, usize::MAX), Ok(Vec::new()));
    }
}
