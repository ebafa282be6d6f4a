//! Whole configurations of common jobs, run as they are written in `examples/`: only addresses and ports are moved to
//! free local ones. Each test holds its configuration to what it promises.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderMap;
use rustls::pki_types::ServerName;

use crate::auth::bcrypt_of;
use crate::kit::authority::Authority;
use crate::kit::grpc::{Feed, message};
use crate::kit::mortal::Mortal;
use crate::kit::process::{Base, spawn};
use crate::kit::tls::{Client, Tls};
use crate::kit::{Answer, Call, Conn, Gate, Origin, Response, free_port, raw, replaced};

const SITE: &str = include_str!("examples/site.toml");
const GATEWAY: &str = include_str!("examples/gateway.toml");
const SHOP: &str = include_str!("examples/tenants/shop.toml");
const CHAT: &str = include_str!("examples/chat.toml");
const CANARY: &str = include_str!("examples/canary.toml");
const GRPC: &str = include_str!("examples/grpc.toml");
const MAINTENANCE: &str = include_str!("examples/maintenance.toml");

/// Somebody else than 127.0.0.1.
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

/// A running example.
struct Example {
    gate: Gate,
    https: SocketAddr,
    http: SocketAddr,
    client: Client,
    moved: BTreeMap<String, String>,
    /// What is added of our own: the admin address.
    ours: String,
}

impl Example {
    /// Starts `text` with `files` beside it, a certificate for `names`, and the addresses of `targets` moved.
    fn start(
        text: &str,
        names: &[&str],
        targets: &[(&str, SocketAddr)],
        files: &[(&str, &str)],
    ) -> Example {
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (https, http, admin) = (local(), local(), local());
        let mut moved: BTreeMap<String, String> = targets
            .iter()
            .map(|(from, to)| (format!("\"{from}\""), format!("\"{to}\"")))
            .collect();
        moved.insert("\":443\"".to_owned(), format!("\"{https}\""));
        moved.insert("\":80\"".to_owned(), format!("\"{http}\""));
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::new();
        let issued = ca.issue(names);
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("certs/site.crt", &issued.cert);
        write("certs/site.key", &issued.key);
        for (name, text) in files {
            write(name, &put(text, &moved));
        }
        let ours = format!("\n[admin]\nlisten = \"{admin}\"\n");
        write("evergate.toml", &format!("{}{ours}", put(text, &moved)));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"));
        command
            .args(["run", "-c"])
            .arg(dir.path().join("evergate.toml"));
        let (child, output) = spawn(command, dir.path());
        let base = Base {
            admin,
            state_dir: dir.path().join("state"),
            runtime: String::new(),
        };
        let gate = Gate::adopt(child, output, base, dir);
        let client = Client::trusting(&ca.pem());
        Example {
            gate,
            https,
            http,
            client,
            moved,
            ours,
        }
    }

    fn reload(&self, query: &str, text: &str) -> Answer {
        let text = format!("{}{}", put(text, &self.moved), self.ours);
        let answer = self
            .gate
            .call(Call::post(&format!("/reload{query}")).toml(&text));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    fn open(&self, host: &str) -> Conn<Tls> {
        self.client.open(self.https, host).unwrap()
    }

    fn get(&self, host: &str, path: &str, fields: &str) -> Response {
        self.open(host)
            .exchange(request(host, path, fields))
            .unwrap()
    }

    /// As [`Example::get`], from another client address.
    fn get_from(&self, from: IpAddr, host: &str, path: &str) -> Response {
        let stream: TcpStream = Conn::open_from(from, self.https).unwrap().stream;
        let mut conn = self.client.over(stream, host).unwrap();
        conn.exchange(request(host, path, "")).unwrap()
    }

    /// A websocket in which bytes come back.
    fn chat(&self, from: IpAddr, host: &str, path: &str) -> Result<Conn<Tls>, u16> {
        let stream: TcpStream = Conn::open_from(from, self.https).unwrap().stream;
        let mut conn = self.client.over(stream, host).unwrap();
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        conn.send(request(host, path, upgrade)).unwrap();
        match conn.response_head().unwrap().status {
            101 => Ok(conn),
            status => Err(status),
        }
    }
}

fn put(text: &str, moved: &BTreeMap<String, String>) -> String {
    replaced(text, moved.iter().map(|(from, to)| (&**from, &**to)))
}

fn request(host: &str, path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n")
}

/// A masked text frame, which comes back as it went.
const FRAME: &[u8] = b"\x81\x82\x00\x00\x00\x00hi";

fn echoes(conn: &mut Conn<Tls>) -> bool {
    let Ok(()) = conn.send(FRAME) else {
        return false;
    };
    let mut got = Vec::new();
    while got.len() < FRAME.len() {
        match conn.some(FRAME.len() - got.len()) {
            Ok(bytes) if !bytes.is_empty() => got.extend(bytes),
            _ => return false,
        }
    }
    got == FRAME
}

#[test]
fn a_company_site() {
    let mut nodes = ["one", "two", "three"].map(Mortal::start);
    let [one, two, three] = [nodes[0].addr, nodes[1].addr, nodes[2].addr];
    let page = format!(
        "<!doctype html>{}",
        "<p>the page of the app</p>".repeat(200)
    );
    let site = Example::start(
        SITE,
        &["example.com", "www.example.com"],
        &[
            ("10.0.0.1:8080", one),
            ("10.0.0.2:8080", two),
            ("10.0.0.3:8080", three),
        ],
        &[("www/index.html", &page), ("www/assets/app.js", "let app;")],
    );
    // www goes to the bare name, cleartext to https.
    let www = site.get("www.example.com", "/a?b=c", "");
    assert_eq!(www.status, 308);
    assert_eq!(www.header("location"), Some("https://example.com/a?b=c"));
    let plain = raw::get(site.http, "example.com", "/a?b=c");
    assert_eq!(plain.status, 308);
    let secure = format!("https://example.com:{}/a?b=c", site.https.port());
    assert_eq!(plain.header("location"), Some(&*secure));

    // The page for every path the app knows; assets are themselves or nothing; all of it with HSTS.
    let host = "example.com";
    let hsts = Some("max-age=31536000");
    for path in ["/", "/orders/17"] {
        let answer = site.get(host, path, "");
        assert_eq!(
            (answer.status, answer.text()),
            (200, page.clone()),
            "{path}"
        );
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert_eq!(answer.header("strict-transport-security"), hsts);
    }
    let asset = site.get(host, "/assets/app.js", "");
    assert_eq!((asset.status, asset.text()), (200, "let app;".to_owned()));
    assert_eq!(
        asset.header("cache-control"),
        Some("public, max-age=31536000, immutable")
    );
    assert_eq!(asset.header("strict-transport-security"), hsts);
    let missing = site.get(host, "/assets/gone.js", "");
    assert_eq!(
        (missing.status, missing.header("strict-transport-security")),
        (404, hsts)
    );
    for coding in ["zstd", "br", "gzip"] {
        let answer = site.get(host, "/", &format!("accept-encoding: {coding}\r\n"));
        assert_eq!(answer.header("content-encoding"), Some(coding));
        assert!(answer.body.len() < page.len() / 2);
    }

    // A client stays at its node; who is new goes where least is under way.
    let first = site.get(host, "/api/x", "");
    assert_eq!(
        (first.status, first.header("strict-transport-security")),
        (200, hsts)
    );
    let cookie = first
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    assert!(cookie.starts_with("node="), "{cookie}");
    for _ in 0..4 {
        let again = site.get(host, "/api/x", &format!("cookie: {cookie}\r\n"));
        assert_eq!(again.text(), first.text());
    }
    let mut chat = site.chat(OTHER, host, "/api/chat").unwrap();
    assert!(echoes(&mut chat));
    let busy = nodes
        .iter()
        .position(|n| n.requests() > 0 && n.addr == busy_target(&site))
        .unwrap();
    let before = nodes[busy].requests();
    for _ in 0..6 {
        assert_eq!(site.get_from(OTHER, host, "/api/x").status, 200);
    }
    assert_eq!(nodes[busy].requests(), before, "the busy one was asked");
    drop(chat);

    // More than is taken: in size, and in number.
    let upload = "POST /api/up HTTP/1.1\r\nhost: example.com\r\ncontent-length: 10000001\r\n\r\n";
    assert_eq!(site.open(host).exchange(upload).unwrap().status, 413);
    let mut conn = site.open(host);
    let started = Instant::now();
    conn.send(request(host, "/api/x", "").repeat(120)).unwrap();
    let all: Vec<u16> = (0..120).map(|_| conn.response().unwrap().status).collect();
    let passed = all.iter().filter(|status| **status == 200).count();
    assert!(all.contains(&429), "{all:?}");
    let most = 40.0 + 20.0 * started.elapsed().as_secs_f64() + 1.0;
    assert!(
        (20..=most as usize).contains(&passed),
        "{passed} passed, {most} may"
    );
    // Only the API is limited.
    assert_eq!(site.get(host, "/", "").status, 200);

    // A node that is not well gets nothing, and its clients another node.
    nodes[0].kill();
    let down = one.to_string();
    site.gate
        .wait_status("the dead target to be down", |status| {
            health_of(status, "api", &down) == "down"
        });
    for _ in 0..6 {
        assert_eq!(site.get_from(OTHER, host, "/api/x").status, 200);
    }
    nodes[0].revive();
    site.gate.wait_status("it to be back", |status| {
        health_of(status, "api", &down) == "up"
    });
}

/// The target of `api` that has something under way.
fn busy_target(site: &Example) -> SocketAddr {
    let status = site.gate.status();
    let targets = upstream(&status, "api")["targets"]
        .as_array()
        .unwrap()
        .clone();
    let busy = targets
        .iter()
        .find(|t| t["in_flight"].as_u64() > Some(0))
        .unwrap();
    busy["address"].as_str().unwrap().parse().unwrap()
}

fn upstream<'s>(status: &'s serde_json::Value, name: &str) -> &'s serde_json::Value {
    let all = status["upstreams"].as_array().unwrap();
    all.iter().find(|u| u["name"] == name).unwrap()
}

fn health_of(status: &serde_json::Value, name: &str, address: &str) -> String {
    let targets = upstream(status, name)["targets"].as_array().unwrap();
    let target = targets.iter().find(|t| t["address"] == address).unwrap();
    target["health"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_maintenance_page_is_switched_on_by_a_reload() {
    // It is the first route of the site; the office is 127.0.0.2 here.
    let (above, routes) = SITE.split_at(SITE.find("[[http.site.routes]]").unwrap());
    let joined = |maintenance: &str| {
        format!("{above}{maintenance}\n{routes}").replace("\"10.0.0.0/8\"", "\"127.0.0.2/32\"")
    };
    let node = Mortal::start("node");
    let targets = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"].map(|from| (from, node.addr));
    // Three of the same would be an error.
    let one = |text: String| text.replace(", \"10.0.0.2:8080\", \"10.0.0.3:8080\"", "");
    let site = Example::start(
        &one(joined(MAINTENANCE)),
        &["example.com"],
        &targets[..1],
        &[
            ("www/index.html", "the app"),
            ("maintenance.html", "back soon"),
        ],
    );
    let host = "example.com";
    assert_eq!(site.get(host, "/", "").text(), "the app");
    site.reload(
        "",
        &one(joined(
            &MAINTENANCE.replace("enabled   = false", "enabled   = true"),
        )),
    );
    for path in ["/", "/api/x", "/assets/x.js"] {
        let answer = site.get(host, path, "");
        assert_eq!(
            (answer.status, answer.text()),
            (503, "back soon".to_owned()),
            "{path}"
        );
        assert_eq!(answer.header("retry-after"), Some("600"));
        assert_eq!(
            answer.header("content-type"),
            Some("text/html; charset=utf-8")
        );
    }
    // We can still look.
    assert_eq!(site.get_from(OTHER, host, "/").text(), "the app");
    assert_eq!(site.get_from(OTHER, host, "/api/x").text(), "node");
    site.reload("", &one(joined(MAINTENANCE)));
    assert_eq!(site.get(host, "/", "").text(), "the app");
}

#[test]
fn a_gateway_of_tenants() {
    let (shop, staging) = (Origin::start("shop"), Origin::start("staging"));
    let other = Origin::start("other");
    let gateway = Example::start(
        GATEWAY,
        &[
            "shop.example.com",
            "*.shop.example.com",
            "shop.staging.example.com",
        ],
        &[
            ("10.1.0.1:8080", shop.addr),
            ("10.1.0.2:8080", other.addr),
            ("10.1.0.9:8080", staging.addr),
        ],
        &[
            ("tenants/shop.toml", SHOP),
            (
                "staging.htpasswd",
                &format!("tester:{}\n", bcrypt_of("secret")),
            ),
        ],
    );
    let mut tenants = Vec::new();
    for host in ["shop.example.com", "eu.shop.example.com"] {
        let answer = gateway.get(host, "/head", "x-tenant: forged\r\n");
        assert_eq!(answer.status, 200);
        let head = answer.text().to_ascii_lowercase();
        let named: Vec<_> = head
            .lines()
            .filter(|line| line.starts_with("x-tenant:"))
            .collect();
        assert_eq!(named, ["x-tenant: shop"], "{head}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("x-powered-by"), None);
        assert_eq!(answer.header("x-robots-tag"), None);
        tenants.push(answer.header("x-origin").unwrap().to_owned());
    }
    tenants.sort();
    assert_eq!(tenants, ["other", "shop"]);
    let powered = gateway.get("shop.example.com", "/powered", "");
    assert_eq!(
        (powered.status, powered.header("x-powered-by")),
        (200, None)
    );

    let host = "shop.staging.example.com";
    let refused = gateway.get(host, "/head", "");
    assert_eq!(refused.status, 401);
    let challenge = refused.header("www-authenticate").unwrap();
    assert!(
        challenge.starts_with("Basic realm=\"staging\""),
        "{challenge}"
    );
    let pass = base64::engine::general_purpose::STANDARD.encode("tester:secret");
    let answer = gateway.get(host, "/head", &format!("authorization: Basic {pass}\r\n"));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-robots-tag"), Some("noindex"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(
        answer
            .text()
            .to_ascii_lowercase()
            .contains("x-tenant: shop-staging")
    );
    // Cleartext sends them here; who is not known is no tenant.
    assert_eq!(raw::get(gateway.http, host, "/").status, 308);
    assert_eq!(raw::get(gateway.http, "other.example.com", "/").status, 404);
}

#[test]
fn chats_behind_the_gateway() {
    let nodes = ["one", "two", "three"].map(Mortal::start);
    let [one, two, three] = [nodes[0].addr, nodes[1].addr, nodes[2].addr];
    let document = format!("{GATEWAY}\n{CHAT}");
    let chat = Example::start(
        &document,
        &["chat.example.com"],
        &[
            ("10.2.0.1:9000", one),
            ("10.2.0.2:9000", two),
            ("10.2.0.3:9000", three),
        ],
        &[(
            "staging.htpasswd",
            &format!("tester:{}\n", bcrypt_of("secret")),
        )],
    );
    let host = "chat.example.com";
    let us = IpAddr::from([127, 0, 0, 1]);
    let started = Instant::now();
    let mut chats = Vec::new();
    let refused = loop {
        match chat.chat(us, host, "/room") {
            Ok(conn) => chats.push(conn),
            Err(status) => break status,
        }
    };
    assert_eq!(refused, 429);
    // One more for every two seconds that it took.
    let most = 30 + started.elapsed().as_secs() as usize / 2 + 1;
    assert!((30..=most).contains(&chats.len()), "{} chats", chats.len());
    let (first, second) = (nodes[0].requests(), nodes[1].requests());
    assert!(first.abs_diff(second) <= 1, "{first} and {second}");

    // Another target moves nobody, and is the next one to be asked.
    let wider = document.replace(
        "\"10.2.0.2:9000\"]",
        "\"10.2.0.2:9000\", \"10.2.0.3:9000\"]",
    );
    assert_ne!(wider, document);
    chat.reload("?wait=drained", &wider);
    assert!(chats.iter_mut().all(echoes));
    let mut late = chat.chat(OTHER, host, "/room").unwrap();
    assert!(echoes(&mut late));
    assert_eq!(nodes[2].requests(), 1);

    // One that is removed drains its own and no others.
    let narrower = wider.replace("\"10.2.0.1:9000\", ", "");
    assert_ne!(narrower, wider);
    chat.reload("?wait=drained&drain_timeout=1s", &narrower);
    let left = chats
        .iter_mut()
        .filter_map(|conn| echoes(conn).then_some(()))
        .count();
    assert_eq!(
        (left as u64, chats.len() as u64 - left as u64),
        (second, first)
    );
    assert!(echoes(&mut late));
}

#[test]
fn blue_green_and_canary_behind_the_gateway() {
    let nodes = ["blue one", "blue two", "green one", "green two"].map(Mortal::start);
    let document = format!("{GATEWAY}\n{CANARY}");
    let app = Example::start(
        &document,
        &["app.example.com"],
        &[
            ("10.5.0.1:8080", nodes[0].addr),
            ("10.5.0.2:8080", nodes[1].addr),
            ("10.5.1.1:8080", nodes[2].addr),
            ("10.5.1.2:8080", nodes[3].addr),
        ],
        &[(
            "staging.htpasswd",
            &format!("tester:{}\n", bcrypt_of("secret")),
        )],
    );
    let host = "app.example.com";
    let colour = |answer: &Response| answer.text().split(' ').next().unwrap().to_owned();
    let share = |green: u32| {
        let split = format!("blue = {}, green = {green}", 100 - green);
        let text = document.replace("blue = 100, green = 0", &split);
        assert!(green == 0 || text != document);
        app.reload("", &text);
    };
    // Nobody gets it, but those who ask for it by name.
    for _ in 0..20 {
        assert_eq!(colour(&app.get(host, "/", "")), "blue");
    }
    assert_eq!(
        colour(&app.get(host, "/", "x-revision: green\r\n")),
        "green"
    );

    // A share of those who come, each of whom stays where he is.
    share(30);
    let mut seen = BTreeMap::new();
    let mut conn = app.open(host);
    for _ in 0..400 {
        let answer = conn.exchange(request(host, "/", "")).unwrap();
        let cookie = answer.header("set-cookie").unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("revision="), "{cookie}");
        seen.entry(colour(&answer)).or_insert((0, cookie)).0 += 1;
    }
    // 120, and five times its deviation: shares are drawn.
    assert!((74..=166).contains(&seen["green"].0), "{seen:?}");
    let stays = |colour: &str| format!("cookie: {}\r\n", seen[colour].1);
    share(5);
    for _ in 0..20 {
        for name in ["blue", "green"] {
            assert_eq!(colour(&app.get(host, "/", &stays(name))), name);
        }
    }

    // Back: nobody is left there.
    share(0);
    for _ in 0..20 {
        assert_eq!(colour(&app.get(host, "/", &stays("green"))), "blue");
    }
    // And on: all.
    share(100);
    for fields in [String::new(), stays("blue")] {
        assert_eq!(colour(&app.get(host, "/", &fields)), "green");
    }
}

/// A gRPC call that is answered.
struct Running {
    body: h2::RecvStream,
}

async fn begin(client: &SendRequest<Bytes>, method: &str) -> Result<Running, HeaderMap> {
    let request = http::Request::post(format!("https://grpc.example.com{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut send) = client.send_request(request, false).unwrap();
    send.send_data(message(b""), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    if response.headers().contains_key("grpc-status") {
        return Err(response.headers().clone());
    }
    Ok(Running {
        body: response.into_body(),
    })
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        let piece = self.body.data().await?.unwrap();
        self.body
            .flow_control()
            .release_capacity(piece.len())
            .unwrap();
        Some(piece)
    }

    async fn status(mut self) -> String {
        assert!(self.next().await.is_none());
        let trailers = self.body.trailers().await.unwrap().unwrap();
        trailers["grpc-status"].to_str().unwrap().to_owned()
    }
}

#[test]
fn grpc_behind_the_gateway() {
    let feeds = ["one", "two"].map(Feed::start);
    let document = format!("{GATEWAY}\n{GRPC}");
    let grpc = Example::start(
        &document,
        &["grpc.example.com"],
        &[
            ("10.4.0.1:50051", feeds[0].addr),
            ("10.4.0.2:50051", feeds[1].addr),
        ],
        &[(
            "staging.htpasswd",
            &format!("tester:{}\n", bcrypt_of("secret")),
        )],
    );
    let addresses = [feeds[0].addr.to_string(), feeds[1].addr.to_string()];
    grpc.gate.wait_status("the service to be well", |status| {
        addresses
            .iter()
            .all(|address| health_of(status, "grpc", address) == "up")
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connect = async || {
        let config = grpc.client.clone().alpn(&["h2"]).config();
        let stream = tokio::net::TcpStream::connect(grpc.https).await.unwrap();
        let name = ServerName::try_from("grpc.example.com").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        (client, tokio::spawn(connection))
    };
    // As written: calls, balanced one by one over one connection, with their trailers.
    runtime.block_on(async {
        let (client, _driver) = connect().await;
        let mut names = Vec::new();
        for _ in 0..4 {
            let mut call = begin(&client, "/feed.Feed/Get").await.unwrap();
            names.push(call.next().await.unwrap());
            assert_eq!(call.status().await, "0");
        }
        names.sort();
        assert_eq!(
            names,
            [
                message(b"one"),
                message(b"one"),
                message(b"two"),
                message(b"two")
            ]
        );
    });
    assert_eq!(feeds.iter().map(Feed::calls).collect::<Vec<_>>(), [2, 2]);

    // With less patience: a call is ended by it, in gRPC's words, and one that watches is not.
    grpc.reload(
        "",
        &document.replace("timeout   = \"10s\"", "timeout   = \"300ms\""),
    );
    runtime.block_on(async {
        let (client, _driver) = connect().await;
        let mut watch = begin(&client, "/feed.Feed/Watch").await.unwrap();
        assert_eq!(watch.next().await.unwrap(), message(b"first"));
        let late = begin(&client, "/feed.Feed/Slow").await;
        let late = late.err().expect("a slow call ends without an answer");
        assert_eq!(late["grpc-status"], "4");
        feeds.iter().for_each(Feed::release);
        assert_eq!(watch.next().await.unwrap(), message(b"second"));
        assert_eq!(watch.status().await, "0");
    });

    // What says that it is not serving gets no call.
    feeds[0].set_well(false);
    grpc.gate.wait_status("the sick one to be down", |status| {
        health_of(status, "grpc", &addresses[0]) == "down"
    });
    assert!(feeds[0].checks() > 1);
    let before = feeds[0].calls();
    runtime.block_on(async {
        let (client, _driver) = connect().await;
        for _ in 0..4 {
            let mut call = begin(&client, "/feed.Feed/Get").await.unwrap();
            assert_eq!(call.next().await.unwrap(), message(b"two"));
        }
    });
    assert_eq!(feeds[0].calls(), before);
}
