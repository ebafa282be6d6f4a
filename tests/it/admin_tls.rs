//! `[admin] tls`: the API over HTTPS, who may call by certificate, and that it comes and goes with a swap.

use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::kit::authority::Authority;
use crate::kit::process::spawn;
use crate::kit::tls::{self, Client, Pair};
use crate::kit::{Call, Conn, Gate, Response, contract, free_port, until};

const SITE: &str = "[http.a]\nlisten = \"127.0.0.1:0\"\nrespond = \"a\"\n";

/// A gate with everything that a certificate needs in its folder.
fn gate(ours: &Authority, callers: &tls::Authority) -> Gate {
    let issued = ours.issue(&["localhost", "127.0.0.1"]);
    Gate::setup()
        .file("admin.crt", issued.cert)
        .file("admin.key", issued.key)
        .file("ours.pem", ours.pem())
        .file("callers.pem", callers.cert.clone())
        .start(SITE)
}

/// A document whose `[admin]` has these lines too.
fn document(gate: &Gate, lines: &str) -> String {
    let document = gate.document(SITE);
    document.replacen("[admin]\n", &format!("[admin]\n{lines}\n"), 1)
}

const PAIR: &str = "tls = { cert = \"admin.crt\", key = \"admin.key\" }";
const BOTH: &str =
    "tls = { cert = \"admin.crt\", key = \"admin.key\", client_ca = \"callers.pem\" }";

fn over(client: &Client, to: SocketAddr, call: &Call) -> std::io::Result<Response> {
    let mut conn = client.open(to, "127.0.0.1")?;
    exchange(&mut conn, to, call, false)
}

fn exchange<S: std::io::Read + std::io::Write>(
    conn: &mut Conn<S>,
    to: SocketAddr,
    call: &Call,
    keep: bool,
) -> std::io::Result<Response> {
    conn.send(call.bytes(to, keep))?;
    let answer = conn.response_to(call.method())?;
    let kind = answer.header("content-type");
    contract::check(
        call.method(),
        call.target(),
        answer.status,
        kind,
        &answer.body,
    );
    Ok(answer)
}

#[test]
fn it_comes_and_goes_with_a_swap_and_whoever_asked_for_it_is_answered() {
    let (ours, callers) = (Authority::new(), tls::Authority::new("callers"));
    let gate = gate(&ours, &callers);
    let to = gate.base.admin;
    let mut old = Conn::open(to).unwrap();
    let mut idle = Conn::open(to).unwrap();
    assert_eq!(
        exchange(&mut idle, to, &Call::get("/livez"), true)
            .unwrap()
            .status,
        200
    );

    let call = Call::post("/reload").toml(&document(&gate, &format!("token = \"s3cret\"\n{PAIR}")));
    let answer = exchange(&mut old, to, &call, true).unwrap();
    assert_eq!(
        (answer.status, &answer.json()["outcome"]),
        (200, &"committed".into())
    );
    // Those from before are told to end; a new one in cleartext gets no answer.
    assert!(idle.closed());
    assert!(Call::get("/livez").try_send(to).is_err());

    let client = Client::trusting(&ours.pem());
    for versions in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let conn = Client::versions(&[versions]).open(to, "127.0.0.1").unwrap();
        assert_eq!(conn.version(), versions.version);
    }
    let status = |call: Call| over(&client, to, &call).unwrap().status;
    assert_eq!(status(Call::get("/livez")), 200);
    assert_eq!(status(Call::get("/now")), 401);
    let token = |call: Call| call.header("authorization", "Bearer s3cret");
    assert_eq!(status(token(Call::get("/now"))), 200);
    // Pages: this very address over https is ours, the same over http is another.
    let own = |scheme: &str| token(Call::get("/now")).header("origin", &format!("{scheme}://{to}"));
    assert_eq!(status(own("https")), 200);
    assert_eq!(status(own("http")), 403);
    // It is among the certificates that are looked after.
    let list = over(&client, to, &token(Call::get("/certificates")))
        .unwrap()
        .json();
    assert_eq!(list["certificates"][0]["servers"][0], "[admin]", "{list}");
    // A key is a path here, so nothing is secret; with the text it is.
    let now = over(&client, to, &token(Call::get("/now/admin")))
        .unwrap()
        .json();
    assert_eq!(now["tls"]["key"], "admin.key", "{now}");

    // A pair that does not fit: refused at its place, and nothing changes.
    std::fs::write(
        gate.dir.path().join("other.key"),
        Pair::new(&["x.test"]).key,
    )
    .unwrap();
    for (lines, pointer) in [
        (
            "tls = { cert = \"admin.crt\", key = \"other.key\" }",
            "/admin/tls/key",
        ),
        (
            "tls = { cert = \"gone.crt\", key = \"admin.key\" }",
            "/admin/tls/cert",
        ),
        (
            "tls = { cert = \"admin.crt\", key = \"admin.key\", client_ca = \"admin.key\" }",
            "/admin/tls/client_ca",
        ),
    ] {
        let call = Call::post("/reload").toml(&document(&gate, lines));
        let refused = over(&client, to, &token(call)).unwrap();
        assert_eq!(refused.status, 409, "{}", refused.text());
        assert_eq!(
            refused.json()["errors"][0]["pointer"],
            pointer,
            "{}",
            refused.text()
        );
    }
    assert_eq!(status(token(Call::get("/now"))), 200);

    // What is wrong without a look at any file.
    let open = document(&gate, PAIR).replacen("127.0.0.1", "0.0.0.0", 1);
    let bare = document(&gate, "tls = { cert = \"admin.crt\" }");
    for (text, pointer) in [(open, "/admin/listen"), (bare, "/admin/tls")] {
        let refused = over(&client, to, &token(Call::post("/adapt").toml(&text))).unwrap();
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert_eq!(refused.json()["errors"][0]["pointer"], pointer);
    }

    // Back to cleartext, asked for over TLS.
    let mut conn = client.open(to, "127.0.0.1").unwrap();
    let call = token(Call::post("/reload").toml(&document(&gate, "")));
    let answer = exchange(&mut conn, to, &call, true).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    gate.call(Call::get("/now")).expect(200);
    assert!(client.open(to, "127.0.0.1").is_err());
}

#[test]
fn a_certificate_is_the_right_to_call_and_its_subject_is_who_asked() {
    let (ours, callers) = (Authority::new(), tls::Authority::new("callers"));
    let gate = gate(&ours, &callers);
    let to = gate.base.admin;
    gate.call(Call::post("/reload").toml(&document(&gate, PAIR)))
        .expect(200);
    let nobody = Client::trusting(&ours.pem());
    let mut early = nobody.open(to, "127.0.0.1").unwrap();
    let answer = over(
        &nobody,
        to,
        &Call::post("/reload").toml(&document(&gate, BOTH)),
    )
    .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());

    // A connection from before has shown nothing, and is not asked any more.
    assert!(exchange(&mut early, to, &Call::get("/now"), true).is_err());
    // None, and one that somebody else has signed.
    let stranger = tls::Authority::new("callers").client("ops");
    for client in [nobody.clone(), nobody.clone().showing(&stranger)] {
        assert!(over(&client, to, &Call::get("/livez")).is_err());
    }
    let ops = nobody.clone().showing(&callers.client("ops"));
    let call = Call::post("/reload").toml(&format!(
        "{}# another\n",
        document(&gate, BOTH).replace("\"a\"", "\"b\"")
    ));
    let answer = over(&ops, to, &call).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let swaps = over(&ops, to, &Call::get("/swaps")).unwrap().json();
    let actors: Vec<_> = swaps["swaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["actor"].as_str().unwrap())
        .collect();
    let is_ops = |actor: &&&str| actor.starts_with(r"CN=ops,O=Example\, Inc.@127.0.0.1:");
    assert_eq!(actors.iter().filter(is_ops).count(), 1, "{actors:?}");
}

#[test]
fn a_replaced_certificate_is_taken_over_without_a_swap() {
    let (ours, callers) = (Authority::new(), tls::Authority::new("callers"));
    let gate = gate(&ours, &callers);
    let to = gate.base.admin;
    gate.call(Call::post("/reload").toml(&document(&gate, PAIR)))
        .expect(200);
    let client = Client::trusting(&ours.pem());
    // A client that resumes a session is shown nothing.
    let fresh = || Client::trusting(&ours.pem());
    let shown = || fresh().open(to, "127.0.0.1").unwrap().certificate();
    let before = shown();
    let issued = ours.issue(&["127.0.0.1"]);
    std::fs::write(gate.dir.path().join("admin.crt"), &issued.cert).unwrap();
    std::fs::write(gate.dir.path().join("admin.key"), &issued.key).unwrap();
    let answer = over(&client, to, &Call::post("/certificates/refresh")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_ne!(shown(), before);
    // The same by the watch, without being asked.
    let (before, issued) = (shown(), ours.issue(&["127.0.0.1"]));
    std::fs::write(gate.dir.path().join("admin.crt"), &issued.cert).unwrap();
    std::fs::write(gate.dir.path().join("admin.key"), &issued.key).unwrap();
    until("the new certificate", || (shown() != before).then_some(()));
}

#[test]
fn the_command_line_speaks_it_from_the_start() {
    let (ours, callers) = (Authority::new(), tls::Authority::new("callers"));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (issued, ops) = (
        ours.issue(&["localhost", "127.0.0.1"]),
        callers.client("ops"),
    );
    for (name, text) in [
        ("admin.crt", issued.cert),
        ("admin.key", issued.key),
        ("ours.pem", ours.pem()),
        ("callers.pem", callers.cert.clone()),
        ("ops.crt", ops.cert),
        ("ops.key", ops.key),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let (admin, state) = (free_port(), at("state"));
    let config = at("evergate.toml");
    std::fs::write(
        &config,
        format!("[admin]\nlisten = \"0.0.0.0:{admin}\"\n{BOTH}\n[runtime]\nstate_dir = \"{state}\"\n{SITE}"),
    )
    .unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_evergate"));
    run.args(["run", "-c", &config]);
    let (mut child, output) = spawn(run, dir.path());
    let url = format!("https://localhost:{admin}");
    let ask = |verb: &str, more: &[&str]| -> Output {
        Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args([verb, "--admin", &url])
            .args(more)
            .output()
            .unwrap()
    };
    let (ca, cert, key) = (at("ours.pem"), at("ops.crt"), at("ops.key"));
    let all = ["--ca", &ca, "--cert", &cert, "--key", &key];
    let answered = until("the API to answer", || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("it ended with {status}: {}", output.lock().unwrap());
        }
        let answer = ask("status", &all);
        answer.status.success().then_some(answer)
    });
    assert!(String::from_utf8_lossy(&answered.stdout).contains("generation"));
    assert!(ask("now", &all).status.success());
    // Without a certificate, without its CA, and with a file that is not there.
    let missing = at("missing");
    for (more, says) in [
        (&["--ca", &ca][..], "no answer"),
        (&["--cert", &cert, "--key", &key], "no TLS with"),
        (&["--ca", &missing], "missing"),
    ] {
        let answer = ask("status", more);
        let error = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert_eq!(answer.status.code(), Some(7), "{error}");
        assert!(error.contains(says), "{error}");
    }
    let stopped = Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["stop", "--wait", "drained"])
        .envs([
            ("EVERGATE_ADMIN", &url),
            ("EVERGATE_CA", &ca),
            ("EVERGATE_CERT", &cert),
            ("EVERGATE_KEY", &key),
        ])
        .output()
        .unwrap();
    assert!(
        stopped.status.success(),
        "{}",
        String::from_utf8_lossy(&stopped.stderr)
    );
    assert_eq!(
        until("the end", || child.try_wait().unwrap()).code(),
        Some(0)
    );
}
