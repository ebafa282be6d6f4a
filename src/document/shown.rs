//! A document as it is shown: normalized JSON in which secrets are redacted and `${NAME}` stands as it was written. What
//! is read is the tree with the values in; here what was written goes back to its place.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{Document, Root};
use crate::config::decode::{Decode, Loc};
use crate::config::environment::{self, Environment};
use crate::config::findings::Findings;
use crate::config::scalar::Secret;
use crate::config::tree::{At, Places, Tree};

/// The sections that `[defaults]` may lie under.
pub(super) const KINDS: [&str; 5] = ["http", "upstreams", "forward", "tcp", "udp"];

/// What stands behind the places of a document: texts of which the environment gave a part, and secrets.
pub(super) struct Behind {
    /// Normalized pointer and text as written.
    written: Vec<(String, String)>,
    /// By normalized pointer.
    pub(super) secrets: BTreeMap<String, Secret>,
}

impl Behind {
    /// Finds the places in the normalized form of the same tree.
    pub(super) fn new(
        form: &Json,
        written: Vec<(At, String)>,
        secrets: Vec<(At, Secret)>,
        places: &Places<'_>,
    ) -> Behind {
        let at = |at: At| normalized(form, &places.pointer(at));
        Behind {
            written: written
                .into_iter()
                .filter_map(|(place, text)| Some((at(place)?, text)))
                .collect(),
            secrets: secrets
                .into_iter()
                .filter_map(|(place, secret)| Some((at(place)?, secret)))
                .collect(),
        }
    }

    /// Puts what was written back.
    pub(super) fn restore(&self, form: &mut Json) {
        for (pointer, text) in &self.written {
            put(form, pointer, text);
        }
    }

    /// Puts what was written back where `[defaults]` lie under the tables of `form`; `before` is the form without them.
    pub(super) fn restore_laid(&self, before: &Json, form: &mut Json) {
        self.restore(form);
        for kind in KINDS {
            let below = format!("/defaults/{kind}/");
            let laid = self.written.iter();
            let laid: Vec<_> = laid
                .filter_map(|(pointer, text)| Some((pointer.strip_prefix(&below)?, text)))
                .collect();
            let names = form.get(kind).and_then(Json::as_object);
            let names: Vec<String> = match laid.is_empty() {
                true => continue,
                false => names.into_iter().flat_map(|n| n.keys().cloned()).collect(),
            };
            for name in names {
                let table = format!("/{kind}/{}", name.replace('~', "~0").replace('/', "~1"));
                for (rest, text) in &laid {
                    let pointer = format!("{table}/{rest}");
                    if before.pointer(&pointer).is_none() {
                        put(form, &pointer, text);
                    }
                }
            }
        }
    }
}

fn put(form: &mut Json, pointer: &str, text: &str) {
    if let Some(value) = form.pointer_mut(pointer) {
        *value = Json::String(text.to_owned());
    }
}

/// The pointer that a value written at `pointer` has in the normalized form, where one value is a list of one and a short
/// form a table of one key.
pub(super) fn normalized(form: &Json, pointer: &str) -> Option<String> {
    let mut here = form;
    let mut out = String::new();
    for token in pointer.split('/').skip(1) {
        let key = token.replace("~1", "/").replace("~0", "~");
        loop {
            let next = match here {
                Json::Object(table) => table.get(&key),
                Json::Array(items) => match key.parse::<usize>() {
                    Ok(index) => items.get(index),
                    Err(_) if items.len() == 1 => {
                        out.push_str("/0");
                        here = &items[0];
                        continue;
                    }
                    Err(_) => None,
                },
                _ => None,
            };
            here = next?;
            out.push('/');
            out.push_str(token);
            break;
        }
    }
    loop {
        match here {
            Json::Array(items) if items.len() == 1 => {
                out.push_str("/0");
                here = &items[0];
            }
            Json::Object(table) if table.len() == 1 => {
                let (key, value) = table.iter().next()?;
                out.push('/');
                out.push_str(&key.replace('~', "~0").replace('/', "~1"));
                here = value;
            }
            Json::Array(_) | Json::Object(_) => return None,
            _ => return Some(out),
        }
    }
}

impl Document {
    /// The document with all that it includes in its place and `[defaults]` under the tables of their kind: what runs,
    /// without the defaults of the language.
    pub fn whole(&self) -> &Json {
        self.whole.as_ref().unwrap_or(&self.normal)
    }

    /// [`Document::whole`] with every key that was left out at its default.
    pub(super) fn filled(&self) -> Json {
        let mut tree = Tree::of_json(self.whole());
        let mut environment = Environment::new(&environment::process);
        environment.fill(&mut tree.root);
        let mut findings = Findings::default();
        // This form has passed before, so reading it again finds nothing.
        let mut root = Root::decode(&tree.root, &mut findings).unwrap_or_default();
        let form = serde_json::to_value(&root).unwrap_or_default();
        let behind = Behind::new(&form, environment.written(), Vec::new(), &tree.places);
        root.fill();
        root.version.get_or_insert(Loc {
            value: 1,
            at: At::NOWHERE,
        });
        let mut filled = serde_json::to_value(&root).unwrap_or_default();
        behind.restore(&mut filled);
        filled
    }

    /// The running secret behind a `"<redacted>"` at a pointer: the one that was written there, or in `[defaults]` below.
    pub(super) fn secret_at(&self, pointer: &str) -> Option<&Secret> {
        self.written_secret(pointer).or_else(|| {
            let (kind, rest) = pointer.strip_prefix('/')?.split_once('/')?;
            let (_, rest) = rest.split_once('/')?;
            self.written_secret(&format!("/defaults/{kind}/{rest}"))
        })
    }

    fn written_secret(&self, pointer: &str) -> Option<&Secret> {
        self.secrets.get(pointer).or_else(|| {
            // One value may stand for a list of one here, too.
            let same = |known: &str| steps(known).eq(steps(pointer));
            let mut known = self.secrets.iter();
            known.find(|(known, _)| same(known)).map(|(_, s)| s)
        })
    }
}

/// The steps of a pointer without those to the first item of a list.
fn steps(pointer: &str) -> impl Iterator<Item = &str> {
    pointer.split('/').filter(|step| *step != "0")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn short_forms_are_followed_to_their_normal_place() {
        let form = json!({
            "http": { "a/b": { "proxy": { "upstream": "x" }, "listen": [":1"], "tls": { "certificates": [{ "cert": "c", "key": "k" }] } } }
        });
        for (written, expected) in [
            ("/http/a~1b/proxy", Some("/http/a~1b/proxy/upstream")),
            ("/http/a~1b/listen", Some("/http/a~1b/listen/0")),
            ("/http/a~1b/listen/0", Some("/http/a~1b/listen/0")),
            (
                "/http/a~1b/tls/certificates/key",
                Some("/http/a~1b/tls/certificates/0/key"),
            ),
            ("/http/a~1b", None),
            ("/http/none", None),
        ] {
            assert_eq!(normalized(&form, written).as_deref(), expected, "{written}");
        }
    }
}
