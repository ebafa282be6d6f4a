//! `admin-openapi.yaml` as the judge of every admin answer that a test sees: the status must be documented for that
//! call, and the body must fit its schema.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The contract as it lies in the project.
pub(crate) static YAML: LazyLock<String> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/admin-openapi.yaml");
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
});
pub(crate) static CONTRACT: LazyLock<Value> = LazyLock::new(|| from_yaml(&YAML));
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

pub(crate) const METHODS: [&str; 8] = [
    "get", "post", "put", "patch", "delete", "head", "options", "trace",
];

/// YAML as JSON: block and flow collections, plain scalars by the YAML 1.2 core rules, no anchors or tags.
pub(crate) fn from_yaml(text: &str) -> Value {
    enum Open {
        List(Vec<Value>),
        Table(Map<String, Value>, Option<String>),
    }
    let mut open: Vec<Open> = Vec::new();
    let mut root = Value::Null;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.unwrap_or_else(|e| panic!("admin-openapi.yaml: {e}"));
        let value = match event {
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(Map::new(), None));
                continue;
            }
            Event::Scalar(text, style, ..) => {
                if let Some(Open::Table(_, key @ None)) = open.last_mut() {
                    *key = Some(text.into_owned());
                    continue;
                }
                scalar(&text, style)
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop().unwrap() {
                Open::List(items) => Value::Array(items),
                Open::Table(table, _) => Value::Object(table),
            },
            Event::Alias(_) => panic!("admin-openapi.yaml: an alias at {span:?}"),
            _ => continue,
        };
        match open.last_mut() {
            Some(Open::List(items)) => items.push(value),
            Some(Open::Table(table, key)) => {
                table.insert(key.take().unwrap(), value);
            }
            None => root = value,
        }
    }
    root
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        // What looks like a number in JSON is one in YAML 1.2's core schema too, as far as a contract needs it.
        _ => serde_json::from_str(text)
            .ok()
            .filter(Value::is_number)
            .unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

/// Follows a local `$ref`.
pub(crate) fn resolve(value: &Value) -> &Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(to) => {
            let pointer = to
                .strip_prefix('#')
                .unwrap_or_else(|| panic!("a reference out of the file: {to}"));
            resolve(
                CONTRACT
                    .pointer(pointer)
                    .unwrap_or_else(|| panic!("a dangling reference: {to}")),
            )
        }
        None => value,
    }
}

/// The template of the contract that a path belongs to; the one with the fewest variables wins.
fn template(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.split('/').collect();
    let paths = CONTRACT["paths"]
        .as_object()
        .expect("the contract has paths");
    paths
        .keys()
        .filter(|template| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == segments.len()
                && parts.iter().zip(&segments).all(|(p, s)| {
                    if p.starts_with('{') {
                        !s.is_empty()
                    } else {
                        p == s
                    }
                })
        })
        .min_by_key(|template| template.matches('{').count())
        .map(String::as_str)
}

/// Panics unless the contract allows this answer.
pub(crate) fn check(
    method: &str,
    target: &str,
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
) {
    let path = target.split('?').next().unwrap_or_default();
    let Some(template) = template(path) else {
        // A path that is not in the contract: nothing may be there.
        assert!(
            matches!(status, 404 | 401 | 403),
            "{method} {path} is served ({status}) but not in the contract"
        );
        return;
    };
    let item = &CONTRACT["paths"][template];
    let operation = match item.get(method.to_ascii_lowercase()) {
        Some(operation) => operation,
        // The contract has no such call: 405 (or a guard's refusal) is the only right answer, in the problem's shape.
        None => {
            assert!(
                matches!(status, 405 | 401 | 403),
                "{method} {path} answers {status} but is not in the contract"
            );
            return;
        }
    };
    let responses = &operation["responses"];
    let code = status.to_string();
    let class = format!("{}XX", &code[..1]);
    let response = responses
        .get(&code)
        .or_else(|| responses.get(&class))
        .or_else(|| responses.get("default"));
    let Some(response) = response.map(resolve) else {
        panic!(
            "{method} {path}: status {status} is not documented; body: {}",
            String::from_utf8_lossy(body)
        );
    };
    let Some(content) = response.get("content").and_then(Value::as_object) else {
        return;
    };
    if method.eq_ignore_ascii_case("HEAD") {
        return;
    }
    let essence = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    let Some(media) = content.get(essence) else {
        panic!("{method} {path} {status}: content type {essence:?} is not documented");
    };
    let Some(schema) = media.get("schema") else {
        return;
    };
    let documents: Vec<Value> = match essence {
        "application/json" | "application/problem+json" => {
            vec![
                serde_json::from_slice(body)
                    .unwrap_or_else(|e| panic!("{method} {path} {status}: not JSON: {e}")),
            ]
        }
        // The schema of a stream is that of one event.
        "application/x-ndjson" => body
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line of NDJSON"))
            .collect(),
        _ => return,
    };
    let name = format!("{template} {method} {status} {essence}");
    let validator = validator(name.clone(), schema);
    for document in documents {
        if let Some(error) = validator.iter_errors(&document).next() {
            panic!(
                "{name}: {error} at {}; the body: {document}",
                error.instance_path()
            );
        }
    }
}

fn validator(name: String, schema: &Value) -> Arc<Validator> {
    VALIDATORS
        .lock()
        .unwrap()
        .entry(name)
        .or_insert_with(|| {
            // References of the schema start at the root, where the components are put.
            let root =
                serde_json::json!({ "allOf": [schema], "components": CONTRACT["components"] });
            Arc::new(jsonschema::validator_for(&root).expect("a valid schema"))
        })
        .clone()
}
