//! Text from outside in a line of ours: nothing a client sends may end a line, begin another, or move the cursor of
//! whoever reads it.

/// Appends `text` so that it may stand between quotes: `"`, `\`, control characters and all that is not ASCII as `\xHH`,
/// as nginx has it.
pub fn plain(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| !is_plain(*b)) {
        let (clean, tail) = rest.split_at(at);
        out.extend_from_slice(clean);
        let byte = tail[0];
        out.extend_from_slice(&[
            b'\\',
            b'x',
            HEX[usize::from(byte >> 4)],
            HEX[usize::from(byte & 15)],
        ]);
        rest = &tail[1..];
    }
    out.extend_from_slice(rest);
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn is_plain(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'
}

/// Appends `text` so that it may stand in a JSON string (RFC 8259 section 7), with the controls that JSON allows
/// escaped too. What is not UTF-8 is replaced.
pub fn json(text: &[u8], out: &mut Vec<u8>) {
    let clean = |b: &u8| (0x20..0x7f).contains(b) && *b != b'"' && *b != b'\\';
    if text.iter().all(clean) {
        out.extend_from_slice(text);
        return;
    }
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            // Line separators end lines for some readers, bidirectional marks reorder them.
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                let code = u32::from(c);
                out.extend_from_slice(b"\\u");
                for shift in [12, 8, 4, 0] {
                    let digit = (code >> shift) & 15;
                    out.push(HEX[digit as usize]);
                }
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Makes one line of what the process says of itself: a control character but its last line break becomes `\xHH`. With
/// `colour`, escape sequences are ours (those in values have been taken apart before).
pub fn one_line(line: &mut Vec<u8>, colour: bool) {
    let end = line.len() - usize::from(line.last() == Some(&b'\n'));
    let is_clean = |b: &u8| !b.is_ascii_control() || *b == b'\t' || (colour && *b == 0x1b);
    if line[..end].iter().all(is_clean) {
        return;
    }
    let text = std::mem::take(line);
    for byte in &text[..end] {
        if is_clean(byte) {
            line.push(*byte);
        } else {
            line.extend_from_slice(&[
                b'\\',
                b'x',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]);
        }
    }
    line.extend_from_slice(&text[end..]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(escape: fn(&[u8], &mut Vec<u8>), text: &[u8]) -> String {
        let mut out = Vec::new();
        escape(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_leaves_its_line_or_its_quotes() {
        let hostile = b"a\r\nb\x1b[31m\"\\\x7f\xff\xc2\x85";
        assert_eq!(
            with(plain, hostile),
            "a\\x0D\\x0Ab\\x1B[31m\\x22\\x5C\\x7F\\xFF\\xC2\\x85"
        );
        assert_eq!(
            with(json, hostile),
            "a\\u000D\\u000Ab\\u001B[31m\\\"\\\\\\u007F\u{fffd}\\u0085"
        );
        let mut line = b"INFO a\nb\x1b[2J\r\n".to_vec();
        one_line(&mut line, false);
        assert_eq!(line, b"INFO a\\x0Ab\\x1B[2J\\x0D\n");
        let mut line = b"\x1b[32mINFO\x1b[0m a\rb\n".to_vec();
        one_line(&mut line, true);
        assert_eq!(line, b"\x1b[32mINFO\x1b[0m a\\x0Db\n");
    }

    proptest! {
        #[test]
        fn json_reads_it_back(text in "\\PC{0,20}[\\x00-\\x1f\"\\\\\u{2028}]{0,5}\\PC{0,20}") {
            let quoted = format!("\"{}\"", with(json, text.as_bytes()));
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
        }

        #[test]
        fn any_bytes_are_one_plain_text(text: Vec<u8>) {
            let out = with(plain, &text);
            prop_assert!(out.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'"'));
        }
    }
}
