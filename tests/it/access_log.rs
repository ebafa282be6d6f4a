//! The access log: a line for each request however it ends, in a file that may be moved away, that may be full, that
//! nobody may read; and what else a request leaves behind: its id.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::kit::h2origin::{H2Origin, Ways};
use crate::kit::load::{Load, Shape};
use crate::kit::{Call, Conn, Gate, Origin, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A document with this access log, and a server with these lines.
fn document(log: &str, to: SocketAddr, server: &str) -> String {
    format!("[access_log]\n{log}\n[http.web]\nlisten = \"{to}\"\n{server}\n")
}

/// The lines of a log once there are `count`.
fn lines(path: &Path, count: usize) -> Vec<String> {
    until(&format!("{count} lines in {}", path.display()), || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert!(lines.len() <= count, "more than {count} lines:\n{text}");
        (lines.len() == count && text.ends_with('\n')).then_some(lines)
    })
}

fn objects(path: &Path, count: usize) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap();
    lines(path, count).iter().map(parse).collect()
}

fn in_folder(gate: &Gate, name: &str) -> PathBuf {
    gate.dir.path().join(name)
}

/// Lines in all files of these names.
fn count(gate: &Gate, names: &[&str]) -> usize {
    let text = |name: &&str| std::fs::read_to_string(in_folder(gate, name)).unwrap_or_default();
    names.iter().map(|name| text(name).lines().count()).sum()
}

/// Over HTTP/2 its answer ends long before it does.
#[test]
fn a_websocket_on_a_stream_has_its_line_at_its_end() {
    let origin = H2Origin::start(Ways {
        websockets: true,
        ..Ways::default()
    });
    let to = local(free_port());
    let server = format!(
        "respond = \"x\"\n[[http.web.routes]]\nname = \"ws\"\nmatch.path = \"/ws\"\nproxy = \"o\"\n\
         [upstreams.o]\ntargets = \"{}\"\nprotocol = \"h2c\"",
        origin.addr
    );
    let log = "path = \"a.log\"\nformat = \"json\"";
    let gate = Gate::start(&document(log, to, &server));
    let log = in_folder(&gate, "a.log");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let plain = || http::Request::get("http://a.test/").body(()).unwrap();
        let connect = |protocol: &'static str| {
            let request = http::Request::builder()
                .method("CONNECT")
                .uri("http://a.test/ws")
                .header("sec-websocket-version", "13");
            let protocol = h2::ext::Protocol::from_static(protocol);
            request.extension(protocol).body(()).unwrap()
        };
        client.send_request(plain(), true).unwrap().0.await.unwrap();
        let (answer, mut send) = client.send_request(connect("websocket"), false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        let frame = bytes::Bytes::from_static(b"\x01\x02abc");
        send.send_data(frame.slice(..4), false).unwrap();
        let mut back = 0;
        while back < 4 {
            back += body.data().await.unwrap().unwrap().len();
        }
        // It is among the sessions, by the name of its route.
        until("its bytes to be told", || {
            let list = gate.call(Call::get("/sessions?kind=websocket")).json();
            let one = &list["sessions"][0];
            let told = one["route"] == "ws" && one["received"] == 4 && one["sent"] == 4;
            told.then_some(())
        });
        // Others come to their end before it.
        client.send_request(plain(), true).unwrap().0.await.unwrap();
        let (other, _) = client.send_request(connect("connect-udp"), false).unwrap();
        assert_eq!(other.await.unwrap().status(), 501);
        let lines = objects(&log, 3);
        let methods: Vec<_> = lines.iter().map(|line| &line["method"]).collect();
        assert_eq!(methods, ["GET", "GET", "CONNECT"]);
        assert_eq!(lines[2]["status"], 501);
        send.send_data(bytes::Bytes::new(), true).unwrap();
        while let Some(piece) = body.data().await {
            assert!(piece.unwrap().is_empty());
        }
        driver.abort();
    });
    let line = objects(&log, 4).pop().unwrap();
    assert_eq!(line["route"], "ws", "{line}");
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!(line["bytes_sent"], 4, "{line}");
    assert_eq!(line["target"], origin.addr.to_string(), "{line}");
    let labels = format!("upstream=\"o\",target=\"{}\"", origin.addr);
    let page = gate.call(Call::get("/metrics")).0.text();
    for line in [
        "evergate_websockets_opened_total 1".to_owned(),
        format!("evergate_target_responses_total{{{labels},code=\"2xx\"}} 1"),
        format!("evergate_target_unanswered_total{{{labels}}} 0"),
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line}: {page}");
    }
}

#[test]
fn every_way_of_ending_has_its_line() {
    let origin = Origin::start("o");
    let (to, dead) = (local(free_port()), local(free_port()));
    let server = format!(
        "hosts = [\"a.test\"]\nlimits = {{ body = \"10B\" }}\nproxy = \"api\"\n\
         [[http.web.routes]]\nname = \"here\"\nmatch.path = \"/here\"\nrespond = \"hello\"\n\
         [[http.web.routes]]\nname = \"quiet\"\nmatch.path = \"/quiet\"\nrespond = \"x\"\nuse = \"quiet\"\n\
         [[http.web.routes]]\nname = \"dead\"\nmatch.path = \"/dead\"\nproxy = \"{dead}\"\n\
         [filters.quiet]\naccess_log = false\n\
         [upstreams.api]\ntargets = \"{}\"\n",
        origin.addr
    );
    let gate = Gate::start(&document(
        "path = \"a.log\"\nformat = \"json\"",
        to,
        &server,
    ));
    let log = in_folder(&gate, "a.log");
    let mut seen = 0;
    let mut next = || {
        seen += 1;
        objects(&log, seen).pop().unwrap()
    };
    let expect = |line: &Value, status: u64, route: &str, sent: u64| {
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["route"], route, "{line}");
        assert_eq!(line["bytes_sent"], sent, "{line}");
        assert_eq!(line["client_ip"], "127.0.0.1", "{line}");
        assert_eq!(line["generation"], 1, "{line}");
    };

    assert_eq!(get(to, "a.test", "/quiet").status, 200);
    assert_eq!(get(to, "a.test", "/here?q=1").status, 200);
    let line = next();
    expect(&line, 200, "here", 5);
    for (key, value) in [
        ("method", "GET"),
        ("uri", "/here?q=1"),
        ("host", "a.test"),
        ("server", "web"),
        ("scheme", "http"),
        ("protocol", "HTTP/1.1"),
        ("upstream", ""),
    ] {
        assert_eq!(line[key], value, "{key}: {line}");
    }
    assert!(line["duration_ms"].as_f64().unwrap() < 30_000.0);

    let answer = get(to, "a.test", "/hold-not");
    let line = next();
    expect(&line, 200, "", answer.body.len() as u64);
    assert_eq!(line["upstream"], "api");
    assert_eq!(line["target"], origin.addr.to_string());
    assert_eq!(line["request_id"].as_str(), answer.header("x-request-id"));

    // Without content, of another server's name, refused before and after routing.
    let exchange = |request: &str| Conn::open(to).unwrap().exchange(request).unwrap().status;
    let mut conn = Conn::open(to).unwrap();
    conn.send("HEAD /here HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .unwrap();
    assert_eq!(conn.response_to("HEAD").unwrap().status, 200);
    expect(&next(), 200, "here", 0);
    assert_eq!(get(to, "b.test", "/").status, 404);
    let line = next();
    expect(&line, 404, "", "404 Not Found\n".len() as u64);
    assert_eq!(
        (&line["server"], &line["host"]),
        (&"".into(), &"b.test".into())
    );
    assert_eq!(
        exchange("GET / HTTP/1.1\r\nhost: a.test\r\nhost: a.test\r\n\r\n"),
        400
    );
    let line = next();
    assert_eq!((&line["status"], &line["uri"]), (&400.into(), &"/".into()));
    assert_eq!(
        exchange("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 11\r\n\r\n"),
        413
    );
    assert_eq!(next()["status"], 413);
    // Not even a request.
    assert_eq!(exchange("GET / HTTP/1.1\r\nbad header\r\n\r\n"), 400);
    let line = next();
    assert_eq!(
        (&line["status"], &line["method"]),
        (&400.into(), &"".into())
    );

    // Nobody there; an answer that breaks off; a client that does not wait.
    assert_eq!(get(to, "a.test", "/dead").status, 502);
    let line = next();
    assert_eq!(
        (&line["status"], &line["upstream"]),
        (&502.into(), &dead.to_string().into())
    );
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /cut HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .unwrap();
    assert!(conn.response().is_err());
    expect(&next(), 200, "", "only these".len() as u64);
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /hold HTTP/1.1\r\nhost: a.test\r\nreferer: r\r\n\r\n")
        .unwrap();
    origin.wait_holding(1);
    drop(conn);
    let line = next();
    expect(&line, 499, "", 0);
    assert_eq!(
        (&line["upstream"], &line["referer"]),
        (&"api".into(), &"r".into())
    );
    origin.release_all();
}

#[test]
fn combined_and_templates_escape_what_clients_send() {
    let to = local(free_port());
    let server = "respond = \"hello\"";
    let gate = Gate::start(&document("path = \"a.log\"", to, server));
    let ask = || {
        let request = "GET /a\"b HTTP/1.1\r\nhost: x\r\nreferer: \\\r\nuser-agent: a\tb \x1b[2J\u{e9}\r\n\r\n";
        // An escape character is no part of a field: refused. A tab and what is not ASCII are.
        assert_eq!(
            Conn::open(to).unwrap().exchange(request).unwrap().status,
            400
        );
        let request = request.replace("\x1b", "");
        assert_eq!(
            Conn::open(to).unwrap().exchange(request).unwrap().status,
            200
        );
    };
    ask();
    let mut seen = lines(&in_folder(&gate, "a.log"), 2);
    // Two connections, maybe two workers: the lines come in either order.
    seen.sort_by_key(|line| !line.contains(" 400 "));
    assert!(seen[0].ends_with("\"-\" 400 0 \"-\" \"-\""), "{}", seen[0]);
    let (start, rest) = seen[1].split_once('[').unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!(start, "127.0.0.1 - - ");
    assert!(time.len() == 26 && time.ends_with(" +0000"), "{time}");
    let expected = "\"GET /a\\x22b HTTP/1.1\" 200 5 \"\\x5C\" \"a\\x09b [2J\\xC3\\xA9\"";
    assert_eq!(rest, expected);

    let format = "{method} {header.x-none} {query.q} {status} {bytes_sent} {server}/{route} {user} {{{host}}}";
    let log = format!("path = \"b.log\"\nformat = \"{format}\"");
    gate.reload_ok(&document(&log, to, server));
    assert_eq!(get(to, "x", "/?q=1%0a2").status, 200);
    let seen = lines(&in_folder(&gate, "b.log"), 1);
    assert_eq!(seen[0], "GET - 1\\x0A2 200 5 web/- - {x}");
}

#[test]
fn no_line_is_lost_while_files_are_moved_away_under_load() {
    let to = local(free_port());
    let server = "respond = \"hello {generation}\"";
    let gate = Gate::start(&document("path = \"a.log\"", to, server));
    let load = Load::start(Shape::new(to));
    let path = in_folder(&gate, "a.log");
    let names = ["a.log.1", "a.log.2", "a.log.3", "a.log.4", "a.log"];
    for (round, name) in names[..4].iter().enumerate() {
        load.wait_more(200);
        std::fs::rename(&path, in_folder(&gate, name)).unwrap();
        if round % 2 == 0 {
            gate.signal(Signal::USR1);
        } else {
            // The same document: nothing is swapped, the file is opened again.
            gate.reload(&document("path = \"a.log\"", to, server))
                .expect(200);
        }
        until("the file to be made again", || path.exists().then_some(()));
    }
    // Each file has its share of them, the last one too.
    load.wait_more(200);
    let answers = load.finish().answers as usize;
    until("every line", || {
        (count(&gate, &names) >= answers).then_some(())
    });
    for name in names {
        // The last of them may be on its way.
        let text = until("the end of a line", || {
            let text = std::fs::read_to_string(in_folder(&gate, name)).ok()?;
            text.ends_with('\n').then_some(text)
        });
        let whole = |line: &str| line.starts_with("127.0.0.1 - - [") && line.ends_with('"');
        assert!(text.lines().all(whole), "{name}");
    }
    assert!(count(&gate, &["a.log"]) > 0, "the last file is empty");
    // Requests that were on their way when the load ended have lines too, but no more than there were connections.
    assert!(count(&gate, &names) - answers <= 128);
}

#[test]
fn a_swap_moves_the_log_and_one_to_nowhere_is_refused() {
    let to = local(free_port());
    let gate = Gate::start(&document("path = \"a.log\"", to, "respond = \"x\""));
    let mut kept = Conn::open(to).unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(kept.exchange(ask).unwrap().status, 200);
    lines(&in_folder(&gate, "a.log"), 1);
    let bad = document("path = \"missing/a.log\"", to, "respond = \"x\"");
    let refused = gate.reload(&bad);
    refused.problem(409, "not-prepared");
    assert_eq!(refused.pointers(), ["/access_log/path"]);
    assert_eq!(kept.exchange(ask).unwrap().status, 200);
    lines(&in_folder(&gate, "a.log"), 2);
    gate.reload_ok(&document(
        "path = \"b.log\"\nformat = \"json\"",
        to,
        "respond = \"x\"",
    ));
    assert_eq!(kept.exchange(ask).unwrap().status, 200);
    assert_eq!(objects(&in_folder(&gate, "b.log"), 1)[0]["generation"], 2);
    // Off, by share and altogether.
    let off = document("path = \"b.log\"\nsample = 0", to, "respond = \"x\"");
    gate.reload_ok(&off);
    assert_eq!(kept.exchange(ask).unwrap().status, 200);
    gate.reload_ok(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n"));
    assert_eq!(kept.exchange(ask).unwrap().status, 200);
    gate.reload_ok(&document("path = \"b.log\"", to, "respond = \"x\""));
    assert_eq!(kept.exchange(ask).unwrap().status, 200);
    lines(&in_folder(&gate, "b.log"), 2);
    lines(&in_folder(&gate, "a.log"), 2);
}

#[test]
fn a_log_that_cannot_be_written_holds_nobody_up() {
    let to = local(free_port());
    let mut gate = Gate::start(&document("path = \"first.log\"", to, "respond = \"x\""));
    let fifo = in_folder(&gate, "fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, 0o600.into(), 0).unwrap();
    gate.reload_ok(&document("path = \"fifo\"", to, "respond = \"x\""));
    let agent = "a".repeat(20_000);
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..500 {
        let ask = format!("GET / HTTP/1.1\r\nhost: x\r\nuser-agent: {agent}\r\n\r\n");
        assert_eq!(conn.exchange(ask).unwrap().status, 200);
    }
    let dropped = |path: &Path| {
        let page = gate.call(crate::kit::Call::get("/metrics")).text();
        let start = format!(
            "evergate_access_log_dropped_total{{path=\"{}\"}} ",
            path.display()
        );
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.map(|n| n.parse::<u64>().unwrap())
    };
    // 10 MB of lines: a pipe takes 64 KiB, a lane 2 MiB, the thread holds as much.
    assert!(dropped(&fifo).unwrap() > 100);
    let full = Path::new("/dev/full");
    if full.exists() {
        gate.reload_ok(&document("path = \"/dev/full\"", to, "respond = \"x\""));
        assert_eq!(
            conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200
        );
        until("the line to be given up", || {
            (dropped(full)? == 1).then_some(())
        });
    }
    // It keeps nobody from stopping either.
    gate.reload_ok(&document("path = \"fifo\"", to, "respond = \"x\""));
    assert_eq!(
        conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .status,
        200
    );
    gate.signal(Signal::TERM);
    assert!(gate.wait().success());
}

#[test]
fn the_last_lines_are_written_before_the_process_ends() {
    let to = local(free_port());
    let mut gate = Gate::start(&document("path = \"a.log\"", to, "respond = \"x\""));
    for _ in 0..20 {
        assert_eq!(get(to, "x", "/").status, 200);
    }
    gate.signal(Signal::TERM);
    assert!(gate.wait().success());
    let text = std::fs::read_to_string(in_folder(&gate, "a.log")).unwrap();
    assert_eq!(text.lines().count(), 20);
}

#[test]
fn standard_output_is_a_log_too() {
    let to = local(free_port());
    let gate = Gate::start(&document(
        "format = \"seen {uri} {status}\"",
        to,
        "respond = \"x\"",
    ));
    assert_eq!(get(to, "x", "/abc").status, 200);
    until("the line", || {
        gate.output().contains("seen /abc 200\n").then_some(())
    });
}

/// An origin that switches at once, sends `hello`, and ends when its client does.
fn switching_origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        let head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x01\x05hello";
        stream.write_all(head.as_bytes()).unwrap();
        // Until the client has ended.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut reader, &mut rest);
    });
    addr
}

#[test]
fn a_websocket_has_its_line_at_its_end() {
    let (to, origin) = (local(free_port()), switching_origin());
    let server = format!("proxy = \"{origin}\"");
    let gate = Gate::start(&document(
        "path = \"a.log\"\nformat = \"json\"",
        to,
        &server,
    ));
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").unwrap();
    assert_eq!(conn.response_head().unwrap().status, 101);
    let mut came = 0;
    while came < 7 {
        came += conn.some(7).unwrap().len();
    }
    let page = gate.call(crate::kit::Call::get("/metrics")).text();
    assert!(page.contains("\nevergate_websockets 1\n"), "{page}");
    assert!(page.contains("\nevergate_websockets_opened_total 1\n"));
    assert!(page.contains("evergate_http_requests_in_flight{server=\"web\",route=\"\"} 1\n"));
    assert_eq!(
        std::fs::read_to_string(in_folder(&gate, "a.log")).unwrap(),
        ""
    );
    drop(conn);
    let line = objects(&in_folder(&gate, "a.log"), 1).remove(0);
    assert_eq!(
        (&line["status"], &line["bytes_sent"]),
        (&101.into(), &7.into()),
        "{line}"
    );
    assert_eq!(line["target"], origin.to_string());
}

#[test]
fn request_ids_go_in_and_out_and_trace_context_passes() {
    let origin = Origin::start("o");
    let (open, behind) = (local(free_port()), local(free_port()));
    let server = |name: &str, to, more| {
        format!(
            "[http.{name}]\nlisten = \"{to}\"\nproxy = \"{}\"\n{more}\n",
            origin.addr
        )
    };
    let _gate = Gate::start(&format!(
        "{}{}",
        server("open", open, ""),
        server("behind", behind, "trusted_proxies = [\"127.0.0.1\"]")
    ));
    let ask = |to, fields: &str| {
        let request = format!("GET /head HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        Conn::open(to).unwrap().exchange(request).unwrap()
    };
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1,b=2\r\n";
    let given = format!("x-request-id: from-outside\r\n{trace}");
    let answer = ask(open, &given);
    let id = answer.header("x-request-id").unwrap().to_owned();
    assert!(
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    let seen = answer.text().to_lowercase();
    assert_eq!(seen.matches("x-request-id").count(), 1, "{seen}");
    assert!(seen.contains(&format!("x-request-id: {id}\r\n")), "{seen}");
    for line in trace.split_terminator("\r\n") {
        assert!(seen.contains(line), "{line} is not in {seen}");
    }
    // Nor can the client have it taken away again.
    let answer = ask(open, "connection: x-request-id, close\r\n");
    let id = answer.header("x-request-id").unwrap().to_owned();
    assert!(
        answer
            .text()
            .to_lowercase()
            .contains(&format!("x-request-id: {id}\r\n"))
    );

    let answer = ask(behind, &given);
    assert_eq!(answer.header("x-request-id"), Some("from-outside"));
    assert!(
        answer
            .text()
            .to_lowercase()
            .contains("x-request-id: from-outside\r\n")
    );
    let answer = ask(behind, "x-request-id: \"quoted\"\r\n");
    assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
    // Refusals have one as well.
    let answer = Conn::open(open)
        .unwrap()
        .exchange("GET / HTTP/1.1\r\nhost: a b\r\n\r\n")
        .unwrap();
    assert_eq!(
        (answer.status, answer.header("x-request-id").unwrap().len()),
        (400, 32)
    );
}

#[test]
fn level_and_form_of_the_log_change_while_it_runs() {
    let gate = Gate::start("");
    until("a line of text", || {
        gate.output().contains(" committed ").then_some(())
    });
    gate.reload_ok("[log]\nformat = \"json\"\n");
    let object = until("a line of JSON", || {
        let output = gate.output();
        let line = output
            .lines()
            .find(|l| l.starts_with('{') && l.contains("committed"))?;
        serde_json::from_str::<Value>(line).ok()
    });
    assert_eq!(object["level"], "INFO");
    assert_eq!(object["fields"]["generation"], 2);
    gate.reload_ok("[log]\nlevel = \"error\"\n");
    gate.reload_ok("[log]\nlevel = \"info\"\n");
    until("lines of text again", || {
        gate.output().contains("generation=4").then_some(())
    });
    assert!(!gate.output().contains("generation=3"), "{}", gate.output());
}
