//! YAML 1.2, core schema, one document. Aliases are bounded in number and in what they expand to; merge keys and tags
//! (but `!!str`) are refused.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan, StrInput, Tag};

use super::super::findings::Findings;
use super::super::tree::{At, Node, Places, Span, Step, Value};
use super::{Keys, is_shallow, to_u32};

/// Aliases that a document may have.
const MAX_ALIASES: usize = 10_000;
/// Values that all its aliases together may stand for.
const MAX_EXPANDED: usize = 200_000;

pub(super) fn parse<'a>(
    source: &'a str,
    places: &mut Places<'a>,
    findings: &mut Findings,
) -> Option<Node<'a>> {
    let mut reader = Reader {
        parser: Parser::new_from_str(source),
        offsets: Offsets::new(source),
        places,
        findings,
        anchors: HashMap::new(),
        aliases: 0,
        expanded: 0,
    };
    reader.document(to_u32(source.len())).ok()
}

/// An error that ends the reading; it has been reported.
struct Stop;

struct Reader<'a, 'r> {
    parser: Parser<'a, StrInput<'a>>,
    offsets: Offsets<'a>,
    places: &'r mut Places<'a>,
    findings: &'r mut Findings,
    /// What each anchor stands for; `None` while it is being read.
    anchors: HashMap<usize, Option<Node<'a>>>,
    aliases: usize,
    expanded: usize,
}

impl<'a> Reader<'a, '_> {
    fn document(&mut self, end: u32) -> Result<Node<'a>, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::DocumentStart(_) if root.is_some() => {
                    self.findings.syntax(span, "a second document in one text");
                    return Err(Stop);
                }
                Event::DocumentStart(_) => {
                    let at = self.places.add(At::NOWHERE, Step::Root, (0, end), (0, end));
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, at, 0)?);
                }
                Event::StreamEnd => break,
                _ => {}
            }
        }
        Ok(match root {
            Some(Node {
                value: Value::Null, ..
            }) => Node::new(At::ROOT, Value::Table(Vec::new())),
            Some(root) => root,
            // A text of comments.
            None => {
                let at = self.places.add(At::NOWHERE, Step::Root, (0, end), (0, end));
                Node::new(at, Value::Table(Vec::new()))
            }
        })
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.offsets.span(&span))),
            Some(Err(error)) => Err(self.scan_error(&error)),
            None => Ok((Event::StreamEnd, (0, 0))),
        }
    }

    fn scan_error(&mut self, error: &ScanError) -> Stop {
        let offset = self.offsets.byte(error.marker().index());
        self.findings
            .syntax((offset, offset.saturating_add(1)), error.info());
        Stop
    }

    fn node(
        &mut self,
        event: Event<'a>,
        span: Span,
        at: At,
        depth: usize,
    ) -> Result<Node<'a>, Stop> {
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = self.is_text(tag.as_deref(), span);
                (anchor, scalar(text, is_text || style != ScalarStyle::Plain))
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(anchor, tag.as_deref(), span, depth)?;
                (anchor, self.sequence(span, at, depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(anchor, tag.as_deref(), span, depth)?;
                (anchor, self.mapping(span, at, depth)?)
            }
            Event::Alias(anchor) => return self.alias(anchor, span, at, depth),
            _ => {
                self.findings.syntax(span, "a value is missing here");
                return Err(Stop);
            }
        };
        let node = Node::new(at, value);
        if anchor != 0 {
            self.anchors.insert(anchor, Some(node.clone()));
        }
        Ok(node)
    }

    fn begin(
        &mut self,
        anchor: usize,
        tag: Option<&Tag>,
        span: Span,
        depth: usize,
    ) -> Result<(), Stop> {
        self.is_text(tag, span);
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        if is_shallow(depth + 1, span, self.findings) {
            Ok(())
        } else {
            Err(Stop)
        }
    }

    /// Whether the tag says that this is a string; any other tag is an error.
    fn is_text(&mut self, tag: Option<&Tag>, span: Span) -> bool {
        match tag {
            None => false,
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
            Some(_) => {
                self.findings
                    .syntax(span, "tags are not part of the language")
                    .help("leave the `!…` out");
                false
            }
        }
    }

    fn sequence(&mut self, start: Span, at: At, depth: usize) -> Result<Value<'a>, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                self.places
                    .set_value_span(at, (start.0, span.1.max(start.1)));
                return Ok(Value::List(items));
            }
            let child = self
                .places
                .add(at, Step::Index(to_u32(items.len())), span, span);
            items.push(self.node(event, span, child, depth + 1)?);
        }
    }

    fn mapping(&mut self, start: Span, at: At, depth: usize) -> Result<Value<'a>, Stop> {
        let mut keys = Keys::default();
        let mut entries = Vec::new();
        loop {
            let (event, key_span) = self.next()?;
            let key = match event {
                Event::MappingEnd => {
                    self.places
                        .set_value_span(at, (start.0, key_span.1.max(start.1)));
                    return Ok(Value::Table(entries));
                }
                Event::Scalar(key, style, _, tag) => {
                    self.is_text(tag.as_deref(), key_span);
                    if key == "<<" && style == ScalarStyle::Plain {
                        let refused = self
                            .findings
                            .syntax(key_span, "merge keys (`<<`) are not part of YAML 1.2");
                        refused.help("write the keys out, or use an alias for the whole value");
                    }
                    key
                }
                _ => {
                    self.findings
                        .syntax(key_span, "a key must be a plain word or a string");
                    return Err(Stop);
                }
            };
            let new = keys.is_new(&key, &entries, key_span, self.findings);
            let (event, span) = self.next()?;
            let child = self.places.add(at, Step::Key(key.clone()), key_span, span);
            let node = self.node(event, span, child, depth + 1)?;
            if new {
                entries.push((key, node));
            }
        }
    }

    fn alias(&mut self, anchor: usize, span: Span, at: At, depth: usize) -> Result<Node<'a>, Stop> {
        self.aliases += 1;
        if self.aliases > MAX_ALIASES {
            self.findings
                .syntax(span, format!("more than {MAX_ALIASES} aliases"));
            return Err(Stop);
        }
        let Some(Some(target)) = self.anchors.get(&anchor).cloned() else {
            self.findings
                .syntax(span, "an alias inside the value that it stands for");
            return Err(Stop);
        };
        self.copy(target.value, at, span, depth)
            .map(|value| Node::new(at, value))
    }

    /// What an alias stands for, with places of its own: its pointers are the alias's, its text is the anchor's.
    fn copy(
        &mut self,
        value: Value<'a>,
        at: At,
        span: Span,
        depth: usize,
    ) -> Result<Value<'a>, Stop> {
        self.expanded += 1;
        if self.expanded > MAX_EXPANDED {
            self.findings.syntax(
                span,
                format!("aliases that stand for more than {MAX_EXPANDED} values"),
            );
            return Err(Stop);
        }
        Ok(match value {
            Value::List(items) => {
                self.deep_enough(depth, span)?;
                let mut out = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    let place = self.places.value_span(item.at).unwrap_or(span);
                    let child = self
                        .places
                        .add(at, Step::Index(to_u32(index)), place, place);
                    let value = self.copy(item.value, child, span, depth + 1)?;
                    out.push(Node::new(child, value));
                }
                Value::List(out)
            }
            Value::Table(entries) => {
                self.deep_enough(depth, span)?;
                let mut out = Vec::with_capacity(entries.len());
                for (key, node) in entries {
                    let key_place = self.places.key_span(node.at).unwrap_or(span);
                    let place = self.places.value_span(node.at).unwrap_or(span);
                    let child = self
                        .places
                        .add(at, Step::Key(key.clone()), key_place, place);
                    let value = self.copy(node.value, child, span, depth + 1)?;
                    out.push((key, Node::new(child, value)));
                }
                Value::Table(out)
            }
            scalar => scalar,
        })
    }

    fn deep_enough(&mut self, depth: usize, span: Span) -> Result<(), Stop> {
        if is_shallow(depth + 1, span, self.findings) {
            Ok(())
        } else {
            Err(Stop)
        }
    }
}

/// The YAML 1.2 core schema: no `yes`, `on`, `0777` or sexagesimal surprises.
fn scalar(text: Cow<'_, str>, is_text: bool) -> Value<'_> {
    if is_text {
        return Value::Text(text);
    }
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Value::Float(None),
        plain => {
            let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(plain);
            if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
                return Value::Float(None);
            }
            let radix = |digits: &str, radix: u32| {
                i64::from_str_radix(digits, radix).map_or(Value::Float(None), Value::Int)
            };
            if let Some(digits) = plain.strip_prefix("0x").filter(|d| is_digits(d, 16)) {
                return radix(digits, 16);
            }
            if let Some(digits) = plain.strip_prefix("0o").filter(|d| is_digits(d, 8)) {
                return radix(digits, 8);
            }
            if is_digits(unsigned, 10) {
                return plain
                    .parse()
                    .map_or_else(|_| Value::float(plain), Value::Int);
            }
            let number = unsigned
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
                && unsigned.bytes().any(|b| b.is_ascii_digit());
            if number && plain.parse::<f64>().is_ok() {
                Value::float(plain)
            } else {
                Value::Text(text)
            }
        }
    }
}

fn is_digits(text: &str, radix: u32) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_digit(radix))
}

/// The parser counts characters; this finds their bytes, with a mark every [`Offsets::STEP`] characters.
struct Offsets<'a> {
    source: &'a str,
    /// Empty when all is ASCII.
    marks: Vec<u32>,
}

impl<'a> Offsets<'a> {
    const STEP: usize = 128;

    fn new(source: &'a str) -> Offsets<'a> {
        let marks = if source.is_ascii() {
            Vec::new()
        } else {
            source
                .char_indices()
                .step_by(Self::STEP)
                .map(|(at, _)| to_u32(at))
                .collect()
        };
        Offsets { source, marks }
    }

    fn byte(&self, character: usize) -> u32 {
        if self.marks.is_empty() {
            return to_u32(character.min(self.source.len()));
        }
        let Some(mark) = self.marks.get(character / Self::STEP) else {
            return to_u32(self.source.len());
        };
        let rest = self.source.get(*mark as usize..).unwrap_or_default();
        let within = rest
            .char_indices()
            .nth(character % Self::STEP)
            .map_or(rest.len(), |(at, _)| at);
        mark.saturating_add(to_u32(within))
    }

    fn span(&self, span: &YamlSpan) -> Span {
        let start = self.byte(span.start.index());
        (start, self.byte(span.end.index()).max(start))
    }
}
