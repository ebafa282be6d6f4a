//! The index against a plain scan, on random tables and requests.

use super::*;
use crate::config::http::MethodPattern;
use crate::config::scalar::Pattern;
use http::HeaderValue;
use proptest::prelude::*;

fn pattern(text: &str) -> Pattern {
    Pattern {
        text: text.into(),
        regex: regex_automata::meta::Regex::new(text).unwrap(),
    }
}

fn hosts() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "a.test",
        "b.test",
        "x.a.test",
        "y.x.a.test",
        "test",
        "other.org",
        "",
    ])
    .prop_map(str::to_owned)
}

fn host_patterns() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        4 => hosts().prop_map(HostPattern::Exact),
        3 => prop::sample::select(vec!["a.test", "test", "x.a.test", "org"]).prop_map(|d| HostPattern::Below(d.into())),
        1 => prop::sample::select(vec!["^x\\.", "test$"]).prop_map(|r| HostPattern::Regex(pattern(r))),
    ]
}

fn paths() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        "(/(a|b|ab|é)){0,4}/?".prop_map(|p| if p.is_empty() { "/".into() } else { p })
    ]
}

fn path_patterns() -> impl Strategy<Value = PathPattern> {
    let text = "(/(a|b|ab|é)){0,3}";
    prop_oneof![
        3 => paths().prop_map(PathPattern::Exact),
        3 => text.prop_map(PathPattern::Below),
        2 => "(/(a|b|ab|é)){0,3}(/|/a|/é)?".prop_map(PathPattern::Prefix),
        1 => prop::sample::select(vec!["^/a/", "b$"]).prop_map(|r| PathPattern::Regex(pattern(r))),
    ]
}

fn matcher() -> impl Strategy<Value = MatchSpec> {
    (
        prop::collection::vec(host_patterns(), 0..3),
        prop::collection::vec(path_patterns(), 0..3),
        prop::collection::vec(prop::sample::select(vec![Method::GET, Method::POST]), 0..2),
        prop::option::weighted(0.2, path_patterns()),
    )
        .prop_map(|(host, path, method, not)| MatchSpec {
            host,
            path,
            method: method.into_iter().map(MethodPattern::Exact).collect(),
            not: not.map(|p| {
                Box::new(MatchSpec {
                    path: vec![p],
                    ..MatchSpec::default()
                })
            }),
            ..MatchSpec::default()
        })
}

fn head<'a>(method: &'a Method, host: &'a str, path: &'a str, headers: &'a HeaderMap) -> Head<'a> {
    let remote = Some(IpAddr::from([127, 0, 0, 1]));
    Head {
        method,
        host,
        path,
        query: None,
        headers,
        scheme: Scheme::Http,
        remote,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_index_finds_what_a_scan_finds(
        table in prop::collection::vec(matcher(), 0..60),
        requests in prop::collection::vec((hosts(), paths(), any::<bool>()), 1..20),
    ) {
        let routes = Routes::new(table.clone());
        let headers = HeaderMap::new();
        for (host, path, post) in &requests {
            let method = if *post { Method::POST } else { Method::GET };
            let head = head(&method, host, path, &headers);
            let scan = table.iter().position(|m| matches(m, &head));
            prop_assert_eq!(routes.find(&head), scan, "{} {}", host, path);
        }
    }
}

#[test]
fn ten_thousand_hosts_and_paths_are_looked_up() {
    let by_host = (0..10_000).map(|i| MatchSpec {
        host: vec![HostPattern::Exact(format!("h{i}.test"))],
        ..MatchSpec::default()
    });
    let by_path = (0..10_000).map(|i| MatchSpec {
        path: vec![PathPattern::Below(format!("/api/v{i}"))],
        ..MatchSpec::default()
    });
    let routes = Routes::new(by_host.chain(by_path).collect());
    let headers = HeaderMap::new();
    let mut lists = Lists::default();
    routes.any.gather("/api/v9999/x", &mut lists);
    assert_eq!(
        (lists.len, lists.spill.len(), lists.inline[0].len()),
        (1, 0, 1),
        "one candidate, not ten thousand"
    );
    assert_eq!(
        routes.find(&head(&Method::GET, "h7.test", "/", &headers)),
        Some(7)
    );
    assert_eq!(
        routes.find(&head(&Method::GET, "none", "/api/v9999/x", &headers)),
        Some(19_999)
    );
    assert_eq!(
        routes.find(&head(&Method::GET, "none", "/api", &headers)),
        None
    );
}

#[test]
fn conditions_on_everything_else() {
    let mut headers = HeaderMap::new();
    headers.append("x-canary", HeaderValue::from_static("0"));
    headers.append("x-canary", HeaderValue::from_static("1"));
    headers.append("cookie", HeaderValue::from_static("user=ann"));
    let method = Method::GET;
    let head = Head {
        query: Some("debug&q=a+b"),
        ..head(&method, "h", "/", &headers)
    };
    let holds = |edit: &dyn Fn(&mut MatchSpec)| {
        let mut spec = MatchSpec::default();
        edit(&mut spec);
        matches(&spec, &head)
    };
    let exact = |text: &str| vec![TextPattern::Exact(text.into())];
    let canary = http::HeaderName::from_static("x-canary");
    assert!(holds(&|_| {}));
    assert!(holds(&|s| s.header = vec![(canary.clone(), exact("1"))]));
    assert!(!holds(&|s| s.header = vec![(canary.clone(), exact("2"))]));
    assert!(!holds(
        &|s| s.header = vec![(http::header::ACCEPT, vec![TextPattern::Any])]
    ));
    assert!(holds(
        &|s| s.cookie = vec![("user".into(), vec![TextPattern::Prefix("a".into())])]
    ));
    assert!(!holds(&|s| s.cookie = vec![("user".into(), exact("bob"))]));
    assert!(holds(
        &|s| s.query = vec![("debug".into(), vec![TextPattern::Any])]
    ));
    assert!(holds(
        &|s| s.query = vec![("q".into(), vec![TextPattern::Regex(pattern("^a b$"))])]
    ));
    assert!(!holds(
        &|s| s.query = vec![("missing".into(), vec![TextPattern::Any])]
    ));
    assert!(holds(&|s| s.remote = vec!["127.0.0.0/8".parse().unwrap()]));
    assert!(!holds(&|s| s.remote = vec!["10.0.0.0/8".parse().unwrap()]));
    assert!(!holds(&|s| s.scheme = vec![Scheme::Https]));
}
