//! Follows a chunked body to its end (RFC 9112 section 7.1), by the same grammar by which hyper reads it, and looks at what
//! hyper skips: the extensions. They are dropped here, yet whoever counts lines in another way than we do must not find
//! one in them, so a control character there is refused like one in a field.

/// Where in a chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// Of the chunk in progress: what of it is still to come.
    left: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a size.
    #[default]
    Start,
    Size,
    /// White space after the size.
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// Where a line of the trailer section begins, or its last.
    Line,
    Trailer,
    TrailerLf,
    LastLf,
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The body goes on.
    More,
    /// That was its last byte.
    Over,
    /// It is not chunked as hyper understands it, which says so itself.
    Malformed,
    /// The byte after this piece must not be read.
    Forbidden,
}

impl Chunks {
    /// Returns how many of `bytes` are of this body, and what they come to.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, Fate) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.at == At::Data {
                let rest = bytes.len() - at;
                let size = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                at += size;
                self.left -= size as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            match self.step(byte) {
                Fate::More => at += 1,
                Fate::Forbidden => return (at, Fate::Forbidden),
                fate => return (at + 1, fate),
            }
        }
        (at, Fate::More)
    }

    fn step(&mut self, byte: u8) -> Fate {
        self.at = match (self.at, byte) {
            (At::Start | At::Size, digit) if digit.is_ascii_hexdigit() => {
                return self.digit(digit);
            }
            (At::Size | At::Space, b' ' | b'\t') => At::Space,
            (At::Size | At::Space, b';') => At::Extension,
            (At::Size | At::Space | At::Extension, b'\r') => At::SizeLf,
            // hyper refuses that one.
            (At::Extension, b'\n') => return Fate::Malformed,
            (At::Extension, b'\t') => At::Extension,
            (At::Extension, control) if control.is_ascii_control() => return Fate::Forbidden,
            (At::Extension, _) => At::Extension,
            (At::SizeLf, b'\n') if self.left == 0 => At::Line,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Start,
            (At::Line, b'\r') => At::LastLf,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Line | At::Trailer, _) => At::Trailer,
            (At::TrailerLf, b'\n') => At::Line,
            (At::LastLf, b'\n') => return Fate::Over,
            _ => return Fate::Malformed,
        };
        Fate::More
    }

    fn digit(&mut self, digit: u8) -> Fate {
        let value = char::from(digit).to_digit(16).map(u64::from);
        let size = value.and_then(|value| self.left.checked_mul(16)?.checked_add(value));
        self.at = At::Size;
        match size {
            Some(size) => {
                self.left = size;
                Fate::More
            }
            None => Fate::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(text: &str) -> (usize, Fate) {
        Chunks::default().feed(text.as_bytes())
    }

    #[test]
    fn a_body_ends_where_its_last_line_does() {
        for body in [
            "0\r\n\r\n",
            "000\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "A\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
            "3 \t;x=\"y\tz\"\r\nabc\r\n0;last\r\n\r\n",
            "1;\u{e4}\r\na\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\n",
        ] {
            assert_eq!(feed(body), (body.len(), Fate::Over), "{body:?}");
            let more = format!("{body}GET / HTTP/1.1\r\n");
            assert_eq!(feed(&more), (body.len(), Fate::Over), "{body:?}");
            let less = &body[..body.len() - 1];
            assert_eq!(feed(less), (less.len(), Fate::More), "{body:?}");
        }
    }

    #[test]
    fn a_control_character_in_an_extension_is_not_handed_on() {
        for control in ["\0", "\x01", "\x0b", "\x1b", "\x7f"] {
            assert_eq!(
                feed(&format!("3;a{control}\r\nabc\r\n")),
                (3, Fate::Forbidden),
                "{control:?}"
            );
        }
        assert_eq!(feed("3;\0"), (2, Fate::Forbidden));
    }

    #[test]
    fn what_hyper_refuses_is_left_to_it() {
        for body in [
            "\r\n",
            "x",
            "-1\r\n",
            "+1\r\n",
            "0x3\r\n",
            "3 3\r\n",
            "3\n",
            "3;a\nb",
            "3;a\rb",
            "3\r\nabcd",
            "3\r\nabc\n",
            "10000000000000000\r\n",
            "0\r\nx: 1\ry",
            "0\r\n\rx",
        ] {
            assert_eq!(feed(body).1, Fate::Malformed, "{body:?}");
        }
        assert_eq!(feed("ffffffffffffffff\r\n").1, Fate::More);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            lines in proptest::collection::vec(
                proptest::sample::select(vec!["3\r\nabc\r\n", "1;x\r\n\n\r\n", "0\r\n", "\r\n", "t: 1\r\n", "2;\0", "\n"]),
                0..6,
            ),
            size in 1_usize..9,
        ) {
            let text = lines.concat();
            let whole = feed(&text);
            let mut chunks = Chunks::default();
            let (mut at, mut fate) = (0, Fate::More);
            for piece in text.as_bytes().chunks(size) {
                let (size, now) = chunks.feed(piece);
                at += size;
                fate = now;
                if fate != Fate::More {
                    break;
                }
            }
            prop_assert_eq!((at, fate), whole);
        }
    }
}
