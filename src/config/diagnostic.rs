//! Diagnostics as the compiler draws them: the sentence, file:line:column, the line, a caret, the help.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{Diagnostic, Severity};

/// Draws errors about a text that is called `name`. `color`: with terminal escapes.
pub fn render_diagnostics(name: &str, source: &str, errors: &[Diagnostic], color: bool) -> String {
    draw(name, source, Severity::Error, errors, color)
}

/// Draws warnings, as [`render_diagnostics`] draws errors.
pub fn render_warnings(name: &str, source: &str, warnings: &[Diagnostic], color: bool) -> String {
    draw(name, source, Severity::Warning, warnings, color)
}

fn draw(
    name: &str,
    source: &str,
    severity: Severity,
    diagnostics: &[Diagnostic],
    color: bool,
) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(&renderer.render(&[group(name, source, severity, diagnostic)]));
        out.push_str("\n\n");
    }
    out
}

fn group<'a>(
    name: &'a str,
    source: &'a str,
    severity: Severity,
    diagnostic: &'a Diagnostic,
) -> Group<'a> {
    let level = match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str());
    let group = match place(source, diagnostic) {
        Some((text, line, range)) => title.element(
            Snippet::source(text)
                .line_start(line)
                .path(name)
                .annotation(AnnotationKind::Primary.span(range)),
        ),
        None if diagnostic.pointer.is_empty() => Group::with_title(title),
        // Nothing to draw: the pointer alone says where.
        None => Group::with_title(title)
            .element(Level::NOTE.message(format!("at {}", diagnostic.pointer))),
    };
    match &diagnostic.help {
        Some(help) => group.element(Level::HELP.message(help.as_str())),
        None => group,
    }
}

/// Longest line that is drawn; a document in one line would fill the screen.
const LONGEST_LINE: usize = 2_000;

/// The line of a diagnostic, its number, and the part of it to underline.
fn place<'a>(
    source: &'a str,
    diagnostic: &Diagnostic,
) -> Option<(&'a str, usize, std::ops::Range<usize>)> {
    let (start, end) = diagnostic.span?;
    let start = floor(source, (start as usize).min(source.len()));
    let line_start = source.get(..start)?.rfind('\n').map_or(0, |at| at + 1);
    let line_end = source
        .get(start..)?
        .find('\n')
        .map_or(source.len(), |at| start + at);
    // A table or a text may go on for pages; its first line is enough to find it.
    let end = floor(source, (end as usize).clamp(start, line_end));
    let (from, to) = if line_end - line_start > LONGEST_LINE {
        let from = floor(
            source,
            start.saturating_sub(LONGEST_LINE / 20).max(line_start),
        );
        (
            from,
            floor(source, (start + LONGEST_LINE / 20).min(line_end)),
        )
    } else {
        (line_start, line_end)
    };
    let text = source.get(from..to)?.trim_end_matches('\r');
    let last = text.len();
    let range = (start - from).min(last)..(end - from).min(last);
    Some((text, diagnostic.line.map_or(1, |l| l as usize), range))
}

fn floor(source: &str, mut at: usize) -> usize {
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}
