//! A JSON value as YAML in block style: for parts of the configuration and for the schemas of the contract. Strings
//! are plain where no YAML reader could take them for anything else, else quoted as in JSON, of which YAML 1.2 is a
//! superset.

use serde_json::Value;

/// A whole document.
pub(crate) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

/// `value` with its line end, indented by `depth` steps of two; the first line starts where `text` stands.
pub(crate) fn block(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (at, (key, value)) in table.iter().enumerate() {
                indent(text, if at == 0 { 0 } else { depth });
                scalar(text, key);
                text.push(':');
                child(text, value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                indent(text, if at == 0 { 0 } else { depth });
                text.push_str("- ");
                block(text, item, depth + 1);
            }
        }
        Value::String(string) => {
            scalar(text, string);
            text.push('\n');
        }
        other => {
            text.push_str(&other.to_string());
            text.push('\n');
        }
    }
}

fn child(text: &mut String, value: &Value, depth: usize) {
    let nested = match value {
        Value::Object(table) => !table.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        text.push('\n');
        indent(text, depth + 1);
        block(text, value, depth + 1);
    } else {
        text.push(' ');
        block(text, value, depth);
    }
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

fn scalar(text: &mut String, string: &str) {
    let mut bytes = string.bytes();
    let plain = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && bytes
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/'))
        && !matches!(
            string.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain {
        text.push_str(string);
    } else {
        text.push_str(&Value::from(string).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_lists_and_scalars() {
        let value = json!({
            "a": { "b": [1, { "c": "x y", "d": [] }, ["n", "z"]], "e": {} },
            "no": true, "1": null, "f": "-", "g": "a: b # c", "h": "plain-text"
        });
        let expected = "\
a:
  b:
    - 1
    - c: \"x y\"
      d: []
    - - \"n\"
      - z
  e: {}
\"no\": true
\"1\": null
f: \"-\"
g: \"a: b # c\"
h: plain-text
";
        let mut sorted: Vec<_> = document(&value).lines().map(str::to_owned).collect();
        let mut wanted: Vec<_> = expected.lines().map(str::to_owned).collect();
        // The order of keys is the map's.
        sorted.sort();
        wanted.sort();
        assert_eq!(sorted, wanted);
        assert_eq!(document(&json!("x")), "x\n");
        assert_eq!(document(&json!([])), "[]\n");
    }
}
