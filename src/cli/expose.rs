//! `edge` and `expose`: a service behind NAT, published with two commands. Documents like those of the other quick modes.

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Map, Value, json};

use super::Exit;
use super::quick::{self, Common};

/// Where a token is looked for that is not on the command line.
const TOKEN: &str = "EVERGATE_TUNNEL_TOKEN";
/// The port of an edge, where none is said.
const PORT: u16 = 7000;

/// What both sides must say alike.
#[derive(Debug, ClapArgs)]
struct Alike {
    /// The secret that both sides know; it is never sent. Better given by the environment than on the command line
    #[arg(long, env = TOKEN, hide_env_values = true, value_name = "TOKEN")]
    token: String,
    /// The name of the agent
    #[arg(long, value_name = "NAME", default_value = "home")]
    agent: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Edge {
    /// Where agents come: HOST:PORT or :PORT (all addresses)
    #[arg(long, value_name = "ADDR", default_value = ":7000")]
    listen: String,
    /// Where requests for an `http` or `https` service come; :8080 if nothing else is published
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Where connections for a `tcp` service come
    #[arg(long, value_name = "ADDR")]
    tcp: Option<String>,
    /// Where datagrams for a `udp` service come
    #[arg(long, value_name = "ADDR")]
    udp: Option<String>,
    #[command(flatten)]
    alike: Alike,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Service {
    Http,
    /// HTTP over TLS. The certificate of a service on this machine is not checked
    Https,
    Tcp,
    Udp,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Expose {
    /// What the service speaks
    kind: Service,
    /// Where it is: PORT or HOST:PORT
    #[arg(value_name = "PORT")]
    at: String,
    /// The edge: HOST or HOST:PORT; 7000 if no port is said
    #[arg(long, value_name = "EDGE")]
    to: String,
    /// The key of the edge (`sha256/…`, as its /tunnels shows it). Without `--pin` and `--ca` the edge only has to prove that
    /// it knows the token
    #[arg(long, value_name = "PIN", conflicts_with = "ca")]
    pin: Option<String>,
    /// The CA of the edge: a PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<String>,
    #[command(flatten)]
    alike: Alike,
    #[command(flatten)]
    common: Common,
}

impl Alike {
    /// What stands in the document: a token of the environment stays there.
    fn secret(&self) -> Value {
        match std::env::var(TOKEN) {
            Ok(token) if token == self.token => json!({ "env": TOKEN }),
            _ => json!(self.token),
        }
    }
}

pub(crate) fn edge(args: &Edge) -> Exit {
    let agent = &args.alike.agent;
    let mut document = Map::new();
    let tunnel = json!({
        "listen": args.listen,
        "tls": { "self_signed": ["localhost"] },
        "tokens": { agent.as_str(): args.alike.secret() },
    });
    document.insert("tunnels".into(), json!({ "edge": tunnel }));
    let http = match (&args.http, &args.tcp, &args.udp) {
        (None, None, None) => Some(":8080"),
        (http, ..) => http.as_deref(),
    };
    if let Some(listen) = http {
        let server = json!({ "listen": listen, "proxy": format!("tunnel:{agent}/http") });
        document.insert("http".into(), json!({ "edge": server }));
    }
    if let Some(listen) = &args.tcp {
        let port = json!({ "listen": listen, "upstream": format!("tunnel:{agent}/tcp") });
        document.insert("tcp".into(), json!({ "edge": port }));
    }
    if let Some(listen) = &args.udp {
        let port = json!({ "listen": listen, "upstream": format!("tunnel:{agent}/udp") });
        document.insert("udp".into(), json!({ "edge": port }));
    }
    quick::run(&args.common, "edge", document)
}

pub(crate) fn expose(args: &Expose) -> Exit {
    // The edge takes requests for either kind to one name.
    let (kind, name) = match args.kind {
        Service::Http => ("http", "http"),
        Service::Https => ("https", "http"),
        Service::Tcp => ("tcp", "tcp"),
        Service::Udp => ("udp", "udp"),
    };
    let (host, is_here) = match args.at.parse::<u16>() {
        Ok(port) => (format!("127.0.0.1:{port}"), true),
        Err(_) => (args.at.clone(), is_loopback(&args.at)),
    };
    let mut service = json!({ "to": format!("{kind}://{host}") });
    if args.kind == Service::Https && is_here {
        // No CA vouches for such an address, and nobody is between.
        service["tls"] = json!({ "insecure": true });
    }
    let tls = match (&args.pin, &args.ca) {
        (Some(pin), _) => json!({ "pin": pin }),
        (None, Some(ca)) => json!({ "ca": ca }),
        (None, None) => json!({ "insecure": true }),
    };
    let agent = json!({
        "server": with_port(&args.to),
        "token": args.alike.secret(),
        "tls": tls,
        // What was named is what is meant, and nothing else.
        "permit": [host.as_str()],
        "services": { name: service },
    });
    let agents = json!({ args.alike.agent.as_str(): agent });
    let document = Map::from_iter([("agents".to_owned(), agents)]);
    quick::run(&args.common, "expose", document)
}

fn is_loopback(at: &str) -> bool {
    let address = at.parse::<std::net::SocketAddr>();
    at.starts_with("localhost:") || address.is_ok_and(|address| address.ip().is_loopback())
}

/// An edge's address with its port.
fn with_port(to: &str) -> String {
    let has_port = to.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    match (has_port, to.contains(':') && !to.starts_with('[')) {
        (true, _) => to.to_owned(),
        (false, true) => format!("[{to}]:{PORT}"),
        (false, false) => format!("{to}:{PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_without_a_port_gets_the_usual_one() {
        for (to, wanted) in [
            ("edge.example.com", "edge.example.com:7000"),
            ("edge.example.com:443", "edge.example.com:443"),
            ("192.0.2.1", "192.0.2.1:7000"),
            ("2001:db8::1", "[2001:db8::1]:7000"),
            ("[2001:db8::1]", "[2001:db8::1]:7000"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(with_port(to), wanted);
        }
    }
}
