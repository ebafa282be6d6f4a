//! What is not to be had any more is not had over connections from before either: they are kept open between requests.

use super::{Pair, TOKEN, home, sessions};
use crate::kit::{Call, Origin, get, until};

#[test]
fn a_service_that_the_agent_does_not_have_any_more() {
    let pair = Pair::start();
    let none = pair.home().replace("services.blog", "services.other");
    pair.home.reload_ok(&none);
    until("the service to be gone", || {
        (get(pair.web, "x", "/who").status == 503).then_some(())
    });
    assert_eq!(pair.statuses(), [503; 20]);
    // The connections themselves end, on the agent's side too.
    until("no flow to be left", || {
        let list = pair.edge.call(Call::get("/tunnels")).expect(200);
        (list["tunnels"][0]["agents"][0]["flows"] == 0).then_some(())
    });
    pair.home.reload_ok(&pair.home());
    until("the service to be back", || {
        (get(pair.web, "x", "/who").status == 200).then_some(())
    });
    assert_eq!(pair.statuses(), [200; 20]);
}

#[test]
fn a_service_that_is_somewhere_else_now() {
    let pair = Pair::start();
    let other = Origin::start("other");
    let moved = home(pair.agents, other.addr, &pair.lines, "");
    pair.home.reload_ok(&moved);
    until("the other origin to answer", || {
        (get(pair.web, "x", "/who").text() == "other /who").then_some(())
    });
    for _ in 0..20 {
        assert_eq!(get(pair.web, "x", "/who").text(), "other /who");
    }
}

#[test]
fn a_service_that_is_not_granted_any_more() {
    let pair = Pair::start();
    let before = sessions(&pair.edge, &pair.home);
    let granted = |services: &str| {
        let grants = format!("grants.home.services = {services}\n[http.web]");
        pair.edge().replace("[http.web]", &grants)
    };
    pair.edge.reload_ok(&granted("[\"other\"]"));
    // At once: what holds is asked at every flow.
    assert_eq!(pair.statuses(), [503; 20]);
    let refused = until("the agent to be told", || {
        let why = super::agent(&pair.home)["services"][0]["refused"].clone();
        why.as_str().map(str::to_owned)
    });
    assert!(refused.contains("not granted"), "{refused}");
    pair.edge.reload_ok(&granted("[\"bl*\"]"));
    assert_eq!(pair.statuses(), [200; 20]);
    assert_eq!(sessions(&pair.edge, &pair.home), before);
}

#[test]
fn an_agent_that_may_not_come_any_more() {
    let pair = Pair::start();
    let other = pair.edge().replace(TOKEN, "another-horse-battery-staple");
    pair.edge.reload_ok(&other);
    assert_eq!(pair.statuses(), [503; 20]);
    until("its sessions to end", || {
        let list = pair.edge.call(Call::get("/tunnels")).expect(200);
        (list["tunnels"][0]["agents"][0]["connected"] == false).then_some(())
    });
    // Each of its sessions says why, whichever was told first.
    until("all to say that they are refused", || {
        let sessions = super::agent(&pair.home)["sessions"].clone();
        let mut all = sessions.as_array()?.iter();
        all.all(|s| s["trouble"] == "refused").then_some(())
    });
}
