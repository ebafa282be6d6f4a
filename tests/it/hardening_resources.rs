//! What runs out: descriptors. Accepting pauses, says so, and goes on by itself.

use std::net::SocketAddr;

use crate::kit::{Call, Conn, Gate, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_by_itself() {
    let to = local(free_port());
    let gate = Gate::setup()
        .descriptors(256)
        .runtime("max_connections = 100000")
        .start(&format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"ok\"\n"
        ));
    let mut first = Conn::open(to).unwrap();
    assert_eq!(first.exchange(ASK).unwrap().status, 200);
    let mut many: Vec<Conn> = (0..400).map(|_| Conn::open(to).unwrap()).collect();
    // The admin API has descriptors of its own, and says what is wrong.
    let problem = until("accepting to pause", || {
        let answer = gate.call(Call::get("/readyz"));
        (answer.status == 503).then(|| answer.problem(503, "not-ready"))
    });
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("descriptors"), "{detail}");
    let status = gate.status();
    let open = status["descriptors"].as_u64().unwrap();
    assert!((150..250).contains(&open), "{open} open");
    gate.call(Call::get("/livez")).expect(200);
    // Who is in stays in.
    for _ in 0..100 {
        assert_eq!(first.exchange(ASK).unwrap().status, 200);
    }
    // Paused, not spinning.
    let pauses = gate.output().matches("accept pauses").count();
    assert!((1..20).contains(&pauses), "{pauses} pauses");

    // Who waits in the queue is served as others leave.
    let mut last = many.pop().unwrap();
    last.send(ASK).unwrap();
    many.truncate(300);
    drop(many);
    assert_eq!(last.response().unwrap().status, 200);
    until("accepting to go on", || {
        (gate.call(Call::get("/readyz")).status == 200).then_some(())
    });
    assert_eq!(get(to, "x", "/").status, 200);
    assert_eq!(gate.status()["panics"], 0);
}
