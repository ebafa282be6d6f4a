//! Filters: who says which, and what each refuses.

use std::net::SocketAddr;

use crate::kit::{Conn, Gate, free_port, get};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A server whose lines are `server`, with what stands beside it in `rest`.
pub(crate) fn gate(server: &str, rest: &str) -> (Gate, SocketAddr) {
    let to = local(free_port());
    let text = format!("[http.web]\nlisten = \"{to}\"\n{server}\n{rest}\n");
    (Gate::start(&text), to)
}

#[test]
fn the_nearest_filter_wins() {
    let route = |name: &str, lines: &str| {
        format!("[[http.web.routes]]\nmatch.path = \"/{name}\"\nrespond = \"{name}\"\n{lines}\n")
    };
    let rest = [
        route("inherits", ""),
        route("own", "deny = \"10.0.0.0/8\""),
        route("off", "deny = false"),
        route("uses", "deny = false\nuse = \"here\""),
        route("last", "deny = false\nuse = [\"here\", \"elsewhere\"]"),
        "[filters.here]\nallow = \"127.0.0.0/8\"".into(),
        "[filters.elsewhere]\nallow = \"192.0.2.0/24\"".into(),
    ]
    .join("\n");
    let (_gate, to) = gate("respond = \"rest\"\ndeny = \"127.0.0.1\"", &rest);
    for (path, status) in [
        ("/", 403),
        ("/inherits", 403),
        ("/own", 200),
        ("/off", 200),
        ("/uses", 200),
        ("/last", 403),
    ] {
        assert_eq!(get(to, "x", path).status, status, "{path}");
    }
}

#[test]
fn a_refused_request_leaves_its_connection_in_order() {
    let (_gate, to) = gate("respond = \"ok\"\ndeny = \"127.0.0.1\"", "");
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..3 {
        let answer = conn
            .exchange("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
            .unwrap();
        assert_eq!(answer.status, 403);
    }
}

#[test]
fn body_limits_come_from_filters_too() {
    let rest = "[[http.web.routes]]\nmatch.path = \"/small\"\nrespond = \"\"\nuse = \"small\"\n\
                [filters.small]\nbody_limit = \"2B\"\n";
    let (_gate, to) = gate("respond = \"\"\nlimits = { body = \"10B\" }", rest);
    let ask = |path: &str, bytes: usize| {
        let body = "x".repeat(bytes);
        Conn::open(to)
            .unwrap()
            .exchange(format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n{body}"
            ))
            .unwrap()
            .status
    };
    assert_eq!((ask("/", 10), ask("/", 11)), (200, 413));
    assert_eq!((ask("/small", 2), ask("/small", 3)), (200, 413));
}
