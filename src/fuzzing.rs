//! What the fuzzer calls (`scripts/fuzz`; only built with `--cfg fuzzing`): one function per parser or matcher that reads
//! what strangers send, each with the promise that must hold for every input. They panic where it does not.

use std::borrow::Cow;
use std::fmt::Debug;

use crate::config::Format;
use crate::config::http::{MatchSpec, MethodPattern, PathPattern, TextPattern};
use crate::config::scalar::HostPattern;
use crate::config::template::{Source, Template, Var};
use crate::document::{Context, Document};
use crate::forward::socks::{self, Parsed, v4, v5};
use crate::http::host::Host;
use crate::http::path::Path;
use crate::http::route::{Head, Routes, matches};
use crate::http::websocket::Frames;
use crate::listen::framing::Framing;
use crate::net::copy::Tap as _;
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method};

pub use crate::http::action::files::fuzzing as files;
pub use crate::net::websocket::fuzzing as carrier;
pub use crate::upstream::answers;
pub use crate::upstream::via::fuzzing as via;

/// Hands out the input piece by piece; zeros when it is used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn list<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

/// A document is read or refused; one that is read says the same when its normal form is read again, in each format.
pub fn document(data: &[u8]) {
    let Some((first, text)) = data.split_first() else {
        return;
    };
    const FORMATS: [Format; 3] = [Format::Toml, Format::Json, Format::Yaml];
    let context = Context {
        base: "/nonexistent".into(),
        running: None,
    };
    let format = FORMATS[usize::from(*first) % 3];
    let Ok(parsed) = Document::parse(text, format, &context) else {
        return;
    };
    let running = Context {
        base: "/nonexistent".into(),
        running: Some(&parsed.document),
    };
    for format in FORMATS {
        let text = parsed.document.render(format, false);
        match Document::parse(text.as_bytes(), format, &running) {
            Ok(again) => assert_eq!(again.document.normal, parsed.document.normal, "{text}"),
            Err(refused) => panic!("the normal form was refused: {refused:?}\n{text}"),
        }
    }
}

/// A text with its braces doubled is itself; every text is a template or refused with a reason.
pub fn template(data: &[u8]) {
    struct Empty;
    impl Source for Empty {
        fn var(&self, _: &Var) -> Cow<'_, str> {
            Cow::Borrowed("")
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Template::parse(text) {
        Ok(template) => assert!(template.render(&Empty).len() <= text.len()),
        Err(reasons) => assert!(!reasons.is_empty()),
    }
    let doubled = text.replace('{', "{{").replace('}', "}}");
    match Template::parse(&doubled) {
        Ok(template) => assert_eq!(template.literal(), Some(text)),
        Err(reasons) => panic!("{reasons:?}"),
    }
}

/// No form of a path has a dot segment or a NUL, and what is sent on reads as what was matched.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // As hyper hands it on.
    let Ok(target) = PathAndQuery::try_from(text) else {
        return;
    };
    let Ok(path) = Path::parse(target.path()) else {
        return;
    };
    for form in [&path.decoded, &path.forward] {
        assert!(!form.split('/').any(|segment| matches!(segment, "." | "..")));
        assert!(form.starts_with('/') || form == "*");
    }
    assert!(!path.decoded.contains('\0'));
    match Path::parse(&path.forward) {
        Ok(again) => assert_eq!(again, path),
        Err(error) => panic!("what is sent on is refused: {error}"),
    }
}

/// A host that is taken has no user, no space, no control, and the same name when it is read again.
pub fn host(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    let Ok(host) = Host::parse(value) else {
        return;
    };
    let name = host.name();
    assert!(
        name.bytes()
            .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
    );
    assert!(!name.contains(['@', '/', '\\']));
    let again = HeaderValue::from_str(name)
        .ok()
        .and_then(|value| Host::parse(value).ok());
    assert!(again.is_some_and(|again| again.name() == name));
}

/// The index finds the route that a scan from the first to the last finds.
pub fn matcher(data: &[u8]) {
    const HOSTS: [&str; 7] = [
        "a.test",
        "b.test",
        "x.a.test",
        "y.x.a.test",
        "test",
        "org",
        "",
    ];
    const PATHS: [&str; 9] = [
        "/", "/a", "/a/b", "/a/", "/ab", "/a//b", "*", "/é", "/a/b/c",
    ];
    const METHODS: [Method; 3] = [Method::GET, Method::POST, Method::PUT];
    const VALUES: [&str; 4] = ["", "1", "12", "x"];
    const NAMES: [&str; 2] = ["x-a", "x-b"];

    fn values(from: &mut Choices<'_>) -> Vec<TextPattern> {
        (0..=from.below(2))
            .map(|_| match from.below(3) {
                0 => TextPattern::Any,
                1 => TextPattern::Exact(from.of(&VALUES).to_owned()),
                _ => TextPattern::Prefix(from.of(&VALUES).to_owned()),
            })
            .collect()
    }
    fn spec(from: &mut Choices<'_>, deep: bool) -> MatchSpec {
        MatchSpec {
            host: from.list(2, |from| match from.below(2) {
                0 => HostPattern::Exact(from.of(&HOSTS).to_owned()),
                _ => HostPattern::Below(from.of(&HOSTS).to_owned()),
            }),
            path: from.list(2, |from| {
                let path = from.of(&PATHS).trim_end_matches('*');
                match from.below(3) {
                    0 => PathPattern::Exact(path.to_owned()),
                    1 => PathPattern::Below(path.trim_end_matches('/').to_owned()),
                    _ => PathPattern::Prefix(path.to_owned()),
                }
            }),
            method: from.list(1, |from| MethodPattern::Exact(from.of(&METHODS))),
            header: from.list(1, |from| {
                (HeaderName::from_static(from.of(&NAMES)), values(from))
            }),
            cookie: from.list(1, |from| (from.of(&NAMES).to_owned(), values(from))),
            query: from.list(1, |from| (from.of(&NAMES).to_owned(), values(from))),
            not: (deep && from.below(4) == 0).then(|| Box::new(spec(from, false))),
            ..MatchSpec::default()
        }
    }
    let from = &mut Choices(data);
    let specs = from.list(24, |from| spec(from, true));
    let routes = Routes::new(specs.clone());
    for _ in 0..8 {
        let mut headers = HeaderMap::new();
        for _ in 0..from.below(3) {
            let name = HeaderName::from_static(from.of(&NAMES));
            headers.append(name, HeaderValue::from_static(from.of(&VALUES)));
        }
        let head = Head {
            method: &from.of(&METHODS),
            host: from.of(&HOSTS),
            path: from.of(&PATHS),
            query: from.of(&[None, Some("x-a=1&x-b"), Some("x-b=12&&=")]),
            headers: &headers,
            scheme: crate::config::http::Scheme::Http,
            remote: None,
        };
        let scanned = specs.iter().position(|spec| matches(spec, &head));
        assert_eq!(routes.find(&head), scanned, "{head:?}\n{specs:#?}");
    }
}

/// However the bytes of a connection are cut, the same heads show the same marks.
pub fn framing(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let size = usize::from(*cut).max(1);
    let marks = |size: usize| {
        let mut framing = Framing::default();
        let mut seen = Vec::new();
        for piece in bytes.chunks(size) {
            let mut rest = piece;
            while !rest.is_empty() {
                let taken = framing.follow(rest, |marks| {
                    if seen.last() != Some(&marks) {
                        seen.push(marks);
                    }
                });
                assert!(taken > 0 && taken <= rest.len());
                rest = &rest[taken..];
            }
        }
        seen
    };
    assert_eq!(marks(usize::MAX).last(), marks(size).last());
}

/// However the bytes of a websocket are cut, its frames end at the same places.
pub fn websocket(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let mut whole = Frames::default();
    whole.pass(bytes);
    let mut pieces = Frames::default();
    for piece in bytes.chunks(usize::from(*cut).max(1)) {
        pieces.pass(piece);
    }
    assert_eq!(whole.rest(), pieces.rest());
    assert_eq!(whole.may_close(), pieces.may_close());
    assert_eq!(whole.is_closed(), pieces.is_closed());
}

/// However the bytes of a SOCKS client are cut, each message is found when its last byte has come, is what it is whatever
/// follows, and is no longer than it may be; a datagram's address is the same when it is written and read again.
pub fn socks(data: &[u8]) {
    fn steady<T: PartialEq + Debug, E: PartialEq + Debug>(
        bytes: &[u8],
        parse: impl Fn(&[u8]) -> Parsed<T, E>,
    ) -> usize {
        let whole = parse(bytes);
        let mut length = 0;
        if let Ok(Some((_, size))) = &whole {
            assert!(*size > 0 && *size <= bytes.len() && *size <= socks::MOST);
            length = *size;
            assert_eq!(parse(&bytes[..length]), whole);
        } else if let Ok(None) = &whole {
            assert!(bytes.len() < socks::MOST, "it would be read for ever");
        }
        for end in 0..bytes.len().min(socks::MOST) {
            let part = parse(&bytes[..end]);
            match &whole {
                Ok(Some((_, size))) if end < *size => assert_eq!(part, Ok(None)),
                Ok(None) => assert_eq!(part, Ok(None)),
                Ok(Some(_)) => assert_eq!(part, whole),
                Err(_) => assert!(part == whole || part == Ok(None)),
            }
        }
        length
    }
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    if *first == v4::VERSION {
        steady(data, v4::request);
        return;
    }
    if *first != v5::VERSION {
        datagram(rest);
        return;
    }
    // A conversation: greeting, name and password if they are offered, request.
    let mut said = data;
    let length = steady(said, v5::greeting);
    let Ok(Some((offer, _))) = v5::greeting(said) else {
        return;
    };
    said = &said[length..];
    if offer.password {
        said = &said[steady(said, v5::credentials)..];
    }
    steady(said, v5::request);
}

/// A TLS hello goes where the name leads that rustls would find in it too.
pub fn hello(data: &[u8]) {
    crate::tls::hello::agrees(data);
}

fn datagram(bytes: &[u8]) {
    let Some((v5::To::Address(address), data)) = socks::datagram::read(bytes) else {
        return;
    };
    let mut again = Vec::new();
    socks::datagram::write(address, &mut again);
    assert!(again.len() <= socks::datagram::HEAD);
    again.extend(data);
    let address = std::net::SocketAddr::new(address.ip().to_canonical(), address.port());
    let read = socks::datagram::read(&again);
    assert_eq!(read, Some((v5::To::Address(address), data)));
}
