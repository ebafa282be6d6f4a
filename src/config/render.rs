//! A document's JSON form as text in each format, such that parsing it again gives the same document.

use serde_json::Value;

use super::Format;

/// Writes a JSON object in a format; the text ends with a line break.
pub fn render(value: &Value, format: Format) -> String {
    match format {
        Format::Json => format!("{value:#}\n"),
        // Fails only for what a document cannot hold: nulls, and a root that is no table.
        Format::Toml => toml::to_string_pretty(value).unwrap_or_default(),
        Format::Yaml => {
            let mut out = String::new();
            yaml(value, 0, &mut out);
            out
        }
    }
}

/// Block style, two spaces a level; the cursor is at the beginning of a line.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                pad(indent, out);
                yaml_text(key, out);
                out.push(':');
                yaml_below(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                pad(indent, out);
                out.push('-');
                yaml_item(item, indent, out);
            }
        }
        flat => {
            pad(indent, out);
            yaml_flat(flat, out);
            out.push('\n');
        }
    }
}

/// What follows `key:`.
fn yaml_below(value: &Value, indent: usize, out: &mut String) {
    if is_flat(value) {
        out.push(' ');
        yaml_flat(value, out);
        out.push('\n');
    } else {
        out.push('\n');
        yaml(value, indent + 1, out);
    }
}

/// What follows `-`: a table begins on the same line.
fn yaml_item(value: &Value, indent: usize, out: &mut String) {
    if is_flat(value) || value.is_array() {
        return yaml_below(value, indent, out);
    }
    let start = out.len();
    yaml(value, indent + 1, out);
    // The table's first line is indented by one level, of which the dash took the first character.
    out.replace_range(start..start + 2 * (indent + 1), " ");
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", indent));
}

fn is_flat(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

fn yaml_flat(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => yaml_text(text, out),
        // Empty tables and lists, numbers and booleans are the same in JSON.
        other => out.push_str(&other.to_string()),
    }
}

/// Plain where nobody could take it for anything but a string, else quoted.
fn yaml_text(text: &str, out: &mut String) {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let is_word =
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && text.chars().all(word);
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if is_word && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters, line separators and the byte order mark are not to be seen in a text.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
