//! Numbers with a unit: durations, sizes, and both by time.

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

/// A number of requests by time as documents write it: one integer, `/`, and `s`, `m`, `h` or `d`; at most a million a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// At least 1.
    pub count: u64,
    /// In so many seconds; at least 1.
    pub seconds: u64,
}

/// A number of bytes by time as documents write it: a size and `/s`; at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speed(pub u64);

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

impl Rate {
    const UNITS: [(&'static str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    const MOST: u64 = 1_000_000;

    /// Parses `"100/s"`.
    pub fn parse(text: &str) -> Option<Rate> {
        let (count, unit) = text.split_once('/')?;
        let seconds = Rate::UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let digits = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
        let count = count.parse::<u64>().ok().filter(|_| digits)?;
        let fits = (1..=Rate::MOST * seconds).contains(&count);
        fits.then_some(Rate { count, seconds })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Rate::UNITS.iter().find(|(_, s)| *s == self.seconds);
        write!(f, "{}/{}", self.count, unit.map_or("s", |(name, _)| name))
    }
}

impl Speed {
    /// Parses `"4MB/s"`.
    pub fn parse(text: &str) -> Option<Speed> {
        let size = Size::parse(text.strip_suffix("/s")?)?;
        (size.0 > 0).then_some(Speed(size.0))
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
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
unit_scalar!(
    Rate,
    "a number of requests by time",
    "100/s",
    "^[0-9]+/(s|m|h|d)$"
);
unit_scalar!(
    Speed,
    "a number of bytes by second",
    "4MB/s",
    "^[0-9]+(B|kB|KB|MB|GB|KiB|MiB|GiB)/s$"
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

    #[test]
    fn rates_and_speeds_print_to_what_they_parse_from() {
        for text in ["100/s", "30/m", "1000/h", "1/d"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "1",
            "/s",
            "0/s",
            "+1/s",
            "1.5/s",
            "1/w",
            "1000001/s",
            "1/10s",
        ] {
            assert_eq!(Rate::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Speed::parse("4MB/s").unwrap().to_string(), "4MB/s");
        for wrong in ["", "4MB", "0B/s", "4/s", "4MB/m"] {
            assert_eq!(Speed::parse(wrong), None, "{wrong}");
        }
    }
}
