//! JSON (RFC 8259). serde_json reads a level at a time into borrowed slices of the source, whose addresses are their
//! offsets; no text is copied but strings with escapes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::super::findings::Findings;
use super::super::tree::{At, Node, Places, Span, Step, Value};
use super::{Keys, is_shallow, to_u32};

pub(super) fn parse<'a>(
    source: &'a str,
    places: &mut Places<'a>,
    findings: &mut Findings,
) -> Option<Node<'a>> {
    let raw: &RawValue = match serde_json::from_str(source) {
        Ok(raw) => raw,
        Err(error) => {
            report(&error, source, 0, findings);
            return None;
        }
    };
    let mut reader = Reader {
        source,
        places,
        findings,
    };
    let span = reader.span(raw);
    let at = reader.places.add(At::NOWHERE, Step::Root, span, span);
    reader.node(raw, at, 0)
}

/// Adds a finding for an error within `text`, which begins at `base` of the source.
fn report(error: &serde_json::Error, text: &str, base: usize, findings: &mut Findings) {
    let line_start = match error.line() {
        0 | 1 => 0,
        line => text
            .match_indices('\n')
            .nth(line - 2)
            .map_or(text.len(), |(at, _)| at + 1),
    };
    let mut offset = (line_start + error.column().saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    // The parser's own "at line 1 column 2" counts bytes, and from the slice.
    let full = error.to_string();
    let message = full
        .rsplit_once(" at line ")
        .map_or(full.as_str(), |(m, _)| m);
    let offset = to_u32(base + offset);
    findings.syntax((offset, offset.saturating_add(1)), message);
}

struct Reader<'a, 'r> {
    source: &'a str,
    places: &'r mut Places<'a>,
    findings: &'r mut Findings,
}

/// The members of an object, keys as written.
struct Object<'a>(Vec<(&'a RawValue, &'a RawValue)>);
struct Array<'a>(Vec<&'a RawValue>);
struct Text<'a>(Cow<'a, str>);

impl<'a> Reader<'a, '_> {
    fn offset(&self, raw: &'a RawValue) -> usize {
        // Borrowed from the source, so not before it.
        (raw.get().as_ptr() as usize).saturating_sub(self.source.as_ptr() as usize)
    }

    fn span(&self, raw: &'a RawValue) -> Span {
        let start = self.offset(raw);
        (to_u32(start), to_u32(start + raw.get().len()))
    }

    fn read<T: Deserialize<'a>>(&mut self, raw: &'a RawValue) -> Option<T> {
        match serde_json::from_str(raw.get()) {
            Ok(value) => Some(value),
            Err(error) => {
                let base = self.offset(raw);
                report(&error, raw.get(), base, self.findings);
                None
            }
        }
    }

    fn node(&mut self, raw: &'a RawValue, at: At, depth: usize) -> Option<Node<'a>> {
        let text = raw.get();
        let value = match text.as_bytes().first() {
            Some(b'{') => {
                if !is_shallow(depth + 1, self.span(raw), self.findings) {
                    return None;
                }
                let Object(members) = self.read(raw)?;
                let mut keys = Keys::default();
                let mut out = Vec::with_capacity(members.len());
                for (key, value) in members {
                    let key_span = self.span(key);
                    let Some(Text(key)) = self.read(key) else {
                        continue;
                    };
                    if !keys.is_new(&key, &out, key_span, self.findings) {
                        continue;
                    }
                    let child =
                        self.places
                            .add(at, Step::Key(key.clone()), key_span, self.span(value));
                    if let Some(node) = self.node(value, child, depth + 1) {
                        out.push((key, node));
                    }
                }
                Value::Table(out)
            }
            Some(b'[') => {
                if !is_shallow(depth + 1, self.span(raw), self.findings) {
                    return None;
                }
                let Array(items) = self.read(raw)?;
                let mut out = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    let span = self.span(item);
                    let child = self.places.add(at, Step::Index(to_u32(index)), span, span);
                    out.extend(self.node(item, child, depth + 1));
                }
                Value::List(out)
            }
            Some(b'"') => {
                let Text(text) = self.read(raw)?;
                Value::Text(text)
            }
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') => Value::Null,
            _ => text.parse().map_or_else(|_| Value::float(text), Value::Int),
        };
        Some(Node::new(at, value))
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Object(out))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Array<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Array<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Array<'de>, A::Error> {
                let mut out = Vec::new();
                while let Some(item) = seq.next_element()? {
                    out.push(item);
                }
                Ok(Array(out))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Chars;
        impl<'de> Visitor<'de> for Chars {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Chars)
    }
}
