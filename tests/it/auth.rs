//! `basic_auth` and `forward_auth`: who passes, who is asked, and what a swap changes of it.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::filters::gate;
use crate::kit::raw::Head;
use crate::kit::{Call, Conn, Gate, Origin, Response, free_port, get};

/// A quick hash.
pub(crate) fn bcrypt_of(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

fn ask(conn: &mut Conn, path: &str, name: &str, password: &str) -> Response {
    let token = STANDARD.encode(format!("{name}:{password}"));
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {token}\r\n\r\n");
    conn.exchange(request).unwrap()
}

#[test]
fn only_who_knows_the_password_passes() {
    let users = format!(
        "basic_auth = {{ users = {{ alice = \"{}\", bob = \"{}\" }}, realm = \"here\" }}",
        bcrypt_of("a:b"),
        bcrypt_of("other")
    );
    let (_gate, to) = gate(&format!("respond = \"hello {{user}}\"\n{users}"), "");
    let refused = get(to, "x", "/");
    assert_eq!(refused.status, 401);
    let challenge = "Basic realm=\"here\", charset=\"UTF-8\"";
    assert_eq!(refused.header("www-authenticate"), Some(challenge));
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..3 {
        let mut status = |name: &str, password: &str| ask(&mut conn, "/", name, password).status;
        let wrong = [
            ("alice", "a"),
            ("alice", ""),
            ("bob", "a:b"),
            ("carol", "a:b"),
            ("", ""),
        ];
        for (name, password) in wrong {
            assert_eq!(status(name, password), 401, "{name} {password}");
        }
        let answer = ask(&mut conn, "/", "alice", "a:b");
        assert_eq!(
            (answer.status, answer.text()),
            (200, "hello alice".to_owned())
        );
    }
}

#[test]
fn hashes_are_redacted_and_come_back_so() {
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let hash = bcrypt_of("secret");
    let rest = |text: &str| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"{text}\"\nuse = \"staff\"\n\
             [filters.staff.basic_auth.users]\n\"a@b\" = \"{hash}\"\n"
        )
    };
    let gate = Gate::start(&rest("one"));
    let mut now = gate.now().json();
    assert_eq!(
        now["filters"]["staff"]["basic_auth"]["users"]["a@b"],
        "<redacted>"
    );
    assert!(!gate.now().text().contains("$2b$"));
    now["http"]["web"]["respond"]["body"] = json!("two");
    let answer = gate.call(Call::post("/reload").json(&now)).expect(200);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    let mut conn = Conn::open(to).unwrap();
    assert_eq!(ask(&mut conn, "/", "a@b", "secret").text(), "two");
    assert_eq!(ask(&mut conn, "/", "a@b", "wrong").status, 401);
}

#[test]
fn plain_text_is_refused_with_the_way_to_a_hash() {
    let (gate, to) = gate("respond = \"\"", "");
    let bad = |users: &str| {
        let text = format!("[http.web]\nlisten = \"{to}\"\nrespond = \"\"\nbasic_auth = {users}\n");
        let answer = gate.reload(&text);
        answer.problem(422, "invalid-document")
    };
    let problem = bad("{ users = { alice = \"topsecret\", bob = \"$apr1$a$b\" } }");
    assert_eq!(
        problem["errors"][0]["pointer"],
        "/http/web/basic_auth/users/alice"
    );
    assert_eq!(
        problem["errors"][1]["pointer"],
        "/http/web/basic_auth/users/bob"
    );
    let help = problem["errors"][0]["help"].as_str().unwrap();
    assert!(help.contains("evergate hash-password"), "{help}");
    assert!(!problem.to_string().contains("topsecret"));
    bad("{}");
    bad("{ users = { \"a:b\" = \"x\" } }");
}

#[test]
fn what_hash_password_prints_is_taken() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_evergate"))
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all("pässword\n".as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let hash = String::from_utf8(output.stdout).unwrap();
    let (_gate, to) = gate(
        &format!(
            "respond = \"\"\nbasic_auth.users.alice = \"{}\"",
            hash.trim()
        ),
        "",
    );
    let mut conn = Conn::open(to).unwrap();
    assert_eq!(ask(&mut conn, "/", "alice", "pässword").status, 200);
    assert_eq!(ask(&mut conn, "/", "alice", "password").status, 401);
}

#[test]
fn a_file_of_users_is_read_at_each_swap() {
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let rest = format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"\"\n[[http.web.routes]]\nrespond = \"in\"\n\
         basic_auth = {{ htpasswd = \"staff\" }}\n"
    );
    let file = format!("# staff\nalice:{}\n", bcrypt_of("one"));
    let gate = Gate::setup().file("staff", file).start(&rest);
    let status = |name: &str, password: &str| {
        let mut conn = Conn::open(to).unwrap();
        ask(&mut conn, "/", name, password).status
    };
    assert_eq!([status("alice", "one"), status("bob", "two")], [200, 401]);
    let put = |text: String| std::fs::write(gate.dir.path().join("staff"), text).unwrap();
    put(format!(
        "alice:{}\nbob:{}\n",
        bcrypt_of("new"),
        bcrypt_of("two")
    ));
    // Nothing changes before the swap; it brings the new file though the document is the same.
    assert_eq!(status("bob", "two"), 401);
    gate.reload_ok(&rest);
    let after = [
        status("alice", "one"),
        status("alice", "new"),
        status("bob", "two"),
    ];
    assert_eq!(after, [401, 200, 200]);
    put("alice:$apr1$a$b\n\nbob\n".to_owned());
    let problem = gate.reload(&rest).problem(409, "not-prepared");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 2, "{problem}");
    for (error, place) in errors.iter().zip(["staff:1: ", "staff:3: "]) {
        assert_eq!(error["pointer"], "/http/web/routes/0/basic_auth/htpasswd");
        assert!(
            error["message"].as_str().unwrap().contains(place),
            "{error}"
        );
    }
    std::fs::remove_file(gate.dir.path().join("staff")).unwrap();
    gate.reload(&rest).problem(409, "not-prepared");
    assert_eq!(status("bob", "two"), 200);
}

#[test]
fn a_limit_by_user_counts_whom_the_password_let_in() {
    let users = format!(
        "basic_auth.users = {{ alice = \"{0}\", bob = \"{0}\" }}\nrate_limit = {{ key = \"{{user}}\", rate = \"2/h\" }}",
        bcrypt_of("x")
    );
    let (_gate, to) = gate(&format!("respond = \"\"\n{users}"), "");
    let mut conn = Conn::open(to).unwrap();
    let mut got = vec![];
    for (name, password) in [
        ("alice", "x"),
        ("alice", "y"),
        ("alice", "x"),
        ("alice", "x"),
        ("bob", "x"),
    ] {
        got.push(ask(&mut conn, "/", name, password).status);
    }
    assert_eq!(got, [200, 401, 200, 429, 200]);
}

/// A server that lets in who has the cookie, and keeps what it was asked.
struct Judge {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Head>>>,
}

impl Judge {
    fn start() -> Judge {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept: Arc<Mutex<Vec<Head>>> = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || {
                    let mut conn = Conn::over(stream).unwrap();
                    while let Ok(Some(head)) = conn.head() {
                        let answer = if head.get("cookie") == Some("ok=1") {
                            "HTTP/1.1 204 No Content\r\nremote-user: alice\r\nremote-groups: a\r\nremote-groups: b\r\n\r\n"
                        } else {
                            "HTTP/1.1 302 Found\r\nlocation: https://login/\r\nset-cookie: s=1\r\nset-cookie: t=2\r\n\
                             content-length: 5\r\n\r\nlogin"
                        };
                        kept.lock().unwrap().push(head);
                        if conn.send(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Judge { addr, asked }
    }

    fn last(&self) -> Head {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

#[test]
fn another_server_lets_in_and_says_who_it_is() {
    let (judge, origin) = (Judge::start(), Origin::start("A"));
    let lines = format!(
        "proxy = \"http://{}\"\nforward_auth = {{ url = \"http://{}/verify?rd=1\", \
         copy_headers = [\"Remote-User\", \"remote-groups\", \"remote-email\"] }}",
        origin.addr, judge.addr
    );
    let (_gate, to) = gate(&lines, "");
    let mut conn = Conn::open(to).unwrap();
    let request = "POST /a/head?b=c HTTP/1.1\r\nhost: shop.test\r\ncookie: ok=1\r\nremote-user: root\r\n\
                   remote-email: root@x\r\nconnection: keep-alive, remote-user\r\nif-none-match: \"x\"\r\n\
                   x-forwarded-uri: /public\r\ncontent-length: 3\r\n\r\nabc";
    for _ in 0..2 {
        let answer = conn.exchange(request).unwrap();
        assert_eq!(answer.status, 200);
        let sent = answer.text().to_ascii_lowercase();
        assert!(
            sent.contains("remote-user: alice\r\n") && !sent.contains("root"),
            "{sent}"
        );
        assert!(
            sent.contains("remote-groups: a\r\nremote-groups: b\r\n"),
            "{sent}"
        );
        assert!(sent.contains("content-length: 3\r\n"), "{sent}");
    }
    let asked = judge.last();
    assert_eq!(asked.line, "GET /verify?rd=1 HTTP/1.1");
    for (name, value) in [
        ("host", judge.addr.to_string().as_str()),
        ("x-forwarded-method", "POST"),
        ("x-forwarded-uri", "/a/head?b=c"),
        ("x-forwarded-host", "shop.test"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("cookie", "ok=1"),
    ] {
        assert_eq!(asked.all(name), [value], "{name}");
    }
    assert!(asked.get("content-length").is_none() && asked.get("if-none-match").is_none());
}

#[test]
fn its_refusal_is_the_clients_answer() {
    let (judge, origin) = (Judge::start(), Origin::start("A"));
    let lines = format!(
        "proxy = \"http://{}\"\nforward_auth = {{ url = \"judge\", path = \"/v\" }}",
        origin.addr
    );
    let rest = format!("[upstreams.judge]\ntargets = \"{}\"\n", judge.addr);
    let (_gate, to) = gate(&lines, &rest);
    let mut conn = Conn::open(to).unwrap();
    for method in ["GET", "HEAD", "GET"] {
        conn.send(format!("{method} / HTTP/1.1\r\nhost: x\r\n\r\n"))
            .unwrap();
        let answer = conn.response_to(method).unwrap();
        assert_eq!(answer.status, 302);
        assert_eq!(answer.header("location"), Some("https://login/"));
        assert_eq!(answer.head.all("set-cookie"), ["s=1", "t=2"]);
        assert_eq!(answer.text(), if method == "GET" { "login" } else { "" });
    }
    assert_eq!(
        (judge.last().line.as_str(), origin.requests()),
        ("GET /v HTTP/1.1", 0)
    );
}

#[test]
fn nobody_passes_when_it_does_not_answer() {
    let (silent, origin) = (Origin::start("S"), Origin::start("A"));
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let route = |path: &str, url: String| {
        format!(
            "[[http.web.routes]]\nmatch.path = \"/{path}\"\nproxy = \"http://{}\"\n\
             forward_auth = {{ url = \"{url}\", timeout = \"200ms\" }}\n",
            origin.addr
        )
    };
    let rest = [
        route("gone", nobody.to_string()),
        route("silent", format!("http://{}/hang", silent.addr)),
        route("broken", format!("http://{}/garbage", silent.addr)),
    ];
    let (_gate, to) = gate("", &rest.join("\n"));
    assert_eq!(get(to, "x", "/gone").status, 502);
    assert_eq!(get(to, "x", "/silent").status, 504);
    assert_eq!(get(to, "x", "/broken").status, 502);
    assert_eq!(origin.requests(), 0);
}
