//! The shapes that values come in: lists, tables of named things, bounds that may be absent.

use std::borrow::Cow;
use std::ops::Deref;

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::super::findings::Findings;
use super::super::tree::{Node, Value};
use super::{Decode, Loc, wrong_kind};

/// A list; one value does for a list of one.
#[derive(Debug, Clone)]
pub struct List<T> {
    items: Vec<Loc<T>>,
    /// Some item was wrong and is left out, which has been recorded.
    pub spoiled: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List {
            items: Vec::new(),
            spoiled: false,
        }
    }
}

impl<T> Deref for List<T> {
    type Target = [Loc<T>];
    fn deref(&self) -> &[Loc<T>] {
        &self.items
    }
}

impl<T: Decode> Decode for List<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match &node.value {
            Value::List(nodes) => {
                // Nearly always all of them are right, and a long list that grows is copied over and over.
                let mut items = Vec::with_capacity(nodes.len());
                items.extend(nodes.iter().filter_map(|item| Loc::decode(item, findings)));
                let spoiled = items.len() < nodes.len();
                Some(List { items, spoiled })
            }
            _ => Loc::decode(node, findings).map(|one| List {
                items: vec![one],
                spoiled: false,
            }),
        }
    }

    fn fill(&mut self) {
        self.items.iter_mut().for_each(Decode::fill);
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.items)
    }
}

/// A table whose keys are names that the document chooses, in the document's order.
#[derive(Debug, Clone)]
pub struct Map<T> {
    entries: IndexMap<String, Loc<T>>,
    /// Names whose values were wrong and are left out, which has been recorded.
    pub spoiled: Vec<String>,
}

impl<T> Default for Map<T> {
    fn default() -> Self {
        Map {
            entries: IndexMap::new(),
            spoiled: Vec::new(),
        }
    }
}

impl<T> Map<T> {
    /// The values, in the document's order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Loc<T>> {
        self.entries.values_mut()
    }
}

impl<T> Deref for Map<T> {
    type Target = IndexMap<String, Loc<T>>;
    fn deref(&self) -> &IndexMap<String, Loc<T>> {
        &self.entries
    }
}

impl<T: Decode + Clone> Decode for Map<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        let Value::Table(entries) = &node.value else {
            wrong_kind(node, "a table", findings);
            return None;
        };
        let mut out = Map {
            entries: IndexMap::with_capacity(entries.len()),
            spoiled: Vec::new(),
        };
        for (key, child) in entries {
            match Loc::decode(child, findings) {
                Some(value) => drop(out.entries.insert(key.to_string(), value)),
                None => out.spoiled.push(key.to_string()),
            }
        }
        Some(out)
    }

    fn fill(&mut self) {
        self.entries.values_mut().for_each(Decode::fill);
    }

    fn lay_over(&mut self, below: &Self) {
        for (name, below) in &below.entries {
            match self.entries.get_mut(name) {
                Some(here) => here.lay_over(below),
                None if self.spoiled.contains(name) => {}
                None => drop(self.entries.insert(name.clone(), below.clone())),
            }
        }
    }
}

impl<T: Serialize> Serialize for Map<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.entries)
    }
}

/// A value, or the word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auto<T> {
    #[default]
    Auto,
    Value(T),
}

impl<T: Decode> Decode for Auto<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match &node.value {
            Value::Text(text) if text == "auto" => Some(Auto::Auto),
            Value::Text(_) if !node.from_env => {
                findings.error(node.at, "expected an integer or `\"auto\"`");
                None
            }
            _ => T::decode(node, findings).map(Auto::Value),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => serializer.serialize_str("auto"),
            Auto::Value(value) => value.serialize(serializer),
        }
    }
}

/// A bound, or the word `unlimited` (or `false`) for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit<T> {
    #[default]
    Unlimited,
    Value(T),
}

impl<T: Copy> Limit<T> {
    pub fn get(&self) -> Option<T> {
        match self {
            Limit::Unlimited => None,
            Limit::Value(value) => Some(*value),
        }
    }
}

impl<T: Decode> Decode for Limit<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match &node.value {
            Value::Text(text) if text == "unlimited" => Some(Limit::Unlimited),
            Value::Bool(false) => Some(Limit::Unlimited),
            Value::Text(text) if node.from_env && text == "false" => Some(Limit::Unlimited),
            _ => T::decode(node, findings).map(Limit::Value),
        }
    }
}

impl<T: Serialize> Serialize for Limit<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Limit::Unlimited => serializer.serialize_str("unlimited"),
            Limit::Value(value) => value.serialize(serializer),
        }
    }
}

/// A value, or `false` for none where another table gives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Switch<T> {
    #[default]
    Off,
    On(T),
}

impl<T> Switch<T> {
    /// What is switched on.
    pub fn on(&self) -> Option<&T> {
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
            Value::Text(text) if node.from_env && text == "false" => Some(Switch::Off),
            _ => T::decode(node, findings).map(Switch::On),
        }
    }

    fn fill(&mut self) {
        if let Switch::On(value) = self {
            value.fill();
        }
    }

    fn lay_over(&mut self, below: &Self) {
        if let (Switch::On(here), Switch::On(below)) = (self, below) {
            here.lay_over(below);
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

/// Schemas of the generic types, in terms of what they hold.
macro_rules! schema_in_terms_of {
    ($($type:ident<T>, $name:literal, $generator:ident => $schema:expr;)+) => {$(
        impl<T: JsonSchema> JsonSchema for $type<T> {
            fn schema_name() -> Cow<'static, str> {
                format!($name, T::schema_name()).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )+};
}

schema_in_terms_of! {
    List<T>, "ListOf{}", g => {
        let item = g.subschema_for::<T>();
        json_schema!({ "anyOf": [item, { "type": "array", "items": item }] })
    };
    Map<T>, "MapOf{}", g => json_schema!({ "type": "object", "additionalProperties": g.subschema_for::<T>() });
    Auto<T>, "{}OrAuto", g => json_schema!({ "anyOf": [{ "const": "auto" }, g.subschema_for::<T>()] });
    Switch<T>, "{}OrFalse", g => json_schema!({ "anyOf": [{ "const": false }, g.subschema_for::<T>()] });
    Limit<T>, "{}OrUnlimited", g => json_schema!({ "anyOf": [{ "enum": ["unlimited", false] }, g.subschema_for::<T>()] });
}
