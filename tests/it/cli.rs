//! The command line: verbs, exit codes, errors drawn with their place, start-up lines, the embedded default.

use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::kit::{Gate, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn respond(listen: SocketAddr, text: &str) -> String {
    format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"{text}\"\n")
}

fn evergate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(args)
        .output()
        .unwrap()
}

/// A verb that talks to the admin API of `gate`.
fn verb(gate: &Gate, args: &[&str]) -> Output {
    let admin = gate.base.admin.to_string();
    evergate(&[args, &["--admin", &admin]].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_draws_every_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[http.web]\nlisten = \"127.0.0.1:8080\"\nproxi = \"app\"\n\n[[http.web.routes]]\nproxy = \"nobody\"\n").unwrap();
    let output = evergate(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let drawn = text(&output.stderr);
    assert!(drawn.contains("bad.toml:3:"), "{drawn}");
    assert!(drawn.contains("bad.toml:6:"), "{drawn}");
    assert!(
        drawn.contains("proxi = \"app\"") && drawn.contains('^'),
        "{drawn}"
    );
    assert!(
        drawn.contains("did you mean") && drawn.contains("`proxy`"),
        "{drawn}"
    );
}

#[test]
fn check_is_quiet_and_zero_for_a_good_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in [
        (
            "good.toml",
            "[http.web]\nlisten = \"127.0.0.1:8080\"\nrespond = \"x\"\n",
        ),
        (
            "good.json",
            "{\"http\": {\"web\": {\"listen\": \"127.0.0.1:8080\", \"respond\": \"x\"}}}",
        ),
        (
            "good.yaml",
            "http:\n  web:\n    listen: \"127.0.0.1:8080\"\n    respond: x\n",
        ),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, contents).unwrap();
        let output = evergate(&["check", "-c", file.to_str().unwrap()]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{name}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn check_tells_of_files_that_a_start_would_miss() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    let contents = "[http.web]\nlisten = \"127.0.0.1:8080\"\nrespond.file = \"page.html\"\n";
    std::fs::write(&file, contents).unwrap();
    let check = || evergate(&["check", "-c", file.to_str().unwrap()]);
    let output = check();
    let drawn = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{drawn}");
    assert!(
        drawn.contains("a.toml:3:") && drawn.contains("page.html"),
        "{drawn}"
    );
    std::fs::create_dir(dir.path().join("page.html")).unwrap();
    assert_eq!(check().status.code(), Some(5));
    std::fs::remove_dir(dir.path().join("page.html")).unwrap();
    std::fs::write(dir.path().join("page.html"), "x").unwrap();
    assert_eq!(check().status.code(), Some(0));
}

#[test]
fn an_empty_file_is_valid_and_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in [("empty.toml", "# nothing yet\n"), ("empty.json", "{}")] {
        let file = dir.path().join(name);
        std::fs::write(&file, contents).unwrap();
        let output = evergate(&["check", "-c", file.to_str().unwrap()]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{name}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains("warning"),
            "{name}: {}",
            text(&output.stderr)
        );
        let output = evergate(&["check", "--strict", "-c", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3), "{name}");
    }
}

#[test]
fn usage_errors_are_two_and_no_answer_is_seven() {
    assert_eq!(evergate(&["nonsense"]).status.code(), Some(2));
    assert_eq!(evergate(&["run", "--nonsense"]).status.code(), Some(2));
    let nobody = local(free_port()).to_string();
    for args in [
        &["now"][..],
        &["status"],
        &["sessions"],
        &["stop"],
        &["reload"],
    ] {
        let output = evergate(&[args, &["--admin", &nobody]].concat());
        assert_eq!(
            output.status.code(),
            Some(7),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn help_and_version_are_there() {
    let help = evergate(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for verb in [
        "run", "check", "adapt", "reload", "now", "stop", "status", "schema",
    ] {
        assert!(text(&help.stdout).contains(verb), "{verb}");
    }
    assert!(text(&evergate(&["--version"]).stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn schema_needs_no_process() {
    let output = evergate(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["http"].is_object());
}

#[test]
fn the_verbs_talk_to_the_running_process() {
    let to = local(free_port());
    let mut gate = Gate::start(&respond(to, "one"));
    let now = verb(&gate, &["now"]);
    assert_eq!(now.status.code(), Some(0), "{}", text(&now.stderr));
    assert!(text(&now.stdout).contains(&to.to_string()));
    let status = verb(&gate, &["status"]);
    assert_eq!(status.status.code(), Some(0));
    assert!(
        text(&status.stdout).contains(&to.to_string()),
        "{}",
        text(&status.stdout)
    );

    // Reload: the file again, drawn as it happens.
    gate.write(&respond(to, "two"));
    let reload = verb(&gate, &["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    let drawn = text(&reload.stdout) + &text(&reload.stderr);
    for phase in ["validated", "prepared", "committed"] {
        assert!(drawn.contains(phase), "{phase} is missing: {drawn}");
    }
    assert_eq!(get(to, "x", "/").text(), "two");
    // Unchanged is fine.
    assert_eq!(verb(&gate, &["reload"]).status.code(), Some(0));

    // The server's own file is drawn with its lines when it is readable here too.
    std::fs::write(
        gate.config(),
        gate.document("[http.web]\nlisten = \"127.0.0.1:0\"\nproxi = \"x\"\n"),
    )
    .unwrap();
    let refused = verb(&gate, &["reload"]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    let drawn = text(&refused.stderr);
    assert!(
        drawn.contains("evergate.toml:") && drawn.contains("proxi = \"x\"") && drawn.contains('^'),
        "{drawn}"
    );

    // Refused: the errors, and the code says which kind.
    let file = gate.dir.path().join("bad.toml");
    let name = file.to_str().unwrap().to_owned();
    std::fs::write(
        &file,
        gate.document("[http.web]\nlisten = \"127.0.0.1:0\"\nproxy = \"nobody\"\n"),
    )
    .unwrap();
    for what in ["reload", "adapt"] {
        let refused = verb(&gate, &[what, "-c", &name]);
        assert_eq!(
            refused.status.code(),
            Some(3),
            "{what}: {}",
            text(&refused.stderr)
        );
        assert!((text(&refused.stdout) + &text(&refused.stderr)).contains("nobody"));
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(
        &file,
        gate.document(&respond(taken.local_addr().unwrap(), "x")),
    )
    .unwrap();
    let refused = verb(&gate, &["reload", "-c", &name]);
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused.stderr));
    assert_eq!(get(to, "x", "/").text(), "two");

    let stop = verb(&gate, &["stop"]);
    assert_eq!(stop.status.code(), Some(0), "{}", text(&stop.stderr));
    assert_eq!(gate.wait().code(), Some(0));
}

#[test]
fn start_up_says_what_listens_where() {
    let to = local(free_port());
    let gate = Gate::start(&respond(to, "one"));
    let wanted = [to.to_string(), gate.base.admin.to_string()];
    until("the start-up lines", || {
        let output = gate.output();
        wanted.iter().all(|w| output.contains(w)).then_some(())
    });
}

#[test]
fn a_bad_file_at_start_ends_with_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("evergate.toml");
    std::fs::write(
        &file,
        "[http.web]\nlisten = \"127.0.0.1:1\"\nproxi = \"x\"\n",
    )
    .unwrap();
    let output = evergate(&["run", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stderr).contains("evergate.toml:3:"),
        "{}",
        text(&output.stderr)
    );
    // Once drawn, once in the last line; no log line beside them.
    let said = text(&output.stderr);
    assert_eq!(said.matches("unknown key `proxi`").count(), 2, "{said}");
    assert!(!said.contains("WARN"), "{said}");
    let output = evergate(&["run", "-c", "/nonexistent/evergate.toml"]);
    assert!(
        matches!(output.status.code(), Some(1 | 5)),
        "{:?}",
        output.status
    );
}

/// `./evergate.toml` is found without being named, and `run` is the verb when none is.
#[test]
fn the_file_in_the_working_folder_is_found() {
    let to = local(free_port());
    let dir = tempfile::tempdir().unwrap();
    let admin = local(free_port());
    let base = crate::kit::process::Base {
        admin,
        state_dir: dir.path().join("state"),
        runtime: String::new(),
    };
    std::fs::write(
        dir.path().join("evergate.toml"),
        base.document(&respond(to, "found")),
    )
    .unwrap();
    let (child, output) =
        crate::kit::process::spawn(Command::new(env!("CARGO_BIN_EXE_evergate")), dir.path());
    let _gate = Gate::adopt(child, output, base, dir);
    assert_eq!(get(to, "x", "/").text(), "found");
}

/// What the first configuration is warned of is seen by whoever starts it.
#[test]
fn warnings_at_start_are_drawn() {
    let to = local(free_port());
    let dir = tempfile::tempdir().unwrap();
    // Below a file there is no folder, for nobody.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let base = crate::kit::process::Base {
        admin: local(free_port()),
        state_dir: file.join("state"),
        runtime: String::new(),
    };
    let config = dir.path().join("evergate.toml");
    std::fs::write(&config, base.document(&respond(to, "one"))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
    command.args(["run", "--quiet", "-c"]).arg(&config);
    let (child, output) = crate::kit::process::spawn(command, dir.path());
    let gate = Gate::adopt(child, output, base, dir);
    let drawn = until("the warning", || {
        Some(gate.output()).filter(|output| output.contains("evergate.toml:"))
    });
    assert!(drawn.contains("warning") && drawn.contains('^'), "{drawn}");
    assert!(drawn.contains("state_dir ="), "{drawn}");
}

#[test]
fn sessions_are_shown_and_closed() {
    let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (listen, to) = (local(free_port()), origin.local_addr().unwrap());
    let document = format!("[tcp.db]\nlisten = \"{listen}\"\nupstream = \"{to}\"\n");
    let gate = Gate::start(&document);
    let output = verb(&gate, &["sessions"]);
    assert_eq!(text(&output.stdout), "none\n", "{}", text(&output.stderr));
    let client = std::net::TcpStream::connect(listen).unwrap();
    let (mut server, _) = origin.accept().unwrap();
    let id = until("the session", || {
        let output = verb(&gate, &["sessions", "--json", "--listener", "db"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        list["sessions"][0]["id"].as_u64()
    });
    let shown = text(&verb(&gate, &["sessions", "--kind", "tcp"]).stdout);
    let row: Vec<_> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    let (id, client_addr, to) = (id.to_string(), client.local_addr().unwrap(), to.to_string());
    assert_eq!(
        row[..6],
        [&id, "tcp", &client_addr.to_string(), "db", &to, "1"],
        "{shown}"
    );
    let wrong = verb(&gate, &["sessions", "--kind", "htpt"]);
    assert_eq!(wrong.status.code(), Some(3), "{}", text(&wrong.stderr));
    assert!(text(&wrong.stderr).contains("socks5"));
    let closed = verb(&gate, &["sessions", "close", &id]);
    assert_eq!(closed.status.code(), Some(0), "{}", text(&closed.stderr));
    let said = text(&closed.stdout);
    assert!(said.contains("is told to end"), "{said}");
    let _ = std::io::Read::read(&mut server, &mut [0]);
    let again = until("it to be gone", || {
        let again = verb(&gate, &["sessions", "close", &id]);
        (again.status.code() == Some(1)).then_some(again)
    });
    assert!(text(&again.stderr).contains("GET /sessions"));
}
