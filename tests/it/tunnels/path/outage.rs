//! The way between them is cut, or one of them is gone, or has moved: it comes back by itself, and what did not depend on
//! what broke has not noticed.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Far;
use crate::kit::link::{Link, MOVED, Quality};
use crate::kit::raw::try_get;
use crate::kit::{count, until};
use crate::tcp::exchange;

/// From the return of the path to the return of the service.
const BACK: Duration = Duration::from_secs(5);
/// The same where nothing says that the old address is gone.
const MOVE: Duration = Duration::from_secs(15);
/// Until one side knows that the other does not answer.
const NOTICE: Duration = Duration::from_secs(25);

fn in_time(what: &str, since: Instant, limit: Duration) {
    let took = since.elapsed();
    println!("{what} after {took:?}");
    assert!(
        cfg!(debug_assertions) || took <= limit,
        "{what} after {took:?}"
    );
}

fn answers(far: &Far) -> Option<()> {
    (try_get(far.web, "x", "/who").ok()?.status == 200).then_some(())
}

fn back(far: &Far, since: Instant, limit: Duration) {
    until("the service to be back", || answers(far));
    in_time("back", since, limit);
    far.wait_sessions(2);
}

#[test]
fn release_a_link_that_was_cut_is_used_as_soon_as_it_is_back() {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        let before = far.sessions();
        let mut stream = far.connect(far.echo);
        exchange(&mut stream, "before");
        // A short one is nothing but late.
        link.cut(true);
        std::thread::sleep(Duration::from_secs(2));
        link.cut(false);
        exchange(&mut stream, "after");
        assert_eq!(far.sessions(), before);

        let since = Instant::now();
        link.cut(true);
        far.wait_sessions(0);
        in_time("noticed by the edge", since, NOTICE);
        until("the agent to notice", || {
            let agent = link.far(|| super::super::agent(&far.home));
            let all = agent["sessions"].as_array()?.clone();
            all.iter()
                .all(|s| s["trouble"] == "unreachable")
                .then_some(())
        });
        in_time("noticed by the agent", since, NOTICE);
        assert_eq!(try_get(far.web, "x", "/who").unwrap().status, 503);
        std::thread::sleep(
            Duration::from_secs(count(30, 0) as u64).saturating_sub(since.elapsed()),
        );
        link.cut(false);
        back(&far, Instant::now(), BACK);
    });
}

#[test]
fn release_either_side_comes_back_after_it_was_killed() {
    Link::with(Quality::default(), |link| {
        let mut far = Far::start(link, 2);
        assert!(answers(&far).is_some());
        far.edge.signal(Signal::KILL);
        far.edge = far.edge.restart();
        back(&far, Instant::now(), BACK);
        let home = far.home;
        far.home = link.far(|| {
            home.signal(Signal::KILL);
            home.restart()
        });
        back(&far, Instant::now(), BACK);
    });
}

#[test]
fn release_an_agent_whose_address_changes_comes_back_from_the_new_one() {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        assert!(answers(&far).is_some());
        let since = Instant::now();
        link.move_far_end();
        back(&far, since, MOVE);
        until("sessions from the new address alone", || {
            let all = far.sessions();
            let moved = all.iter().all(|(_, peer)| peer.ip() == MOVED);
            (all.len() == 2 && moved).then_some(())
        });
    });
}

#[test]
fn release_new_flows_keep_away_from_a_session_that_may_be_dead() {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        let before = far.sessions();
        let dead = &before[0].0;
        let opened = |overdue: bool| {
            let published = far.published();
            let mut all = published["sessions"].as_array()?.iter();
            let session = all.find(|s| s["session"] == **dead)?;
            (session["overdue"] == overdue).then(|| session["opened"].as_u64())?
        };
        assert!(opened(false).is_some());
        link.bar(before[0].1.port());
        let there = until("it to be overdue", || opened(true));
        // The least loaded session has the next one, and these stay open.
        let streams = [(); 6].map(|()| {
            let mut stream = crate::tcp::open(far.echo);
            exchange(&mut stream, "hello");
            stream
        });
        // It may have ended meanwhile, on a slow machine.
        let late = opened(true).unwrap_or(there);
        println!("the dead one had {there} flows, and has {late}");
        assert_eq!(late, there);
        drop(streams);
        link.bar(0);
        let after = far.wait_sessions(2);
        assert!(after.contains(&before[1]), "{before:?}, {after:?}");
        assert!(answers(&far).is_some());
    });
}

/// Exchanges a word again and again until it is told to stop. The longest time that one took; none: it broke.
fn talk(mut stream: TcpStream, stop: &AtomicBool) -> Option<Duration> {
    use std::io::{Read as _, Write as _};
    let mut longest = Duration::ZERO;
    let mut n = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let (since, word) = (Instant::now(), n.to_be_bytes());
        let mut heard = [0; 8];
        stream.write_all(&word).ok()?;
        stream.read_exact(&mut heard).ok()?;
        assert_eq!(heard, word);
        longest = longest.max(since.elapsed());
        n += 1;
    }
    Some(longest)
}

#[test]
fn release_what_goes_over_the_session_that_survives_does_not_notice() {
    Link::with(Quality::default(), |link| {
        let far = Far::start(link, 2);
        let before = far.sessions();
        // The least loaded session has the next one.
        let streams = [(); 2].map(|()| {
            let mut stream = crate::tcp::open(far.echo);
            exchange(&mut stream, "hello");
            stream
        });
        let stop = AtomicBool::new(false);
        let (talked, after) = std::thread::scope(|scope| {
            let stop = &stop;
            let talking = streams.map(|stream| scope.spawn(move || talk(stream, stop)));
            link.bar(before[0].1.port());
            let after = until("another session in its place", || {
                let all = far.sessions();
                (all.len() == 2 && !all.contains(&before[0])).then_some(all)
            });
            stop.store(true, Ordering::SeqCst);
            (talking.map(|one| one.join().unwrap()), after)
        });
        assert!(after.contains(&before[1]), "{before:?}, {after:?}");
        let well: Vec<_> = talked.iter().flatten().collect();
        println!("the longest exchange on the session that survives: {well:?}");
        assert_eq!(well.len(), 1, "one of two sessions was cut: {talked:?}");
        assert!(
            cfg!(debug_assertions) || *well[0] < Duration::from_millis(500),
            "{well:?}"
        );
        assert!(answers(&far).is_some());
    });
}
