//! Routing: hosts, paths, methods, headers, queries, addresses; order; what is answered without an origin.

use std::net::SocketAddr;

use crate::kit::{Conn, Gate, Response, free_port, get, raw};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn serve(rest: &str) -> (Gate, SocketAddr) {
    let to = local(free_port());
    let gate = Gate::start(&rest.replace("LISTEN", &to.to_string()));
    (gate, to)
}

/// A route table with one `respond` for each (name, conditions).
fn table(routes: &[(&str, &str)]) -> String {
    let mut text = "[http.web]\nlisten = \"LISTEN\"\n".to_owned();
    for (name, conditions) in routes {
        text.push_str(&format!(
            "[[http.web.routes]]\nname = \"{name}\"\n{conditions}\nrespond = \"{name}\"\n"
        ));
    }
    text
}

/// Asks with a host and more header lines; the name of the route that answered, or the status.
fn ask(to: SocketAddr, method: &str, host: &str, target: &str, more: &str) -> String {
    let mut conn = Conn::open(to).unwrap();
    conn.send(format!(
        "{method} {target} HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n"
    ))
    .unwrap();
    let answer = conn.response().unwrap();
    if answer.status == 200 {
        answer.text()
    } else {
        answer.status.to_string()
    }
}

#[test]
fn hosts_exact_wildcard_and_regex() {
    let (_gate, to) = serve(&table(&[
        ("exact", "match.host = \"a.example.com\""),
        (
            "list",
            "match.host = [\"b.example.com\", \"c.example.com\"]",
        ),
        ("wild", "match.host = \"*.example.com\""),
        ("regex", "match.host = '~^x[0-9]+\\.test$'"),
    ]));
    for (host, wanted) in [
        ("a.example.com", "exact"),
        ("A.Example.COM", "exact"),
        ("a.example.com:8080", "exact"),
        ("b.example.com", "list"),
        ("c.example.com", "list"),
        ("d.example.com", "wild"),
        ("deep.down.example.com", "wild"),
        ("example.com", "404"),
        ("x42.test", "regex"),
        ("x.test", "404"),
        ("notexample.com", "404"),
    ] {
        assert_eq!(ask(to, "GET", host, "/", ""), wanted, "{host}");
    }
}

#[test]
fn paths_exact_below_prefix_and_regex() {
    let (_gate, to) = serve(&table(&[
        ("exact", "match.path = \"/exact\""),
        ("below", "match.path = \"/below/*\""),
        ("prefix", "match.path = \"/pre*\""),
        ("regex", "match.path = '~^/r[0-9]+$'"),
        ("decoded", "match.path = \"/ä b\""),
    ]));
    for (path, wanted) in [
        ("/exact", "exact"),
        ("/exact?q=1", "exact"),
        ("/exact/", "404"),
        ("/%65xact", "exact"),
        ("/below", "below"),
        ("/below/", "below"),
        ("/below/x/y", "below"),
        ("/belowx", "404"),
        ("/prefix/x", "prefix"),
        ("/pre", "prefix"),
        ("/r12", "regex"),
        ("/r12x", "404"),
        ("/%C3%A4%20b", "decoded"),
        ("/x/../exact", "exact"),
        ("/./exact", "exact"),
        ("/x/%2e%2e/exact", "exact"),
        ("/below%2Fx", "404"),
    ] {
        assert_eq!(ask(to, "GET", "x", path, ""), wanted, "{path}");
    }
}

#[test]
fn methods_headers_cookies_queries_and_addresses() {
    let (_gate, to) = serve(&table(&[
        (
            "method",
            "match.path = \"/m\"\nmatch.method = [\"POST\", \"PUT\"]",
        ),
        (
            "header",
            "match.path = \"/h\"\nmatch.header = { x-canary = \"1\", x-any = \"*\" }",
        ),
        (
            "cookie",
            "match.path = \"/c\"\nmatch.cookie = { stage = \"beta\" }",
        ),
        (
            "query",
            "match.path = \"/q\"\nmatch.query = { debug = \"*\", level = \"~^[0-9]$\" }",
        ),
        (
            "near",
            "match.path = \"/r\"\nmatch.remote = \"127.0.0.0/8\"",
        ),
        ("far", "match.path = \"/f\"\nmatch.remote = \"10.0.0.0/8\""),
        (
            "not",
            "match.path = \"/n/*\"\nmatch.not = { path = \"/n/public/*\" }",
        ),
        ("https", "match.path = \"/s\"\nmatch.scheme = \"https\""),
    ]));
    for (method, target, more, wanted) in [
        ("POST", "/m", "content-length: 0\r\n", "method"),
        ("PUT", "/m", "content-length: 0\r\n", "method"),
        ("GET", "/m", "", "404"),
        ("GET", "/h", "x-canary: 1\r\nx-any: thing\r\n", "header"),
        ("GET", "/h", "x-canary: 2\r\nx-any: thing\r\n", "404"),
        ("GET", "/h", "x-canary: 1\r\n", "404"),
        ("GET", "/c", "cookie: a=b; stage=beta\r\n", "cookie"),
        ("GET", "/c", "cookie: stage=betamax\r\n", "404"),
        ("GET", "/q?debug=&level=3", "", "query"),
        ("GET", "/q?debug=1&level=33", "", "404"),
        ("GET", "/q?level=3", "", "404"),
        ("GET", "/r", "", "near"),
        ("GET", "/f", "", "404"),
        ("GET", "/f", "x-forwarded-for: 10.1.2.3\r\n", "404"),
        ("GET", "/n/private", "", "not"),
        ("GET", "/n/public/x", "", "404"),
        ("GET", "/s", "", "404"),
    ] {
        assert_eq!(
            ask(to, method, "x", target, more),
            wanted,
            "{method} {target} {more}"
        );
    }
}

#[test]
fn the_first_match_wins_and_the_fallback_takes_the_rest() {
    let (_gate, to) = serve(&format!(
        "{}\n",
        table(&[
            ("one", "match.path = \"/a*\""),
            ("two", "match.path = \"/ab\""),
            ("three", "match.path = \"/b\"")
        ])
        .replace(
            "listen = \"LISTEN\"\n",
            "listen = \"LISTEN\"\nrespond = \"rest\"\n"
        )
    ));
    for (path, wanted) in [("/ab", "one"), ("/b", "three"), ("/c", "rest")] {
        assert_eq!(get(to, "x", path).text(), wanted);
    }
}

#[test]
fn disabled_routes_and_servers_are_checked_but_not_there() {
    let other = local(free_port());
    let (gate, to) = serve(&format!(
        "{}[http.off]\nenabled = false\nlisten = \"{other}\"\nrespond = \"off\"\n",
        table(&[
            ("off", "enabled = false\nmatch.path = \"/*\""),
            ("on", "match.path = \"/*\"")
        ])
    ));
    assert_eq!(get(to, "x", "/").text(), "on");
    assert!(raw::refused(other));
    assert_eq!(gate.now().json()["http"]["off"]["enabled"], false);
}

#[test]
fn servers_share_an_address_by_their_hosts() {
    let (_gate, to) = serve(
        "[http.a]\nlisten = \"LISTEN\"\nhosts = \"a.test\"\nrespond = \"a\"\n\
         [http.wild]\nlisten = \"LISTEN\"\nhosts = \"*.test\"\nrespond = \"wild\"\n\
         [http.deep]\nlisten = \"LISTEN\"\nhosts = \"*.deep.test\"\nrespond = \"deep\"\n\
         [http.any]\nlisten = \"LISTEN\"\n[[http.any.routes]]\nmatch.path = \"/x\"\nrespond = \"any\"\n",
    );
    for (host, path, wanted) in [
        ("a.test", "/", "a"),
        ("b.test", "/", "wild"),
        ("x.deep.test", "/", "deep"),
        ("other", "/x", "any"),
        ("other", "/", "404"),
    ] {
        assert_eq!(ask(to, "GET", host, path, ""), wanted, "{host}");
    }
}

#[test]
fn one_connection_may_ask_for_many_hosts() {
    let (_gate, to) = serve(&table(&[
        ("a", "match.host = \"a.test\""),
        ("b", "match.host = \"b.test\""),
    ]));
    let mut conn = Conn::open(to).unwrap();
    for host in ["a", "b", "a"] {
        let answer = conn
            .exchange(format!("GET / HTTP/1.1\r\nhost: {host}.test\r\n\r\n"))
            .unwrap();
        assert_eq!(answer.text(), host);
    }
    // The absolute form wins over Host.
    let answer = conn
        .exchange("GET http://b.test/ HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .unwrap();
    assert_eq!(answer.text(), "b");
}

fn fetch(to: SocketAddr, text: &str) -> Response {
    Conn::open(to).unwrap().exchange(text).unwrap()
}

#[test]
fn respond_templates_are_filled_in() {
    let (_gate, to) = serve(
        "[http.web]\nlisten = \"LISTEN\"\n\
         [[http.web.routes]]\nname = \"tpl\"\nmatch.path = \"/t/*\"\n\
         respond = { status = 418, body = \"{method} {scheme} {host} {path} {query} {uri} {header.x-a} {cookie.c} {query.q} {server} {route} {generation} {client_ip} {{}}\", headers = { x-echo = \"{path}\", content-type = \"text/x-test\" } }\n",
    );
    let answer = fetch(
        to,
        "GET /t/a%20b?q=1&r=2 HTTP/1.1\r\nhost: Some.Host:99\r\nx-a: va\r\ncookie: c=vc\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(answer.status, 418);
    let text = answer.text();
    assert!(text.starts_with("GET http some.host /t/a"), "{text}");
    assert!(
        text.contains("q=1&r=2 /t/a%20b?q=1&r=2 va vc 1 web tpl 1 127.0.0.1 {}"),
        "{text}"
    );
    assert_eq!(answer.header("content-type"), Some("text/x-test"));
    assert!(answer.header("x-echo").unwrap().starts_with("/t/a"));
}

#[test]
fn a_header_template_cannot_be_split() {
    let (_gate, to) = serve(
        "[http.web]\nlisten = \"LISTEN\"\nrespond = { body = \"x\", headers = { x-echo = \"{query.q} {path}\" } }\n",
    );
    let answer = fetch(
        to,
        "GET /a%0d%0aset-cookie:x=1?q=b%0d%0ainjected:1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(answer.header("injected"), None);
    assert_eq!(answer.header("set-cookie"), None);
}

#[test]
fn redirects_are_filled_in() {
    let (_gate, to) = serve(
        "[http.web]\nlisten = \"LISTEN\"\nredirect = \"https://{host}{uri}\"\n\
         [[http.web.routes]]\nmatch.path = \"/old/*\"\nredirect = { to = \"/new{path}\", status = 301 }\n",
    );
    let answer = get(to, "a.test:80", "/x?y=1");
    assert_eq!(
        (answer.status, answer.header("location")),
        (308, Some("https://a.test/x?y=1"))
    );
    let answer = get(to, "a.test", "/old/x");
    assert_eq!(
        (answer.status, answer.header("location")),
        (301, Some("/new/old/x"))
    );
}

#[test]
fn a_file_is_part_of_its_generation() {
    let to = local(free_port());
    let gate = Gate::setup().file("page.html", "<p>hi</p>").start(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = {{ status = 503, file = \"page.html\", headers = {{ retry-after = \"600\" }} }}\n"
    ));
    let answer = get(to, "x", "/");
    assert_eq!((answer.status, answer.text().as_str()), (503, "<p>hi</p>"));
    assert_eq!(answer.header("retry-after"), Some("600"));
    std::fs::remove_file(gate.dir.path().join("page.html")).unwrap();
    assert_eq!(get(to, "x", "/").text(), "<p>hi</p>");
}

#[test]
fn ten_thousand_hosts_all_answer() {
    let count = crate::kit::count(10_000, 1000);
    let routes: String = (0..count)
        .map(|i| format!("[[http.web.routes]]\nmatch.host = \"h{i}.test\"\nrespond = \"{i}\"\n"))
        .collect();
    let (_gate, to) = serve(&format!("[http.web]\nlisten = \"LISTEN\"\n{routes}"));
    let mut conn = Conn::open(to).unwrap();
    for i in (0..count).step_by(count / 100) {
        let answer = conn
            .exchange(format!("GET / HTTP/1.1\r\nhost: h{i}.test\r\n\r\n"))
            .unwrap();
        assert_eq!(answer.text(), i.to_string());
    }
}
