//! Tree to *raw* types: the language as it is written, every key optional. A wrong value is recorded and left out, an
//! unknown key is recorded with the nearest known one, and reading goes on. What a section looks like is said once, in
//! [`section!`]: its struct, its reading, its defaults and its JSON Schema all come from there.

mod shape;

use std::borrow::Cow;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

pub use shape::{Auto, Limit, List, Map, Switch};

use super::check::shorten;
use super::findings::{Findings, did_you_mean};
use super::tree::{At, Node, Value};

/// Reads a raw value from a node.
pub trait Decode: Sized {
    /// `None`: the node holds none, which has been recorded.
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self>;

    /// Puts in every default that was left out, down to the leaves.
    fn fill(&mut self) {}

    /// Puts in what was left out here and is there in `below`: tables merge, all else stays what it is.
    fn lay_over(&mut self, _below: &Self) {}
}

/// A value that remembers where it stands in the text.
#[derive(Debug, Clone, Default)]
pub struct Loc<T> {
    pub value: T,
    pub at: At,
}

impl<T> Deref for Loc<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Decode> Decode for Loc<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        T::decode(node, findings).map(|value| Loc { value, at: node.at })
    }

    fn fill(&mut self) {
        self.value.fill();
    }

    fn lay_over(&mut self, below: &Self) {
        self.value.lay_over(&below.value);
    }
}

impl<T: Serialize> Serialize for Loc<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

/// A default, read from the JSON that the schema shows for it.
pub fn default_of<T: Decode>(json: &serde_json::Value) -> Option<Loc<T>> {
    Loc::decode(&Node::nowhere(json), &mut Findings::default())
}

/// Records a value of the wrong kind, or why it has none.
pub fn wrong_kind(node: &Node<'_>, expected: &str, findings: &mut Findings) {
    if let Value::Unset(wrong) = &node.value {
        let finding = findings.error(node.at, wrong.message.as_str());
        finding.help_if(wrong.help.clone());
        return;
    }
    findings.error(
        node.at,
        format!("expected {expected}, found {}", node.value.kind()),
    );
}

/// Records a key that a section does not have.
pub fn unknown_key(at: At, key: &str, known: &[&str], later: &[&[&str]], findings: &mut Findings) {
    if later.iter().any(|list| list.contains(&key)) {
        findings.key_error(at, format!("`{key}` is not supported yet"));
        return;
    }
    // A lone key would be a guess for everything short; a list of all is better then.
    let help = did_you_mean(
        key,
        known.iter().chain(later.iter().copied().flatten()).copied(),
    )
    .unwrap_or_else(|| format!("the keys here are {}", list_of(known)));
    findings
        .key_error(at, format!("unknown key `{key}`"))
        .help(help);
}

/// "`a`, `b` and `c`".
pub fn list_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Defines one table of the language.
///
/// A field is `name: Type`, its doc comment is the key's description. `as "key"` names the key where Rust reserves
/// the word, `= json` gives the default as it would be written in JSON. `short = field` lets a value that is not a
/// table stand for a table with only that key. `one_of = [KEYS]` are keys of which a table has one: given, it takes the
/// place of all of them that lie below. `later = [LISTS]` names the keys of features that are not built, which get
/// an error of their own.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(
                $(#[$field_meta:meta])*
                $field:ident $(as $key:literal)? : $type:ty $(= $default:tt)?
            ),* $(,)?
        }
        $(short = $short:ident;)?
        $(one_of = $one_of:expr;)?
        later = $later:expr;
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, serde::Serialize, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        $(
            #[doc = concat!("\n\nShort form: the value of `", stringify!($short), "` alone.")]
            #[schemars(transform = $crate::config::decode::allow_short_form)]
        )?
        pub struct $name {
            $(
                $(#[$field_meta])*
                $(#[serde(rename = $key)])?
                $(#[schemars(extend("default" = $default))])?
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<$crate::config::decode::Loc<$type>>,
            )*
            /// Keys that are there, but hold nothing usable, which has been recorded.
            #[serde(skip)]
            pub spoiled: Vec<&'static str>,
        }

        impl $name {
            const KEYS: &'static [&'static str] = &[$($crate::config::decode::key_of!($field $($key)?)),*];
            const LATER: &'static [&'static [&'static str]] = &$later;
            const ONE_OF: &'static [&'static [&'static str]] = &[$(&$one_of)?];

            /// Whether a key is there, with a value or without a usable one.
            fn has(&self, key: &str) -> bool {
                $(
                    if key == $crate::config::decode::key_of!($field $($key)?) && self.$field.is_some() {
                        return true;
                    }
                )*
                self.spoiled.contains(&key)
            }
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::tree::Node<'_>,
                findings: &mut $crate::config::findings::Findings,
            ) -> Option<Self> {
                use $crate::config::tree::Value;
                let mut out = Self::default();
                let entries = match &node.value {
                    Value::Table(entries) => entries,
                    $(
                        Value::Text(_) => {
                            out.$short = $crate::config::decode::Decode::decode(node, findings);
                            return out.$short.is_some().then_some(out);
                        }
                    )?
                    _ => {
                        let expected = [$(concat!("a string (`", stringify!($short), "`) or "),)? "a table"].concat();
                        $crate::config::decode::wrong_kind(node, &expected, findings);
                        return None;
                    }
                };
                for (key, child) in entries {
                    $(
                        if key == $crate::config::decode::key_of!($field $($key)?) {
                            out.$field = $crate::config::decode::Decode::decode(child, findings);
                            if out.$field.is_none() {
                                out.spoiled.push($crate::config::decode::key_of!($field $($key)?));
                            }
                            continue;
                        }
                    )*
                    $crate::config::decode::unknown_key(child.at, key, Self::KEYS, Self::LATER, findings);
                }
                Some(out)
            }

            fn fill(&mut self) {
                $(
                    $(
                        if self.$field.is_none() {
                            self.$field = $crate::config::decode::default_of(&serde_json::json!($default));
                        }
                    )?
                    if let Some(value) = &mut self.$field {
                        $crate::config::decode::Decode::fill(value);
                    }
                )*
            }

            fn lay_over(&mut self, below: &Self) {
                // Asked before the first key is put in: one of a choice takes the place of all the others.
                let chosen: Vec<&[&str]> = Self::ONE_OF
                    .iter()
                    .filter(|keys| keys.iter().any(|key| self.has(key)))
                    .copied()
                    .collect();
                $(
                    let key = $crate::config::decode::key_of!($field $($key)?);
                    match (&mut self.$field, &below.$field) {
                        (Some(here), Some(below)) => $crate::config::decode::Decode::lay_over(here, below),
                        (None, _) if self.spoiled.contains(&key) || chosen.iter().any(|keys| keys.contains(&key)) => {}
                        (here @ None, Some(below)) => *here = Some(below.clone()),
                        (None, None) if below.spoiled.contains(&key) => self.spoiled.push(key),
                        (_, None) => {}
                    }
                )*
            }
        }
    };
}

/// The key of a field of [`section!`].
macro_rules! key_of {
    ($field:ident $key:literal) => {
        $key
    };
    ($field:ident) => {
        stringify!($field)
    };
}

/// Defines how the words of a closed set are read, written and described. `later` names words, and tables by their key,
/// of what is not built.
macro_rules! words {
    ($type:ty { $($word:literal => $value:expr),+ $(,)? } $(later [$($later:literal),*])?) => {
        impl $type {
            const WORDS: &'static [&'static str] = &[$($word),+];
            /// The word that a document has for it.
            pub fn word(&self) -> &'static str {
                $(if *self == $value { return $word; })+
                ""
            }
        }

        impl $crate::config::decode::Decode for $type {
            fn decode(
                node: &$crate::config::tree::Node<'_>,
                findings: &mut $crate::config::findings::Findings,
            ) -> Option<Self> {
                $(
                    let later: &[&str] = &[$($later),*];
                    if let Some(word) = $crate::config::decode::later_word(node, later) {
                        findings.error(node.at, format!("`{word}` is not supported yet"));
                        return None;
                    }
                )?
                let text = $crate::config::decode::text(node, findings)?;
                match text {
                    $($word => Some($value),)+
                    other => {
                        let known = $crate::config::decode::list_of(Self::WORDS);
                        findings.error(node.at, format!("`{other}` is not one of {known}"))
                            .help_if($crate::config::findings::did_you_mean(other, Self::WORDS.iter().copied()));
                        None
                    }
                }
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "enum": [$($word),+] })
            }
        }
    };
}

pub(crate) use {key_of, section, words};

/// Schema of a table with a short form: a string does as well.
pub fn allow_short_form(schema: &mut Schema) {
    let mut table = std::mem::take(schema);
    let description = table.remove("description");
    *schema = json_schema!({ "anyOf": [{ "type": "string" }, table] });
    if let Some(description) = description {
        schema.insert("description".to_owned(), description);
    }
}

/// The word of a node, or the key of a table of one, if it is among `later`.
pub fn later_word<'w>(node: &Node<'_>, later: &[&'w str]) -> Option<&'w str> {
    let word = match &node.value {
        Value::Text(text) => text,
        Value::Table(entries) => &entries.first()?.0,
        _ => return None,
    };
    later.iter().find(|known| **known == *word).copied()
}

/// The text of a node.
pub fn text<'n>(node: &'n Node<'_>, findings: &mut Findings) -> Option<&'n str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => {
            wrong_kind(node, "a string", findings);
            None
        }
    }
}

impl Decode for String {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        text(node, findings).map(str::to_owned)
    }
}

impl<T: Decode> Decode for Box<T> {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        T::decode(node, findings).map(Box::new)
    }

    fn fill(&mut self) {
        self.as_mut().fill();
    }

    fn lay_over(&mut self, below: &Self) {
        self.as_mut().lay_over(below);
    }
}

impl Decode for bool {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match node.value {
            Value::Bool(b) => Some(b),
            Value::Text(ref text) if node.from_env && text == "true" => Some(true),
            Value::Text(ref text) if node.from_env && text == "false" => Some(false),
            _ => {
                wrong_kind(node, "`true` or `false`", findings);
                None
            }
        }
    }
}

impl Decode for u64 {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match node.value {
            Value::Int(n) => {
                let number = u64::try_from(n).ok();
                if number.is_none() {
                    findings.error(node.at, format!("{n} is less than 0"));
                }
                number
            }
            Value::Text(ref text) if node.from_env => {
                let number = text.parse().ok();
                if number.is_none() {
                    let message = format!("`{}` from the environment is no integer", shorten(text));
                    findings.error(node.at, message);
                }
                number
            }
            _ => {
                wrong_kind(node, "an integer", findings);
                None
            }
        }
    }
}

impl<T: JsonSchema> JsonSchema for Loc<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
