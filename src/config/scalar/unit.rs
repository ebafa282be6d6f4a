//! Numbers with a unit: durations and sizes.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::super::decode::{Decode, text};
use super::super::findings::Findings;
use super::super::tree::{Node, Value};

/// A span of time as documents write it: one integer and `ms`, `s`, `m`, `h` or `d`; at most 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub Duration);

/// A number of bytes as documents write it: one integer and `B`, `kB`, `MB`, `GB`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size(pub u64);

/// Largest first: the first that divides is the one to print.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];
const LONGEST_MS: u64 = 365 * 86_400_000;

/// Splits `"10MB"` and multiplies. `None`: no integer, no such unit, or too large.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn print_with_unit(
    value: u64,
    smallest: &str,
    units: &[(&str, u64)],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
    {
        Some((name, factor)) => write!(f, "{}{name}", value / factor),
        None => write!(f, "{value}{smallest}"),
    }
}

impl Span {
    /// Parses `"250ms"`.
    pub fn parse(text: &str) -> Option<Span> {
        with_unit(text, &TIME_UNITS)
            .filter(|ms| *ms <= LONGEST_MS)
            .map(|ms| Span(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Span {
    /// The largest unit that fits: `"90s"`, but `"2m"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_with_unit(
            u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX),
            "s",
            &TIME_UNITS,
            f,
        )
    }
}

impl Size {
    /// Parses `"64KiB"`.
    pub fn parse(text: &str) -> Option<Size> {
        // TOML and JSON know no more than 63 bits either.
        with_unit(text, &SIZE_UNITS)
            .filter(|n| i64::try_from(*n).is_ok())
            .map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_with_unit(self.0, "B", &SIZE_UNITS, f)
    }
}

/// A scalar with a unit: from text, to text, as a pattern in the schema.
macro_rules! unit_scalar {
    ($type:ident, $what:literal, $example:literal, $pattern:literal) => {
        impl Decode for $type {
            fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
                if let Value::Int(n) = node.value {
                    let help = concat!("write a string with a unit, such as `\"", $example, "\"`");
                    findings.error(node.at, format!("{n} is {} without a unit", $what)).help(help);
                    return None;
                }
                let text = text(node, findings)?;
                let parsed = $type::parse(text);
                if parsed.is_none() {
                    let help = concat!("one integer and a unit, such as `\"", $example, "\"`");
                    findings.error(node.at, format!("`{text}` is not {}", $what)).help(help);
                }
                parsed
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

unit_scalar!(Span, "a duration", "250ms", "^[0-9]+(ms|s|m|h|d)$");
unit_scalar!(
    Size,
    "a size",
    "64KiB",
    "^[0-9]+(B|kB|KB|MB|GB|KiB|MiB|GiB)$"
);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn durations_print_to_what_they_parse_from(ms in 0..=LONGEST_MS) {
            let span = Span(Duration::from_millis(ms));
            prop_assert_eq!(Span::parse(&span.to_string()), Some(span));
        }

        #[test]
        fn sizes_print_to_what_they_parse_from(bytes in 0..=i64::MAX as u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string()), Some(Size(bytes)));
        }
    }

    #[test]
    fn the_largest_unit_that_fits_is_printed() {
        let print = |text: &str| Span::parse(text).map(|s| s.to_string());
        assert_eq!(print("1000ms").as_deref(), Some("1s"));
        assert_eq!(print("90s").as_deref(), Some("90s"));
        assert_eq!(print("120s").as_deref(), Some("2m"));
        assert_eq!(print("48h").as_deref(), Some("2d"));
        assert_eq!(print("0ms").as_deref(), Some("0s"));
        for wrong in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "1m30s",
            "366d",
            "99999999999999999999s",
        ] {
            assert_eq!(print(wrong), None, "{wrong}");
        }
        assert_eq!(Size(65_536).to_string(), "64KiB");
        assert_eq!(Size::parse("10MB"), Some(Size(10_000_000)));
        assert_eq!(Size::parse("1KB"), Size::parse("1kB"));
    }
}
