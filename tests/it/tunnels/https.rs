//! Services that speak TLS: the agent does so for requests, and others do it themselves.

use std::net::SocketAddr;

use super::{Pair, local};
use crate::kit::authority::Authority;
use crate::kit::tls::Client;
use crate::kit::{Gate, free_port, get, until};

/// A site of its own, with a certificate of `ca`'s.
fn site(at: SocketAddr, ca: &Authority) -> Gate {
    let issued = ca.issue(&["shop.test"]);
    Gate::setup()
        .file("shop.crt", issued.cert)
        .file("shop.key", issued.key)
        .start(&format!(
            "[http.shop]\nlisten = \"{at}\"\nrespond = \"the shop\"\n\
             tls.certificates = [{{ cert = \"shop.crt\", key = \"shop.key\" }}]\n"
        ))
}

/// The service of an agent that trusts `ca`.
fn service(at: SocketAddr, ca: &Authority, name: &str) -> String {
    let pem = ca.pem();
    format!(
        "[agents.home.services.shop]\nto = \"https://{at}\"\n\
         tls = {{ server_name = \"{name}\", ca = '''{pem}''' }}\n"
    )
}

#[test]
fn the_agent_speaks_tls_for_requests_and_passes_on_what_is_tls_already() {
    let (pair, ca, at) = (Pair::start(), Authority::new(), local(free_port()));
    let shop = site(at, &ca);
    let [plain, ended, passed, h2] = [(); 4].map(|()| local(free_port()));
    let edge = format!(
        "{}[http.plain]\nlisten = \"{plain}\"\nproxy = \"tunnel:home/shop\"\n\
         [http.ended]\nlisten = \"{ended}\"\nproxy = \"tunnel:home/shop\"\ntls.self_signed = [\"shop.test\"]\n\
         [tcp.passed]\nlisten = \"{passed}\"\nsni = {{ \"shop.test\" = \"tunnel:home/shop\" }}\n\
         [upstreams.h2]\ntargets = \"tunnel:home/shop\"\nprotocol = \"h2c\"\n\
         health = {{ path = \"/\", interval = \"100ms\", unhealthy_after = 1 }}\n\
         [http.h2]\nlisten = \"{h2}\"\nproxy = \"h2\"\n",
        pair.edge()
    );
    pair.edge.reload_ok(&edge);
    let home = |service: &str| format!("{}\n{service}", pair.home());
    pair.home.reload_ok(&home(&service(at, &ca, "shop.test")));
    pair.wait_services(2);
    for _ in 0..3 {
        assert_eq!(get(plain, "x", "/").text(), "the shop");
        assert_eq!(get(h2, "x", "/").text(), "the shop");
    }
    let answer = Client::new().get(ended, "shop.test", "/");
    assert_eq!(answer.text(), "the shop");
    // Only who ends TLS at the service itself is given the certificate of the shop.
    let trusting = Client::trusting(&ca.pem());
    assert!(trusting.open(ended, "shop.test").is_err());
    assert_eq!(trusting.get(passed, "shop.test", "/").text(), "the shop");

    // Its health is what the agent sees of it.
    let health = |wanted: &'static str| {
        pair.edge.wait_status("its health", |status| {
            let mut all = status["upstreams"].as_array().unwrap().iter();
            let h2 = all.find(|u| u["name"] == "h2").unwrap();
            h2["targets"][0]["health"] == wanted
        });
    };
    health("up");
    shop.freeze();
    health("down");
    shop.thaw();
    health("up");

    // What it trusts is part of the service: connections from before are not used any more.
    for (ca, name, what) in [
        (&Authority::new(), "shop.test", "invalid peer certificate"),
        (&ca, "other.test", "other.test"),
    ] {
        pair.home.reload_ok(&home(&service(at, ca, name)));
        let error = until("the service to be distrusted", || {
            let status = get(plain, "x", "/").status;
            let services = pair.published()["services"].clone();
            let shop = services
                .as_array()?
                .iter()
                .find(|s| s["service"] == "shop")?;
            let error = shop["last_error"].as_str()?.to_owned();
            (status == 503 && error.contains(what)).then_some(error)
        });
        assert!(error.contains(&format!("TLS with {at}")), "{error}");
    }
    // That is no matter of the agent's where it passes TLS on.
    assert_eq!(trusting.get(passed, "shop.test", "/").text(), "the shop");
}

#[test]
fn tls_of_a_service_that_speaks_none_is_refused() {
    let pair = Pair::start();
    for (service, pointer) in [
        (
            "services.x = { to = \"http://127.0.0.1:1\", tls = {} }",
            "/agents/home/services/x/tls",
        ),
        (
            "services.x = { to = \"udp://127.0.0.1:1\", dedicated = true }",
            "/agents/home/services/x/dedicated",
        ),
    ] {
        let answer = pair.home.reload(&pair.with_services(service));
        assert_eq!(answer.status, 422);
        assert_eq!(answer.pointers(), [pointer], "{}", answer.text());
    }
}
