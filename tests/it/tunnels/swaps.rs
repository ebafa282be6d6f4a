//! Swaps of other things, on both sides and under load, are not noticed by anything.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Pair, edge, home, local, sessions};
use crate::kit::load::{Load, Shape};
use crate::kit::{Origin, count, free_port};
use crate::tcp::{echo, open};

/// Numbers, each of which must come back, until it is told to stop. How many did.
fn numbers(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    use std::io::{Read as _, Write as _};
    let mut n = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let mut heard = [0; 8];
        stream.write_all(&n.to_be_bytes()).unwrap();
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, n.to_be_bytes());
        n += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    n
}

/// Done when 3.
#[test]
fn release_fifty_swaps_on_either_side_are_not_noticed() {
    let (pair, origin, at) = (Pair::start(), echo(), local(free_port()));
    let (other, elsewhere) = (Origin::start("other"), local(free_port()));
    // Everything that is not the tunnel, and another service of it.
    let edge_text = |n: usize| {
        let tcp = format!("[tcp.ssh]\nlisten = \"{at}\"\nupstream = \"tunnel:home/ssh\"\n");
        let more = format!(
            "{tcp}[http.other]\nlisten = \"{elsewhere}\"\n[[http.other.routes]]\nname = \"r{n}\"\n\
             match.path = \"/n{n}\"\nrespond = \"{n}\"\n"
        );
        edge(pair.agents, pair.web, &more)
    };
    let home_text = |n: usize| {
        let lines = format!("{}\nservices.ssh = \"tcp://{}\"", pair.lines, origin.addr);
        let service = format!("services.n{} = \"http://{}\"", n % 7, other.addr);
        let web = format!("[http.local]\nlisten = \"127.0.0.1:0\"\nrespond = \"{n}\"");
        home(
            pair.agents,
            pair.blog.addr,
            &lines,
            &format!("{service}\n{web}"),
        )
    };
    pair.home.reload_ok(&home_text(0));
    pair.edge.reload_ok(&edge_text(0));
    let before = sessions(&pair.edge, &pair.home);
    crate::kit::until("the services to be known", || {
        (pair.published()["services"].as_array()?.len() == 3).then_some(())
    });
    let load = Load::start(Shape {
        path: "/who".to_owned(),
        kept: count(16, 4),
        fresh: count(200, 20) as u64,
        post: 100,
        ..Shape::new(pair.web)
    });
    let stop = AtomicBool::new(false);
    let exchanged = std::thread::scope(|scope| {
        let stop = &stop;
        let streams: Vec<_> = (0..count(20, 4)).map(|_| open(at)).collect();
        let talking = streams
            .into_iter()
            .map(|s| scope.spawn(move || numbers(s, stop)));
        let talking: Vec<_> = talking.collect();
        for n in 1..=count(50, 10) {
            pair.edge.reload_ok(&edge_text(n));
            load.wait_more(count(20, 5) as u64);
            pair.home.reload_ok(&home_text(n));
            load.wait_more(count(20, 5) as u64);
        }
        stop.store(true, Ordering::SeqCst);
        talking
            .into_iter()
            .map(|one| one.join().unwrap())
            .sum::<u64>()
    });
    let report = load.finish();
    println!(
        "{} answers, {exchanged} numbers, nothing failed",
        report.answers
    );
    assert_eq!(sessions(&pair.edge, &pair.home), before);
    pair.edge.wait_settled();
    pair.home.wait_settled();
}
