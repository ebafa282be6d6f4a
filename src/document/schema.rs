//! The JSON Schema of the language.

use serde_json::{Map, Value, json};

use super::Root;

pub(super) fn json_schema() -> Value {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Root>();
    schema.insert(
        "title".to_owned(),
        "Evergate configuration, version 1".into(),
    );
    schema.insert(
        "patternProperties".to_owned(),
        serde_json::json!({ "^x-": true }),
    );
    let mut schema = schema.to_value();
    or_from_the_environment(&mut schema);
    if let Some(version) = schema.pointer_mut("/properties/version") {
        *version = json!({ "description": "Version of the language: 1.", "const": 1 });
    }
    schema
}

/// What narrows a value down, so that `"${NAME}"` would not be one.
const NARROW: [&str; 6] = ["type", "enum", "pattern", "format", "minimum", "maximum"];

/// A value of any kind may come from the environment, and is a string then.
fn or_from_the_environment(schema: &mut Value) {
    match schema {
        Value::Object(table) => {
            table.values_mut().for_each(or_from_the_environment);
            if is_narrow(table) {
                let mut narrow = Map::new();
                for key in NARROW {
                    narrow.extend(table.remove(key).map(|value| (key.to_owned(), value)));
                }
                let text = json!({ "type": "string", "pattern": "\\$\\{" });
                table.insert("anyOf".to_owned(), json!([narrow, text]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(or_from_the_environment),
        _ => {}
    }
}

/// Whether this is the schema of a scalar that not every string fits.
fn is_narrow(table: &Map<String, Value>) -> bool {
    let is = |name: &str| match table.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(many)) => many.iter().any(|one| one == name),
        _ => false,
    };
    let pattern = table.get("pattern").is_some_and(Value::is_string);
    table.get("enum").is_some_and(Value::is_array)
        || is("integer")
        || is("boolean")
        || (is("string") && pattern)
}
