//! Secrets that come back as they are shown, as `"<redacted>"`: each is the running one of the same place. Tables are places
//! by their names. A route is one by its `name`; without, only where the running route of its index says the same: others
//! may have moved there, and their secrets are not to let in whom they do not know.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value as Json;

use super::Document;
use super::shown::normalized;
use crate::config::admin::NONE_RUNS;
use crate::config::decode::Decode;
use crate::config::environment::{Environment, Lookup};
use crate::config::findings::Findings;
use crate::config::http::RouteRaw;
use crate::config::scalar::{REDACTED, Secret};
use crate::config::tree::{At, Node, Tree, Value};

/// Puts the secrets of `running` in. Places where none is to be had keep their text, and reading it is an error;
/// `environment`: what fills texts of `running`, as it has filled those of `tree`.
pub(super) fn put_back(
    tree: &mut Tree<'_>,
    running: &Document,
    environment: Option<Lookup<'_>>,
    findings: &mut Findings,
) {
    let Tree { root, places } = tree;
    let mut redacted: Vec<At> = Vec::new();
    root.walk(&mut |node| {
        if is_redacted(node) {
            redacted.push(node.at);
        }
    });
    let mut routes = Routes {
        posted: root,
        running,
        environment,
        tables: HashMap::new(),
        known: HashMap::new(),
    };
    let mut secrets: HashMap<At, &Secret> = HashMap::new();
    for at in redacted {
        let pointer = places.pointer(at);
        let below = Below::new(&pointer);
        let secret = match &below {
            None => running.secret_at(&pointer),
            Some(below) => routes.secret(below),
        };
        if let Some(secret) = secret {
            secrets.insert(at, secret);
        } else if below.is_some_and(|below| below.is_secret()) {
            findings
                .error(at, NONE_RUNS)
                .help("give the route a name, or the secret itself");
        }
    }
    root.walk(&mut |node| {
        if is_redacted(node)
            && let Some(secret) = secrets.get(&node.at)
        {
            node.value = Value::Text(Cow::Owned(secret.expose().to_owned()));
        }
    });
}

fn is_redacted(node: &Node<'_>) -> bool {
    !node.from_env && matches!(&node.value, Value::Text(text) if text == REDACTED)
}

/// A pointer into a route, in its parts.
struct Below<'p> {
    /// Of what has the routes: `/http/NAME`, `/defaults/http`.
    table: &'p str,
    /// Of the route, in the text.
    route: &'p str,
    index: usize,
    /// From the route on, with its `/`.
    rest: &'p str,
}

impl<'p> Below<'p> {
    fn new(pointer: &'p str) -> Option<Below<'p>> {
        let mut steps = pointer.match_indices('/').map(|(at, _)| at);
        let table = steps.nth(2)?;
        let (table, rest) = pointer.split_at(table);
        if !table.starts_with("/http/") && table != "/defaults/http" {
            return None;
        }
        let rest = rest.strip_prefix("/routes/")?;
        let (first, after) = rest.split_once('/')?;
        let (index, length) = match first.parse() {
            Ok(index) => (index, after.len() + 1),
            // One route does for a list.
            Err(_) => (0, rest.len() + 1),
        };
        let (route, rest) = pointer.split_at(pointer.len() - length);
        Some(Below {
            table,
            route,
            index,
            rest,
        })
    }

    /// Whether a secret is expected there: elsewhere the text may mean itself.
    fn is_secret(&self) -> bool {
        self.rest.starts_with("/basic_auth/users/")
    }
}

/// The routes of both documents, as far as they were asked for.
struct Routes<'r, 't, 'd> {
    posted: &'r Node<'t>,
    running: &'d Document,
    environment: Option<Lookup<'r>>,
    /// Running routes by their table.
    tables: HashMap<String, Running>,
    /// The index of the running route that a posted one is, by the pointer of that.
    known: HashMap<String, Option<usize>>,
}

/// The running routes of a table.
#[derive(Default)]
struct Running {
    /// See [`form_of`].
    routes: Vec<Json>,
    by_name: HashMap<String, usize>,
}

impl<'d> Routes<'_, '_, 'd> {
    fn secret(&mut self, below: &Below<'_>) -> Option<&'d Secret> {
        let index = match self.known.get(below.route) {
            Some(known) => *known,
            None => {
                let found = self.same(below);
                self.known.insert(below.route.to_owned(), found);
                found
            }
        }?;
        let form = shown(self.running, below.table);
        let pointer = format!("{}/routes/{index}{}", below.table, below.rest);
        let pointer = normalized(form, &pointer)?;
        // Only what is written out there: `[defaults]` may have a list of routes that this one has replaced.
        let written = form.pointer(&pointer)?.as_str() == Some(REDACTED);
        written.then(|| self.running.secret_at(&pointer)).flatten()
    }

    /// The index of the running route that a posted one is.
    fn same(&mut self, below: &Below<'_>) -> Option<usize> {
        let (node, 0) = self.posted.nearest(below.route) else {
            return None;
        };
        let posted = form_of(node)?;
        if !self.tables.contains_key(below.table) {
            let running = self.running_routes(below.table);
            self.tables.insert(below.table.to_owned(), running);
        }
        let running = self.tables.get(below.table)?;
        match name(&posted) {
            Some(name) => running.by_name.get(name).copied(),
            None => (running.routes.get(below.index)? == &posted).then_some(below.index),
        }
    }

    fn running_routes(&self, table: &str) -> Running {
        let routes = shown(self.running, table)
            .pointer(&format!("{table}/routes"))
            .and_then(Json::as_array);
        let mut running = Running::default();
        for (index, route) in routes.into_iter().flatten().enumerate() {
            let mut tree = Tree::of_json(route);
            Environment::of(self.environment).fill(&mut tree.root);
            // It has passed before. What cannot be filled now equals nothing.
            let route = form_of(&tree.root).unwrap_or_default();
            if let Some(name) = name(&route) {
                running.by_name.insert(name.to_owned(), index);
            }
            running.routes.push(route);
        }
        running
    }
}

/// All that a route says, its secrets but that there are some, with what it leaves out.
fn form_of(route: &Node<'_>) -> Option<Json> {
    let mut route = RouteRaw::decode(route, &mut Findings::default())?;
    route.fill();
    serde_json::to_value(route).ok()
}

fn name(route: &Json) -> Option<&str> {
    route.get("name")?.as_str()
}

/// The form of a document in which a table stands.
fn shown<'d>(running: &'d Document, table: &str) -> &'d Json {
    match table.starts_with("/defaults/") {
        true => &running.normal,
        false => running.whole(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Context, Parsed, Refused};
    use super::*;
    use crate::config::Format;

    const HASHES: [&str; 2] = [
        "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie",
        "$argon2id$v=19$m=16,t=2,p=1$MTIzNDU2Nzg$lKKjYkJmbAVmfFJAaJYqug",
    ];

    fn parse(text: &str, running: Option<&Document>) -> Result<Parsed, Refused> {
        let base = "/".into();
        let context = Context { base, running };
        Document::parse(text.as_bytes(), Format::Toml, &context)
    }

    fn route(head: &str, path: &str, secret: &str) -> String {
        format!(
            "{{ {head} match.path = '{path}', respond = 'x', basic_auth.users.alice = '{secret}' }}"
        )
    }

    fn document(routes: &[String]) -> String {
        let routes = routes.join(", ");
        format!("[http.web]\nlisten = ':1'\nrespond = ''\nroutes = [{routes}]\n")
    }

    fn running(heads: [&str; 2]) -> Document {
        let routes = [
            route(heads[0], "/a", HASHES[0]),
            route(heads[1], "/b", HASHES[1]),
        ];
        std::sync::Arc::unwrap_or_clone(parse(&document(&routes), None).unwrap().document)
    }

    /// The index of the hash that each route has.
    fn hashes(text: &str, running: &Document) -> Vec<usize> {
        let document = parse(text, Some(running)).unwrap().document;
        let secret = |index: usize| {
            let place = format!("/http/web/routes/{index}/basic_auth/users/alice");
            document.secret_at(&place).unwrap().expose().to_owned()
        };
        let routes = 0..document.http["web"].routes.len();
        let index = |secret: String| HASHES.iter().position(|hash| *hash == secret).unwrap();
        routes.map(|route| index(secret(route))).collect()
    }

    fn refused(text: &str, running: &Document) -> Vec<(String, String)> {
        match parse(text, Some(running)).unwrap_err() {
            Refused::Invalid { errors, .. } => errors
                .into_iter()
                .map(|e| {
                    assert_eq!(e.message, NONE_RUNS);
                    (e.pointer, e.help.unwrap_or_default())
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_secret_of_a_named_route_goes_with_its_name() {
        let running = running(["name = 'a',", "name = 'b',"]);
        let (a, b) = (
            route("name = 'a',", "/new", REDACTED),
            route("name = 'b',", "/b", REDACTED),
        );
        assert_eq!(hashes(&document(&[a.clone(), b.clone()]), &running), [0, 1]);
        assert_eq!(hashes(&document(&[b.clone(), a]), &running), [1, 0]);
        assert_eq!(hashes(&document(std::slice::from_ref(&b)), &running), [1]);
        // One route does for a list.
        let one = document(&[b]).replace("[{", "{").replace("}]", "}");
        let document = parse(&one, Some(&running)).unwrap().document;
        let secret = document.secret_at("/http/web/routes/0/basic_auth/users/alice");
        assert_eq!(secret.unwrap().expose(), HASHES[1]);
    }

    #[test]
    fn the_secret_of_another_route_is_nobodys() {
        let running = running(["", "name = 'b',"]);
        let unnamed = route("", "/a", REDACTED);
        assert_eq!(
            hashes(&document(std::slice::from_ref(&unnamed)), &running),
            [0]
        );
        let help = "give the route a name, or the secret itself";
        let at = |index| format!("/http/web/routes/{index}/basic_auth/users/alice");
        for other in [
            route("", "/b", REDACTED),
            route("name = 'a',", "/a", REDACTED),
            route("", "/a", REDACTED).replace("alice", "bob"),
        ] {
            let found = refused(&document(std::slice::from_ref(&other)), &running);
            assert_eq!((found.len(), found[0].1.as_str()), (1, help), "{other}");
        }
        // Moved by one: at its index runs another.
        let moved = document(&[route("", "/new", HASHES[0]), unnamed]);
        assert_eq!(refused(&moved, &running), [(at(1), help.to_owned())]);
    }

    #[test]
    fn a_text_that_is_no_secret_may_say_so() {
        let running = running(["", ""]);
        let text = document(&["{ respond = '<redacted>' }".to_owned()]);
        assert!(parse(&text, Some(&running)).is_ok());
    }

    #[test]
    fn what_is_shown_may_come_back_with_defaults_and_texts_of_the_environment() {
        let routes = route("headers.response.set.x = '$${{A}}',", "/a", HASHES[0]);
        let text = format!(
            "[defaults.http]\nlisten = ':1'\nroutes = [{routes}]\n[http.web]\nrespond = ''\n"
        );
        let running = parse(&text, None).unwrap().document;
        for defaults in [false, true] {
            let shown = running.render(Format::Toml, defaults);
            assert!(shown.contains(REDACTED), "{shown}");
            let back = parse(&shown, Some(&running)).unwrap().document;
            assert_eq!(back.http["web"].routes, running.http["web"].routes);
        }
    }

    #[test]
    fn a_list_in_defaults_gives_nothing_to_the_one_that_replaced_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), HASHES[1]).unwrap();
        let secret = format!("{{ file = '{}' }}", file.path().display());
        let text = |own: &str| {
            format!(
                "[defaults.http]\nlisten = ':1'\nroutes = [{}]\n[http.web]\nrespond = ''\nroutes = [{}]\n",
                route("name = 'x',", "/a", HASHES[0]),
                route("name = 'x',", "/a", "<own>").replace("'<own>'", own)
            )
        };
        let running = parse(&text(&secret), None).unwrap().document;
        assert!(parse(&text(&secret), Some(&running)).is_ok());
        assert_eq!(refused(&text("'<redacted>'"), &running).len(), 1);
    }
}
