//! What may be switched off: a value, or `false`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::super::findings::Findings;
use super::super::tree::{Node, Value};
use super::Decode;

/// A value, or `false` for none: what stands in the defaults can be taken back where it is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Switch<T> {
    #[default]
    Off,
    On(T),
}

impl<T> Switch<T> {
    pub fn get(&self) -> Option<&T> {
        match self {
            Switch::Off => None,
            Switch::On(value) => Some(value),
        }
    }
}

impl<T: Decode> Decode for Switch<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match &node.value {
            Value::Bool(false) => Some(Switch::Off),
            _ => T::decode(node, findings).map(Switch::On),
        }
    }

    fn fill(&mut self) {
        if let Switch::On(value) = self {
            value.fill();
        }
    }
}

impl<T: Serialize> Serialize for Switch<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Switch::Off => serializer.serialize_bool(false),
            Switch::On(value) => value.serialize(serializer),
        }
    }
}

impl<T: JsonSchema> JsonSchema for Switch<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrFalse", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [generator.subschema_for::<T>(), { "const": false }] })
    }
}
