//! Filters that change requests and responses: `headers`, `rewrite`, `cors`, and the `error_pages` of a server.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use crate::kit::load::{Load, Shape};
use crate::kit::{Call, Conn, Gate, Origin, Response, free_port, get, h2c};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A gate before an origin; `ORIGIN` in `lines` is its address.
fn before(lines: &str) -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let lines = lines.replace("ORIGIN", &origin.addr.to_string());
    let gate = Gate::start(&format!("[http.web]\nlisten = \"{to}\"\n{lines}\n"));
    (gate, origin, to)
}

fn ask(to: SocketAddr, line: &str, fields: &str) -> Response {
    let mut conn = Conn::open(to).unwrap();
    conn.send(format!("{line} HTTP/1.1\r\nhost: x.test\r\n{fields}\r\n"))
        .unwrap();
    let method = line.split(' ').next().unwrap();
    conn.response_to(method).unwrap()
}

/// The head that the origin saw, lower case.
fn seen(to: SocketAddr, path: &str, fields: &str) -> String {
    let answer = ask(to, &format!("GET {path}"), fields);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().to_lowercase()
}

/// Every reason why a server with these lines is refused.
fn refused(gate: &Gate, lines: &str) -> String {
    let text = format!("[http.web]\nlisten = \"127.0.0.1:1\"\nrespond = \"\"\n{lines}\n");
    let answer = gate.call(Call::post("/adapt").toml(&gate.document(&text)));
    assert_eq!(answer.0.status, 422, "{lines}: {}", answer.0.text());
    answer.0.text()
}

#[test]
fn fields_of_requests_are_changed_behind_what_the_proxy_does() {
    let (_gate, _origin, to) = before(
        "proxy = \"http://ORIGIN\"\n\
         [http.web.headers.request]\n\
         remove = [\"x-gone\", \"accept\"]\n\
         set = { x-real-ip = \"{client_ip}\", my_name = \"{header.x-v}\", host = \"{header.x-host}\", x-forwarded-host = \"outer\" }\n\
         add = { x-list = [\"1\", \"2\"] }\n",
    );
    let head = seen(
        to,
        "/head",
        "x-gone: 1\r\naccept: */*\r\nx-real-ip: 6.6.6.6\r\nmy_name: evil\r\nx-v: a\tb\r\nx-host: inner.test:81\r\n\
         x-list: 0\r\nconnection: x-list, x-real-ip\r\n",
    );
    for line in [
        "x-real-ip: 127.0.0.1",
        "my_name: ab",
        "host: inner.test:81",
        "x-forwarded-host: outer",
        "x-list: 1",
        "x-list: 2",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    for gone in ["x-gone", "accept:", "6.6.6.6", "evil", "x-list: 0"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    // What makes no host changes none.
    let head = seen(to, "/head", "x-host: a b\r\n");
    assert!(head.contains("\r\nhost: x.test\r\n"), "{head}");
}

#[test]
fn a_host_that_is_set_counts_more_than_host_header() {
    for host_header in ["preserve", "upstream", "fixed.test"] {
        let (_gate, _origin, to) = before(&format!(
            "proxy = {{ upstream = \"http://ORIGIN\", host_header = \"{host_header}\" }}\n\
             headers = {{ request = {{ set = {{ host = \"set.test\" }} }} }}\n"
        ));
        let head = seen(to, "/head", "");
        assert!(
            head.contains("\r\nhost: set.test\r\n"),
            "{host_header}: {head}"
        );
    }
}

#[test]
fn fields_of_every_response_are_changed_and_layers_add_up() {
    let route = |name: &str, lines: &str| {
        format!("[[http.web.routes]]\nmatch.path = \"/{name}*\"\n{lines}\n")
    };
    let layer = |value: &str| {
        format!(
            "headers = {{ response = {{ set = {{ x-who = \"{value}\" }}, add = {{ x-all = \"{value}\" }} }} }}"
        )
    };
    let lines = [
        "respond = \"rest\"".to_owned(),
        "use = \"set\"".to_owned(),
        layer("server"),
        route(
            "own",
            &format!("respond = \"\"\n{}", layer("route {path} {header.x-v}")),
        ),
        route("off", "respond = \"\"\nheaders = false"),
        route("denied", "respond = \"\"\ndeny = \"127.0.0.1\""),
        route("down", "proxy = \"http://127.0.0.1:1\""),
        route(
            "origin",
            "proxy = \"http://ORIGIN\"\nheaders = { response = { remove = [\"x-origin\", \"set-cookie\"] } }",
        ),
        format!("[filters.set]\n{}", layer("set")),
    ];
    let (_gate, _origin, to) = before(&lines.join("\n"));
    let all = |answer: &Response| answer.head.all("x-all").join(" ");
    let who = |answer: &Response| answer.header("x-who").unwrap_or("none").to_owned();
    let check = |path: &str, status: u16, who_is: &str, all_is: &str| {
        let answer = ask(to, &format!("GET {path}"), "x-v: v\r\n");
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(
            (who(&answer).as_str(), all(&answer).as_str()),
            (who_is, all_is),
            "{path}"
        );
        answer
    };
    check("/", 200, "server", "set server");
    check("/own", 200, "route /own v", "set server route /own v");
    check("/off", 200, "none", "");
    check("/denied", 403, "server", "set server");
    check("/down", 502, "server", "set server");
    let answer = check("/origin/fields", 200, "server", "set server");
    assert!(answer.header("x-origin").is_none() && answer.header("set-cookie").is_none());
    assert!(answer.header("x-end").is_some());
}

#[test]
fn what_can_not_be_is_refused() {
    let gate = Gate::start("");
    for (lines, reason) in [
        (
            "headers = { request = { set = { content-length = \"1\" } } }",
            "follows from the body",
        ),
        (
            "headers = { response = { remove = \"connection\" } }",
            "follows from the body",
        ),
        (
            "headers = { response = { add = { transfer-encoding = \"chunked\" } } }",
            "follows from the body",
        ),
        (
            "headers = { request = { set = { \"a b\" = \"1\" } } }",
            "not the name of a header",
        ),
        (
            "headers = { request = { set = { a = \"1\\n2\" } } }",
            "cannot hold line breaks",
        ),
        (
            "headers = { request = { set = { host = \"a b\" } } }",
            "not a value of `Host`",
        ),
        (
            "headers = { request = { remove = \"host\" } }",
            "needs its `host`",
        ),
        (
            "headers = { request = { add = { host = \"a\" } } }",
            "one `host`",
        ),
        (
            "headers = { request = { set = { x-a = \"1\", X-A = \"2\" } } }",
            "set twice",
        ),
        ("rewrite = {}", "says nothing"),
        (
            "rewrite = { path = \"/a\", add_prefix = \"/b\" }",
            "more than one thing",
        ),
        ("rewrite = { path = \"a\" }", "begins with `/`"),
        ("rewrite = { path = \"/a/../b\" }", "dot segment"),
        ("rewrite = { regex = \"a\" }", "nothing without each other"),
        (
            "rewrite = { regex = \"(a\", to = \"/\" }",
            "bad regular expression",
        ),
        ("rewrite = { regex = \"a\", to = \"/$1\" }", "no group `1`"),
        ("rewrite = { strip_prefix = \"/\" }", "not a prefix"),
        ("cors = {}", "needs `origins`"),
        (
            "cors = { origins = \"*\", credentials = true }",
            "any page could act",
        ),
        ("cors = \"example.com\"", "not an origin"),
        (
            "cors = { origins = \"*\", methods = \"G T\" }",
            "not a method",
        ),
        ("compress = []", "empty list"),
        ("compress = [\"br\", \"br\"]", "listed twice"),
        ("compress = \"deflate\"", "not one of"),
        (
            "error_pages = { 200 = \"a.html\" }",
            "not the status of an error",
        ),
        ("error_pages = { 404 = \"\" }", "a path has a name"),
    ] {
        let text = refused(&gate, lines);
        assert!(text.contains(reason), "{lines}: {text}");
    }
}

#[test]
fn rewrites_lead_to_other_paths_upstream() {
    let route = |lines: &str| format!("[[http.web.routes]]\n{lines}\n");
    let lines = [
        "proxy = \"http://ORIGIN/base\"".to_owned(),
        route(
            "match.path = \"/api/*\"\nproxy = \"http://ORIGIN\"\nrewrite = { strip_prefix = \"/api\" }",
        ),
        route(
            "match.path = \"/u/*\"\nproxy = \"http://ORIGIN\"\nrewrite = { regex = '^/u/([^/]+)$', to = '/head?id=$1' }",
        ),
        route(
            "match.path = \"/v/*\"\nproxy = \"http://ORIGIN\"\nrewrite = { path = \"/x/{header.x-v}/head\" }",
        ),
        route(
            "match.path = \"/say/*\"\nrespond = \"{path} {query} {query.a} {uri}\"\nrewrite = { path = \"/said?a=1\" }",
        ),
    ];
    let (_gate, _origin, to) = before(&lines.join("\n"));
    let line = |path: &str, fields: &str| {
        let head = seen(to, path, fields);
        (head.lines().next().unwrap().to_owned(), head)
    };
    let (first, head) = line("/api/a%20b%2f/head?q=%41", "");
    assert_eq!(first, "get /a%20b%2f/head?q=%41 http/1.1");
    assert!(head.contains("\r\nx-forwarded-prefix: /api\r\n"), "{head}");
    // A client's own does not pass.
    let (_, head) = line("/v/x", "x-v: v\r\nx-forwarded-prefix: /evil\r\n");
    assert!(!head.contains("x-forwarded-prefix"), "{head}");
    assert_eq!(line("/u/a%26b?q", "").0, "get /head?id=a%26b http/1.1");
    assert_eq!(
        line("/v/x?q", "x-v: a/../b\r\n").0,
        "get /x/a%2f..%2fb/head?q http/1.1"
    );
    assert_eq!(line("/base/head", "").0, "get /base/base/head http/1.1");
    assert_eq!(ask(to, "GET /v/x", "x-v: ..\r\n").status, 400);
    assert_eq!(get(to, "x", "/say/b?c").text(), "/said a=1 1 /say/b?c");
}

#[test]
fn a_trusted_proxys_prefix_goes_before_ours() {
    let (_gate, _origin, to) = before(
        "proxy = \"http://ORIGIN\"\ntrusted_proxies = \"127.0.0.1\"\nrewrite = { strip_prefix = \"/b\" }\n",
    );
    let head = seen(to, "/b/head", "x-forwarded-prefix: /a\r\n");
    assert!(
        head.contains("\r\nx-forwarded-prefix: /a, /b\r\n"),
        "{head}"
    );
    let head = seen(to, "/c/head", "x-forwarded-prefix: /a\r\n");
    assert!(head.contains("\r\nx-forwarded-prefix: /a\r\n"), "{head}");
}

#[test]
fn rewritten_folders_lead_to_the_path_the_client_knows() {
    let www = tempfile::tempdir().unwrap();
    std::fs::create_dir(www.path().join("sub")).unwrap();
    std::fs::write(www.path().join("index.html"), "root").unwrap();
    std::fs::write(www.path().join("sub/index.html"), "sub").unwrap();
    let root = www.path().display();
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\n\
         [[http.web.routes]]\nmatch.path = \"/site/*\"\nfiles = \"{root}\"\nrewrite = {{ strip_prefix = \"/site\" }}\n\
         [[http.web.routes]]\nmatch.path = \"/help*\"\nfiles = \"{root}\"\nrewrite = {{ path = \"/sub\" }}\n"
    ));
    let location = |path: &str| {
        let answer = get(to, "x", path);
        assert_eq!(answer.status, 308, "{path}");
        answer.header("location").unwrap().to_owned()
    };
    assert_eq!(location("/site?q"), "/site/?q");
    assert_eq!(location("/site/sub"), "/site/sub/");
    assert_eq!(location("/help"), "/help/");
    assert_eq!(get(to, "x", "/site/").text(), "root");
    assert_eq!(get(to, "x", "/site/sub/").text(), "sub");
    // No circle: the slash is there, and what stands behind is served.
    assert_eq!(get(to, "x", "/help/").text(), "sub");
    assert_eq!(get(to, "x", "/site/../etc/passwd").status, 404);
}

#[test]
fn pages_of_other_origins_may_read_what_they_may() {
    let rest = "[[http.web.routes]]\nmatch.path = \"/open\"\nrespond = \"\"\ncors = \"*\"\n\
                [[http.web.routes]]\nmatch.path = \"/denied\"\nrespond = \"\"\ndeny = \"127.0.0.1\"\n";
    let (_gate, origin, to) = before(&format!(
        "proxy = \"http://ORIGIN\"\n\
         headers = {{ response = {{ set = {{ access-control-allow-origin = \"https://upstream.test\", access-control-max-age = \"1\" }} }} }}\n\
         cors = {{ origins = [\"https://app.test\", \"https://*.sub.test\"], methods = [\"GET\", \"PUT\"], credentials = true, \
         expose = [\"x-end\"], max_age = \"10m\" }}\n{rest}"
    ));
    let field = |answer: &Response, name: &str| {
        answer
            .header(&format!("access-control-{name}"))
            .unwrap_or("none")
            .to_owned()
    };
    // A preflight request ends here.
    let preflight = |origin: &str, path: &str| {
        let fields = format!(
            "origin: {origin}\r\naccess-control-request-method: PUT\r\naccess-control-request-headers: x-a, authorization\r\n"
        );
        ask(to, &format!("OPTIONS {path}"), &fields)
    };
    let answer = preflight("https://app.test", "/x");
    assert_eq!((answer.status, origin.requests()), (204, 0));
    assert_eq!(field(&answer, "allow-origin"), "https://app.test");
    assert_eq!(field(&answer, "allow-methods"), "GET, PUT");
    assert_eq!(field(&answer, "allow-headers"), "x-a, authorization");
    assert_eq!(field(&answer, "allow-credentials"), "true");
    assert_eq!(field(&answer, "max-age"), "600");
    assert_eq!(
        answer.head.all("vary"),
        ["access-control-request-headers", "origin"]
    );
    let answer = preflight("https://evil.test", "/x");
    assert_eq!(answer.status, 204);
    assert_eq!(field(&answer, "allow-origin"), "none");
    assert_eq!(field(&answer, "allow-methods"), "none");
    let answer = preflight("https://any.test", "/open");
    assert_eq!(field(&answer, "allow-origin"), "*");
    assert_eq!(field(&answer, "allow-methods"), "GET, HEAD, POST");
    // An OPTIONS that is none goes on.
    assert_eq!(
        ask(to, "OPTIONS /echo", "origin: https://app.test\r\n").status,
        200
    );
    assert_eq!(origin.requests(), 1);

    let from = |origin: &str, path: &str| {
        ask(to, &format!("GET {path}"), &format!("origin: {origin}\r\n"))
    };
    let answer = from("https://a.b.sub.test", "/fields");
    assert_eq!(field(&answer, "allow-origin"), "https://a.b.sub.test");
    assert_eq!(field(&answer, "expose-headers"), "x-end");
    assert_eq!(field(&answer, "max-age"), "none");
    assert_eq!(answer.header("vary"), Some("origin"));
    let answer = from("https://evil.test", "/fields");
    assert_eq!(
        (answer.status, field(&answer, "allow-origin")),
        (200, "none".into())
    );
    let answer = ask(to, "GET /fields", "");
    assert_eq!(
        (answer.header("vary"), field(&answer, "allow-origin")),
        (Some("origin"), "none".into())
    );
    // Pages must be able to read what went wrong.
    let answer = from("https://app.test", "/denied");
    assert_eq!(
        (answer.status, field(&answer, "allow-origin")),
        (403, "https://app.test".into())
    );
    let answer = from("https://app.test", "/empty");
    assert_eq!(
        (answer.status, field(&answer, "allow-origin")),
        (502, "https://app.test".into())
    );
}

#[test]
fn error_pages_stand_for_errors_of_ours() {
    let to = local(free_port());
    let origin = Origin::start("A");
    let document = format!(
        "[http.web]\nlisten = \"{to}\"\nerror_pages = {{ 404 = \"404.html\", \"5xx\" = \"sorry.json\" }}\n\
         headers = {{ response = {{ set = {{ x-all = \"1\" }} }} }}\n\
         [[http.web.routes]]\nmatch.path = \"/down\"\nproxy = \"http://127.0.0.1:1\"\n\
         [[http.web.routes]]\nmatch.path = \"/denied\"\nrespond = \"\"\ndeny = \"127.0.0.1\"\n\
         [[http.web.routes]]\nmatch.path = \"/said\"\nrespond = {{ status = 404, body = \"said\" }}\n\
         [[http.web.routes]]\nmatch.path = \"/status\"\nproxy = \"http://{}\"\n",
        origin.addr
    );
    let gate = Gate::setup()
        .file("404.html", "<p>none")
        .file("sorry.json", "{\"sorry\":true}")
        .start(&document);
    let answer = get(to, "x", "/nothing");
    assert_eq!((answer.status, answer.text().as_str()), (404, "<p>none"));
    assert_eq!(
        answer.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(
        (answer.header("cache-control"), answer.header("x-all")),
        (Some("no-store"), Some("1"))
    );
    let answer = get(to, "x", "/down");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (502, "{\"sorry\":true}")
    );
    assert!(answer.header("proxy-status").is_some());
    assert_eq!(get(to, "x", "/denied").text(), "403 Forbidden\n");
    assert_eq!(get(to, "x", "/said").text(), "said");
    let answer = get(to, "x", "/status?code=404");
    assert_eq!((answer.status, answer.text().as_str()), (404, "status"));
    let answer = ask(to, "HEAD /nothing", "");
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (404, Some("7"))
    );
    let grpc = ask(to, "GET /nothing", "content-type: application/grpc\r\n");
    assert_eq!(grpc.text(), "404 Not Found\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        let uri = format!("http://{to}/nothing");
        let (parts, body, _) = h2c::send(client.stream(), "GET", &uri, "").await.unwrap();
        assert_eq!((parts.status.as_u16(), &body[..]), (404, &b"<p>none"[..]));
    });
    // The same document with another file is another generation.
    std::fs::write(gate.dir.path().join("404.html"), "<p>changed").unwrap();
    gate.reload_ok(&document);
    assert_eq!(get(to, "x", "/nothing").text(), "<p>changed");
    std::fs::remove_file(gate.dir.path().join("404.html")).unwrap();
    let answer = gate.reload(&document);
    answer.problem(409, "not-prepared");
    assert_eq!(answer.pointers(), ["/http/web/error_pages/404"]);
    assert_eq!(get(to, "x", "/nothing").text(), "<p>changed");
}

#[test]
fn all_of_it_over_http2_too() {
    let (_gate, origin, to) = before(
        "proxy = \"http://ORIGIN\"\nrewrite = { strip_prefix = \"/api\" }\n\
         cors = { origins = \"https://app.test\", credentials = true }\n\
         headers = { request = { set = { host = \"{header.x-host}\", x-real-ip = \"{client_ip}\" } }, \
         response = { set = { x-path = \"{path} {uri}\" }, remove = \"x-origin\" } }\n",
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        let ask = async |method: &str, fields: &[(&str, &str)]| {
            let uri = format!("http://{to}/api/a%20b/head?q");
            let mut request = http::Request::builder().method(method).uri(uri);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let mut stream = client.stream();
            stream.ready().await.unwrap();
            let request = request.body(Full::new(Bytes::new())).unwrap();
            let (parts, body) = stream.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body).to_lowercase();
            (parts.status.as_u16(), parts.headers, text)
        };
        let origin_field = ("origin", "https://app.test");
        let (status, headers, seen) = ask("GET", &[origin_field, ("x-host", "inner.test")]).await;
        assert_eq!(status, 200);
        assert!(seen.starts_with("get /a%20b/head?q http/1.1"), "{seen}");
        for line in [
            "host: inner.test",
            "x-real-ip: 127.0.0.1",
            "x-forwarded-prefix: /api",
        ] {
            assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line}: {seen}");
        }
        assert_eq!(headers["access-control-allow-origin"], "https://app.test");
        assert_eq!(headers["access-control-allow-credentials"], "true");
        assert_eq!(headers["x-path"], "/a%20b/head /api/a%20b/head?q");
        assert!(!headers.contains_key("x-origin"));
        let asked = ("access-control-request-method", "POST");
        let (status, headers, _) = ask("OPTIONS", &[origin_field, asked]).await;
        assert_eq!((status, origin.requests()), (204, 1));
        assert_eq!(headers["access-control-allow-methods"], "GET, HEAD, POST");
    });
}

#[test]
fn swaps_change_filters_under_load_and_nothing_fails() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let document = |mark: u64| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}\"\ncompress = [\"gzip\", \"br\"]\n\
             cors = {{ origins = \"https://a{mark}.test\" }}\nrewrite = {{ path = \"/g{mark}?{{query}}\" }}\n\
             headers = {{ request = {{ set = {{ x-mark = \"{mark}\" }} }}, response = {{ set = {{ x-mark = \"{mark} {{path}}\" }} }} }}\n",
            origin.addr
        )
    };
    let gate = Gate::start(&document(0));
    let load = Load::start(Shape::new(to));
    for mark in 1..=10 {
        gate.reload_ok(&document(mark));
        load.raise_floor(mark);
        // Each of what is asked from here on is of one generation, in all its filters.
        let answer = ask(to, "GET /x?q", &format!("origin: https://a{mark}.test\r\n"));
        assert_eq!(
            answer.header("x-mark"),
            Some(format!("{mark} /g{mark}").as_str())
        );
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some(format!("https://a{mark}.test").as_str())
        );
        assert_eq!(answer.text(), format!("A /g{mark}?q"));
        load.wait_more(20);
    }
    load.finish();
}

#[test]
fn a_field_of_a_response_may_tell_what_only_the_response_knows() {
    let (_gate, origin, to) = before(
        "proxy = \"app\"\n\
         headers.response.set = { x-told = \"{status} {upstream} {target} {host}\", x-took = \"{duration_ms}\" }\n\
         [upstreams.app]\n\
         targets = \"ORIGIN\"\n\
         [[http.web.routes]]\n\
         match.path = \"/own\"\n\
         respond = { status = 201 }\n",
    );
    let told = |path: &str| {
        let answer = get(to, "x.test", path);
        let took: f64 = answer.header("x-took").unwrap().parse().unwrap();
        assert!(took > 0.0);
        answer.header("x-told").unwrap().to_owned()
    };
    let target = origin.addr;
    assert_eq!(told("/a"), format!("200 app {target} x.test"));
    assert_eq!(told("/status?code=404"), format!("404 app {target} x.test"));
    assert_eq!(told("/own"), "201   x.test");
}

#[test]
fn a_request_does_not_know_its_response() {
    let gate = Gate::start("");
    for lines in [
        "headers.request.set = { x = \"{status}\" }",
        "headers.response.set = { x = \"{bytes_sent}\" }",
        "rewrite.path = \"/{target}\"",
    ] {
        let why = refused(&gate, lines);
        assert!(why.contains("not known here yet"), "{why}");
    }
}
