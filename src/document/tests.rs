#![allow(clippy::unwrap_used)]
//! The language as a whole: samples, golden errors, and that the three formats mean the same.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::config::Severity;
use crate::config::diagnostic::{render_diagnostics, render_warnings};
use crate::config::http::{ActionSpec, HostHeader, PathPattern, RespondBody};
use crate::config::scalar::{HostPattern, ListenAddr};
use crate::config::upstream::Balance;

const FORMATS: [Format; 3] = [Format::Toml, Format::Json, Format::Yaml];

fn context() -> Context<'static> {
    Context {
        base: PathBuf::from("/base"),
        running: None,
    }
}

fn parse_as(text: &str, format: Format) -> Result<Parsed, Refused> {
    Document::parse_with(text.as_bytes(), format, &context(), true)
}

fn toml(text: &str) -> Document {
    std::sync::Arc::unwrap_or_clone(parse_as(text, Format::Toml).unwrap().document)
}

fn diagnostics(result: Result<Parsed, Refused>) -> Vec<(Severity, Diagnostic)> {
    let with = |severity, list: Vec<Diagnostic>| list.into_iter().map(move |d| (severity, d));
    match result {
        Ok(parsed) => with(Severity::Warning, parsed.warnings).collect(),
        Err(Refused::Syntax(errors) | Refused::Unavailable(errors)) => {
            with(Severity::Error, errors).collect()
        }
        Err(Refused::Invalid { errors, warnings }) => with(Severity::Error, errors)
            .chain(with(Severity::Warning, warnings))
            .collect(),
    }
}

/// Messages of a document that must not pass.
fn errors(text: &str) -> Vec<String> {
    match parse_as(text, Format::Toml).unwrap_err() {
        Refused::Invalid { errors, .. } => errors
            .into_iter()
            .map(|d| format!("{}: {}", d.pointer, d.message))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// As [`parse_as`], where the files lie that samples name.
fn parse_sample(text: &str, format: Format) -> Result<Parsed, Refused> {
    let context = Context {
        base: root().join("config"),
        running: None,
    };
    Document::parse_with(text.as_bytes(), format, &context, true)
}

fn samples() -> Vec<(String, String)> {
    let mut out: Vec<_> = fs::read_dir(root().join("config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| Document::format_of(path) == Some(Format::Toml))
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .collect();
    out.sort();
    out
}

#[test]
fn every_sample_passes_without_a_warning_and_means_the_same_in_all_formats() {
    assert!(samples().len() >= 6);
    for (name, text) in samples() {
        let parsed = parse_sample(&text, Format::Toml).unwrap_or_else(|e| panic!("{name}: {e:#?}"));
        assert_eq!(parsed.warnings, [], "{name}");
        for format in FORMATS {
            for defaults in [false, true] {
                let text = parsed.document.render(format, defaults);
                let again = parse_sample(&text, format)
                    .unwrap_or_else(|e| panic!("{name} {format:?}: {e:#?}\n{text}"))
                    .document;
                if defaults {
                    // `on_change` of a server follows the process's, so a document with all defaults says no less.
                    let plain = Document {
                        normal: parsed.document.normal.clone(),
                        whole: parsed.document.whole.clone(),
                        ..(*again).clone()
                    };
                    assert_eq!(plain, *parsed.document, "{name} {format:?}\n{text}");
                } else {
                    assert_eq!(again, parsed.document, "{name} {format:?}\n{text}");
                }
            }
        }
    }
}

#[test]
fn the_reference_has_every_key_at_its_default() {
    let text = fs::read_to_string(root().join("config/reference.toml")).unwrap();
    // What is commented out is there for its form.
    let every: String = text
        .lines()
        .map(|l| {
            l.strip_prefix("# ")
                .filter(|l| l.contains(" = ") && !l.contains("x-"))
                .unwrap_or(l)
        })
        .fold(String::new(), |a, l| a + l + "\n");
    let schema = Document::json_schema();
    let mut keys = Vec::new();
    collect_keys(&schema, &mut keys);
    for key in keys {
        let spelled = [
            format!("{key} "),
            format!("{key}="),
            format!(".{key}]"),
            format!("[{key}"),
            format!("\n{key}"),
        ];
        assert!(
            spelled.iter().any(|s| every.contains(s)),
            "reference.toml lacks `{key}`"
        );
    }
    let document = toml(&text);
    let filled = toml(
        "[http.reference]\nlisten = \"127.0.0.1:8085\"\n[upstreams.reference]\ntargets = \"127.0.0.1:3000\"",
    );
    assert_eq!(
        document.http["reference"].connection,
        filled.http["reference"].connection
    );
    assert_eq!(
        document.http["reference"].filters,
        filled.http["reference"].filters
    );
    assert_eq!(
        document.upstreams["reference"],
        filled.upstreams["reference"]
    );
    assert_eq!(
        (document.admin, document.runtime),
        (filled.admin, filled.runtime)
    );
}

fn collect_keys(schema: &serde_json::Value, out: &mut Vec<String>) {
    match schema {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                if key == "properties" {
                    out.extend(value.as_object().unwrap().keys().cloned());
                }
                collect_keys(value, out);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|i| collect_keys(i, out)),
        _ => {}
    }
}

#[test]
fn the_schema_describes_every_key_and_accepts_the_samples() {
    let schema = Document::json_schema();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    for (name, text) in samples() {
        let document = parse_sample(&text, Format::Toml).unwrap().document;
        for defaults in [false, true] {
            let json: serde_json::Value =
                serde_json::from_str(&document.render(Format::Json, defaults)).unwrap();
            if let Err(error) = validator.validate(&json) {
                panic!("{name}: {error} at {}", error.instance_path());
            }
        }
        // As written, short forms and all.
        let written: serde_json::Value = ::toml::from_str(&text).unwrap();
        assert!(validator.is_valid(&written), "{name}");
    }
    assert!(validator.is_valid(&serde_json::json!({ "x-notes": 1 })));
    for wrong in [
        serde_json::json!({ "htp": {} }),
        serde_json::json!({ "http": { "a": { "lisen": ":80" } } }),
        serde_json::json!({ "runtime": { "drain_timeout": 5 } }),
    ] {
        assert!(!validator.is_valid(&wrong), "{wrong}");
    }
    undescribed(&schema, "");
}

fn undescribed(schema: &serde_json::Value, at: &str) {
    if let Some(properties) = schema.get("properties").and_then(|p| p.as_object()) {
        // A secret's forms are described as a whole.
        if !properties.contains_key("env") && !properties.contains_key("file")
            || properties.len() > 1
        {
            for (key, value) in properties {
                assert!(
                    value.get("description").is_some(),
                    "{at}/{key} has no description"
                );
            }
        }
    }
    match schema {
        serde_json::Value::Object(map) => map
            .iter()
            .for_each(|(k, v)| undescribed(v, &format!("{at}/{k}"))),
        serde_json::Value::Array(items) => items.iter().for_each(|v| undescribed(v, at)),
        _ => {}
    }
}

/// `UPDATE_GOLDEN=1 cargo test` writes what is drawn; a change is then read in the diff.
#[test]
fn golden_errors() {
    let folder = root().join("tests/golden/errors");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(format) = Document::format_of(&path) else {
            continue;
        };
        let source = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let found = diagnostics(parse_as(&source, format));
        let of = |severity| {
            found
                .iter()
                .filter(|(s, _)| *s == severity)
                .map(|(_, d)| d.clone())
                .collect::<Vec<_>>()
        };
        let mut drawn = render_diagnostics(name, &source, &of(Severity::Error), false);
        drawn.push_str(&render_warnings(
            name,
            &source,
            &of(Severity::Warning),
            false,
        ));
        for (_, d) in &found {
            drawn.push_str(&format!(
                "{}:{} {}\n",
                d.line.unwrap_or(0),
                d.column.unwrap_or(0),
                d.pointer
            ));
        }
        let expected = folder.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &drawn).unwrap();
        }
        assert_eq!(
            drawn,
            fs::read_to_string(&expected).unwrap_or_default(),
            "{name}"
        );
        seen += 1;
    }
    assert!(seen >= 8);
}

#[test]
fn one_mistake_has_its_place_in_every_format() {
    let texts = [
        (
            Format::Toml,
            "[http.web]\nlisten = \"127.0.0.1:1\"\n\"ünknown\" = 1\nproxy = \"nobody\"\n",
            (4, 9),
        ),
        (
            Format::Json,
            "{\"http\": {\"web\": {\"listen\": \"127.0.0.1:1\",\n\"ünknown\": 1,\n  \"proxy\": \"nobody\"}}}",
            (3, 12),
        ),
        (
            Format::Yaml,
            "http:\n  web:\n    listen: 127.0.0.1:1\n    ünknown: 1\n    proxy: nobody\n",
            (5, 12),
        ),
    ];
    for (format, text, place) in texts {
        let found = diagnostics(parse_as(text, format));
        let pointers: Vec<_> = found.iter().map(|(_, d)| d.pointer.as_str()).collect();
        assert!(
            pointers.contains(&"/http/web/ünknown"),
            "{format:?} {found:?}"
        );
        let nobody = found
            .iter()
            .find(|(_, d)| d.message.contains("nobody"))
            .unwrap();
        assert!(
            nobody.1.pointer.starts_with("/http/web/proxy"),
            "{format:?}"
        );
        assert_eq!(
            (nobody.1.line, nobody.1.column),
            (Some(place.0), Some(place.1)),
            "{format:?}"
        );
    }
}

#[test]
fn short_forms_become_lists_and_tables_and_durations_their_largest_unit() {
    let document = toml(
        "[http.web]\nlisten = '127.0.0.1:80'\ntimeouts.idle = '120s'\nlimits.connections = false\n\
         routes = [{ match = { path = '/a' }, proxy = 'api' }, { redirect = '/b' }, { respond = 'c' }]\n\
         [upstreams.api]\ntargets = '127.0.0.1:1'\nprotocol = 'http1'\n",
    );
    let expected = serde_json::json!({
        "http": { "web": {
            "listen": ["127.0.0.1:80"], "timeouts": { "idle": "2m" }, "limits": { "connections": "unlimited" },
            "routes": [
                { "match": { "path": ["/a"] }, "proxy": { "upstream": "api" } },
                { "redirect": { "to": "/b" } },
                { "respond": { "body": "c" } }
            ]
        }},
        "upstreams": { "api": { "targets": [{ "address": "127.0.0.1:1" }], "protocol": "h1" } }
    });
    assert_eq!(document.normal, expected);
}

#[test]
fn an_empty_document_is_valid_with_a_warning() {
    for (format, text) in [
        (Format::Toml, ""),
        (Format::Toml, "# nothing\n"),
        (Format::Toml, "x-note = 1"),
        (Format::Json, "{}"),
        (Format::Yaml, ""),
        (Format::Yaml, "# nothing\n"),
        (Format::Yaml, "{}"),
    ] {
        let parsed = parse_as(text, format).unwrap();
        assert_eq!(parsed.warnings.len(), 1, "{text:?}");
        assert_eq!(parsed.document.normal, serde_json::json!({}));
        assert_eq!(parsed.document.admin.listen.to_string(), "127.0.0.1:8837");
    }
}

#[test]
fn specs_hold_what_is_written() {
    let document = toml(
        "[http.web]\nlisten = [':8080', 'localhost:8081']\nhosts = 'A.example.com'\n\
         routes = [\n\
           { name = 'off', enabled = false, respond = { file = 'gone.html' } },\n\
           { match = { path = '/a/*' }, proxy = 'http://Backend.local/base/' },\n\
           { match = { path = '/b' }, proxy = { upstream = '127.0.0.1:3000', host_header = 'upstream', timeout = '5s' } },\n\
           { respond = { file = 'x.html', status = 503 } },\n]\n\
         [http.off]\nenabled = false\nlisten = ':9'\nproxy = '127.0.0.1:9'\n\
         [upstreams.api]\ntargets = ['unix:run/a.sock', { address = '[::1]:80', weight = 0 }]\nbalance = 'least_requests'\n",
    );
    assert_eq!(
        document.http.keys().map(|k| &**k).collect::<Vec<_>>(),
        ["web"]
    );
    let web = &document.http["web"];
    assert_eq!(
        web.listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:8081", "[::1]:8081"]
    );
    assert_eq!(web.hosts, [HostPattern::Exact("a.example.com".into())]);
    assert_eq!(web.routes.len(), 3);
    let ActionSpec::Proxy(a) = &web.routes[0].action else {
        panic!()
    };
    assert_eq!(
        (&*a.upstream, a.base.as_str(), &a.host_header),
        ("backend.local:80", "/base", &HostHeader::Preserve)
    );
    assert_eq!(
        web.routes[0].matcher.path,
        [PathPattern::Below("/a".into())]
    );
    let ActionSpec::Proxy(b) = &web.routes[1].action else {
        panic!()
    };
    assert_eq!(
        (&*b.upstream, b.timeout),
        ("127.0.0.1:3000", Some(std::time::Duration::from_secs(5)))
    );
    let ActionSpec::Respond(c) = &web.routes[2].action else {
        panic!()
    };
    assert_eq!(c.body, RespondBody::File("/base/x.html".into()));
    // The upstream of a server that is not enabled is not there either.
    assert_eq!(
        document.upstreams.keys().map(|k| &**k).collect::<Vec<_>>(),
        ["127.0.0.1:3000", "api", "backend.local:80"]
    );
    assert_eq!(document.upstreams["api"].balance, Balance::LeastRequests);
    assert_eq!(
        document.upstreams["api"].targets[0].address.to_string(),
        "unix:/base/run/a.sock"
    );

    assert_eq!(document.listen_pointer("web", 1), "/http/web/listen/0");
    assert_eq!(document.listen_pointer("web", 3), "/http/web/listen/1");
    // The first route is not enabled, so the place in the document is one further.
    assert_eq!(
        document.file_pointers(),
        [(
            "/base/x.html".into(),
            "/http/web/routes/3/respond/file".into()
        )]
    );
}

#[test]
fn every_address_has_the_pointer_of_the_text_it_came_from() {
    let document = toml(
        "[http.web]\nlisten = ['127.0.0.1:0', ':0', 'unix:a.sock', '127.0.0.1:0', 'unix:run/b.sock']\nrespond = ''\n",
    );
    let listen = &document.http["web"].listen;
    assert_eq!(listen.len(), 6);
    let texts = (0..6).map(|n| document.listen_pointer("web", n));
    assert_eq!(
        texts.collect::<Vec<_>>(),
        [0, 1, 1, 2, 3, 4].map(|at| format!("/http/web/listen/{at}"))
    );
    // Where there is no IPv6.
    let text = b"[http.web]\nlisten = [':1', 'localhost:2']\nrespond = ''\n";
    let parsed = Document::parse_with(text, Format::Toml, &context(), false).unwrap();
    assert_eq!(
        [0, 1].map(|n| parsed.document.listen_pointer("web", n)),
        ["/http/web/listen/0", "/http/web/listen/1"]
    );
}

#[test]
fn a_port_that_the_kernel_chooses_may_be_listed_twice() {
    let document = toml("[http.web]\nlisten = ['127.0.0.1:0', '127.0.0.1:0']\nrespond = ''\n");
    assert_eq!(document.http["web"].listen.len(), 2);
    let found = errors("[http.web]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']\nrespond = ''\n");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn a_place_is_found_after_parsing() {
    let text = "[http.web]\nlisten = \"127.0.0.1:80\"\nrespond = { file = \"a.html\" }\n";
    let parsed = parse_as(text, Format::Toml).unwrap();
    let taken = parsed.locate(
        &parsed.document.listen_pointer("web", 0),
        "address in use",
        None,
    );
    // One value stands for the list.
    assert_eq!(
        (taken.pointer.as_str(), taken.line, taken.column),
        ("/http/web/listen/0", Some(2), Some(10))
    );
    let (_, pointer) = parsed.document.file_pointers().remove(0);
    let missing = parsed.locate(&pointer, "no such file", Some("create it".into()));
    assert_eq!(
        (missing.pointer.as_str(), missing.line, missing.column),
        ("/http/web/respond/file", Some(3), Some(20))
    );
}

#[test]
fn without_ipv6_the_other_address_is_left_out_with_a_warning() {
    let text = b"[http.web]\nlisten = [':8080', '[::1]:8081']\nrespond = ''\n";
    let parsed = Document::parse_with(text, Format::Toml, &context(), false).unwrap();
    let listen = &parsed.document.http["web"].listen;
    // Who writes a v6 address gets it, or the error of the socket.
    assert_eq!(
        listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["0.0.0.0:8080", "[::1]:8081"]
    );
    assert_eq!(parsed.warnings.len(), 1);
}

#[test]
fn secrets_are_redacted_kept_and_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "from-file\n").unwrap();
    let context = |running| Context {
        base: folder.path().to_owned(),
        running,
    };
    let parse =
        |text: &str, running| Document::parse(text.as_bytes(), Format::Toml, &context(running));

    let literal = parse("[admin]\ntoken = 's3cret'", None).unwrap().document;
    assert_eq!(
        literal.normal,
        serde_json::json!({ "admin": { "token": "<redacted>" } })
    );
    assert!(!format!("{literal:?}").contains("s3cret"));
    let back = parse(&literal.render(Format::Toml, false), Some(&literal))
        .unwrap()
        .document;
    assert_eq!(back, literal);
    assert!(matches!(
        parse("[admin]\ntoken = '<redacted>'", None),
        Err(Refused::Invalid { .. })
    ));

    let file = parse("[admin]\ntoken = { file = 'token' }", None)
        .unwrap()
        .document;
    assert_eq!(
        file.admin.token.as_ref().map(|t| t.expose()),
        Some("from-file")
    );
    assert_eq!(
        file.normal,
        serde_json::json!({ "admin": { "token": { "file": "token" } } })
    );
    for unreadable in ["missing", "."] {
        let refused = parse(
            &format!("[admin]\ntoken = {{ file = '{unreadable}' }}"),
            None,
        );
        assert!(
            matches!(&refused, Err(Refused::Unavailable(e)) if e[0].pointer == "/admin/token"),
            "{refused:?}"
        );
    }
    // What is wrong in itself comes before what is not to be had.
    let both = parse("htp = 1\n[admin]\ntoken = { file = 'missing' }", None);
    assert!(
        matches!(&both, Err(Refused::Invalid { errors, .. }) if errors.len() == 2),
        "{both:?}"
    );
    let unset = parse(
        "[admin]\ntoken = { env = 'EVERGATE_NOT_SET_ANYWHERE' }",
        None,
    );
    assert!(matches!(unset, Err(Refused::Invalid { .. })));
    assert!(parse("[admin]\nlisten = '0.0.0.0:1'\ntoken = 'x'", None).is_ok());
    assert!(parse("[admin]\nlisten = 'unix:a.sock'", None).is_ok());
}

#[test]
fn what_is_not_built_is_refused_at_its_own_place() {
    let text = "[defaults.udp]\nsni = {}\n[http.web]\nlisten = ':1'\nprotocols = ['h3']\ntls = { self_signed = 'x', acme = {} }\n\
                [udp.x]\nproxy_protocol = true\nlisten = ':1'\nupstream = 'u'\n[upstreams.u]\ntargets = '127.0.0.1:1'\n";
    let found = errors(text);
    for key in [
        "/defaults/udp/sni: `sni`",
        "/http/web/protocols/0: `h3`",
        "/http/web/tls/acme: `acme`",
        "/udp/x/proxy_protocol: `proxy_protocol`",
    ] {
        assert!(
            found
                .iter()
                .any(|e| e.starts_with(key) && e.ends_with("is not supported yet")),
            "{key} in {found:#?}"
        );
    }
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn layer_4_refuses_upstreams_that_are_not_for_it() {
    let upstreams = "[upstreams.keyed]\ntargets = ['127.0.0.1:1', '127.0.0.1:2']\nbalance = { hash = '{client_ip}{header.x}' }\n\
                     [upstreams.ip]\ntargets = '127.0.0.1:1'\nbalance = { hash = 'a {client_ip}' }\n\
                     [upstreams.parts]\nsplit = { ip = 1, keyed = 1 }\n\
                     [upstreams.told]\ntargets = '127.0.0.1:1'\nproxy_protocol = 'v2'\n\
                     [upstreams.old]\ntargets = '127.0.0.1:1'\nproxy_protocol = 'v1'\n\
                     [upstreams.behind]\ntargets = '127.0.0.1:1'\nvia = 'socks5://127.0.0.1:9'\n\
                     [upstreams.web]\ntargets = '127.0.0.1:1'\nvia = 'http://127.0.0.1:9'\n\
                     [upstreams.chain]\ntargets = '127.0.0.1:1'\nvia = ['socks5://127.0.0.1:9', 'socks5://127.0.0.1:8']\n\
                     [upstreams.bridge]\ntargets = '127.0.0.1:1'\nvia = ['socks5://127.0.0.1:9', 'http://127.0.0.1:8', 'socks5://127.0.0.1:7']\n\
                     [upstreams.either]\ntargets = '127.0.0.1:1'\nvia = [{ upstream = 'two', protocol = 'socks5' }, 'socks5://127.0.0.1:8']\n\
                     [upstreams.ends]\ntargets = '127.0.0.1:1'\nvia = ['socks5://127.0.0.1:8', { upstream = 'two', protocol = 'socks5' }]\n\
                     [upstreams.two]\ntargets = ['127.0.0.1:8', '127.0.0.1:9']\n\
                     [upstreams.near]\ntargets = '127.0.0.1:1'\nvia = { upstream = 'mixed', protocol = 'socks5' }\n\
                     [upstreams.hidden]\ntargets = '127.0.0.1:1'\nvia = { url = 'socks5h://127.0.0.1:9', tls = {} }\n\
                     [upstreams.far]\ntargets = '127.0.0.1:1'\nvia = { upstream = 'behind', protocol = 'socks5' }\n\
                     [upstreams.mixed]\nsplit = { ip = 1, local = 1 }\n[upstreams.local]\ntargets = 'unix:/x'\n\
                     [upstreams.kept]\ntargets = '127.0.0.1:1'\nsticky = 'c'\n\
                     [upstreams.some]\nsplit = { ip = 1, kept = 1 }\n\
                     [upstreams.all]\nsplit = { parts = 1, told = 1, old = 1, behind = 1, web = 1, chain = 1, bridge = 1, either = 1, ends = 1, near = 1, hidden = 1, far = 1, some = 1 }\n\
                     [http.web]\nlisten = '127.0.0.1:80'\nproxy = 'all'\n";
    let of = |kind: &str, upstream: &str| {
        let listener = format!("[{kind}.x]\nlisten = '127.0.0.1:53'\nupstream = '{upstream}'\n");
        match parse_as(&format!("{listener}{upstreams}"), Format::Toml) {
            Ok(_) => String::new(),
            Err(_) => errors(&format!("{listener}{upstreams}")).join("\n"),
        }
    };
    for upstream in ["ip", "told", "old", "behind"] {
        assert_eq!(of("tcp", upstream), "");
    }
    for upstream in ["ip", "told", "behind", "chain", "ends"] {
        assert_eq!(of("udp", upstream), "");
    }
    for (kind, upstream, told) in [
        (
            "tcp",
            "keyed",
            "`keyed` hashes more than a TCP listener knows",
        ),
        (
            "tcp",
            "parts",
            "`keyed` hashes more than a TCP listener knows",
        ),
        (
            "udp",
            "keyed",
            "`keyed` hashes more than a UDP listener knows",
        ),
        (
            "udp",
            "parts",
            "`keyed` hashes more than a UDP listener knows",
        ),
        ("udp", "old", "`old` has `proxy_protocol = \"v1\"`"),
        (
            "udp",
            "web",
            "`web` has `via`, and a proxy of HTTP takes no datagrams",
        ),
        (
            "udp",
            "bridge",
            "`bridge` has `via`, and a proxy of HTTP takes no datagrams",
        ),
        (
            "udp",
            "either",
            "datagrams go past one proxy of which there are several only if it is the last",
        ),
        (
            "udp",
            "far",
            "datagrams would pass by the `via` that its proxies have themselves",
        ),
        ("udp", "near", "no datagrams go to a proxy"),
        (
            "udp",
            "hidden",
            "datagrams to a proxy over TLS would go in cleartext",
        ),
        (
            "udp",
            "kept",
            "`sticky` of the upstream `kept` is a cookie, and a UDP listener sees none",
        ),
        (
            "tcp",
            "some",
            "`sticky` of the upstream `kept` is a cookie, and a TCP listener sees none",
        ),
    ] {
        let found = of(kind, upstream);
        assert!(
            found.starts_with(&format!("/{kind}/x/upstream: ")) && found.contains(told),
            "{kind} {upstream}: {found}"
        );
    }
}

#[test]
fn addresses_may_be_shared_by_hosts_and_port_0_never_is() {
    toml(
        "[http.a]\nlisten = '127.0.0.1:1'\nhosts = 'a.de'\n[http.b]\nlisten = '127.0.0.1:1'\nhosts = '*.a.de'\n[http.c]\nlisten = '127.0.0.1:1'\n",
    );
    toml(
        "[http.a]\nlisten = '127.0.0.1:0'\n[http.b]\nlisten = '127.0.0.1:0'\n[http.c]\nlisten = ':0'",
    );
    let found =
        errors("[http.a]\nlisten = ':1'\n[http.b]\nlisten = '0.0.0.0:1'\nlimits.streams = 5");
    assert_eq!(found.len(), 3, "{found:#?}");
}

#[test]
fn a_route_below_all_hosts_or_paths_of_earlier_ones_is_told() {
    let unreached = |routes: &str| -> Vec<String> {
        let text = format!("[http.web]\nlisten = '127.0.0.1:1'\nroutes = [{routes}]");
        let parsed = parse_as(&text, Format::Toml).unwrap();
        parsed.warnings.into_iter().map(|w| w.pointer).collect()
    };
    let route = |conditions: &str| format!("{{ match = {{ {conditions} }}, respond = '' }},");
    let cases: [(&[&str], bool); 12] = [
        (&["path = '/a/*'", "path = '/a'"], true),
        (&["path = '/a/*'", "path = '/ab'"], false),
        (&["path = '/a*'", "path = '/ab/c*'"], true),
        (&["path = '/a/*'", "path = '/a/b*'"], true),
        (&["path = '/a/*'", "path = '/a*'"], false),
        (&["host = '*.x.de'", "host = 'a.b.x.de', path = '/a'"], true),
        (&["host = '*.x.de'", "host = 'x.de'"], false),
        (
            &["host = 'a.de'", "host = 'b.de'", "host = ['a.de', 'b.de']"],
            true,
        ),
        (
            &["method = 'GET', path = '/a'", "method = 'GET', path = '/a'"],
            true,
        ),
        (&["method = 'GET', path = '/a'", "path = '/a'"], false),
        (&["path = '~^/a'", "path = '~^/a', method = 'GET'"], true),
        (&["path = '/*'", "remote = '10.0.0.0/8'"], true),
    ];
    for (routes, expected) in cases {
        let text: String = routes.iter().map(|r| route(r)).collect();
        assert_eq!(!unreached(&text).is_empty(), expected, "{routes:?}");
    }
}

#[test]
fn a_route_whose_hosts_the_server_does_not_answer_for_is_told() {
    let cases = [
        ("['a.de']", "'b.de'", true),
        ("['a.de']", "['b.de', 'a.de']", false),
        ("['a.de']", "'*.a.de'", true),
        ("['a.de']", "'*.de'", false),
        ("['*.a.de']", "'a.de'", true),
        ("['*.a.de']", "'x.y.a.de'", false),
        ("['*.a.de']", "'*.a.de'", false),
        ("['*.a.de']", "'*.y.a.de'", false),
        ("['*.x.a.de']", "'*.a.de'", false),
        ("['*.x.a.de']", "'*.y.a.de'", true),
        ("['a.de']", "'~^b'", false),
    ];
    for (hosts, host, told) in cases {
        let text = format!(
            "[http.web]\nlisten = '127.0.0.1:1'\nhosts = {hosts}\nroutes = [{{ match.host = {host}, respond = '' }}]"
        );
        let warnings = parse_as(&text, Format::Toml).unwrap().warnings;
        assert_eq!(!warnings.is_empty(), told, "{hosts} {host}");
        assert!(
            warnings
                .iter()
                .all(|w| w.pointer == "/http/web/routes/0/match/host")
        );
    }
}

#[test]
fn hostile_documents_are_refused_without_harm() {
    let deep = 100_000;
    let cases = [
        (Format::Json, "[".repeat(deep)),
        (Format::Json, "[".repeat(deep) + &"]".repeat(deep)),
        (Format::Json, "{\"a\":".repeat(deep)),
        (Format::Toml, "a = ".to_owned() + &"[".repeat(deep)),
        (Format::Toml, "a = ".to_owned() + &"{a=".repeat(deep)),
        (Format::Toml, "a.".repeat(deep) + "a = 1"),
        (Format::Toml, format!("[{}a]", "a.".repeat(deep))),
        (Format::Toml, format!("[{}a]", "'a'.".repeat(deep))),
        (
            Format::Toml,
            "a = { ".to_owned() + &"a.".repeat(deep) + "a = 1 }",
        ),
        (Format::Yaml, "[".repeat(deep)),
        (Format::Yaml, "- ".repeat(1_000) + "a"),
        (Format::Yaml, "{a: ".repeat(1_000)),
        (Format::Yaml, "--- a\n--- b\n".to_owned()),
        (Format::Yaml, "a: &a [*a]".to_owned()),
        (Format::Yaml, laughs()),
    ];
    for (format, text) in cases {
        let refused = parse_as(&text, format);
        assert!(
            matches!(refused, Err(Refused::Syntax(_))),
            "{format:?} {}",
            &text[..20.min(text.len())]
        );
    }
    for bytes in [&b"\xef\xbb\xbfa = 1"[..], b"\xff\xfea\0", b"a = '\xc3\x28'"] {
        for format in FORMATS {
            let refused = Document::parse(bytes, format, &context());
            assert!(matches!(refused, Err(Refused::Syntax(_))));
        }
    }
    let place = Document::parse(b"a = 1\nb = '\xc3\xa4\xff'", Format::Toml, &context());
    assert!(
        matches!(&place, Err(Refused::Syntax(e)) if (e[0].line, e[0].column) == (Some(2), Some(7))),
        "{place:?}"
    );
}

fn laughs() -> String {
    let mut text = "x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..9 {
        let items = vec![format!("*a{}", n - 1); 10].join(", ");
        text.push_str(&format!("x-{n}: &a{n} [{items}]\n"));
    }
    text
}

#[test]
fn yaml_has_the_core_schema_and_aliases() {
    let text = "x-common: &targets [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nhttp:\n  web: { listen: 127.0.0.1:80, respond: { body: no, headers: { x: !!str 5 } } }\n  \
                two: { listen: \"127.0.0.1:81\", proxy: a }\nupstreams:\n  a: { targets: *targets }\n";
    let document = parse_as(text, Format::Yaml).unwrap().document;
    assert_eq!(document.upstreams["a"].targets.len(), 2);
    assert_eq!(
        document.normal["http"]["web"]["respond"],
        serde_json::json!({ "body": "no", "headers": { "x": "5" } })
    );
    // A mistake behind an alias has the alias's pointer.
    let wrong = "x-c: &t [\"127.0.0.1\"]\nupstreams:\n  a: { targets: *t }\n";
    let found = diagnostics(parse_as(wrong, Format::Yaml));
    assert_eq!(
        (found[0].1.pointer.as_str(), found[0].1.line),
        ("/upstreams/a/targets/0", Some(1)),
        "{found:?}"
    );
}

#[test]
fn a_listener_address_is_ordered_and_printed() {
    let web = &toml("[http.web]\nlisten = '[::1]:1'\n").http["web"];
    assert_eq!(
        web.listen,
        [ListenAddr::Tcp(([0, 0, 0, 0, 0, 0, 0, 1], 1).into())]
    );
}

/// A document of many routes, as large gateways have it.
fn large(routes: usize) -> String {
    let mut text = String::from("[http.web]\nlisten = '127.0.0.1:80'\n");
    for n in 0..routes {
        text.push_str(&format!(
            "[[http.web.routes]]\nname = \"tenant-{n}\"\nmatch.host = \"tenant-{n}.example.com\"\nmatch.path = \"/v1/*\"\nproxy = \"pool-{}\"\n",
            n % 50
        ));
    }
    for n in 0..50 {
        text.push_str(&format!(
            "[upstreams.pool-{n}]\ntargets = [\"10.0.0.{n}:80\"]\n"
        ));
    }
    text
}

/// Ten times the routes may take at most fifty times as long, where quadratic work would take a hundred.
#[test]
fn time_grows_with_the_size_of_the_document() {
    let time = |text: &str, format| {
        (0..3)
            .map(|_| {
                let begin = std::time::Instant::now();
                parse_as(text, format).unwrap();
                begin.elapsed()
            })
            .min()
            .unwrap()
    };
    for format in FORMATS {
        let texts = [500, 5_000].map(|n| toml(&large(n)).render(format, false));
        let [small, big] = texts.map(|text| time(&text, format));
        assert!(big < small * 50, "{format:?}: {small:?} and {big:?}");
    }
}

#[test]
fn ten_thousand_routes_are_the_same_in_all_formats() {
    let document = toml(&large(10_000));
    for format in FORMATS {
        let text = document.render(format, false);
        let begin = std::time::Instant::now();
        let again = parse_as(&text, format).unwrap().document;
        // Shown with `--nocapture`; the build decides what is fast.
        println!("{format:?}: {} bytes in {:?}", text.len(), begin.elapsed());
        assert_eq!(*again, document);
    }
}

/// Values of any kind under keys of the language, so that most are wrong in some way.
fn any_document() -> impl Strategy<Value = serde_json::Value> {
    let key = prop::sample::select(vec![
        "http",
        "web",
        "upstreams",
        "listen",
        "routes",
        "proxy",
        "respond",
        "redirect",
        "files",
        "root",
        "try",
        "match",
        "path",
        "targets",
        "admin",
        "runtime",
        "not",
        "timeouts",
        "limits",
        "headers",
        "body",
        "status",
        "name",
        "x-a",
        "ä\n~/",
        "enabled",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::json!(true)),
        any::<i64>().prop_map(|n| serde_json::json!(n)),
        prop::sample::select(vec![
            ":80",
            "10s",
            "api",
            "{host}",
            "~(",
            "127.0.0.1:1",
            "/a/*",
            "unlimited",
            "${X}",
            "*",
            "- a: #",
            "\u{feff}\u{1}\""
        ])
        .prop_map(|s| serde_json::json!(s)),
        "\\PC{0,12}".prop_map(|s| serde_json::json!(s)),
    ];
    leaf.prop_recursive(6, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| {
                serde_json::Value::Object(
                    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                )
            }),
        ]
    })
}

/// Documents that pass, in short and long forms, with texts that need quoting.
fn valid_document() -> impl Strategy<Value = serde_json::Value> {
    let text = "[^{}$]{0,12}";
    let action = prop_oneof![
        Just(serde_json::json!({ "proxy": "api" })),
        "[a-z]{1,8}"
            .prop_map(|host| serde_json::json!({ "proxy": format!("http://{host}:81/base") })),
        text.prop_map(|body| serde_json::json!({ "respond": body })),
        (text, 200..600_u16).prop_map(
            |(body, status)| serde_json::json!({ "respond": { "body": body, "status": status } })
        ),
        Just(serde_json::json!({ "redirect": "https://{host}{uri}" })),
        "[a-z]{1,8}".prop_map(
            |root| serde_json::json!({ "files": { "root": root, "try": ["{path}", "/index.html"] } })
        ),
    ];
    let conditions = prop_oneof![
        "[a-z/]{0,8}".prop_map(|path| serde_json::json!({ "path": format!("/{path}") })),
        text.prop_map(|value| serde_json::json!({ "query": { "k": [value, "*"] } })),
        text.prop_map(|value| serde_json::json!({ "cookie": { "k": value.trim_start_matches('~') }, "method": "GET" })),
    ]
    .prop_filter("no regular expressions", |c| !c.to_string().contains('~'));
    let route = (action, prop::option::of(conditions)).prop_map(|(mut action, conditions)| {
        if let (Some(conditions), Some(route)) = (conditions, action.as_object_mut()) {
            route.insert("match".to_owned(), conditions);
        }
        action
    });
    (prop::collection::vec(route, 0..6), 0..10_000_u64).prop_map(|(routes, ms)| {
        serde_json::json!({
            "runtime": { "drain_timeout": format!("{ms}ms") },
            "http": { "web": { "listen": "127.0.0.1:80", "routes": routes } },
            "upstreams": { "api": { "targets": "127.0.0.1:1" } }
        })
    })
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in FORMATS {
            let _ = Document::parse(&bytes, format, &context());
        }
    }

    #[test]
    fn no_punctuation_makes_it_panic(text in "[\\[\\]{}:,\"'=.#&*!|> \n\\-a1x<]{0,60}") {
        for format in FORMATS {
            let _ = parse_as(&text, format);
        }
    }

    #[test]
    fn wrong_documents_have_the_same_errors_in_all_formats(value in any_document()) {
        // The root of TOML is a table.
        let value = if value.is_object() { value } else { serde_json::json!({ "http": value }) };
        let found = FORMATS.map(|format| {
            let text = render::render(&value, format);
            let mut all: Vec<_> = diagnostics(parse_as(&text, format)).into_iter().map(|(_, d)| (d.pointer, d.message)).collect();
            // TOML's text puts tables last.
            all.sort();
            all
        });
        prop_assert_eq!(&found[0], &found[1]);
        prop_assert_eq!(&found[1], &found[2]);
    }

    #[test]
    fn normalizing_is_idempotent(documents in valid_document()) {
        let text = render::render(&documents, Format::Json);
        let first = parse_as(&text, Format::Json).unwrap().document;
        for format in FORMATS {
            let again = parse_as(&first.render(format, false), format).unwrap().document;
            prop_assert_eq!(&again, &first);
            let written = parse_as(&render::render(&documents, format), format).unwrap().document;
            prop_assert_eq!(&written, &first);
        }
    }
}

#[test]
fn alpn_and_client_auth_fit_the_rest_of_the_server() {
    let server = |more: &str, tls: &str| {
        format!(
            "[http.web]\nlisten = '127.0.0.1:1'\nrespond = ''\n{more}\n[http.web.tls]\nself_signed = 'x'\n{tls}\n"
        )
    };
    let offered = |more: &str, tls: &str| {
        let document = toml(&server(more, tls));
        let alpn = document.http["web"].connection.alpn.iter();
        alpn.map(|name| name.word()).collect::<Vec<_>>()
    };
    assert_eq!(offered("", ""), ["h2", "http/1.1"]);
    assert_eq!(offered("protocols = 'h1'", ""), ["http/1.1"]);
    assert_eq!(offered("", "alpn = ['http/1.1', 'h2']"), ["http/1.1", "h2"]);
    assert_eq!(offered("", "alpn = 'h2'"), ["h2"]);
    for (more, tls, expected) in [
        (
            "protocols = 'h1'",
            "alpn = ['h2', 'http/1.1']",
            "alpn/0: `h2` is not in `protocols`",
        ),
        ("", "alpn = ['h2', 'h2']", "alpn/1: `h2` is listed twice"),
        ("", "alpn = ['http/1.1']", "alpn: HTTP/2 is in `protocols`"),
        ("", "alpn = ['spdy']", "alpn/0: `spdy` is not one of"),
        (
            "",
            "client_auth = {}",
            "client_auth: `client_auth` needs a `ca`",
        ),
        (
            "",
            "client_auth = { ca = '' }",
            "client_auth/ca: an empty path",
        ),
        (
            "",
            "client_auth = { ca = 'x', mode = 'ask' }",
            "client_auth/mode: `ask` is not one of",
        ),
    ] {
        let found = errors(&server(more, tls));
        let wanted = format!("/http/web/tls/{expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&wanted),
            "{wanted}: {found:#?}"
        );
    }
    let document = toml(&server("", "client_auth = 'ca.pem'"));
    let named: Vec<_> = document.certificate_pointers();
    assert_eq!(named[0].1, "/http/web/tls/client_auth/ca");
}
