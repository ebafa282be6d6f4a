#![allow(clippy::unwrap_used)]
//! What is said once: `[defaults]`, `include` and `${NAME}`, read as a whole.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::config::diagnostic::render_diagnostics;
use crate::config::http::ActionSpec;
use crate::config::upstream::ProbeSpec;

const FORMATS: [Format; 3] = [Format::Toml, Format::Json, Format::Yaml];

/// A folder with a document and what it may include.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, text: &str) -> Result<Parsed, Refused> {
        self.read_as(text, Format::Toml, None)
    }

    fn read_as(
        &self,
        text: &str,
        format: Format,
        running: Option<&Document>,
    ) -> Result<Parsed, Refused> {
        let context = Context {
            base: self.0.path().to_owned(),
            running,
        };
        Document::parse_in(text.as_bytes(), format, &context, &outside(None))
    }

    /// What is wrong: file, line, column, pointer and message.
    fn wrong(&self, text: &str) -> Vec<String> {
        let base = self.0.path().display().to_string();
        let of = |d: &Diagnostic| {
            let file = d.file.as_deref().unwrap_or("main");
            let (line, column) = (d.line.unwrap_or(0), d.column.unwrap_or(0));
            format!("{file}:{line}:{column} {} {}", d.pointer, d.message).replace(&base, "$")
        };
        match self.read(text).unwrap_err() {
            Refused::Syntax(errors) | Refused::Unavailable(errors) => {
                errors.iter().map(of).collect()
            }
            Refused::Invalid { errors, .. } => errors.iter().map(of).collect(),
        }
    }
}

fn outside(included: Option<&[Included]>) -> Outside<'_> {
    Outside {
        has_ipv6: true,
        environment: Some(&|name| match name {
            "PORT" => Some("8080".into()),
            "PAUSE" => Some("5s".into()),
            "COUNT" => Some("7".into()),
            "HTTP" => Some("h1".into()),
            _ => None,
        }),
        included,
    }
}

fn document(text: &str) -> Document {
    std::sync::Arc::unwrap_or_clone(Folder::new(&[]).read(text).unwrap().document)
}

fn wrong(text: &str) -> Vec<String> {
    Folder::new(&[]).wrong(text)
}

// Defaults

#[test]
fn defaults_lie_under_every_table_of_their_kind() {
    let document = document(
        "[defaults.http]\nlisten = ':1'\ntimeouts.header = '1s'\nlimits = { headers = 7, streams = 8 }\n\
         [defaults.upstreams]\npool.idle = 3\n\
         [http.a]\nhosts = 'a'\nrespond = ''\nlimits.streams = 9\n\
         [http.b]\nlisten = ':2'\nproxy = 'u'\n\
         [upstreams.u]\ntargets = '127.0.0.1:1'\n",
    );
    let (a, b) = (&document.http["a"], &document.http["b"]);
    assert_eq!(a.listen.len(), 2);
    assert_eq!(b.listen[0].to_string(), "0.0.0.0:2");
    assert_eq!((a.connection.headers, a.connection.streams), (7, 9));
    assert_eq!(b.connection.streams, 8);
    assert_eq!(document.upstreams["u"].pool.idle, 3);
    // As written, and as a whole.
    assert_eq!(
        document.normal["http"]["b"],
        json!({ "listen": [":2"], "proxy": { "upstream": "u" } })
    );
    assert!(document.normal["defaults"]["http"].is_object());
    assert_eq!(
        document.whole()["http"]["a"]["limits"],
        json!({ "headers": 7, "streams": 9 })
    );
    assert!(document.whole().get("defaults").is_none());
}

#[test]
fn defaults_lie_under_listeners_of_tcp_and_udp() {
    let document = document(
        "[defaults.tcp]\nupstream = '127.0.0.1:1'\ntimeouts = { idle = '9s', header = '2s' }\n\
         limits.connections = 7\ndeny = '10.0.0.0/8'\n\
         [defaults.udp]\nupstream = '127.0.0.1:2'\nidle = '5s'\nlimits.sessions = 3\n\
         [tcp.a]\nlisten = '127.0.0.1:3'\ntimeouts.idle = '1s'\n\
         [tcp.b]\nlisten = '127.0.0.1:4'\nupstream = '127.0.0.1:5'\ndeny = '192.0.2.0/24'\n\
         [udp.a]\nlisten = '127.0.0.1:3'\n\
         [udp.b]\nlisten = '127.0.0.1:4'\nidle = 'unlimited'\nlimits.sessions = 'unlimited'\n",
    );
    let secs = |n| Some(std::time::Duration::from_secs(n));
    let (a, b) = (&document.tcp["a"], &document.tcp["b"]);
    let only = |tcp: &crate::config::tcp::TcpSpec| {
        let all: Vec<String> = tcp.to.upstreams().map(|u| u.to_string()).collect();
        all.join(" ")
    };
    assert_eq!((&*only(a), &*only(b)), ("127.0.0.1:1", "127.0.0.1:5"));
    assert_eq!((a.idle, a.header), (secs(1), secs(2)));
    assert_eq!((b.idle, b.connections), (secs(9), Some(7)));
    // A list replaces.
    assert_eq!((a.deny.len(), b.deny.len()), (1, 1));
    assert_ne!(a.deny, b.deny);
    let (a, b) = (&document.udp["a"], &document.udp["b"]);
    assert_eq!((&*a.upstream, &*b.upstream), ("127.0.0.1:2", "127.0.0.1:2"));
    assert_eq!((a.idle, a.sessions), (secs(5), Some(3)));
    assert_eq!((b.idle, b.sessions), (None, None));
    assert_eq!(
        document.whole()["udp"]["a"]["limits"],
        json!({ "sessions": 3 })
    );
    assert!(document.normal["udp"]["a"].get("limits").is_none());
}

#[test]
fn what_defaults_stand_for_is_bounded_in_bytes_too() {
    let text = |tables: usize| {
        let mut text = format!(
            "[defaults.http]\nlisten = '127.0.0.1:0'\nrespond = '{}'\n",
            "x".repeat(1024 * 1024)
        );
        for n in 0..tables {
            text.push_str(&format!("[http.s{n}]\n"));
        }
        text
    };
    assert_eq!(document(&text(63)).http.len(), 63);
    let mut found = wrong(&text(64));
    found.retain(|wrong| !wrong.ends_with("a server needs `listen`"));
    assert_eq!(
        found,
        ["main:1:2 /defaults `[defaults]` would stand for more than 64 MiB of text"]
    );
}

#[test]
fn a_value_of_a_header_is_bounded() {
    let text = |bytes: usize| {
        let value = "x".repeat(bytes);
        format!(
            "[http.a]\nlisten = ':1'\nrespond = ''\nuse = 'f'\n\
             [filters.f.headers.response]\nset.x = '{value}'\nadd.y = ['a', '{value}']\n"
        )
    };
    document(&text(8192));
    let found = wrong(&text(8193));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("/filters/f/headers/response/set/x a value"));
    assert!(found[1].contains("/filters/f/headers/response/add/y/1 a value"));
}

#[test]
fn another_kind_of_check_takes_the_place_of_the_one_in_defaults() {
    let document = document(
        "[defaults.upstreams]\nhealth = { path = '/healthz', interval = '9s' }\n\
         [upstreams.a]\ntargets = '127.0.0.1:1'\nprotocol = 'h2c'\nhealth = { grpc = 'feed.Feed' }\n\
         [http.x]\nlisten = '127.0.0.1:2'\nproxy = 'a'\n",
    );
    let health = document.upstreams["a"].health.as_ref().unwrap();
    assert!(matches!(&health.probe, ProbeSpec::Grpc { service, .. } if service == "feed.Feed"));
    assert_eq!(health.interval, std::time::Duration::from_secs(9));
}

#[test]
fn an_own_action_takes_the_place_of_the_one_in_defaults() {
    let document = document(
        "[defaults.http]\nlisten = ':1'\nredirect = { to = 'https://x', status = 302 }\n\
         [http.none]\nhosts = 'a'\n\
         [http.same]\nhosts = 'b'\nredirect = 'https://y'\n\
         [http.other]\nhosts = 'c'\nrespond = 'z'\n",
    );
    let action = |name: &str| document.http[name].fallback.clone().unwrap();
    assert!(matches!(action("none"), ActionSpec::Redirect(r) if r.status == 302));
    // Its table merges with the other, in the short form too.
    assert!(matches!(action("same"), ActionSpec::Redirect(r) if r.status == 302));
    assert!(matches!(action("other"), ActionSpec::Respond(_)));
}

#[test]
fn filters_of_defaults_hold_where_a_server_says_nothing_else() {
    let document = document(
        "[defaults.http]\nlisten = ':1'\nrespond = ''\nallow = '10.0.0.0/8'\nbody_limit = '1KiB'\nuse = 'f'\n\
         [filters.f]\ndeny = '10.1.0.0/16'\n\
         [http.a]\nhosts = 'a'\n\
         [http.b]\nhosts = 'b'\nallow = false\nbody_limit = 'unlimited'\nuse = []\n\
         [http.c]\nhosts = 'c'\nallow = '10.0.0.0/8'\nbody_limit = '1KiB'\nuse = 'f'\n",
    );
    let filters = |name: &str| format!("{:?}", document.http[name].filters);
    assert_eq!(filters("a"), filters("c"));
    assert_ne!(filters("a"), filters("b"));
    assert_eq!(document.whole()["http"]["b"]["allow"], false);
}

#[test]
fn of_body_and_file_the_own_one_holds() {
    let document = document(
        "[defaults.http]\nlisten = ':1'\nrespond = { body = 'x', status = 404 }\n\
         [http.a]\nrespond.file = 'a.html'\n",
    );
    let Some(ActionSpec::Respond(respond)) = &document.http["a"].fallback else {
        panic!("{document:?}");
    };
    assert_eq!(respond.status, 404);
    assert_eq!(
        document.whole()["http"]["a"]["respond"],
        json!({ "file": "a.html", "status": 404 })
    );
}

#[test]
fn an_error_in_defaults_is_said_once_and_where_it_is_written() {
    let servers: String = (0..5)
        .map(|n| format!("[http.s{n}]\nhosts = 's{n}'\nrespond = ''\n"))
        .collect();
    let of = |defaults: &str| wrong(&format!("[defaults.http]\n{defaults}\n{servers}"));
    assert_eq!(
        of("listen = 'nonsense'"),
        ["main:2:10 /defaults/http/listen `nonsense` has no port"]
    );
    assert_eq!(
        of("listen = ':1'\ntimeouts.header = '0s'"),
        ["main:3:19 /defaults/http/timeouts/header a timeout of 0 would end everything at once"]
    );
    assert_eq!(
        of("listen = ':1'\nlimts = {}"),
        ["main:3:1 /defaults/http/limts unknown key `limts`"]
    );
    // A wrong value is no missing one.
    assert_eq!(
        of("listen = 5"),
        ["main:2:10 /defaults/http/listen expected a string, found an integer"]
    );
    assert_eq!(
        wrong("[defaults.udp]\nproxy_protocol = true"),
        ["main:2:1 /defaults/udp/proxy_protocol `proxy_protocol` is not supported yet"]
    );
}

#[test]
fn two_servers_that_collide_by_defaults_are_named() {
    let found = wrong(
        "[defaults.http]\nlisten = '127.0.0.1:1'\n[http.a]\nrespond = ''\n[http.b]\nrespond = ''\n",
    );
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("main:5:") && found[0].contains("`http.a`"),
        "{found:?}"
    );
    for kind in ["tcp", "udp"] {
        assert_eq!(
            wrong(&format!(
                "[defaults.{kind}]\nlisten = '127.0.0.1:1'\nupstream = '127.0.0.1:2'\n[{kind}.a]\n[{kind}.b]\n[{kind}.c]\n"
            ))[0],
            format!(
                "main:2:10 /defaults/{kind}/listen `{kind}.a` and `{kind}.b` both have the address 127.0.0.1:1"
            )
        );
    }
}

#[test]
fn what_goes_wrong_later_is_found_in_defaults() {
    let parsed = Folder::new(&[])
        .read("[defaults.http]\nlisten = '127.0.0.1:1'\nrespond.file = 'x.html'\n[http.a]\n")
        .unwrap();
    let listen = parsed.document.listen_pointer("a", 0);
    let found = parsed.locate(&listen, "in use", None);
    assert_eq!(
        (found.line, found.pointer.as_str()),
        (Some(2), "/defaults/http/listen/0")
    );
    let (_, pointer) = parsed.document.file_pointers().remove(0);
    let found = parsed.locate(&pointer, "none", None);
    assert_eq!(
        (found.line, found.pointer.as_str()),
        (Some(3), "/defaults/http/respond/file")
    );
}

#[test]
fn a_small_document_does_not_stand_for_a_huge_one() {
    let headers: String = (0..2_000).map(|n| format!("h{n} = 'x'\n")).collect();
    let servers: String = (0..600).map(|n| format!("[http.s{n}]\n")).collect();
    let found = wrong(&format!(
        "[defaults.http]\nlisten = ':1'\n[defaults.http.respond.headers]\n{headers}{servers}"
    ));
    assert!(found[0].contains("more than 1000000 values"), "{found:?}");
}

/// Objects merge, all else replaces: what the language says of `[defaults]`, on normalized JSON.
fn merged(below: &Json, over: &Json) -> Json {
    match (below, over) {
        (Json::Object(below), Json::Object(over)) => {
            let mut out = over.clone();
            for (key, below) in below {
                let value = match over.get(key) {
                    Some(over) => merged(below, over),
                    None => below.clone(),
                };
                out.insert(key.clone(), value);
            }
            Json::Object(out)
        }
        _ => over.clone(),
    }
}

/// A server as it may be written: some keys of some kinds, and at most one action.
fn server() -> impl Strategy<Value = Json> {
    let value = |values: Vec<Json>| prop::option::of(prop::sample::select(values));
    let plain = (
        value(vec![
            json!("127.0.0.1:1"),
            json!(["127.0.0.1:2", "127.0.0.1:3"]),
        ]),
        value(vec![
            json!("a.example"),
            json!(["b.example", "*.c.example"]),
        ]),
        value(vec![
            json!({ "headers": 5 }),
            json!({ "body": "1KiB", "headers": 6 }),
            json!({ "body": "unlimited" }),
        ]),
        value(vec![
            json!({ "idle": "1s" }),
            json!({ "idle": false, "write": "2s" }),
        ]),
        value(vec![
            json!([]),
            json!([{ "name": "r", "match": { "path": "/x" }, "respond": "r" }]),
        ]),
        value(vec![json!("2KiB"), json!("unlimited")]),
    );
    let action = value(vec![
        json!({ "respond": "x" }),
        json!({ "respond": { "status": 201, "headers": { "a": "1" } } }),
        json!({ "respond": { "body": "y", "headers": { "b": "2", "a": "3" } } }),
        json!({ "redirect": "https://x" }),
        json!({ "redirect": { "to": "https://y", "status": 307 } }),
        json!({ "proxy": "127.0.0.1:9" }),
        json!({ "proxy": { "upstream": "127.0.0.1:8", "websocket": false } }),
    ]);
    (plain, action).prop_map(
        |((listen, hosts, limits, timeouts, routes, body), action)| {
            let keys = [
                ("listen", listen),
                ("hosts", hosts),
                ("limits", limits),
                ("timeouts", timeouts),
                ("routes", routes),
                ("body_limit", body),
            ];
            let plain = keys
                .into_iter()
                .filter_map(|(k, v)| Some((k.to_owned(), v?)));
            let action = action
                .and_then(|a| a.as_object().cloned())
                .unwrap_or_default();
            Json::Object(plain.chain(action).collect())
        },
    )
}

proptest! {
    #[test]
    fn defaults_under_a_server_mean_what_is_written_in_it(below in server(), over in server()) {
        let base = json!({ "listen": "127.0.0.1:7", "respond": "" });
        // As a server of its own, so that both are there in their normal form.
        let normal = |server: &Json| {
            let text = json!({ "defaults": { "http": server } }).to_string();
            let document = Folder::new(&[]).read_as(&text, Format::Json, None).unwrap().document;
            document.normal["defaults"]["http"].clone()
        };
        let (below, over) = (merged(&normal(&base), &normal(&below)), normal(&over));
        let actions = ["respond", "redirect", "proxy"];
        let without = |server: &Json, keep: &Json| {
            let own = actions.iter().any(|key| keep.get(key).is_some());
            let keys = server.as_object().unwrap().iter();
            let kept = keys.filter(|(key, _)| !own || !actions.contains(&key.as_str()) || keep.get(key).is_some());
            Json::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
        };
        // `base` has an action, beside which that of `below` would be a second one.
        let below = match actions.iter().filter(|key| below.get(key).is_some()).count() {
            2 => {
                let mut below = below;
                let body = json!({ "body": "" });
                if below["respond"] == body { below.as_object_mut().unwrap().remove("respond"); }
                below
            }
            _ => below,
        };
        let said_once = json!({ "defaults": { "http": below }, "http": { "x": over } }).to_string();
        let written_out = json!({ "http": { "x": merged(&without(&below, &over), &over) } }).to_string();
        let folder = Folder::new(&[]);
        let said_once = folder.read_as(&said_once, Format::Json, None).unwrap().document;
        let written_out = folder.read_as(&written_out, Format::Json, None).unwrap().document;
        prop_assert_eq!(&said_once.http, &written_out.http);
        prop_assert_eq!(&said_once.upstreams, &written_out.upstreams);
        prop_assert_eq!(said_once.whole(), written_out.whole());
        // And what is shown means the same again.
        for format in FORMATS {
            let again = folder.read_as(&said_once.render(format, false), format, Some(&said_once)).unwrap();
            prop_assert_eq!(&again.document, &said_once);
            let filled = folder.read_as(&said_once.render(format, true), format, None).unwrap();
            prop_assert_eq!(&filled.document.http, &said_once.http);
        }
    }
}

// Environment

const FROM_THE_ENVIRONMENT: &str = "[runtime]\ndrain_timeout = '${PAUSE}'\nhistory = '${COUNT}'\nmax_connections = '${MANY:-auto}'\n\
    [defaults.http]\nlisten = '127.0.0.1:${PORT:-8080}'\nlimits.body = '${BODY:-unlimited}'\n\
    [http.web]\nhosts = ['${HOST:-a.example}', 'b.example']\nprotocols = '${HTTP}'\nenabled = '${ON:-true}'\nrespond = '$${{PORT}} ${PORT}'\n";

#[test]
fn a_value_of_any_kind_may_come_from_the_environment_and_is_shown_as_written() {
    let document = document(FROM_THE_ENVIRONMENT);
    assert_eq!(document.runtime.drain_timeout.as_secs(), 5);
    assert_eq!(document.runtime.history, 7);
    let web = &document.http["web"];
    assert_eq!(web.listen[0].to_string(), "127.0.0.1:8080");
    assert_eq!(web.hosts[0].to_string(), "a.example");
    assert_eq!(document.listen_pointer("web", 0), "/http/web/listen/0");
    let written = json!({
        "hosts": ["${HOST:-a.example}", "b.example"],
        "protocols": ["${HTTP}"],
        "enabled": "${ON:-true}",
        "respond": { "body": "$${{PORT}} ${PORT}" }
    });
    assert_eq!(document.normal["http"]["web"], written);
    assert_eq!(document.normal["runtime"]["drain_timeout"], "${PAUSE}");
    assert_eq!(document.normal["runtime"]["history"], "${COUNT}");
    assert_eq!(
        document.whole()["http"]["web"]["listen"],
        json!(["127.0.0.1:${PORT:-8080}"])
    );
    assert_eq!(
        document.whole()["http"]["web"]["limits"]["body"],
        "${BODY:-unlimited}"
    );
    for format in FORMATS {
        let again = Folder::new(&[]).read_as(&document.render(format, false), format, None);
        assert_eq!(*again.unwrap().document, document);
    }
}

#[test]
fn the_schema_takes_what_the_environment_gives_anywhere() {
    let schema = jsonschema::validator_for(&Document::json_schema()).unwrap();
    let document = document(FROM_THE_ENVIRONMENT);
    assert!(schema.is_valid(&document.normal), "{}", document.normal);
    assert!(!schema.is_valid(&json!({ "runtime": { "history": "7" } })));
    assert!(!schema.is_valid(&json!({ "runtime": { "model": "other" } })));
}

#[test]
fn what_the_environment_lacks_is_an_error_at_its_place() {
    assert_eq!(
        wrong(
            "[http.web]\nlisten = '${NONE}'\nlimits.headers = '${PAUSE}'\nlimits.body = '${NONE'\nrespond = ''\n"
        ),
        [
            "main:2:10 /http/web/listen the environment variable `NONE` is not set",
            "main:3:18 /http/web/limits/headers `5s` from the environment is no integer",
            "main:4:15 /http/web/limits/body `${NONE` is not closed as it must be",
        ]
    );
    // Nobody reads a note.
    document("x-note = '${NONE}'\n");
    // A string that is no number is none, wherever it comes from; a number in quotes is none either.
    assert_eq!(wrong("[runtime]\nhistory = '7'\n").len(), 1);
}

#[test]
fn a_secret_does_not_come_so() {
    let found = match Folder::new(&[])
        .read("[admin]\ntoken = '${PORT}'\n")
        .unwrap_err()
    {
        Refused::Invalid { errors, .. } => errors,
        other => panic!("{other:?}"),
    };
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .help
            .as_ref()
            .unwrap()
            .contains("{ env = \"NAME\" }")
    );
    assert_eq!(wrong("[admin]\ntoken = '${NONE}'\n").len(), 1);
    // The name of a reference is no secret.
    assert!(
        wrong("[admin]\ntoken = { env = '${HTTP}_TOKEN' }\n")[0].contains("`h1_TOKEN` is not set")
    );
}

// Include

const MAIN: &str = "include = ['conf.d/*.toml', 'extra.yaml']\n[defaults.http]\nlisten = '127.0.0.1:1'\n[http.main]\nhosts = 'main'\nrespond = ''\n";

fn tenants() -> Folder {
    Folder::new(&[
        (
            "conf.d/b.toml",
            "[http.b]\nhosts = 'b'\nproxy = 'b'\n[upstreams.b]\ntargets = '127.0.0.1:2'\n",
        ),
        (
            "conf.d/a.toml",
            "version = 1\nx-note = 1\n[http.a]\nhosts = 'a'\nrespond = '${PORT:-8080}'\n",
        ),
        ("conf.d/.a.toml.swp.toml", "nonsense"),
        ("conf.d/README", "nonsense"),
        ("extra.yaml", "runtime:\n  history: 5\n"),
    ])
}

#[test]
fn included_files_are_parts_of_the_document() {
    let folder = tenants();
    let parsed = folder.read(MAIN).unwrap();
    assert_eq!(parsed.warnings, []);
    let document = parsed.document;
    assert_eq!(
        document.http.keys().map(|k| &**k).collect::<Vec<_>>(),
        ["a", "b", "main"]
    );
    assert_eq!(document.runtime.history, 5);
    assert_eq!(document.http["a"].listen[0].to_string(), "127.0.0.1:1");
    // As written, with `include`.
    assert_eq!(
        document.normal["include"],
        json!(["conf.d/*.toml", "extra.yaml"])
    );
    assert!(document.normal["http"].get("a").is_none() && document.normal.get("runtime").is_none());
    assert_eq!(
        document.whole()["http"]["a"]["respond"]["body"],
        "${PORT:-8080}"
    );
    assert!(document.whole().get("include").is_none());
    assert_eq!(
        document.origins["/http/a"].as_ref(),
        folder.path("conf.d/a.toml").to_str().unwrap()
    );
    assert_eq!(document.origins.len(), 4);
    for format in FORMATS {
        let again = folder
            .read_as(&document.render(format, false), format, None)
            .unwrap();
        assert_eq!(again.document, document);
        // All in one document.
        let filled = Folder::new(&[])
            .read_as(&document.render(format, true), format, None)
            .unwrap();
        assert_eq!(filled.document.http, document.http);
    }
}

#[test]
fn a_document_is_read_again_without_its_files() {
    let folder = tenants();
    let parsed = folder.read(MAIN).unwrap();
    let sources = parsed.locator.sources().clone();
    assert_eq!(sources.included.len(), 3);
    drop(fs::remove_dir_all(folder.path("conf.d")));
    assert!(folder.read(MAIN).is_err() || folder.read(MAIN).unwrap().document != parsed.document);
    let context = Context {
        base: folder.0.path().to_owned(),
        running: None,
    };
    let outside = outside(Some(&sources.included));
    let again =
        Document::parse_in(sources.text.as_bytes(), sources.format, &context, &outside).unwrap();
    assert_eq!(again, parsed);
    // Places too.
    let pointer = parsed.document.listen_pointer("b", 0);
    assert_eq!(parsed.locate(&pointer, "in use", None).line, Some(3));
    let found = parsed.locate("/upstreams/b/targets", "not found", None);
    assert_eq!(
        (found.line, found.file.as_deref()),
        (Some(5), folder.path("conf.d/b.toml").to_str())
    );
}

#[test]
fn errors_of_included_files_have_file_line_and_column() {
    let folder = Folder::new(&[
        (
            "a.toml",
            "[http.a]\nhosts = 'ä'\n  lisen = 1\n[upstreams.u]\n",
        ),
        ("b.json", "{ \"http\": { \"b\": { \"listen\": 5 } } }"),
        ("c.yaml", "http:\n  c:\n    respond: '${NONE}'\n"),
    ]);
    let found =
        folder.wrong("include = ['a.toml', 'b.json', 'c.yaml']\n[http.main]\nrespond = ''\n");
    for expected in [
        "main:2:1 /http/main a server needs `listen`",
        "$/a.toml:3:3 /http/a/lisen unknown key `lisen`",
        "$/a.toml:4:1 /upstreams/u an upstream needs `targets`",
        "$/b.json:1:30 /http/b/listen expected a string, found an integer",
        "$/c.yaml:3:14 /http/c/respond the environment variable `NONE` is not set",
    ] {
        let short = |text: &str| text.split(' ').take(2).collect::<Vec<_>>().join(" ");
        assert!(
            found.iter().any(|f| short(f) == short(expected)),
            "{expected}: {found:#?}"
        );
    }
    // Those of syntax, of all files at once.
    folder.write("a.toml", "[http.a\n");
    folder.write("b.json", "{\n");
    let found = folder.wrong("include = ['a.toml', 'b.json', 'c.yaml']\n");
    assert!(
        found.iter().any(|f| f.starts_with("$/a.toml:1:")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|f| f.starts_with("$/b.json:2:")),
        "{found:#?}"
    );
}

#[test]
fn a_name_in_two_files_is_an_error_that_names_both() {
    let folder = Folder::new(&[
        (
            "a.toml",
            "\n[http.a]\nlisten = ':1'\nrespond = ''\n[runtime]\nhistory = 3\n",
        ),
        (
            "b.toml",
            "[http.a]\n[http.main]\n[runtime]\nhistory = 4\nstop_delay = '1s'\n",
        ),
    ]);
    assert_eq!(
        folder.wrong("include = ['*.toml']\n[http.main]\nlisten = ':2'\nrespond = ''\n"),
        [
            "$/b.toml:1:7 /http/a `http.a` is in two files: here and in $/a.toml, line 2, column 7",
            "$/b.toml:2:7 /http/main `http.main` is in two files: here and in the document that includes it, line 2, column 7",
            "$/b.toml:4:1 /runtime/history `runtime.history` is in two files: here and in $/a.toml, line 6, column 1",
        ]
    );
}

#[test]
fn what_cannot_be_included_is_refused() {
    let folder = Folder::new(&[
        ("nested.toml", "include = 'x.toml'\n"),
        ("other.toml", "version = 2\n"),
        ("list.json", "[]"),
        ("notes.txt", ""),
        ("utf16.toml", "\u{feff}"),
    ]);
    fs::create_dir(folder.path("folder.toml")).unwrap();
    let one = |what: &str| {
        let found = folder.wrong(&format!("include = ['{what}']\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    };
    assert_eq!(
        one("nested.toml"),
        "$/nested.toml:1:1 /include an included file includes no others"
    );
    assert_eq!(
        one("other.toml"),
        "$/other.toml:1:11 /version this version of the language is not known"
    );
    assert_eq!(
        one("list.json"),
        "$/list.json:1:1  expected a table, found a list"
    );
    assert!(one("notes.txt").contains("must end in"));
    assert!(
        one("utf16.toml").contains("line 1, column 1: the document begins with a byte order mark")
    );
    assert!(one("folder.toml").contains("is a folder"));
    assert!(one("a/**/b.toml").contains("`**`"));
    // A file that is named must be there; a pattern may match none.
    assert!(matches!(
        folder.read("include = 'none.toml'"),
        Err(Refused::Unavailable(_))
    ));
    let parsed = folder
        .read("include = ['none/*.toml', '*/none.toml']")
        .unwrap();
    let warnings: Vec<_> = parsed
        .warnings
        .iter()
        .map(|w| (w.pointer.as_str(), w.column))
        .collect();
    assert_eq!(
        warnings,
        [("/include/0", Some(12)), ("/include/1", Some(27))]
    );
}

#[test]
fn what_is_included_is_bounded() {
    let folder = Folder::new(&[]);
    let most = crate::config::MAX_BYTES;
    folder.write("a.toml", &format!("#{}", "x".repeat(most / 2)));
    folder.write("b.toml", &format!("#{}", "x".repeat(most / 2)));
    let found = folder.wrong("include = '*.toml'");
    assert!(found[0].contains("larger than 16 MiB"), "{found:?}");
    let folder = Folder::new(&[]);
    for n in 0..1_001 {
        folder.write(&format!("{n}.toml"), "");
    }
    let found = folder.wrong("include = '*.toml'");
    assert!(found[0].contains("more than 1000 files"), "{found:?}");
}

#[test]
fn diagnostics_are_drawn_in_their_own_text() {
    let folder = Folder::new(&[("a.toml", "# a\n[http.a]\nlisten = 5\n")]);
    let Err(Refused::Invalid { errors, .. }) = folder.read("include = 'a.toml'\n") else {
        panic!();
    };
    let text = fs::read_to_string(folder.path("a.toml")).unwrap();
    let drawn = render_diagnostics("a.toml", &text, &errors[..1], false);
    assert!(
        drawn.contains("a.toml:3:10") && drawn.contains("3 | listen = 5\n  |          ^"),
        "{drawn}"
    );
}

// Secrets

#[test]
fn secrets_in_defaults_and_included_files_are_redacted_and_come_back() {
    let key = "-----BEGIN PRIVATE KEY-----\\nx\\n-----END PRIVATE KEY-----\\n";
    let cert = "-----BEGIN CERTIFICATE-----\\nx\\n-----END CERTIFICATE-----\\n";
    let pair = |key: &str| format!("tls.certificates = {{ cert = \"{cert}\", key = \"{key}\" }}");
    let folder = Folder::new(&[(
        "a.toml",
        &format!(
            "[admin]\ntoken = 'hidden-token'\n[http.a]\nhosts = 'a'\nrespond = ''\n{}\n",
            pair(key)
        ),
    )]);
    let text = |key: &str, more: &str| {
        format!(
            "include = 'a.toml'\n[defaults.http]\nlisten = ':1'\n{}\n[http.b]\nhosts = 'b'\nrespond = ''\n{more}",
            pair(key)
        )
    };
    let running = folder.read(&text(key, "")).unwrap().document;
    for format in FORMATS {
        for defaults in [false, true] {
            let shown = running.render(format, defaults);
            assert!(
                !shown.contains("PRIVATE KEY") && !shown.contains("hidden"),
                "{shown}"
            );
            assert!(shown.contains("<redacted>"));
        }
        assert!(!format!("{running:?}").contains("hidden"));
        let again = folder
            .read_as(&running.render(format, false), format, Some(&running))
            .unwrap();
        assert_eq!(again.document, running);
    }
    // A server that is new has the secret of `[defaults]`, as the others have.
    let edited = text("<redacted>", "[http.c]\nhosts = 'c'\nrespond = ''\n");
    let edited = folder
        .read_as(&edited, Format::Toml, Some(&running))
        .unwrap()
        .document;
    assert_eq!(edited.http["c"].tls, running.http["b"].tls);
    assert!(folder.read(&text("<redacted>", "")).is_err());
    // All in one document, too.
    let filled = running.render(Format::Toml, true);
    let filled = folder
        .read_as(&filled, Format::Toml, Some(&running))
        .unwrap()
        .document;
    assert_eq!(
        (&filled.http, &filled.admin),
        (&running.http, &running.admin)
    );
}
