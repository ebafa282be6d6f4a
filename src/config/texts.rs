//! The texts that one document is made of: its own and those of the files it includes. They share one space of offsets,
//! so that a place is two numbers whichever text it is in.

use super::tree::{LineCounter, Span};

/// Texts one after the other; each begins one byte after the end of the one before.
#[derive(Debug, Clone)]
pub struct Texts<'a> {
    list: Vec<Text<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Text<'a> {
    /// `None`: the document itself.
    file: Option<&'a str>,
    source: &'a str,
    start: u32,
}

/// Where something is, as people count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPlace<'a> {
    /// `None`: in the document itself.
    pub file: Option<&'a str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// Within its own text.
    pub span: Span,
}

impl<'a> Texts<'a> {
    /// The text of a document that includes nothing.
    pub fn one(source: &'a str) -> Texts<'a> {
        Texts {
            list: vec![Text {
                file: None,
                source,
                start: 0,
            }],
        }
    }

    /// Adds the text of an included file and returns the offset where it begins.
    pub fn add(&mut self, file: &'a str, source: &'a str) -> u32 {
        let last = self.list.last();
        let start = last.map_or(0, |text| {
            let length = u32::try_from(text.source.len()).unwrap_or(u32::MAX);
            text.start.saturating_add(length).saturating_add(1)
        });
        self.list.push(Text {
            file: Some(file),
            source,
            start,
        });
        start
    }

    /// Where one span is.
    pub fn place(&self, span: Span) -> TextPlace<'a> {
        self.lines().advance(span)
    }

    /// Finds the places of many spans in one pass.
    pub fn lines(&self) -> Lines<'_, 'a> {
        Lines {
            texts: self,
            counter: None,
        }
    }
}

/// Places of ascending spans.
#[derive(Debug)]
pub struct Lines<'t, 'a> {
    texts: &'t Texts<'a>,
    /// Of the text with this index.
    counter: Option<(usize, LineCounter<'a>)>,
}

impl<'a> Lines<'_, 'a> {
    /// The place of a span that does not begin before the last one asked for.
    pub fn advance(&mut self, span: Span) -> TextPlace<'a> {
        let list = &self.texts.list;
        let after = list.partition_point(|text| text.start <= span.0);
        let index = after.saturating_sub(1);
        let Some(text) = list.get(index).copied() else {
            return TextPlace {
                file: None,
                line: 1,
                column: 1,
                span,
            };
        };
        let counter = match &mut self.counter {
            Some((at, counter)) if *at == index => counter,
            other => &mut other.insert((index, LineCounter::new(text.source))).1,
        };
        let span = (span.0 - text.start, span.1.saturating_sub(text.start));
        let (line, column) = counter.advance(span.0 as usize);
        TextPlace {
            file: text.file,
            line,
            column,
            span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_counts_its_own_lines() {
        let mut texts = Texts::one("a\nb");
        assert_eq!((texts.add("x", "c\nd"), texts.add("y", "")), (4, 8));
        let mut lines = texts.lines();
        let places: Vec<_> = [(2, 3), (4, 5), (6, 7), (8, 8)]
            .into_iter()
            .map(|span| lines.advance(span))
            .map(|p| (p.file, p.line, p.column, p.span))
            .collect();
        assert_eq!(
            places,
            [
                (None, 2, 1, (2, 3)),
                (Some("x"), 1, 1, (0, 1)),
                (Some("x"), 2, 1, (2, 3)),
                (Some("y"), 1, 1, (0, 0)),
            ]
        );
    }
}
