//! Tunnels, between two real processes: what goes through, who is let in, and what a swap leaves alone.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use serde_json::Value;

use crate::kit::{Call, Gate, Origin, Response, free_port, get, until};

mod datagrams;
mod dedicated;
mod https;
mod lives;
mod many;
mod pace;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod path;
mod streams;
mod swaps;
mod ways;
mod withdrawn;

const TOKEN: &str = "correct-horse-battery-staple";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The public side: agents at `agents`, visitors at `web`.
fn edge(agents: SocketAddr, web: SocketAddr, more: &str) -> String {
    format!(
        "[tunnels.edge]\nlisten = \"{agents}\"\ntls.self_signed = [\"localhost\"]\ntokens = {{ home = \"{TOKEN}\" }}\n\
         [http.web]\nlisten = \"{web}\"\nproxy = \"tunnel:home/blog\"\n{more}\n"
    )
}

/// The private side, with these lines for whom it trusts.
fn home(agents: SocketAddr, blog: SocketAddr, lines: &str, more: &str) -> String {
    format!(
        "[agents.home]\nserver = \"{agents}\"\n{lines}\nservices.blog = \"http://{blog}\"\n{more}\n"
    )
}

fn pin(edge: &Gate) -> String {
    let list = edge.call(Call::get("/tunnels")).expect(200);
    list["tunnels"][0]["pins"][0].as_str().unwrap().to_owned()
}

fn agent(gate: &Gate) -> Value {
    gate.call(Call::get("/tunnels")).expect(200)["agents"][0].clone()
}

/// The ids of all sessions, once there are two and both sides agree on them.
fn sessions(edge: &Gate, home: &Gate) -> Vec<String> {
    until("two sessions on both sides", || {
        let list = edge.call(Call::get("/tunnels")).expect(200);
        let ids = |list: &Value| -> Vec<String> {
            let all = list.as_array().into_iter().flatten();
            let mut ids: Vec<_> = all
                .filter_map(|s| s["session"].as_str().map(str::to_owned))
                .collect();
            ids.sort();
            ids
        };
        let there = ids(&list["tunnels"][0]["agents"][0]["sessions"]);
        let here = ids(&agent(home)["sessions"]);
        (there.len() == 2 && there == here).then_some(here)
    })
}

/// Why the agent is not connected, once that is known.
fn trouble(home: &Gate) -> (String, String) {
    until("the agent's trouble", || {
        let session = agent(home)["sessions"][0].clone();
        let text = |key: &str| session[key].as_str().map(str::to_owned);
        Some((text("trouble")?, text("why")?))
    })
}

/// An edge and an agent with a blog, and connections to it that are kept for later.
struct Pair {
    edge: Gate,
    home: Gate,
    /// What the agent's document says besides its services.
    lines: String,
    agents: SocketAddr,
    web: SocketAddr,
    blog: Origin,
}

impl Pair {
    fn start() -> Pair {
        Pair::with("")
    }

    /// `runtime`: of the agent's process.
    fn with(runtime: &str) -> Pair {
        let blog = Origin::start("blog");
        let (agents, web) = (local(free_port()), local(free_port()));
        let edge_gate = Gate::start(&edge(agents, web, ""));
        let lines = format!("token = \"{TOKEN}\"\ntls.pin = \"{}\"", pin(&edge_gate));
        let home_gate = Gate::setup()
            .runtime(runtime)
            .start(&home(agents, blog.addr, &lines, ""));
        sessions(&edge_gate, &home_gate);
        let pair = Pair {
            edge: edge_gate,
            home: home_gate,
            lines,
            agents,
            web,
            blog,
        };
        assert_eq!(pair.statuses(), [200; 20]);
        // They were used again, so they are kept.
        assert!(pair.blog.connections() < 20);
        pair
    }

    fn edge(&self) -> String {
        edge(self.agents, self.web, "")
    }

    fn home(&self) -> String {
        home(self.agents, self.blog.addr, &self.lines, "")
    }

    /// The agent's document with more services.
    fn with_services(&self, services: &str) -> String {
        self.home()
            .replace("services.blog", &format!("{services}\nservices.blog"))
    }

    /// Waits until the edge knows so many services.
    fn wait_services(&self, count: usize) {
        until("the services to be known", || {
            let services = self.published()["services"].clone();
            (services.as_array()?.len() == count).then_some(())
        });
    }

    /// Of requests on connections of their own, so that every worker has some.
    fn statuses(&self) -> [u16; 20] {
        std::array::from_fn(|_| get(self.web, "x", "/who").status)
    }

    /// What the edge knows of the agent.
    fn published(&self) -> Value {
        let list = self.edge.call(Call::get("/tunnels")).expect(200);
        list["tunnels"][0]["agents"][0].clone()
    }

    /// Waits until all sessions are told to end.
    fn wait_draining(&self) {
        until("the sessions to drain", || {
            let sessions = self.published()["sessions"].clone();
            let mut all = sessions.as_array()?.iter();
            all.all(|s| s["draining"] == true).then_some(())
        });
    }

    /// Asks for what the origin holds back, and waits until it has been asked.
    fn held(&self) -> JoinHandle<Response> {
        let web = self.web;
        let held = std::thread::spawn(move || get(web, "x", "/hold"));
        self.blog.wait_holding(1);
        held
    }
}

#[test]
fn a_service_is_reached_and_swaps_on_either_side_leave_its_sessions_alone() {
    let blog = Origin::start("blog");
    let (agents, web) = (local(free_port()), local(free_port()));
    let edge_gate = Gate::start(&edge(agents, web, ""));
    // Nobody is there yet.
    assert_eq!(get(web, "x", "/who").status, 503);
    let lines = format!("token = \"{TOKEN}\"\ntls.pin = \"{}\"", pin(&edge_gate));
    let home_gate = Gate::start(&home(agents, blog.addr, &lines, ""));
    let before = sessions(&edge_gate, &home_gate);
    assert_eq!(get(web, "x", "/who").status, 200);
    for n in 0..5 {
        let other = format!("[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"{n}\"");
        edge_gate.reload_ok(&edge(agents, web, &other));
        home_gate.reload_ok(&home(agents, blog.addr, &lines, &other));
        assert_eq!(get(web, "x", "/who").status, 200);
    }
    assert_eq!(sessions(&edge_gate, &home_gate), before);
    // A service that is gone is told over the same sessions.
    let none = home(agents, blog.addr, &lines, "").replace("services.blog", "services.other");
    home_gate.reload_ok(&none);
    until("the other service to be known", || {
        let list = edge_gate.call(Call::get("/tunnels")).expect(200);
        let services = list["tunnels"][0]["agents"][0]["services"].clone();
        (services.as_array()?.len() == 1 && services[0]["service"] == "other").then_some(())
    });
    assert_eq!(sessions(&edge_gate, &home_gate), before);
}

#[test]
fn one_that_may_not_come_and_one_that_does_not_trust_say_so() {
    let blog = Origin::start("blog");
    let (agents, web) = (local(free_port()), local(free_port()));
    let edge_gate = Gate::start(&edge(agents, web, ""));
    let pin = pin(&edge_gate);
    let wrong = format!("token = \"wrong-horse-battery-staple\"\ntls.pin = \"{pin}\"");
    let home_gate = Gate::start(&home(agents, blog.addr, &wrong, ""));
    let (kind, why) = trouble(&home_gate);
    assert_eq!(kind, "refused", "{why}");
    assert!(why.contains("secret is wrong"), "{why}");
    until("the edge to say so", || {
        edge_gate
            .output()
            .contains("its secret is wrong")
            .then_some(())
    });
    drop(home_gate);
    let other = format!("sha256/{}=", "A".repeat(43));
    let lines = format!("token = \"{TOKEN}\"\ntls.pin = \"{other}\"");
    let home_gate = Gate::start(&home(agents, blog.addr, &lines, ""));
    let (kind, why) = trouble(&home_gate);
    assert_eq!(kind, "distrusted", "{why}");
    assert!(why.contains(&pin), "{why}");
}

#[test]
fn agents_are_in_the_status_and_in_the_metrics_of_either_side() {
    let pair = Pair::start();
    sessions(&pair.edge, &pair.home);
    let status = pair.edge.status();
    let tunnel = &status["tunnels"][0];
    for (key, wanted) in [
        ("agents", 1),
        ("connected", 1),
        ("sessions", 2),
        ("services", 1),
    ] {
        assert_eq!(tunnel[key], wanted, "{key}: {tunnel}");
    }
    let drawn = |gate: &Gate| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"));
        let admin = gate.base.admin.to_string();
        let output = command
            .args(["status", "--admin", &admin])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = drawn(&pair.edge);
    assert!(text.contains("\nedge    1 of 1  2         1"), "{text}");
    let text = drawn(&pair.home);
    assert!(
        text.contains("\nAGENT") && text.contains("2 of 2"),
        "{text}"
    );
    let status = pair.home.status();
    let agent = &status["agents"][0];
    assert_eq!(
        (&agent["agent"], &agent["connected"]),
        (&"home".into(), &2.into())
    );
    let metrics = |gate: &Gate| gate.call(Call::get("/metrics")).text();
    let (edge, home) = (metrics(&pair.edge), metrics(&pair.home));
    let labels = "{tunnel=\"edge\",agent=\"home\"}";
    assert!(
        edge.contains(&format!("evergate_tunnel_sessions{labels} 2")),
        "{edge}"
    );
    let bytes = |name: &str| {
        let name = format!("{name}{labels} ");
        let line = edge.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert!(bytes("evergate_tunnel_flows_opened_total") > 0);
    assert!(bytes("evergate_tunnel_sent_bytes_total") > 0);
    assert!(bytes("evergate_tunnel_received_bytes_total") > 0);
    assert!(
        home.contains("evergate_agent_sessions{agent=\"home\"} 2"),
        "{home}"
    );
}
