//! Holds `admin-openapi.yaml` to the code: its paths are the router's routes, its component schemas are the types'.
//! Run with `EVERGATE_UPDATE=1` to write the schemas anew after a type has changed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    AdaptAnswer, Health, Operation, Problem, ROUTES, SwapAnswer, SwapList, assets::OPENAPI,
};
use crate::config::{Format, render};
use crate::supervisor::event::Event;
use crate::supervisor::{CertificateList, SessionList, Status, SwapRecord, TunnelList};

const BEGIN: &str =
    "  schemas: # generated from the types; EVERGATE_UPDATE=1 cargo test contract writes it\n";
const END: &str = "  # end of the generated part\n";

/// What each operation is called in the file.
fn operation_id(operation: Operation) -> &'static str {
    match operation {
        Operation::Now => "now",
        Operation::NowSection => "nowSection",
        Operation::NowPart => "nowPart",
        Operation::NowList => "nowList",
        Operation::NowItem => "nowItem",
        Operation::Reload => "reload",
        Operation::Adapt => "adapt",
        Operation::Stop => "stop",
        Operation::ListSwaps => "listSwaps",
        Operation::GetSwap => "getSwap",
        Operation::Status => "status",
        Operation::Sessions => "sessions",
        Operation::CloseSession => "closeSession",
        Operation::Tunnels => "tunnels",
        Operation::Certificates => "certificates",
        Operation::RefreshCertificates => "refreshCertificates",
        Operation::SetTarget => "setTarget",
        Operation::Livez => "livez",
        Operation::Readyz => "readyz",
        Operation::Metrics => "metrics",
        Operation::Openapi => "openapi",
        Operation::Schema => "schema",
    }
}

#[test]
fn the_routes_of_the_file_are_the_routers() {
    let paths = OPENAPI
        .split("\npaths:\n")
        .nth(1)
        .unwrap()
        .split("\ncomponents:\n")
        .next()
        .unwrap();
    let (mut path, mut method) = ("", String::new());
    let mut described = BTreeSet::new();
    for line in paths.lines() {
        let depth = line.len() - line.trim_start().len();
        let key = line.trim().trim_end_matches(':');
        match depth {
            2 if key.starts_with('/') => path = key,
            4 if matches!(
                key,
                "get" | "put" | "post" | "delete" | "options" | "head" | "patch" | "trace"
            ) =>
            {
                method = key.to_uppercase();
            }
            6 => {
                if let Some(id) = key.strip_prefix("operationId: ") {
                    described.insert((method.clone(), path.to_owned(), id.to_owned()));
                }
            }
            _ => {}
        }
    }
    let served: BTreeSet<_> = ROUTES
        .iter()
        .map(|(method, path, operation)| {
            (
                (*method).to_owned(),
                (*path).to_owned(),
                operation_id(*operation).to_owned(),
            )
        })
        .collect();
    assert_eq!(described, served);
}

#[test]
fn the_schemas_of_the_file_are_the_types() {
    let (head, rest) = OPENAPI.split_once(BEGIN).expect("the first marker");
    let (written, tail) = rest.split_once(END).expect("the second marker");
    let generated = schemas();
    if std::env::var_os("EVERGATE_UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/admin-openapi.yaml");
        std::fs::write(path, format!("{head}{BEGIN}{generated}{END}{tail}")).unwrap();
    } else {
        assert!(
            written == generated,
            "the types have changed: EVERGATE_UPDATE=1 cargo test contract"
        );
    }
}

#[test]
fn generated_clients_can_read_it() {
    for word in ["oneOf", "anyOf", "allOf", "\"null\"", "$defs"] {
        assert!(!OPENAPI.contains(word), "{word} in admin-openapi.yaml");
    }
}

/// The schemas as YAML, four spaces in.
fn schemas() -> String {
    let mut generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    add::<SwapAnswer>(&mut generator);
    add::<AdaptAnswer>(&mut generator);
    add::<super::targets::TargetChange>(&mut generator);
    add::<SwapRecord>(&mut generator);
    add::<SwapList>(&mut generator);
    add::<Event>(&mut generator);
    add::<Problem>(&mut generator);
    add::<Status>(&mut generator);
    add::<CertificateList>(&mut generator);
    add::<SessionList>(&mut generator);
    add::<TunnelList>(&mut generator);
    add::<Health>(&mut generator);
    let mut all: Vec<(String, Value)> = generator.take_definitions(true).into_iter().collect();
    // Described by /schema.json; for clients it is an object and nothing more.
    let words = "A whole configuration; `/schema.json` describes it.";
    let open = json!({ "type": "object", "description": words, "additionalProperties": {} });
    all.push(("Configuration".to_owned(), open));
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut table = Map::new();
    for (name, mut schema) in all {
        plain(&mut schema);
        table.insert(name, schema);
    }
    let text = render::render(&Value::Object(table), Format::Yaml);
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn add<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) {
    let _ = generator.subschema_for::<T>();
}

/// Rewrites what generators of clients stumble over: optional is said by `required` alone (we leave a field out, we
/// never send null), an enum is a list of strings, an integer has a width they know.
fn plain(schema: &mut Value) {
    match schema {
        Value::Bool(true) => *schema = json!({ "type": "object", "additionalProperties": {} }),
        Value::Object(table) => {
            if let Some(choice) = table.remove("oneOf").or_else(|| table.remove("anyOf")) {
                let choices = choice.as_array().unwrap();
                let present: Vec<_> = choices.iter().filter(|one| one["type"] != "null").collect();
                if let [only] = present.as_slice() {
                    for (key, value) in only.as_object().unwrap() {
                        table.insert(key.clone(), value.clone());
                    }
                } else {
                    merge_variants(table, &present);
                }
            }
            if let Some(Value::Array(types)) = table.get("type") {
                let only = types.iter().find(|one| *one != "null").unwrap().clone();
                table.insert("type".into(), only);
            }
            if table.get("type").is_some_and(|kind| kind == "integer") {
                // Widths that every generator knows; all of ours fit.
                table.insert("format".into(), "int64".into());
                table.remove("maximum");
            }
            table.remove("default");
            if let Some(Value::Object(properties)) = table.get_mut("properties") {
                properties.values_mut().for_each(plain);
            }
            for key in ["items", "additionalProperties"] {
                match table.get_mut(key) {
                    Some(Value::Bool(true)) if key == "additionalProperties" => {
                        table.insert(key.into(), json!({}));
                    }
                    Some(Value::Object(_)) => plain(table.get_mut(key).unwrap()),
                    _ => {}
                }
            }
            if let Some(Value::String(text)) = table.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
        }
        _ => {}
    }
}

/// Variants with words of their own become one enum; the words go to the description.
fn merge_variants(table: &mut Map<String, Value>, variants: &[&Value]) {
    let mut names = Vec::new();
    let mut words = String::new();
    for variant in variants {
        if let Some(list) = variant["enum"].as_array() {
            names.extend(list.iter().cloned());
            continue;
        }
        let name = &variant["const"];
        assert!(name.is_string(), "only enums of names: {variant}");
        names.push(name.clone());
        if let Some(description) = variant["description"].as_str() {
            words.push_str(&format!(" `{}`: {description}", name.as_str().unwrap()));
        }
    }
    table.insert("type".into(), "string".into());
    table.insert("enum".into(), Value::Array(names));
    let before = table
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    table.insert(
        "description".into(),
        format!("{before}{words}").trim().into(),
    );
}
