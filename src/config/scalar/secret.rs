//! Secrets: they redact themselves wherever they are shown, and a document may say where they are to be found instead.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::super::decode::{Decode, text, unknown_key, wrong_kind};
use super::super::findings::Findings;
use super::super::tree::{Node, Value};

/// A secret string: redacts itself wherever it is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }
    /// The secret itself; for comparison and for sending only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A secret as a document gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    Literal(Secret),
    /// `"<redacted>"`: the value that runs.
    Redacted,
    Env(String),
    File(String),
}

/// What stands for a literal secret in everything that is shown.
pub const REDACTED: &str = "<redacted>";

impl Decode for SecretRef {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        let in_vain = matches!(node.value, Value::Unset(_));
        if in_vain || node.from_env {
            let message = "`${…}` is not replaced in a secret";
            let help = "write `{ env = \"NAME\" }`; a secret that has such a text goes into a file: `{ file = \"path\" }`";
            findings.error(node.at, message).help(help);
            return None;
        }
        let entries = match &node.value {
            Value::Text(text) if text == REDACTED => return Some(SecretRef::Redacted),
            Value::Text(text) if text.is_empty() => {
                findings.error(node.at, "an empty secret");
                return None;
            }
            Value::Text(text) => {
                let secret = Secret::new(text.to_string());
                findings.literal_secret(node.at, &secret);
                return Some(SecretRef::Literal(secret));
            }
            Value::Table(entries) => entries,
            _ => {
                wrong_kind(
                    node,
                    "a string, `{ env = \"NAME\" }` or `{ file = \"path\" }`",
                    findings,
                );
                return None;
            }
        };
        let mut found = Vec::new();
        let mut wrong = false;
        for (key, child) in entries {
            match key.as_ref() {
                "env" => found.extend(text(child, findings).map(|t| SecretRef::Env(t.to_owned()))),
                "file" => {
                    found.extend(text(child, findings).map(|t| SecretRef::File(t.to_owned())))
                }
                _ => {
                    wrong = true;
                    unknown_key(child.at, key, &["env", "file"], &[], findings);
                }
            }
        }
        if entries.len() != 1 && !wrong {
            findings.error(
                node.at,
                "a secret is either `{ env = \"NAME\" }` or `{ file = \"path\" }`",
            );
            return None;
        }
        found.pop()
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SecretRef::Literal(_) | SecretRef::Redacted => serializer.serialize_str(REDACTED),
            SecretRef::Env(name) => serializer.collect_map([("env", name)]),
            SecretRef::File(path) => serializer.collect_map([("file", path)]),
        }
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let of = |key: &str| {
            serde_json::json!({
                "type": "object", "properties": { key: { "type": "string" } },
                "required": [key], "additionalProperties": false
            })
        };
        json_schema!({
            "description": "A secret: the text itself, the name of an environment variable, or a file that holds it.",
            "anyOf": [{ "type": "string" }, of("env"), of("file")]
        })
    }
}
