#![allow(clippy::unwrap_used)]

use super::table::NAMES;
use super::*;
use crate::generation::{Generation, Verdict};

fn workers(of: usize) -> Vec<Arc<Sessions>> {
    (0..of).map(|index| Sessions::new(index, of)).collect()
}

fn named(listener: &str) -> Start {
    Start {
        client: Some("10.0.0.1:99".parse().unwrap()),
        listener: Some(listener.into()),
        ..Start::default()
    }
}

#[test]
fn a_session_is_there_from_its_beginning_to_its_drop_and_its_bytes_stay() {
    let all = workers(2);
    let session = all[1].open(Kind::Tcp, named("db"));
    session.received(3);
    session.sent(4);
    session.passed(10, 20);
    session.destination("10.0.0.9:5432");
    let (page, next) = page(&all, &Wanted::default(), 0, 10);
    assert_eq!((page.len(), next), (1, None));
    assert_eq!((page[0].received, page[0].sent), (10, 20));
    assert_eq!(page[0].destination.as_deref(), Some("10.0.0.9:5432"));
    let tcp = || totals(&all)[Kind::Tcp as usize].1;
    let mut expected = Totals {
        open: 1,
        opened: 1,
        received: 10,
        sent: 20,
    };
    assert_eq!(tcp(), expected);
    drop(session);
    expected.open = 0;
    assert_eq!(tcp(), expected);
    assert!(super::page(&all, &Wanted::default(), 0, 10).0.is_empty());
}

#[test]
fn pages_show_each_once_in_order_whatever_ends_between() {
    let all = workers(3);
    let mut open: Vec<Session> = (0..900)
        .map(|n| all[n % 3].open([Kind::Tcp, Kind::Udp][n % 2], named(["a", "b"][n % 2])))
        .collect();
    let wanted = Wanted {
        kind: Some(Kind::Udp),
        client: Some("10.0.0.1".parse().unwrap()),
        listener: Some("b".to_owned()),
    };
    let (mut seen, mut cursor) = (Vec::new(), 0);
    loop {
        let (infos, next) = page(&all, &wanted, cursor, 7);
        seen.extend(infos.iter().map(|info| info.id));
        open.truncate(open.len() - 1);
        let Some(next) = next else { break };
        cursor = next;
    }
    assert!(seen.is_sorted_by(|a, b| a < b));
    assert!(
        open.iter()
            .all(|session| session.shared.kind() != Kind::Udp || seen.contains(&session.id()))
    );
    let other = Wanted {
        listener: Some("a".to_owned()),
        ..wanted
    };
    assert!(page(&all, &other, 0, 7).0.is_empty());
}

#[test]
fn bytes_are_counted_by_listener_and_of_too_many_the_silent_are_forgotten() {
    let all = workers(2);
    let of = |name: &str| {
        let names = names(&all);
        names.get(&(Kind::Tcp, name.into())).copied()
    };
    let (db, other) = (
        all[0].open(Kind::Tcp, named("db")),
        all[1].open(Kind::Tcp, named("db")),
    );
    let _udp = all[0].open(Kind::Udp, named("db"));
    db.passed(1, 2);
    other.passed(10, 20);
    drop(other);
    let mut expected = Totals {
        open: 1,
        opened: 2,
        received: 11,
        sent: 22,
    };
    assert_eq!(of("db"), Some(expected));
    drop(all[0].open(Kind::Tcp, named("gone")));
    let many: Vec<_> = (0..NAMES)
        .map(|n| all[0].open(Kind::Tcp, named(&n.to_string())))
        .collect();
    // Those that are open have their names; who comes when there is no room is counted without.
    assert_eq!(of("gone"), None);
    assert_eq!(of("db"), Some(expected));
    assert_eq!(of("").unwrap().open, 2);
    drop(many);
    assert_eq!(of("").unwrap().open, 0);
    drop(all[0].open(Kind::Tcp, named("late")));
    assert_eq!(of("late").unwrap().opened, 1);
    drop(db);
    expected.open = 0;
    assert_eq!(of("db"), Some(expected));
}

#[tokio::test]
async fn one_is_told_to_end_once() {
    let all = workers(2);
    let (one, other) = (
        all[0].open(Kind::Connect, Start::default()),
        all[1].open(Kind::Connect, Start::default()),
    );
    assert_ne!(one.id(), other.id());
    let waiting = tokio::spawn(async move {
        other.closed().await;
        other
    });
    tokio::task::yield_now().await;
    let id = one.id() + 1;
    let told = close(&all, id).unwrap();
    assert_eq!((told.id, told.closing), (id, true));
    let other = waiting.await.unwrap();
    assert!(close(&all, id).is_some());
    let told: Vec<_> = page(&all, &Wanted::default(), 0, 9).0;
    assert!(!told[0].closing && told[1].closing);
    drop(other);
    for none in [id, 0, u64::MAX] {
        assert!(close(&all, none).is_none(), "{none}");
    }
}

#[test]
fn its_generation_is_the_one_it_has_moved_to() {
    let all = workers(1);
    let (old, new) = (Generation::new(3), Generation::new(4));
    let flight = old.begin(1);
    flight.define(7);
    let start = Start {
        watch: Some(flight.watch()),
        ..Start::default()
    };
    let _session = all[0].open(Kind::Websocket, start);
    let generation = || page(&all, &Wanted::default(), 0, 9).0[0].generation;
    assert_eq!(generation(), Some(3));
    old.settle(false, |_| Verdict::Moves(new.clone()));
    assert_eq!(generation(), Some(4));
}

#[test]
fn names_are_unique_and_read_back() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.name()), Some(kind));
        assert_eq!(Kind::ALL[kind as usize], kind);
    }
    assert_eq!(Kind::parse("http"), None);
}
