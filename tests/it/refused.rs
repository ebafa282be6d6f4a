//! One bad thing in a document, again and again under load: refused with the right status and place, and no trace.
//! Done when 5, one test for each bad thing.

use std::net::{SocketAddr, TcpListener};

use crate::kit::load::{Load, Shape};
use crate::kit::{Call, Gate, count, free_port};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

struct Bad {
    /// The tables that come beside the good server.
    extra: String,
    status: u16,
    slug: &'static str,
    /// What the pointer of the one error begins with.
    pointer: &'static str,
}

fn refuse_without_trace(bad: &Bad) {
    let to = local(free_port());
    let good = format!("[http.web]\nlisten = [\"{to}\"]\nrespond = \"/g1 good\"\n");
    let gate = Gate::start(&good);
    std::fs::create_dir(gate.dir.path().join("folder")).unwrap();
    let refused = gate.document(&format!(
        "{}{}",
        good.replace("good", "never served"),
        bad.extra
    ));
    let judge = |answer: crate::kit::Answer| {
        let problem = answer.problem(bad.status, bad.slug);
        let pointers = answer.pointers();
        assert!(
            pointers.len() == 1 && pointers[0].starts_with(bad.pointer),
            "{problem}"
        );
        let error = &problem["errors"][0];
        assert!(
            error["line"].as_u64() > Some(1) && error["column"].as_u64() > Some(0),
            "{problem}"
        );
    };
    // Once before counting: what is made once and kept (a thread of the file pool) is no leak.
    judge(gate.call(Call::post("/reload").toml(&refused)));
    judge(gate.call(Call::post("/adapt").toml(&refused)));
    let before = gate.status();
    let now = gate.now();

    let load = Load::start(Shape {
        fresh: 100,
        ..Shape::new(to)
    });
    load.raise_floor(1);
    for turn in 0..count(100, 10) {
        let verb = if turn % 10 == 9 { "/adapt" } else { "/reload" };
        judge(gate.call(Call::post(verb).toml(&refused)));
    }
    load.wait_more(20);
    load.finish();

    let after = gate.now();
    assert_eq!(
        (&after.body, after.header("etag")),
        (&now.body, now.header("etag"))
    );
    let (descriptors, tasks) = (
        before["descriptors"].as_u64().unwrap(),
        before["tasks"].as_u64().unwrap(),
    );
    let settled = gate.wait_status("descriptors and tasks to be as before", |s| {
        s["connections"] == 0
            && s["descriptors"].as_u64() <= Some(descriptors)
            && s["tasks"].as_u64() <= Some(tasks)
    });
    assert_eq!(settled["generation"], before["generation"]);
    assert_eq!(settled["generations"].as_array().unwrap().len(), 1);
    assert_eq!(settled["listeners"].as_array().unwrap().len(), 1);
    assert_eq!(settled["panics"], 0);
}

fn server(listen: SocketAddr, rest: &str) -> String {
    format!("[http.extra]\nlisten = [\"{listen}\"]\n{rest}\n")
}

fn taken_port(taken: SocketAddr) -> Bad {
    Bad {
        extra: server(taken, "respond = \"mine\""),
        status: 409,
        slug: "not-prepared",
        pointer: "/http/extra/listen",
    }
}

#[test]
fn release_port_taken_by_a_stranger() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    refuse_without_trace(&taken_port(stranger.local_addr().unwrap()));
}

#[test]
fn release_port_taken_by_a_stranger_with_reuse_port() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&local(free_port()).into()).unwrap();
    socket.listen(16).unwrap();
    let stranger: TcpListener = socket.into();
    let taken = stranger.local_addr().unwrap();
    refuse_without_trace(&taken_port(taken));
    // Not one connection was taken from him.
    stranger.set_nonblocking(true).unwrap();
    for _ in 0..20 {
        let client = std::net::TcpStream::connect(taken).unwrap();
        crate::kit::until("the stranger to be connected", || stranger.accept().ok());
        drop(client);
    }
}

#[test]
fn release_port_taken_by_a_second_evergate() {
    let taken = local(free_port());
    let other = Gate::start(&format!(
        "[http.web]\nlisten = \"{taken}\"\nrespond = \"other\"\n"
    ));
    refuse_without_trace(&taken_port(taken));
    for _ in 0..20 {
        assert_eq!(crate::kit::get(taken, "x", "/").text(), "other");
    }
    drop(other);
}

#[test]
fn release_unknown_upstream() {
    refuse_without_trace(&Bad {
        extra: server(local(free_port()), "proxy = \"nobody\""),
        status: 422,
        slug: "invalid-document",
        pointer: "/http/extra/proxy",
    });
}

#[test]
fn release_missing_file() {
    refuse_without_trace(&Bad {
        extra: server(local(free_port()), "respond = { file = \"missing.html\" }"),
        status: 409,
        slug: "not-prepared",
        pointer: "/http/extra/respond/file",
    });
}

#[test]
fn release_folder_in_place_of_a_file() {
    refuse_without_trace(&Bad {
        extra: server(local(free_port()), "respond = { file = \"folder\" }"),
        status: 409,
        slug: "not-prepared",
        pointer: "/http/extra/respond/file",
    });
}

#[test]
fn release_bad_regular_expression() {
    refuse_without_trace(&Bad {
        extra: server(
            local(free_port()),
            "[[http.extra.routes]]\nmatch.path = \"~[\"\nrespond = \"x\"",
        ),
        status: 422,
        slug: "invalid-document",
        pointer: "/http/extra/routes/0/match/path",
    });
}

/// All at once: every error of a document in one answer, each with its place.
#[test]
fn all_errors_come_in_one_answer() {
    let gate = Gate::start("");
    let document = gate.document(
        "[http.web]\nlisten = \"127.0.0.1:99999\"\nproxi = \"x\"\ntimeouts = { header = 5 }\n\
         [[http.web.routes]]\nmatch.path = \"~(\"\nproxy = \"nobody\"\n\
         [upstreams.empty]\ntargets = []\n[upstreams.empty.pool]\nidle = -1\n",
    );
    let answer = gate.call(Call::post("/reload").toml(&document));
    let problem = answer.problem(422, "invalid-document");
    let pointers = answer.pointers();
    for wanted in [
        "/http/web/listen",
        "/http/web/proxi",
        "/http/web/timeouts/header",
        "/http/web/routes/0/match/path",
        "/http/web/routes/0/proxy",
        "/upstreams/empty/targets",
        "/upstreams/empty/pool/idle",
    ] {
        assert!(
            pointers.iter().any(|p| p.starts_with(wanted)),
            "no error at {wanted}: {problem}"
        );
    }
    let proxi = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["pointer"] == "/http/web/proxi")
        .unwrap();
    assert!(
        proxi["help"].as_str().is_some_and(|h| h.contains("proxy")),
        "{proxi}"
    );
}
