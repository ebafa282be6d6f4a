//! What is said once: a gateway of forty files, `[defaults]`, and values from the environment, seen from outside.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::process::{Base, spawn};
use crate::kit::tls::{Client, Pair};
use crate::kit::{Call, Conn, Gate, Origin, count, free_port, get};

const TENANTS: usize = 40;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A running gateway with a file for each tenant.
struct Gateway {
    gate: Gate,
    https: SocketAddr,
    http: SocketAddr,
    origin: Origin,
}

impl Gateway {
    fn start() -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let (https, http) = (local(free_port()), local(free_port()));
        let pair = Pair::new(&["example.com", "*.example.com"]);
        for folder in ["certs", "tenants"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("certs/all.crt"), &pair.cert).unwrap();
        std::fs::write(dir.path().join("certs/all.key"), &pair.key).unwrap();
        let origin = Origin::start("origin");
        for n in 0..TENANTS {
            let path = dir.path().join(format!("tenants/t{n}.toml"));
            std::fs::write(path, tenant(&origin, n, "one")).unwrap();
        }
        let base = Base {
            admin: local(free_port()),
            state_dir: dir.path().join("state"),
            runtime: String::new(),
        };
        let document = Gateway::document(&base, http);
        let config = dir.path().join("evergate.toml");
        std::fs::write(&config, document).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
        command.args(["run", "-c"]).arg(&config);
        command.env("GATEWAY_HTTPS", https.to_string());
        let (child, output) = spawn(command, dir.path());
        Gateway {
            gate: Gate::adopt(child, output, base, dir),
            https,
            http,
            origin,
        }
    }

    /// The document itself, which names no tenant.
    fn document(base: &Base, http: SocketAddr) -> String {
        base.document(&format!(
            "[defaults.http]\nlisten = \"${{GATEWAY_HTTPS}}\"\n\
             tls = {{ certificates = {{ dir = \"certs\" }}, redirect_http = \"{http}\" }}\n\
             timeouts = {{ header = \"${{GATEWAY_HEADER:-7s}}\" }}\n\n\
             [defaults.upstreams]\npool = {{ idle = 3 }}\n\n\
             [filters.staging]\ndeny = \"127.0.0.0/8\"\n"
        ))
        .replacen(
            "[admin]",
            "include = [\"tenants/*.toml\", \"tenants/*.yaml\"]\n[admin]",
            1,
        )
    }

    fn file(&self, name: &str) -> PathBuf {
        self.gate.dir.path().join("tenants").join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).unwrap();
    }

    /// Reads the file again.
    fn reload(&self) -> crate::kit::Answer {
        self.gate.call(Call::post("/reload"))
    }

    fn who(&self, host: &str) -> String {
        Client::new().get(self.https, host, "/who").text()
    }
}

fn tenant(origin: &Origin, n: usize, version: &str) -> String {
    format!(
        "[http.t{n}]\nhosts = [\"t{n}.example.com\", \"*.t{n}.example.com\"]\nproxy = \"t{n}\"\n\n\
         [[http.t{n}.routes]]\nmatch.path = \"/who\"\nrespond = \"{{server}} {version}\"\n\n\
         [http.t{n}-staging]\nhosts = \"t{n}.staging.example.com\"\nuse = \"staging\"\nproxy = \"t{n}\"\n\n\
         [upstreams.t{n}]\ntargets = [\"{}\"]\n",
        origin.addr
    )
}

fn names(of: &Value) -> Vec<&str> {
    of.as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect()
}

#[test]
fn a_gateway_of_forty_files_serves_and_a_changed_one_changes_its_tenant_alone() {
    let gateway = Gateway::start();
    for n in [0, 7, 39] {
        assert_eq!(
            gateway.who(&format!("t{n}.example.com")),
            format!("t{n} one")
        );
        let redirect = get(gateway.http, &format!("a.t{n}.example.com"), "/x");
        assert_eq!(redirect.status, 308);
        let proxied = Client::new().get(gateway.https, &format!("t{n}.example.com"), "/");
        assert_eq!(proxied.status, 200);
        let staging = format!("t{n}.staging.example.com");
        assert_eq!(Client::new().get(gateway.https, &staging, "/").status, 403);
    }
    assert!(gateway.origin.requests() >= 3);
    let unchanged = gateway.reload().expect(200);
    assert_eq!(unchanged["outcome"], "unchanged", "{unchanged}");

    // Another tenant's connection goes on through it.
    let mut other = Client::new().open(gateway.https, "t3.example.com").unwrap();
    let request = "GET /who HTTP/1.1\r\nhost: t3.example.com\r\n\r\n";
    assert_eq!(other.exchange(request).unwrap().text(), "t3 one");
    gateway.put("t7.toml", &tenant(&gateway.origin, 7, "two"));
    let answer = gateway.reload().expect(200);
    assert_eq!(answer["outcome"], "committed");
    assert_eq!(
        names(&answer["plan"]["servers"]["changed"]),
        ["t7"],
        "{answer}"
    );
    assert_eq!(answer["plan"]["upstreams"]["changed"], json!([]));
    assert_eq!(answer["plan"]["targets"]["dropped"], 0);
    let changes: Vec<_> = answer["plan"]["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["change"].as_str().unwrap())
        .collect();
    assert!(
        changes.iter().all(|c| matches!(*c, "keep" | "update")),
        "{answer}"
    );
    assert_eq!(gateway.who("t7.example.com"), "t7 two");
    assert_eq!(other.exchange(request).unwrap().text(), "t3 one");

    // A tenant leaves, another comes in another format.
    std::fs::remove_file(gateway.file("t8.toml")).unwrap();
    gateway.put(
        "new.yaml",
        "http:\n  new:\n    hosts: new.example.com\n    respond: \"{server}\"\n",
    );
    let answer = gateway.reload().expect(200);
    assert_eq!(
        names(&answer["plan"]["servers"]["removed"]),
        [
            "t8",
            "t8-staging",
            "t8-staging.tls.redirect_http",
            "t8.tls.redirect_http"
        ]
    );
    assert_eq!(gateway.who("new.example.com"), "new");
}

#[test]
fn a_wrong_file_of_many_is_named_and_nothing_is_touched() {
    let gateway = Gateway::start();
    let good = tenant(&gateway.origin, 7, "two");
    gateway.put("t7.toml", &good.replace("hosts = [", "hots = ["));
    let problem = gateway.reload().problem(422, "invalid-document");
    let error = &problem["errors"][0];
    assert_eq!(
        error["file"],
        gateway.file("t7.toml").to_str().unwrap(),
        "{problem}"
    );
    assert_eq!((&error["line"], &error["column"]), (&json!(2), &json!(1)));
    assert_eq!(error["pointer"], "/http/t7/hots");

    // Drawn by the command line in its own text, asked for from the process and without one.
    let admin = gateway.gate.base.admin.to_string();
    let reload = evergate(&["reload", "--admin", &admin], &[]);
    let config = gateway.gate.config();
    let https = gateway.https.to_string();
    let check = evergate(
        &["check", "-c", config.to_str().unwrap()],
        &[("GATEWAY_HTTPS", &https)],
    );
    for output in [reload, check] {
        let drawn = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{drawn}");
        assert!(
            drawn.contains("t7.toml:2:1") && drawn.contains("2 | hots = ["),
            "{drawn}"
        );
    }

    gateway.put("t7.toml", &good);
    gateway.put("twice.toml", "\n[http.t9]\nrespond = \"\"\n");
    let problem = gateway.reload().problem(422, "invalid-document");
    let error = &problem["errors"][0];
    assert_eq!(error["file"], gateway.file("twice.toml").to_str().unwrap());
    let message = error["message"].as_str().unwrap();
    let first = format!("{}, line 1,", gateway.file("t9.toml").display());
    assert!(
        message.contains("`http.t9`") && message.contains(&first),
        "{message}"
    );
    gateway.put("twice.toml", "[http\n");
    let problem = gateway.reload().problem(400, "malformed-document");
    assert_eq!(
        problem["errors"][0]["file"],
        gateway.file("twice.toml").to_str().unwrap()
    );
    assert_eq!(gateway.who("t7.example.com"), "t7 one");
}

#[test]
fn what_runs_is_shown_as_written_and_as_a_whole() {
    let gateway = Gateway::start();
    let gate = &gateway.gate;
    let now = gate.now();
    let json: Value = now.json();
    assert_eq!(json["include"], json!(["tenants/*.toml", "tenants/*.yaml"]));
    assert!(json.get("http").is_none(), "{json}");
    assert_eq!(
        json["defaults"]["http"]["listen"],
        json!(["${GATEWAY_HTTPS}"])
    );
    assert_eq!(
        json["defaults"]["http"]["timeouts"]["header"],
        "${GATEWAY_HEADER:-7s}"
    );
    // Read, edit, post.
    let again = gate.call(Call::post("/reload").json(&json)).expect(200);
    assert_eq!(again["outcome"], "unchanged", "{again}");
    let mut edited = json.clone();
    edited["http"] = json!({ "more": { "hosts": "more.example.com", "respond": "{server}" } });
    let answer = gate.call(Call::post("/reload").json(&edited)).expect(200);
    assert_eq!(answer["outcome"], "committed");
    assert_eq!(gateway.who("more.example.com"), "more");
    assert_eq!(gateway.who("t1.example.com"), "t1 one");

    // A part of an included file is not the document's own.
    let problem = gate
        .call(Call::get("/now/http/t7"))
        .problem(404, "no-such-part");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("t7.toml") && detail.contains("?defaults=true"),
        "{detail}"
    );
    let part = gate
        .call(Call::get("/now/http/t7?defaults=true"))
        .expect(200);
    assert_eq!(part["listen"], json!(["${GATEWAY_HTTPS}"]));
    assert_eq!(part["timeouts"]["header"], "${GATEWAY_HEADER:-7s}");
    assert_eq!(part["timeouts"]["idle"], "75s");
    let whole = gate.call(Call::get("/now?defaults=true")).expect(200);
    assert!(whole.get("include").is_none() && whole.get("defaults").is_none());
    assert_eq!(whole["upstreams"]["t7"]["pool"]["idle"], 3);
    // It means the same without the files.
    let mut alone = whole;
    alone["x-note"] = json!("alone");
    let answer = gate.call(Call::post("/reload").json(&alone)).expect(200);
    let plan = &answer["plan"];
    let listeners = plan["listeners"].as_array().unwrap();
    assert!(listeners.iter().all(|l| l["change"] == "keep"), "{plan}");
    assert_eq!(plan["servers"]["changed"], json!([]), "{plan}");
}

#[test]
fn secrets_of_included_files_are_never_shown() {
    let gateway = Gateway::start();
    let gate = &gateway.gate;
    gateway.put("t7.toml", &{
        let key = Pair::new(&["t7.example.com"]);
        let text = tenant(&gateway.origin, 7, "one");
        let tls = format!(
            "hosts = [\"t7.example.com\"]\ntls.certificates = {{ cert = '''{}''', key = '''{}''' }}\n#",
            key.cert, key.key
        );
        text.replacen("hosts =", &tls, 1)
    });
    gateway.reload().expect(200);
    for target in ["/now", "/now?defaults=true"] {
        for accept in ["application/json", "application/toml", "application/yaml"] {
            let text = gate.call(Call::get(target).header("accept", accept)).text();
            assert!(!text.contains("PRIVATE KEY"), "{target} {accept}");
        }
    }
    let part = gate
        .call(Call::get("/now/http/t7/tls?defaults=true"))
        .expect(200);
    assert_eq!(part["certificates"][0]["key"], "<redacted>");
    let adapt = gate.call(Call::post("/adapt").json(&gate.now().json()));
    assert!(adapt.status == 200 && !adapt.text().contains("PRIVATE KEY"));
    // What comes back redacted is what runs.
    let whole = gate.call(Call::get("/now?defaults=true")).expect(200);
    gate.call(Call::post("/reload").json(&whole)).expect(200);
    assert_eq!(gateway.who("t7.example.com"), "t7 one");
}

#[test]
fn a_missing_variable_is_told_at_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env.toml");
    std::fs::write(
        &file,
        "[http.web]\nlisten = \"127.0.0.1:${WEB_PORT}\"\nrespond = \"${TEXT:-x}\"\n",
    )
    .unwrap();
    let check = |env: &[(&str, &str)]| evergate(&["check", "-c", file.to_str().unwrap()], env);
    let output = check(&[]);
    let drawn = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{drawn}");
    assert!(
        drawn.contains("`WEB_PORT` is not set") && drawn.contains("env.toml:2:10"),
        "{drawn}"
    );
    assert_eq!(check(&[("WEB_PORT", "8080")]).status.code(), Some(0));
    assert_eq!(check(&[("WEB_PORT", "none")]).status.code(), Some(3));
}

/// The cost of a swap whose document is in forty files.
#[test]
fn release_a_swap_of_forty_files_is_quick() {
    let gateway = Gateway::start();
    let mut keep = Conn::open(gateway.http).unwrap();
    let mut worst = Duration::ZERO;
    for round in 0..count(50, 3) {
        let n = round % TENANTS;
        gateway.put(
            &format!("t{n}.toml"),
            &tenant(&gateway.origin, n, &format!("r{round}")),
        );
        let start = Instant::now();
        let answer = gateway.reload().expect(200);
        worst = worst.max(start.elapsed());
        assert_eq!(answer["outcome"], "committed");
        assert_eq!(
            gateway.who(&format!("t{n}.example.com")),
            format!("t{n} r{round}")
        );
        let kept = keep
            .exchange("GET / HTTP/1.1\r\nhost: t1.example.com\r\n\r\n")
            .unwrap();
        assert_eq!(kept.status, 308);
    }
    println!("worst of the swaps of {TENANTS} files: {worst:?}");
    if !cfg!(debug_assertions) {
        assert!(worst <= Duration::from_millis(250), "{worst:?}");
    }
}

fn evergate(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(args)
        .envs(env.iter().copied())
        .output()
        .unwrap()
}
