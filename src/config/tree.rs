//! The one tree that all three formats parse to: values with their places. A place knows its parent, its key and its
//! bytes in the text, so a JSON Pointer, a line and a column are made only for what ends up in a diagnostic.

use std::borrow::Cow;

use super::scalar::Wrong;

/// Tables and lists inside each other that a document may have.
pub const MAX_DEPTH: usize = 64;

/// Byte range in the source.
pub type Span = (u32, u32);

/// The place of a node: an index into [`Places`]. [`At::NOWHERE`] for values that no text stands behind (defaults).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(u32);

impl At {
    pub const NOWHERE: At = At(u32::MAX);
    pub const ROOT: At = At(0);
}

impl Default for At {
    fn default() -> At {
        At::NOWHERE
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<'a> {
    pub at: At,
    /// The text was written with a `${NAME}` in it, and `value` has what the environment gave.
    pub from_env: bool,
    pub value: Value<'a>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that is not an integer of 64 bits; `None`: not finite either.
    Float(Option<f64>),
    /// A TOML date or time; the language has no use for its value.
    Date,
    Text(Cow<'a, str>),
    /// A text whose `${NAME}` the environment could not fill: what is wrong with it.
    Unset(Box<Wrong>),
    List(Vec<Node<'a>>),
    /// In the text's order; keys are unique.
    Table(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl Value<'_> {
    /// A number that is not an integer of 64 bits.
    pub fn float(text: &str) -> Self {
        Value::Float(text.parse().ok().filter(|n: &f64| n.is_finite()))
    }

    /// What a sentence calls a value of this kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number that is no integer of 64 bits",
            Value::Date => "a date or time",
            Value::Text(_) | Value::Unset(_) => "a string",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

impl<'a> Node<'a> {
    pub fn new(at: At, value: Value<'a>) -> Node<'a> {
        Node {
            at,
            from_env: false,
            value,
        }
    }

    /// A node for a JSON value that no text stands behind.
    pub fn nowhere(value: &'a serde_json::Value) -> Node<'a> {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => n.as_i64().map_or(Value::Float(n.as_f64()), Value::Int),
            Json::String(s) => Value::Text(Cow::Borrowed(s)),
            Json::Array(items) => Value::List(items.iter().map(Node::nowhere).collect()),
            Json::Object(map) => Value::Table(
                map.iter()
                    .map(|(k, v)| (Cow::Borrowed(k.as_str()), Node::nowhere(v)))
                    .collect(),
            ),
        };
        Node::new(At::NOWHERE, value)
    }

    /// The node that a JSON Pointer names, or the nearest one above it that is there, and how many steps are missing.
    pub fn nearest(&self, pointer: &str) -> (&Node<'a>, usize) {
        let mut node = self;
        let mut steps = pointer.split('/').skip(1);
        while let Some(token) = steps.next() {
            let key = token.replace("~1", "/").replace("~0", "~");
            let next = match &node.value {
                Value::Table(entries) if key != "0" || entries.iter().any(|(k, _)| *k == key) => {
                    entries.iter().find(|(k, _)| *k == key).map(|(_, n)| n)
                }
                Value::List(items) => key.parse::<usize>().ok().and_then(|i| items.get(i)),
                // One value does for a list.
                _ if key == "0" => Some(node),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return (node, 1 + steps.count()),
            }
        }
        (node, 0)
    }
}

/// How many tables, lists and values a node is made of.
pub fn count(node: &Node<'_>) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(count).sum(),
        Value::Table(entries) => entries.iter().map(|(_, child)| count(child)).sum(),
        _ => 0,
    }
}

/// Bytes of all keys and texts in a node.
pub fn bytes(node: &Node<'_>) -> usize {
    match &node.value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.iter().map(bytes).sum(),
        Value::Table(entries) => entries
            .iter()
            .map(|(key, child)| key.len() + bytes(child))
            .sum(),
        _ => 0,
    }
}

/// A parsed document.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree<'a> {
    pub root: Node<'a>,
    pub places: Places<'a>,
}

impl<'a> Tree<'a> {
    /// The tree of a JSON value, with pointers but without a text.
    pub fn of_json(value: &'a serde_json::Value) -> Tree<'a> {
        let mut places = Places::default();
        let at = places.add(At::NOWHERE, Step::Root, (0, 0), (0, 0));
        let mut root = Node::nowhere(value);
        places.cover(&mut root, at);
        Tree { root, places }
    }

    /// Takes another tree's places in, whose text begins at `offset` of all the text; returns its root.
    pub fn adopt(&mut self, other: Tree<'a>, offset: u32) -> Node<'a> {
        let by = self.places.list.len();
        let shift = |at: At| match at {
            At::NOWHERE => At::NOWHERE,
            At(index) => At(u32::try_from(by + index as usize).unwrap_or(u32::MAX)),
        };
        let span = |(from, to): Span| (from.saturating_add(offset), to.saturating_add(offset));
        let places = other.places.list.into_iter().map(|place| Place {
            parent: shift(place.parent),
            key: span(place.key),
            value: span(place.value),
            ..place
        });
        self.places.list.extend(places);
        let mut root = other.root;
        root.walk(&mut |node| node.at = shift(node.at));
        root
    }
}

impl<'a> Node<'a> {
    /// Visits this node and all below it. As deep as the tree, which is at most [`MAX_DEPTH`].
    pub fn walk(&mut self, visit: &mut impl FnMut(&mut Node<'a>)) {
        visit(self);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.walk(visit)),
            Value::Table(entries) => entries.iter_mut().for_each(|(_, child)| child.walk(visit)),
            _ => {}
        }
    }
}

/// The places of all nodes of a tree, parents before children.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Places<'a> {
    list: Vec<Place<'a>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Place<'a> {
    parent: At,
    step: Step<'a>,
    key: Span,
    value: Span,
}

/// How a node hangs under its parent.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<'a> {
    Root,
    Key(Cow<'a, str>),
    Index(u32),
}

impl<'a> Places<'a> {
    /// Adds a place; `key` is the span of the key, or of the value where there is none.
    pub fn add(&mut self, parent: At, step: Step<'a>, key: Span, value: Span) -> At {
        let at = At(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(Place {
            parent,
            step,
            key,
            value,
        });
        at
    }

    /// Gives a node and all below it a place of their own, without a text.
    fn cover(&mut self, node: &mut Node<'a>, at: At) {
        node.at = at;
        match &mut node.value {
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    let child = self.add(at, Step::Index(index), (0, 0), (0, 0));
                    self.cover(item, child);
                }
            }
            Value::Table(entries) => {
                for (key, item) in entries {
                    let child = self.add(at, Step::Key(key.clone()), (0, 0), (0, 0));
                    self.cover(item, child);
                }
            }
            _ => {}
        }
    }

    /// Sets the span of a value whose end was not known when it began.
    pub fn set_value_span(&mut self, at: At, value: Span) {
        if let Some(place) = self.list.get_mut(at.0 as usize) {
            place.value = value;
        }
    }

    pub fn value_span(&self, at: At) -> Option<Span> {
        self.list.get(at.0 as usize).map(|p| p.value)
    }

    pub fn key_span(&self, at: At) -> Option<Span> {
        self.list.get(at.0 as usize).map(|p| p.key)
    }

    /// The JSON Pointer (RFC 6901) of a place; empty for the root and for nowhere.
    pub fn pointer(&self, at: At) -> String {
        let mut steps = Vec::new();
        let mut place = self.list.get(at.0 as usize);
        while let Some(p) = place {
            steps.push(&p.step);
            place = self.list.get(p.parent.0 as usize);
        }
        let mut out = String::new();
        for step in steps.iter().rev() {
            match step {
                Step::Root => {}
                Step::Key(key) => {
                    out.push('/');
                    for c in key.chars() {
                        match c {
                            '~' => out.push_str("~0"),
                            '/' => out.push_str("~1"),
                            c => out.push(c),
                        }
                    }
                }
                Step::Index(i) => out.push_str(&format!("/{i}")),
            }
        }
        out
    }
}

/// Lines and columns of ascending offsets in one pass, so that a thousand findings in one long line stay cheap.
#[derive(Debug)]
pub struct LineCounter<'a> {
    source: &'a str,
    offset: usize,
    line: u32,
    column: u32,
}

impl<'a> LineCounter<'a> {
    pub fn new(source: &'a str) -> LineCounter<'a> {
        LineCounter {
            source,
            offset: 0,
            line: 1,
            column: 1,
        }
    }

    /// Line and column, from 1 and in characters, of a byte offset that is not before the last one asked for.
    pub fn advance(&mut self, offset: usize) -> (u32, u32) {
        let mut end = offset.min(self.source.len());
        while !self.source.is_char_boundary(end) {
            end -= 1;
        }
        if let Some(passed) = self.source.get(self.offset..end) {
            let lines = passed.bytes().filter(|b| *b == b'\n').count();
            let last = passed.rfind('\n').map_or(passed, |at| &passed[at + 1..]);
            let columns = u32::try_from(last.chars().count()).unwrap_or(u32::MAX);
            self.column = if lines == 0 {
                self.column.saturating_add(columns)
            } else {
                columns.saturating_add(1)
            };
            self.line = self
                .line
                .saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
            self.offset = end;
        }
        (self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_count_newlines() {
        let source = "äb\r\nc\n\nd";
        let mut counter = LineCounter::new(source);
        let places: Vec<_> = [0, 2, 5, 7, 8, 99]
            .into_iter()
            .map(|o| counter.advance(o))
            .collect();
        assert_eq!(places, [(1, 1), (1, 2), (2, 1), (3, 1), (4, 1), (4, 2)]);
    }

    #[test]
    fn pointers_escape_tilde_and_slash() {
        let mut places = Places::default();
        let root = places.add(At::NOWHERE, Step::Root, (0, 0), (0, 0));
        let a = places.add(root, Step::Key("a/b~c".into()), (0, 0), (0, 0));
        let b = places.add(a, Step::Index(3), (0, 0), (0, 0));
        assert_eq!(
            (root, places.pointer(root), places.pointer(b)),
            (At::ROOT, String::new(), "/a~1b~0c/3".into())
        );
    }
}
