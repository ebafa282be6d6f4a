//! TOML 1.0, with several errors of syntax at once.

use std::borrow::Cow;

use ::toml::Spanned;
use ::toml::de::{DeTable, DeValue};

use super::super::findings::Findings;
use super::super::tree::{At, Node, Places, Span, Step, Value};
use super::{is_shallow, to_u32};

pub(super) fn parse<'a>(
    source: &'a str,
    places: &mut Places<'a>,
    findings: &mut Findings,
) -> Option<Node<'a>> {
    let whole = (0, to_u32(source.len()));
    let (table, errors) = DeTable::parse_recoverable(source);
    for error in errors {
        let range = error.span().unwrap_or_default();
        // The parser's sentences name several things on lines of their own.
        let message = error.message().trim().replace('\n', ", ");
        findings.syntax((to_u32(range.start), to_u32(range.end)), message);
    }
    if findings.has_errors() {
        return None;
    }
    let at = places.add(At::NOWHERE, Step::Root, whole, whole);
    table_node(table.into_inner(), at, 1, places, findings)
}

fn span_of<T>(spanned: &Spanned<T>) -> Span {
    let range = spanned.span();
    (to_u32(range.start), to_u32(range.end))
}

fn table_node<'a>(
    table: DeTable<'a>,
    at: At,
    depth: usize,
    places: &mut Places<'a>,
    findings: &mut Findings,
) -> Option<Node<'a>> {
    let mut out = Vec::with_capacity(table.len());
    let (mut last, mut in_order) = (0, true);
    for (key, value) in table {
        let key_span = span_of(&key);
        in_order &= last <= key_span.0;
        last = key_span.0;
        let key: Cow<'a, str> = key.into_inner();
        let child = places.add(at, Step::Key(key.clone()), key_span, span_of(&value));
        if let Some(node) = value_node(value, child, depth + 1, places, findings) {
            out.push((key, node));
        }
    }
    // The map is sorted by name; the text's order is what people wrote.
    if !in_order {
        out.sort_by_key(|(_, node): &(_, Node<'_>)| places.key_span(node.at).map(|span| span.0));
    }
    Some(Node::new(at, Value::Table(out)))
}

fn value_node<'a>(
    value: Spanned<DeValue<'a>>,
    at: At,
    depth: usize,
    places: &mut Places<'a>,
    findings: &mut Findings,
) -> Option<Node<'a>> {
    let span = span_of(&value);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text),
        DeValue::Integer(int) => {
            i64::from_str_radix(int.as_str(), int.radix()).map_or(Value::Float(None), Value::Int)
        }
        DeValue::Float(float) => Value::float(float.as_str()),
        DeValue::Boolean(b) => Value::Bool(b),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Table(table) => {
            return is_shallow(depth, span, findings)
                .then(|| table_node(table, at, depth, places, findings))
                .flatten();
        }
        DeValue::Array(items) => {
            if !is_shallow(depth, span, findings) {
                return None;
            }
            let mut out = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                let item_span = span_of(&item);
                let child = places.add(at, Step::Index(to_u32(index)), item_span, item_span);
                out.extend(value_node(item, child, depth + 1, places, findings));
            }
            Value::List(out)
        }
    };
    Some(Node::new(at, value))
}
