//! The admin API's guards and its plain reads.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::{Call, Conn, Gate, contract, free_port, get};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn gate() -> (Gate, SocketAddr) {
    let to = local(free_port());
    (
        Gate::start(&format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"one\"\n"
        )),
        to,
    )
}

/// Done when 9, browser-shaped attacks: each is refused, and nothing has changed.
#[test]
fn browser_shaped_attacks_are_refused() {
    let (gate, to) = gate();
    let document = gate.document(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"pwned\"\n"
    ));
    let own = format!("http://{}", gate.base.admin);
    let before = gate.now();
    let post = || Call::post("/reload").toml(&document);
    let attacks = [
        ("a foreign Host", post().header("host", "evil.example"), 403),
        (
            "a foreign Host with our port",
            post().header("host", &format!("evil.example:{}", gate.base.admin.port())),
            403,
        ),
        (
            "a foreign Host on a read",
            Call::get("/now").header("host", "evil.example"),
            403,
        ),
        (
            "a foreign Host on a method nobody serves",
            Call::new("DELETE", "/now").header("host", "evil.example"),
            403,
        ),
        (
            "a foreign Origin",
            post().header("origin", "http://evil.example"),
            403,
        ),
        (
            "a foreign Origin on a read",
            Call::get("/now").header("origin", "http://evil.example"),
            403,
        ),
        (
            "our host on another port as Origin",
            post().header("origin", "http://127.0.0.1:1"),
            403,
        ),
        ("a null Origin", post().header("origin", "null"), 403),
        (
            "a null Origin without a body",
            Call::post("/stop").header("origin", "null"),
            403,
        ),
        (
            "a foreign Origin without a body",
            Call::post("/reload").header("origin", "https://evil.example"),
            403,
        ),
        (
            "cross-site",
            post().header("sec-fetch-site", "cross-site"),
            403,
        ),
        (
            "same-site, another port",
            post().header("sec-fetch-site", "same-site"),
            403,
        ),
        (
            "cross-site without a body",
            Call::post("/stop").header("sec-fetch-site", "cross-site"),
            403,
        ),
        (
            "a form",
            Call::post("/reload").body("application/x-www-form-urlencoded", "a=b"),
            415,
        ),
        (
            "a text form",
            Call::post("/reload").body("text/plain", document.clone()),
            415,
        ),
        (
            "a multipart form",
            Call::post("/reload").body("multipart/form-data; boundary=x", "--x--"),
            415,
        ),
        (
            "a form to stop",
            Call::post("/stop").body("application/x-www-form-urlencoded", "a=b"),
            415,
        ),
        ("a script tag's GET on reload", Call::get("/reload"), 405),
        ("an image's GET on stop", Call::get("/stop"), 405),
        ("GET on adapt", Call::get("/adapt"), 405),
    ];
    for (what, call, status) in attacks {
        let answer = gate.call(call);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{what}"
        );
        assert_eq!(answer.header("access-control-allow-origin"), None, "{what}");
    }
    assert_eq!(gate.now().body, before.body);
    assert_eq!(get(to, "x", "/").text(), "one");
    // Our own page and a tool may.
    for (name, value) in [
        ("origin", own.as_str()),
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-site", "none"),
    ] {
        let answer = gate.call(Call::post("/adapt").header(name, value).toml(&document));
        assert_eq!(answer.status, 200, "{name}: {value}: {}", answer.text());
    }
    for host in [
        format!("localhost:{}", gate.base.admin.port()),
        format!("[::1]:{}", gate.base.admin.port()),
    ] {
        assert_eq!(
            gate.call(Call::get("/now").header("host", &host)).status,
            200,
            "{host}"
        );
    }
}

#[test]
fn a_get_on_a_verb_shows_the_right_curl_line() {
    let (gate, _) = gate();
    for verb in ["/reload", "/adapt", "/stop"] {
        let answer = gate.call(Call::get(verb));
        assert_eq!(answer.header("allow"), Some("POST"));
        let problem = answer.problem(405, "method-not-allowed");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("curl") && detail.contains(verb), "{detail}");
    }
}

#[test]
fn requests_that_are_wrong_in_themselves_get_the_right_status() {
    let (gate, _) = gate();
    let good = gate.document("");
    let cases = [
        (Call::post("/reload?nonsense=1").toml(&good), 400),
        (Call::post("/reload?wait=never").toml(&good), 400),
        (Call::post("/reload?drain_timeout=5").toml(&good), 400),
        (Call::post("/reload?confirm=60s").toml(&good), 422),
        (Call::post("/reload?canary=5&for=30s").toml(&good), 422),
        (Call::post("/reload").toml("[http.web\n"), 400),
        (
            Call::post("/reload").body("application/json", "{\"a\":"),
            400,
        ),
        (
            Call::post("/reload").body("application/yaml", "a: [1, 2\n"),
            400,
        ),
        (Call::post("/reload").body("application/toml", ""), 400),
        (Call::post("/reload").toml("[nonsense]\n"), 422),
        (Call::post("/reload").body("image/png", "x"), 415),
        (Call::get("/nowhere"), 404),
        (Call::get("/swaps/999999"), 404),
        (Call::get("/now/http/nobody"), 404),
    ];
    for (call, status) in cases {
        let what = format!("{call:?}");
        let answer = gate.call(call);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{what}"
        );
    }
    gate.call(Call::post("/reload?confirm=60s").toml(&good))
        .problem(422, "not-supported-yet");
    gate.call(Call::post("/reload?canary=5&for=30s").toml(&good))
        .problem(422, "not-supported-yet");
}

#[test]
fn a_body_over_sixteen_mebibytes_is_refused() {
    let (gate, _) = gate();
    let length = 17_000_000;
    let head = format!(
        "POST /reload HTTP/1.1\r\nhost: {}\r\ncontent-type: application/toml\r\ncontent-length: {length}\r\n\r\n",
        gate.base.admin
    );
    // On its declared length alone, at once, and the connection ends with it.
    let mut conn = Conn::open(gate.base.admin).unwrap();
    let start = Instant::now();
    let answer = conn.exchange(&head).unwrap();
    assert_eq!(answer.status, 413);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(conn.closed());
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    // A client that sends all of it before it looks still gets to read the answer.
    let mut conn = Conn::open(gate.base.admin).unwrap();
    conn.send(&head).unwrap();
    conn.send(vec![b'#'; length]).unwrap();
    assert_eq!(conn.response().unwrap().status, 413);
    // Without a length it is counted.
    let mut conn = Conn::open(gate.base.admin).unwrap();
    conn.send(format!(
        "POST /reload HTTP/1.1\r\nhost: {}\r\ncontent-type: application/toml\r\ntransfer-encoding: chunked\r\n\r\n",
        gate.base.admin
    ))
    .unwrap();
    let chunk = format!("100000\r\n{}\r\n", "#".repeat(0x10_0000));
    for _ in 0..18 {
        // It may have been refused, and the connection closed, before all is sent.
        if conn.send(&chunk).is_err() {
            break;
        }
    }
    if let Ok(answer) = conn.response() {
        assert_eq!(answer.status, 413);
    }
    assert_eq!(gate.now().status, 200);
}

#[test]
fn a_token_is_asked_of_every_call_but_livez() {
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"one\"\n"
    ));
    let with_token = gate
        .document("")
        .replace("[runtime]", "token = \"open sesame\"\n[runtime]");
    gate.call(Call::post("/reload").toml(&with_token))
        .expect(200);
    assert_eq!(gate.call(Call::get("/livez")).status, 200);
    for target in [
        "/now",
        "/status",
        "/swaps",
        "/readyz",
        "/openapi.yaml",
        "/schema.json",
    ] {
        let answer = gate.call(Call::get(target));
        assert_eq!(answer.status, 401, "{target}");
        assert!(
            answer
                .header("www-authenticate")
                .is_some_and(|w| w.starts_with("Bearer")),
            "{target}"
        );
        for wrong in [
            "Bearer open sesam",
            "Bearer ",
            "Basic b3Blbg==",
            "Bearer open sesame2",
        ] {
            assert_eq!(
                gate.call(Call::get(target).header("authorization", wrong))
                    .status,
                401,
                "{target} {wrong}"
            );
        }
        let right = gate.call(Call::get(target).header("authorization", "Bearer open sesame"));
        assert_eq!(right.status, 200, "{target}");
    }
    assert_eq!(gate.call(Call::post("/stop")).status, 401);
}

#[test]
fn a_read_token_learns_nothing_of_environment_and_files() {
    let to = local(free_port());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "hunter2 hunter3\n").unwrap();
    let log = folder.path().join("access.log");
    let gate = Gate::start("");
    let tokens = "token = \"full\"\nread_tokens = { graphs = \"of graphs\" }\n[runtime]";
    let document = |rest: &str| gate.document(rest).replace("[runtime]", tokens);
    gate.call(Call::post("/reload").toml(&document("")))
        .expect(200);
    let adapt = |token: &str, rest: &str| {
        let call = Call::post("/adapt").toml(&document(rest));
        gate.call(call.header("authorization", &format!("Bearer {token}")))
    };
    let path = std::env::var("PATH").unwrap();
    let server = format!("[http.web]\nlisten = \"{to}\"\nrespond = \"\"\n");
    let of_environment = format!("{server}limits.headers = \"${{PATH}}\"\n");
    let of_file = format!("[upstreams.u]\ntargets_file = \"{}\"\n", file.display());
    for (rest, pointer) in [
        (&of_environment, "/http/web/limits/headers"),
        (&of_file, "/upstreams/u/targets_file"),
    ] {
        let refused = adapt("of graphs", rest);
        let problem = refused.problem(422, "invalid-document");
        assert_eq!(problem["errors"][0]["pointer"], pointer);
        assert_eq!(problem["errors"][0]["help"], "use a full token");
        assert!(!refused.text().contains(&path) && !refused.text().contains("hunter"));
    }
    // Who may change everything is told what is wrong, and of a file where.
    adapt("full", &of_environment).problem(422, "invalid-document");
    let refused = adapt("full", &of_file);
    let problem = refused.problem(409, "not-prepared");
    let message = problem["errors"][0]["message"].as_str().unwrap();
    assert!(message.contains("secret:1: "), "{message}");
    assert!(!refused.text().contains("hunter"));
    // An adapt makes no file.
    let access_log = format!("{server}[access_log]\npath = \"{}\"\n", log.display());
    for token in ["of graphs", "full"] {
        adapt(token, &access_log).expect(200);
    }
    assert!(!log.exists());
    let nowhere = access_log.replace("access.log", "none/access.log");
    adapt("full", &nowhere).problem(409, "not-prepared");
    let reload = Call::post("/reload").toml(&document(&access_log));
    gate.call(reload.header("authorization", "Bearer full"))
        .expect(200);
    assert!(log.exists());
    // The file that the process runs by is adapted as before.
    let own = Call::post("/adapt").header("authorization", "Bearer of graphs");
    let own = gate.call(own);
    assert!(own.status == 200 || own.status == 409, "{}", own.text());
}

#[test]
fn tokens_have_names_and_some_may_only_read() {
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"one\"\n"
    ));
    let tokens = "tokens = { ci = \"of ci\" }\nread_tokens = { graphs = \"of graphs\" }\n[runtime]";
    let document = gate.document("").replace("[runtime]", tokens);
    gate.call(Call::post("/reload").toml(&document)).expect(200);
    let with = |token: &str, call: Call| {
        gate.call(call.header("authorization", &format!("Bearer {token}")))
    };
    assert_eq!(gate.call(Call::get("/now")).status, 401);
    let now = with("of graphs", Call::get("/now"));
    assert_eq!(now.json()["admin"]["tokens"]["ci"], "<redacted>");
    assert!(!now.text().contains("of ci") && !now.text().contains("of graphs"));
    assert_eq!(
        with("of graphs", Call::post("/adapt").toml(&document)).status,
        200
    );
    for call in [Call::post("/reload").toml(&document), Call::post("/stop")] {
        let refused = with("of graphs", call);
        assert_eq!(refused.status, 403);
        assert_eq!(refused.json()["type"], "urn:evergate:problem:read-only");
    }
    // What was read may be posted back, with the names it has.
    let mut edited = now.json();
    edited["http"] = json!({});
    let swap = with("of ci", Call::post("/reload").json(&edited)).expect(200);
    let record = with("of graphs", Call::get(&format!("/swaps/{}", swap["swap"])));
    let actor = record.json()["actor"].as_str().map(str::to_owned);
    assert!(
        actor.as_deref().is_some_and(|who| who.starts_with("ci@")),
        "{}",
        record.text()
    );
    assert_eq!(with("of graphs", Call::get("/now")).status, 200);
}

#[test]
fn now_gives_parts_and_defaults() {
    let (gate, to) = gate();
    let part = gate.call(Call::get("/now/http/web"));
    assert_eq!(part.expect(200)["listen"], json!([to.to_string()]));
    assert!(part.header("etag").is_some());
    assert_ne!(part.header("etag"), gate.now().header("etag"));
    let whole = gate.now().json();
    assert!(whole["http"]["web"].get("timeouts").is_none(), "{whole}");
    let filled = gate.call(Call::get("/now?defaults=true")).expect(200);
    assert_eq!(
        filled["http"]["web"]["timeouts"]["header"], "10s",
        "{filled}"
    );
    // Filled in or not, it is the same document.
    let answer = gate.call(Call::post("/reload").json(&filled)).expect(200);
    assert!(
        answer["outcome"] == "committed" || answer["outcome"] == "unchanged",
        "{answer}"
    );
}

#[test]
fn a_read_with_the_right_etag_is_not_modified() {
    let (gate, _) = gate();
    let answer = gate.call(Call::get("/now").header("if-none-match", &gate.etag()));
    assert!(matches!(answer.status, 200 | 304), "{}", answer.status);
}

#[test]
fn status_tells_what_runs() {
    let (gate, to) = gate();
    let status = gate.status();
    assert_eq!(status["generation"], 1);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["generations"][0]["state"], "serving");
    let listener = &status["listeners"][0];
    assert_eq!(
        (&listener["address"], &listener["servers"]),
        (&json!(to.to_string()), &json!(["web"]))
    );
    if let Ok(model) = std::env::var("EVERGATE_TEST_MODEL") {
        assert_eq!(status["model"], json!(model));
    }
    let sockets = listener["sockets"].as_u64().unwrap();
    let one = std::env::var_os("EVERGATE_ONE_SOCKET").is_some() || status["model"] == "shared";
    assert_eq!(sockets, if one { 1 } else { 2 });
    let mut conn = Conn::open(to).unwrap();
    conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let status = gate.wait_status("one connection", |s| s["connections"] == 1);
    assert!(status["requests"].as_u64() >= Some(1), "{status}");
    drop(conn);
    gate.wait_status("no connection", |s| s["connections"] == 0);
}

#[test]
fn swaps_lists_the_newest_first() {
    let (gate, to) = gate();
    let committed = gate.reload_ok(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"two\"\n"
    ));
    gate.call(Call::post("/reload").toml("nonsense = 1\n"));
    let swaps = gate.call(Call::get("/swaps")).expect(200)["swaps"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(swaps.len(), 3, "{swaps:?}");
    assert_eq!(swaps[0]["outcome"], "rejected");
    assert_eq!(swaps[1]["swap"], committed["swap"]);
    assert_eq!(swaps[2]["kind"], "boot");
    let one = gate
        .call(Call::get(&format!("/swaps/{}", committed["swap"])))
        .expect(200);
    assert_eq!(one["generation"], committed["generation"]);
}

#[test]
fn the_admin_api_may_live_on_a_unix_socket() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    let (gate, to) = gate();
    let path = gate.dir.path().join("admin.sock");
    let document = gate
        .document(&format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"two\"\n"
        ))
        .replace(
            &format!("listen = \"{}\"", gate.base.admin),
            &format!("listen = \"unix:{}\"", path.display()),
        );
    assert_eq!(
        gate.call(Call::post("/reload").toml(&document)).expect(200)["outcome"],
        "committed"
    );
    let mut stream = crate::kit::until("the socket", || {
        std::os::unix::net::UnixStream::connect(&path).ok()
    });
    stream
        .write_all(b"GET /now HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

/// As many connections as may be open, none of which ever sends a whole head: the others are served all the same, and
/// whoever has a request in flight keeps its connection.
#[test]
fn half_open_connections_keep_nobody_out() {
    let (gate, _) = gate();
    let document = gate.document("");
    let (now, later) = document.split_at(document.len() / 2);
    let mut slow = Conn::open(gate.base.admin).unwrap();
    slow.send(format!(
        "POST /adapt HTTP/1.1\r\nhost: {}\r\ncontent-type: application/toml\r\ncontent-length: {}\r\n\r\n{now}",
        gate.base.admin,
        document.len()
    ))
    .unwrap();
    let held: Vec<Conn> = (0..300)
        .map(|_| {
            let mut conn = Conn::open(gate.base.admin).unwrap();
            conn.send("GET /li").unwrap();
            conn
        })
        .collect();
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(gate.call(Call::get("/status")).status, 200);
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
    assert_eq!(slow.exchange(later).unwrap().status, 200);
    // The oldest made room.
    assert!(held.into_iter().next().unwrap().closed());
}

/// The end of the process waits for answers, not for requests that may never be sent to their end.
#[test]
fn half_a_request_does_not_delay_the_end() {
    let (mut gate, _) = gate();
    let open = |text: String| {
        let mut conn = Conn::open(gate.base.admin).unwrap();
        conn.send(text).unwrap();
        conn
    };
    let head = format!(
        "POST /reload HTTP/1.1\r\nhost: {}\r\ncontent-type: application/toml\r\ncontent-length: 100\r\n",
        gate.base.admin
    );
    let _strays = [
        open(String::new()),
        open("GET /li".to_owned()),
        open(head.clone()),
        open(format!("{head}\r\n# half of it")),
    ];
    let start = Instant::now();
    let answer = gate
        .call(Call::post("/stop?wait=drained&drain_timeout=1s"))
        .expect(200);
    assert_eq!(answer["outcome"], "stopped", "{answer}");
    assert_eq!(gate.wait().code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

/// Too large a head is refused below the API, so without a body; the contract says so.
#[test]
fn a_head_that_is_too_large_is_refused_as_documented() {
    let (gate, _) = gate();
    let fields: String = (0..101).map(|i| format!("x-{i}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(300_000));
    for (target, field) in [("/now", &fields), ("/livez", &long)] {
        let mut conn = Conn::open(gate.base.admin).unwrap();
        let answer = conn
            .exchange(format!(
                "GET {target} HTTP/1.1\r\nhost: {}\r\n{field}\r\n",
                gate.base.admin
            ))
            .unwrap();
        assert_eq!(answer.status, 431);
        let kind = answer.header("content-type");
        contract::check("GET", target, answer.status, kind, &answer.body);
    }
    assert_eq!(gate.now().status, 200);
}
