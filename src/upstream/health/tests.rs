//! States and who has the say, without sockets.
#![allow(clippy::unwrap_used)]

use super::super::error::{Error, Kind};
use super::super::transport::Transport;
use super::*;
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{HealthSpec, OnDown, PassiveSpec, ProbeSpec, Protocol};
use tokio::sync::Semaphore;

const RULES: Rules = Rules {
    healthy_after: 2,
    unhealthy_after: 3,
};

fn target(port: u16, ward: &Arc<Ward>) -> Arc<Health> {
    let address = TargetAddr::Ip(([127, 0, 0, 1], port).into());
    Arc::new(Health::new(("api".into(), address), ward.clone()))
}

/// A check that never asks: there is no permit to be had.
fn check(health: &Arc<Health>) -> Check {
    let spec = HealthSpec {
        probe: ProbeSpec::Tcp {
            send: vec![],
            receive: None,
        },
        port: None,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        healthy_after: RULES.healthy_after,
        unhealthy_after: RULES.unhealthy_after,
        on_down: OnDown::Keep,
    };
    let transport = Transport {
        tunnels: None,
        protocol: Protocol::Http1,
        tls: None,
        proxy_protocol: None,
        via: None,
    };
    let key = CheckKey {
        target: health.key.clone(),
        spec,
        transport: transport.key(),
    };
    let control = tokio::runtime::Handle::current();
    let none = Arc::new(Semaphore::new(0));
    Check::new(&key, health.clone(), None, transport, none, control)
}

fn fail(health: &Health, check: &Check, times: usize) {
    for _ in 0..times {
        assert!(health.checked(check.id(), Err("refused".into()), RULES, false));
    }
}

fn pass(health: &Health, check: &Check) -> bool {
    health.checked(check.id(), Ok("status 200 OK".into()), RULES, false)
}

#[tokio::test]
async fn the_newest_generations_check_has_the_say_and_keeps_what_the_old_one_found() {
    let health = target(1, &Arc::default());
    let old = check(&health);
    health.begin(Some(&old), false, false);
    fail(&health, &old, 3);
    assert_eq!(health.state(), State::Down);
    let report = health.report().check.unwrap();
    assert_eq!((report.passed, report.streak), (false, 3));
    // A prepared generation has no say yet.
    let new = check(&health);
    assert!(!pass(&health, &new));
    health.begin(Some(&new), false, true);
    assert_eq!(health.state(), State::Down);
    assert!(!health.checked(old.id(), Err("old".into()), RULES, false));
    assert!(pass(&health, &new) && pass(&health, &new));
    assert_eq!(health.state(), State::Up);
    // The old one's end is no matter; going back to it gives it the say again.
    health.begin(Some(&old), false, true);
    drop(new);
    assert!(pass(&health, &old));
    drop(old);
    assert!(health.book.lock().charge.is_none());
}

#[tokio::test]
async fn without_a_check_nobody_says_that_it_is_down() {
    let health = target(1, &Arc::default());
    let old = check(&health);
    health.begin(Some(&old), false, false);
    fail(&health, &old, 3);
    health.begin(None, false, true);
    assert_eq!(health.state(), State::Up);
    assert!(health.report().check.is_none());
    assert!(!health.checked(old.id(), Err("late".into()), RULES, false));
}

#[tokio::test]
async fn checks_run_while_they_are_in_charge_and_end_with_their_lease() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let health = target(1, &Arc::default());
    let (old, new) = (check(&health), check(&health));
    assert_eq!(tasks(), 0);
    for _ in 0..3 {
        health.begin(Some(&old), false, false);
    }
    assert_eq!(tasks(), 1);
    health.begin(Some(&new), false, false);
    while tasks() > 1 {
        tokio::task::yield_now().await;
    }
    drop(new);
    while tasks() > 0 {
        tokio::task::yield_now().await;
    }
    drop(old);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_comes_back_or_is_new_to_what_runs_starts_slowly() {
    let over = Duration::from_secs(10);
    let at_boot = target(1, &Arc::default());
    let checking = check(&at_boot);
    at_boot.begin(Some(&checking), false, false);
    assert_eq!(at_boot.share(over), 100);
    fail(&at_boot, &checking, 3);
    assert!(pass(&at_boot, &checking) && pass(&at_boot, &checking));
    assert_eq!(at_boot.share(over), 10);
    tokio::time::advance(over).await;
    assert_eq!(at_boot.share(over), 100);
    let new = target(2, &Arc::default());
    new.begin(None, false, true);
    assert_eq!(new.share(over), 10);
    // A swap later it is as far as it has come.
    tokio::time::advance(over / 2).await;
    new.begin(None, false, true);
    assert_eq!(new.share(over), 55);
}

#[test]
fn a_cut_ends_what_began_before_it_only() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _in = runtime.enter();
    let health = target(1, &Arc::default());
    let checking = check(&health);
    health.begin(Some(&checking), false, false);
    let before = health.cut();
    for _ in 0..3 {
        health.checked(checking.id(), Err("refused".into()), RULES, true);
    }
    assert!(before.is_cancelled() && !health.cut().is_cancelled());
}

fn passive(members: &[Arc<Health>]) -> Passive {
    let spec = PassiveSpec {
        failures: 3,
        window: Duration::from_secs(10),
        eject: Duration::from_secs(30),
    };
    let control = tokio::runtime::Handle::current();
    Passive::new(spec, members.into(), control)
}

fn reset() -> Error {
    Error::upstream(Kind::ConnectionTerminated, "reset")
}

#[tokio::test(start_paused = true)]
async fn failures_within_the_window_eject_and_time_brings_back() {
    let ward = Arc::default();
    let all = [target(1, &ward), target(2, &ward)];
    let passive = passive(&all);
    for _ in 0..5 {
        passive.failed(&all[0], &reset());
        tokio::time::advance(Duration::from_secs(6)).await;
    }
    assert_eq!(all[0].state(), State::Up);
    for status in [502, 500, 404, 200] {
        let status = ::http::StatusCode::from_u16(status).unwrap();
        passive.answered(&all[0], status);
    }
    let mine = Error::client(::http::StatusCode::BAD_REQUEST, "a broken body");
    passive.failed(&all[0], &mine);
    // One reset is young enough, one 502: two.
    assert_eq!(all[0].state(), State::Up);
    passive.failed(&all[0], &reset());
    assert_eq!(all[0].state(), State::Ejected);
    assert!(all[0].report().ejected.unwrap().contains("reset"));
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(all[0].state(), State::Ejected);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(all[0].state(), State::Up);
    assert!(all[0].share(Duration::from_secs(60)) < 20);
}

#[tokio::test(start_paused = true)]
async fn at_most_half_is_ejected_and_never_the_last_that_is_up() {
    let ward = Arc::default();
    let all: Vec<_> = (0..5).map(|port| target(port, &ward)).collect();
    let rules = passive(&all);
    for _ in 0..20 {
        all.iter().for_each(|target| rules.failed(target, &reset()));
    }
    let ejected = all.iter().filter(|t| t.state() == State::Ejected).count();
    assert_eq!(ejected, 2);
    let pair = [target(1, &ward), target(2, &ward)];
    let rules = passive(&pair);
    let checking = check(&pair[0]);
    pair[0].begin(Some(&checking), true, false);
    fail(&pair[0], &checking, 3);
    for _ in 0..3 {
        rules.failed(&pair[1], &reset());
    }
    assert_eq!(pair[1].state(), State::Up);
    let alone = [target(1, &ward)];
    let rules = passive(&alone);
    (0..9).for_each(|_| rules.failed(&alone[0], &reset()));
    assert_eq!(alone[0].state(), State::Up);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_down_and_ejected_is_down_until_both_are_over() {
    let ward = Arc::default();
    let all = [target(1, &ward), target(2, &ward)];
    let rules = passive(&all);
    let checking = check(&all[0]);
    all[0].begin(Some(&checking), true, false);
    (0..3).for_each(|_| rules.failed(&all[0], &reset()));
    fail(&all[0], &checking, 3);
    assert_eq!(all[0].state(), State::Down);
    assert!(pass(&all[0], &checking) && pass(&all[0], &checking));
    assert_eq!(all[0].state(), State::Ejected);
    // A generation that ejects nothing takes it back.
    all[0].begin(Some(&checking), false, true);
    assert!(all[0].is_up());
}
