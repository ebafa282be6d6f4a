//! The JSON Schema of the language.

use super::Root;

pub(super) fn json_schema() -> serde_json::Value {
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
    if let Some(version) = schema.pointer_mut("/properties/version") {
        *version = serde_json::json!({ "description": "Version of the language: 1.", "const": 1 });
    }
    schema.to_value()
}
