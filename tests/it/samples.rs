//! Every file of `config/` starts and answers as it lies there; only the addresses are moved to free ports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::kit::process::{Base, spawn};
use crate::kit::{Call, Gate, free_port, h2c, tls};

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Every listening address of a document, wherever `listen` stands.
fn addresses(value: &serde_json::Value, found: &mut Vec<String>) {
    if let serde_json::Value::Object(table) = value {
        for (key, value) in table {
            match (key.as_str(), value) {
                ("listen", serde_json::Value::String(address)) => found.push(address.clone()),
                ("listen", serde_json::Value::Array(list)) => {
                    found.extend(list.iter().filter_map(|a| a.as_str().map(str::to_owned)));
                }
                _ => addresses(value, found),
            }
        }
    }
}

/// A sample that runs, with ports of its own.
pub(crate) struct Sample {
    pub(crate) gate: Gate,
    /// Where a port that stands in the sample is now.
    moved: BTreeMap<String, u16>,
    /// The sample as it runs.
    pub(crate) text: String,
}

impl Sample {
    pub(crate) fn start(name: &str) -> Sample {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        // A copy of the folder, with ports of our own.
        let dir = tempfile::tempdir().unwrap();
        copy(&folder, dir.path());
        // Longest first, so that `:80` does not eat the head of `:8080`; marks first, so that no new port is moved again.
        let mut ports = ports_of(&text);
        ports.sort_by_key(|p| std::cmp::Reverse(p.len()));
        ports.dedup();
        let moved: BTreeMap<String, u16> = ports.into_iter().map(|p| (p, free_port())).collect();
        let mut text = text;
        for port in moved.keys().rev() {
            text = text.replace(&format!(":{port}"), &format!(":@{port}@"));
        }
        for (port, new) in &moved {
            text = text.replace(&format!(":@{port}@"), &format!(":{new}"));
        }
        // The admin address is moved with the rest where the sample has one, else it gets one.
        let named = text.contains("[admin]");
        let admin = SocketAddr::from((
            [127, 0, 0, 1],
            moved
                .get("8837")
                .copied()
                .filter(|_| named)
                .unwrap_or_else(free_port),
        ));
        if !named {
            text = format!("{text}\n[admin]\nlisten = \"{admin}\"\n");
        }
        let file = dir.path().join(name);
        std::fs::write(&file, &text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"));
        command.args(["run", "-c"]).arg(&file);
        let (child, output) = spawn(command, dir.path());
        let base = Base {
            admin,
            state_dir: dir.path().join("state"),
            runtime: String::new(),
        };
        let gate = Gate::adopt(child, output, base, dir);
        Sample { gate, moved, text }
    }

    /// Where the address with `port` is now.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.moved[&port.to_string()]))
    }
}

#[test]
fn every_sample_starts_and_answers() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for sample in samples() {
        let checked = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["check", "-c"])
            .arg(&sample)
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{}: {}",
            sample.display(),
            String::from_utf8_lossy(&checked.stderr)
        );
        let name = sample.file_name().unwrap().to_str().unwrap();
        let running = Sample::start(name);
        // With `[defaults]` in their places.
        let now = running.gate.call(Call::get("/now?defaults=true")).json();
        for server in now["http"].as_object().unwrap().values() {
            let mut listens = Vec::new();
            addresses(server, &mut listens);
            assert!(!listens.is_empty(), "{name}");
            for address in &listens {
                let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
                let to = SocketAddr::from(([127, 0, 0, 1], port));
                // Its origins are not there: an answer is an answer.
                let status = match server.get("tls") {
                    Some(_) => tls::Client::new().get(to, "localhost", "/").status,
                    None if server["protocols"] == serde_json::json!(["h2"]) => {
                        runtime.block_on(async {
                            let client = h2c::H2::open(to).await;
                            let answer =
                                h2c::send(client.stream(), "GET", "http://localhost/", "").await;
                            answer.unwrap().0.status.as_u16()
                        })
                    }
                    None => crate::kit::get(to, "localhost", "/").status,
                };
                assert!(status >= 200, "{name}: {address}");
            }
        }
    }
}

#[test]
fn the_samples_of_a_tunnel_find_each_other() {
    let edge = Sample::start("tunnel-edge.toml");
    let agent = Sample::start("tunnel-agent.toml");
    let _blog = crate::kit::Origin::on("blog", agent.at(4000));
    let (from, to) = (agent.at(7000).to_string(), edge.at(7000).to_string());
    let text = agent.text.replace(&from, &to);
    agent
        .gate
        .call(Call::post("/reload").toml(&text))
        .expect(200);
    crate::kit::until("the blog to be reached", || {
        (crate::kit::get(edge.at(8092), "x", "/").status == 200).then_some(())
    });
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// The numbers behind a colon that stand at the end of a quoted address.
fn ports_of(text: &str) -> Vec<String> {
    let mut ports = Vec::new();
    for (at, _) in text.match_indices(':') {
        let digits: String = text[at + 1..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let end = text[at + 1 + digits.len()..].chars().next();
        if (2..=5).contains(&digits.len()) && matches!(end, Some('"' | '\'' | '/')) {
            ports.push(digits);
        }
    }
    ports
}
