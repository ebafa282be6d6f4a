//! A server with many agents, whose end they all see at the same moment.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{TOKEN, local, pin};
use crate::kit::{Gate, count, free_port, until};

/// Looked at together.
const WINDOW: Duration = Duration::from_millis(100);

fn server(agents: usize, at: SocketAddr) -> String {
    let tokens: Vec<String> = (0..agents).map(|n| format!("a{n} = \"{TOKEN}\"")).collect();
    format!(
        "[tunnels.edge]\nlisten = \"{at}\"\ntls.self_signed = [\"localhost\"]\ntokens = {{ {} }}\n",
        tokens.join(", ")
    )
}

fn clients(agents: usize, at: SocketAddr, pin: &str) -> String {
    let one = |n: usize| {
        format!(
            "[agents.a{n}]\nserver = \"{at}\"\nsessions = 1\ntoken = \"{TOKEN}\"\ntls.pin = \"{pin}\"\n\
             services.blog = \"http://127.0.0.1:9\"\n"
        )
    };
    (0..agents).map(one).collect()
}

fn wait_all(edge: &Gate, agents: usize) {
    edge.wait_status("all agents to be there", |status| {
        status["tunnels"][0]["connected"] == agents
    });
}

/// When somebody came, for so long. It closes whatever comes.
fn attempts(at: SocketAddr, time: Duration) -> Vec<Duration> {
    let listener = until("the port to be free again", || TcpListener::bind(at).ok());
    listener.set_nonblocking(true).unwrap();
    let (start, mut came) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        match listener.accept() {
            Ok((stream, _)) => {
                came.push(start.elapsed());
                drop(stream);
            }
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    came
}

#[test]
fn release_five_hundred_agents_of_a_server_that_restarts_are_no_stampede() {
    let (agents, at) = (count(500, 40), local(free_port()));
    let edge = Gate::start(&server(agents, at));
    let home = Gate::start(&clients(agents, at, &pin(&edge)));
    wait_all(&edge, agents);
    edge.signal(Signal::KILL);
    // While it is away they come at random, and not together.
    let (time, early) = (
        Duration::from_secs(count(12, 7) as u64),
        Duration::from_secs(3),
    );
    let came = attempts(at, time);
    let late: Vec<_> = came.iter().filter(|at| **at >= early).collect();
    let windows = (time - early).as_millis() / WINDOW.as_millis();
    let mut counts = vec![0; windows as usize + 1];
    for at in &late {
        counts[((**at - early).as_millis() / WINDOW.as_millis()) as usize] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0);
    println!(
        "{agents} agents: {} tries in {time:?}, {} of them after {early:?}, at most {most} within {WINDOW:?}",
        came.len(),
        late.len()
    );
    assert!(late.len() >= agents, "they have given up: {}", late.len());
    // On average a tenth of them come in each.
    assert!(most <= (agents / 4).max(20), "{most} within {WINDOW:?}");
    let since = Instant::now();
    let edge = edge.restart();
    wait_all(&edge, agents);
    let took = since.elapsed();
    println!("all back {took:?} after the start");
    assert!(
        cfg!(debug_assertions) || took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(home.output().len() < 1 << 20);
}
